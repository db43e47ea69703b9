//! Who calls, what they may do, and the id that ties records together: what
//! stands before every handler.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tracing::Instrument as _;
use utoipa_axum::router::{UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use uuid::Uuid;

use super::Api;
use super::problem::Problem;
use crate::keys::{Actor, Context};
use crate::manager::peer::Peer;
use crate::manager::roles::{Operation, Refused, Role};
use crate::manager::services::{Act, Event, Outcome};

/// Names the request in our records, in the key service's and in the answer.
pub const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");

/// Somebody who was permitted to do what they ask.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who, as the kernel says.
    pub peer: Peer,
    /// The role in which it was permitted.
    pub role: Role,
    /// Ties records together.
    pub correlation: Uuid,
}

impl Caller {
    /// For records.
    pub fn context(&self) -> Context {
        context(&self.peer, self.role.as_str(), self.correlation)
    }
}

fn context(peer: &Peer, role: &'static str, correlation: Uuid) -> Context {
    Context {
        actor: Actor {
            uid: peer.uid,
            pid: peer.pid,
            role: Cow::Borrowed(role),
            host: None,
        },
        volume: None,
        correlation,
        break_glass: false,
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Problem::internal("nobody checked who may do this"))
    }
}

/// The correlation id of a request, until it is known who may do what.
#[derive(Clone, Copy, Debug)]
struct Correlation(Uuid);

/// Outermost of all: gives the request its id, turns those away who have no
/// role at all, and logs how it ended.
pub(super) async fn identify(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let given = request.headers().get(&CORRELATION);
    let parsed = given.map(|id| id.to_str().ok().and_then(|id| id.parse::<Uuid>().ok()));
    let correlation = parsed.flatten().unwrap_or_else(Uuid::new_v4);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let peer = request.extensions().get::<Peer>().cloned();
    let span = tracing::info_span!(
        "request",
        %method,
        path,
        uid = peer.as_ref().map(|peer| peer.uid),
        %correlation,
    );
    let answer = async {
        let Some(peer) = peer else {
            return Problem::internal("a connection has no peer").into_response();
        };
        if parsed == Some(None) {
            let problem = Problem::usage(
                "X-Correlation-Id is not a UUID",
                "leave it out, and one is made; the answer has it",
            );
            return problem.into_response();
        }
        if let Err(refused) = api.roles().permit(&peer, Operation::Look) {
            return api
                .refuse(&peer, correlation, Operation::Look, "", refused)
                .await;
        }
        request.extensions_mut().insert(Correlation(correlation));
        next.run(request).await
    };
    let mut response = answer.instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::from_str(&correlation.to_string()) {
        response.headers_mut().insert(CORRELATION, value);
    }
    let status = response.status().as_u16();
    let took = start.elapsed();
    let route = response.extensions_mut().remove::<Route>();
    let route = route.as_ref().map_or("none", |Route(route)| route);
    let metrics = &api.services().metrics;
    metrics.api_request(method.as_str(), route, status, took);
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    span.in_scope(|| match method {
        // Looking is done by the second.
        Method::GET | Method::HEAD => tracing::debug!(status, took_ms, "answered"),
        _ => tracing::info!(status, took_ms, "answered"),
    });
    response
}

/// The route, for those alone who may do `operation`. Others are turned away
/// before their body is read.
pub(super) fn only(
    route: UtoipaMethodRouter<Api>,
    api: &Api,
    operation: Operation,
) -> UtoipaMethodRouter<Api> {
    let pattern = route.1.paths.keys().next().cloned().unwrap_or_default();
    let state = Guard {
        api: api.clone(),
        operation,
        route: Route(pattern.into()),
    };
    let layer = middleware::from_fn_with_state(state, permit);
    route.map(|methods| methods.route_layer(layer))
}

/// What stands before a route.
#[derive(Clone)]
struct Guard {
    api: Api,
    operation: Operation,
    route: Route,
}

/// The pattern that a path matched.
#[derive(Clone, Debug)]
struct Route(Arc<str>);

async fn permit(
    State(guard): State<Guard>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let route = guard.route.clone();
    let mut response = permitted(guard, parameters, request, next).await;
    response.extensions_mut().insert(route);
    response
}

async fn permitted(
    Guard { api, operation, .. }: Guard,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let extensions = request.extensions();
    let (Some(peer), Some(Correlation(correlation))) = (
        extensions.get::<Peer>().cloned(),
        extensions.get::<Correlation>().copied(),
    ) else {
        return Problem::internal("a request was not identified").into_response();
    };
    match api.roles().permit(&peer, operation) {
        Ok(role) => {
            request.extensions_mut().insert(Caller {
                peer,
                role,
                correlation,
            });
            next.run(request).await
        }
        Err(refused) => {
            // What is not UTF-8 is no name.
            let parameters = parameters.as_ref().ok();
            let name = parameters.and_then(|parameters| parameters.iter().next());
            let object = name.map_or("", |(_, value)| value);
            api.refuse(&peer, correlation, operation, object, refused)
                .await
        }
    }
}

impl Api {
    /// Turns somebody away, and takes note of it.
    async fn refuse(
        &self,
        peer: &Peer,
        correlation: Uuid,
        operation: Operation,
        object: &str,
        refused: Refused,
    ) -> Response {
        tracing::warn!(uid = peer.uid, pid = peer.pid, %operation, object, "refused: {refused}");
        let event = Event {
            // They had no role for it.
            context: &context(peer, "none", correlation),
            act: &Act::Refused {
                operation,
                object: object.to_owned(),
                needs: refused.needs,
            },
            outcome: Outcome::Refused(&refused.to_string()),
            took: Duration::ZERO,
        };
        // They are turned away in any case.
        if let Err(error) = self.record(&event).await {
            tracing::error!("the audit log could not take note of a refusal: {error}");
        }
        Problem::from(refused).into_response()
    }
}
