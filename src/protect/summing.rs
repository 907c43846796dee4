//! Gives images of before there were sums theirs, in the background: from the moment that the group serves, at the rate of
//! verifications, piece by piece ([`crate::image::sums`]), one image of the whole site at a time.
//!
//! The task asks its group for each piece anew which image it is to go on with: disks come, leave, are latched and grow meanwhile.
//! Nobody waits for it but a batch, for the writing of a piece of sums. It may die at any await, and the next process looks for what
//! is left.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::channel::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::image::sums::Summed;
use crate::planted::Planted;
use crate::protect::disk::{Care, Disk};
use crate::protect::group::Group;
use crate::protect::mailbox::{Done, Mailbox};
use crate::runtime::Runtime;
use crate::throttle::{ByteRate, Pacing, Throttle};
use crate::units::DiskSlot;

/// How long to wait while another image gets its sums, or none can be given any.
const WAIT: Duration = Duration::from_secs(5);
/// The same after an error.
const WAIT_AFTER_ERROR: Duration = Duration::from_secs(60);
/// A piece that guests' writes overtook so often is read while no batch is brought.
const OVERTAKEN_MAX: u32 = 3;

/// How images are given sums.
#[derive(Clone, Debug, Default)]
pub struct Summing {
    /// How much of them is read at most.
    pub rate: Option<ByteRate>,
    /// Clones are of one site: one image at a time is gone through.
    pub turn: SummingTurn,
}

/// Whose turn it is.
#[derive(Clone, Debug, Default)]
pub struct SummingTurn(Arc<AtomicBool>);

/// That it is somebody's; until this is dropped.
struct Taken(Arc<AtomicBool>);

impl SummingTurn {
    fn take(&self) -> Option<Taken> {
        let taken = self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then(|| Taken(Arc::clone(&self.0)))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What there is to be done.
pub(super) enum Unsummed {
    /// An image lacks sums: the disk, what people call it, and the image.
    Image(DiskSlot, String, Image),
    /// Some do, but now is not the time.
    Later,
    /// None does.
    None,
}

struct Task {
    runtime: Rc<Runtime>,
    mailbox: Mailbox,
    throttle: Throttle,
    planted: Planted,
    /// The disk that it is at, and how often its piece was overtaken.
    begun: Option<DiskSlot>,
    overtaken: u32,
    /// The disk after which to go on: the one before failed.
    after: Option<DiskSlot>,
}

impl Task {
    async fn run(mut self, turn: SummingTurn) {
        let mut taken = None;
        loop {
            if taken.is_none() {
                taken = turn.take();
            }
            let wait = match self.ask().await {
                // Closed, or done.
                None | Some(Unsummed::None) => break,
                Some(Unsummed::Later) => WAIT,
                Some(Unsummed::Image(slot, name, image)) if taken.is_some() => {
                    match self.piece(slot, &name, &image).await {
                        Ok(()) => continue,
                        Err(error) if error.kind() == ErrorKind::Shutdown => break,
                        Err(error) => {
                            self.after = Some(slot);
                            let path = image.file.path().display();
                            tracing::warn!(disk = %name, image = %path, %error, "the image gets no sums for now; it is tried again");
                            WAIT_AFTER_ERROR
                        }
                    }
                }
                Some(Unsummed::Image(..)) => WAIT,
            };
            taken = None;
            self.runtime.sleep(wait).await;
        }
        self.mailbox.borrow_mut().push_back(Done::Summed);
    }

    async fn ask(&self) -> Option<Unsummed> {
        let (sender, receiver) = oneshot::channel();
        self.mailbox.borrow_mut().push_back(Done::AskedForUnsummed(self.after, sender));
        receiver.await.ok()
    }

    async fn piece(&mut self, slot: DiskSlot, name: &str, image: &Image) -> Result<()> {
        if self.begun.replace(slot) != Some(slot) {
            self.overtaken = 0;
            let bytes = image.sums.unsummed(image.sectors()).bytes();
            let path = image.file.path().display();
            tracing::info!(disk = name, image = %path, bytes, "reading the image, which lacks sums, to give it some");
        }
        let alone = self.overtaken >= OVERTAKEN_MAX;
        let read_bytes = match image.sums.sum_piece(&image.file, image.sectors(), alone, self.planted).await?
        {
            Summed::Piece(bytes) => {
                self.overtaken = 0;
                bytes
            }
            Summed::Overtaken(bytes) => {
                self.overtaken += 1;
                bytes
            }
            Summed::All => {
                let path = image.file.path().display();
                tracing::warn!(
                    disk = name,
                    image = %path,
                    "the image is of a version without sums, and has them now: what flips from here on is refused, not what flipped \
                     before: `verify` of its group compares it with the newest recovery point"
                );
                self.begun = None;
                0
            }
        };
        self.after = None;
        self.throttle.take(read_bytes, || Ok::<_, Error>(())).await
    }
}

impl Disk {
    fn lacks_sums(&self) -> bool {
        self.image.as_ref().is_some_and(|image| !image.sums.has_all())
    }

    /// Bytes of its image that may have no sums yet.
    pub fn unsummed_bytes(&self) -> u64 {
        self.image.as_ref().map_or(0, |image| image.sums.unsummed(image.sectors()).bytes())
    }
}

impl Group {
    /// Begins to give images sums, if some have none.
    pub(super) fn mind_sums(&mut self) {
        if self.is_summing || self.stopping || !self.disks.values().any(Disk::lacks_sums) {
            return;
        }
        self.is_summing = true;
        let Summing { rate, turn } = self.settings.plan.summing.clone();
        let throttle = Pacing { rate, ..Pacing::default() }.on(&self.runtime);
        let (runtime, mailbox) = (Rc::clone(&self.runtime), Rc::clone(&self.mailbox));
        let planted = self.settings.plan.planted;
        let (begun, overtaken, after) = (None, 0, None);
        self.tasks.spawn(Task { runtime, mailbox, throttle, planted, begun, overtaken, after }.run(turn));
    }

    /// The image that gets sums now: of the first disk after one, or else the first of all.
    pub(super) fn unsummed(&self, after: Option<DiskSlot>) -> Unsummed {
        if self.stopping || !self.disks.values().any(Disk::lacks_sums) {
            return Unsummed::None;
        }
        let is_ready = |disk: &Disk| disk.lacks_sums() && disk.latched.is_none() && disk.care == Care::None;
        let ready = || self.disks.iter().filter(|(_, disk)| is_ready(disk) && !self.is_paused);
        let next =
            ready().find(|(slot, _)| after.is_some_and(|after| **slot > after)).or_else(|| ready().next());
        match next {
            Some((&slot, disk)) if self.resize.is_none() => {
                Unsummed::Image(slot, disk.record.name.clone(), disk.attached().clone())
            }
            _ => Unsummed::Later,
        }
    }
}
