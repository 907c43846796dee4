//! Ticks of axes: where they are, and what stands beside them.

use crate::byte_size::ByteSize;

const SECOND_MS: u64 = 1000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Steps between times that people count by.
const TIME_STEPS: [u64; 15] = [
    MINUTE_MS,
    5 * MINUTE_MS,
    15 * MINUTE_MS,
    30 * MINUTE_MS,
    HOUR_MS,
    3 * HOUR_MS,
    6 * HOUR_MS,
    12 * HOUR_MS,
    DAY_MS,
    2 * DAY_MS,
    5 * DAY_MS,
    10 * DAY_MS,
    30 * DAY_MS,
    60 * DAY_MS,
    120 * DAY_MS,
];
const TIME_TICKS_MAX: u64 = 9;
const TICKS_MAX: u64 = 5;
const LOGARITHM_TICKS_MAX: u32 = 6;

/// The axis that a panel's values are measured by.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Its lower end,
    pub low: f64,
    /// and its upper one, which is above it.
    pub high: f64,
    /// Values with their labels, ascending.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From one time to a later one, in milliseconds since 1970.
    pub fn times(from_ms: i64, to_ms: i64) -> Axis {
        let ticks = times(from_ms, to_ms).into_iter().map(|(time, label)| (moment(time), label)).collect();
        Axis { low: moment(from_ms), high: moment(to_ms), ticks }
    }

    /// From zero to at least `most`, `step` for `step`.
    fn linear(most: u64, step: u64, label: impl Fn(u64) -> String) -> Axis {
        let count = most.div_ceil(step).max(1);
        let ticks = (0..=count).map(|tick| (float(tick * step), label(tick * step))).collect();
        Axis { low: 0.0, high: float(count * step), ticks }
    }

    /// Bytes.
    pub fn bytes(most: u64) -> Axis {
        let most = most.min(1 << 60);
        let step = (0..60).map(|power| 1_u64 << power).find(|step| most.div_ceil(*step) <= TICKS_MAX);
        Axis::linear(most, step.unwrap_or(1 << 60), size)
    }

    /// Numbers of things.
    pub fn count(most: u64) -> Axis {
        let most = most.min(1 << 60);
        let decades = std::iter::successors(Some(1_u64), |decade| decade.checked_mul(10));
        let mut steps = decades.flat_map(|decade| [1, 2, 5].map(|times: u64| times.saturating_mul(decade)));
        let step = steps.find(|step| most.div_ceil(*step) <= TICKS_MAX).unwrap_or(most);
        Axis::linear(most, step, |count| count.to_string())
    }

    /// Durations in milliseconds.
    pub fn duration(most_ms: u64) -> Axis {
        let most_ms = most_ms.min(1 << 60);
        let short = [SECOND_MS, 5 * SECOND_MS, 15 * SECOND_MS];
        let mut steps = short.into_iter().chain(TIME_STEPS);
        let step = steps.find(|step| most_ms.div_ceil(*step) <= TICKS_MAX);
        let step = step.unwrap_or_else(|| most_ms.div_ceil(TICKS_MAX).next_multiple_of(100 * DAY_MS));
        Axis::linear(most_ms, step, duration)
    }

    /// Bytes, from `least` to `most`, each step a multiple of the one before; values are to be given as [`logarithm`]s.
    pub fn bytes_logarithmic(least: u64, most: u64) -> Axis {
        let (low, high) = (least.max(1).ilog2(), most.max(2).ilog2() + 1);
        let step = [1, 2, 5, 10].into_iter().find(|step| (high - low).div_ceil(*step) < LOGARITHM_TICKS_MAX);
        let step = step.unwrap_or(20);
        let (low, high) = (low / step * step, high.div_ceil(step) * step);
        let ticks = (low..=high).step_by(usize::try_from(step).unwrap_or(1));
        let label = |power: u32| 1_u64.checked_shl(power).map_or(String::new(), size);
        let ticks = ticks.map(|power| (f64::from(power), label(power))).collect();
        Axis { low: f64::from(low), high: f64::from(high), ticks }
    }
}

