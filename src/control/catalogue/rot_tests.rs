//! One bit flips in the file of a catalogue that was closed: what is shown then is what was written, or nothing, and it is told.

use std::collections::BTreeMap;

use super::super::tests::{open, snapshot};
use super::super::{Content, EventFilter, Snapshot};
use super::*;
use crate::control::model::{AuditOutcome, AuditRecord, Event, Job, JobKind, JobState, Severity};
use crate::control::samples::Sample;
use crate::env::OsEnvironment;
use crate::units::{GroupId, WallNanos};

const ERP: GroupId = GroupId(0x10);
/// So that its bytes are found in the file.
const INTERVAL_MS: u64 = 0x0123_4567_89ab;
const CURSOR: u64 = 2;

/// What a catalogue shows.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Everything {
    pub groups: Snapshot,
    pub events: Vec<Event>,
    pub cursor: Option<u64>,
    pub audit: Vec<AuditRecord>,
    pub jobs: Vec<Job>,
    pub samples: Vec<(GroupId, WallNanos, Sample)>,
}

fn event(n: i64) -> Event {
    Event {
        id: None,
        time: WallNanos(n),
        group: Some("erp".parse().unwrap()),
        group_id: Some(ERP),
        severity: Severity::Warning,
        code: "space_low".to_owned(),
        message: format!("message-{n} of an event"),
    }
}

fn record(n: u64) -> AuditRecord {
    AuditRecord {
        id: n,
        time: WallNanos(7),
        asked_by: None,
        verb: format!("verb-{n} create"),
        subject: Some("erp".to_owned()),
        parameters: serde_json::json!({"name": "x".repeat(9000)}),
        job: None,
        outcome: AuditOutcome::Done,
        duration_ms: Some(5),
    }
}

fn job(n: u64) -> Job {
    Job {
        id: format!("job-{n}"),
        kind: JobKind::Verify,
        what: format!("what-{n} it is"),
        started: WallNanos(1),
        ended: None,
        bytes_done: 7,
        bytes_total: None,
        asked_by: None,
        state: JobState::Running,
    }
}

impl Everything {
    pub async fn write(catalogue: &Catalogue) -> Everything {
        let mut groups = snapshot();
        groups.groups[0].policy.interval_ms = INTERVAL_MS;
        catalogue.rebuild(&groups).await.unwrap();
        catalogue.record_events(&[1, 2, 3].map(event)).await.unwrap();
        catalogue.put_hook_cursor(&"page".parse().unwrap(), CURSOR).await.unwrap();
        for n in [1, 2] {
            catalogue.add_audit(&record(n)).await.unwrap();
            catalogue.put_job(&job(n), 9).await.unwrap();
        }
        let sample = |bytes| {
            let disks = BTreeMap::from([("db".to_owned(), bytes)]);
            Sample { disks, written_bytes: bytes, ..Sample::default() }
        };
        let samples = [(ERP, WallNanos(0), sample(123_456_789)), (ERP, WallNanos(1), sample(5))];
        catalogue.add_samples(&samples).await.unwrap();
        Everything::of(catalogue).await
    }

    pub async fn of(catalogue: &Catalogue) -> Everything {
        Everything {
            groups: catalogue.snapshot().await.unwrap(),
            events: catalogue.events(EventFilter::default(), 99).await.unwrap(),
            cursor: catalogue.hook_cursor(&"page".parse().unwrap()).await.unwrap(),
            audit: catalogue.audit(99).await.unwrap(),
            jobs: catalogue.jobs().await.unwrap(),
            samples: catalogue.recent_samples(WallNanos(i64::MIN)).await.unwrap(),
        }
    }

    /// Whether it has nothing but what `written` has.
    fn is_of(&self, written: &Everything) -> bool {
        let groups = self.groups.groups.iter().all(|group| {
            written.groups.groups.iter().any(|whole| {
                (group.id, &group.name, group.created, group.policy)
                    == (whole.id, &whole.name, whole.created, whole.policy)
                    && group.disks.iter().all(|disk| whole.disks.contains(disk))
                    && group.points.iter().all(|point| whole.points.contains(point))
                    && group.tests.iter().all(|test| whole.tests.contains(test))
            })
        });
        groups
            && self.events.iter().all(|event| written.events.contains(event))
            && self.cursor.is_none_or(|cursor| cursor == CURSOR)
            && self.audit.iter().all(|record| written.audit.contains(record))
            && self.jobs.iter().all(|job| written.jobs.contains(job))
            && self.samples.iter().all(|sample| written.samples.contains(sample))
    }
}

/// Where bytes stand in a file.
fn places(file: &[u8], bytes: &[u8]) -> Vec<usize> {
    let found = file.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
    found.map(|(at, _)| at).collect()
}

/// A catalogue that was closed, of which bits can be flipped.
struct Closed {
    directory: tempfile::TempDir,
    path: PathBuf,
    written: Everything,
    id: String,
    file: Vec<u8>,
}

