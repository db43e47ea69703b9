//! What is about the manager as a whole: status, configuration, records,
//! metrics, and the description of this API.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::IntoParams;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Query};
use super::problem::Problem;
use crate::error::{Failure, Kind};
use crate::manager::model::{DiskCounts, Reloaded, Status, UpgradeManager, UpgradedManager, You};
use crate::manager::services::{Act, Services};

/// The most records that are answered at once.
const LINES_MAX: usize = 1000;

/// What the metrics are sent as.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How much of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Tail {
    /// How many records.
    #[param(minimum = 1, maximum = 1000, default = 50)]
    lines: Option<usize>,
}

/// What the manager is doing
#[utoipa::path(
    get, path = "/v1/status", operation_id = "status", tag = "host",
    responses((status = 200, description = "What the manager is doing", body = Status)),
)]
pub async fn status(State(api): State<Api>, caller: Caller) -> Result<Json<Status>, Problem> {
    let services = api.services();
    let facts = services.control.facts();
    let roles = api.roles().of(&caller.peer).into_iter().collect();
    let key_sets = services.key_sets.list().await?.len();
    Ok(Json(Status {
        version: crate::version::version().into(),
        pid: std::process::id(),
        instance: facts.instance,
        since: facts.since.to_string(),
        config: facts.config,
        socket: facts.socket,
        state_dir: facts.state_dir,
        run_dir: facts.run_dir,
        disks: DiskCounts::of(&services.disks.list()),
        key_sets: u64::try_from(key_sets).unwrap_or(u64::MAX),
        needs_restart: facts.needs_restart,
        you: You {
            uid: caller.peer.uid,
            pid: caller.peer.pid,
            roles,
        },
    }))
}

/// Read the configuration file again
///
/// As SIGHUP does. What cannot change in a running manager is named.
#[utoipa::path(
    post, path = "/v1/reload", operation_id = "reload", tag = "host",
    responses((status = 200, description = "What has changed", body = Reloaded)),
)]
pub async fn reload(State(api): State<Api>, caller: Caller) -> Result<Json<Reloaded>, Problem> {
    let work = |services: Services, _| async move { services.control.reload().await };
    let act = |reloaded: Option<&Reloaded>| Act::Reload {
        changed: reloaded.map_or_else(Vec::new, |reloaded| reloaded.changed.clone()),
    };
    let reloaded = api.carry_out(&caller, work, act).await?;
    Ok(Json(reloaded))
}

/// Replace the manager by another program
///
/// The program is tried first: it has to run, to take the configuration and to speak
/// with the workers. The manager ends and is that program then, in the same process;
/// disks are served on. It answers again as another `instance`.
#[utoipa::path(
    post, path = "/v1/upgrade", operation_id = "upgrade", tag = "host",
    request_body = UpgradeManager,
    responses((status = 200, description = "It is about to be", body = UpgradedManager)),
)]
pub async fn upgrade(
    State(api): State<Api>,
    caller: Caller,
    Body(wanted): Body<UpgradeManager>,
) -> Result<Json<UpgradedManager>, Problem> {
    super::upgrade::check_binary(wanted.binary.as_deref(), &caller)?;
    let asked = wanted.binary.clone();
    let work =
        move |services: Services, _| async move { services.control.upgrade(wanted.binary).await };
    let act = move |upgraded: Option<&UpgradedManager>| Act::UpgradeManager {
        binary: upgraded.map(|it| it.binary.clone()).or(asked),
        version: upgraded.map(|it| it.version.clone()),
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}

/// The last records of the audit log
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "audit_tail", tag = "host",
    params(Tail),
    responses((status = 200, description = "Records, the oldest first", body = [Object])),
)]
pub async fn audit(
    State(api): State<Api>,
    _: Caller,
    Query(tail): Query<Tail>,
) -> Result<Json<Vec<Map<String, Value>>>, Problem> {
    let lines = tail.lines.unwrap_or(50);
    if !(1..=LINES_MAX).contains(&lines) {
        return Err(Problem::usage(
            format!("{lines} records cannot be had at once"),
            format!("ask for 1 to {LINES_MAX}"),
        ));
    }
    match &api.services().audit {
        Some(audit) => Ok(Json(audit.tail(lines).await?)),
        None => Err(Failure::new(
            Kind::Unsupported,
            "this manager keeps no audit log",
            Some("turn it on in the configuration".into()),
        )
        .into()),
    }
}

/// Metrics, in the OpenMetrics text format
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "host",
    responses((
        status = 200, description = "The metrics", body = String,
        content_type = "application/openmetrics-text",
    )),
)]
pub async fn metrics(State(api): State<Api>, _: Caller) -> Result<impl IntoResponse, Problem> {
    let text = api.services().metrics.render()?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text))
}

/// The description of this API: an OpenAPI 3.1 document
#[utoipa::path(
    get, path = "/v1/openapi.json", operation_id = "openapi", tag = "host",
    responses((status = 200, description = "The document", body = Object)),
)]
pub async fn openapi(State(api): State<Api>, _: Caller) -> Result<impl IntoResponse, Problem> {
    let document = api.document()?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document))
}
