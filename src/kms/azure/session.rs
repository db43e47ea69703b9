//! The present token, and when another one is asked for.
//!
//! A token is asked for anew before it ends, and when the vault refuses it.
//! All of that happens with a call that needs it; nothing runs beside. Calls
//! that need one at the same time wait for one request, and share its result,
//! also when it is a failure.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::challenge::Challenge;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Error};
use crate::secret::Secret;

/// A token is asked for anew so long before its end, or when a third of its
/// time is left.
const EARLY: Duration = Duration::from_secs(300);
/// How long a token is used on that could not be replaced, until the next try.
const AGAIN: Duration = Duration::from_secs(30);

/// A token for the vault. Shown as nothing.
pub(super) struct Token(Secret);

impl Token {
    pub(super) fn new(secret: Secret) -> Self {
        Token(secret)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A token as it was given out.
#[derive(Debug)]
pub(super) struct Granted {
    pub token: Token,
    pub lifetime: Duration,
}

/// A token and its end.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub token: Arc<Token>,
    pub ends: Instant,
    renew_at: Instant,
    /// What it is for, and who gave it out.
    challenge: Arc<Challenge>,
}

impl Held {
    fn new(granted: Granted, challenge: Arc<Challenge>) -> Self {
        // A year, so that no sum overflows.
        let lifetime = granted.lifetime.min(Duration::from_secs(366 * 86_400));
        let ends = Instant::now() + lifetime;
        Held {
            token: Arc::new(granted.token),
            ends,
            renew_at: ends - EARLY.min(lifetime / 3),
            challenge,
        }
    }
}

/// The token that we have, if we have one.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The last request in vain, and when it ended.
    failed: Option<(Instant, Failure)>,
}

/// A failure that several calls share.
#[derive(Clone, Debug)]
struct Failure {
    error: Error,
    everywhere: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        match failure.everywhere {
            true => Failed::Everywhere(failure.error),
            false => Failed::Here(failure.error),
        }
    }
}

impl Session {
    /// A token for `challenge` that should be good: the present one, or what
    /// `ask` gives.
    pub(super) async fn token(
        &self,
        challenge: &Arc<Challenge>,
        ask: impl AsyncFnOnce() -> Result<Granted, Failed>,
    ) -> Result<Held, Failed> {
        self.other_than(None, challenge, ask).await
    }

    /// Another token than `refused`.
    pub(super) async fn token_after(
        &self,
        refused: &Token,
        challenge: &Arc<Challenge>,
        ask: impl AsyncFnOnce() -> Result<Granted, Failed>,
    ) -> Result<Held, Failed> {
        self.other_than(Some(refused), challenge, ask).await
    }

