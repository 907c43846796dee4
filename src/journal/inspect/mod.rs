//! Looking into a journal from outside: what stands in its segments, what opening would take of it, and whether it
//! is sound. For `afterimage journal inspect|verify`; read-only, also on a damaged journal.
//!
//! It knows no format of its own: `scan` reads, `recover` decides, just as for opening. It says more than opening
//! needs, since it also looks behind the end of a segment's sequence and remembers where each fault is. What opening
//! knows and this does not is the vault's newest point: a journal that lost records which only the vault knows of
//! passes here and is refused there. That the newest used segments are missing can be seen only by who tells of their records:
//! later frames, the images' checkpoints, index runs. What none of them tells of is not missed.
//!
//! A journal that a gateway has open is read as well, but as a *snapshot*: its segments are copied one after the
//! other while frames land, so that they may contradict each other. A contradiction is looked at again before it
//! is called damage.
//!
//! What the disk does not give, a file that cannot be opened or bytes that cannot be read, is a fault like others: the rest
//! is looked at all the same, with zeros in the place of those bytes.
//!
//! Invariant: nothing is created, changed or repaired.

mod index_runs;
mod listing;
mod verdict;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::env::BootId;
use crate::error::Result;
use crate::format::frame::{FrameFault, RecordKind, UntrustedHeader};
use crate::format::marker::Marker;
use crate::journal::recover::{Accepted, Decision, Known, claims, recover, unbroken};
use crate::journal::scan::{
    Checks, Claims, End, Owner, Scanned, SegmentScan, is_needless, read_frame, scan_segment,
};
use crate::journal::segments::SegmentIndex;
use crate::storage::read_only::{Contents, ReadAt, Unreadable};
use crate::units::{
    FrameNumber, GroupId, IncarnationId, Lsn, PAGE_BYTES, SegmentSequence, TimelineId, WallNanos, to_usize,
};

use listing::Listing;

pub use index_runs::RunSurvey;
pub use verdict::{Fault, Verdict, describe};

/// How often a journal in use is read again when what was read contradicts itself.
const SNAPSHOT_ATTEMPTS: usize = 3;

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A frame that stands behind the end of its segment's sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// Byte offset in the file.
    pub offset: u64,
    /// The use of the segment that it belongs to.
    pub segment: SegmentSequence,
    /// Who wrote it.
    pub incarnation: IncarnationId,
    /// Its number.
    pub number: FrameNumber,
    /// Its last record.
    pub last_lsn: Lsn,
    owner: Owner,
    /// What is wrong with its payload, if anything.
    pub fault: Option<FrameFault>,
}

/// A marker's payload; `None` where it is not a marker's, or is sealed: nobody here has keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundMarker {
    /// The record.
    pub lsn: Lsn,
    /// Byte offset of its frame.
    pub offset: u64,
    /// What it says.
    pub marker: Option<Marker>,
    /// Whether it is sealed.
    pub is_sealed: bool,
}

/// What stands in one segment file.
#[derive(Clone, Debug)]
pub struct SegmentSurvey {
    /// The file.
    pub path: PathBuf,
    /// Its frames from the start on, and why there are no more.
    pub scan: SegmentScan,
    /// What opening would read of it.
    head: SegmentScan,
    /// Why its first bytes are no frame, if they are none.
    first_fault: Option<FrameFault>,
    /// Whether it is zeros all through, as a segment is that was never used.
    is_zeros: bool,
    /// What the disk does not give of it: taken for zeros.
    pub unreadable: Vec<Unreadable>,
    /// Where frames begin whose sums do not match since the disk does not give all of them.
    incomplete: Vec<u64>,
    /// Valid headers behind the end: of earlier uses, of dead incarnations, or behind a torn frame.
    pub left_overs: Vec<LeftOver>,
    /// The markers among its frames.
    pub markers: Vec<FoundMarker>,
}

