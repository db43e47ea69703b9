//! From a credential to a token, and keeping the token alive.
//!
//! A token is renewed when two thirds of its time are over, and asked for anew
//! when it has ended, when it cannot be renewed, or when the service refuses
//! it. All of that happens with a call that needs it; nothing runs beside.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::answer;
use super::client::Client;
use super::settings::{Auth, MountPath, RoleId};
use crate::kms::cluster::Failed;
use crate::kms::credential::SecretFile;
use crate::kms::{Class, Denied, Error};
use crate::secret::Secret;

/// A token of the service. Shown as nothing.
pub(super) struct Token(Secret);

impl Token {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The present token of one endpoint, if there is one.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<Option<Held>>);

#[derive(Clone, Debug)]
struct Held {
    token: Arc<Token>,
    lease: Option<Lease>,
}

/// How long a token lasts. One without has no end.
#[derive(Clone, Copy, Debug)]
struct Lease {
    renew_at: Option<Instant>,
    ends: Instant,
}

impl Lease {
    /// `None` for a token without an end. `rest` of `whole` is left.
    fn new(rest: u64, whole: u64, renewable: bool) -> Option<Self> {
        // A century, so that no sum overflows.
        let seconds = |n: u64| Duration::from_secs(n.min(100 * 366 * 86_400));
        let (rest, whole) = (seconds(rest), seconds(whole.max(rest)));
        if whole.is_zero() {
            return None;
        }
        let now = Instant::now();
        Some(Lease {
            renew_at: renewable.then(|| now + rest.saturating_sub(whole / 3)),
            // It is not used in its last moments: the way there takes time.
            ends: now + rest - rest.min(Duration::from_secs(1)).min(rest / 10),
        })
    }
}

impl Session {
    /// A token that should be good.
    pub(super) async fn token(&self, client: &Client) -> Result<Arc<Token>, Failed> {
        let mut held = self.0.lock().await;
        if let Auth::Token(file) = &client.settings().auth {
            // Whoever replaced it had a reason.
            let now = file.read().map_err(here)?;
            if held.as_ref().is_some_and(|held| held.token.0 != now) {
                *held = None;
            }
        }
        if let Some(current) = &mut *held {
            let now = Instant::now();
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if due(current.lease.and_then(|lease| lease.renew_at)) {
                renew(client, current).await?;
            }
            if !due(current.lease.map(|lease| lease.ends)) {
                return Ok(current.token.clone());
            }
        }
        *held = None;
        let new = log_in(client).await?;
        let token = new.token.clone();
        *held = Some(new);
        Ok(token)
    }

    /// Another token than `refused`, if there can be one.
    pub(super) async fn token_after(
        &self,
        client: &Client,
        refused: &Token,
    ) -> Result<Option<Arc<Token>>, Failed> {
        let mut held = self.0.lock().await;
        if let Some(current) = held.as_ref()
            && current.token.0 != refused.0
        {
            // Another call has been here before.
            return Ok(Some(current.token.clone()));
        }
        *held = None;
        let new = log_in(client).await?;
        if new.token.0 == refused.0 {
            return Ok(None);
        }
        let token = new.token.clone();
        *held = Some(new);
        Ok(Some(token))
    }
}

fn here(error: impl Into<Error>) -> Failed {
    // The same on each endpoint.
    Failed::Everywhere(error.into())
}

fn no_memory(error: std::io::Error) -> Failed {
    Failed::Everywhere(
        Error::new(
            Class::Unreachable,
            format!("no locked memory for a token: {error}"),
            "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
        )
        .with_kind(crate::error::Kind::Io),
    )
}

/// Text of an answer that is wiped.
struct Text(Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Text(Zeroizing::new(text)))
    }
}

#[derive(Deserialize)]
struct LoginAnswer {
    auth: Granted,
}

#[derive(Deserialize)]
struct Granted {
    client_token: Text,
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct LookupAnswer {
    data: Looked,
}

#[derive(Deserialize)]
struct Looked {
    ttl: u64,
    #[serde(default)]
    creation_ttl: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Serialize)]
struct Nothing {}

/// Renews the token. If that is refused, the token is taken as ended; if the
/// service cannot answer, it is used for as long as it lasts.
async fn renew(client: &Client, held: &mut Held) -> Result<(), Failed> {
    let mount = token_mount()?;
    let asked = client.ask(
        &mount,
        &["renew-self"],
        Some(&held.token),
        Some(&Nothing {}),
    );
    let renewed: Result<LoginAnswer, Failed> = match asked.await {
        Ok((question, reply)) => answer::parse(&question, &reply),
        Err(error) => Err(error),
    };
    match renewed {
        Ok(answer) => {
            let Granted {
                lease_duration,
                renewable,
                ..
            } = answer.auth;
            // Shorter than it was: its greatest age is near.
            held.lease = Lease::new(lease_duration, lease_duration, renewable);
            tracing::debug!(endpoint = %client, seconds = lease_duration, "renewed the token");
            Ok(())
        }
        Err(Failed::Here(error)) if matches!(error.class(), Class::Denied(_) | Class::Protocol) => {
            tracing::debug!(endpoint = %client, %error, "the token cannot be renewed");
            if let Some(lease) = &mut held.lease {
                lease.ends = Instant::now();
            }
            Ok(())
        }
        Err(failed) => match held.lease {
            Some(lease) if lease.ends > Instant::now() => Ok(()),
            _ => Err(failed),
        },
    }
}

