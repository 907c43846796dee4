//! Instructions that a write of 4 KiB costs on the way that is ours, from the bytes that a socket gave to those that it takes: parsed, handed over
//! by the intake, put into a frame, summed, sealed, entered into the open map, answered.
//!
//! `tests/run instructions` counts them with callgrind and compares them with `benches/instructions.toml`; run by itself, this says nothing.
//!
//! A group at depth 32 on one connection, steadily written to, sealed. The journal's writes are done at once and go nowhere; everything
//! else is on the simulated disk, and happens before what is counted. One thread, and no clock but the simulated one: two runs differ by a few
//! hash seeds. System calls, the kernel's copies and io_uring's rings are not in it.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use afterimage::block::{Export, Reply, Request, Ticket};
use afterimage::capture::nbd::Limits;
use afterimage::capture::nbd::client::{Client, Command, Wishes, encode_request};
use afterimage::journal::intake::{Intake, Publisher, Wake, intake};
use afterimage::protect::open::{self, GroupPlan};
use afterimage::random::Random;
use afterimage::runtime::Runtime;
use afterimage::storage::sim::{SimDisk, SimEnvironment, SimStorage};
use afterimage::storage::{Backend, Completion, Op, Outcome, Storage, Token};
use nbd_model::{EXPORT, Server};
use stepped::{GROUP, Stepped, Steps};

#[allow(dead_code)]
#[path = "../tests/support/nbd_model.rs"]
mod nbd_model;
#[allow(dead_code)]
#[path = "../tests/support/stepped.rs"]
mod stepped;

const BLOCK_BYTES: usize = 4096;
const DISK_BYTES: u64 = 1 << 30;
const DEPTH: usize = 32;
/// What comes at a time, so often, before anything is counted: maps, caches and pools have what they want then.
const WARM_UP: usize = 64;
/// And so often afterwards.
const COUNTED: usize = 128;

/// A disk of which the journal's writes are done at once, and go nowhere, once that is wanted.
struct NullWrites {
    disk: SimStorage,
    is_null: Rc<Cell<bool>>,
    done: RefCell<Vec<Token>>,
}

impl Storage for NullWrites {
    fn backend(&self) -> Backend {
        self.disk.backend()
    }

    fn submit(&self, token: Token, op: Op) {
        match op {
            Op::Write { .. } if self.is_null.get() => self.done.borrow_mut().push(token),
            op => self.disk.submit(token, op),
        }
    }

    fn start(&self) {
        self.disk.start();
    }

    fn reap(&self, completions: &mut Vec<Completion>) {
        let done = self
            .done
            .borrow_mut()
            .drain(..)
            .map(|token| Completion { token, result: Ok(Outcome::Done) })
            .collect::<Vec<_>>();
        completions.extend(done);
        self.disk.reap(completions);
    }