impl SegmentSurvey {
    fn of(index: SegmentIndex, path: PathBuf, contents: Contents) -> SegmentSurvey {
        let bytes: &[u8] = &contents;
        let scan = scan_segment(index, bytes, Checks::ALL);
        let head = scan_segment(index, &bytes[..bytes.len().min(PAGE_BYTES)], Checks::ALL);
        let first_fault = if bytes.is_empty() { None } else { read_frame(bytes, 0).err() };
        let is_blank = || bytes.chunks(PAGE_BYTES).all(|page| page == &ZEROS[..page.len()]);
        let is_zeros = !bytes.is_empty() && contents.unreadable.is_empty() && is_blank();
        let left_overs = left_overs(bytes, used_bytes(&scan));
        let markers = scan.frames.iter().flat_map(|scanned| markers_of(scanned, bytes)).collect();
        let incomplete = incomplete(bytes, &scan, &left_overs, &contents.unreadable);
        let unreadable = contents.unreadable;
        SegmentSurvey { path, scan, head, first_fault, is_zeros, unreadable, incomplete, left_overs, markers }
    }

    /// The use of the file that its frames belong to; `None` if it has none.
    pub fn sequence(&self) -> Option<SegmentSequence> {
        self.scan.frames.first().map(|first| first.frame.segment)
    }

    /// Whether nothing was ever written to it.
    pub fn is_never_used(&self) -> bool {
        self.is_zeros
    }

    /// Whether any frame of a journal stands in it, be it broken or of a later format.
    fn bears_frames(&self) -> bool {
        let is_cut = self.scan.bytes < PAGE_BYTES as u64;
        let begins_otherwise =
            matches!(self.first_fault, None | Some(FrameFault::Blank | FrameFault::NoMagic));
        !(is_cut || begins_otherwise) || self.scan.owners().next().is_some()
    }

    /// Whether the disk does not give the byte at an offset, or not all of the frame that begins there.
    pub fn is_unreadable_at(&self, offset: u64) -> bool {
        self.unreadable.iter().any(|unreadable| unreadable.range.contains(&offset))
            || self.incomplete.contains(&offset)
    }

    /// Bytes from the start that its frames take.
    pub fn used_bytes(&self) -> u64 {
        used_bytes(&self.scan)
    }
}

fn used_bytes(scan: &SegmentScan) -> u64 {
    scan.frames.last().map_or(0, Scanned::end_offset)
}

/// The frames whose sums do not match, and which reach into what cannot be read: that is what is wrong with them.
fn incomplete(
    bytes: &[u8],
    scan: &SegmentScan,
    left_overs: &[LeftOver],
    unreadable: &[Unreadable],
) -> Vec<u64> {
    let end = match scan.end {
        End::Fault { offset, .. } | End::Unlinked { offset } => Some(offset),
        End::Full => None,
    };
    let reaches_into = |offset: &u64| {
        let first = bytes.get(to_usize(*offset)..).unwrap_or_default();
        let Ok(header) = UntrustedHeader::read(&first[..first.len().min(PAGE_BYTES)]) else { return false };
        let length = match read_frame(bytes, to_usize(*offset)) {
            Err(FrameFault::HeaderSum) => header.header_bytes(),
            Err(FrameFault::PayloadSum(_)) => header.total_bytes(),
            _ => return false,
        };
        let frame = *offset..*offset + length as u64;
        unreadable.iter().any(|kept| kept.range.start < frame.end && frame.start < kept.range.end)
    };
    let begins = left_overs.iter().map(|left| left.offset).chain(end).chain([0]);
    begins.filter(|_| !unreadable.is_empty()).filter(reaches_into).collect()
}

