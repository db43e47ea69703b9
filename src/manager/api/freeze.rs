//! `/v1/disks/{name}/freeze` and `/v1/disks/{name}/thaw`.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named};
use super::problem::Problem;
use crate::manager::model::{DiskInfo, FREEZE_SECONDS_MAX, Freeze};
use crate::manager::services::{Act, Services};

/// Freeze a disk for a snapshot
///
/// Requests in flight are completed and made durable; all that come after them
/// wait. The answer comes when nothing is written any more. The disk goes on
/// when it is thawed, or when the time is over.
#[utoipa::path(
    post, path = "/v1/disks/{name}/freeze", operation_id = "freeze_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body = Freeze,
    responses((status = 200, description = "It is frozen", body = DiskInfo)),
)]
pub async fn freeze(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(wanted): Body<Freeze>,
) -> Result<Json<DiskInfo>, Problem> {
    let seconds = wanted.timeout_seconds;
    if !(1..=FREEZE_SECONDS_MAX).contains(&seconds) {
        return Err(Problem::usage(
            format!(
                "timeout_seconds is {seconds}, and a disk is frozen for 1 to {FREEZE_SECONDS_MAX}"
            ),
            "its guest hangs for as long: freeze it for what the snapshot takes",
        ));
    }
    let act = Act::Freeze {
        disk: name.clone(),
        volume: api.services().disks.get(&name).and_then(|disk| disk.uuid),
        seconds,
    };
    let timeout = Duration::from_secs(seconds);
    let work = move |services: Services, context| async move {
        services.disks.freeze(&context, &name, timeout).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}

/// Let a frozen disk go on
///
/// It is an error when the disk is not frozen any more: a snapshot that was not
/// complete by then is of no use.
#[utoipa::path(
    post, path = "/v1/disks/{name}/thaw", operation_id = "thaw_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    responses((status = 200, description = "It goes on", body = DiskInfo)),
)]
pub async fn thaw(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
) -> Result<Json<DiskInfo>, Problem> {
    let act = Act::Thaw {
        disk: name.clone(),
        volume: api.services().disks.get(&name).and_then(|disk| disk.uuid),
    };
    let work = move |services: Services, context| async move {
        services.disks.thaw(&context, &name).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}
