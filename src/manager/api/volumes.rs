//! `/v1/volumes`: what is done to volumes that need not be attached.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;

use super::Api;
use super::caller::Caller;
use super::extract::Body;
use super::problem::Problem;
use crate::manager::model::{ChangeWraps, EraseVolume, ErasedVolume, WrapsChanged};
use crate::manager::services::{Act, Event, Outcome, Services};

/// Destroy the key of a volume
///
/// All wrapped keys in its header and in key stores are destroyed, and its data
/// cannot be read any more, by anybody, but with a backup of the header. It is on
/// record before anything is destroyed. Doing it again finishes what was not.
#[utoipa::path(
    post, path = "/v1/volumes/erase", operation_id = "erase_volume", tag = "volumes",
    request_body = EraseVolume,
    responses((status = 200, description = "What was destroyed", body = ErasedVolume)),
)]
pub async fn erase(
    State(api): State<Api>,
    caller: Caller,
    Body(asked): Body<EraseVolume>,
) -> Result<Json<ErasedVolume>, Problem> {
    let about = asked.clone();
    let act = |erased: Option<&ErasedVolume>| Act::Erase {
        asked: about,
        erased: erased.cloned().map(Box::new),
    };
    let work = move |services: Services, context| async move {
        if let Some(audit) = &services.audit {
            let act = Act::Erasing {
                asked: asked.clone(),
            };
            let event = Event {
                context: &context,
                act: &act,
                outcome: Outcome::Done,
                took: Default::default(),
            };
            audit.record(&event).await?;
        }
        services.disks.erase(&context, asked).await
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}

/// Make or destroy wraps for break-glass access
///
/// Of one volume, or of all that this host knows of a key set, attached or not:
/// disks that are served are not disturbed. One volume that cannot be changed keeps
/// no other from it, and is told in the answer. It is safe to do it again.
#[utoipa::path(
    post, path = "/v1/volumes/wraps", operation_id = "change_wraps", tag = "volumes",
    request_body = ChangeWraps,
    responses((status = 200, description = "What became of each volume", body = WrapsChanged)),
)]
pub async fn wraps(
    State(api): State<Api>,
    caller: Caller,
    Body(asked): Body<ChangeWraps>,
) -> Result<Json<WrapsChanged>, Problem> {
    let about = asked.clone();
    let act = |changed: Option<&WrapsChanged>| Act::ChangeWraps {
        asked: about,
        changed: changed.cloned().map(Box::new),
    };
    let work = move |services: Services, context| async move {
        let changed = services.disks.change_wraps(&context, asked).await?;
        if let Some(audit) = &services.audit {
            for volume in changed.volumes.iter().filter(|volume| volume.changed) {
                let act = Act::WrapChanged {
                    volume: volume.uuid,
                    action: changed.action,
                    key_set: changed.key_set.clone(),
                    key_id: changed.key_id.clone(),
                };
                let event = Event {
                    context: &context,
                    act: &act,
                    outcome: Outcome::Done,
                    took: Default::default(),
                };
                audit.record(&event).await?;
            }
        }
        Ok(changed)
    };
    Ok(Json(api.carry_out(&caller, work, act).await?))
}
