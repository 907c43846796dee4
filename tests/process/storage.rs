//! Which storage back end runs is said, with the reason, in `status` and in the log.

use crate::gateway::{Gateway, Setup};

#[test]
fn blocking_threads_run_where_they_were_chosen() {
    let gateway = Gateway::on("blocking");
    let storage = &gateway.json("status")["storage"];
    assert_eq!(storage["backend"], "blocking");
    assert_eq!(storage["backend_reason"], "chosen in the configuration");
    assert!(gateway.says("status").contains("storage  blocking (chosen in the configuration)"));
    assert_eq!(gateway.logged("backend=blocking").len(), 1);
}

#[test]
fn auto_says_what_it_found_and_why() {
    let gateway = Gateway::on("auto");
    let storage = &gateway.json("status")["storage"];
    let (backend, reason) = (&storage["backend"], storage["backend_reason"].as_str().expect("text"));
    match backend.as_str().expect("text") {
        "io_uring" => assert_eq!(reason, "the best that works here"),
        "blocking" => {
            assert!(reason.starts_with("io_uring cannot be used here: "), "{reason}");
            assert_eq!(gateway.logged("blocking threads take over").len(), 1, "the log warns");
        }
        other => panic!("no such back end: {other}"),
    }
}

#[test]
fn a_file_system_without_direct_io_is_told() {
    // Linux has tmpfs here, which refuses O_DIRECT up to 6.5; where it takes it, there is nothing to tell.
    let data = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    let gateway = Gateway::with(&Setup { data: Some(data.path().to_owned()), ..Setup::default() });
    gateway.protect([("db", "1M")]);
    let storage = &gateway.json("status")["storage"];
    match storage["direct"].as_bool().expect("yes or no") {
        true => assert!(storage["direct_reason"].is_null()),
        false => assert!(storage["direct_reason"].as_str().expect("text").contains("refuses O_DIRECT")),
    }
}
