//! What each operation does to a simulated disk, all at once, when it completes.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::OpenDescription;
use super::file::{Change, Moment, SimFile};
use super::names::{FileId, Node};
use super::process::ProcessId;
use super::world::{Description, World, description_id};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::syscalls::{failed, past_end};
use crate::storage::{Access, Buffer, Buffered, Create, File, Handle, Lock, Op, OpenOptions, Outcome, Slice};
use crate::units::to_usize;

impl World {
    /// What an operation does, all at once.
    pub(super) fn execute(&mut self, process: ProcessId, submitted: Moment, op: Op) -> Result<Outcome> {
        let done = |()| Outcome::Done;
        let at = self.next_moment();
        let named = |path: &Path, context: &'static str| {
            let path = path.to_owned();
            move |errno: Errno| failed(context, errno).at_path(&path)
        };
        match op {
            Op::Open { path, options } => self.open(process, &path, options).map(Outcome::Opened),
            Op::Read { file, offset, buffer } => self.read(&file, offset, buffer).map(Outcome::Read),
            Op::Write { file, offset, data } => self.write(&file, offset, data).map(done),
            Op::Sync { file } => {
                self.file_mut(&file).sync(submitted);
                Ok(Outcome::Done)
            }
            Op::Evict { file } => {
                self.file_mut(&file).evict();
                Ok(Outcome::Done)
            }
            Op::Zero { file, range, keep_allocated } => self.zero(&file, range, keep_allocated).map(done),
            Op::SetLength { file, length } => self.set_length(&file, length).map(done),
            Op::Length { file } => Ok(Outcome::Length(self.file_mut(&file).visible().length())),
            Op::DataRanges { file, range } => {
                Ok(Outcome::Ranges(self.file_mut(&file).visible().data_ranges(range)))
            }
            Op::Publish { from, to } => {
                self.names.publish(at, &from, &to).map(done).map_err(|errno| {
                    named(if errno == Errno::EXIST { &to } else { &from }, "publishing")(errno)
                })
            }
            Op::Remove { path } => self.names.remove(at, &path).map(done).map_err(named(&path, "removing")),
            Op::RemoveDirectory { path } => {
                let removed = self.names.remove_directory(at, &path);
                removed.map(done).map_err(named(&path, "removing the directory"))
            }
            Op::CreateDirectory { path } => {
                let created = self.names.create_directory(at, &path);
                created.map(done).map_err(named(&path, "creating the directory"))
            }
            Op::List { path } => {
                self.names.list(&path).map(Outcome::Names).map_err(named(&path, "listing the directory"))
            }
            Op::SyncDirectory { path } => {
                let synced = self.names.sync(submitted, &path);
                synced.map(done).map_err(named(&path, "syncing the directory"))
            }
            Op::Space { path } => {
                let there = self.names.list(&path).map_err(named(&path, "asking for free space"));
                there.map(|_| Outcome::Space(self.space()))
            }
        }
    }

    fn open(&mut self, process: ProcessId, path: &Path, options: OpenOptions) -> Result<File> {
        let refuse = |errno: Errno| failed("opening", errno).at_path(path);
        let writable = options.access == Access::ReadWrite;
        let file = match (self.names.get(path), options.create) {
            (Some(_), Create::New) => return Err(refuse(Errno::EXIST)),
            (Some(Node::Directory), _) => return Err(refuse(Errno::ISDIR)),
            (Some(Node::File(file)), _) => file,
            (None, Create::Existing) => return Err(refuse(Errno::NOENT)),
            (None, _) => {
                let (at, file) = (self.next_moment(), FileId(self.new_id()));
                self.names.create_file(at, path, file).map_err(refuse)?;
                self.files.insert(file, SimFile::default());
                file
            }
        };
        let locked = options.lock != Lock::None;
        if locked && self.is_locked(file) {
            let context = "another process holds the lock of this file: end that process";
            return Err(Error::new(ErrorKind::Locked, context).at_path(path));
        }
        let (id, alive) = (self.new_id(), Arc::new(()));
        let handle = Arc::downgrade(&alive);
        self.descriptions.insert(id, Description { file, writable, locked, process, handle });
        let description = OpenDescription { id, _alive: alive };
        let buffered = (!options.direct).then_some(Buffered::Wanted);
        Ok(File::new(path.to_owned(), buffered, Handle::Sim(description)))
    }

    pub(super) fn file_mut(&mut self, file: &File) -> &mut SimFile {
        let id = self.descriptions[&description_id(file)].file;
        self.files.get_mut(&id).expect("an open file is there")
    }

    fn read(&mut self, file: &File, offset: u64, mut buffer: Buffer) -> Result<Buffer> {
        file.check_alignment(offset, &buffer)?;
        if buffer.is_empty() {
            return Ok(buffer);
        }
        if let Some(bad) = self.file_mut(file).first_bad(offset..offset + buffer.len() as u64) {
            return Err(failed("reading", Errno::IO).at_path(file.path()).at_offset(bad));
        }
        let content = self.file_mut(file).visible();
        let present = content.length().saturating_sub(offset);
        if present < buffer.len() as u64 {
            return Err(past_end(file, offset, buffer.len() - to_usize(present)));
        }
        content.read(offset, &mut buffer);
        Ok(buffer)
    }

    pub(super) fn write(&mut self, file: &File, offset: u64, data: Slice) -> Result<()> {
        self.check_write(file, offset, &data)?;
        let at = self.next_moment();
        self.file_mut(file).apply(at, Change::Write { offset, data });
        Ok(())
    }

    pub(super) fn check_write(&mut self, file: &File, offset: u64, data: &Slice) -> Result<()> {
        file.check_alignment(offset, data)?;
        let missing = self.file_mut(file).visible().missing_bytes(offset..offset + data.len() as u64);
        self.check_change(file, offset, missing)
    }

    fn zero(&mut self, file: &File, range: Range<u64>, keep_allocated: bool) -> Result<()> {
        let content = self.file_mut(file).visible();
        let end = range.end.min(content.length()).max(range.start);
        let missing = if keep_allocated { content.missing_bytes(range.start..end) } else { 0 };
        self.check_change(file, range.start, missing)?;
        let at = self.next_moment();
        self.file_mut(file).apply(at, Change::Zero { range, keep_allocated });
        Ok(())
    }

    fn set_length(&mut self, file: &File, length: u64) -> Result<()> {
        self.check_change(file, length, 0)?;
        let at = self.next_moment();
        self.file_mut(file).apply(at, Change::Length(length));
        Ok(())
    }

    /// Whether the file may be written, and there is room for `missing` bytes more.
    fn check_change(&self, file: &File, offset: u64, missing: u64) -> Result<()> {
        let refuse = |errno| Err(failed("writing", errno).at_path(file.path()).at_offset(offset));
        if !self.descriptions[&description_id(file)].writable {
            return refuse(Errno::BADF);
        }
        if missing > 0 && !self.has_room(missing) {
            return refuse(Errno::NOSPC);
        }
        Ok(())
    }
}
