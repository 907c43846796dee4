//! The intake: records a second from four producers to one owner that does nothing with them, which is the ceiling
//! of every hand-over between sessions and a group on another thread. The owner sleeps as the data thread does, on
//! something that a producer has to ring.

use std::thread;

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
    group.bench_function("4 producers, null owner", |bencher| bencher.iter(hand_over));
    group.finish();
}

criterion_group!(benches, benchmark);
criterion_main!(benches);