fn left_overs(bytes: &[u8], from: u64) -> Vec<LeftOver> {
    let mut found = Vec::new();
    let mut offset = to_usize(from);
    while offset < bytes.len() {
        let page = &bytes[offset..bytes.len().min(offset + PAGE_BYTES)];
        let parsed = UntrustedHeader::read(page).and_then(|header| header.parse(&bytes[offset..]));
        match parsed {
            Ok((frame, _)) if frame.segment_offset() == offset as u64 => {
                found.push(LeftOver {
                    offset: offset as u64,
                    segment: frame.segment,
                    incarnation: frame.incarnation,
                    number: frame.number,
                    last_lsn: frame.last_lsn(),
                    owner: frame.owner(),
                    fault: read_frame(bytes, offset).err(),
                });
                offset += frame.header_bytes();
            }
            _ => offset += PAGE_BYTES,
        }
    }
    found
}

fn markers_of(scanned: &Scanned, bytes: &[u8]) -> Vec<FoundMarker> {
    let frame = &scanned.frame;
    let whole = &bytes[to_usize(frame.segment_offset())..to_usize(scanned.end_offset())];
    let markers = frame.records.iter().enumerate().filter(|(_, record)| record.kind == RecordKind::Marker);
    let found = markers.map(|(index, record)| FoundMarker {
        lsn: frame.first_lsn.advance(index as u64),
        offset: frame.segment_offset(),
        marker: Marker::decode(&whole[frame.payload_range(record.payload)]).filter(|_| frame.seal.is_none()),
        is_sealed: frame.seal.is_some(),
    });
    found.collect()
}

/// One opening of the journal, as far as its accepted frames tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncarnationSurvey {
    /// Its id.
    pub id: IncarnationId,
    /// When it began and what it followed; `None` if the frame that says so was recycled.
    pub opening: Option<(WallNanos, Option<IncarnationId>)>,
    /// Its first and last accepted frame.
    pub frames: (FrameNumber, FrameNumber),
    /// Its first and last accepted record.
    pub records: (Lsn, Lsn),
    /// Whether it was closed in good order.
    pub closed: bool,
}

/// How far a journal must reach, and who says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// By the headers of its own frames.
    pub stated: Lsn,
    /// By the checkpoints of the images beside it; `None` if there are none.
    pub destaged: Option<Lsn>,
}

impl Floor {
    /// The higher of the two.
    pub fn lsn(self) -> Lsn {
        self.stated.max(self.destaged.unwrap_or_default())
    }
}

/// A journal, looked at.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What was named.
    pub path: PathBuf,
    /// Whether a gateway has it open, so that this is a snapshot.
    pub in_use: bool,
    /// Whose journal it is; `None` if it has no frame.
    pub owner: Option<Owner>,
    /// Its segment files, by index.
    pub segments: Vec<SegmentSurvey>,
    /// Segments that could not be opened, and why.
    pub unopened: Vec<Fault>,
    /// Files that do not belong there: opening refuses them.
    pub strangers: Vec<PathBuf>,
    /// Segments whose creation a crash cut short: opening removes them.
    pub unfinished: Vec<PathBuf>,
    /// Index runs, a cache for opening.
    pub runs: Vec<RunSurvey>,
    /// How far it must reach.
    pub floor: Floor,
    /// What opening would do; `None` for a single segment, which tells only about itself.
    pub decision: Option<Decision>,
    /// The frames that follow one another without a break, oldest segment first: what opening accepts, or, where it refuses,
    /// what is sound all the same; of a single segment, its frames.
    pub unbroken: Vec<Accepted>,
    /// The oldest use of a segment that is needed, as the headers say.
    tail: SegmentSequence,
    /// Who wrote those frames, oldest first.
    pub incarnations: Vec<IncarnationSurvey>,
    /// Whether it is sound.
    pub verdict: Verdict,
}

impl Survey {
    /// Looks at a journal's directory, or at one segment file.
    pub fn of(path: &Path) -> Result<Survey> {
        Survey::of_boot(path, None)
    }

    /// The same, on a host in that boot: what was written in it and is not there is damage, unless a gateway is at work.
    pub fn of_boot(path: &Path, boot: Option<BootId>) -> Result<Survey> {
        Survey::look(path, &|file, bytes, offset| file.read_at(bytes, offset), boot)
    }

