//! Rotation and switching of key sets, and `/v1/ledger`.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::Api;
use super::caller::Caller;
use super::extract::{Body, Named, Query};
use super::problem::Problem;
use crate::error::{Failure, Kind};
use crate::manager::model::{KeySetRotation, KeySetSwitch};
use crate::manager::services::{Act, Services};
use crate::rotation::KeySetLedger;

/// Have the volumes of a key set follow its key
///
/// The service is asked which version wraps now. A group key is wrapped under
/// it before this is answered; the volumes follow in the background.
#[utoipa::path(
    post, path = "/v1/key-sets/{name}/rotate", operation_id = "rotate_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set")),
    responses((status = 200, description = "They follow", body = KeySetRotation)),
)]
pub async fn rotate(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
) -> Result<Json<KeySetRotation>, Problem> {
    let key_set = name.clone();
    let act = |done: Option<&KeySetRotation>| Act::KeySetRotate {
        key_set,
        key_version: done.map(|done| done.key_version.clone()),
    };
    let work = move |services: Services, context| async move {
        services.rotations.rotate(&context, &name).await
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}

/// Make a key set one of another key, or of another service
///
/// The new service has to wrap and unwrap first. The volumes follow in the
/// background, those that are attached from the keys in memory; until all that
/// are known have followed, what the key set was opens the others. The same
/// request again goes on where it was interrupted.
#[utoipa::path(
    post, path = "/v1/key-sets/{name}/switch", operation_id = "switch_key_set", tag = "key sets",
    params(("name" = String, Path, description = "The name of the key set")),
    request_body = KeySetSwitch,
    responses((status = 200, description = "They follow", body = KeySetRotation)),
)]
pub async fn switch(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
    Body(wanted): Body<KeySetSwitch>,
) -> Result<Json<KeySetRotation>, Problem> {
    let (key_set, force) = (name.clone(), wanted.force);
    let act = move |done: Option<&KeySetRotation>| Act::KeySetSwitch {
        key_set,
        provider: done.map(|done| done.provider.clone()),
        force,
    };
    let work = move |services: Services, context| async move {
        let KeySetSwitch { definition, force } = wanted;
        services
            .rotations
            .switch(&context, &name, definition, force)
            .await
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}

/// Of which key sets.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfKeySet {
    /// This one alone.
    key_set: Option<String>,
}

/// Which volumes need which version of the key of each key set
///
/// The volumes are looked at, wherever they can be read.
#[utoipa::path(
    get, path = "/v1/ledger", operation_id = "show_ledger", tag = "key sets",
    params(OfKeySet),
    responses((status = 200, description = "The ledger, by key set", body = [KeySetLedger])),
)]
pub async fn ledger(
    State(api): State<Api>,
    _: Caller,
    Query(of): Query<OfKeySet>,
) -> Result<Json<Vec<KeySetLedger>>, Problem> {
    let rotations = &api.services().rotations;
    Ok(Json(rotations.ledger(of.key_set.as_deref()).await?))
}

/// Forget a volume that is gone for good
///
/// Nothing of the volume is touched. It is known again when it is attached.
#[utoipa::path(
    delete, path = "/v1/ledger/{name}", operation_id = "forget_volume", tag = "key sets",
    params(("name" = String, Path, description = "The UUID of the volume")),
    responses((status = 204, description = "It was forgotten")),
)]
pub async fn forget(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named,
) -> Result<StatusCode, Problem> {
    let volume: Uuid = name.parse().map_err(|_| {
        Problem::from(Failure::new(
            Kind::Usage,
            format!("{name:?} is not the UUID of a volume"),
            Some("`sealblk keyset ledger` names them".into()),
        ))
    })?;
    let work = move |services: Services, _| async move { services.rotations.forget(volume).await };
    let act = move |_: Option<&()>| Act::VolumeForget { volume };
    api.carry_out(&caller, work, act).await?;
    Ok(StatusCode::NO_CONTENT)
}