impl Closed {
    async fn new() -> Closed {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalogue.sqlite");
        let (catalogue, _) = open(&path).await;
        let (written, id) = (Everything::write(&catalogue).await, catalogue.id());
        catalogue.close().await;
        let file = std::fs::read(&path).unwrap();
        Closed { directory, path, written, id, file }
    }

    /// Puts it there with one bit flipped.
    fn flip(&self, at: usize, bit: u8) {
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let mut file = self.file.clone();
        file[at] ^= 1 << bit;
        std::fs::write(&self.path, file).unwrap();
    }

    /// Has it opened with a bit flipped in each of the places where these bytes stand; what is told, and shown.
    async fn flipped(&self, bytes: &[u8]) -> Vec<(Vec<String>, Everything)> {
        let places = places(&self.file, bytes);
        assert!(!places.is_empty(), "{bytes:?} stand there");
        let mut found = Vec::new();
        for place in places {
            self.flip(place + bytes.len() / 2, 0);
            let (catalogue, content) = open(&self.path).await;
            assert_eq!((content, catalogue.id()), (Content::Kept, self.id.clone()));
            let told = catalogue.take_rot();
            let shown = Everything::of(&catalogue).await;
            assert_eq!(catalogue.take_rot(), [""; 0], "it is out of the way");
            catalogue.close().await;
            let (catalogue, _) = open(&self.path).await;
            assert_eq!((catalogue.take_rot(), Everything::of(&catalogue).await), (Vec::new(), shown.clone()));
            catalogue.close().await;
            found.push((told, shown));
        }
        found
    }

    /// Of a row in its table alone, which has these bytes: exactly it is missing, and its place is told.
    async fn one_row(&self, bytes: &[u8], told: &str) -> Everything {
        let found = self.flipped(bytes).await;
        let at = places(&self.file, bytes)[0];
        for (messages, shown) in &found {
            let [message] = &messages[..] else { panic!("one event: {messages:?}") };
            assert!(message.contains(&*self.path.to_string_lossy()), "{message}");
            assert!(message.contains("1 row of it") && message.contains(told), "{message}");
            let (_, place) = message.split_once("at byte ").expect("a place");
            let place = place[..place.find(')').unwrap()].parse::<usize>().expect("one place");
            assert!(place < at && at - place < 200, "{place} is the row's, with {at}");
            assert_eq!(*shown, found[0].1);
        }
        found[0].1.clone()
    }
}

#[tokio::test]
async fn a_bit_flipped_in_what_is_known_of_the_past_is_never_shown_and_told_with_its_place() {
    let closed = Closed::new().await;
    let all = closed.written.clone();
    let shown = closed.one_row(b"message-2", "events (sequence 2, at byte").await;
    let events = vec![all.events[0].clone(), all.events[2].clone()];
    assert_eq!(shown, Everything { events, ..all.clone() });
    let shown = closed.one_row(b"verb-1", "audit (sequence 1, at byte").await;
    assert_eq!(shown, Everything { audit: all.audit[..1].to_vec(), ..all.clone() });
    let shown = closed.one_row(b"what-1", "jobs (sequence 1, at byte").await;
    assert_eq!(shown, Everything { jobs: all.jobs[1..].to_vec(), ..all.clone() });
    let shown = closed
        .one_row(
            b"123456789",
            "samples (group_id 00000000000000000000000000000010, span_s 300, start_ns 0, at byte",
        )
        .await;
    assert_eq!(shown, Everything { samples: all.samples[1..].to_vec(), ..all.clone() });
}

#[tokio::test]
async fn a_bit_flipped_in_what_is_known_of_groups_is_never_shown_and_told() {
    let closed = Closed::new().await;
    let interval = &INTERVAL_MS.to_be_bytes()[2..];
    let shown =
        closed.one_row(interval, "policies (group_id 00000000000000000000000000000010, at byte").await;
    let mut expected = closed.written.clone();
    expected.groups.groups.remove(0);
    assert_eq!(shown, expected);
    for (told, shown) in closed.flipped(b"before upgrade").await {
        assert!(told.len() == 1 && told[0].contains("points (group_id"), "{told:?}");
        let points = shown.groups.groups.iter().map(|group| group.points.len()).sum::<usize>();
        assert!(points == 3 && shown.is_of(&closed.written), "{shown:?}");
    }
    // They stand in indices, too: of these nothing is lost.
    for (bytes, table) in [(&b"erp"[..], "protection_groups"), (b"data", "disks"), (b"page", "hook_cursors")]
    {
        let found = closed.flipped(bytes).await;
        let of_rows = found.iter().filter(|(told, _)| told[0].contains(&format!("{table} ("))).count();
        assert!(found.len() > of_rows && of_rows > 0, "{table}: {found:?}");
        for (told, shown) in &found {
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(shown.is_of(&closed.written), "{told:?}: {shown:?}");
            assert!(*shown != closed.written || told[0].contains("index"), "{told:?}");
        }
    }
}