    /// As [`Survey::of`], with segments read by `read_at`: for whoever has a disk that fails.
    pub fn of_by(path: &Path, read_at: ReadAt<'_>) -> Result<Survey> {
        Survey::look(path, read_at, None)
    }

    fn look(path: &Path, read_at: ReadAt<'_>, boot: Option<BootId>) -> Result<Survey> {
        let mut survey = Survey::attempt(path, read_at, boot)?;
        for _ in 1..SNAPSHOT_ATTEMPTS {
            if !survey.in_use || !matches!(survey.verdict, Verdict::Damaged(_)) {
                break;
            }
            survey = Survey::attempt(path, read_at, boot)?;
        }
        Ok(survey)
    }

    fn attempt(path: &Path, read_at: ReadAt<'_>, boot: Option<BootId>) -> Result<Survey> {
        let mut listing = Listing::of(path)?;
        // All are locked before the first is read, so that they belong together.
        let files = listing.open()?;
        let in_use = files.iter().any(|(_, file)| file.is_in_use());
        let mut segments = Vec::with_capacity(files.len());
        for (index, file) in &files {
            segments.push(SegmentSurvey::of(*index, file.path().to_owned(), file.contents_by(read_at)?));
        }
        drop(files);
        listing.refuse_frameless(path, &segments)?;
        // What is read while frames are written is not of one moment.
        let boot = boot.filter(|_| !in_use);
        Ok(Survey::assemble(path, (in_use, boot), segments, listing))
    }

    fn assemble(
        path: &Path,
        (in_use, boot): (bool, Option<BootId>),
        mut segments: Vec<SegmentSurvey>,
        listing: Listing,
    ) -> Survey {
        let found = owner_of(&segments, listing.group);
        let owner = found.unwrap_or(Owner { group: GroupId(0), timeline: TimelineId(0) });
        for segment in &mut segments {
            segment.left_overs.retain(|left_over| left_over.owner == owner);
        }
        let scans = as_opening_scans(&segments, owner);
        let claims = claims(&scans, owner, Checks::ALL);
        let floor = Floor { stated: claims.durable_through, destaged: listing.destaged };
        let known = Known { floor: floor.destaged.unwrap_or_default(), boot, ..Known::of(owner) };
        let decision = listing.whole.then(|| recover(&scans, known, Checks::ALL, &[]));
        let unbroken = match &decision {
            Some(Decision::Accept(chain)) => chain.clone(),
            Some(_) => unbroken(&scans, owner, Checks::ALL),
            None => whole_segments(&segments),
        };
        let mut survey = Survey {
            path: path.to_owned(),
            in_use,
            owner: found,
            segments,
            unopened: listing.unopened,
            strangers: listing.strangers,
            unfinished: listing.unfinished,
            runs: Vec::new(),
            floor,
            decision,
            unbroken,
            tail: claims.tail,
            incarnations: Vec::new(),
            verdict: Verdict::Sound,
        };
        survey.incarnations = incarnations(survey.frames_of(&survey.unbroken));
        survey.verdict = verdict::judge(&survey, claims);
        survey.runs = index_runs::survey(&survey, listing.runs);
        verdict::add_what_runs_miss(&mut survey);
        survey.verdict.add(listing.rotten_checkpoints);
        survey
    }

    /// Whether the disk kept something back that may be needed.
    pub fn is_partial(&self) -> bool {
        !self.unopened.is_empty() || self.segments.iter().any(|segment| !segment.unreadable.is_empty())
    }

    /// The accepted chain, oldest segment first; of a single segment, its frames.
    pub fn chain(&self) -> Vec<Accepted> {
        match &self.decision {
            Some(Decision::Fresh | Decision::Refuse(_)) => Vec::new(),
            Some(Decision::Accept(_)) | None => self.unbroken.clone(),
        }
    }

    fn frames_of<'a>(&'a self, chain: &'a [Accepted]) -> impl Iterator<Item = &'a Scanned> {
        chain.iter().flat_map(|accepted| &self.segments[accepted.scan].scan.frames[..accepted.frames])
    }

