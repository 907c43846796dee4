//! The HTTP/JSON API: axum on a unix socket, routes under `/v1`.
//!
//! | route | answer |
//! |---|---|
//! | `GET /metrics` | metrics, as text: [`metrics`] |
//! | `GET /v1/status` | [`Status`](super::model::Status) |
//! | `GET, POST /v1/groups` · `GET, DELETE /v1/groups/{group}` | [`Group`](super::model::Group) |
//! | `PUT /v1/groups/{group}/policy` | [`Group`](super::model::Group) |
//! | `POST /v1/groups/{group}/policy/dry-run` | [`PolicyForecast`](super::model::PolicyForecast) |
//! | `POST /v1/groups/{group}/points/hold`, `…/release`, `…/delete` | [`Point`](super::model::Point) |
//! | `POST /v1/groups/{group}/resume` [`ResumeRequest`](super::model::ResumeRequest) | [`Resumed`](super::model::Resumed) |
//! | `POST /v1/groups/{group}/pause` | [`Group`](super::model::Group) |
//! | `GET /v1/events?group=…&severity=…&since=…&limit=…` | [`Event`](super::model::Event)s, newest first |
//! | `GET /v1/events?after=ID&catalogue=…&wait_ms=…` | [`EventPage`](super::model::EventPage): what came after, oldest first; waits until there is some |
//! | `GET /v1/audit?limit=…` | [`AuditRecord`](super::model::AuditRecord)s, newest first |
//! | `GET /v1/hooks` · `POST /v1/hooks/{name}/test` | [`HookStatus`](super::model::HookStatus) |
//! | `GET /v1/disks?group=` | a list of [`Disk`] |
//! | `POST /v1/groups/{group}/disks` · `DELETE /v1/groups/{group}/disks/{disk}` | [`Disk`], or a [`Job`](super::model::Job) for an import |
//! | `POST /v1/groups/{group}/disks/{disk}/resize` | [`Disk`] |
//! | `GET, POST /v1/groups/{group}/points` | [`Point`](super::model::Point) |
//! | `GET /v1/tests?group=` · `POST, DELETE /v1/groups/{group}/tests` · `DELETE /v1/groups/{group}/tests/{number}` | [`Test`](super::model::Test), numbers |
//! | `POST /v1/groups/{group}/restore` · `POST /v1/groups/{group}/verify` · `POST /v1/vault/verify` · `POST /v1/vault/adopt` | [`Job`](super::model::Job) |
//! | `GET /v1/keys` · `POST /v1/keys/rotate`, `…/import` | [`Keys`](super::model::Keys) |
//! | `POST /v1/keys/export` | [`KeyText`](super::model::KeyText): the site key itself |
//! | `GET /v1/jobs` · `GET /v1/jobs/{id}?wait_ms=` | [`Job`](super::model::Job); waits until it ends, so long |
//! | `DELETE /v1/jobs/{id}` | [`Job`](super::model::Job), which is asked to give up and ends soon |
//!
//! `{group}` is a group's name or its id. Errors are [`ApiError`] with a status that follows from the kind. Who may connect is decided by the socket's
//! permissions alone. Bodies are JSON whatever the content type says, so that `curl -d` needs no header.

mod parts;
mod recording;

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::Deserialize;

use self::parts::{Answered, Body, Parameters, Refused, Segments};
use super::audit::AuditTrail;
use super::backend::Backend;
use super::jobs::Jobs;
use super::metrics;
use super::model::{
    AdoptRequest, ApiError, AuditQuery, Disk, DiskRequest, DiskSource, EventQuery, GroupRequest,
    GroupVerifyRequest, JobKind, JobResult, KeyImport, KeyRotation, PointRequest, PointSelection,
    PolicyRequest, RepairRequest, ResizeRequest, RestoreRequest, ResumeRequest, TestRequest, VerifyRequest,
};
use super::name::{DiskPath, Name};
use super::server::ApiConnections;
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
}

