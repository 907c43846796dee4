//! A volume in memory: sparse, and as simple as one can be, so that what is seen is the data thread around it.
//!
//! FLUSH goes through the runtime's storage, so that completions of a real device come by too; everything else is
//! answered at once, unless replies are held.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use afterimage::allocation::AllocationRun;
use afterimage::block::{DataPiece, Export, Refusal, Reply, Request, Response, Ticket, Volume};
use afterimage::runtime::{Event, Runtime, Tag};
use afterimage::storage::{Buffer, File, Op};
use afterimage::units::{MonotonicNanos, PAGE_BYTES, SectorRange, to_usize};

type Pages = HashMap<(Export, u64), Box<[u8; PAGE_BYTES]>>;

/// The disks of a group, in memory.
pub struct RamVolume {
    runtime: Rc<Runtime>,
    owner: u32,
    /// What a FLUSH syncs.
    file: File,
    pages: Pages,
    flushes: HashMap<u64, Ticket>,
    next_flush: u64,
    replies: Vec<(Ticket, Reply)>,
    held: Option<VecDeque<(Ticket, Reply)>>,
    keeps: bool,
    sessions_ended: usize,
}

impl RamVolume {
    pub fn new(runtime: Rc<Runtime>, file: File) -> RamVolume {
        let owner = runtime.new_owner();
        RamVolume {
            runtime,
            owner,
            file,
            pages: HashMap::new(),
            flushes: HashMap::new(),
            next_flush: 0,
            replies: Vec::new(),
            held: None,
            keeps: true,
            sessions_ended: 0,
        }
    }

    /// From now on nothing is kept, so that nothing but the socket layer is measured.
    pub fn discard(&mut self) {
        self.keeps = false;
    }

    /// From now on replies wait for [`RamVolume::release`].
    pub fn hold(&mut self) {
        self.held = Some(VecDeque::new());
    }

    pub fn held(&self) -> usize {
        self.held.as_ref().map_or(0, VecDeque::len)
    }

    pub fn release(&mut self) {
        self.replies.extend(self.held.take().unwrap_or_default());
    }

    /// Whether nothing was ever written.
    pub fn is_untouched(&self) -> bool {
        self.pages.is_empty()
    }

    pub fn sessions_ended(&self) -> usize {
        self.sessions_ended
    }

    fn write(&mut self, export: Export, range: SectorRange, mut bytes: &[u8]) {
        let mut at = range.byte_offset();
        if !self.keeps {
            return;
        }
        while !bytes.is_empty() {
            let (page, start) = (at / PAGE_BYTES as u64, to_usize(at % PAGE_BYTES as u64));
            let part = bytes.len().min(PAGE_BYTES - start);
            let page = self.pages.entry((export, page)).or_insert_with(|| Box::new([0; PAGE_BYTES]));
            page[start..start + part].copy_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            at += part as u64;
        }
    }

    fn read(&self, export: Export, range: SectorRange) -> DataPiece {
        if !self.keeps {
            return DataPiece::Zeros(range.bytes());
        }
        let mut buffer = Buffer::zeroed(to_usize(range.bytes()));
        let mut at = range.byte_offset();
        let mut rest = &mut buffer[..];
        while !rest.is_empty() {
            let (page, start) = (at / PAGE_BYTES as u64, to_usize(at % PAGE_BYTES as u64));
            let part = rest.len().min(PAGE_BYTES - start);
            if let Some(page) = self.pages.get(&(export, page)) {
                rest[..part].copy_from_slice(&page[start..start + part]);
            }
            rest = &mut rest[part..];
            at += part as u64;
        }
        DataPiece::Bytes(buffer.freeze())
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        match &mut self.held {
            Some(held) => held.push_back((ticket, reply)),
            None => self.replies.push((ticket, reply)),
        }
    }
}

impl Volume for RamVolume {
    fn submit(&mut self, ticket: Ticket, export: Export, request: Request) {
        let response = match request {
            Request::Read { range } => Response::Data(vec![self.read(export, range)]),
            Request::Write { range, payload, .. } => {
                self.write(export, range, &payload);
                Response::Done
            }
            Request::Zero { range, .. } => {
                self.write(export, range, &vec![0; to_usize(range.bytes())]);
                Response::Done
            }
            Request::Allocation { range, .. } => {
                Response::Allocation(vec![AllocationRun { bytes: range.bytes(), allocated: true }])
            }
            Request::Flush => {
                self.next_flush += 1;
                self.flushes.insert(self.next_flush, ticket);
                let tag = Tag { owner: self.owner, operation: self.next_flush };
                self.runtime.submit(tag, Op::Sync { file: self.file.clone() });
                return;
            }
        };
        self.answer(ticket, Ok(response));
    }

    fn handle(&mut self, event: Event) {
        let ticket = self.flushes.remove(&event.tag.operation).expect("a sync completes once");
        let reply = event.result.map(|_| Response::Done).map_err(|_| Refusal::Io);
        self.answer(ticket, reply);
    }

    fn owns(&self, owner: u32) -> bool {
        owner == self.owner
    }

    fn advance(&mut self) {}

    fn take_replies(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        replies.append(&mut self.replies);
    }

    fn close(&mut self) {
        let flushes = self.flushes.drain().map(|(_, ticket)| ticket);
        let held = self.held.take().unwrap_or_default().into_iter().map(|(ticket, _)| ticket);
        self.replies.extend(flushes.chain(held).map(|ticket| (ticket, Err(Refusal::Shutdown))));
    }

    fn next_deadline(&self) -> Option<MonotonicNanos> {
        None
    }

    fn session_ended(&mut self, _session: u64) {
        self.sessions_ended += 1;
    }
}
