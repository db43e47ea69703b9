//! What handlers take from a request: bounded, complete, and with nothing in
//! it that is not understood.
#![forbid(unsafe_code)]

use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::Api;
use super::problem::Problem;

/// The most bytes that a body has. A key set with every setting has a fiftieth.
pub const BODY_MAX: usize = 64 << 10;

/// A body in JSON.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !["application/json", "application/merge-patch+json"]
            .iter()
            .any(|known| essence.eq_ignore_ascii_case(known))
        {
            return Err(Problem::http(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("the body is {essence:?}, and not JSON"),
                "send it with Content-Type: application/json",
            ));
        }
        // What says that it is too large need not be read to see that it is.
        if request.body().size_hint().lower() > BODY_MAX as u64 {
            return Err(too_large());
        }
        let time = api.body_time();
        let bytes = tokio::time::timeout(time, Bytes::from_request(request, &()))
            .await
            .map_err(|_| {
                Problem::http(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("the body did not arrive within {} seconds", time.as_secs()),
                    "send it at once",
                )
            })?
            .map_err(unreadable)?;
        serde_json::from_slice(&bytes).map(Body).map_err(|error| {
            Problem::usage(
                format!("the body is not as it must be: {error}"),
                "see GET /v1/openapi.json for what it may have",
            )
        })
    }
}

fn too_large() -> Problem {
    Problem::http(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body has more than {BODY_MAX} bytes"),
        "send what the request needs, and nothing else",
    )
}

fn unreadable(rejection: BytesRejection) -> Problem {
    match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => too_large(),
        other => Problem::usage(
            format!("the body cannot be read: {}", other.body_text()),
            "send it whole",
        ),
    }
}

/// What follows the question mark.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, api).await {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(rejection) => Err(Problem::usage(
                rejection.body_text(),
                "see GET /v1/openapi.json for what may follow the question mark",
            )),
        }
    }
}

/// The name in the path.
#[derive(Debug)]
pub struct Named(pub String);

impl FromRequestParts<Api> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        match axum::extract::Path::<String>::from_request_parts(parts, api).await {
            Ok(axum::extract::Path(name)) => Ok(Named(name)),
            Err(rejection) => Err(Problem::usage(
                rejection.body_text(),
                "write the name in UTF-8, with %XX for what a path cannot have",
            )),
        }
    }
}
