//! The HTTP/JSON API: routes under `/v1`.
//!
//! [`routes`] has every route with what it does; what it takes and answers is read off its handler's type, and all of that is the OpenAPI
//! text that `GET /openapi.json` gives: docs/api/openapi.json. Long work is a [`Job`], and answered with one.
//!
//! `{group}` is a group's name or its id. Errors are [`ApiError`] with a status that follows from the kind. Who may ask what is [`admission`]'s. Bodies are JSON whatever the content type says, so that `curl -d` needs no header.

mod admission;
mod document;
mod parts;
mod recording;
mod routes;

use std::path::Path as FilePath;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::Deserialize;

use self::parts::{Answered, Body, Parameters, Refused, Segments};
use self::routes::{Accepted, Created, Either, Gone, Routes, Scraped, delete, get, post, put};
use super::audit::AuditTrail;
use super::backend::Backend;
use super::jobs::Jobs;
use super::metrics;
use super::model::{
    AdoptRequest, ApiError, AuditQuery, AuditRecord, Disk, DiskRequest, DiskSource, Event, EventPage,
    EventQuery, Group, GroupReport, GroupRequest, GroupVerifyRequest, HookStatus, Job, JobKind, JobResult,
    KeyImport, KeyRotation, KeyText, Keys, Point, PointCreated, PointRequest, PointSelection, PolicyForecast,
    PolicyRequest, RepairRequest, ReportQuery, ResizeRequest, RestoreRequest, ResumeRequest, Resumed, Status,
    Test, TestRequest, Token, TokenCreated, TokenRequest, VerifyRequest,
};
use super::name::{DiskPath, Name};
use super::server::ApiConnections;
use super::tokens::Tokens;
use super::turned_away::TurnedAwayCount;
use crate::block::TestId;
use crate::byte_size::ByteSize;
use crate::env::Environment;
use crate::error::{Error, ErrorKind};
use crate::throttle::ByteRate;

/// Longest that one request waits for a job.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Most bytes of a request's body: names, numbers, a key.
const BODY_BYTES_MAX: usize = 256 << 10;

/// What every handler needs.
#[derive(Clone)]
struct Api {
    backend: Arc<dyn Backend>,
    jobs: Jobs,
    trail: AuditTrail,
    connections: Arc<ApiConnections>,
    tokens: Arc<Tokens>,
    /// Requests that were not let in.
    refused: Arc<TurnedAwayCount>,
}

/// The API's routes over a site, for clients that are counted in `connections`.
pub fn router(
    backend: Arc<dyn Backend>,
    connections: Arc<ApiConnections>,
    environment: Arc<dyn Environment + Send + Sync>,
    tokens: Arc<Tokens>,
) -> Router {
    let catalogue = backend.catalogue();
    let trail = AuditTrail::new(catalogue.clone(), Arc::clone(&environment));
    let jobs = Jobs::new(environment, catalogue);
    let api = Api { backend, jobs, trail, connections, tokens, refused: Arc::default() };
    let admission = axum::middleware::from_fn_with_state(api.clone(), admission::admit);
    let recording = axum::middleware::from_fn_with_state(api.clone(), recording::record);
    routes()
        .router()
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(recording)
        // The outermost: it comes first.
        .layer(admission)
        .with_state(api)
}

