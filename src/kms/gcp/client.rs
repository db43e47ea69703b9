//! One endpoint: requests with a token.

use std::fmt;
use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::answer::{self, Fault, Question, Told, Verb};
use super::session::Token;
use super::settings::KeyName;
use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Error, call};
use crate::timestamp::Timestamp;

/// One endpoint. All of them take the same tokens, so it has none of its own.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: BaseUrl,
    http: Arc<Http>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

impl Client {
    pub(super) fn new(endpoint: BaseUrl, http: Arc<Http>) -> Self {
        Client { endpoint, http }
    }

    /// The address of a key, or of a version of it, with an action.
    fn request(&self, key: &KeyName, version: Option<u64>, verb: Verb) -> Request {
        let name = match version {
            Some(version) => key.version(version),
            None => key.to_string(),
        };
        let (method, path) = match verb {
            Verb::Get => (Method::GET, name),
            Verb::Encrypt => (Method::POST, name + ":encrypt"),
            Verb::Decrypt => (Method::POST, name + ":decrypt"),
        };
        let url = self
            .endpoint
            .join(["v1"].into_iter().chain(path.split('/')));
        let request = Request::new(method, url);
        match call::correlation() {
            // It stands in the service's audit log, as the reason of the request.
            Some(id) => request.header("x-goog-request-reason", &format!("sealblk {id}")),
            None => request,
        }
    }

    /// One request: what was asked, and the answer of a success.
    pub(super) async fn ask<'q>(
        &'q self,
        token: &Token,
        key: &'q KeyName,
        version: Option<u64>,
        verb: Verb,
        body: Option<&impl Serialize>,
    ) -> Result<(Question<'q>, Reply), Fault> {
        let question = Question {
            endpoint: &self.endpoint,
            key,
            verb,
        };
        let mut request = self
            .request(key, version, verb)
            .secret_header("authorization", token.bearer())
            .ok_or_else(not_a_token)?;
        if let Some(body) = body {
            request = request.json(body)?;
        }
        let reply = self.http.send(&self.endpoint, request).await?;
        tracing::trace!(endpoint = %self.endpoint, %key, ?verb, status = reply.status, "asked");
        match reply.status {
            200..300 => Ok((question, reply)),
            _ => Err(answer::refusal(&question, &reply)),
        }
    }

    /// The answer in JSON. Not for what is secret.
    pub(super) fn parse<T: DeserializeOwned>(
        question: &Question<'_>,
        reply: &Reply,
    ) -> Result<T, Error> {
        serde_json::from_slice(&reply.body).map_err(|error| {
            strange(
                question,
                &format!(
                    "something else than was asked for (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            )
        })
    }

    /// Whether Cloud KMS is there, and what time it has. Asks without a token,
    /// which it refuses in its own way.
    pub(super) async fn greet(&self, key: &KeyName) -> Result<Option<Timestamp>, Failed> {
        let request = self.request(key, None, Verb::Get);
        let reply = self.http.send(&self.endpoint, request).await?;
        match (reply.status, Told::of(&reply.body)) {
            (401 | 403, Some(_)) => Ok(reply.date),
            (status, _) => Err(Failed::Here(Error::new(
                if status >= 500 {
                    Class::Unreachable
                } else {
                    Class::Protocol
                },
                format!(
                    "{} answers a request without a token with status {status}, and not as Cloud KMS does",
                    self.endpoint
                ),
                "check that the endpoint is one of Cloud KMS, and what is in between",
            ))),
        }
    }
}

/// The failure of a success that is none.
pub(super) fn strange(question: &Question<'_>, what: &str) -> Error {
    Error::new(
        Class::Protocol,
        format!(
            "{} answers for {} with {what}",
            question.endpoint, question.key
        ),
        "check that the endpoint is one of Cloud KMS, and what is in between",
    )
}

fn not_a_token() -> Failed {
    Failed::Everywhere(Error::new(
        Class::Protocol,
        "the token that this host was given has characters that no token has",
        "check where the credentials of the key set come from",
    ))
}
