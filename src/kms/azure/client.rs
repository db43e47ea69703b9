//! Requests to a vault: with a token, and a new one where it is refused.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Method, Url};
use serde::Serialize;
use zeroize::Zeroizing;

use super::answer::{self, Operation, Question, Refusal};
use super::challenge::{self, Challenge, Trusted};
use super::name::{KeyName, Version};
use super::session::{Granted, Held, Session, Token};
use super::settings::{Identity, Settings};
use super::{login, platform};
use crate::kms::cluster::Failed;
use crate::kms::http::{Http, Reply, Request};
use crate::kms::{Class, Error, call};

/// A vault, as the one endpoint.
#[derive(Debug)]
pub(super) struct Client {
    settings: Settings,
    http: Http,
    session: Session,
    challenge: Mutex<Option<Arc<Challenge>>>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.vault.fmt(f)
    }
}

/// Nothing to send.
pub(super) const EMPTY: Option<&()> = None;

impl Client {
    pub(super) fn new(settings: Settings) -> Self {
        Client {
            http: Http::new(settings.tls.clone()),
            settings,
            session: Session::default(),
            challenge: Mutex::default(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn question<'q>(
        &'q self,
        operation: Operation,
        name: &'q KeyName,
        version: Option<&'q Version>,
    ) -> Question<'q> {
        Question {
            vault: &self.settings.vault,
            operation,
            name,
            version,
        }
    }

    /// The address for a question.
    pub(super) fn address(&self, question: &Question<'_>, api: &str) -> Url {
        let (name, version) = (question.name.as_str(), question.version);
        let collection = match question.operation {
            Operation::GetDeleted => "deletedkeys",
            _ => "keys",
        };
        let last = match question.operation {
            Operation::Get | Operation::GetDeleted => None,
            Operation::Versions => Some("versions"),
            Operation::Wrap => Some("wrapkey"),
            Operation::Unwrap => Some("unwrapkey"),
        };
        let segments = [
            Some(collection),
            Some(name),
            version.map(Version::as_str),
            last,
        ];
        let mut url = self.settings.vault.join(segments.into_iter().flatten());
        url.query_pairs_mut().append_pair("api-version", api);
        url
    }

    /// Asks, and takes the answer if it is a success: `GET` without a body,
    /// `POST` with one.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<Result<Reply, Refusal>, Failed> {
        let reply = self.with_token(url, body).await?;
        tracing::trace!(vault = %self, operation = ?question.operation, status = reply.status, "asked");
        Ok(match reply.status {
            200..300 => Ok(reply),
            _ => Err(answer::refusal(question, &reply)),
        })
    }

    async fn with_token(&self, url: Url, body: Option<&impl Serialize>) -> Result<Reply, Failed> {
        let known = self.known_challenge();
        let challenge = match known {
            Some(challenge) => challenge,
            None => {
                // Without a body: it is for who has shown to be the vault.
                let method = method(body.is_some());
                let reply = self.send(method, url.clone(), None, EMPTY).await?;
                if !matches!(reply.status, 200..300 | 401) {
                    return Ok(reply);
                }
                self.challenged(&reply)?
            }
        };
        let held = self.token(&challenge).await?;
        let method = method(body.is_some());
        let reply = self
            .send(method.clone(), url.clone(), Some(&held.token), body)
            .await?;
        if reply.status != 401 {
            return Ok(reply);
        }
        // The token ended before its time, or the vault moved to another tenant.
        let challenge = match reply.header("www-authenticate") {
            Some(_) => self.challenged(&reply)?,
            None => challenge,
        };
        let other = self
            .session
            .token_after(&held.token, &challenge, async || {
                self.new_token(&challenge).await
            })
            .await?;
        if other.token.bytes() == held.token.bytes() {
            return Ok(reply);
        }
        self.send(method, url, Some(&other.token), body).await
    }

    /// What the vault says of itself to anybody.
    pub(super) async fn introduce(&self) -> Result<(Reply, Arc<Challenge>), Failed> {
        let mut url = self.settings.vault.join(["keys"]);
        url.query_pairs_mut().append_pair("api-version", super::API);
        let reply = self.send(Method::GET, url, None, EMPTY).await?;
        let challenge = self.challenged(&reply)?;
        Ok((reply, challenge))
    }

    /// A token that should be good.
    pub(super) async fn token(&self, challenge: &Arc<Challenge>) -> Result<Held, Failed> {
        self.session
            .token(challenge, async || self.new_token(challenge).await)
            .await
    }

    async fn new_token(&self, challenge: &Challenge) -> Result<Granted, Failed> {
        match &self.settings.identity {
            Identity::Managed {
                platform, which, ..
            } => platform::token(&self.http, platform, which, &challenge.resource).await,
            identity => login::token(&self.http, identity, challenge).await,
        }
    }

    fn known_challenge(&self) -> Option<Arc<Challenge>> {
        let known = self.challenge.lock();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of where the vault wants us to log in.
    fn challenged(&self, reply: &Reply) -> Result<Arc<Challenge>, Failed> {
        let trusted = Trusted {
            vault: &self.settings.vault,
            authority: self.settings.authority.as_ref(),
            resource: self.settings.resource.as_deref(),
        };
        let challenge = Arc::new(challenge::read(reply.header("www-authenticate"), trusted)?);
        let mut known = self
            .challenge
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Some(challenge.clone());
        Ok(challenge)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        token: Option<&Token>,
        body: Option<&impl Serialize>,
    ) -> Result<Reply, Failed> {
        let mut request = Request::new(method, url).header("accept", "application/json");
        if let Some(id) = call::correlation() {
            request = request.header("x-ms-client-request-id", &id.to_string());
        }
        if let Some(token) = token {
            let bearer = Zeroizing::new([b"Bearer ", token.bytes()].concat());
            request = request
                .secret_header("authorization", &bearer)
                .ok_or_else(not_a_token)?;
        }
        if let Some(body) = body {
            request = request.json(body)?;
        }
        let reply = self.http.send(&self.settings.vault, request).await?;
        if let Some(id) = reply.header("x-ms-request-id") {
            call::note_request_id(id);
        }
        Ok(reply)
    }
}

fn method(has_body: bool) -> Method {
    match has_body {
        true => Method::POST,
        false => Method::GET,
    }
}

fn not_a_token() -> Failed {
    Failed::Here(Error::new(
        Class::Protocol,
        "the token has characters that no token has",
        "check the authority, or what this machine runs on, in the key set",
    ))
}
