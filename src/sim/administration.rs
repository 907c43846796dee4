//! What administrators do beside the guests: they pause the group, and rotate keys. A pause keeps timed points from being
//! made, and lasts over deaths; a rotation that a death cut off is taken up, and what was sealed before opens under the new
//! key alone. Each opening seals under the newest of the group's keys.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::clients::News;
use super::rot::is_segment;
use super::site::{Outcome, Site};
use crate::error::Error;
use crate::format::record::PointRecord;
use crate::journal::scan::{Checks, scan_segment};
use crate::journal::segments::SegmentIndex;
use crate::seal::{Generation, SiteKey, SiteKeys};
use crate::units::{GroupNanos, PointId};
use crate::vault;

/// What the administrators know.
#[derive(Default)]
pub(super) struct Administration {
    /// Whether the group is paused, as far as that is for sure,
    is_paused: Option<bool>,
    /// and since when.
    paused_since: Option<GroupNanos>,
    /// Points that were made meanwhile because journal or maps were full.
    forced: BTreeSet<PointId>,
    /// Pauses and resumes without an answer.
    asked: usize,
    /// The group's keys are on their way under a new site key.
    is_rotating: bool,
    /// This process works at that.
    is_rewrapping: bool,
    /// The next generation of the group's keys is being made,
    is_adding: bool,
    /// and so many were, besides the first, for sure:
    added: u32,
    /// the process was started when that was so.
    added_before: u32,
}

impl Administration {
    /// The process died: what was asked may have happened.
    pub(super) fn forget_pending(&mut self) {
        if self.asked > 0 {
            self.is_paused = None;
        }
        // A stop on its way made a point, and group time may go back to that of the newest, if somebody set the clock.
        (self.asked, self.is_rewrapping, self.paused_since) = (0, false, None);
        (self.is_adding, self.added_before) = (false, self.added);
    }

    /// Writes wait for what only a point gives back: a paused group makes these as well.
    pub(super) fn excuse(&mut self, points: &BTreeSet<PointId>) {
        self.forced.extend(points);
    }

    /// No timed point is of a time at which the group was paused for sure.
    pub(super) fn check_pause(&self, points: &[PointRecord]) -> Outcome {
        let Some(since) = self.paused_since else { return Ok(()) };
        let mut made = points.iter().rev().take_while(|point| point.group_time > since);
        match made.find(|point| point.label.is_empty() && !self.forced.contains(&point.id)) {
            Some(point) => Err(format!("point {} was made while the group was paused", point.id)),
            None => Ok(()),
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.asked == 0 && !self.is_rewrapping
    }
}

impl Site {
    /// An administrator does something.
    pub(super) fn administrate(&mut self) {
        if self.plan.seals && self.random.chance(1, 2) {
            self.rotate_keys();
        } else {
            let pauses = self.administration.is_paused != Some(true);
            self.set_paused(pauses);
        }
    }

    fn set_paused(&mut self, pauses: bool) {
        self.tracer
            .note(|| if pauses { "pause".to_owned() } else { "resume points and retention".to_owned() });
        self.administration.asked += 1;
        (self.administration.is_paused, self.administration.paused_since) = (None, None);
        self.administration.forced.clear();
        let callback = self.callback(move |result| News::Paused(pauses, result));
        let Some(group) = self.process.group() else { return };
        group.set_paused(pauses, callback);
    }

    /// Wraps the group's keys under a new site key; takes up what was begun before.
    fn rotate_keys(&mut self) {
        if self.administration.is_rewrapping {
            return;
        }
        let begins = !self.administration.is_rotating;
        if begins {
            let key = SiteKey::drawn([self.random.next(), self.random.next()].map(u128::from));
            self.tracer.note(|| format!("rotate to site key {}", key.id()));
            let keys = std::iter::once(key).chain(self.site_keys.all().iter().cloned()).collect();
            self.use_site_keys(keys);
        }
        let adds_generation = begins && self.random.chance(1, 2);
        (self.administration.is_rotating, self.administration.is_rewrapping) = (true, true);
        self.administration.is_adding = adds_generation;
        let (mailbox, site_keys) = (Rc::clone(&self.news), self.site_keys.clone());
        let runtime = Rc::clone(self.process.runtime());
        let Some(group) = self.process.group() else { return };
        let layout = group.vault().layout().clone();
        runtime.clone().spawn(async move {
            let rewrapped = vault::rewrap_keys(&runtime, &layout, &site_keys, adds_generation).await;
            mailbox.borrow_mut().push_back(News::Rewrapped(rewrapped.map(drop)));
        });
    }

