//! Drives a workload over real NBD connections, each with a thread and a pipeline of its own, and logs what was
//! issued and acknowledged.
//!
//! Decides nothing about what is right. A connection that is lost leaves its requests in doubt, and either ends or is
//! made anew, as a guest's would be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::history::{Clock, Effect, Flush, Operation, Stamp};
use super::sector::{Place, fill};
use super::workload::{Step, Workload};
use crate::capture::nbd::client::{Answered, Client, Command, Refused, Wishes};
use crate::capture::nbd::codec::NBD_ESHUTDOWN;
use crate::env::{Environment, OsEnvironment};
use crate::error::{Error, Result};
use crate::listen::ListenAddress;
use crate::random::Random;
use crate::units::{MonotonicNanos, SectorRange, to_usize};

/// A gateway that answers nothing for so long has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A gateway that cannot be reached for so long has failed.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
const CONNECT_RETRY: Duration = Duration::from_millis(5);
/// Marks cookies of flushes, whose other bits are the stamp of issue; those of operations are indices.
const FLUSH_COOKIES: u64 = 1 << 63;

/// A disk to write to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The export's name.
    pub export: String,
    /// Its size.
    pub sectors: u64,
}

/// What a connection does when it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// It ends.
    End,
    /// It is made anew, for as long as half a minute.
    Reconnect,
}

/// A load to start.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the gateway takes block clients.
    pub gateway: ListenAddress,
    /// The history's run.
    pub run: u64,
    /// Decides what is written where.
    pub seed: u64,
    /// The history's disks, in its order.
    pub targets: Vec<Target>,
    /// Connections to each disk.
    pub connections: usize,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// What follows the loss of a connection.
    pub on_loss: OnLoss,
}

/// How much was acknowledged so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations.
    pub operations: u64,
    /// Bytes of their ranges.
    pub bytes: u64,
}

/// A load at work. Dropping it stops it, without waiting.
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Outcome>>,
}

/// What connections logged.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was issued.
    pub operations: Vec<Operation>,
    /// Flushes that were acknowledged.
    pub flushes: Vec<Flush>,
    /// What was refused, but for a gateway that was stopping.
    pub refused: Vec<Refused>,
    /// Why connections were lost.
    pub lost: Vec<Error>,
    /// From the loss of a connection to the first acknowledgement on the next one.
    pub outages: Vec<Duration>,
    /// From issue to acknowledgement, of each operation, in microseconds.
    pub latencies_us: Vec<u32>,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    operations: AtomicU64,
    bytes: AtomicU64,
    flushes: AtomicU64,
    lock: Mutex<()>,
    stopped: Condvar,
    flushed: Condvar,
}

impl Shared {
    fn stop(&self) {
        let _locked = self.lock.lock();
        self.stopping.store(true, Ordering::Relaxed);
        self.stopped.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Waits before something is tried again, unless there is no need any more.
    fn pause(&self, duration: Duration) {
        let mut locked = self.lock.lock();
        if !self.is_stopping() {
            self.stopped.wait_for(&mut locked, duration);
        }
    }
}

impl Load {
    /// Starts all connections.
    pub fn start(&self, clock: &Arc<Clock>) -> Running {
        let shared = Arc::new(Shared::default());
        let mut random = Random::new(self.seed);
        let mut threads = Vec::new();
        for (disk, target) in self.targets.iter().enumerate() {
            for _ in 0..self.connections {
                let connection = Connection {
                    load: self.clone(),
                    disk,
                    workload: Workload::new(random.split(), target.sectors),
                    clock: Arc::clone(clock),
                    shared: Arc::clone(&shared),
                    environment: OsEnvironment::new(),
                    outcome: Outcome::default(),
                    issued: Vec::new(),
                    lost_at: None,
                    payload: Vec::new(),
                };
                threads.push(std::thread::spawn(move || connection.run()));
            }
        }
        Running { shared, threads }
    }
}

impl Running {
    /// What was acknowledged so far.
    pub fn counters(&self) -> Counters {
        Counters {
            operations: self.shared.operations.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }

    /// Waits until more than `flushes` were acknowledged, and says how many; `None` if that takes too long.
    pub fn wait_for_flush(&self, flushes: u64, patience: Duration) -> Option<u64> {
        let mut locked = self.shared.lock.lock();
        let is_due = || self.shared.flushes.load(Ordering::Relaxed) > flushes;
        let waited = self.shared.flushed.wait_while_for(&mut locked, |()| !is_due(), patience);
        (!waited.timed_out()).then(|| self.shared.flushes.load(Ordering::Relaxed))
    }

    /// Lets what is in flight be answered, ends the connections, and gives what they logged.
    pub fn finish(mut self) -> Outcome {
        self.shared.stop();
        self.join()
    }

    /// Waits until all connections have ended because they were lost.
    pub fn join(&mut self) -> Outcome {
        let mut all = Outcome::default();
        for thread in self.threads.drain(..) {
            let mut one = thread.join().expect("a connection's thread does not panic");
            all.operations.append(&mut one.operations);
            all.flushes.append(&mut one.flushes);
            all.refused.append(&mut one.refused);
            all.lost.append(&mut one.lost);
            all.outages.append(&mut one.outages);
            all.latencies_us.append(&mut one.latencies_us);
        }
        all
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// What a client speaks NBD over.
trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A stream to the gateway that gives up on one that has failed.
fn reach(gateway: &ListenAddress) -> std::io::Result<Box<dyn Stream>> {
    match gateway {
        ListenAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            Ok(Box::new(stream))
        }
        ListenAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, ANSWER_WITHIN)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            Ok(Box::new(stream))
        }
    }
}

struct Connection {
    load: Load,
    disk: usize,
    workload: Workload,
    clock: Arc<Clock>,
    shared: Arc<Shared>,
    environment: OsEnvironment,
    outcome: Outcome,
    /// When each of the outcome's operations was issued.
    issued: Vec<MonotonicNanos>,
    /// When the last connection was lost, until the next one has an answer.
    lost_at: Option<MonotonicNanos>,
    payload: Vec<u8>,
}

impl Connection {
    fn run(mut self) -> Outcome {
        while !self.shared.is_stopping() {
            let driven = self.connect().and_then(|client| client.map_or(Ok(()), |client| self.drive(client)));
            let Err(error) = driven else { break };
            self.outcome.lost.push(error);
            self.lost_at = Some(self.environment.monotonic());
            if self.load.on_loss == OnLoss::End {
                break;
            }
        }
        self.outcome
    }

