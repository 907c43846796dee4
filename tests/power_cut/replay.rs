//! What a power cut leaves of the volume, made from the log of its writes.
//!
//! Everything up to the last flush before the cut is there. Of what follows it, either all that the log has up to the
//! cut, which is the order of completion, or any part of it: a drive's cache writes back what it likes, sector by
//! sector, unless it was asked for by a flush or by FUA.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use afterimage::random::Random;

use crate::write_log::{Entry, Kind, WriteLog};

/// What survives a power cut in any case; a drive's cache may lose the others.
const SECTOR_BYTES: usize = 512;
/// Holes of the volume are looked for in steps of this.
const CHUNK_BYTES: usize = 64 << 10;

/// A power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// So many entries of the log had been written.
    pub entries: usize,
    /// Decides what became of those that no flush followed; all of them are there if nothing does.
    pub loses: Option<u64>,
}

/// A volume on its way through the log, at its last flush.
pub struct Replayer<'a> {
    log: &'a WriteLog,
    flushed: Vec<u8>,
    applied: usize,
}

impl<'a> Replayer<'a> {
    /// Begins with the volume as it was before the log.
    pub fn new(log: &'a WriteLog, initial: &Path) -> io::Result<Replayer<'a>> {
        Ok(Replayer { log, flushed: std::fs::read(initial)?, applied: 0 })
    }

    /// Writes what `cut` leaves to a new file. Cuts come in the order of the log.
    ///
    /// # Panics
    /// If a flush lies between this cut and one after it that came before.
    pub fn write(&mut self, cut: &Cut, path: &Path) -> io::Result<()> {
        let entries = &self.log.entries()[..cut.entries];
        let flush = entries.iter().rposition(|entry| entry.is_flush).map_or(0, |flush| flush + 1);
        assert!(self.applied <= flush, "cuts come in the order of the log");
        for entry in &entries[self.applied..flush] {
            apply(self.log, entry, |offset, bytes| {
                let offset = usize::try_from(offset).expect("the volume fits into memory");
                self.flushed[offset..offset + bytes.len()].copy_from_slice(bytes);
                Ok(())
            })?;
        }
        self.applied = flush;
        let volume = write_sparse(path, &self.flushed)?;
        let mut cache = cut.loses.map(Random::new);
        for entry in &entries[flush..] {
            apply(self.log, entry, |offset, bytes| match &mut cache {
                Some(random) if !entry.is_durable => write_partly(&volume, offset, bytes, random),
                _ => volume.write_all_at(bytes, offset),
            })?;
        }
        Ok(())
    }
}

/// Gives an entry's bytes, if it has any, to whoever writes them.
fn apply(log: &WriteLog, entry: &Entry, write: impl FnOnce(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    match entry.kind {
        Kind::Write { bytes: 0, .. } | Kind::Mark(_) => Ok(()),
        Kind::Write { offset, bytes, content } => write(offset, &log.content(content, bytes)?),
        Kind::Discard { offset, bytes } => {
            write(offset, &vec![0; usize::try_from(bytes).expect("the volume fits into memory")])
        }
    }
}

/// All of it, nothing, or some sectors.
fn write_partly(volume: &File, offset: u64, bytes: &[u8], random: &mut Random) -> io::Result<()> {
    match random.below(3) {
        0 => Ok(()),
        1 => volume.write_all_at(bytes, offset),
        _ => {
            for (sector, bytes) in (0_u64..).zip(bytes.chunks(SECTOR_BYTES)) {
                if random.chance(1, 2) {
                    volume.write_all_at(bytes, offset + sector * SECTOR_BYTES as u64)?;
                }
            }
            Ok(())
        }
    }
}

/// A file with this content and holes where it is zero.
fn write_sparse(path: &Path, content: &[u8]) -> io::Result<File> {
    let file = File::options().write(true).create_new(true).open(path)?;
    file.set_len(content.len() as u64)?;
    for (chunk, bytes) in (0_u64..).zip(content.chunks(CHUNK_BYTES)) {
        if bytes.iter().any(|&byte| byte != 0) {
            file.write_all_at(bytes, chunk * CHUNK_BYTES as u64)?;
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::write_log::example::Example;

    const VOLUME_BYTES: usize = 256 << 10;

    /// The first byte of each of the volume's first sectors after each cut.
    fn after<const N: usize>(log: &Example, cuts: &[Cut]) -> Vec<[u8; N]> {
        let file = log.file();
        let directory = tempfile::tempdir().unwrap();
        let [initial, path] = ["initial", "cut"].map(|name| directory.path().join(name));
        let mut before = vec![0; VOLUME_BYTES];
        before[..N * SECTOR_BYTES].fill(9);
        std::fs::write(&initial, before).unwrap();
        let log = WriteLog::open(file.path()).unwrap();
        let mut replayer = Replayer::new(&log, &initial).unwrap();
        let sectors = |cut| {
            replayer.write(cut, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(bytes.len(), VOLUME_BYTES);
            std::array::from_fn(|sector| bytes[sector * SECTOR_BYTES])
        };
        cuts.iter().map(sectors).collect()
    }

    #[test]
    fn an_orderly_cut_leaves_exactly_what_the_log_has_up_to_it() {
        let mut log = Example::default();
        log.write(0, 2, 1).flush().mark("m").write(1, 2, 2).discard(0, 1).flush().write(2, 1, 3);
        let cuts: Vec<Cut> = (0..=7).map(|entries| Cut { entries, loses: None }).collect();
        let expected =
            [[9, 9, 9], [1, 1, 9], [1, 1, 9], [1, 1, 9], [1, 2, 2], [0, 2, 2], [0, 2, 2], [0, 2, 3]];
        assert_eq!(after(&log, &cuts), expected);
    }

    #[test]
    fn a_cache_loses_any_sector_that_was_not_flushed_and_no_other() {
        let mut log = Example::default();
        log.write(0, 1, 1).flush().write(1, 2, 2).durable(3, 3).write(1, 1, 4);
        let cuts: Vec<Cut> = (0..200).map(|seed| Cut { entries: 5, loses: Some(seed) }).collect();
        let seen: BTreeSet<[u8; 4]> = after(&log, &cuts).into_iter().collect();
        let legal = [9, 2, 4].iter().flat_map(|&second| [9, 2].map(|third| [1, second, third, 3]));
        assert_eq!(seen, legal.collect(), "each of them, and nothing else");
    }
}
