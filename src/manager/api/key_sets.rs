//! `/v1/key-sets`.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::IntoParams;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named, Query};
use super::problem::Problem;
use crate::manager::model::{DiskInfo, KeySetCheck, KeySetInfo, NewKeySet};
use crate::manager::services::{Act, Services};

/// `set`, with the disks that use it: only the manager knows them.
fn counted(api: &Api, mut set: KeySetInfo) -> Json<KeySetInfo> {
    let disks = api.services().disks.list();
    set.disks = count(&disks, &set.name);
    Json(set)
}

fn count(disks: &[DiskInfo], key_set: &str) -> u64 {
    let uses = |disk: &&DiskInfo| disk.key_set.as_deref() == Some(key_set);
    disks.iter().filter(uses).count() as u64
}

/// All key sets
#[utoipa::path(
    get, path = "/v1/key-sets", operation_id = "list_key_sets", tag = "key sets",
    responses((status = 200, description = "The key sets, by name", body = [KeySetInfo])),
)]
pub async fn list(State(api): State<Api>, _: Caller) -> Result<Json<Vec<KeySetInfo>>, Problem> {
    let mut sets = api.services().key_sets.list().await?;
    let disks = api.services().disks.list();
    for set in &mut sets {
        set.disks = count(&disks, &set.name);
    }
    Ok(Json(sets))
}

/// One key set
#[utoipa::path(
    get, path = "/v1/key-sets/{name}", operation_id = "show_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set")),
    responses((status = 200, description = "The key set", body = KeySetInfo)),
)]
pub async fn show(
    State(api): State<Api>,
    _: Caller,
    Named(name): Named,
) -> Result<Json<KeySetInfo>, Problem> {
    let set = api.services().key_sets.show(&name).await?;
    Ok(counted(&api, set))
}

/// How a key set is made or changed.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Putting {
    /// Have the service wrap and unwrap first, and change nothing if it fails.
    #[serde(default = "yes")]
    #[param(default = true)]
    check: bool,
}

fn yes() -> bool {
    true
}

/// How a key set is removed.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Removing {
    /// Also if volumes that this host knows need it.
    #[serde(default)]
    force: bool,
}

/// Make a key set
#[utoipa::path(
    post, path = "/v1/key-sets", operation_id = "create_key_set", tag = "key sets",
    params(Putting),
    request_body = NewKeySet,
    responses((status = 201, description = "It was made", body = KeySetInfo)),
)]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    Query(how): Query<Putting>,
    Body(new): Body<NewKeySet>,
) -> Result<(StatusCode, Json<KeySetInfo>), Problem> {
    let key_set = new.name.clone();
    let act = |made: Option<&KeySetInfo>| Act::KeySetCreate {
        key_set,
        provider: made.map(|made| made.provider.clone()),
    };
    let work = move |services: Services, context| async move {
        let NewKeySet { name, definition } = new;
        services
            .key_sets
            .create(&context, &name, definition, how.check)
            .await
    };
    let made = api.carry_out(&caller, work, act).await?;
    Ok((StatusCode::CREATED, counted(&api, made)))
}

/// Change settings of a key set
///
/// The body is a merge patch (RFC 7396) to its definition: settings that it
/// has are changed, those that are null are taken away, all others stay.
#[utoipa::path(
    patch, path = "/v1/key-sets/{name}", operation_id = "edit_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set"), Putting),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json"))),
    responses((status = 200, description = "It was changed", body = KeySetInfo)),
)]
pub async fn edit(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Query(how): Query<Putting>,
    Body(changes): Body<Map<String, Value>>,
) -> Result<Json<KeySetInfo>, Problem> {
    let key_set = name.clone();
    let settings = changes.keys().cloned().collect();
    let act = |set: Option<&KeySetInfo>| Act::KeySetEdit {
        key_set,
        provider: set.map(|set| set.provider.clone()),
        changed: settings,
    };
    let work = move |services: Services, context| async move {
        services
            .key_sets
            .edit(&context, &name, changes, how.check)
            .await
    };
    let changed = api.carry_out(&caller, work, act).await?;
    Ok(counted(&api, changed))
}

/// Remove a key set
#[utoipa::path(
    delete, path = "/v1/key-sets/{name}", operation_id = "remove_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set"), Removing),
    responses((status = 204, description = "It was removed")),
)]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Query(how): Query<Removing>,
) -> Result<StatusCode, Problem> {
    let act = Act::KeySetRemove {
        key_set: name.clone(),
    };
    let work = move |services: Services, context| async move {
        services.key_sets.remove(&context, &name, how.force).await
    };
    api.carry_out(&caller, work, |_| act).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask the service for the state of a key set's key
#[utoipa::path(
    post, path = "/v1/key-sets/{name}/check", operation_id = "check_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set")),
    responses((status = 200, description = "What the service says", body = KeySetCheck)),
)]
pub async fn check(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
) -> Result<Json<KeySetCheck>, Problem> {
    let act = Act::KeySetCheck {
        key_set: name.clone(),
    };
    let work = move |services: Services, context| async move {
        services.key_sets.check(&context, &name).await
    };
    let said = api.carry_out(&caller, work, |_| act).await?;
    Ok(Json(said))
}
