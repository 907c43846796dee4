//! What the demo measured, as a table.

use std::time::Duration;

use crate::byte_size::ByteSize;
use crate::cli::output::table;
use crate::oracle::{Outcome, Verdict};

/// What the load did and how long it took.
pub struct LoadMeasured {
    pub outcome: Outcome,
    /// Without the time between the kill and the first answer after it.
    pub busy: Duration,
    /// From the start of the new process until it served.
    pub restart: Duration,
}

/// One state of the group, compared with the oracle.
pub struct Compared {
    pub what: String,
    /// When it was made, relative to the end of the load.
    pub age: Option<Duration>,
    /// From the command to the first bytes; of a point.
    pub opened: Option<Duration>,
    pub read: Duration,
    pub verdict: Verdict,
}

pub fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        0..10 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        ms @ 10..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[allow(clippy::cast_precision_loss)]
fn rate(amount: u64, duration: Duration) -> f64 {
    amount as f64 / duration.as_secs_f64().max(1e-9)
}

/// The latency that so many in a thousand stay below.
fn percentile(sorted: &[u32], thousandths: usize) -> Duration {
    let index = (sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1));
    Duration::from_micros(u64::from(sorted.get(index).copied().unwrap_or(0)))
}

pub fn load(measured: &LoadMeasured) -> String {
    let outcome = &measured.outcome;
    let acknowledged: Vec<_> =
        outcome.operations.iter().filter(|operation| operation.acknowledged.is_some()).collect();
    let bytes: u64 = acknowledged.iter().map(|operation| operation.range.bytes()).sum();
    let count = acknowledged.len() as u64;
    let in_doubt = outcome.operations.len() as u64 - count;
    let mut latencies = outcome.latencies_us.clone();
    latencies.sort_unstable();
    let outage = outcome.outages.iter().max().copied().unwrap_or_default();
    let row = |name: &str, value: String| [name.to_owned(), value];
    let rows = [
        row(
            "writes, trims and zeroings acknowledged",
            format!("{} ({})", grouped(count), ByteSize(bytes).approximate()),
        ),
        row(
            "a second",
            format!("{:.0}, {:.1} MB", rate(count, measured.busy), rate(bytes, measured.busy) / 1e6),
        ),
        row(
            "answered within",
            format!(
                "{} (half), {} (99 %)",
                seconds(percentile(&latencies, 500)),
                seconds(percentile(&latencies, 990))
            ),
        ),
        row("flushes acknowledged", grouped(outcome.flushes.len() as u64)),
        row("in flight at the kill, never answered", grouped(in_doubt)),
        row("killed gateway serving again", format!("{} after its start", seconds(measured.restart))),
        row("longest that a client waited for it", seconds(outage)),
    ];
    table(["MEASURED", ""], rows)
}

pub fn compared(all: &[Compared]) -> String {
    let rows = all.iter().map(|one| {
        let verdict = &one.verdict;
        [
            one.what.clone(),
            one.age.map_or(String::new(), |age| format!("{:.1} s", age.as_secs_f64())),
            one.opened.map_or(String::new(), seconds),
            grouped(verdict.sectors),
            grouped(verdict.written),
            grouped(verdict.required),
            seconds(one.read),
            if verdict.is_clean() {
                "as it must be".to_owned()
            } else {
                format!("{} DIFFER", verdict.violations_count)
            },
        ]
    });
    table(["COMPARED", "AGE", "OPENED IN", "BLOCKS", "WRITTEN", "WRITES HELD", "READ IN", "RESULT"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(seconds(Duration::from_micros(1_400)), "1.4 ms");
        assert_eq!(seconds(Duration::from_millis(3)), "3.0 ms");
        assert_eq!(seconds(Duration::from_millis(120)), "120 ms");
        assert_eq!(seconds(Duration::from_millis(2_340)), "2.3 s");
    }

    #[test]
    fn percentiles_of_few() {
        assert_eq!(percentile(&[], 500), Duration::ZERO);
        assert_eq!(percentile(&[1, 2, 3], 990), Duration::from_micros(3));
    }
}