    /// The last accepted record.
    pub fn end(&self) -> Lsn {
        self.frames_of(&self.chain()).last().map_or(Lsn::ZERO, |last| last.frame.last_lsn())
    }

    /// Whether nothing in a segment is needed: it was never used, or only before what is needed.
    pub fn is_free(&self, segment: &SegmentSurvey) -> bool {
        let used = self.owner.map(|owner| segment.head.claims(owner, Checks::ALL).segment);
        segment.is_never_used() || used.is_some_and(|used| is_needless(used, self.tail))
    }

    /// The first and the last record of the [unbroken](Survey::unbroken) frames.
    pub fn unbroken_records(&self) -> Option<(Lsn, Lsn)> {
        let first = self.frames_of(&self.unbroken).next()?;
        let last = self.frames_of(&self.unbroken).last()?;
        Some((first.frame.first_lsn, last.frame.last_lsn()))
    }

    /// Whether the journal was closed in good order.
    pub fn is_closed(&self) -> bool {
        !self.chain().is_empty() && self.incarnations.last().is_some_and(|last| last.closed)
    }
}

/// Segments that have frames, each by itself.
fn whole_segments(segments: &[SegmentSurvey]) -> Vec<Accepted> {
    let whole = segments.iter().enumerate().map(|(scan, segment)| Accepted {
        scan,
        from: 0,
        frames: segment.scan.frames.len(),
        jump: None,
    });
    whole.filter(|accepted| accepted.frames > 0).collect()
}

/// The scans as opening makes them: of a segment that nobody needs it reads the first page only.
fn as_opening_scans(segments: &[SegmentSurvey], owner: Owner) -> Vec<SegmentScan> {
    let mut heads = Claims::default();
    segments.iter().for_each(|segment| heads.merge(segment.head.claims(owner, Checks::ALL)));
    let scans = segments.iter().map(|segment| {
        let scan = if is_needless(segment.head.claims(owner, Checks::ALL).segment, heads.tail) {
            &segment.head
        } else {
            &segment.scan
        };
        scan.clone()
    });
    scans.collect()
}

/// Whose journal it is: the directory's group if any frame is its own, else who wrote most of it. Where no segment
/// begins with a frame, left-overs tell, preferably those of the directory's group.
fn owner_of(segments: &[SegmentSurvey], named: Option<GroupId>) -> Option<Owner> {
    let mut counts: Vec<(Owner, bool, usize)> = Vec::new();
    for scanned in segments.iter().flat_map(|segment| &segment.scan.frames) {
        let owner = scanned.frame.owner();
        match counts.iter_mut().find(|(known, ..)| *known == owner) {
            Some((.., count)) => *count += 1,
            None => counts.push((owner, named == Some(owner.group), 1)),
        }
    }
    let most = counts.into_iter().max_by_key(|&(_, is_named, count)| (is_named, count));
    let left_overs = segments.iter().flat_map(|segment| segment.scan.owners());
    let named_first = || left_overs.max_by_key(|owner| named == Some(owner.group));
    most.map(|(owner, ..)| owner).or_else(named_first)
}

fn incarnations<'a>(frames: impl Iterator<Item = &'a Scanned>) -> Vec<IncarnationSurvey> {
    let mut found: Vec<IncarnationSurvey> = Vec::new();
    for scanned in frames {
        let frame = &scanned.frame;
        let closed = frame.records.iter().any(|record| record.kind == RecordKind::Seal);
        match found.last_mut() {
            Some(last) if last.id == frame.incarnation => {
                last.frames.1 = frame.number;
                last.records.1 = frame.last_lsn();
                last.closed = closed;
            }
            _ => found.push(IncarnationSurvey {
                id: frame.incarnation,
                opening: scanned.opening.map(|opening| (opening.wall, opening.predecessor)),
                frames: (frame.number, frame.number),
                records: (frame.first_lsn, frame.last_lsn()),
                closed,
            }),
        }
    }
    found
}
