//! Whoever stops a gateway that has only just begun is answered by an orderly end, not by that of a process which a signal ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};

use crate::gateway::{Gateway, wait};
use crate::tool;

/// Opens a FIFO for writing once the process reads from it, which is the first thing that it does.
#[track_caller]
fn until_it_reads(fifo: &Path, process: &mut Child) -> File {
    loop {
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a flag of open(2)");
        match File::options().write(true).custom_flags(nonblocking).open(fifo) {
            Ok(writer) => return writer,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()), "{error}");
                assert_eq!(process.try_wait().expect("our child"), None, "it has ended");
            }
        }
    }
}

#[test]
fn a_stop_that_comes_before_the_configuration_is_read_is_an_orderly_one() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.terminate();
    let text = std::fs::read(gateway.configuration()).expect("it was served");
    let fifo = gateway.path("fifo");
    tool::says("mkfifo", [fifo.to_str().expect("UTF-8")]);
    for signal in [Signal::TERM, Signal::INT] {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        serve.args(["serve", "--config"]).arg(&fifo).env("AFTERIMAGE_LOG", "info");
        let mut process = serve.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        let mut writer = until_it_reads(&fifo, &mut process);
        kill_process(Pid::from_child(&process), signal).expect("it runs");
        // It may be dead by now; then its status says so.
        let _ = writer.write_all(&text);
        drop(writer);
        let status = wait(&mut process);
        assert!(status.success(), "{signal:?} ends it in good order: {status}");
        let log = BufReader::new(process.stderr.take().expect("a pipe"));
        let log: Vec<String> = log.lines().map(|line| line.expect("UTF-8")).collect();
        assert!(log.iter().any(|line| line.contains("stopped")), "{log:#?}");
    }
    gateway.restart();
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1));
}

#[test]
fn a_stop_while_an_opening_waits_for_a_lock_waits_for_neither() {
    let mut gateway = Gateway::start();
    gateway.protect([("db", "1M")]);
    gateway.terminate();
    // Somebody else has a journal's segment, as a predecessor does whose last write hangs.
    let mut groups = std::fs::read_dir(gateway.data().join("groups")).expect("groups");
    let journal = groups.next().expect("one").expect("a name").path().join("journal");
    let files = std::fs::read_dir(&journal).expect("a journal").map(|entry| entry.expect("a name").path());
    let held: Vec<File> = files.map(|path| File::open(path).expect("a segment")).collect();
    for file in &held {
        rustix::fs::flock(file, FlockOperation::LockExclusive).expect("nobody else has it");
    }
    let mut serve = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    serve.args(["serve", "--config"]).arg(gateway.configuration()).env("AFTERIMAGE_LOG", "info");
    let mut process = serve.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
    let mut log =
        BufReader::new(process.stderr.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
    assert!(log.any(|line| line.contains("the storage back end")), "it opens its groups from then on");
    kill_process(Pid::from_child(&process), Signal::TERM).expect("it runs");
    let status = wait(&mut process);
    assert!(status.success(), "in good order: {status}");
    let log: Vec<String> = log.collect();
    assert!(log.iter().any(|line| line.contains("not open yet")), "{log:#?}");
    drop(held);
    gateway.restart();
    assert_eq!(gateway.json("disk list").as_array().map(Vec::len), Some(1));
}
