//! The intake alone: records a second from four producers to one owner that does nothing with them, the null storage, which is the
//! ceiling of every hand-over between sessions and a group on another thread; and the CPU time that a record costs, with both
//! sides of it. The owner sleeps as the data thread does, on something that a producer has to ring.
//!
//! `tests/run bench intake`. The goal of part 3 is a million records a second.

use std::cell::Cell;
use std::thread;
use std::time::Duration;

use afterimage::journal::intake::{Wake, intake};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PRODUCERS: u64 = 4;
const RECORDS_EACH: u64 = 100_000;
const DRAIN_MAX: usize = 1024;

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// As long as a request with its ticket and its payload's handle.
type Record = [u64; 12];

fn hand_over() -> u64 {
    let (publisher, mut intake) = intake::<Record>(Unpark(thread::current()));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let publisher = publisher.clone();
            thread::spawn(move || {
                for record in 0..RECORDS_EACH {
                    publisher.publish([producer ^ record; 12]).expect("the owner is there");
                }
            })
        })
        .collect();
    let mut records = Vec::with_capacity(DRAIN_MAX);
    let mut drained = 0;
    while drained < PRODUCERS * RECORDS_EACH {
        records.clear();
        drained += intake.drain(DRAIN_MAX, &mut records) as u64;
        if records.is_empty() && intake.prepare_to_sleep() {
            thread::park();
            intake.awake();
        }
    }
    for producer in producers {
        producer.join().expect("a producer does not panic");
    }
    drained
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("intake");
    group.throughput(Throughput::Elements(PRODUCERS * RECORDS_EACH));
    group.sample_size(10);
    let (records, cpu) = (Cell::new(0), Cell::new(Duration::ZERO));
    group.bench_function("4 producers, null owner", |bencher| {
        bencher.iter(|| {
            let began = cpu_time();
            records.set(records.get() + hand_over());
            cpu.set(cpu.get() + (cpu_time() - began));
        });
    });
    group.finish();
    if records.get() > 0 {
        let nanos = cpu.get().as_nanos() as f64 / records.get() as f64;
        println!("intake: {nanos:.0} ns of CPU a record published, {} records", records.get());
    }
}

/// CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
