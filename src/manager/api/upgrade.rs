//! `/v1/disks/{name}/upgrade`, and what it has in common with that of the manager.
#![forbid(unsafe_code)]

use std::path::Path;

use axum::Json;
use axum::extract::State;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named};
use super::problem::Problem;
use crate::error::{Failure, Kind};
use crate::manager::model::{UpgradeDisk, UpgradedDisk};
use crate::manager::services::{Act, Services};

/// A program that somebody names runs with all that the manager may do. So only those
/// may name one who can do that anyway.
pub(super) fn check_binary(binary: Option<&Path>, caller: &Caller) -> Result<(), Problem> {
    let Some(binary) = binary else {
        return Ok(());
    };
    if !binary.is_absolute() {
        return Err(Problem::usage(
            format!("{} is not an absolute path", binary.display()),
            "write it as /path/to/sealblk",
        ));
    }
    let own = rustix::process::geteuid().as_raw();
    match caller.peer.uid == 0 || caller.peer.uid == own {
        true => Ok(()),
        false => Err(Failure::new(
            Kind::Refused,
            "nobody but root and the user of the daemon may name the program to upgrade to",
            Some("leave --binary out: what is installed is taken then".into()),
        )
        .into()),
    }
}

/// Replace the worker of a disk by a new process, of another version perhaps
///
/// The new process goes on with the front end where the old one stops. When it cannot,
/// the old one serves on.
#[utoipa::path(
    post, path = "/v1/disks/{name}/upgrade", operation_id = "upgrade_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body = UpgradeDisk,
    responses((status = 200, description = "Another process serves it", body = UpgradedDisk)),
)]
pub async fn upgrade(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(wanted): Body<UpgradeDisk>,
) -> Result<Json<UpgradedDisk>, Problem> {
    check_binary(wanted.binary.as_deref(), &caller)?;
    let (disk, reconnect) = (name.clone(), wanted.reconnect);
    let volume = api.services().disks.get(&name).and_then(|disk| disk.uuid);
    let act = move |upgraded: Option<&UpgradedDisk>| Act::Upgrade {
        disk,
        volume,
        reconnect,
        version: upgraded.map(|upgraded| upgraded.version.clone()),
    };
    let work = move |services: Services, context| async move {
        services.disks.upgrade(&context, &name, wanted).await
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}
