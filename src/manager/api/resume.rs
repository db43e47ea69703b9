//! `/v1/disks/{name}/resume`.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named};
use super::problem::Problem;
use crate::manager::model::{DiskInfo, Resume};
use crate::manager::services::{Act, Services};

/// Try again what waits because the disk below fails, or have it fail
///
/// The answer comes when it was tried, and says what came of that: the disk is
/// running, or stopped as before. It is an error when nothing waits.
#[utoipa::path(
    post, path = "/v1/disks/{name}/resume", operation_id = "resume_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body = Resume,
    responses((status = 200, description = "It was tried", body = DiskInfo)),
)]
pub async fn resume(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(wanted): Body<Resume>,
) -> Result<Json<DiskInfo>, Problem> {
    let act = Act::Resume {
        disk: name.clone(),
        volume: api.services().disks.get(&name).and_then(|disk| disk.uuid),
        fail: wanted.fail,
    };
    let work = move |services: Services, context| async move {
        services.disks.resume(&context, &name, wanted.fail).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}
