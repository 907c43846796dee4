//! What dm-log-writes wrote down: every write to the volume, in the order in which flushes made them durable.
//!
//! From drivers/md/dm-log-writes.c; all little-endian, everything in sectors of the size that the super block names:
//!
//! ```text
//! super block, sector 0             entry, from sector 1 on
//! offset  bytes                     offset  bytes
//!      0      8  magic                   0      8  sector of the volume
//!      8      8  version: 1              8      8  sectors
//!     16      8  entries                16      8  flags: FLUSH 1, FUA 2, DISCARD 4, MARK 8, METADATA 16
//!     24      4  bytes a sector         24      8  bytes of the mark, which follow in the same sector
//!                                    then the content, but for a DISCARD, from the next sector on
//! ```
//!
//! A write is kept back until a flush that was sent after it returns; then it is logged, and the flush behind it. So
//! what lies before a FLUSH is durable when that is, and of what lies behind the last one any part may be.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const HEADER_BYTES: usize = 32;

/// What a log's entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes at this place of the volume; they lie there in the log. A flush has none.
    Write {
        /// Of the volume, in bytes.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Where in the log.
        content: u64,
    },
    /// Bytes of the volume whose content means nothing any more.
    Discard {
        /// In bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// What somebody wanted to remember.
    Mark(String),
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What was done.
    pub kind: Kind,
    /// It came with a flush: everything before it is durable when it is.
    pub is_flush: bool,
    /// It is durable by itself.
    pub is_durable: bool,
}

/// A log, read.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads a log's entries; their content stays in the file.
    ///
    /// # Errors
    /// The file's; `InvalidData` if it is no log, or not a whole one.
    pub fn open(path: &Path) -> io::Result<WriteLog> {
        let file = File::open(path)?;
        let header = header(&file, 0)?;
        let [magic, version, count, sector_bytes] = header;
        let sector_bytes = sector_bytes & u64::from(u32::MAX);
        if (magic, version) != (MAGIC, VERSION) || !sector_bytes.is_power_of_two() || sector_bytes < 512 {
            return Err(invalid(format!("no log of dm-log-writes: {header:x?}")));
        }
        let mut at = sector_bytes;
        let mut entries = Vec::new();
        for number in 0..count {
            let entry = read_entry(&file, at, sector_bytes);
            let (entry, next) =
                entry.map_err(|error| invalid(format!("entry {number} at byte {at}: {error}")))?;
            entries.push(entry);
            at = next;
        }
        Ok(WriteLog { file, entries })
    }

    /// All of them, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The content of a write.
    pub fn content(&self, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(bytes).expect("a write fits into memory")];
        self.file.read_exact_at(&mut content, at)?;
        Ok(content)
    }
}

/// The entry whose header lies at the byte `at`, and where the next one's does.
fn read_entry(file: &File, at: u64, sector_bytes: u64) -> io::Result<(Entry, u64)> {
    let [sector, sectors, flags, mark_bytes] = header(file, at)?;
    let known = FLUSH | FUA | DISCARD | MARK | 16;
    if flags & !known != 0 || mark_bytes > sector_bytes - HEADER_BYTES as u64 {
        return Err(invalid(format!("flags {flags:x} and a mark of {mark_bytes} bytes")));
    }
    let content = at + sector_bytes;
    let (offset, bytes) = sector
        .checked_mul(sector_bytes)
        .zip(sectors.checked_mul(sector_bytes))
        .ok_or_else(|| invalid(format!("{sectors} sectors at {sector}")))?;
    let (kind, stored) = if flags & MARK != 0 {
        let mut mark = vec![0; usize::try_from(mark_bytes).expect("less than a sector")];
        file.read_exact_at(&mut mark, at + HEADER_BYTES as u64)?;
        // dmsetup's message ends with a zero, which the kernel counts.
        let text = String::from_utf8_lossy(&mark).trim_end_matches('\0').to_owned();
        (Kind::Mark(text), 0)
    } else if flags & DISCARD != 0 {
        (Kind::Discard { offset, bytes }, 0)
    } else {
        (Kind::Write { offset, bytes, content }, bytes)
    };
    let entry = Entry { kind, is_flush: flags & FLUSH != 0, is_durable: flags & FUA != 0 };
    Ok((entry, content + stored))
}

