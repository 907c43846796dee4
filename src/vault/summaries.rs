//! The summaries of a vault: which there are, which of them hold, and how they come and go. `docs/opening-a-point.md`.
//!
//! Invariant: a summary is used only for the very deltas that it was made of, in their order; what ends it is that the
//! manifest no longer names these. Everything here is a cache: whatever fails costs time, and nothing else.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::cover::{Stretch, Weight, cover, next_summary};
use super::files::{PartialFile, remove_partials};
use super::layout::{Layout, parse_summary_name};
use super::{State, Vault};
use crate::error::{Error, ErrorKind, Result};
use crate::format::delta::DeltaRef;
use crate::format::summary::{Cover, Footer, digest};
use crate::planted::{Bug, Planted};
use crate::runtime::Runtime;
use crate::storage::{File, OpenOptions};
use crate::summary::{self, Failed, Identity, Input, SummaryReader};
use crate::units::{BlobId, SummaryId};

/// Neighbours that become one summary, unless it is said otherwise.
pub const FAN_OUT: usize = 16;
/// A delta with stored tables of this length gets a summary of its own.
const LONG_TABLES_BYTES: u64 = 256 << 10;

/// The summaries of one vault.
pub struct Summaries {
    runtime: Rc<Runtime>,
    layout: Layout,
    /// By the first delta of each.
    known: RefCell<BTreeMap<BlobId, Vec<Cover>>>,
    /// Those that were found damaged, until their files are removed.
    refused: RefCell<BTreeSet<Cover>>,
    /// How many were ever refused by this process.
    refusals: Cell<u64>,
    fan_out: usize,
    planted: Planted,
}

impl Summaries {
    pub(super) fn new(runtime: &Rc<Runtime>, layout: &Layout) -> Summaries {
        Summaries {
            runtime: Rc::clone(runtime),
            layout: layout.clone(),
            known: RefCell::default(),
            refused: RefCell::default(),
            refusals: Cell::new(0),
            fan_out: FAN_OUT,
            planted: Planted::NONE,
        }
    }

