//! One endpoint: requests with a token, and a new token where one is refused.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;

use super::answer::{self, Question};
use super::session::{self, Session, Token};
use super::settings::{MountPath, Settings};
use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Error, call};

/// One endpoint, with a session of its own: clusters in different places do
/// not know each other's tokens.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: BaseUrl,
    http: Arc<Http>,
    settings: Arc<Settings>,
    session: Session,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

impl Client {
    pub(super) fn new(endpoint: BaseUrl, http: Arc<Http>, settings: Arc<Settings>) -> Self {
        Client {
            endpoint,
            http,
            settings,
            session: Session::default(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An operation of the transit engine.
    pub(super) async fn transit(
        &self,
        operation: [&str; 2],
        body: Option<&impl Serialize>,
    ) -> Result<(Question<'_>, Reply), Failed> {
        let mount = &self.settings.mount;
        self.call(method_for(body), mount, &operation, body).await
    }

    /// An operation of the engine at `mount`, with a token.
    ///
    /// A 403 can mean that the token has ended before its time, so one more
    /// try is made with a new one.
    pub(super) async fn call(
        &self,
        method: Method,
        mount: &MountPath,
        operation: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<(Question<'_>, Reply), Failed> {
        let token = self.session.token(self).await?;
        let (question, reply) = self
            .request(method.clone(), mount, operation, Some(&token), body)
            .await?;
        if reply.status != 403 {
            return Ok((question, reply));
        }
        match self.session.token_after(self, &token).await? {
            Some(token) => {
                self.request(method, mount, operation, Some(&token), body)
                    .await
            }
            // No other token is to be had.
            None => Ok((question, reply)),
        }
    }

    /// What the endpoint tells anybody of its own state. Not asked within the
    /// namespace: that of the whole service is told outside of all.
    pub(super) async fn health(&self) -> Result<(Question<'_>, Reply), Failed> {
        let question = Question {
            endpoint: &self.endpoint,
            path: "sys/health".into(),
        };
        let url = self.endpoint.join(["v1", "sys", "health"]);
        let request = Request::new(Method::GET, url).header("x-vault-request", "true");
        let reply = self.http.send(&self.endpoint, request).await?;
        Ok((question, reply))
    }

    /// What the service knows of the present token.
    pub(super) async fn look_up(&self) -> Result<(Question<'_>, Reply), Failed> {
        let token = self.session.token(self).await?;
        let mount = session::token_mount()?;
        self.ask(&mount, &["lookup-self"], Some(&token), None::<&()>)
            .await
    }

    /// One request: `GET` without a body, `POST` with one.
    pub(super) async fn ask(
        &self,
        mount: &MountPath,
        operation: &[&str],
        token: Option<&Token>,
        body: Option<&impl Serialize>,
    ) -> Result<(Question<'_>, Reply), Failed> {
        self.request(method_for(body), mount, operation, token, body)
            .await
    }

    async fn request(
        &self,
        method: Method,
        mount: &MountPath,
        operation: &[&str],
        token: Option<&Token>,
        body: Option<&impl Serialize>,
    ) -> Result<(Question<'_>, Reply), Failed> {
        let segments: Vec<&str> = mount.segments().chain(operation.iter().copied()).collect();
        let question = Question {
            endpoint: &self.endpoint,
            path: segments.join("/"),
        };
        let url = self.endpoint.join(["v1"].into_iter().chain(segments));
        // Agents and proxies of the service can be set to demand it.
        let mut request = Request::new(method, url).header("x-vault-request", "true");
        if let Some(namespace) = &self.settings.namespace {
            request = request.header("x-vault-namespace", &namespace.to_string());
        }
        if let Some(id) = call::correlation() {
            request = request.header("x-correlation-id", &id.to_string());
        }
        if let Some(token) = token {
            request = request
                .secret_header("x-vault-token", token.bytes())
                .ok_or_else(not_a_token)?;
        }
        if let Some(body) = body {
            request = request.json(body)?;
        }
        let reply = self.http.send(&self.endpoint, request).await?;
        if let Some(id) = answer::request_id(&reply) {
            call::note_request_id(id);
        }
        tracing::trace!(endpoint = %self.endpoint, path = question.path, status = reply.status, "asked");
        Ok((question, reply))
    }

    /// The failure that an answer is, if it is one.
    pub(super) fn check(question: &Question<'_>, reply: &Reply) -> Result<(), Failed> {
        match reply.status {
            200..300 => Ok(()),
            _ => Err(Failed::Here(answer::refusal(question, reply))),
        }
    }
}

fn method_for<B>(body: Option<&B>) -> Method {
    match body {
        Some(_) => Method::POST,
        None => Method::GET,
    }
}

fn not_a_token() -> Failed {
    Failed::Everywhere(Error::new(
        Class::Unreachable,
        "the token has characters that no token has",
        "put the token alone, on one line, into its file",
    ))
}
