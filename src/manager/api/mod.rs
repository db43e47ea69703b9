//! The API of the manager: HTTP and JSON over a unix socket.
//!
//! What enters: requests of local processes, known by their credentials. A
//! request passes, in this order: its identity and correlation id, its role for
//! the operation, the bounds of its body, its meaning. What it asks is then
//! done by one of the [`services`](super::services), and recorded; this room
//! decides nothing about disks or keys.

mod caller;
mod disks;
mod extract;
mod freeze;
mod host;
mod key_sets;
mod problem;
mod rekeys;
mod resume;
mod rotations;
mod server;
mod upgrade;
mod verify;
mod volumes;

pub use caller::{CORRELATION, Caller};
pub use extract::BODY_MAX;
pub use problem::{CONTENT_TYPE as PROBLEM_TYPE, Problem, ProblemDetails, status_of};
pub use rekeys::Turn;
pub use server::{Limits, serve};

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use tokio::sync::watch;
use tracing::Instrument as _;
use utoipa::OpenApi;
use utoipa::openapi::{Content, Ref, RefOr, Response, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::roles::{Operation, Roles};
use super::services::{Act, Event, Outcome, Services};
use crate::error::{Failure, Kind};
use crate::keys::Context;

/// What the document says of itself.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "sealblk manager",
        description = "Attach and detach encrypted disks, and look after key sets. Served over a \
            unix socket; who may do what is decided by the credentials of the process that \
            connects. Every answer has the header X-Correlation-Id, and so may every request.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    servers((url = "http://localhost", description = "Over the unix socket; the host is ignored")),
    tags(
        (name = "disks", description = "Disks that are served, or will be"),
        (name = "key sets", description = "The stable names between volumes and keys"),
        (name = "volumes", description = "Volumes, attached or not"),
        (name = "host", description = "The manager itself"),
    ),
    components(schemas(ProblemDetails)),
)]
struct Document;

/// The API: what handlers share.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    services: Services,
    roles: RwLock<Arc<Roles>>,
    stopping: watch::Receiver<bool>,
    limits: Limits,
    document: OnceLock<String>,
}

impl Api {
    /// An API on these services. `stopping` becomes true when the manager is
    /// about to end, and requests that wait for something are to be answered.
    pub fn new(
        services: Services,
        roles: Roles,
        stopping: watch::Receiver<bool>,
        limits: Limits,
    ) -> Self {
        Api(Arc::new(Inner {
            services,
            roles: RwLock::new(Arc::new(roles)),
            stopping,
            limits,
            document: OnceLock::new(),
        }))
    }