    fn wait(&self) {
        self.disk.wait();
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A group on the simulated disk.
struct Machine {
    disk: SimDisk,
    environment: Rc<SimEnvironment>,
    stepped: Stepped,
}

impl Steps for Machine {
    const ROUNDS_MAX: u64 = 1_000_000;

    fn stepped(&mut self) -> &mut Stepped {
        &mut self.stepped
    }

    fn step(&mut self) {
        self.stepped.round();
        if !self.disk.step() {
            self.environment.advance(Duration::from_millis(20));
        }
    }
}

impl Machine {
    fn new(is_null: Rc<Cell<bool>>) -> Machine {
        let (disk, environment) = (SimDisk::new(1), SimEnvironment::new(1));
        let storage = NullWrites { disk: SimStorage::new(&disk), is_null, done: RefCell::default() };
        let runtime = Runtime::new(Box::new(storage), Rc::clone(&environment) as _);
        let plan = GroupPlan {
            segment_bytes: 64 << 20,
            journal_bytes: 256 << 20,
            map_bytes_max: 256 << 20,
            ..stepped::plan(PathBuf::from("/group"), PathBuf::from("/vault"))
        };
        let opened = Rc::new(RefCell::new(None));
        let (filled, opening) =
            (Rc::clone(&opened), open::create(Rc::clone(&runtime), plan, GROUP, stepped::record(3_600_000)));
        runtime.spawn(async move { drop(filled.replace(Some(opening.await))) });
        while opened.borrow().is_none() {
            runtime.step(&mut Vec::new());
            runtime.storage().start();
            if !disk.step() {
                environment.advance(Duration::from_millis(20));
            }
        }
        let group = opened.take().expect("filled").expect("creates");
        Machine { disk, environment, stepped: Stepped::new(runtime, group) }
    }
}

struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

type Requests = Vec<(Ticket, Export, Request)>;

/// The way of a write.
struct Path {
    machine: Machine,
    export: Export,
    server: Server,
    publisher: Publisher<Requests>,
    intake: Intake<Requests>,
    replies: Vec<(Ticket, Reply)>,
}

/// What is counted: the name is what callgrind is given.
#[inline(never)]
fn counted_writes(path: &mut Path, received: &[Vec<u8>]) {
    for bytes in received {
        bring(path, bytes);
    }
}

/// Brings what a socket gave on its way, until everything of it is answered.
fn bring(path: &mut Path, mut received: &[u8]) {
    let Path { machine, export, server, publisher, intake, replies } = path;
    let mut requests = Vec::new();
    while !received.is_empty() {
        let bytes_max = server.connection.receive_bytes_max();
        let input = server.connection.input();
        let (now, later) =
            received.split_at(received.len().min(input.capacity() - input.len()).min(bytes_max));
        input.extend_from_slice(now);
        received = later;
        server.connection.advance(&server.exports, &mut requests);
    }
    assert_eq!(requests.len(), DEPTH);
    publisher.publish(requests).expect("the owner is there");
    let mut arrived = Vec::new();
    intake.drain(usize::MAX, &mut arrived);
    for (ticket, _, request) in arrived.into_iter().flatten() {
        machine.stepped.group.submit(ticket, *export, request);
    }
    while replies.len() < DEPTH {
        machine.stepped.round();
        machine.disk.run();
        replies.append(&mut machine.stepped.replies);
    }
    for (ticket, reply) in replies.drain(..) {
        assert!(reply.is_ok());
        server.connection.complete(ticket, reply);
    }
    let mut slices: Vec<IoSlice<'_>> = Vec::new();
    server.connection.output(&mut slices);
    let sent = slices.iter().map(|slice| slice.len()).sum();
    server.connection.advance_output(sent);
}

/// What a socket gives at a time: writes all over the disk, of bytes that no two share.
fn received(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..DEPTH as u64 {
        let offset = random.below(DISK_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
        let data = random.garbage(BLOCK_BYTES);
        encode_request(cookie, &Command::Write { offset, data: &data, durable: false }, &mut bytes);
    }
    bytes
}

fn main() {
    let is_null = Rc::new(Cell::new(false));
    let mut machine = Machine::new(Rc::clone(&is_null));
    machine.until("serving", |machine| machine.stepped.group.is_serving());
    let export = Export::Disk(GROUP, machine.join("disk", DISK_BYTES / 512).id);
    let mut server = Server::new(0, false, Limits::default());
    server.exports.size = DISK_BYTES;
    Client::connect(&mut server, Wishes::all(EXPORT)).expect("shakes hands");
    let (publisher, intake) = intake(Nobody);
    let mut path = Path { machine, export, server, publisher, intake, replies: Vec::new() };
    is_null.set(true);
    let mut random = Random::new(1);
    for _ in 0..WARM_UP {
        bring(&mut path, &received(&mut random));
    }
    let counted: Vec<_> = (0..COUNTED).map(|_| received(&mut random)).collect();
    counted_writes(&mut path, &counted);
    println!("writes {}", COUNTED * DEPTH);
    // Nothing of the group is to be brought to an end: its journal was never written.
    path.machine.stepped.runtime.abandon_tasks();
}
