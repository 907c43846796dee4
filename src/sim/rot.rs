//! Bit rot: a bit of what is stored flips while nobody looks. It is refused, or harmless; never served.

use std::path::Path;

use super::site::{Outcome, Site};
use crate::error::{Error, ErrorKind};

/// Bits flipped in one run, each on a copy of its own.
const ROTS: u64 = 2;

impl Site {
    /// Flips bits and opens the group each time; afterwards everything is as it was.
    pub(super) fn damage(&mut self) -> Outcome {
        self.rest()?;
        // At rest, everything is durable, and stated to be.
        let issued = self.history.issued();
        self.history.make_durable(issued);
        self.disk.kill_process(self.process.id());
        self.disk.run();
        let sound = self.disk.image();
        for _ in 0..ROTS {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, has_checksums) else { break };
            self.report.rots += 1;
            self.tracer.note(|| format!("{rot:?}"));
            self.start_process();
            let judged = self.judge_damage();
            judged.map_err(|text| format!("after {rot:?}: {text}"))?;
            self.disk.kill_process(self.process.id());
            self.disk.run();
            self.disk.restore(&sound);
        }
        self.start_process();
        Ok(())
    }

    /// The group refuses to open, or a point refuses to be read, or everything is right.
    fn judge_damage(&mut self) -> Outcome {
        loop {
            match self.process.step() {
                Err(error) if is_refusal(&error) => {
                    self.tracer.note(|| format!("refused: {error}"));
                    self.report.rots_refused += 1;
                    return Ok(());
                }
                Err(error) => return Err(format!("refused as something else: {error}")),
                Ok(()) if self.process.is_serving() => break,
                Ok(()) => {}
            }
            self.step_disk();
        }
        let found = self.read_disks()?;
        let issued = self.history.issued();
        if self.history.find(issued, issued, &found).is_none() {
            return Err(format!("served: {}", self.history.explain(issued, issued, &found)));
        }
        let mut refused = false;
        for index in 0..self.points.len() {
            let point = self.points.id(index);
            match self.try_view(point)? {
                Ok(contents) => self.check_point(point, &contents)?,
                Err(error) if is_refusal(&error) => refused = true,
                Err(error) => return Err(format!("point {point} refused as something else: {error}")),
            }
        }
        self.report.rots_refused += u64::from(refused);
        Ok(())
    }
}

/// Images and bases are raw, and what nobody sums nobody can tell.
fn has_checksums(path: &Path) -> bool {
    let is_raw = path.extension().is_some_and(|extension| extension == "raw" || extension == "overlay");
    !is_raw
}

/// A flipped bit of a version number reads as a version that is yet to come.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported)
}
