//! What people are told of requests that fail: of a group's disks, and of its test failovers.
//!
//! Words only: what counts, and for how long, is [`crate::protect::failing`]'s.

use crate::block::TestId;
use crate::control::model::{Failure, Reason, ReasonCode};
use crate::control::name::Name;
use crate::counted::counted;
use crate::error::ErrorKind;
use crate::failover::TestTrouble;
use crate::protect::failing::Failing;

/// Exports that are named; of the others there is a count.
const EXPORTS_NAMED: usize = 4;

/// What requests fail of: disks of a group by name,
pub(super) type FailingDisk = Failing<String>;
/// and disks of its test failovers.
pub(super) type FailingTest = Failing<(TestId, String)>;

/// Since when requests of a group fail, how many, of which exports, why, and what to do; nothing where none does.
pub(super) fn failure(group: &Name, disks: Vec<FailingDisk>, tests: Vec<FailingTest>) -> Option<Failure> {
    let mend = mend(group, &disks, &tests);
    let disks = disks.into_iter().map(|failing| failing.renamed(|disk| format!("{group}/{disk}")));
    let tests = tests
        .into_iter()
        .map(|failing| failing.renamed(|(test, disk)| format!("{group}/{disk}@test-{}", test.0)));
    let exports: Vec<Failing<String>> = disks.chain(tests).collect();
    let newest = exports.iter().max_by_key(|failing| failing.newest)?;
    let since = exports.iter().map(|failing| failing.since).min()?;
    let requests: u64 = exports.iter().map(|failing| failing.requests).sum();
    let named = exports.iter().take(EXPORTS_NAMED);
    let named: Vec<_> = named.map(|failing| format!("{} of {}", failing.requests, failing.export)).collect();
    let more = match exports.len() - named.len() {
        0 => String::new(),
        more => format!(" and others of {}", counted(more, "further export")),
    };
    let detail = format!(
        "{} failed, {}{more}; the last at {}: {}",
        counted(requests, "request"),
        named.join(", "),
        newest.newest,
        newest.error
    );
    Some(Failure { reason: Reason { code: ReasonCode::RequestsFail, detail, mend }, since })
}

/// What of a group's test failovers cannot be served or is damaged, beside what else is damaged of the group.
pub(super) fn with_tests(group: &Name, damage: Option<Failure>, troubles: &[TestTrouble]) -> Option<Failure> {
    let Some(first) = troubles.iter().min_by_key(|trouble| (trouble.is_served, trouble.since)) else {
        return damage;
    };
    let what = match first.is_served {
        true => "is damaged",
        false => "cannot be served",
    };
    let mut detail = format!("test failover {group}/{} {what}: {}", first.what, first.error);
    if troubles.len() > 1 {
        detail += &format!(
            "; and {} more: `failover list {group}` and `verify {group}` list them",
            troubles.len() - 1
        );
    }
    let since = troubles.iter().map(|trouble| trouble.since).min().unwrap_or(first.since);
    let mend = format!(
        "put back what is missing or damaged and start the gateway again, or end the test failover: `afterimage failover cleanup {group}`; \
         nothing that protects disks needs it"
    );
    let tests = Failure { reason: Reason { code: ReasonCode::TestDamaged, detail, mend }, since };
    let Some(Failure { reason, since }) = damage else { return Some(tests) };
    let detail = format!("{}; and {}", reason.detail, tests.reason.detail);
    let mend = format!("{}; and {}", reason.mend, tests.reason.mend);
    Some(Failure { reason: Reason { detail, mend, ..reason }, since: since.min(tests.since) })
}

