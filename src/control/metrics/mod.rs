//! `GET /metrics`: how the gateway and its groups stand, in the OpenMetrics text format, which Prometheus scrapes. What each metric
//! means: docs/metrics.md.
//!
//! All of it is made of one [`Status`], which is asked for at each scrape: nothing is counted or kept here, so that two gateways in one
//! process would not see each other's numbers, and what is gone is not served any more.
//!
//! Invariant: there are as many series as groups, disks and kinds of events ask for; no label's value comes from a guest.

mod families;
mod gateway;
mod groups;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::backend::Backend;
use super::model::Status;
use super::server::ApiConnections;
use crate::error::Result;
use families::Families;

/// Where it is served.
pub const PATH: &str = "/metrics";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The answer to a scrape; `connections` are those of the API.
pub(super) async fn scrape(backend: &dyn Backend, connections: &ApiConnections) -> Result<Response> {
    let mut status = backend.status().await?;
    connections.describe(&mut status);
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text(status)).into_response())
}

/// Metrics and nothing else, for a socket of their own.
pub fn router(backend: Arc<dyn Backend>, connections: Arc<ApiConnections>) -> Router {
    let answer = move || async move {
        let scraped = scrape(&*backend, &connections).await;
        scraped
            .unwrap_or_else(|error| (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response())
    };
    let only = || async { (StatusCode::NOT_FOUND, format!("only {PATH} is served here\n")) };
    Router::new().route(PATH, get(answer)).fallback(only)
}

/// All metrics, as text.
fn text(status: Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .expect("a string takes what is written to it");
    text
}

#[derive(Debug)]
struct Scrape(Status);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Scrape(status) = self;
        let mut families = Families(encoder);
        gateway::write(&mut families, status)?;
        groups::write(&mut families, &status.groups)
    }
}
