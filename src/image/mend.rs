//! The mend of a latched disk: its image takes what it lacks, and the side files go.
//!
//! ```text
//!  side files, oldest first ─▶ what the journal still holds ─▶ sync image ─▶ checkpoint ─▶ remove side files
//! ```
//!
//! Side files may note records as lost; who calls here made sure that something newer hides that, or that the image is to
//! [`take`] the rest only.
//!
//! It is begun anew after any failure or death, since nothing is removed before the checkpoint that makes it needless is
//! durable. It is the only writer of the image while it runs: a latched disk is not destaged.
//!
//! What a disk lacks may be most of the journal. It is brought in runs, each with its sums, so that these take no more memory than
//! those of a batch of destage.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use crate::error::Result;
use crate::extent::{FrozenMap, merge};
use crate::image::Image;
use crate::image::destage::BATCH_LAYERS_MAX;
use crate::image::pace::Pace;
use crate::image::side::{self, SideFile, SidePiece};
use crate::image::sums::Put;
use crate::image::transfer::Transfer;
use crate::journal::reader::Reader;
use crate::journal::segments::Source;
use crate::planted::Planted;
use crate::pour::pour;
use crate::runtime::Runtime;
use crate::units::{Lsn, SectorCount, SectorRange};

/// Operations under way at once.
const CONCURRENCY: usize = 64;
/// Pieces of a side file that are brought at a time, at most.
const PIECES_A_RUN: usize = 4096;

/// What is to be done.
pub struct Mend {
    /// Directory of the images.
    pub directory: PathBuf,
    /// The image; given back advanced.
    pub image: Image,
    /// How long the disk is: a resize may have been left unfinished.
    pub sectors: SectorCount,
    /// The disk's side files, oldest first.
    pub sides: Vec<Rc<SideFile>>,
    /// What the journal still holds beyond them, if anything.
    pub rest: Option<Rest>,
}

/// Records of the disk that are in no side file.
pub struct Rest {
    /// Their maps, oldest first.
    pub maps: Vec<Rc<FrozenMap<Source>>>,
    /// The last of them.
    pub through: Lsn,
    /// Where payloads are read.
    pub reader: Reader,
}

/// Carries it out. Where there is nothing to be moved, sync and checkpoint still tell whether the image works again.
pub async fn mend(runtime: &Rc<Runtime>, mend: Mend) -> Result<Image> {
    let Mend { directory, mut image, sectors, sides, rest } = mend;
    let sums = Rc::clone(&image.sums);
    let _turn = sums.turn().await;
    image.confirm(runtime).await?;
    image.settle_size(runtime, sectors).await?;
    image.check_length(runtime, sectors).await?;
    let (mut through, mut written) = bring_all(runtime, &image, &sides).await?;
    if let Some(Rest { maps, through: last, reader }) = rest {
        through = through.max(last);
        let (pace, planted) = (&Pace::default(), Planted::NONE);
        let transfer =
            Transfer { runtime, reader: &reader, image: &image, through, gives_up: true, pace, planted };
        for run in maps.chunks(BATCH_LAYERS_MAX) {
            let merged = merge(run, || runtime.yield_now()).await;
            transfer.bring(&merged, image.sectors(), &mut written).await?;
        }
    }
    image.sync(runtime, through, Planted::NONE).await?;
    image.advance(runtime, through).await?;
    side::remove(runtime, &directory, &sides).await;
    Ok(image)
}

/// Has the image take all that `sides` hold, durably, without saying so in its checkpoint: the files stay.
pub async fn take(runtime: &Rc<Runtime>, mut image: Image, sides: &[Rc<SideFile>]) -> Result<Image> {
    let sums = Rc::clone(&image.sums);
    let _turn = sums.turn().await;
    image.confirm(runtime).await?;
    image.check_length(runtime, image.sectors()).await?;
    let (through, _) = bring_all(runtime, &image, sides).await?;
    image.sync(runtime, through, Planted::NONE).await?;
    Ok(image)
}

/// Brings what side files hold into the image; returns up to where it then has everything, and the bytes.
async fn bring_all(runtime: &Rc<Runtime>, image: &Image, sides: &[Rc<SideFile>]) -> Result<(Lsn, u64)> {
    // Beyond the checkpoint, if that could not be written when the image had been synced.
    let mut through = image.synced();
    let mut written = 0;
    for side in sides {
        through = through.max(side.through());
        // Where the image has been synced already the checkpoint may say so, though its sync failed: then nothing
        // would mend a torn write.
        if side.through() > image.synced() {
            bring_side(runtime, image, side, &mut written).await?;
        }
    }
    Ok((through, written))
}

/// Brings what one side file holds, run by run; adds the bytes to `written`.
async fn bring_side(runtime: &Rc<Runtime>, image: &Image, side: &SideFile, written: &mut u64) -> Result<()> {
    let mut pieces = side.pieces().peekable();
    while pieces.peek().is_some() {
        image.sums.begin();
        let sums = RefCell::new(BTreeMap::new());
        let run = pieces.by_ref().take(PIECES_A_RUN);
        let writes = run.map(|(range, piece)| bring(runtime, image, range, piece, &sums));
        pour(writes, CONCURRENCY, |bytes| *written += bytes).await?;
        let sums: BTreeMap<SectorRange, Option<Vec<u32>>> = sums.into_inner();
        let news = sums.iter().map(|(range, sums)| (*range, sums.as_deref()));
        let (pace, planted) = (&Pace::default(), Planted::NONE);
        let put = Put { through: side.through(), gives_up: true, pace, planted };
        image.sums.put(news, &put, written).await?;
    }
    Ok(())
}

/// Brings one extent of a side file into the image, and notes its sums; returns its bytes.
async fn bring(
    runtime: &Rc<Runtime>,
    image: &Image,
    range: SectorRange,
    piece: SidePiece,
    sums: &RefCell<BTreeMap<SectorRange, Option<Vec<u32>>>>,
) -> Result<u64> {
    match piece {
        SidePiece::Zero { allocated } => {
            sums.borrow_mut().insert(range, None);
            runtime.zero(&image.file, range.byte_range(), allocated).await?;
            Ok(0)
        }
        SidePiece::Unreadable => unreachable!("a file holds nothing of what it notes"),
        SidePiece::Data(part) => {
            let chunk = runtime.read(&part.file, part.offset, part.bytes).await?;
            let data = part.verified(chunk)?;
            sums.borrow_mut().insert(range, Some(image.sums.of(range.start, &data).collect()));
            runtime.write(&image.file, range.byte_offset(), data).await?;
            Ok(range.bytes())
        }
    }
}
