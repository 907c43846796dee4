//! What deaths do: of a process, and of the machine.

use super::file::{Change, Severity};
use super::names::FileId;
use super::process::ProcessId;
use super::world::{Flight, World, description_id};
use crate::storage::Op;

/// What becomes of a killed process's write in flight.
#[derive(Clone, Copy, Debug)]
enum WriteFate {
    Dropped,
    LandsNow,
    LandsInPart,
    /// It is still on its way when the next process starts, and holds the lock of its file until it has landed.
    LandsLate,
}

const WRITE_FATES: [WriteFate; 4] =
    [WriteFate::Dropped, WriteFate::LandsNow, WriteFate::LandsInPart, WriteFate::LandsLate];

impl World {
    /// A process dies at once (kill -9). What completed stays; what was in flight lands wholly, partly, late or not.
    /// Names have settled by the time that a death can be noticed, since a system call in progress delays it.
    pub(super) fn kill(&mut self, process: ProcessId) {
        if self.processes.remove(&process).is_none() {
            return;
        }
        self.record(|| format!("{process} is killed"));
        let of_process = |flight: &mut Flight| flight.process == process;
        let mut dying: Vec<Flight> = self.flights.extract_if(.., of_process).collect();
        let mut random = self.random.split();
        random.shuffle(&mut dying);
        for mut flight in dying.into_iter().filter(|flight| flight.started) {
            match &flight.op {
                Op::Write { file, offset, data } => match *random.choose(&WRITE_FATES) {
                    WriteFate::Dropped => {}
                    WriteFate::LandsNow => drop(self.execute(process, flight.submitted, flight.op)),
                    WriteFate::LandsInPart => self.land_part_of(file, *offset, data),
                    WriteFate::LandsLate => {
                        flight.late = true;
                        self.flights.push(flight);
                    }
                },
                Op::Read { .. }
                | Op::Length { .. }
                | Op::DataRanges { .. }
                | Op::List { .. }
                | Op::Space { .. } => {}
                _ if random.chance(1, 2) => drop(self.execute(process, flight.submitted, flight.op)),
                _ => {}
            }
        }
        self.forget_closed();
    }

    /// The machine loses power: every process dies, and of all that no sync covers any subset survives; a small or a large
    /// one as `severity` says, or as chance has it.
    pub(super) fn power_cut(&mut self, severity: Option<Severity>) {
        self.record(|| "the power is cut".to_owned());
        let mut random = self.random.split();
        let severity = severity.unwrap_or_else(|| Severity::draw(&mut random));
        let mut in_flight = std::mem::take(&mut self.flights);
        in_flight.retain(|flight| flight.started);
        random.shuffle(&mut in_flight);
        let mut changes: Vec<(FileId, Change)> = Vec::new();
        for flight in in_flight {
            match flight.op {
                Op::Write { file, offset, data } => {
                    changes.push((self.file_id(description_id(&file)), Change::Write { offset, data }));
                }
                Op::Zero { file, range, keep_allocated } => {
                    let change = Change::Zero { range, keep_allocated };
                    changes.push((self.file_id(description_id(&file)), change));
                }
                Op::SetLength { file, length } => {
                    changes.push((self.file_id(description_id(&file)), Change::Length(length)));
                }
                // Done or not, and if done then not synced.
                Op::Open { .. }
                | Op::Publish { .. }
                | Op::Remove { .. }
                | Op::RemoveDirectory { .. }
                | Op::CreateDirectory { .. } => {
                    drop(self.execute(flight.process, flight.submitted, flight.op));
                }
                _ => {}
            }
        }
        self.processes.clear();
        self.descriptions.clear();
        self.names.power_cut(severity, &mut random);
        for (&id, file) in &mut self.files {
            let of_file = changes.iter().filter(|(changed, _)| *changed == id);
            let in_flight: Vec<Change> = of_file.map(|(_, change)| change.clone()).collect();
            file.power_cut(&in_flight, severity, &mut random);
        }
        self.forget_unreachable();
    }

    fn file_id(&self, description: u64) -> FileId {
        self.descriptions[&description].file
    }
}