async fn log_in(client: &Client) -> Result<Held, Failed> {
    match &client.settings().auth {
        Auth::Token(file) => from_file(client, file).await,
        Auth::AppRole {
            mount,
            role_id,
            secret_id,
        } => {
            #[derive(Serialize)]
            struct Login<'l> {
                role_id: &'l str,
                secret_id: &'l str,
            }
            let from_file;
            let role_id = match role_id {
                RoleId::Plain(role_id) => role_id,
                RoleId::File(file) => {
                    from_file = file.read().map_err(here)?;
                    text(file, &from_file)?
                }
            };
            let secret = secret_id.read().map_err(here)?;
            let secret_id = text(secret_id, &secret)?;
            login(client, mount, secret_id, &Login { role_id, secret_id }).await
        }
        Auth::Certificate { mount, role } => {
            #[derive(Serialize)]
            struct Login<'l> {
                #[serde(skip_serializing_if = "Option::is_none")]
                name: Option<&'l str>,
            }
            let name = role.as_deref();
            login(client, mount, "", &Login { name }).await
        }
        Auth::Jwt { mount, role, token } => {
            #[derive(Serialize)]
            struct Login<'l> {
                role: &'l str,
                jwt: &'l str,
            }
            let secret = token.read().map_err(here)?;
            let jwt = text(token, &secret)?;
            login(client, mount, jwt, &Login { role, jwt }).await
        }
    }
}

fn text<'s>(file: &SecretFile, secret: &'s Secret) -> Result<&'s str, Failed> {
    std::str::from_utf8(secret).map_err(|_| {
        Failed::Everywhere(Error::new(
            Class::Unreachable,
            format!("{file} holds something else than text"),
            "put the secret alone, as text, into it",
        ))
    })
}

/// `auth/MOUNT/login` with a credential, which is in `body`.
async fn login(
    client: &Client,
    mount: &MountPath,
    credential: &str,
    body: &impl Serialize,
) -> Result<Held, Failed> {
    let path: MountPath = format!("auth/{mount}").parse().map_err(|why: String| {
        Failed::Everywhere(Error::new(Class::Protocol, why, "check mount in auth"))
    })?;
    let (question, reply) = client.ask(&path, &["login"], None, Some(body)).await?;
    let answer: LoginAnswer =
        answer::parse(&question, &reply).map_err(|failed| match failed {
            // 400 is what a wrong credential gets, 404 a method that is gone.
            Failed::Here(error)
                if matches!(reply.status, 400 | 401 | 403 | 404) && answer::is_own(&reply) =>
            {
                let words = error.words().unwrap_or_default().to_owned();
                Failed::Here(
                    Error::new(
                        Class::Denied(Denied::Forbidden),
                        format!("{client} does not let this host log in at {}", question.path),
                        "check the credential and the role (does it still exist, is its time or its number of uses over, may this address use it?), and that the method is mounted there",
                    )
                    .with_words(&words),
                )
            }
            other => other,
        })
        .map_err(|failed| failed.without_echo(credential))?;
    let granted = answer.auth;
    let token = Secret::copy_of(granted.client_token.0.as_bytes()).map_err(no_memory)?;
    tracing::debug!(endpoint = %client, path = question.path, seconds = granted.lease_duration, "logged in");
    Ok(Held {
        token: Arc::new(Token(token)),
        lease: Lease::new(
            granted.lease_duration,
            granted.lease_duration,
            granted.renewable,
        ),
    })
}

/// A token that somebody else put into a file.
async fn from_file(client: &Client, file: &SecretFile) -> Result<Held, Failed> {
    let token = Token(file.read().map_err(here)?);
    let mount = token_mount()?;
    let asked = client.ask(&mount, &["lookup-self"], Some(&token), None::<&Nothing>);
    let (question, reply) = asked.await?;
    let lease = match reply.status {
        // Not allowed to ask, or no good: the next request will tell.
        403 => None,
        _ => {
            let LookupAnswer { data } = answer::parse(&question, &reply)?;
            Lease::new(data.ttl, data.creation_ttl, data.renewable)
        }
    };
    Ok(Held {
        token: Arc::new(token),
        lease,
    })
}

pub(super) fn token_mount() -> Result<MountPath, Failed> {
    "auth/token".parse().map_err(|why: String| {
        Failed::Everywhere(Error::new(Class::Protocol, why, "report this as a defect"))
    })
}
