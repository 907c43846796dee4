//! What administrators do beside the guests: they pause the group, and rotate keys. A pause keeps timed points from being
//! made, and lasts over deaths; a rotation that a death cut off is taken up, and what was sealed before opens under the new
//! key alone.

use std::rc::Rc;

use super::clients::News;
use super::site::{Outcome, Site};
use crate::error::Error;
use crate::format::record::PointRecord;
use crate::seal::{SiteKey, SiteKeys};
use crate::units::GroupNanos;
use crate::vault;

/// What the administrators know.
#[derive(Default)]
pub(super) struct Administration {
    /// Whether the group is paused, as far as that is for sure,
    is_paused: Option<bool>,
    /// and since when.
    paused_since: Option<GroupNanos>,
    /// Pauses and resumes without an answer.
    asked: usize,
    /// The group's keys are on their way under a new site key.
    is_rotating: bool,
    /// This process works at that.
    is_rewrapping: bool,
}

impl Administration {
    /// The process died: what was asked may have happened.
    pub(super) fn forget_pending(&mut self) {
        if self.asked > 0 {
            self.is_paused = None;
        }
        // A stop on its way made a point, and group time may go back to that of the newest, if somebody set the clock.
        (self.asked, self.is_rewrapping, self.paused_since) = (0, false, None);
    }

    /// Writes wait for what only a point gives back: a paused group makes one as well.
    pub(super) fn excuse_points(&mut self) {
        self.paused_since = None;
    }

    /// Since when the group is paused, if that is for sure.
    pub(super) fn paused_since(&self) -> Option<GroupNanos> {
        self.paused_since
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

    /// After an opening: what was paused is paused, and the other way round.
    pub(super) fn verify_pause(&mut self) -> Outcome {
        let Some(group) = self.process.group() else { return Ok(()) };
        let found = group.vault().manifest().state().is_paused();
        let administration = &mut self.administration;
        match administration.is_paused {
            Some(expected) if expected != found => {
                return Err(format!("the group is paused: {found}; it was asked for {expected}"));
            }
            _ => {}
        }
        administration.is_paused = Some(found);
        Ok(())
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

/// No timed point is of a time at which the group was paused.
pub(super) fn check_pause(points: &[PointRecord], paused_since: Option<GroupNanos>) -> Outcome {
    let Some(since) = paused_since else { return Ok(()) };
    let mut made = points.iter().rev().take_while(|point| point.group_time > since);
    match made.find(|point| point.label.is_empty()) {
        Some(point) => Err(format!("point {} was made while the group was paused", point.id)),
        None => Ok(()),
    }
}

fn refused(error: &Error) -> String {
    format!("administration failed without a fault: {error}")
}