/// Where bytes are on a logarithmic axis.
pub fn logarithm(bytes: u64) -> f64 {
    float(bytes.max(1)).log2()
}

/// Times in milliseconds since 1970 from one to another, with their labels: of days where they begin, else of hours and minutes.
fn times(from_ms: i64, to_ms: i64) -> Vec<(i64, String)> {
    let length = to_ms.abs_diff(from_ms);
    let step = TIME_STEPS.into_iter().find(|step| length / step < TIME_TICKS_MAX).unwrap_or(360 * DAY_MS);
    let step = i64::try_from(step).unwrap_or(i64::MAX);
    let first = from_ms.div_euclid(step) * step;
    let ticks = std::iter::successors(Some(first), |tick| Some(tick + step));
    let within = ticks.skip_while(|tick| *tick < from_ms).take_while(|tick| *tick <= to_ms);
    within.map(|tick| (tick, time(tick))).collect()
}

fn time(ms: i64) -> String {
    let is_day = ms.rem_euclid(i64::try_from(DAY_MS).unwrap_or(1)) == 0;
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    time.strftime(if is_day { "%b %-d" } else { "%H:%M" }).to_string()
}

/// A size that is a whole number of its unit, as ticks are.
fn size(bytes: u64) -> String {
    if bytes == 0 { "0".to_owned() } else { ByteSize(bytes).approximate().to_string().replace(".0 ", " ") }
}

/// A duration by the largest unit that divides it.
pub fn duration(ms: u64) -> String {
    let units = [(DAY_MS, "d"), (HOUR_MS, "h"), (MINUTE_MS, "min"), (SECOND_MS, "s")];
    match units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit)) {
        _ if ms == 0 => "0".to_owned(),
        Some((unit, name)) => format!("{} {name}", ms / unit),
        None => format!("{ms} ms"),
    }
}

/// A time in milliseconds since 1970, as axes have it: exact for a quarter of a million years.
#[allow(clippy::cast_precision_loss)]
pub fn moment(ms: i64) -> f64 {
    ms as f64
}

/// Above 2^53 the last digits are rounded, which no eye sees.
#[allow(clippy::cast_precision_loss)]
pub fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn axes_reach_what_they_show_with_few_ticks() {
        assert_eq!(labels(&Axis::bytes(0)), ["0", "1 B"]);
        assert_eq!(labels(&Axis::bytes(3 << 29)), ["0", "512 MiB", "1 GiB", "1.5 GiB"]);
        assert_eq!(labels(&Axis::count(7)), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(&Axis::count(86_400)), ["0", "20000", "40000", "60000", "80000", "100000"]);
        assert_eq!(labels(&Axis::duration(15 * DAY_MS)), ["0", "5 d", "10 d", "15 d"]);
        assert_eq!(labels(&Axis::duration(150_000)), ["0", "1 min", "2 min", "3 min"]);
        let space = Axis::bytes_logarithmic(1 << 20, 700 << 30);
        assert_eq!(labels(&space), ["1 MiB", "32 MiB", "1 GiB", "32 GiB", "1 TiB"]);
        for most in [0, 1, 1 << 40, u64::MAX] {
            let axes = [
                Axis::bytes(most),
                Axis::count(most),
                Axis::duration(most),
                Axis::bytes_logarithmic(0, most),
            ];
            for axis in axes {
                assert!(axis.high > axis.low && (2..=8).contains(&axis.ticks.len()), "{most}: {axis:?}");
            }
        }
    }

    #[test]
    fn times_are_whole_ones_of_utc() {
        let day = 20_778 * i64::try_from(DAY_MS).unwrap();
        let hour = i64::try_from(HOUR_MS).unwrap();
        let said = |from, to| times(from, to).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(said(day - hour, day + 2 * hour + 1)[..5], ["23:00", "23:30", "Nov 21", "00:30", "01:00"]);
        assert_eq!(said(day + 1, day + 7 * 24 * hour).len(), 7);
        assert_eq!(said(day + 5, day + 6), Vec::<String>::new());
    }
}
