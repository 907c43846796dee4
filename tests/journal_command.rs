//! `afterimage journal inspect|verify` as a process: what it prints of a real journal, and its exit status.
#![cfg(feature = "server")]

#[allow(dead_code)]
#[path = "support/journal_maker.rs"]
mod journal_maker;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use journal_maker::{GROUP, Journal, files};
use serde_json::Value;

fn journal(arguments: &[&str], path: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.arg("journal").args(arguments).arg(path).output().expect("runs")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn json(arguments: &[&str], path: &Path, status: i32) -> Value {
    let output = journal(&[arguments, &["--json"]].concat(), path);
    assert_eq!(output.status.code(), Some(status));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn made(directory: &Path) {
    let mut journal = Journal::open(directory, GROUP);
    journal.write(0, 1, 8);
    journal.zero(64, 128);
    journal.mark("before the upgrade");
    journal.sync();
    journal.write(8, 2, 8);
    journal.seal();
}

#[test]
fn a_sound_journal_is_told_as_text_and_json() {
    let root = tempfile::tempdir().expect("a directory");
    made(root.path());
    let before = files(root.path());
    let output = journal(&["verify"], root.path());
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output).starts_with("sound, closed in good order: "), "{}", text(&output));
    let told = text(&journal(&["inspect", "--records"], root.path()));
    for fragment in [
        "before the upgrade",
        "zeros, disk 0, sectors 64..128",
        "write, disk 0, sectors 0..8",
        "seal",
        "accepts 1 segment",
    ] {
        assert!(told.contains(fragment), "`{fragment}` in: {told}");
    }
    let report = json(&["inspect"], root.path(), 0);
    assert_eq!(report["verdict"], "sound");
    assert_eq!(report["group"], GROUP.to_string());
    assert_eq!((&report["closed"], &report["incarnations"][0]["closed"]), (&true.into(), &true.into()));
    // That word is for what is encrypted, which these files say of none.
    assert!(report.get("sealed").is_none() && report["incarnations"][0].get("sealed").is_none());
    assert!(report["segment_files"][0].get("frames").is_none());
    let report = json(&["inspect", "--records"], root.path(), 0);
    let frames = report["segment_files"][0]["frames"].as_array().expect("frames");
    assert_eq!(frames[0]["kind"], "opening");
    assert!(frames.iter().any(|frame| frame["records"][0]["sectors"] == 64), "{report}");
    assert!(files(root.path()) == before, "looking changes nothing");
}

#[test]
fn a_damaged_journal_is_exit_status_one_with_file_and_offset() {
    let root = tempfile::tempdir().expect("a directory");
    made(root.path());
    let segment = root.path().join("segment-00000000");
    let mut bytes = fs::read(&segment).expect("reads");
    bytes[3 * 4096 + 9] ^= 1;
    fs::write(&segment, bytes).expect("writes");
    let output = journal(&["verify"], root.path());
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        errors.starts_with("error: the journal is damaged: 1 fault") && errors.lines().count() == 1,
        "{errors}"
    );
    assert!(
        text(&output).contains("segment-00000000 at byte 8192: a frame whose payload"),
        "{}",
        text(&output)
    );
    let report = json(&["verify"], root.path(), 1);
    assert_eq!(report["verdict"], "damaged");
    assert_eq!(report["faults"][0]["offset"], 8192);
    assert_eq!(journal(&["inspect"], root.path()).status.code(), Some(0), "looking at damage is no failure");
    // Before it stands the opening.
    let first = 1_u64 << 32;
    assert_eq!((report["sound_first"].as_u64(), report["sound_last"].as_u64()), (Some(first), Some(first)));
    assert_eq!((report["sound_frames"].as_u64(), report["accepted_frames"].as_u64()), (Some(1), Some(0)));
    let line =
        "damaged: sound from record 1:00000000 up to record 1:00000000 (1 frame in 5 segments); durable";
    // Not at its start: a command that another test has just begun may hold the journal's lock until it is that command.
    assert!(text(&output).contains(line), "{}", text(&output));
    let report = json(&["inspect"], root.path(), 0);
    assert_eq!(report["segment_files"][0]["role"], "sound");
    assert_eq!(report["segment_files"][1]["role"], "free");
}