fn header(file: &File, at: u64) -> io::Result<[u64; 4]> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    let words = bytes.as_chunks::<8>().0;
    Ok(std::array::from_fn(|word| u64::from_le_bytes(words[word])))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A log as the kernel writes it, for tests.
#[cfg(test)]
pub mod example {
    use super::*;

    /// Its entries so far: flags, sector, content or mark.
    #[derive(Default)]
    pub struct Example {
        bytes: Vec<u8>,
        count: u64,
    }

    impl Example {
        fn entry(&mut self, words: [u64; 4], inline: &[u8], content: &[u8]) {
            let mut sector = vec![0; 512];
            for (slot, word) in sector.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *slot = word.to_le_bytes();
            }
            sector[HEADER_BYTES..HEADER_BYTES + inline.len()].copy_from_slice(inline);
            self.bytes.append(&mut sector);
            self.bytes.extend_from_slice(content);
            self.count += 1;
        }

        pub fn write(&mut self, sector: u64, sectors: u64, byte: u8) -> &mut Example {
            self.entry([sector, sectors, 0, 0], &[], &vec![byte; usize::try_from(sectors * 512).unwrap()]);
            self
        }

        pub fn durable(&mut self, sector: u64, byte: u8) -> &mut Example {
            self.entry([sector, 1, FUA, 0], &[], &[byte; 512]);
            self
        }

        pub fn flush(&mut self) -> &mut Example {
            self.entry([0, 0, FLUSH, 0], &[], &[]);
            self
        }

        pub fn discard(&mut self, sector: u64, sectors: u64) -> &mut Example {
            self.entry([sector, sectors, DISCARD, 0], &[], &[]);
            self
        }

        pub fn mark(&mut self, text: &str) -> &mut Example {
            let text = format!("{text}\0");
            self.entry([0, 0, MARK, text.len() as u64], text.as_bytes(), &[]);
            self
        }

        pub fn file(&self) -> tempfile::NamedTempFile {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut bytes = vec![0; 512];
            for (slot, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip([MAGIC, VERSION, self.count, 512])
            {
                *slot = word.to_le_bytes();
            }
            bytes.extend_from_slice(&self.bytes);
            std::fs::write(file.path(), bytes).unwrap();
            file
        }
    }
}

#[cfg(test)]
mod tests {
    use super::example::Example;
    use super::*;

    #[test]
    fn every_kind_of_entry_is_read_and_its_content_found() {
        let mut example = Example::default();
        let file = example.write(8, 2, 0xaa).flush().mark("seven").discard(40, 8).durable(9, 0xbb).file();
        let log = WriteLog::open(file.path()).unwrap();
        let entry = |kind, is_flush, is_durable| Entry { kind, is_flush, is_durable };
        let expected = [
            entry(Kind::Write { offset: 4096, bytes: 1024, content: 1024 }, false, false),
            entry(Kind::Write { offset: 0, bytes: 0, content: 2560 }, true, false),
            entry(Kind::Mark("seven".to_owned()), false, false),
            entry(Kind::Discard { offset: 40 * 512, bytes: 4096 }, false, false),
            entry(Kind::Write { offset: 9 * 512, bytes: 512, content: 4096 }, false, true),
        ];
        assert_eq!(log.entries(), expected);
        assert_eq!(log.content(1024, 1024).unwrap(), [0xaa; 1024]);
        assert_eq!(log.content(4096, 512).unwrap(), [0xbb; 512]);
    }

    #[test]
    fn what_is_no_whole_log_is_refused() {
        let file = Example::default().write(8, 2, 0xaa).mark("seven").file();
        let whole = std::fs::read(file.path()).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            WriteLog::open(file.path()).is_err()
        };
        assert!(!refused(&whole));
        assert!(refused(&[]) && refused(&vec![0; 8192]), "no super block");
        assert!(refused(&whole[..2048]), "the last entry is missing");
        // Version, bytes a sector, flags of the first entry, bytes of the mark.
        for (offset, byte) in [(8, 2), (24, 7), (512 + 17, 1), (2048 + 25, 2)] {
            let mut bytes = whole.clone();
            bytes[offset] = byte;
            assert!(refused(&bytes), "byte {offset}");
        }
    }
}