    async fn other_than(
        &self,
        refused: Option<&Token>,
        challenge: &Arc<Challenge>,
        ask: impl AsyncFnOnce() -> Result<Granted, Failed>,
    ) -> Result<Held, Failed> {
        let since = Instant::now();
        let mut state = self.0.lock().await;
        let now = Instant::now();
        let usable = |held: &Held| {
            held.challenge == *challenge
                && held.ends > now
                && refused.is_none_or(|refused| held.token.0 != refused.0)
        };
        let current = state.held.clone().filter(usable);
        if let Some(current) = &current
            && current.renew_at > now
        {
            return Ok(current.clone());
        }
        if current.is_none()
            && let Some((at, failure)) = &state.failed
            && *at > since
        {
            // It failed while we were waiting for it.
            return Err(failure.clone().into());
        }
        match ask().await {
            Ok(granted) => {
                let held = Held::new(granted, challenge.clone());
                let seconds = (held.ends - now).as_secs();
                tracing::debug!(resource = challenge.resource, seconds, "got a token");
                state.failed = None;
                state.held = Some(held.clone());
                Ok(held)
            }
            Err(failed) => {
                let (error, everywhere) = match failed {
                    Failed::Here(error) => (error, false),
                    Failed::Everywhere(error) => (error, true),
                };
                // What we have is good until its end, but for a clear no.
                if let Some(mut current) = current
                    && !matches!(error.class(), Class::Denied(_))
                {
                    tracing::debug!(%error, "the token cannot be renewed");
                    current.renew_at = now + AGAIN;
                    state.held = Some(current.clone());
                    return Ok(current);
                }
                state.held = None;
                let failure = Failure { error, everywhere };
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::kms::Denied;

    fn challenge(resource: &str) -> Arc<Challenge> {
        Arc::new(Challenge {
            resource: resource.into(),
            authority: None,
            tenant: None,
        })
    }

    fn granted(text: &str, seconds: u64) -> Granted {
        Granted {
            token: Token::new(Secret::copy_of(text.as_bytes()).unwrap()),
            lifetime: Duration::from_secs(seconds),
        }
    }

    fn failed(class: Class) -> Result<Granted, Failed> {
        Err(Failed::Here(Error::new(class, "no", "next")))
    }

    fn wait<F: Future>(future: F) -> F::Output {
        crate::runtime::block_on(future).unwrap()
    }

    #[test]
    fn a_token_is_kept_until_it_is_near_its_end_refused_or_for_something_else() {
        let session = Session::default();
        let (ours, other) = (challenge("https://a"), challenge("https://b"));
        let text = |held: &Held| String::from_utf8(held.token.bytes().to_vec()).unwrap();
        wait(async {
            let first = session
                .token(&ours, async || Ok(granted("one", 3600)))
                .await;
            let first = first.unwrap();
            let again = session
                .token(&ours, async || Ok(granted("two", 3600)))
                .await;
            assert_eq!(text(&again.unwrap()), "one");
            let next = session
                .token_after(&first.token, &ours, async || Ok(granted("three", 3600)))
                .await;
            assert_eq!(text(&next.unwrap()), "three");
            // Another call has been there before.
            let next = session
                .token_after(&first.token, &ours, async || Ok(granted("four", 3600)))
                .await;
            assert_eq!(text(&next.unwrap()), "three");
            let elsewhere = session.token(&other, async || Ok(granted("five", 0))).await;
            assert_eq!(text(&elsewhere.unwrap()), "five");
            let after = session
                .token(&other, async || Ok(granted("six", 3600)))
                .await;
            assert_eq!(text(&after.unwrap()), "six");
        });
    }

    #[test]
    fn a_token_that_cannot_be_renewed_is_used_to_its_end_unless_that_is_denied() {
        let session = Session::default();
        let ours = challenge("https://a");
        wait(async {
            let first = session
                .token(&ours, async || Ok(granted("one", 3600)))
                .await;
            first.unwrap();
            session.0.lock().await.held.as_mut().unwrap().renew_at = Instant::now();
            let kept = session
                .token(&ours, async || failed(Class::Unreachable))
                .await;
            assert_eq!(kept.unwrap().token.bytes(), b"one");
            session.0.lock().await.held.as_mut().unwrap().renew_at = Instant::now();
            let denied = session
                .token(&ours, async || failed(Class::Denied(Denied::Forbidden)))
                .await;
            assert!(denied.is_err());
            assert!(session.0.lock().await.held.is_none());
        });
    }

    #[test]
    fn calls_at_the_same_time_make_one_request_also_in_vain() {
        let session = Session::default();
        let ours = challenge("https://a");
        let asked = AtomicU32::new(0);
        wait(async {
            for good in [false, true] {
                asked.store(0, Ordering::Relaxed);
                let ask = async || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    // Long enough for the others to have come.
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    match good {
                        true => Ok(granted("one", 3600)),
                        false => failed(Class::Unreachable),
                    }
                };
                let (a, b, c) = tokio::join!(
                    session.token(&ours, ask),
                    session.token(&ours, ask),
                    session.token(&ours, ask)
                );
                for result in [a, b, c] {
                    assert_eq!(result.is_ok(), good);
                }
                assert_eq!(asked.load(Ordering::Relaxed), 1);
            }
        });
    }
}
