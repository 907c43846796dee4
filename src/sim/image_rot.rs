//! Bits that flip in images and in the sums of these, under a process that runs. What is read is right or refused, and whoever is
//! refused is told of the image; what is written anew is served again, whatever had rotted there. And at rest each sector has its sum.

use std::path::{Path, PathBuf};

use super::answers::joined;
use super::clients::Member;
use super::process::GROUP;
use super::recovery::SESSION;
use super::sector::stamps;
use super::site::{Outcome, Site};
use crate::block::{Export, Request, Response, Ticket};
use crate::extent::Ranges;
use crate::format::sums::{BLOCK_BYTES, Block, Copy, Holes, Of, by_block, check_image_header, within};
use crate::image::image_path;
use crate::image::sums::sums_path;
use crate::protect::group::Group;
use crate::units::{DiskId, SECTOR_BYTES, SectorRange, to_usize};

/// Bits flipped, at most.
const ROTS_MAX: u64 = 4;

impl Site {
    /// Flips bits in images and their sums. Afterwards everything is as it was.
    pub(super) fn damage_images(&mut self) -> Outcome {
        self.rest()?;
        self.write_somewhere()?;
        let (sound, history) = (self.disk.image(), self.history.clone());
        // What is refused is no failure; and no point is taken up that will not have been.
        (self.is_faulted, self.is_verified) = (true, false);
        if self.random.chance(1, 2) {
            // One that has nothing of the sums in memory.
            self.disk.kill_process(self.process.id());
            self.disk.run();
            self.start_process();
            self.drive("opening", |site| site.process.is_serving())?;
        }
        let mut rotten = Vec::new();
        for _ in 0..1 + self.random.below(ROTS_MAX) {
            let seed = self.random.next();
            let Some(rot) = self.disk.rot_somewhere(seed, is_of_an_image) else { break };
            self.tracer.note(|| format!("under way: {rot:?}"));
            self.report.image_rots += 1;
            rotten.push(rot.path);
        }
        self.judge_images(&rotten)
            .map_err(|text| format!("{} flipped bits in images: {text}", rotten.len()))?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&sound);
        self.history = history;
        self.start_process();
        Ok(())
    }

    /// A guest's read is under way while what it asks for is written over and destaged: it gets the one or the other.
    pub(super) fn read_beside_destage(&mut self) -> Outcome {
        self.rest()?;
        let staying = self.clients.members.iter().filter(|member| !member.leaving);
        let staying: Vec<Member> = staying.cloned().collect();
        let member = self.random.choose(&staying).clone();
        let range = self.draw_range(self.history.sectors(member.number));
        let path = image_path(&self.group_plan().images(), member.id);
        self.disk.hold_reads(Some(&path));
        let ticket = Ticket { session: SESSION, request: 0 };
        self.process.submit(ticket, Export::Disk(GROUP, member.id), Request::Read { range });
        let stamp = self.clients.next_stamp();
        self.change(&member, range, Some(stamp))?;
        self.drive("a write beside a read", |site| site.clients.pending.is_empty())?;
        let current = self.history.current(member.number, range).to_vec();
        let is_destaged = |site: &mut Site| {
            let image = site.disk.read_file(&path).unwrap_or_default();
            let bytes = range.byte_range();
            let bytes = image.get(to_usize(bytes.start)..to_usize(bytes.end)).unwrap_or_default();
            stamps(member.number, range.start, bytes).as_ref() == Ok(&current)
        };
        self.drive("destaging beside a read", is_destaged)?;
        self.disk.hold_reads(None);
        match self.answer_to(ticket)? {
            Ok(Response::Data(pieces)) => {
                let found = stamps(member.number, range.start, &joined(&pieces, range)?)?;
                self.report.reads_beside_destage += 1;
                // The read was issued before, and its bytes came after all of it was in the image.
                match found == current {
                    true => Ok(()),
                    false => Err(format!("a read beside destage gives {found:?}, not {current:?}")),
                }
            }
            other => Err(format!("a read beside destage: {other:?}")),
        }
    }

    fn judge_images(&mut self, rotten: &[PathBuf]) -> Outcome {
        let before = self.report.rots_met;
        self.compare_disks()?;
        if self.report.rots_met > before {
            self.report.image_rots_refused += 1;
            self.is_told(rotten)?;
        }
        self.overwrite_all()?;
        self.rest()?;
        let before = self.report.rots_met;
        self.compare_disks()?;
        if self.report.rots_met > before {
            return Err("what was written anew is refused".to_owned());
        }
        self.check_sums()
    }

    /// What people are told of failing disks.
    pub(super) fn told(&mut self) -> Vec<String> {
        let told =
            |group: &mut Group| group.failing_disks().into_iter().map(|failing| failing.error).collect();
        self.process.group().map(told).unwrap_or_default()
    }

    /// Whether what people are told names a file that rotted.
    fn is_told(&mut self, rotten: &[PathBuf]) -> Outcome {
        let told = self.told();
        // Sums that rotted are told of with the image that nobody can tell anything of.
        let images = rotten.iter().map(|path| path.with_extension("raw"));
        let named: Vec<String> = images.map(|path| path.display().to_string()).collect();
        match told.iter().all(|error| named.iter().any(|path| error.contains(path))) && !told.is_empty() {
            true => Ok(()),
            false => Err(format!("refused, and told: {told:?}")),
        }
    }

    fn overwrite_all(&mut self) -> Outcome {
        let staying = self.clients.members.iter().filter(|member| !member.leaving);
        let staying: Vec<Member> = staying.cloned().collect();
        for member in staying {
            let whole = Ranges::of([SectorRange::new(0, self.history.sectors(member.number))]);
            for piece in whole.pieces(self.plan.write_sectors_max) {
                let stamp = self.clients.next_stamp();
                self.change(&member, piece, Some(stamp))?;
                self.drive("a write", |site| site.clients.pending.is_empty())?;
            }
        }
        Ok(())
    }

    /// At rest, every sector of every image has its sum.
    pub(super) fn check_sums(&self) -> Outcome {
        let directory = self.group_plan().images();
        for member in self.clients.members.iter().filter(|member| !member.leaving) {
            let sectors = self.history.sectors(member.number);
            let image = self.disk.read_file(&image_path(&directory, member.id)).ok_or("an image is gone")?;
            let sums = self.disk.read_file(&sums_path(&directory, member.id)).ok_or("sums are gone")?;
            check_disk(member.id, SectorRange::new(0, sectors), &image, &sums)
                .map_err(|text| format!("disk {}: {text}", member.number))?;
        }
        Ok(())
    }
}