    /// Who may do what, from now on.
    pub fn set_roles(&self, roles: Roles) {
        *self.0.roles.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roles);
    }

    fn roles(&self) -> Arc<Roles> {
        let roles = self.0.roles.read().unwrap_or_else(PoisonError::into_inner);
        roles.clone()
    }

    /// What it stands on.
    pub fn services(&self) -> &Services {
        &self.0.services
    }

    fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.clone()
    }

    fn body_time(&self) -> Duration {
        self.0.limits.body_time
    }

    async fn record(&self, event: &Event<'_>) -> Result<(), Failure> {
        match &self.0.services.audit {
            Some(audit) => audit.record(event).await,
            None => Ok(()),
        }
    }

    /// Does what was asked, to its end: also when the one who asked has gone
    /// away, so that nothing is left half done and nothing unrecorded. `act`
    /// says what it was, knowing what came of it.
    async fn carry_out<T, W, F, A>(&self, caller: &Caller, work: W, act: A) -> Result<T, Problem>
    where
        T: Send + 'static,
        W: FnOnce(Services, Context) -> F + Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
        A: FnOnce(Option<&T>) -> Act + Send + 'static,
    {
        let (api, context) = (self.clone(), caller.context());
        let task = async move {
            let start = Instant::now();
            let result = work(api.services().clone(), context.clone()).await;
            let act = act(result.as_ref().ok());
            let event = Event {
                context: &context,
                act: &act,
                outcome: match &result {
                    Ok(_) => Outcome::Done,
                    Err(failure) => Outcome::Failed(failure),
                },
                took: start.elapsed(),
            };
            let recorded = api.record(&event).await;
            match (result, recorded) {
                (Ok(done), Ok(())) => Ok(done),
                (Err(failure), recorded) => {
                    tracing::warn!("it failed: {failure}");
                    if let Err(error) = recorded {
                        tracing::error!("the audit log could not take note of it: {error}");
                    }
                    Err(failure)
                }
                (Ok(_), Err(error)) => Err(Failure::new(
                    Kind::Io,
                    format!("it was done, but the audit log could not take note of it: {error}"),
                    Some("look at the space and the state of the audit log's file system".into()),
                )),
            }
        };
        match tokio::spawn(task.in_current_span()).await {
            Ok(result) => result.map_err(Problem::from),
            Err(error) => Err(Problem::internal(format!("the work on it ended: {error}"))),
        }
    }

    /// The OpenAPI document, as JSON.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn document(&self) -> Result<String, Problem> {
        if let Some(document) = self.0.document.get() {
            return Ok(document.clone());
        }
        let (_, document) = self.routes();
        let text = document
            .to_pretty_json()
            .map_err(|error| Problem::internal(error.to_string()))?;
        Ok(self.0.document.get_or_init(|| text).clone())
    }

    /// All routes, with their description.
    fn routes(&self) -> (Router<Api>, utoipa::openapi::OpenApi) {
        let only = |route, operation| caller::only(route, self, operation);
        let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
            .routes(only(routes!(host::status), Operation::Look))
            .routes(only(routes!(host::reload), Operation::Reload))
            .routes(only(routes!(host::audit), Operation::Look))
            .routes(only(routes!(host::metrics), Operation::Look))
            .routes(only(routes!(host::openapi), Operation::Look))
            .routes(only(routes!(disks::list), Operation::Look))
            .routes(only(routes!(disks::attach), Operation::Attach))
            .routes(only(routes!(disks::show), Operation::Look))
            .routes(only(routes!(disks::change), Operation::Change))
            .routes(only(routes!(disks::detach), Operation::Detach))
            .routes(only(routes!(verify::verify), Operation::Verify))
            .routes(only(routes!(freeze::freeze), Operation::Freeze))
            .routes(only(routes!(freeze::thaw), Operation::Thaw))
            .routes(only(routes!(upgrade::upgrade), Operation::Upgrade))
            .routes(only(routes!(host::upgrade), Operation::Upgrade))
            .routes(only(routes!(resume::resume), Operation::Resume))
            .routes(only(routes!(key_sets::list), Operation::Look))
            .routes(only(routes!(key_sets::create), Operation::KeySetCreate))
            .routes(only(routes!(key_sets::show), Operation::Look))
            .routes(only(routes!(key_sets::edit), Operation::KeySetEdit))
            .routes(only(routes!(key_sets::remove), Operation::KeySetRemove))
            .routes(only(routes!(key_sets::check), Operation::KeySetCheck))
            .routes(only(routes!(volumes::erase), Operation::VolumeErase))
            .routes(only(routes!(volumes::wraps), Operation::WrapsChange))
            .routes(only(routes!(rotations::rotate), Operation::KeySetRotate))
            .routes(only(routes!(rotations::switch), Operation::KeySetSwitch))
            .routes(only(routes!(rotations::ledger), Operation::Look))
            .routes(only(routes!(rotations::forget), Operation::VolumeForget))
            .routes(only(routes!(rekeys::start), Operation::Rekey))
            .routes(only(routes!(rekeys::change), Operation::RekeyPace))
            .routes(only(routes!(rekeys::turn), Operation::Rekey))
            .split_for_parts();
        add_problems(&mut document);
        (router, document)
    }

    /// The whole of it, ready to be served. A request needs the extension
    /// [`Peer`](super::peer::Peer).
    pub fn router(&self) -> Router {
        let (router, _) = self.routes();
        router
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .layer(middleware::from_fn_with_state(
                self.clone(),
                caller::identify,
            ))
            .with_state(self.clone())
    }
}

/// Every operation may fail, and always in the same way.
fn add_problems(document: &mut utoipa::openapi::OpenApi) {
    let schema = RefOr::Ref(Ref::from_schema_name("ProblemDetails"));
    let problem: Response = ResponseBuilder::new()
        .description("Why it failed")
        .content(PROBLEM_TYPE, Content::new(Some(schema)))
        .build();
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            responses.insert("default".into(), RefOr::T(problem.clone()));
        }
    }
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::not_found(
        format!("there is nothing at {}", uri.path()),
        "GET /v1/openapi.json describes what there is",
    )
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::http(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} means nothing at {}", uri.path()),
        "GET /v1/openapi.json describes what does",
    )
}

#[cfg(test)]
mod tests;
