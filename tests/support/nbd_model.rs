//! A little disk in memory that answers a [`Connection`]'s requests, and the wire between it and a client.
//!
//! Shared by the protocol's tests and the fuzz targets, which include this file by path.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};

use afterimage::allocation::AllocationRuns;
use afterimage::block::{DataPiece, Export, Refusal, Reply, Request, Response, Ticket};
use afterimage::capture::nbd::{Budget, Connection, ExportInfo, Exports, Limits};
use afterimage::storage::Buffer;
use afterimage::units::{DiskId, GroupId, SectorRange, to_usize};

/// Name of the one export.
pub const EXPORT: &str = "shop/db";
const SECTOR: usize = 512;

/// One export of a given size.
pub struct OneExport {
    pub size: u64,
    pub read_only: bool,
}

impl Exports for OneExport {
    fn names(&self) -> Vec<String> {
        vec![EXPORT.to_owned()]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let export = Export::Disk(GroupId(1), DiskId(1));
        let (size, read_only) = (self.size, self.read_only);
        (name == EXPORT).then(|| ExportInfo { export, size, read_only, description: "a model".to_owned() })
    }
}

/// A sparse disk: sectors that were never written, or zeroed, are holes.
pub struct ModelDisk {
    sectors: Vec<Option<[u8; SECTOR]>>,
}

impl ModelDisk {
    pub fn new(bytes: u64) -> ModelDisk {
        ModelDisk { sectors: vec![None; to_usize(bytes) / SECTOR] }
    }

    /// Does what is asked, at once.
    pub fn answer(&mut self, request: &Request) -> Reply {
        match request {
            Request::Read { range } => Ok(Response::Data(self.part(*range)?.iter().map(piece).collect())),
            Request::Write { range, payload, .. } => {
                assert_eq!(payload.len() as u64, range.bytes(), "a payload is as long as its range");
                let sectors = self.part_mut(*range)?;
                for (sector, bytes) in sectors.iter_mut().zip(payload.chunks_exact(SECTOR)) {
                    *sector = Some(bytes.try_into().expect("chunks of a sector"));
                }
                Ok(Response::Done)
            }
            Request::Zero { range, keep_allocated, .. } => {
                self.part_mut(*range)?.fill(keep_allocated.then_some([0; SECTOR]));
                Ok(Response::Done)
            }
            Request::Flush => Ok(Response::Done),
            Request::Allocation { range, runs_max } => {
                let mut runs = AllocationRuns::at_most(*runs_max);
                self.part(*range)?.iter().for_each(|sector| runs.push(512, sector.is_some()));
                Ok(Response::Allocation(runs.into_runs()))
            }
        }
    }

    fn part(&self, range: SectorRange) -> Result<&[Option<[u8; SECTOR]>], Refusal> {
        self.sectors.get(to_usize(range.start)..to_usize(range.end)).ok_or(Refusal::Invalid)
    }

    fn part_mut(&mut self, range: SectorRange) -> Result<&mut [Option<[u8; SECTOR]>], Refusal> {
        self.sectors.get_mut(to_usize(range.start)..to_usize(range.end)).ok_or(Refusal::Invalid)
    }
}

fn piece(sector: &Option<[u8; SECTOR]>) -> DataPiece {
    match sector {
        Some(bytes) => DataPiece::Bytes(Buffer::copy_of(bytes).freeze()),
        None => DataPiece::Zeros(SECTOR as u64),
    }
}

/// A connection, its disk, and the requests between them.
pub struct Server {
    pub connection: Connection,
    pub exports: OneExport,
    pub disk: ModelDisk,
    pub requests: VecDeque<(Ticket, Request)>,
    arrived: Vec<(Ticket, Export, Request)>,
}

impl Server {
    pub fn new(size: u64, read_only: bool, limits: Limits) -> Server {
        Server {
            connection: Connection::new(1, limits, Budget::unlimited()),
            exports: OneExport { size, read_only },
            disk: ModelDisk::new(size),
            requests: VecDeque::new(),
            arrived: Vec::new(),
        }
    }

    /// Receives all of `bytes`, whatever the connection wants.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.connection.input().extend_from_slice(bytes);
        self.advance();
    }

    /// Lets the connection parse what it holds.
    pub fn advance(&mut self) {
        self.connection.advance(&self.exports, &mut self.arrived);
        self.requests.extend(self.arrived.drain(..).map(|(ticket, _, request)| (ticket, request)));
    }

    /// Answers one request that waits: the `choice`-th of them, round and round. Whether there was one.
    pub fn answer(&mut self, choice: usize) -> bool {
        let Some(index) = choice.checked_rem(self.requests.len()) else { return false };
        let (ticket, request) = self.requests.swap_remove_back(index).expect("an index within");
        self.connection.complete(ticket, self.disk.answer(&request));
        true
    }

    /// Answers everything, in the order of arrival, until nothing more comes of it.
    pub fn answer_all(&mut self) {
        while self.answer(0) {
            self.advance();
        }
    }

    /// Takes at most `count` bytes of the output.
    pub fn send(&mut self, count: usize) -> Vec<u8> {
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        self.connection.output(&mut slices);
        let sent: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(count).collect();
        self.connection.advance_output(sent.len());
        sent
    }

    /// Takes the whole output.
    pub fn send_all(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.connection.wants_output() {
            sent.extend(self.send(usize::MAX));
        }
        sent
    }
}

/// The server as a client's stream. Requests are answered when the client waits, the newest first.
impl Read for Server {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.connection.wants_output() {
            self.advance();
            let newest = self.requests.len().saturating_sub(1);
            self.answer(newest);
        }
        let sent = self.send(buffer.len());
        buffer[..sent.len()].copy_from_slice(&sent);
        Ok(sent.len())
    }
}

impl Write for Server {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.receive(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