    fn use_site_keys(&mut self, keys: Vec<SiteKey>) {
        self.site_keys = SiteKeys::new(keys).watched_by(self.witness.clone()).with_planted(self.planted);
    }

    /// What came of it.
    pub(super) fn take_administration_news(&mut self, news: News) -> Outcome {
        let failed = match news {
            News::Paused(pauses, result) => {
                self.administration.asked -= 1;
                let sure = (self.administration.asked == 0 && result.is_ok()).then_some(pauses);
                let now = self.process.group().map(|group| group.group_time());
                self.administration.is_paused = sure;
                self.administration.paused_since = now.filter(|_| sure == Some(true));
                self.report.pauses += u64::from(sure == Some(true));
                result.err()
            }
            News::Rewrapped(result) => {
                self.administration.is_rewrapping = false;
                if result.is_ok() {
                    self.tracer.note(|| "the keys are wrapped anew".to_owned());
                    self.administration.is_rotating = false;
                    self.administration.added += u32::from(self.administration.is_adding);
                    let current = self.site_keys.current().cloned();
                    self.use_site_keys(current.into_iter().collect());
                    self.report.rotations += 1;
                }
                result.err()
            }
            _ => unreachable!("not about administration"),
        };
        match failed {
            Some(error) if !self.is_faulted => Err(refused(&error)),
            _ => Ok(()),
        }
    }

    /// After an opening: what was paused is paused, and the other way round; and it seals under the newest key.
    pub(super) fn verify_administration(&mut self) -> Outcome {
        let Some(group) = self.process.group() else { return Ok(()) };
        let (found, since) = (group.vault().manifest().state().is_paused(), group.group_time());
        let newest = group.vault().keys().newest();
        self.check_generation(newest)?;
        let administration = &mut self.administration;
        match administration.is_paused {
            Some(expected) if expected != found => {
                return Err(format!("the group is paused: {found}; it was asked for {expected}"));
            }
            _ => {}
        }
        if administration.asked == 0 {
            administration.is_paused = Some(found);
            // Whatever a dead process made is of an earlier time.
            let since = administration.paused_since.unwrap_or(since);
            administration.paused_since = found.then_some(since);
        }
        Ok(())
    }

    /// The newest incarnation of the journal seals under the newest of the group's keys, and none is missing.
    fn check_generation(&self, newest: Option<Generation>) -> Outcome {
        let Some(newest) = newest else { return Ok(()) };
        if newest.0 <= self.administration.added_before {
            return Err(format!(
                "the group's newest key is {newest}, and {} were added",
                self.administration.added_before
            ));
        }
        let journal = self.group_plan().journal();
        let segments =
            self.disk.files().into_iter().filter(|path| path.starts_with(&journal) && is_segment(path));
        let frames = segments
            .filter_map(|path| self.disk.read_file(&path))
            .flat_map(|bytes| scan_segment(SegmentIndex(0), &bytes, Checks::ALL).frames);
        let last = frames.filter(|found| found.opening.is_some()).max_by_key(|found| found.frame.first_lsn);
        let sealed = last.and_then(|last| last.frame.seal).map(|seal| seal.generation);
        match sealed {
            Some(generation) if generation != newest => {
                Err(format!("the journal is sealed under key {generation}, and the newest is {newest}"))
            }
            _ => Ok(()),
        }
    }

    /// The end: nothing stays paused, and what was begun comes to its end.
    pub(super) fn settle_administration(&mut self) -> Outcome {
        self.set_paused(false);
        if self.administration.is_rotating {
            self.rotate_keys();
        }
        self.drive("what administrators asked for", |site| site.administration.is_idle())?;
        if self.administration.is_rotating {
            return Err("a rotation of keys never comes to its end".to_owned());
        }
        Ok(())
    }
}

fn refused(error: &Error) -> String {
    format!("administration failed without a fault: {error}")
}