    pub(super) fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }

    pub(super) fn gather(&mut self, fan_out: usize) {
        assert!(fan_out > 1, "a summary of one table would be summarized for ever");
        self.fan_out = fan_out;
    }

    /// Takes up what the directory has; nothing where there is none.
    pub(super) async fn load(&self) -> Result<()> {
        let names = match self.runtime.list(self.layout.index()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        names.iter().filter_map(|name| parse_summary_name(name)).for_each(|cover| self.add(cover));
        Ok(())
    }

    /// Makes the directory, and removes from it what a dead owner left and what does not hold for these deltas. Only its
    /// successor may do this.
    pub(super) async fn clean(&self, deltas: &[DeltaRef]) -> Result<()> {
        self.runtime.create_directory(self.layout.index()).await?;
        remove_partials(&self.runtime, &self.layout.index(), |_| false).await?;
        for name in self.runtime.list(self.layout.index()).await? {
            match parse_summary_name(&name) {
                Some(cover) => self.add(cover),
                None => self.runtime.remove(self.layout.index().join(name)).await?,
            }
        }
        for cover in self.ended(deltas) {
            self.remove(&cover).await?;
        }
        Ok(())
    }

    fn add(&self, cover: Cover) {
        let mut known = self.known.borrow_mut();
        let covers = known.entry(cover.first).or_default();
        covers.push(cover);
        covers.sort_unstable_by_key(|cover| (cover.members, cover.level));
    }

    fn forget(&self, cover: &Cover) {
        let mut known = self.known.borrow_mut();
        if let Some(covers) = known.get_mut(&cover.first) {
            covers.retain(|other| other != cover);
            if covers.is_empty() {
                known.remove(&cover.first);
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.borrow().values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.borrow().is_empty()
    }

    /// How many this process found damaged.
    pub fn refusals(&self) -> u64 {
        self.refusals.get()
    }

    /// The stretches that cover deltas with these ids, oldest first.
    pub fn cover(&self, blobs: &[BlobId]) -> Vec<Stretch<Cover>> {
        let known = self.known.borrow();
        cover(blobs.len(), |start| {
            let covers = known.get(&blobs[start])?.iter().rev();
            let found = covers.copied().find(|cover| self.holds(cover, &blobs[start..]))?;
            Some((found.members as usize, found))
        })
    }

    /// Whether a summary is of the first of these deltas.
    fn holds(&self, cover: &Cover, blobs: &[BlobId]) -> bool {
        let members = blobs.get(..cover.members as usize);
        members.is_some_and(|members| self.planted.is(Bug::SummaryStale) || digest(members) == cover.digest)
    }

    /// Those that hold, if these are all deltas.
    pub(super) fn holding(&self, deltas: &[DeltaRef]) -> Vec<Cover> {
        let blobs = blobs_of(deltas);
        let known = self.known.borrow();
        let at =
            |start: usize| known.get(&blobs[start]).into_iter().flatten().map(move |cover| (start, cover));
        let holding = (0..blobs.len()).flat_map(at);
        holding
            .filter(|(start, cover)| self.holds(cover, &blobs[*start..]))
            .map(|(_, cover)| *cover)
            .collect()
    }

    /// Those that do not hold, if these are all deltas.
    fn ended(&self, deltas: &[DeltaRef]) -> Vec<Cover> {
        let holding: BTreeSet<Cover> = self.holding(deltas).into_iter().collect();
        let known = self.known.borrow();
        known.values().flatten().filter(|cover| !holding.contains(cover)).copied().collect()
    }

    /// Whether there is such a summary, as far as anybody knows.
    pub(super) fn is_known(&self, cover: &Cover) -> bool {
        self.known.borrow().get(&cover.first).is_some_and(|covers| covers.contains(cover))
    }

    /// Says that a summary cannot be used: its members' tables are, and its file goes.
    pub fn refuse(&self, cover: &Cover, error: &Error) {
        self.forget(cover);
        if self.refused.borrow_mut().insert(*cover) {
            self.refusals.set(self.refusals.get() + 1);
            tracing::warn!(%error, "a summary of deltas cannot be used: points open slower until it is built anew");
        }
    }

    async fn remove(&self, cover: &Cover) -> Result<()> {
        match self.runtime.remove(self.layout.summary(cover)).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.forget(cover);
        self.refused.borrow_mut().remove(cover);
        Ok(())
    }

    /// Opens the file of a summary.
    pub async fn open_file(&self, cover: &Cover) -> Result<File> {
        self.runtime.open(self.layout.summary(cover), OpenOptions::READ).await
    }
}

pub(super) fn blobs_of(deltas: &[DeltaRef]) -> Vec<BlobId> {
    deltas.iter().map(|delta| delta.blob).collect()
}

impl Vault {
    /// Opens a summary; whoever gets an error [refuses](Summaries::refuse) it.
    pub async fn open_summary(&self, cover: &Cover) -> Result<(SummaryReader, File)> {
        let group = self.manifest.state().group();
        let file = self.summaries.open_file(cover).await?;
        let reader = SummaryReader::open(&self.runtime, &file, cover, group, self.keys()).await?;
        Ok((reader, file))
    }

    /// Removes the files of summaries that were refused, and of those that do not hold any more once no view reads them.
    pub async fn end_summaries(&self) -> Result<()> {
        let ended = self.summaries.ended(&self.manifest.state().all_deltas());
        let unread = ended.into_iter().filter(|cover| !self.leases.holds_summary(cover));
        let refused: Vec<Cover> = self.summaries.refused.borrow().iter().copied().collect();
        for cover in refused.into_iter().chain(unread.collect::<Vec<_>>()) {
            self.summaries.remove(&cover).await?;
        }
        Ok(())
    }

    /// Builds the next summary that is wanted; whether there was one. `proceed` is asked now and then; its error ends it.
    /// Only in a retention turn: the deltas must stay.
    pub async fn build_summary(&self, proceed: &impl Fn() -> Result<()>) -> Result<bool> {
        let deltas = self.manifest.state().standing_deltas();
        let blobs = blobs_of(&deltas);
        let stretches = self.summaries.cover(&blobs);
        let weights: Vec<Weight> = stretches.iter().map(|stretch| weight(stretch, &deltas)).collect();
        let Some((chosen, level)) = next_summary(&weights, self.summaries.fan_out) else { return Ok(false) };
        let chosen = &stretches[chosen];
        let members = chosen[0].deltas.start..chosen[chosen.len() - 1].deltas.end;
        let cover = Cover::of(level, &blobs[members]);
        let Some(inputs) = self.open_inputs(chosen, &deltas).await? else { return Ok(true) };
        match self.put_summary(cover, &inputs, proceed).await {
            Ok(_) => self.summaries.add(cover),
            Err(Failed { input, error }) => match input.and_then(|input| chosen[input].summary) {
                Some(input) => self.summaries.refuse(&input, &error),
                None => return Err(error),
            },
        }
        Ok(true)
    }

    /// `None` if one of them is a summary that cannot be used.
    async fn open_inputs(
        &self,
        chosen: &[Stretch<Cover>],
        deltas: &[DeltaRef],
    ) -> Result<Option<Vec<Input>>> {
        let mut inputs = Vec::with_capacity(chosen.len());
        for stretch in chosen {
            inputs.push(match &stretch.summary {
                None => Input::Delta(self.open_delta(&deltas[stretch.deltas.start]).await?.into_tables()),
                Some(cover) => match self.open_summary(cover).await {
                    Ok((reader, file)) => Input::Summary(Box::new(reader), file),
                    Err(error) => {
                        self.summaries.refuse(cover, &error);
                        return Ok(None);
                    }
                },
            });
        }
        Ok(Some(inputs))
    }

    async fn put_summary(
        &self,
        cover: Cover,
        inputs: &[Input],
        proceed: &impl Fn() -> Result<()>,
    ) -> std::result::Result<Footer, Failed> {
        let identity = Identity {
            id: SummaryId(self.runtime.random_u128()),
            group: self.manifest.state().group(),
            cover,
            created: self.runtime.wall(),
        };
        let oldest_wins = self.planted.is(Bug::SummaryOldestWins);
        let mut file = PartialFile::create(&self.runtime, self.layout.summary(&cover)).await?;
        let built =
            summary::build(&self.runtime, &mut file, identity, inputs, self.keys(), oldest_wins, proceed);
        match built.await {
            Ok(footer) => {
                file.finish(true).await?;
                Ok(footer)
            }
            Err(failed) => {
                // Best effort: what stays is removed when the vault is opened next.
                let _ = file.abandon().await;
                Err(failed)
            }
        }
    }
}

fn weight(stretch: &Stretch<Cover>, deltas: &[DeltaRef]) -> Weight {
    match &stretch.summary {
        Some(cover) => Weight { level: cover.level, is_long: false },
        None => {
            let is_long = deltas[stretch.deltas.start].tables_bytes >= LONG_TABLES_BYTES;
            Weight { level: 0, is_long }
        }
    }
}

impl State {
    /// All deltas above the base, oldest first.
    pub fn all_deltas(&self) -> Vec<DeltaRef> {
        self.points().last().map_or_else(Vec::new, |newest| self.deltas_up_to(newest.marker))
    }

    /// The deltas that are not on their way into the base, oldest first.
    fn standing_deltas(&self) -> Vec<DeltaRef> {
        let mut deltas = self.all_deltas();
        if let Some((target, retired)) = self.base_advance() {
            deltas.drain(..retired.len() + usize::from(target.delta.is_some()));
        }
        deltas
    }
}
