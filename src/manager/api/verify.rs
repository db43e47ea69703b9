//! `/v1/verifications`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::Api;
use super::caller::Caller;
use super::extract::Body;
use super::problem::Problem;
use super::server::told;
use crate::error::{Failure, Kind};
use crate::manager::model::{Verification, Verify};
use crate::manager::services::{Act, Services, Verified};
use crate::verify::Cancel;

/// The most units of a sample.
const SAMPLE_MAX: u64 = 10_000_000;

/// The most bytes of a nonce.
const NONCE_MAX: usize = 256;

/// Prove that a disk is encrypted, or that it is not
///
/// The answer comes when the report is there: in seconds for a sample, in hours
/// for all of a large disk. It is given up when the connection ends.
#[utoipa::path(
    post, path = "/v1/verifications", operation_id = "verify", tag = "disks",
    request_body = Verify,
    responses((status = 200, description = "What was found", body = Verification)),
)]
pub async fn verify(
    State(api): State<Api>,
    caller: Caller,
    Body(wanted): Body<Verify>,
) -> Result<Json<Verification>, Problem> {
    check(&wanted)?;
    let cancel = Cancel::default();
    // This future is dropped when the client goes.
    let _given_up = GivenUp(cancel.clone());
    let called = wanted.disk.clone().map(PathBuf::from);
    let path = wanted.volume.clone().or(called).unwrap_or_default();
    let sign = wanted.sign;
    let act = move |done: Option<&Verified>| Act::Verify {
        path: done.map_or(path, |done| done.report.disk.path.clone()),
        volume: done.and_then(|done| done.report.disk.uuid),
        verdict: done.map(|done| done.report.verdict.as_str()),
        signed: sign,
    };
    let work = move |services: Services, context| async move {
        services
            .verifications
            .verify(&context, wanted, cancel)
            .await
    };
    let mut stopping = api.stopping();
    let done = tokio::select! {
        done = api.carry_out(&caller, work, act) => done?,
        () = told(&mut stopping) => return Err(Failure::new(
            Kind::Unreachable,
            "the manager is ending",
            Some("try again when it has been started again".into()),
        )
        .into()),
    };
    let signed = done.signed.as_ref().map(value).transpose()?;
    Ok(Json(Verification {
        report: value(&done.report)?,
        signed,
    }))
}

fn value(document: &impl Serialize) -> Result<serde_json::Value, Problem> {
    serde_json::to_value(document).map_err(|error| Problem::internal(error.to_string()))
}

/// Ends a verification with the one who waits for it.
struct GivenUp(Cancel);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What can be said of a request without looking for the disk.
fn check(wanted: &Verify) -> Result<(), Problem> {
    if wanted.disk.is_none() && wanted.volume.is_none() {
        return Err(Problem::usage(
            "neither disk nor volume is given",
            "name an attached disk, or the path of a volume",
        ));
    }
    if wanted.full && (wanted.sample.is_some() || wanted.seed.is_some()) {
        return Err(Problem::usage(
            "full means every unit, and sample and seed some",
            "leave out one or the other",
        ));
    }
    if wanted
        .sample
        .is_some_and(|units| !(1..=SAMPLE_MAX).contains(&units))
    {
        return Err(Problem::usage(
            format!("a sample has 1 to {SAMPLE_MAX} units"),
            "say full for all of them",
        ));
    }
    if wanted
        .nonce
        .as_ref()
        .is_some_and(|nonce| nonce.len() > NONCE_MAX)
    {
        return Err(Problem::usage(
            format!("a nonce has at most {NONCE_MAX} bytes"),
            "32 random characters are enough",
        ));
    }
    Ok(())
}
