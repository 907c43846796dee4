//! Telling whoever waits for an answer what it waits for: a line on standard error for each reason that `status` gives
//! meanwhile. The gateway's answer alone decides; what `status` says of the group is no part of it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use super::client::Client;
use super::failure::Failure;
use super::output::complain;
use crate::control::model::{GroupStatus, Reason, Status};
use crate::control::name::Name;

/// What is answered within this needs no explanation; then `status` is asked so often.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for `asked`, and says what a group waits for meanwhile.
pub async fn told<T>(
    client: &Client,
    group: &Name,
    asked: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut asked = pin!(asked);
    let mut said = None;
    loop {
        let looking = async {
            tokio::time::sleep(PATIENCE).await;
            client.get::<Status>("/v1/status").await
        };
        let status = tokio::select! {
            answer = &mut asked => return answer,
            status = looking => status,
        };
        // Where even that is not answered there is nothing to say.
        let reason = status.ok().and_then(|status| reason_of(status, group));
        if let Some(Reason { code, detail, mend }) = reason
            && said.replace(code) != Some(code)
        {
            complain(&format!("{group} waits: {detail}: {mend}\n"));
        }
    }
}

fn reason_of(status: Status, group: &Name) -> Option<Reason> {
    let named =
        |found: &GroupStatus| found.group.name == *group || found.group.id.to_string() == group.as_str();
    status.groups.into_iter().find(named)?.state.reason
}
