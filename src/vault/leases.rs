//! Leases: what the views of this process read. A point with a lease is not planned away, a blob with one is not deleted,
//! and the base does not move past one.
//!
//! Nothing durable: after a restart nobody reads, and opening removes what no step names.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures::channel::oneshot;

use crate::format::record::PointRecord;
use crate::format::summary::Cover;
use crate::units::{BlobId, Lsn};

#[derive(Default)]
struct Inner {
    /// Markers of the points that are read, and by how many.
    points: BTreeMap<Lsn, usize>,
    blobs: BTreeMap<BlobId, usize>,
    summaries: BTreeMap<Cover, usize>,
    /// Blobs that no step names any more, and that are not deleted yet.
    doomed: BTreeSet<BlobId>,
    /// Whether a doomed blob lost its last lease since somebody looked.
    freed: bool,
    /// Who waits for a view to end.
    waiting: Vec<oneshot::Sender<()>>,
}

/// The leases of one vault.
#[derive(Clone, Default)]
pub struct Leases(Rc<RefCell<Inner>>);

/// A view's: what it reads stays while this lives.
pub struct Lease {
    leases: Leases,
    marker: Lsn,
    blobs: Vec<BlobId>,
}

/// A view's, of a summary that it reads.
pub struct SummaryLease {
    leases: Leases,
    cover: Cover,
}

impl Leases {
    /// Keeps the file of a summary.
    pub fn take_summary(&self, cover: Cover) -> SummaryLease {
        *self.0.borrow_mut().summaries.entry(cover).or_default() += 1;
        SummaryLease { leases: self.clone(), cover }
    }

    /// Whether a view reads a summary.
    pub(super) fn holds_summary(&self, cover: &Cover) -> bool {
        self.0.borrow().summaries.contains_key(cover)
    }

    /// Keeps a point and the blobs that its view reads.
    pub fn take(&self, marker: Lsn, blobs: Vec<BlobId>) -> Lease {
        let mut inner = self.0.borrow_mut();
        *inner.points.entry(marker).or_default() += 1;
        for &blob in &blobs {
            *inner.blobs.entry(blob).or_default() += 1;
        }
        Lease { leases: self.clone(), marker, blobs }
    }

    /// Whether a view reads the point at a marker.
    pub fn holds_point(&self, marker: Lsn) -> bool {
        self.0.borrow().points.contains_key(&marker)
    }

    /// Whether a view reads a point before `marker`.
    pub fn holds_point_before(&self, marker: Lsn) -> bool {
        self.0.borrow().points.range(..marker).next().is_some()
    }

    /// Whether a view reads one of these blobs.
    pub(super) fn hold_any(&self, mut blobs: impl Iterator<Item = BlobId>) -> bool {
        let inner = self.0.borrow();
        blobs.any(|blob| inner.blobs.contains_key(&blob))
    }

    /// Resolves once a view has ended that reads a point now: to be asked for before looking whether one has to be waited for.
    pub(super) fn next_end(&self) -> oneshot::Receiver<()> {
        let (ended, told) = oneshot::channel();
        self.0.borrow_mut().waiting.push(ended);
        told
    }

    /// Whether each lease is for one of `points`, which ascend by marker.
    pub(super) fn are_for_points(&self, points: &[PointRecord]) -> bool {
        let is_point = |marker: &Lsn| points.binary_search_by_key(marker, |point| point.marker).is_ok();
        self.0.borrow().points.keys().all(is_point)
    }

    /// Notes that no step names the blob any more.
    pub(super) fn doom(&self, blob: BlobId) {
        self.0.borrow_mut().doomed.insert(blob);
    }

    /// The doomed blobs that nobody reads, or all of them; they are the caller's to delete.
    pub(super) fn deletable(&self, also_leased: bool) -> Vec<BlobId> {
        let mut inner = self.0.borrow_mut();
        inner.freed = false;
        let free = |blob: &&BlobId| also_leased || !inner.blobs.contains_key(blob);
        inner.doomed.iter().filter(free).copied().collect()
    }

    /// Whether a doomed blob lost its last lease since [`Leases::deletable`] was asked.
    pub fn has_freed(&self) -> bool {
        self.0.borrow().freed
    }

    /// How many blobs are only waiting for whoever reads them.
    pub fn waiting(&self) -> usize {
        let inner = self.0.borrow();
        inner.doomed.iter().filter(|blob| inner.blobs.contains_key(blob)).count()
    }

    /// Notes that a doomed blob was deleted.
    pub(super) fn deleted(&self, blob: BlobId) {
        self.0.borrow_mut().doomed.remove(&blob);
    }

    /// Whether the blob is only waiting to be deleted.
    pub(super) fn is_doomed(&self, blob: BlobId) -> bool {
        self.0.borrow().doomed.contains(&blob)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &mut *self.leases.0.borrow_mut();
        release(&mut inner.points, self.marker);
        for blob in &self.blobs {
            let is_free = release(&mut inner.blobs, *blob);
            inner.freed |= is_free && inner.doomed.contains(blob);
        }
        // Who does not wait any more needs no telling.
        for waiting in inner.waiting.drain(..) {
            let _ = waiting.send(());
        }
    }
}

impl Drop for SummaryLease {
    fn drop(&mut self) {
        release(&mut self.leases.0.borrow_mut().summaries, self.cover);
    }
}

/// Takes one off a count; whether it was the last.
fn release<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    let count = counts.get_mut(&key).expect("what is released was taken");
    *count -= 1;
    let is_last = *count == 0;
    if is_last {
        counts.remove(&key);
    }
    is_last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_view_is_told_when_it_ends() {
        let leases = Leases::default();
        let [first, second] = [10, 20].map(|marker| leases.take(Lsn(marker), Vec::new()));
        let mut told = leases.next_end();
        assert_eq!(told.try_recv(), Ok(None));
        drop(first);
        assert_eq!(told.try_recv(), Ok(Some(())));
        let mut told = leases.next_end();
        assert_eq!(told.try_recv(), Ok(None), "the next one");
        drop(second);
        assert_eq!(told.try_recv(), Ok(Some(())));
    }

    #[test]
    fn a_blob_is_deletable_once_its_last_reader_is_gone() {
        let leases = Leases::default();
        let (blob, other) = (BlobId(1), BlobId(2));
        let first = leases.take(Lsn(10), vec![blob]);
        let second = leases.take(Lsn(20), vec![blob, other]);
        leases.doom(blob);
        leases.doom(other);
        assert!(leases.deletable(false).is_empty());
        assert!(leases.holds_point(Lsn(10)) && leases.holds_point_before(Lsn(11)));
        assert!(!leases.has_freed());
        drop(second);
        assert!(leases.has_freed());
        assert_eq!(leases.deletable(false), [other]);
        leases.deleted(other);
        drop(first);
        assert_eq!(leases.deletable(false), [blob]);
        assert!(!leases.holds_point(Lsn(10)) && !leases.holds_point_before(Lsn::ZERO.next()));
    }
}