/// The API's routes over a site, for clients that are counted in `connections`.
pub fn router(
    backend: Arc<dyn Backend>,
    connections: Arc<ApiConnections>,
    environment: Arc<dyn Environment + Send + Sync>,
) -> Router {
    let catalogue = backend.catalogue();
    let trail = AuditTrail::new(catalogue.clone(), Arc::clone(&environment));
    let api = Api { backend, jobs: Jobs::new(environment, catalogue), trail, connections };
    let recording = axum::middleware::from_fn_with_state(api.clone(), recording::record);
    Router::new()
        .route(metrics::PATH, get(scrape))
        .route("/v1/status", get(status))
        .route("/v1/groups", get(groups).post(group_create))
        .route("/v1/groups/{group}", get(group).delete(group_remove))
        .route("/v1/groups/{group}/policy", put(policy_set))
        .route("/v1/groups/{group}/resume", post(group_resume))
        .route("/v1/groups/{group}/pause", post(group_pause))
        .route("/v1/events", get(events))
        .route("/v1/audit", get(audit_trail))
        .route("/v1/hooks", get(hooks))
        .route("/v1/hooks/{name}/test", post(hook_test))
        .route("/v1/groups/{group}/disks", post(disk_create))
        .route("/v1/groups/{group}/disks/{disk}", delete(disk_remove))
        .route("/v1/groups/{group}/disks/{disk}/resize", post(disk_resize))
        .route("/v1/groups/{group}/points", get(points).post(point_create))
        .route("/v1/groups/{group}/policy/dry-run", post(policy_dry_run))
        .route("/v1/groups/{group}/points/hold", post(point_hold))
        .route("/v1/groups/{group}/points/release", post(point_release))
        .route("/v1/groups/{group}/points/delete", post(point_delete))
        .route("/v1/groups/{group}/tests", post(test_start).delete(test_cleanup_all))
        .route("/v1/groups/{group}/tests/{number}", delete(test_cleanup))
        .route("/v1/groups/{group}/restore", post(restore))
        .route("/v1/disks", get(disks))
        .route("/v1/tests", get(tests))
        .route("/v1/vault/verify", post(vault_verify))
        .route("/v1/vault/adopt", post(vault_adopt))
        .route("/v1/groups/{group}/verify", post(group_verify))
        .route("/v1/groups/{group}/repair", post(vault_repair))
        .route("/v1/keys", get(keys))
        .route("/v1/keys/rotate", post(key_rotate))
        .route("/v1/keys/export", post(key_export))
        .route("/v1/keys/import", post(key_import))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job).delete(job_cancel))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(recording)
        .with_state(api)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfGroup {
    group: Option<Name>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
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

async fn status(State(api): State<Api>) -> Answered<impl IntoResponse> {
    let mut status = api.backend.status().await?;
    api.connections.describe(&mut status);
    Ok(Json(status))
}

async fn scrape(State(api): State<Api>) -> Answered<Response> {
    Ok(metrics::scrape(&*api.backend, &api.connections).await?)
}

async fn groups(State(api): State<Api>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.groups().await?))
}

async fn group_create(
    State(api): State<Api>,
    Body(request): Body<GroupRequest>,
) -> Answered<impl IntoResponse> {
    Ok((StatusCode::CREATED, Json(api.backend.group_create(request.name).await?)))
}

async fn group(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.group(group).await?))
}

async fn group_remove(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<StatusCode> {
    api.backend.group_remove(group).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn group_resume(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<ResumeRequest>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.group_resume(group, request).await?))
}

async fn group_pause(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.group_pause(group).await?))
}

async fn events(State(api): State<Api>, Parameters(query): Parameters<EventQuery>) -> Answered<Response> {
    if query.is_following() {
        let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(WAIT_MAX);
        return Ok(Json(api.backend.events_after(query, wait).await?).into_response());
    }
    Ok(Json(api.backend.events(query).await?).into_response())
}

async fn audit_trail(
    State(api): State<Api>,
    Parameters(query): Parameters<AuditQuery>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.trail.newest(query.limit.unwrap_or(AuditQuery::LIMIT_DEFAULT)).await?))
}

async fn hooks(State(api): State<Api>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.hooks().await?))
}

async fn hook_test(State(api): State<Api>, Segments(name): Segments<Name>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.hook_test(name).await?))
}

async fn policy_set(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(policy): Body<PolicyRequest>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.policy_set(group, policy.checked()?).await?))
}

async fn policy_dry_run(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(policy): Body<PolicyRequest>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.policy_dry_run(group, policy.checked()?).await?))
}

async fn point_hold(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.point_hold(group, selection.point).await?))
}

async fn point_release(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.point_release(group, selection.point).await?))
}

async fn point_delete(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(selection): Body<PointSelection>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.point_delete(group, selection.point).await?))
}

async fn disks(State(api): State<Api>, Parameters(of): Parameters<OfGroup>) -> Answered<impl IntoResponse> {
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
) -> Answered<Response> {
    let path = DiskPath { group, disk: request.name };
    match request.source {
        DiskSource::SizeBytes(bytes) => {
            let disk = api.backend.disk_create(path, ByteSize(bytes).sectors()?).await?;
            Ok((StatusCode::CREATED, Json(disk)).into_response())
        }
        DiskSource::Import(file) => {
            absolute("import", &file)?;
            let what = format!("{path} from {}", file.display());
            let backend = Arc::clone(&api.backend);
            let job = api.jobs.start(JobKind::Import, what, |progress| async move {
                backend.disk_import(path, file, progress).await.map(JobResult::Disk)
            })?;
            Ok((StatusCode::ACCEPTED, Json(job)).into_response())
        }
    }
}