/// Every route, described.
fn routes() -> Routes {
    Routes::new(document::DEFINITIONS)
        .at("/openapi.json", [get(openapi, "This text")])
        .at(metrics::PATH, [get(scrape, "Metrics, for Prometheus")])
        .at("/v1/status", [get(status, "How the gateway and its groups stand")])
        .at("/v1/groups", [
            get(groups, "Every group, by name, with its disks"),
            post(group_create, "Creates an empty group"),
        ])
        .at("/v1/groups/{group}", [
            get(group, "One group"),
            delete(group_remove, "Removes a group with its disks, journal, points and test failovers; its clients are disconnected"),
        ])
        .at("/v1/groups/{group}/policy", [put(policy_set, "Changes a group's policy; what is not given stays")])
        .at("/v1/groups/{group}/policy/dry-run", [
            post(policy_dry_run, "What a policy would do to a group's points now; changes nothing"),
        ])
        .at("/v1/groups/{group}/resume", [
            post(group_resume, "After a pause or a mend: makes points again, opens a group that could not be opened, clears what is latched"),
        ])
        .at("/v1/groups/{group}/pause", [
            post(group_pause, "Makes no timed points, and lets none go, until the group is resumed; guests go on"),
        ])
        .at("/v1/events", [
            get(events, "What happened: a list, newest first; with `after` or `wait_ms` a page of what came after an event, oldest first"),
        ])
        .at("/v1/audit", [get(audit_trail, "Who asked for what, and how it went, newest first")])
        .at("/v1/hooks", [get(hooks, "Who is told of events, and how each stands since the gateway was started")])
        .at("/v1/hooks/{name}/test", [post(hook_test, "Has a hook told an event `hook_test`, once; fails if that does")])
        .at("/v1/disks", [get(disks, "Every disk, or those of one group")])
        .at("/v1/groups/{group}/disks", [
            post(disk_create, "Creates a disk of zeros, which is exported when this answers; or begins an import"),
        ])
        .at("/v1/groups/{group}/disks/{disk}", [delete(disk_remove, "Removes a disk; points made before keep it")])
        .at("/v1/groups/{group}/disks/{disk}/resize", [
            post(disk_resize, "Gives a disk another size; clients see it when they connect anew"),
        ])
        .at("/v1/groups/{group}/points", [
            get(points, "Every recovery point of a group, oldest first"),
            post(point_create, "Makes a point that holds all that was acknowledged before, and nothing issued after the answer"),
        ])
        .at("/v1/groups/{group}/points/hold", [post(point_hold, "Keeps a point until it is released, whatever the policy says")])
        .at("/v1/groups/{group}/points/release", [post(point_release, "Leaves a held point to the policy again")])
        .at("/v1/groups/{group}/points/delete", [
            post(point_delete, "Deletes a point; not the newest, a held one, or one in use"),
        ])
        .at("/v1/tests", [get(tests, "Every test failover, or those of one group")])
        .at("/v1/groups/{group}/tests", [
            post(test_start, "Serves a point beside ongoing protection: a test failover"),
            delete(test_cleanup_all, "Ends all test failovers of a group, and throws away what was written to them; says which"),
        ])
        .at("/v1/groups/{group}/tests/{number}", [
            delete(test_cleanup, "Ends a test failover, and throws away what was written to it; says which"),
        ])
        .at("/v1/groups/{group}/report", [get(report, "How a group fared: churn, points, history and space over time")])
        .at("/v1/groups/{group}/restore", [post(restore, "Writes a point's disks to raw files on the gateway's machine")])
        .at("/v1/groups/{group}/verify", [
            post(group_verify, "Compares what a group serves with the newest point in its vault, beside its guests"),
        ])
        .at("/v1/groups/{group}/repair", [
            post(vault_repair, "Gives up what is lost in a group's vault, or only says what would go"),
        ])
        .at("/v1/vault/verify", [post(vault_verify, "Reads every stored byte of one group's vault, or of all, and checks it")])
        .at("/v1/vault/adopt", [post(vault_adopt, "Makes a group of a vault whose gateway is gone")])
        .at("/v1/keys", [get(keys, "The site key's id, and what each group is sealed under; never a key")])
        .at("/v1/keys/rotate", [post(key_rotate, "Makes a new site key, and wraps the keys of all groups under it")])
        .at("/v1/keys/export", [post(key_export, "The site key itself")])
        .at("/v1/keys/import", [post(key_import, "Takes a site key that was exported")])
        .at("/v1/tokens", [
            get(tokens, "Every token of the API over TCP, by name"),
            post(token_create, "Makes a token, and tells its text this once"),
        ])
        .at("/v1/tokens/{name}", [delete(token_revoke, "Has a token be good for nothing any more")])
        .at("/v1/jobs", [get(jobs, "Every job: what is at work, and what ended, also before a restart")])
        .at("/v1/jobs/{id}", [
            get(job, "One job; with `wait_ms` once it has ended, or after so long"),
            delete(job_cancel, "Asks a job to give up; it ends soon, and what it had made goes"),
        ])
}