fn mend(group: &Name, disks: &[FailingDisk], tests: &[FailingTest]) -> String {
    let lacks_space = |failing: &&FailingTest| failing.kind == ErrorKind::NoSpace;
    let mut mends = Vec::new();
    if !disks.is_empty() {
        mends.push(format!(
            "mend the device if it gives errors; run `afterimage verify {group}`, which says what of the disks is not as it was stored"
        ));
    }
    if tests.iter().any(|failing| !lacks_space(&failing)) {
        mends.push(format!(
            "run `afterimage vault verify {group}`, which says what is damaged and which points that harms"
        ));
    }
    if tests.iter().any(|failing| lacks_space(&failing)) {
        mends.push(
            "free space in the file system of the data directory, which has what test failovers write"
                .to_owned(),
        );
    }
    mends.join("; and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::WallNanos;

    fn failing<K>(export: K, since: i64, requests: u64, kind: ErrorKind) -> Failing<K> {
        let (since, newest) = (WallNanos(since * 1_000_000_000), WallNanos((since + 9) * 1_000_000_000));
        Failing { export, since, newest, requests, kind, error: format!("{kind:?} since {since}") }
    }

    fn test(number: u64, since: i64, kind: ErrorKind) -> FailingTest {
        failing((TestId(number), "db".to_owned()), since, 2, kind)
    }

    #[test]
    fn what_cannot_be_served_comes_before_what_is_damaged_and_behind_what_the_vault_lacks() {
        let erp: Name = "erp".parse().unwrap();
        assert_eq!(with_tests(&erp, None, &[]), None);
        let trouble = |what: &str, is_served, since| TestTrouble {
            what: what.to_owned(),
            is_served,
            error: "x at byte 512".to_owned(),
            since: WallNanos(since),
        };
        let troubles = [trouble("a@test-1", true, 5), trouble("b@test-1", false, 9)];
        let alone = with_tests(&erp, None, &troubles).expect("told");
        assert_eq!((alone.reason.code, alone.since), (ReasonCode::TestDamaged, WallNanos(5)));
        let expected = "test failover erp/b@test-1 cannot be served: x at byte 512; and 1 more";
        assert!(alone.reason.detail.starts_with(expected), "{}", alone.reason.detail);
        let reason = Reason { code: ReasonCode::VerifyFound, detail: "D".to_owned(), mend: "M".to_owned() };
        let both =
            with_tests(&erp, Some(Failure { reason, since: WallNanos(7) }), &troubles[..1]).expect("told");
        assert_eq!((both.reason.code, both.since), (ReasonCode::VerifyFound, WallNanos(5)));
        assert!(both.reason.detail.starts_with("D; and test failover erp/a@test-1 is damaged"));
        assert!(both.reason.mend.starts_with("M; and "));
    }

    #[test]
    fn all_exports_are_told_together_with_the_newest_error_and_each_mend_once() {
        let erp: Name = "erp".parse().unwrap();
        assert_eq!(failure(&erp, Vec::new(), Vec::new()), None);
        let of_disk =
            failure(&erp, vec![failing("db".to_owned(), 50, 1, ErrorKind::Io)], Vec::new()).unwrap();
        assert_eq!(
            of_disk.reason.detail,
            "1 request failed, 1 of erp/db; the last at 1970-01-01T00:00:59.000Z: Io since 1970-01-01T00:00:50.000Z"
        );
        assert!(of_disk.reason.mend.contains("`afterimage verify erp`"));
        assert!(!of_disk.reason.mend.contains("vault"), "it is the image's");
        let disks = vec![failing("db".to_owned(), 50, 1, ErrorKind::Io)];
        let tests = (1..=5).map(|number| test(number, 60, ErrorKind::Corrupt)).chain([test(
            6,
            40,
            ErrorKind::NoSpace,
        )]);
        let Failure { reason, since } = failure(&erp, disks, tests.collect()).unwrap();
        assert_eq!((reason.code, since), (ReasonCode::RequestsFail, WallNanos(40_000_000_000)));
        let expected = "13 requests failed, 1 of erp/db, 2 of erp/db@test-1, 2 of erp/db@test-2, 2 of erp/db@test-3 and others of \
                        3 further exports; the last at 1970-01-01T00:01:09.000Z: Corrupt";
        assert!(reason.detail.starts_with(expected), "{}", reason.detail);
        for mend in ["`afterimage verify erp`", "`afterimage vault verify erp`", "free space"] {
            assert_eq!(reason.mend.matches(mend).count(), 1, "{}", reason.mend);
        }
    }
}
