//! Going back: a site whose files a later program wrote, in a version of their format that this program does not know. It is
//! refused with the reason, what is not concerned is served, and not a byte of such a file is changed.
//!
//! Each row takes a golden site and raises the version in all files of a kind, or in the newest statement of one, as a later
//! program would have written them: with sums that match.

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::format::checkpoint;
use afterimage::format::sums::{BLOCK_BYTES, Copy, Of};
use afterimage::format::{side, summary};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::content::files;
use crate::files::{entries, first, second};
use crate::gateway::{Gateway, Setup, refusal};
use crate::site::{PLAIN, SEALED, UNSEALED, put_back, qemu_io, setup, unpack};
use crate::tool;

/// Where a version is told that this program does not know.
enum Told {
    /// The group is listed as failed for it.
    OfTheGroup,
    /// The group is served, and `status` has it as the reason why a disk is latched.
    OfADisk,
    /// The group is served, and a command that needs the file ends with that status.
    By(&'static str, i32),
}

/// A kind of file.
struct Kind {
    /// What the refusal calls it, and the version that is raised.
    what: &'static str,
    /// The site that has it.
    site: PathBuf,
    settings: &'static str,
    /// Which files of the data directory.
    files: fn(&Path) -> Vec<PathBuf>,
    /// Raises the version in the bytes of one.
    raise: fn(&mut [u8]),
    told: Told,
}

const LATER: u8 = 9;

fn at_eight(bytes: &mut [u8]) {
    bytes[8] = LATER;
}

/// In both copies.
fn keyring(bytes: &mut [u8]) {
    let (one, other) = bytes.split_at_mut(bytes.len() / 2);
    at_eight(one);
    at_eight(other);
}

/// In the first slot only, though the second one is sound: which is the newer one must not matter.
fn first_slot(bytes: &mut [u8]) {
    let slot = &mut bytes[..checkpoint::FILE_BYTES / 2];
    at_eight(slot);
    slot[16..24].fill(0);
    let sum = xxh3_64(slot);
    slot[16..24].copy_from_slice(&sum.to_le_bytes());
}

fn side_footer(bytes: &mut [u8]) {
    let at = bytes.len() - side::FOOTER_BYTES;
    at_eight(&mut bytes[at..]);
}

fn summary_footer(bytes: &mut [u8]) {
    let at = bytes.len() - summary::FOOTER_BYTES;
    at_eight(&mut bytes[at..]);
}

/// In both copies of the header.
fn sums_headers(bytes: &mut [u8]) {
    for copy in Copy::BOTH {
        let at = usize::try_from(Of::Base.header_offset(copy)).expect("near the start");
        let header = &mut bytes[at..at + BLOCK_BYTES];
        at_eight(header);
        let (summed, sum) = header.split_at_mut(BLOCK_BYTES - 16);
        sum.copy_from_slice(&xxh3_128(summed).to_le_bytes());
    }
}

/// What lies in a directory of that name, of vault or group.
fn below(data: &Path, part: &str, name: &str) -> Vec<PathBuf> {
    let groups = entries(&data.join(part));
    groups.into_iter().flat_map(|group| entries(&group.join(name))).collect()
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let is_begun = |path: &PathBuf| fs::read(path).expect("readable").starts_with(b"AIFRAME\0");
    below(data, "groups", "journal").into_iter().filter(is_begun).collect()
}

fn last_step(data: &Path) -> Vec<PathBuf> {
    let is_step = |path: &PathBuf| path.extension().is_none();
    below(data, "vault", "manifest").into_iter().filter(is_step).max().into_iter().collect()
}

fn kinds() -> Vec<Kind> {
    let kind =
        |what, files, raise, told| Kind { what, site: second(PLAIN), settings: UNSEALED, files, raise, told };
    vec![
        kind("the journal", segments, at_eight, Told::OfTheGroup),
        kind("the manifest step", last_step, at_eight, Told::OfTheGroup),
        Kind {
            site: first(SEALED),
            settings: "",
            ..kind("the keyring", |data| below(data, "vault", "keys"), keyring, Told::OfTheGroup)
        },
        kind("the checkpoint", |data| files(data, "checkpoint"), first_slot, Told::OfADisk),
        kind("the side file", |data| files(data, "side-1"), side_footer, Told::OfADisk),
        kind(
            "the delta",
            |data| files(data, "delta"),
            at_eight,
            Told::By("restore erp --point whole --to /none", 1),
        ),
        // A cache: points open without it.
        kind("the summary", |data| files(data, "summary"), summary_footer, Told::By("vault verify erp", 0)),
        kind("the sums of a base", |data| files(data, "sums"), sums_headers, Told::By("vault verify erp", 1)),
    ]
}

/// Asserts that it names the file, the version found, the one that is known, and the mend.
#[track_caller]
fn assert_tells(told: &str, what: &str, raised: &[PathBuf]) {
    let found = format!("{what} has format version {LATER}, and this program reads ");
    assert!(told.contains(&found) && told.contains("start the program that wrote it"), "{what}: {told}");
    let names = raised.iter().map(|path| path.file_name().expect("a name").to_str().expect("UTF-8"));
    assert!(names.into_iter().any(|name| told.contains(name)), "{what}: no file is named: {told}");
}

fn refused_with_the_reason(kind: &Kind) {
    let what = kind.what;
    let directory = unpack(&kind.site);
    let data = directory.path().join("data");
    put_back(directory.path());
    let raised = (kind.files)(&data);
    assert!(!raised.is_empty(), "the site has {what}");
    let contents = raised.iter().map(|path| {
        let mut bytes = fs::read(path).expect("readable");
        (kind.raise)(&mut bytes);
        fs::write(path, &bytes).expect("written");
        bytes
    });
    let contents: Vec<Vec<u8>> = contents.collect();
    let mut gateway = Gateway::with(&Setup { data: Some(data), ..setup(kind.settings) });
    let failure = gateway.json("group list")[0]["failure"].clone();
    match kind.told {
        Told::OfTheGroup => {
            assert_eq!(failure["reason"]["code"], "unsupported", "{what}: {failure:#}");
            assert_tells(failure["reason"]["detail"].as_str().expect("text"), what, &raised);
            let told = gateway.refuses("disk create erp/more --size 1M", 1);
            assert!(told.contains("start the program that wrote it"), "{told}");
        }
        Told::OfADisk => {
            assert!(failure.is_null(), "{what}: {failure:#}");
            assert_tells(&gateway.says("status --json"), what, &raised);
        }
        Told::By(command, status) => {
            assert!(failure.is_null(), "{what}: {failure:#}");
            let output = gateway.cli(command).output().expect("the program");
            assert_eq!(output.status.code(), Some(status), "{what}: {command}");
            let told = [output.stdout, output.stderr].concat();
            assert_tells(&String::from_utf8(told).expect("UTF-8"), what, &raised);
        }
    }
    // Other groups never notice.
    gateway.says("group create web");
    gateway.says("disk create web/db --size 1M");
    qemu_io(&gateway, "web/db", &["write -P 1 0 64k", "read -P 1 0 64k"]);
    gateway.says("point create web");
    gateway.kill();
    for (path, bytes) in raised.iter().zip(contents) {
        assert!(
            fs::read(path).expect("it is still there") == bytes,
            "{what}: {} has changed",
            path.display()
        );
    }
}

#[test]
fn files_of_a_later_version_are_refused_with_the_reason_and_stay_as_they_are() {
    for kind in kinds() {
        refused_with_the_reason(&kind);
    }
}

/// What the sum of the row is of that says what a catalogue is: docs/format.md.
fn catalogue_row(version: i64, id: u128) -> Vec<u8> {
    let name = b"catalogue";
    let mut row = [&9u32.to_be_bytes(), &name[..]].concat();
    for number in [0, version] {
        row.push(1);
        row.extend(number.to_be_bytes());
    }
    row.push(3);
    row.extend(16u64.to_be_bytes());
    row.extend(id.to_be_bytes());
    row.push(1);
    row.extend(0i64.to_be_bytes());
    row
}

/// Events and audit trail are nowhere else.
#[test]
fn a_catalogue_of_a_later_version_keeps_the_gateway_from_starting() {
    let mut gateway = Gateway::start();
    gateway.says("group create erp");
    let id = gateway.api_get("/v1/events?wait_ms=0&after=0")["catalogue"].as_str().expect("an id").to_owned();
    gateway.terminate();
    let catalogue = gateway.data().join("catalogue.sqlite");
    // Which version it is stands in a row that has a sum, as every row has: a flipped bit is no later version.
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                  c.execute('UPDATE catalogue SET schema_version = 9, sum = ?', [bytes.fromhex(sys.argv[2])]); \
                  c.commit(); c.close()";
    let id = u128::from_str_radix(&id, 16).expect("hexadecimal");
    let sum = format!("{:032x}", xxh3_128(&catalogue_row(9, id)));
    tool::says("python3", ["-c", script, catalogue.to_str().expect("UTF-8"), sum.as_str()]);
    let before = fs::read(&catalogue).expect("readable");
    let serve = format!("serve --config {}", gateway.configuration().display());
    let output = gateway.cli(&serve).env("AFTERIMAGE_LOG", "error").output().expect("the program");
    let told = refusal(&output, 1);
    assert!(told.contains("the catalogue has format version 9, and this program reads 5"), "{told}");
    assert!(told.contains("catalogue.sqlite") && told.contains("start the program that wrote it"), "{told}");
    assert!(fs::read(&catalogue).expect("still there") == before, "nothing of it has changed");
}
