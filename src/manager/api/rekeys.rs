//! `/v1/rekeys` and `/v1/disks/{name}/rekey`: all data of disks is re-encrypted,
//! or decrypted, while they are served.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named};
use super::problem::Problem;
use crate::manager::model::{DiskInfo, RekeyChange, RekeysStarted, StartRekey};
use crate::manager::services::{Act, Services};
use crate::plane::moving::Go;
use crate::rekey::Direction;

/// Have all data of disks re-encrypted under new keys, or decrypted
///
/// While their guests use them. So many begin as may be at once, and the others
/// when it is their turn; that outlives the manager. How far each is stands in
/// `rekey` of the disk.
#[utoipa::path(
    post, path = "/v1/rekeys", operation_id = "start_rekeys", tag = "disks",
    request_body = StartRekey,
    responses((status = 200, description = "They begin, or wait", body = RekeysStarted)),
)]
pub async fn start(
    State(api): State<Api>,
    caller: Caller,
    Body(wanted): Body<StartRekey>,
) -> Result<Json<RekeysStarted>, Problem> {
    let asked = wanted.clone();
    let act = move |started: Option<&RekeysStarted>| Act::Rekey {
        kind: asked.kind,
        disks: match started {
            Some(started) => started.disks.iter().map(|it| it.disk.clone()).collect(),
            None => asked.disks,
        },
        key_set: asked.key_set,
    };
    let work = move |services: Services, context| async move {
        services.disks.rekey(&context, wanted).await
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}

/// Let an operation on all data of a disk rest or go on, faster or slower
///
/// One that rests does so for as long as somebody likes, over restarts of the
/// manager and the host, attached or not.
#[utoipa::path(
    patch, path = "/v1/disks/{name}/rekey", operation_id = "change_rekey", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body(content(
        (RekeyChange = "application/merge-patch+json"), (RekeyChange = "application/json")
    )),
    responses((status = 200, description = "It was changed", body = DiskInfo)),
)]
pub async fn change(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(change): Body<RekeyChange>,
) -> Result<Json<DiskInfo>, Problem> {
    let action = match change.go {
        Some(Go::Run) => "resume",
        Some(Go::Pause) => "pause",
        None => "pace",
    };
    let act = act(&api, &name, action);
    let work = move |services: Services, context| async move {
        services.disks.change_rekey(&context, &name, change).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// `back` to what was before, or `forward` again.
    #[schema(value_type = String, example = "back")]
    pub direction: Direction,
}

/// Have an operation on all data of a disk go back to what was before
///
/// The data that was moved is moved back, and then the disk is as it was. There is
/// no other way to end an operation than forward or back. One that waits for its
/// turn is forgotten.
#[utoipa::path(
    post, path = "/v1/disks/{name}/rekey/turn", operation_id = "turn_rekey", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body = Turn,
    responses((status = 200, description = "It goes that way", body = DiskInfo)),
)]
pub async fn turn(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(Turn { direction }): Body<Turn>,
) -> Result<Json<DiskInfo>, Problem> {
    let action = match direction {
        Direction::Forward => "forward",
        Direction::Back => "back",
    };
    let act = act(&api, &name, action);
    let work = move |services: Services, context| async move {
        services.disks.turn_rekey(&context, &name, direction).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}

fn act(api: &Api, name: &str, action: &'static str) -> Act {
    let disk = api.services().disks.get(name);
    Act::RekeyChange {
        disk: name.into(),
        volume: disk.as_ref().and_then(|disk| disk.uuid),
        kind: disk.and_then(|disk| Some(disk.rekey?.kind)),
        action,
    }
}
