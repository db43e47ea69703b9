//! `/v1/disks`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named, Query};
use super::problem::Problem;
use super::server::told;
use crate::manager::model::{
    Attach, Detach, DiskChange, DiskInfo, DiskList, DiskState, NewSize, is_disk_name,
};
use crate::manager::services::{Act, Services};

/// The longest that a request waits for a change, in seconds.
const WAIT_MAX: u64 = 60;

/// How long it waits unless told otherwise, in seconds.
const WAIT: u64 = 30;

/// Which changes to wait for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Changes {
    /// The revision that was seen last: the answer comes when there is another
    /// one, or the time is over.
    after: Option<u64>,
    /// How many seconds to wait for that.
    #[param(minimum = 0, maximum = 60, default = 30)]
    wait: Option<u64>,
}

/// How to detach.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct How {
    /// Also with a front end connected, and without waiting for requests that
    /// do not end.
    #[serde(default)]
    #[param(default = false, required = false)]
    force: bool,
}

/// All disks; or what has become of them after a change
#[utoipa::path(
    get, path = "/v1/disks", operation_id = "list_disks", tag = "disks",
    params(Changes),
    responses((status = 200, description = "The disks", body = DiskList)),
)]
pub async fn list(
    State(api): State<Api>,
    _: Caller,
    Query(wanted): Query<Changes>,
) -> Result<Json<DiskList>, Problem> {
    let wait = wanted.wait.unwrap_or(WAIT);
    if wait > WAIT_MAX {
        return Err(Problem::usage(
            format!("wait is {wait} seconds, of at most {WAIT_MAX}"),
            "ask again after that time",
        ));
    }
    let disks = &api.services().disks;
    let mut changes = disks.subscribe();
    if wanted
        .after
        .is_some_and(|after| *changes.borrow_and_update() == after)
    {
        let mut stopping = api.stopping();
        tokio::select! {
            _ = changes.changed() => {}
            () = told(&mut stopping) => {}
            () = tokio::time::sleep(Duration::from_secs(wait)) => {}
        }
    }
    // In this order: what changes in between is seen again, and not missed.
    let revision = *changes.borrow_and_update();
    Ok(Json(DiskList {
        revision,
        disks: disks.list(),
    }))
}

/// One disk
#[utoipa::path(
    get, path = "/v1/disks/{name}", operation_id = "show_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    responses((status = 200, description = "The disk", body = DiskInfo)),
)]
pub async fn show(
    State(api): State<Api>,
    _: Caller,
    Named(name): Named,
) -> Result<Json<DiskInfo>, Problem> {
    match api.services().disks.get(&name) {
        Some(disk) => Ok(Json(disk)),
        None => Err(unknown(&name)),
    }
}

fn unknown(name: &str) -> Problem {
    Problem::not_found(
        format!("there is no disk {name:?}"),
        "GET /v1/disks (`sealblk list`) names those that there are",
    )
}

/// Attach a disk
///
/// It is attached again when the host or the manager starts, until it is
/// detached.
#[utoipa::path(
    post, path = "/v1/disks", operation_id = "attach_disk", tag = "disks",
    request_body = Attach,
    responses(
        (status = 201, description = "It is served", body = DiskInfo),
        (status = 202, description = "It is not served yet, and is tried again", body = DiskInfo),
    ),
)]
pub async fn attach(
    State(api): State<Api>,
    caller: Caller,
    Body(attach): Body<Attach>,
) -> Result<(StatusCode, Json<DiskInfo>), Problem> {
    check(&attach)?;
    let asked = attach.clone();
    let act = move |disk: Option<&DiskInfo>| Act::Attach {
        disk: match (disk, asked.name) {
            (Some(disk), _) => disk.name.clone(),
            (None, Some(name)) => name,
            (None, None) => asked.volume.display().to_string(),
        },
        // That of an ephemeral disk is no volume's.
        volume: disk
            .filter(|disk| !disk.ephemeral)
            .and_then(|disk| disk.uuid),
        key_set: disk.and_then(|disk| disk.key_set.clone()),
        break_glass: asked.break_glass || asked.recovery_key_file.is_some(),
        ephemeral: asked.ephemeral.is_some(),
    };
    let work = move |services: Services, context| async move {
        services.disks.attach(&context, attach).await
    };
    let disk = api.carry_out(&caller, work, act).await?;
    let status = match disk.state {
        DiskState::Running => StatusCode::CREATED,
        _ => StatusCode::ACCEPTED,
    };
    Ok((status, Json(disk)))
}