async fn disk_resize(
    State(api): State<Api>,
    Segments((group, disk)): Segments<(Name, Name)>,
    Body(request): Body<ResizeRequest>,
) -> Answered<impl IntoResponse> {
    let size = ByteSize(request.size_bytes).sectors()?;
    Ok(Json(api.backend.disk_resize(DiskPath { group, disk }, size, request.lose_tail).await?))
}

async fn disk_remove(
    State(api): State<Api>,
    Segments((group, disk)): Segments<(Name, Name)>,
) -> Answered<StatusCode> {
    api.backend.disk_remove(DiskPath { group, disk }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn points(State(api): State<Api>, Segments(group): Segments<Name>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.points(group).await?))
}

async fn point_create(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<PointRequest>,
) -> Answered<impl IntoResponse> {
    Ok((StatusCode::CREATED, Json(api.backend.point_create(group, request.label).await?)))
}

async fn tests(State(api): State<Api>, Parameters(of): Parameters<OfGroup>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.tests(of.group).await?))
}

async fn test_start(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<TestRequest>,
) -> Answered<impl IntoResponse> {
    Ok((StatusCode::CREATED, Json(api.backend.test_start(group, request).await?)))
}

async fn test_cleanup(
    State(api): State<Api>,
    Segments((group, number)): Segments<(Name, u64)>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.test_cleanup(group, Some(TestId(number))).await?))
}

async fn test_cleanup_all(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.test_cleanup(group, None).await?))
}

async fn restore(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<RestoreRequest>,
) -> Answered<impl IntoResponse> {
    absolute("directory", &request.directory)?;
    let what = format!("{group} at {} to {}", request.point, request.directory.display());
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Restore, what, |progress| async move {
        backend.restore(group, request, progress).await.map(JobResult::Restored)
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

async fn vault_verify(
    State(api): State<Api>,
    Body(request): Body<VerifyRequest>,
) -> Answered<impl IntoResponse> {
    let what = request.group.as_ref().map_or("every group".to_owned(), Name::to_string);
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Verify, what, |progress| async move {
        let rate = request.rate_bytes_per_s.map(ByteRate);
        backend.vault_verify(request.group, rate, progress).await.map(JobResult::Verified)
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

async fn group_verify(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<GroupVerifyRequest>,
) -> Answered<impl IntoResponse> {
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Verify, group.to_string(), |progress| async move {
        let rate = request.rate_bytes_per_s.map(ByteRate);
        backend.group_verify(group, rate, progress).await.map(JobResult::GroupVerified)
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

async fn vault_repair(
    State(api): State<Api>,
    Segments(group): Segments<Name>,
    Body(request): Body<RepairRequest>,
) -> Answered<impl IntoResponse> {
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Repair, group.to_string(), |progress| async move {
        backend.vault_repair(group, request, progress).await.map(JobResult::Repaired)
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

async fn vault_adopt(
    State(api): State<Api>,
    Body(request): Body<AdoptRequest>,
) -> Answered<impl IntoResponse> {
    absolute("directory", &request.directory)?;
    let what = request.directory.display().to_string();
    let backend = Arc::clone(&api.backend);
    let job = api.jobs.start(JobKind::Adopt, what, |progress| async move {
        backend.vault_adopt(request, progress).await.map(|adopted| JobResult::Adopted(Box::new(adopted)))
    })?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

async fn keys(State(api): State<Api>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.keys().await?))
}

async fn key_rotate(State(api): State<Api>, Body(request): Body<KeyRotation>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.key_rotate(request).await?))
}

async fn key_export(State(api): State<Api>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.key_export().await?))
}

async fn key_import(State(api): State<Api>, Body(request): Body<KeyImport>) -> Answered<impl IntoResponse> {
    Ok(Json(api.backend.key_import(request).await?))
}

async fn jobs(State(api): State<Api>) -> impl IntoResponse {
    Json(api.jobs.list())
}

async fn job(
    State(api): State<Api>,
    Segments(id): Segments<String>,
    Parameters(wait): Parameters<Wait>,
) -> Answered<impl IntoResponse> {
    Ok(Json(api.jobs.get(&id, Duration::from_millis(wait.wait_ms).min(WAIT_MAX)).await?))
}

async fn job_cancel(State(api): State<Api>, Segments(id): Segments<String>) -> Answered<impl IntoResponse> {
    Ok(Json(api.jobs.cancel(&id)?))
}

/// The gateway has another working directory than whoever asks.
fn absolute(field: &str, path: &FilePath) -> Result<(), Error> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(Error::invalid(format!("{field} = `{}`: a relative path: write an absolute one", path.display())))
}
