//! The present token: kept for as long as it lasts, replaced before it ends,
//! and asked for once, however many calls wait for it.
//!
//! All of that happens with a call that needs a token; nothing runs beside.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use super::issue::{Fingerprint, Issued, Issuer};
use super::settings::{Account, Auth};
use crate::kms::cluster::{Cluster, Failed, Timing};
use crate::kms::http::{BaseUrl, Http};
use crate::kms::{Class, Error, call};
use crate::secret::Secret;

/// What may be left of a token when a new one is asked for. The metadata
/// server gives out the same one until five minutes are left of it.
const EARLY: Duration = Duration::from_secs(225);

/// How long a call waits for a new token while the old one is good still.
const EARLY_WAIT: Duration = Duration::from_secs(1);

/// How long the old token is used, when there is no new one, before the next try.
const AGAIN: Duration = Duration::from_secs(10);

/// A token of Google. Shown as nothing.
pub(super) struct Token(Secret);

impl Token {
    /// `Bearer TOKEN`.
    pub(super) fn bearer(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The identity of this host at the service.
#[derive(Debug)]
pub(super) struct Session {
    /// One, which is asked again as endpoints are.
    issuer: Cluster<Issuer>,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    token: Arc<Token>,
    who: Option<String>,
    /// The credentials it was given out for.
    of: Fingerprint,
    renew_at: Instant,
    ends: Instant,
}

impl Held {
    fn new(issued: Issued, of: Fingerprint) -> Self {
        let now = Instant::now();
        let left = issued.lifetime.min(Duration::from_secs(86_400));
        tracing::debug!(seconds = left.as_secs(), "was given a token");
        Held {
            token: Arc::new(Token(issued.bearer)),
            who: issued.who,
            of,
            renew_at: now + left.saturating_sub(EARLY).max(left / 2),
            // It is not used in its last moments: the way there takes time.
            ends: now + left - (left / 10).min(Duration::from_secs(10)),
        }
    }
}

/// Who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The service account, or the workload identity provider.
    pub name: String,
    /// How long the present token lasts still.
    pub left: Duration,
}

impl Session {
    pub(super) fn new(auth: Auth, http: Arc<Http>, timing: Timing) -> Self {
        // Once, as a rule: the deadline of the call is for the service.
        let timing = Timing {
            deadline: timing.timeout.min(timing.deadline),
            ..timing
        };
        Session {
            issuer: Cluster::new([Issuer { auth, http }], timing),
            held: Mutex::default(),
        }
    }

    fn issuer(&self) -> Result<&Issuer, Error> {
        // It was made with one.
        self.issuer.endpoints().next().ok_or_else(|| {
            Error::new(
                Class::Protocol,
                "there is nobody to ask for a token",
                "this is a defect of sealblk: report it",
            )
        })
    }

    /// A token that should be good.
    pub(super) async fn token(&self) -> Result<Arc<Token>, Error> {
        let mut held = self.lock().await?;
        self.fill(&mut held).await
    }

    /// The token, once nobody else asks for one.
    async fn lock(&self) -> Result<MutexGuard<'_, Option<Held>>, Error> {
        let locked = self.held.lock();
        match call::until() {
            None => Ok(locked.await),
            Some(until) => tokio::time::timeout_at(until, locked).await.map_err(|_| {
                Error::new(
                    Class::Unreachable,
                    "other calls of this host wait for a token, and none was given out in time",
                    "see what keeps this host from getting one: `sealblk doctor`",
                )
            }),
        }
    }

    async fn fill(&self, held: &mut Option<Held>) -> Result<Arc<Token>, Error> {
        let of = self.issuer()?.fingerprint()?;
        // Whoever replaced the credentials had a reason.
        if held.as_ref().is_some_and(|held| held.of != of) {
            *held = None;
        }
        let now = Instant::now();
        match held {
            Some(held) if now < held.renew_at => return Ok(held.token.clone()),
            Some(held) if now < held.ends => match self.ask_early(of).await {
                Ok(Some(new)) => *held = new,
                Ok(None) => held.renew_at = Instant::now() + AGAIN,
                Err(error) => return Err(error),
            },
            _ => *held = Some(self.ask(of).await?),
        }
        match held {
            Some(held) => Ok(held.token.clone()),
            None => Err(nothing()),
        }
    }

    /// Another token than `refused`, if there is one.
    pub(super) async fn token_after(&self, refused: &Token) -> Result<Option<Arc<Token>>, Error> {
        let mut held = self.lock().await?;
        if let Some(current) = held.as_ref()
            && current.token.0 != refused.0
        {
            // Another call has been here before.
            return Ok(Some(current.token.clone()));
        }
        *held = None;
        let token = self.fill(&mut held).await?;
        Ok((token.0 != refused.0).then_some(token))
    }

    async fn ask(&self, of: Fingerprint) -> Result<Held, Error> {
        let asked = self
            .issuer
            .call(async |issuer: &Issuer| issuer.issue().await);
        Ok(Held::new(asked.await?, of))
    }

    /// Once, and not for long. `None` where a new token has to wait.
    async fn ask_early(&self, of: Fingerprint) -> Result<Option<Held>, Error> {
        let asked = tokio::time::timeout(EARLY_WAIT, self.issuer()?.issue());
        let error = match asked.await {
            Ok(Ok(issued)) => return Ok(Some(Held::new(issued, of))),
            Ok(Err(Failed::Here(error) | Failed::Everywhere(error))) => error,
            Err(_) => return Ok(None),
        };
        match error.class() {
            // The old one is as good as any while that lasts.
            Class::Unreachable | Class::Throttled { .. } | Class::Protocol => {
                tracing::debug!(%error, "no new token yet");
                Ok(None)
            }
            _ => Err(error),
        }
    }

    /// Who we are, with a token that should be good.
    pub(super) async fn identity(&self) -> Result<Identity, Error> {
        let (who, left) = {
            let mut held = self.held.lock().await;
            self.fill(&mut held).await?;
            let held = held.as_ref().ok_or_else(nothing)?;
            let left = held.ends.saturating_duration_since(Instant::now());
            (held.who.clone(), left)
        };
        let name = match (who, &self.issuer()?.auth) {
            (Some(who), _) => who,
            (None, Auth::Metadata { server, account }) => {
                self.account_of_the_machine(server, account.as_ref())
                    .await?
            }
            (None, Auth::File { credentials, .. }) => format!("the one in {credentials}"),
        };
        Ok(Identity { name, left })
    }

    async fn account_of_the_machine(
        &self,
        server: &BaseUrl,
        account: Option<&Account>,
    ) -> Result<String, Error> {
        self.issuer
            .call(async |issuer: &Issuer| {
                let reply = issuer.metadata(server, account, "email").await?;
                let email = String::from_utf8_lossy(reply.body.trim_ascii());
                let shown = email.chars().filter(|c| !c.is_control());
                Ok(shown.take(256).collect())
            })
            .await
    }
}

fn nothing() -> Error {
    Error::new(Class::Unreachable, "no token was given out", "ask again")
}
