//! Many seeds, on two threads, until one fails.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Failure, Options, Report, run};
use crate::planted::Planted;

/// What became of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    /// Seeds that were clean.
    pub clean: u64,
    /// What those did, in all.
    pub report: Report,
    /// Seeds that failed: the first, and one that was under way beside it.
    pub failures: Vec<Failure>,
}

/// Runs seeds in order until one fails, all are done or `is_over` says so.
pub fn sweep(seeds: Range<u64>, planted: Planted, is_over: impl Fn() -> bool + Sync) -> Swept {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let swept: Mutex<Swept> = Mutex::default();
    let work = || {
        while !stop.load(Ordering::Relaxed) && !is_over() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let result = run(seed, &Options { planted, sink: None });
            let mut swept = swept.lock().expect("no thread panics with it");
            match result {
                Ok(report) => {
                    swept.clean += 1;
                    swept.report.add(&report);
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    swept.failures.push(failure);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    swept.into_inner().expect("no thread panics with it")
}