    /// A connection, as soon as there is one; `None` if it is not wanted any more.
    fn connect(&mut self) -> Result<Option<Client<Box<dyn Stream>>>> {
        let start = self.environment.monotonic();
        loop {
            match self.try_connect() {
                Ok(client) => return Ok(Some(client)),
                Err(_) if self.shared.is_stopping() => return Ok(None),
                Err(error) if self.since(start) > CONNECT_WITHIN => {
                    self.load.on_loss = OnLoss::End;
                    return Err(error);
                }
                Err(_) => self.shared.pause(CONNECT_RETRY),
            }
        }
    }

    fn try_connect(&self) -> Result<Client<Box<dyn Stream>>> {
        let stream = reach(&self.load.gateway)
            .map_err(|error| Error::io(format!("connecting to {}", self.load.gateway), error))?;
        Client::connect(stream, Wishes::all(&self.load.targets[self.disk].export))
    }

    /// Keeps the pipeline between half full and full, until it is told to stop; then lets it run empty.
    fn drive(&mut self, mut client: Client<Box<dyn Stream>>) -> Result<()> {
        loop {
            if client.in_flight() <= self.load.depth / 2 && !self.shared.is_stopping() {
                while client.in_flight() < self.load.depth {
                    self.issue(&mut client)?;
                }
            }
            if client.in_flight() == 0 {
                return client.disconnect();
            }
            let answered = client.receive()?;
            self.note(answered)?;
        }
    }

    fn issue(&mut self, client: &mut Client<Box<dyn Stream>>) -> Result<()> {
        match self.workload.next() {
            Step::Write { range, durable } => {
                let cookie = self.log(range, Effect::Write, durable);
                let sequence = self.outcome.operations[to_usize(cookie)].issued;
                self.payload.resize(to_usize(range.bytes()), 0);
                let place = Place { run: self.load.run, disk: self.disk, sector: range.start };
                fill(place, sequence, &mut self.payload);
                let command = Command::Write { offset: range.byte_offset(), data: &self.payload, durable };
                client.queue(cookie, &command)
            }
            Step::Zero { range, durable, trim, keep_allocated } => {
                let cookie = self.log(range, Effect::Zero, durable);
                let offset = range.byte_offset();
                let length = u32::try_from(range.bytes()).expect("a request is at most 32 MiB");
                let command = if trim {
                    Command::Trim { offset, length, durable }
                } else {
                    Command::WriteZeroes { offset, length, durable, keep_allocated, fast_only: false }
                };
                client.queue(cookie, &command)
            }
            Step::Flush => client.queue(FLUSH_COOKIES | self.clock.stamp().0, &Command::Flush),
        }
    }

    /// Notes an operation, before anything of it is sent; gives its cookie.
    fn log(&mut self, range: SectorRange, effect: Effect, durable: bool) -> u64 {
        let issued = self.clock.stamp();
        self.issued.push(self.environment.monotonic());
        self.outcome.operations.push(Operation {
            issued,
            acknowledged: None,
            disk: self.disk,
            range,
            effect,
            durable,
        });
        self.issued.len() as u64 - 1
    }

    fn note(&mut self, answered: Answered) -> Result<()> {
        match answered.result {
            Err(refused) if refused.code == NBD_ESHUTDOWN => {
                return Err(Error::new(crate::error::ErrorKind::Shutdown, "the gateway is stopping"));
            }
            Err(refused) => self.outcome.refused.push(refused),
            Ok(_) if answered.cookie >= FLUSH_COOKIES => self.flushed(Stamp(answered.cookie ^ FLUSH_COOKIES)),
            Ok(_) => self.acknowledge(to_usize(answered.cookie)),
        }
        if let Some(lost) = self.lost_at.take() {
            self.outcome.outages.push(self.since(lost));
        }
        Ok(())
    }

    fn flushed(&mut self, issued: Stamp) {
        self.outcome.flushes.push(Flush { issued, acknowledged: self.clock.stamp() });
        let _locked = self.shared.lock.lock();
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        self.shared.flushed.notify_all();
    }

    fn acknowledge(&mut self, index: usize) {
        let operation = &mut self.outcome.operations[index];
        operation.acknowledged = Some(self.clock.stamp());
        self.shared.operations.fetch_add(1, Ordering::Relaxed);
        self.shared.bytes.fetch_add(operation.range.bytes(), Ordering::Relaxed);
        let micros = self.since(self.issued[index]).as_micros();
        self.outcome.latencies_us.push(u32::try_from(micros).unwrap_or(u32::MAX));
    }

    fn since(&self, start: MonotonicNanos) -> Duration {
        Duration::from_nanos(self.environment.monotonic().0.saturating_sub(start.0))
    }
}
