//! What can be asked for over HTTP: a challenge, a call, and how the broker is.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};

use super::calls::{self, Caller, Refusal};
use super::state::Broker;
use crate::kms::broker::protocol::{
    BODY_MAX, CALL_PATH, CHALLENGE_PATH, Challenge, ChallengeAnswer, Frame, HEALTH_PATH, Health,
    Problem, ProblemKind, VERSION,
};

/// What handlers have.
#[derive(Clone, Debug)]
struct Service {
    broker: Arc<Broker>,
    body_time: Duration,
}

/// The service of `broker`, in which bodies have `body_time` to arrive. Each
/// request has its [`Caller`] as an extension.
pub fn router(broker: Arc<Broker>, body_time: Duration) -> Router {
    Router::new()
        .route(CHALLENGE_PATH, post(challenge))
        .route(CALL_PATH, post(call))
        .route(HEALTH_PATH, get(health))
        .fallback(nothing)
        .method_not_allowed_fallback(nothing)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(Service { broker, body_time })
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.reason {
            "slow" => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::from_u16(self.problem.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        problem(status, self.problem, self.detail)
    }
}

fn problem(status: StatusCode, problem: ProblemKind, detail: String) -> Response {
    (status, Json(Problem { problem, detail })).into_response()
}

async fn nothing() -> Response {
    let detail = "a broker has nothing else than its protocol".to_owned();
    problem(StatusCode::NOT_FOUND, ProblemKind::Malformed, detail)
}

async fn challenge(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ChallengeAnswer>, Refusal> {
    let broker = &service.broker;
    broker
        .known(&caller)
        .map_err(|refusal| broker.refuse(&caller, refusal))?;
    let refuse = |detail: String| Refusal::new(ProblemKind::Internal, "internal", detail);
    let challenge = broker
        .challenges
        .issue(broker.uptime())
        .map_err(|error| refuse(format!("no random bytes: {error}")))?;
    let keys = broker.keys();
    let key = keys.first().ok_or_else(|| refuse("no key".into()))?;
    Ok(Json(ChallengeAnswer {
        version: VERSION,
        key: key.public(),
        challenge: Challenge(challenge),
    }))
}

async fn call(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Frame>, Refusal> {
    let body = body(request, service.body_time)
        .await
        .map_err(|refusal| service.broker.refuse(&caller, refusal))?;
    calls::answer(&service.broker, &caller, &body)
        .await
        .map(Json)
}

async fn health(
    State(service): State<Service>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Health>, Refusal> {
    let broker = &service.broker;
    broker
        .known(&caller)
        .map_err(|refusal| broker.refuse(&caller, refusal))?;
    Ok(Json(Health {
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: VERSION,
        key_sets: broker.key_sets.definitions().len() as u64,
    }))
}

/// The whole body, if it is not too large and comes in time. What says that it
/// is too large need not be read to see that it is.
async fn body(request: Request, time: Duration) -> Result<Bytes, Refusal> {
    let too_large = || {
        let detail = format!("the body has more than {BODY_MAX} bytes");
        Refusal::new(ProblemKind::TooLarge, "request", detail)
    };
    let malformed = |reason, detail: String| Refusal::new(ProblemKind::Malformed, reason, detail);
    if request.body().size_hint().lower() > BODY_MAX as u64 {
        return Err(too_large());
    }
    let reading = tokio::time::timeout(time, Bytes::from_request(request, &()));
    match reading.await {
        Err(_) => Err(malformed(
            "slow",
            format!("the body did not arrive within {} ms", time.as_millis()),
        )),
        Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => {
            Err(too_large())
        }
        Ok(Err(error)) => Err(malformed("request", error.body_text())),
        Ok(Ok(bytes)) => Ok(bytes),
    }
}