fn check_disk(disk: DiskId, all: SectorRange, image: &[u8], sums: &[u8]) -> Outcome {
    let at = |offset: u64| &sums[to_usize(offset)..][..BLOCK_BYTES];
    let headers = Copy::BOTH.map(|copy| check_image_header(at(copy as u64 * BLOCK_BYTES as u64), disk));
    // Of both a bit may have flipped: the next opening would say so, and here is none.
    let of = headers.into_iter().find_map(Result::ok).unwrap_or(Of::Image(Holes::Zeros));
    for (block, sectors) in by_block(all) {
        let newest = newest(of, disk, block, Copy::BOTH.map(|copy| at(of.block_offset(block, copy))));
        let content = &image[to_usize(sectors.start * SECTOR_BYTES)..to_usize(sectors.end * SECTOR_BYTES)];
        let wrong = of.mismatches(sectors.start, content, &newest.sums()[within(block, sectors)]);
        if let Some(wrong) = wrong.first() {
            return Err(format!("sectors {wrong} of its image do not have their sums"));
        }
    }
    Ok(())
}

fn newest(of: Of, disk: DiskId, block: u64, places: [&[u8]; 2]) -> Block {
    let decoded = places.into_iter().filter_map(|place| Block::decode(place, of, disk, block));
    decoded.max_by_key(Block::sequence).unwrap_or_else(|| of.empty())
}

/// An image, or the sums of one.
fn is_of_an_image(path: &Path) -> bool {
    let is_there = path.parent().is_some_and(|directory| directory.ends_with("images"));
    is_there && path.extension().is_some_and(|extension| extension == "raw" || extension == "sums")
}