/// The OpenAPI text.
pub fn openapi_document() -> serde_json::Value {
    document::of(routes())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfGroup {
    /// Only this group's.
    group: Option<Name>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// How long to wait for its end, if it is at work: 30 s at most.
    #[serde(default)]
    wait_ms: u64,
}

async fn no_such_route(request: Request) -> Refused {
    Refused(Error::new(ErrorKind::NotFound, format!("no route {}", request.uri().path())))
}

async fn no_such_method(request: Request) -> Response {
    let error =
        Error::new(ErrorKind::Unsupported, format!("{} has no {}", request.uri().path(), request.method()));
    (StatusCode::METHOD_NOT_ALLOWED, Json(ApiError::from(&error))).into_response()
}

async fn status(State(api): State<Api>) -> Answered<Json<Status>> {
    let mut status = api.backend.status().await?;
    api.connections.describe(&mut status);
    Ok(Json(status))
}

async fn openapi() -> Answered<Json<&'static serde_json::Value>> {
    static DOCUMENT: OnceLock<serde_json::Value> = OnceLock::new();
    Ok(Json(DOCUMENT.get_or_init(openapi_document)))
}

async fn scrape(State(api): State<Api>) -> Answered<Scraped> {
    Ok(Scraped(metrics::scrape(&*api.backend, &api.connections).await?))
}

async fn groups(State(api): State<Api>) -> Answered<Json<Vec<Group>>> {
    Ok(Json(api.backend.groups().await?))
}

async fn group_create(State(api): State<Api>, Body(request): Body<GroupRequest>) -> Answered<Created<Group>> {
    Ok(Created(api.backend.group_create(request).await?))
}

