//! Verbs about what is kept: the policy, and points that are held, released and deleted.

use std::sync::Arc;
use std::time::Duration;

use super::gateway::{Answering, Inner, cached};
use super::member::Member;
use crate::control::model::{Group, Point, Policy, PolicyForecast, PolicyRequest};
use crate::control::name::Name;
use crate::control::selector::{PointSelector, resolve};
use crate::error::Result;
use crate::vault::Forecast;

/// What can be done about one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointVerb {
    Hold,
    Release,
    Delete,
}

impl Inner {
    pub(super) async fn policy_set(self: &Arc<Self>, group: Name, policy: PolicyRequest) -> Result<Group> {
        let PolicyRequest { interval_ms, retain } = policy.checked()?;
        let (group, id) = self.find_open(&group)?;
        let interval = interval_ms.map(Duration::from_millis);
        self.ask(id, move |member: &mut Member, answer: Answering<()>| match member.group() {
            Ok(group) => group.set_policy(interval, retain.map(|retain| retain.0), answer.callback()),
            Err(error) => answer.send(Err(error)),
        })
        .await?;
        if let Some(interval_ms) = interval_ms {
            let policy = Policy { interval_ms };
            cached(self.catalogue.as_ref().map(|catalogue| catalogue.put_policy(id, policy))).await;
        }
        self.group_model(&group, &self.find(&group)?.1).await
    }

    pub(super) async fn policy_dry_run(&self, group: Name, policy: PolicyRequest) -> Result<PolicyForecast> {
        let (_, id) = self.find_open(&group)?;
        let Forecast { points, bytes_max } = self
            .ask(id, move |member: &mut Member, answer: Answering<Forecast>| {
                answer.send(member.group().map(|group| {
                    let ladder = policy.retain.map(|retain| retain.0);
                    ladder.map_or_else(Forecast::default, |ladder| group.forecast(&ladder))
                }));
            })
            .await?;
        Ok(PolicyForecast { points, bytes_max })
    }

    pub(super) async fn point_change(
        &self,
        group: Name,
        selector: PointSelector,
        verb: PointVerb,
    ) -> Result<Point> {
        let (_, id) = self.find_open(&group)?;
        let points = self.points_of(id).await?;
        let point = resolve(&selector, &points, self.environment.wall())?.clone();
        let meant = point.id;
        self.ask(id, move |member: &mut Member, answer: Answering<()>| match member.group() {
            Ok(group) => match verb {
                PointVerb::Hold => group.hold_point(meant, answer.callback()),
                PointVerb::Release => group.release_point(meant, answer.callback()),
                PointVerb::Delete => group.delete_point(meant, answer.callback()),
            },
            Err(error) => answer.send(Err(error)),
        })
        .await?;
        Ok(Point { held: verb == PointVerb::Hold, ..point })
    }
}