/// Who follows would miss another event that had the id of one that he knows.
#[tokio::test]
async fn no_id_is_given_twice_after_the_newest_events_are_gone() {
    let closed = Closed::new().await;
    let [(_, shown)] = &closed.flipped(b"message-3").await[..] else { panic!("one place") };
    assert_eq!(shown.events, closed.written.events[1..]);
    let (catalogue, _) = open(&closed.path).await;
    assert_eq!(catalogue.newest_event().await.unwrap(), 3);
    assert_eq!(catalogue.record_events(&[event(4)]).await.unwrap(), 4);
    let found = catalogue.events_after(2, EventFilter::default(), 9).await.unwrap();
    assert_eq!((found.events.len(), found.next, found.gap), (1, 4, None));
}

/// Nobody reads the file behind the pages that SQLite holds, so another connection damages them.
#[tokio::test]
async fn what_is_found_while_it_is_open_is_told_once() {
    let closed = Closed::new().await;
    let (catalogue, _) = open(&closed.path).await;
    for statement in [
        "UPDATE events SET message = 'nobody wrote this' WHERE sequence = 3",
        "UPDATE samples SET start_ns = 7 WHERE start_ns = 1",
        "UPDATE hook_cursors SET sequence = 1",
        "UPDATE jobs SET id = 'job-9' WHERE sequence = 1",
        "UPDATE audit SET record = '{}' WHERE sequence = 1",
    ] {
        catalogue.execute(sqlx::query(statement)).await.unwrap();
    }
    let all = closed.written.clone();
    let expected = Everything {
        events: all.events[1..].to_vec(),
        samples: all.samples[..1].to_vec(),
        cursor: None,
        jobs: all.jobs[1..].to_vec(),
        audit: all.audit[..1].to_vec(),
        ..all
    };
    assert_eq!(Everything::of(&catalogue).await, expected);
    catalogue.rot_found().await;
    let told = catalogue.take_rot();
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[0].contains("events (sequence 3"), "{told:?}");
    assert_eq!(Everything::of(&catalogue).await, expected);
    let found = catalogue.events_after(1, EventFilter::default(), 2).await.unwrap();
    assert_eq!((found.events.len(), found.next), (1, 3), "what is damaged is passed over");
    assert_eq!(catalogue.take_rot(), [""; 0], "once");
}

/// What says what the file is, and which tables are in it.
#[tokio::test]
async fn a_bit_flipped_in_what_the_file_is_has_it_moved_aside_and_told() {
    let closed = Closed::new().await;
    let id = u128::from_str_radix(&closed.id, 16).unwrap().to_be_bytes();
    let names = [&id[..], b"message TEXT", b"schema_version BIGINT", b"CREATE TABLE jobs"];
    for bytes in names {
        for place in places(&closed.file, bytes) {
            closed.flip(place + 1, 1);
            let (catalogue, content) = open(&closed.path).await;
            assert_eq!(content, Content::Empty, "{bytes:?} at {place}");
            let told = catalogue.take_rot();
            assert!(told.len() == 1 && told[0].contains("catalogue.sqlite.unusable"), "{told:?}");
            assert!(closed.path.with_extension("sqlite.unusable").exists());
            catalogue.close().await;
        }
    }
}

/// Wherever it is: what is shown was written, and what is not shown is told.
#[tokio::test]
async fn a_bit_flipped_anywhere_shows_nothing_that_nobody_wrote() {
    let closed = Closed::new().await;
    // Every so many of the bytes that are not padding; AFTERIMAGE_ROT_STEP=1 takes all.
    let step = std::env::var("AFTERIMAGE_ROT_STEP").map_or(41, |step| step.parse().unwrap());
    let used = (0..closed.file.len()).filter(|at| closed.file[*at] != 0);
    let (mut told_rows, mut told_aside, mut unchanged) = (0, 0, 0);
    for at in used.step_by(step) {
        closed.flip(at, u8::try_from(at % 8).unwrap());
        // One that cannot be opened is said in the log, and nothing of it is shown.
        let Ok((catalogue, content)) = Catalogue::open(&closed.path, &OsEnvironment::new()).await else {
            continue;
        };
        let told = catalogue.take_rot();
        let shown = Everything::of(&catalogue).await;
        catalogue.close().await;
        assert!(shown.is_of(&closed.written), "byte {at}: {shown:?}");
        assert!(shown == closed.written || !told.is_empty(), "byte {at}: {shown:?}");
        match (content, told.is_empty()) {
            (Content::Empty, _) => told_aside += 1,
            (Content::Kept, false) => told_rows += 1,
            (Content::Kept, true) => unchanged += 1,
        }
    }
    assert!(told_rows > 0 && told_aside > 0, "{told_rows}, {told_aside}, {unchanged}");
}