async fn group(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<Json<Group>> {
    Ok(Json(api.backend.group(group).await?))
}

async fn group_remove(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<Gone> {
    api.backend.group_remove(group).await?;
    Ok(Gone)
}

async fn group_resume(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<ResumeRequest>,
) -> Answered<Json<Resumed>> {
    Ok(Json(api.backend.group_resume(group, request).await?))
}

async fn group_pause(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<Json<Group>> {
    Ok(Json(api.backend.group_pause(group).await?))
}

async fn events(
    State(api): State<Api>,
    Parameters(query): Parameters<EventQuery>,
) -> Answered<Either<Json<Vec<Event>>, Json<EventPage>>> {
    if query.is_following() {
        let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(WAIT_MAX);
        return Ok(Either::Other(Json(api.backend.events_after(query, wait).await?)));
    }
    Ok(Either::One(Json(api.backend.events(query).await?)))
}

async fn audit_trail(
    State(api): State<Api>,
    Parameters(query): Parameters<AuditQuery>,
) -> Answered<Json<Vec<AuditRecord>>> {
    Ok(Json(api.trail.newest(query.limit.unwrap_or(AuditQuery::LIMIT_DEFAULT)).await?))
}

async fn hooks(State(api): State<Api>) -> Answered<Json<Vec<HookStatus>>> {
    Ok(Json(api.backend.hooks().await?))
}

async fn hook_test(State(api): State<Api>, Segments(name): Segments<Name>) -> Answered<Json<HookStatus>> {
    Ok(Json(api.backend.hook_test(name).await?))
}

async fn policy_set(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(policy): Body<PolicyRequest>,
) -> Answered<Json<Group>> {
    Ok(Json(api.backend.policy_set(group, policy.checked()?).await?))
}

async fn policy_dry_run(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(policy): Body<PolicyRequest>,
) -> Answered<Json<PolicyForecast>> {
    Ok(Json(api.backend.policy_dry_run(group, policy.checked()?).await?))
}

async fn point_hold(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<Json<Point>> {
    Ok(Json(api.backend.point_hold(group, selection.point).await?))
}

async fn point_release(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<Json<Point>> {
    Ok(Json(api.backend.point_release(group, selection.point).await?))
}

async fn point_delete(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<Json<Point>> {
    Ok(Json(api.backend.point_delete(group, selection.point).await?))
}

async fn disks(State(api): State<Api>, Parameters(of): Parameters<OfGroup>) -> Answered<Json<Vec<Disk>>> {
    let groups = match of.group {
        Some(group) => vec![api.backend.group(group).await?],
        None => api.backend.groups().await?,
    };
    Ok(Json(groups.into_iter().filter_map(|group| group.disks).flatten().collect::<Vec<Disk>>()))
}

async fn disk_create(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<DiskRequest>,
) -> Answered<Either<Created<Disk>, Accepted<Job>>> {
    let path = DiskPath { group, disk: request.name };
    match request.source {
        DiskSource::SizeBytes(bytes) => {
            let disk = api.backend.disk_create(path, ByteSize(bytes).sectors()?).await?;
            Ok(Either::One(Created(disk)))
        }
        DiskSource::Import(file) => {
            absolute("import", &file)?;
            let what = format!("{path} from {}", file.display());
            let backend = Arc::clone(&api.backend);
            let job = api.jobs.start(JobKind::Import, what, |progress| async move {
                backend.disk_import(path, file, progress).await.map(JobResult::Disk)
            })?;
            Ok(Either::Other(Accepted(job)))
        }
    }
}

async fn disk_resize(
    State(api): State<Api>,
    Segments((group, disk)): Segments<(Name, Name)>,
    Body(request): Body<ResizeRequest>,
) -> Answered<Json<Disk>> {
    let size = ByteSize(request.size_bytes).sectors()?;
    Ok(Json(api.backend.disk_resize(DiskPath { group, disk }, size, request.lose_tail).await?))
}

async fn disk_remove(
    State(api): State<Api>,
    Segments((group, disk)): Segments<(Name, Name)>,
) -> Answered<Gone> {
    api.backend.disk_remove(DiskPath { group, disk }).await?;
    Ok(Gone)
}

async fn report(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Parameters(query): Parameters<ReportQuery>,
) -> Answered<Json<GroupReport>> {
    Ok(Json(api.backend.report(group, query).await?))
}

async fn points(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<Json<Vec<Point>>> {
    Ok(Json(api.backend.points(group).await?))
}

async fn point_create(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<PointRequest>,
) -> Answered<Created<PointCreated>> {
    Ok(Created(api.backend.point_create(group, request.label).await?))
}

async fn tests(State(api): State<Api>, Parameters(of): Parameters<OfGroup>) -> Answered<Json<Vec<Test>>> {
    Ok(Json(api.backend.tests(of.group).await?))
}

async fn test_start(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<TestRequest>,
) -> Answered<Created<Test>> {
    Ok(Created(api.backend.test_start(group, request).await?))
}

async fn test_cleanup(
    State(api): State<Api>,
    Segments((group, number)): Segments<(Name, u64)>,
) -> Answered<Json<Vec<TestId>>> {
    Ok(Json(api.backend.test_cleanup(group, Some(TestId(number))).await?))
}

async fn test_cleanup_all(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
) -> Answered<Json<Vec<TestId>>> {
    Ok(Json(api.backend.test_cleanup(group, None).await?))
}

async fn restore(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<RestoreRequest>,
) -> Answered<Accepted<Job>> {
    absolute("directory", &request.directory)?;
    let what = format!("{group} at {} to {}", request.point, request.directory.display());
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Restore, what, |progress| async move {
        backend.restore(group, request, progress).await.map(JobResult::Restored)
    })?;
    Ok(Accepted(job))
}

async fn vault_verify(State(api): State<Api>, Body(request): Body<VerifyRequest>) -> Answered<Accepted<Job>> {
    let what = request.group.as_ref().map_or("every group".to_owned(), Name::to_string);
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Verify, what, |progress| async move {
        let rate = request.rate_bytes_per_s.map(ByteRate);
        backend.vault_verify(request.group, rate, progress).await.map(JobResult::Verified)
    })?;
    Ok(Accepted(job))
}

async fn group_verify(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<GroupVerifyRequest>,
) -> Answered<Accepted<Job>> {
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Verify, group.to_string(), |progress| async move {
        let rate = request.rate_bytes_per_s.map(ByteRate);
        backend.group_verify(group, rate, progress).await.map(JobResult::GroupVerified)
    })?;
    Ok(Accepted(job))
}

async fn vault_repair(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<RepairRequest>,
) -> Answered<Accepted<Job>> {
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Repair, group.to_string(), |progress| async move {
        backend.vault_repair(group, request, progress).await.map(JobResult::Repaired)
    })?;
    Ok(Accepted(job))
}

async fn vault_adopt(State(api): State<Api>, Body(request): Body<AdoptRequest>) -> Answered<Accepted<Job>> {
    absolute("directory", &request.directory)?;
    let what = request.directory.display().to_string();
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Adopt, what, |progress| async move {
        backend.vault_adopt(request, progress).await.map(|adopted| JobResult::Adopted(Box::new(adopted)))
    })?;
    Ok(Accepted(job))
}

async fn keys(State(api): State<Api>) -> Answered<Json<Keys>> {
    Ok(Json(api.backend.keys().await?))
}

async fn key_rotate(State(api): State<Api>, Body(request): Body<KeyRotation>) -> Answered<Json<Keys>> {
    Ok(Json(api.backend.key_rotate(request).await?))
}

async fn key_export(State(api): State<Api>) -> Answered<Json<KeyText>> {
    Ok(Json(api.backend.key_export().await?))
}

async fn key_import(State(api): State<Api>, Body(request): Body<KeyImport>) -> Answered<Json<Keys>> {
    Ok(Json(api.backend.key_import(request).await?))
}

async fn tokens(State(api): State<Api>) -> Answered<Json<Vec<Token>>> {
    Ok(Json(in_background(move || api.tokens.list()).await?))
}

async fn token_create(
    State(api): State<Api>,
    Body(request): Body<TokenRequest>,
) -> Answered<Created<TokenCreated>> {
    Ok(Created(in_background(move || api.tokens.create(&request)).await?))
}

async fn token_revoke(State(api): State<Api>, Segments(name): Segments<Name>) -> Answered<Json<Token>> {
    Ok(Json(in_background(move || api.tokens.revoke(&name)).await?))
}

/// Work that waits for a disk.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|_| Err(Error::new(ErrorKind::Shutdown, "the gateway ends")))
}

async fn jobs(State(api): State<Api>) -> Answered<Json<Vec<Job>>> {
    Ok(Json(api.jobs.list()))
}

async fn job(
    State(api): State<Api>,
    Segments(id): Segments<String>,
    Parameters(wait): Parameters<Wait>,
) -> Answered<Json<Job>> {
    Ok(Json(api.jobs.get(&id, Duration::from_millis(wait.wait_ms).min(WAIT_MAX)).await?))
}

async fn job_cancel(State(api): State<Api>, Segments(id): Segments<String>) -> Answered<Json<Job>> {
    Ok(Json(api.jobs.cancel(&id)?))
}

/// The gateway has another working directory than whoever asks.
fn absolute(field: &str, path: &FilePath) -> Result<(), Error> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Error::invalid(format!("{field} = `{}`: a relative path: write an absolute one", path.display())))
}