/// What can be said of a request without looking at the volume.
fn check(attach: &Attach) -> Result<(), Problem> {
    let paths = [
        ("volume", Some(attach.volume.as_path())),
        ("header", attach.header.as_deref()),
        ("socket", Some(attach.socket.as_path())),
        ("recovery_key_file", attach.recovery_key_file.as_deref()),
    ];
    let relative = |path: &Path| !path.is_absolute();
    if let Some((field, _)) = paths.iter().find(|(_, path)| path.is_some_and(relative)) {
        return Err(Problem::usage(
            format!("{field} is not an absolute path"),
            "begin it with /: the manager has a working directory of its own",
        ));
    }
    if let Some(name) = attach.name.as_deref().filter(|name| !is_disk_name(name)) {
        return Err(Problem::usage(
            format!("{name:?} is not a name for a disk"),
            "use 1 to 64 letters, digits, '.', '-' and '_'",
        ));
    }
    if attach.options.pid_file.is_some() {
        return Err(Problem::usage(
            "pid_file is a setting of `sealblk serve`",
            "leave it out: GET /v1/disks/NAME has the process id",
        ));
    }
    Ok(())
}

/// Change an attached disk
///
/// Limits hold at once, for requests that wait as well, and are kept until they
/// are changed again or the disk is detached. A size holds for good: the volume
/// has it, and its front end is told. The size is changed first: a failure to
/// change the limits after that leaves it changed.
#[utoipa::path(
    patch, path = "/v1/disks/{name}", operation_id = "change_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk")),
    request_body(content(
        (DiskChange = "application/merge-patch+json"), (DiskChange = "application/json")
    )),
    responses((status = 200, description = "It was changed", body = DiskInfo)),
)]
pub async fn change(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(change): Body<DiskChange>,
) -> Result<Json<DiskInfo>, Problem> {
    let DiskChange {
        limits,
        size,
        fill,
        preallocate,
    } = change;
    if size.is_some() && fill {
        return Err(Problem::usage(
            "there are both size and fill",
            "say size for so many bytes, or fill for as many as there is room for",
        ));
    }
    let resizes = size.is_some() || fill;
    if preallocate && !resizes {
        return Err(Problem::usage(
            "there is preallocate without a size",
            "say size, or leave it out",
        ));
    }
    if resizes {
        let disk = resize(&api, &caller, &name, NewSize { size, preallocate }).await?;
        if limits.is_unset() {
            return Ok(disk);
        }
    }
    let act = Act::Limit {
        disk: name.clone(),
        volume: api.services().disks.get(&name).and_then(|disk| disk.uuid),
        limits: Box::new(limits.clone()),
    };
    let work = move |services: Services, context| async move {
        services.disks.limit(&context, &name, limits).await
    };
    Ok(Json(api.carry_out(&caller, work, |_| act).await?))
}

async fn resize(
    api: &Api,
    caller: &Caller,
    name: &str,
    wanted: NewSize,
) -> Result<Json<DiskInfo>, Problem> {
    let (disk, known) = (name.to_owned(), api.services().disks.get(name));
    let volume = known.as_ref().and_then(|disk| disk.uuid);
    let before = known.and_then(|disk| disk.size);
    let act = move |done: Option<&DiskInfo>| Act::Resize {
        disk,
        volume,
        before,
        size: done.map_or(wanted.size, |done| done.size),
    };
    let name = name.to_owned();
    let work = move |services: Services, context| async move {
        services.disks.resize(&context, &name, wanted).await
    };
    Ok(Json(api.carry_out(caller, work, act).await?))
}

/// Detach a disk
///
/// Requests that were taken are completed, and what was written is made
/// durable.
#[utoipa::path(
    delete, path = "/v1/disks/{name}", operation_id = "detach_disk", tag = "disks",
    params(("name" = String, Path, description = "The name of the disk"), How),
    responses((status = 204, description = "It is no longer served")),
)]
pub async fn detach(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Query(how): Query<How>,
) -> Result<StatusCode, Problem> {
    let how = Detach { force: how.force };
    let act = Act::Detach {
        disk: name.clone(),
        volume: api.services().disks.get(&name).and_then(|disk| disk.uuid),
        force: how.force,
    };
    let work = move |services: Services, context| async move {
        services.disks.detach(&context, &name, how).await
    };
    api.carry_out(&caller, work, |_| act).await?;
    Ok(StatusCode::NO_CONTENT)
}
