//! One broker: challenges, sealed calls, and what it says of itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use super::challenges::{Challenges, Given};
use super::protocol::{
    Answer, BODY_MAX, ChallengeAnswer, Failure, Frame, Health, Malformed, Operation, Outcome,
    Problem, ProblemKind, Request, VERSION,
};
use super::seal::PrivateKey;
use super::{keyfile, refusal, seal, settings::Settings};
use crate::kms::cluster::Failed;
use crate::kms::http::{self, BaseUrl, Http, Reply};
use crate::kms::{Class, Error, call, envelope};
use crate::timestamp::Timestamp;

const CHALLENGE: [&str; 3] = ["v1", "broker", "challenge"];
const CALL: [&str; 3] = ["v1", "broker", "call"];
const HEALTH: [&str; 3] = ["v1", "broker", "health"];

/// One broker, with the challenges that it gave.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: BaseUrl,
    http: Arc<Http>,
    settings: Arc<Settings>,
    challenges: Challenges,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// What became of one request.
enum Sent {
    Answered(Answer),
    /// The challenge was not taken: of a broker that was restarted, or too old.
    NewChallenge(Reply),
}

impl Client {
    pub(super) fn new(endpoint: BaseUrl, http: Arc<Http>, settings: Arc<Settings>) -> Self {
        Client {
            endpoint,
            http,
            settings,
            challenges: Challenges::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &BaseUrl {
        &self.endpoint
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Has the broker do `operation` with `key_set`, and gives what it answers.
    ///
    /// # Errors
    /// When there is no sealed answer. What a sealed one says is no error here.
    pub(super) async fn call(
        &self,
        key_set: &str,
        operation: impl Fn() -> Result<Operation, Error>,
    ) -> Result<Outcome, Failed> {
        // Read anew, so that one that was replaced is taken at once.
        let key = keyfile::read(&self.settings.host_key).map_err(Failed::Everywhere)?;
        let correlation = call::correlation().unwrap_or_else(Uuid::new_v4);
        let mut request = Request {
            challenge: super::protocol::Challenge(Vec::new()),
            correlation,
            key_set: key_set.into(),
            patience: None,
            operation: operation().map_err(Failed::Everywhere)?,
        };
        let mut kept = self.challenges.take();
        loop {
            let (given, fresh) = match kept.take() {
                Some(given) => (given, false),
                None => (self.challenge().await?, true),
            };
            request.challenge = given.challenge.clone();
            request.patience = patience();
            match self.send(&key, &given, &request).await? {
                Sent::Answered(answer) => return Ok(answer.outcome),
                Sent::NewChallenge(_) if !fresh => self.challenges.forget(),
                Sent::NewChallenge(reply) => {
                    return Err(refusal::bare(self, &CALL.join("/"), &reply).into());
                }
            }
        }
    }

    /// A new challenge.
    async fn challenge(&self) -> Result<Given, Failed> {
        let since = Instant::now();
        let reply = self.ask(Method::POST, &CHALLENGE, None).await?;
        let answer: ChallengeAnswer = self.parse(&CHALLENGE, &reply)?;
        if answer.version != VERSION {
            return Err(refusal::unopened(self, &seal::Error::Version(answer.version)).into());
        }
        if !self.settings.broker_keys.contains(&answer.key) {
            return Err(refusal::unknown_key(self, &answer.key).into());
        }
        Ok(Given {
            challenge: answer.challenge,
            key: answer.key,
            since,
        })
    }

    async fn send(
        &self,
        key: &PrivateKey,
        given: &Given,
        request: &Request,
    ) -> Result<Sent, Failed> {
        let message = request
            .to_secret()
            .map_err(|error| Failed::Everywhere(envelope::no_memory(&error)))?;
        let host = self.settings.host.as_str();
        let frame = seal::request(key, host, given.key, &message)
            .map_err(|error| Failed::Everywhere(unsealed(&error)))?;
        drop(message);
        let since = Instant::now();
        let reply = self.ask(Method::POST, &CALL, Some(&frame)).await?;
        if reply.status == 409 && is_about_the_challenge(&reply) {
            return Ok(Sent::NewChallenge(reply));
        }
        let sealed: Frame = self.parse(&CALL, &reply)?;
        let opened = seal::open_answer(key, given.key, &frame, &sealed)
            .map_err(|error| refusal::unopened(self, &error))?;
        let answer = Answer::parse(&opened).map_err(|why| self.not_understood(&why))?;
        if let Some(id) = &answer.request_id {
            call::note_request_id(id);
        }
        self.challenges.keep(Given {
            challenge: answer.next_challenge.clone(),
            key: given.key,
            since,
        });
        tracing::trace!(endpoint = %self.endpoint, operation = request.operation.name(), "asked");
        Ok(Sent::Answered(answer))
    }

    /// What the broker tells of itself, and what time it is there.
    pub(super) async fn health(&self) -> Result<(Health, Option<Timestamp>), Failed> {
        let reply = self.ask(Method::GET, &HEALTH, None).await?;
        Ok((self.parse(&HEALTH, &reply)?, reply.date))
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Frame>,
    ) -> Result<Reply, Failed> {
        let url = self.endpoint.join(path.iter().copied());
        let mut request = http::Request::new(method, url);
        if let Some(body) = body {
            request = request.json(body)?;
        }
        let reply = self.http.send(&self.endpoint, request).await?;
        if reply.body.len() > BODY_MAX {
            return Err(Error::new(
                Class::Unreachable,
                format!(
                    "{} answers with more than {} KiB",
                    self.endpoint,
                    BODY_MAX >> 10
                ),
                "check that the endpoint is that of a sealblk broker, and what is in between",
            )
            .into());
        }
        Ok(reply)
    }

    /// The body of an answer with status 200.
    fn parse<T: DeserializeOwned>(&self, path: &[&str], reply: &Reply) -> Result<T, Failed> {
        let path = path.join("/");
        if reply.status != 200 {
            return Err(refusal::bare(self, &path, reply).into());
        }
        serde_json::from_slice(&reply.body)
            .map_err(|error| refusal::garbled(self, &path, &Malformed::from(error)).into())
    }

    fn not_understood(&self, why: &Malformed) -> Failed {
        Failed::Here(Error::new(
            Class::Protocol,
            format!("the answer of {} is not understood: {why}", self.endpoint),
            "use releases of sealblk on hosts and brokers that have a version of the protocol in common",
        ))
    }

    /// The error of an answer to something else than was asked.
    pub(super) fn beside_the_point(&self) -> Failed {
        Failed::Here(Error::new(
            Class::Protocol,
            format!("{} answers something else than it was asked", self.endpoint),
            "use releases of sealblk on hosts and brokers that have a version of the protocol in common",
        ))
    }

    /// What the broker itself says went wrong. It has been authenticated, so
    /// that this may be a denial.
    pub(super) fn told(&self, key_set: &str, failure: &Failure) -> Failed {
        let told = Error::new(
            failure.class(),
            format!(
                "{} says of key set {key_set:?}: {}",
                self.endpoint,
                plain(&failure.cause)
            ),
            plain(&failure.next),
        );
        Failed::Here(match &failure.words {
            Some(words) => told.with_words(words),
            None => told,
        })
    }
}

/// How long the broker may take: somewhat less than anybody waits for it, so
/// that it still says itself what is wrong.
fn patience() -> Option<Duration> {
    let left = call::until()?.saturating_duration_since(Instant::now());
    Some(left.mul_f64(0.8))
}

/// Text of a broker, on one line and not endlessly.
fn plain(text: &str) -> String {
    const TEXT_MAX: usize = 1000;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT_MAX)
        .collect()
}

fn is_about_the_challenge(reply: &Reply) -> bool {
    matches!(
        refusal::problem(reply),
        Some(Problem {
            problem: ProblemKind::Challenge,
            ..
        })
    )
}

fn unsealed(error: &seal::Error) -> Error {
    match error {
        seal::Error::Memory(error) => envelope::no_memory(error),
        error => Error::new(
            Class::Unreachable,
            format!("nothing can be sealed for the broker: {error}"),
            "correct broker_keys: each is what `sealblk broker pubkey FILE` prints at a broker",
        ),
    }
}