/// A file of sysfs whose reads fail stands for a bad sector, for which a disk would be needed.
#[test]
fn what_cannot_be_read_or_opened_is_exit_status_one_with_file_and_offset() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().expect("a directory");
    made(root.path());
    let records = json(&["verify"], root.path(), 0)["sound_last"].clone();
    let unreadable = Path::new("/sys/class/net/lo/speed");
    let refused = fs::read(unreadable).expect_err("the loopback device has no speed");
    symlink(unreadable, root.path().join("segment-00000077")).expect("a link");
    symlink("nowhere", root.path().join("segment-00000078")).expect("a link");
    let told = text(&journal(&["verify"], root.path()));
    let bad = format!("segment-00000077 at byte 0: 4096 bytes cannot be read: {refused}");
    assert!(told.contains(&bad) && told.contains("segment-00000078: it cannot be opened"), "{told}");
    let report = json(&["verify"], root.path(), 1);
    assert_eq!((&report["verdict"], &report["sound_last"]), (&"damaged".into(), &records));
    let inspected = text(&journal(&["inspect", "--records"], root.path()));
    for fragment in [&*bad, "before the upgrade", "opening       cannot be told"] {
        assert!(inspected.contains(fragment), "`{fragment}` in: {inspected}");
    }
}

#[test]
fn a_file_that_is_no_journal_is_exit_status_two_and_a_never_used_segment_is_told() {
    let root = tempfile::tempdir().expect("a directory");
    made(&root.path().join("journal"));
    let (zeros, garbage) = (root.path().join("zeros"), root.path().join("garbage"));
    fs::write(&zeros, [0; 65536]).expect("written");
    fs::write(&garbage, [0xa5; 65536]).expect("written");
    for verb in ["verify", "inspect"] {
        for path in [&zeros, &garbage] {
            let output = journal(&[verb], path);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{errors}");
            let said = "error: no journal: no frame stands in the file: name a group's `journal` directory";
            assert!(errors.starts_with(said) && errors.lines().count() == 1, "{errors}");
            assert!(errors.contains(&path.display().to_string()), "{errors}");
            assert!(output.stdout.is_empty(), "nothing is said to be sound, or damaged");
        }
    }
    let free = root.path().join("journal/segment-00000001");
    let output = journal(&["verify"], &free);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output).starts_with("never used: ") && text(&output).contains("it holds no journal"),
        "{}",
        text(&output)
    );
    assert_eq!(json(&["verify"], &free, 0)["verdict"], "never_used");
}

#[test]
fn what_is_not_there_or_in_use_is_said() {
    let root = tempfile::tempdir().expect("a directory");
    for verb in ["verify", "inspect"] {
        let output = journal(&[verb], &root.path().join("none"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.starts_with("error: no journal: nothing has that name: name a group's"), "{errors}");
        let output = journal(&[verb], root.path());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.starts_with("error: no journal: it holds no segment") && errors.lines().count() == 1);
        assert!(output.stdout.is_empty(), "nothing is said to be sound");
        // A circle of links, a name that is too long, and a file in the place of a directory.
        let circle = root.path().join("circle");
        std::os::unix::fs::symlink(&circle, root.path().join("other")).expect("made");
        std::os::unix::fs::symlink(root.path().join("other"), &circle).expect("made");
        fs::write(root.path().join("file"), "").expect("written");
        for (path, said) in [
            (circle.clone(), "error: no journal: Too many levels of symbolic links"),
            (root.path().join("n".repeat(300)), "error: no journal: File name too long"),
            (root.path().join("file").join("journal"), "error: no journal: nothing has that name"),
        ] {
            let output = journal(&[verb], &path);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{errors}");
            assert!(errors.starts_with(said), "{errors}");
        }
        for left in ["circle", "other", "file"] {
            fs::remove_file(root.path().join(left)).expect("removed");
        }
    }
    let open = Journal::open(root.path(), GROUP);
    assert!(text(&journal(&["verify"], root.path())).contains("snapshot"));
    drop(open);
}
