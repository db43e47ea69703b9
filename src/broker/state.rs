//! All that a running broker has, and what of it is read again.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustls::ServerConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::challenge::{Challenges, LIFETIME};
use super::policy::{self, Loaded, News, Watched};
use super::recorder::Recorder;
use crate::audit::{Event, Outcome};
use crate::config::broker::Broker as Settings;
use crate::error::{Explain, Failure};
use crate::keys::KeySets;
use crate::kms::broker::keyfile;
use crate::kms::broker::seal::PrivateKey;
use crate::kms::tls;
use crate::metrics::BrokerMetrics;

/// Calls of one host that are worked on at once. More wait.
const CALLS_AT_ONCE: usize = 32;

/// More calls than there ever are at once.
const CALLS_MAX: u32 = 1 << 20;

/// A running broker.
pub struct Broker {
    /// What wraps and unwraps.
    pub key_sets: Arc<KeySets>,
    /// That no call is taken twice.
    pub challenges: Challenges,
    /// The audit log.
    pub recorder: Arc<Recorder>,
    /// What is told of it all.
    pub metrics: Arc<BrokerMetrics>,
    policy: Watched,
    keys: Mutex<Keys>,
    tls: watch::Sender<Arc<ServerConfig>>,
    calls: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Each call has one of its places.
    in_flight: Arc<Semaphore>,
    started: Instant,
}

/// The broker's own keys.
struct Keys {
    current: Arc<PrivateKey>,
    /// The one before, and until when it is good: hosts have challenges that
    /// they got with it.
    before: Option<(Arc<PrivateKey>, Instant)>,
}

impl Broker {
    /// A broker with these settings and key sets. Everything is read.
    ///
    /// # Errors
    /// When a file is missing or wrong.
    pub fn new(
        settings: &Settings,
        key_sets: KeySets,
        recorder: Arc<Recorder>,
        metrics: Arc<BrokerMetrics>,
    ) -> Result<Self, Failure> {
        let config = tls::server(&settings.tls)?;
        let key = keyfile::read(&settings.key)?;
        let policy = Watched::open(&settings.policy)?;
        let challenges = Challenges::new().map_err(no_memory)?;
        let broker = Broker {
            key_sets: Arc::new(key_sets),
            challenges,
            recorder,
            metrics,
            policy,
            keys: Mutex::new(Keys {
                current: Arc::new(key),
                before: None,
            }),
            tls: watch::Sender::new(Arc::new(config)),
            calls: Mutex::default(),
            in_flight: Arc::new(Semaphore::new(CALLS_MAX as usize)),
            started: Instant::now(),
        };
        let (loaded, _) = broker.policy.look();
        broker.tell_policy(&loaded);
        broker.tell_certificate(settings);
        Ok(broker)
    }

    /// How long it has been running: the clock of challenges.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The policy that holds now. What is new about it is told to everybody
    /// who is to know.
    pub fn policy(&self) -> Arc<Loaded> {
        let (loaded, news) = self.policy.look();
        match news {
            None => {}
            Some(News::Changed(loaded)) => self.tell_policy(&loaded),
            Some(News::Refused(error)) => self.tell_refused(&error),
        }
        loaded
    }

    fn tell_policy(&self, loaded: &Loaded) {
        let (hosts, rules) = (loaded.policy.hosts.len(), loaded.policy.rules.len());
        tracing::info!(
            path = %self.policy.path().display(),
            sha256 = loaded.sha256,
            hosts,
            rules,
            "this policy holds now"
        );
        self.metrics.policy(hosts, rules);
        self.record_policy(&loaded.sha256, Outcome::Ok);
        let calls = self.calls().len();
        if calls > hosts {
            let known = |name: &str| loaded.policy.host(name).is_some();
            self.calls().retain(|name, _| known(name));
        }
    }

    fn tell_refused(&self, error: &policy::Error) {
        let help = error.help();
        tracing::error!(help, "the policy stays as it was: {error}");
        self.metrics.policy_refused();
        let failed = Failure::new(error.kind(), error.to_string(), None);
        self.record_policy("", (&failed).into());
    }

    fn record_policy(&self, sha256: &str, outcome: Outcome) {
        let path = self.policy.path();
        let event = Event::PolicyLoaded { path, sha256 };
        // A policy that withdraws something is not to wait for the log.
        if let Err(error) = self.recorder.of_broker(event, outcome) {
            tracing::error!("a change of the policy is not in the audit log: {error}");
        }
    }

    fn tell_certificate(&self, settings: &Settings) {
        let chain = tls::in_file(&settings.tls.certificate).unwrap_or_default();
        if let Some(first) = chain.first() {
            let end = first.not_after.to_system().duration_since(UNIX_EPOCH);
            self.metrics
                .certificate_ends(end.unwrap_or_default().as_secs());
        }
    }

    /// The keys that calls may be sealed to, the current one first.
    pub fn keys(&self) -> Vec<Arc<PrivateKey>> {
        let keys = self.own_keys();
        let before = keys.before.iter();
        let before = before.filter(|(_, until)| Instant::now() < *until);
        let mut all = vec![keys.current.clone()];
        all.extend(before.map(|(key, _)| key.clone()));
        all
    }

    /// Waits for a place for one more call of that host, which it has as long
    /// as it keeps what it gets.
    pub async fn place(&self, host: &str) -> Option<Place> {
        let of_host = self
            .calls()
            .entry(host.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(CALLS_AT_ONCE)))
            .clone();
        // They are closed by nobody.
        let of_host = of_host.acquire_owned().await.ok()?;
        let of_all = self.in_flight.clone().acquire_owned().await.ok()?;
        self.metrics.calls_in_flight(1);
        Some(Place {
            _permits: (of_host, of_all),
            metrics: self.metrics.clone(),
        })
    }

    /// Waits until no call is being worked on.
    pub async fn idle(&self) {
        let _ = self.in_flight.acquire_many(CALLS_MAX).await;
    }

    /// TLS as it is configured now, and a notice when that changes.
    pub fn tls(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.tls.subscribe()
    }

    /// Reads certificates, key and policy again. What is wrong stays as it
    /// was. Tells what was taken, and what was not for which reason.
    pub fn read_again(&self, settings: &Settings) -> (Vec<String>, Vec<Failure>) {
        let (mut taken, mut failed) = (Vec::new(), Vec::new());
        match tls::server(&settings.tls) {
            Ok(config) => {
                // Those who are connected are to show their certificates to
                // the authorities that are trusted now.
                self.tls.send_replace(Arc::new(config));
                self.tell_certificate(settings);
                taken.push("certificates".into());
            }
            Err(error) => failed.push(error.into()),
        }
        match keyfile::read(&settings.key) {
            Ok(key) => {
                let mut keys = self.own_keys();
                if key.public() != keys.current.public() {
                    let old = std::mem::replace(&mut keys.current, Arc::new(key));
                    keys.before = Some((old, Instant::now() + LIFETIME));
                }
                taken.push("key".into());
            }
            Err(error) => failed.push(error.into()),
        }
        match self.policy.read_again() {
            Ok(loaded) => {
                self.tell_policy(&loaded);
                taken.push("policy".into());
            }
            Err(error) => {
                self.tell_refused(&error);
                failed.push(error.into());
            }
        }
        (taken, failed)
    }

    fn own_keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<String, Arc<Semaphore>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is worked on.
#[derive(Debug)]
pub struct Place {
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    metrics: Arc<BrokerMetrics>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.calls_in_flight(-1);
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

fn no_memory(error: io::Error) -> Failure {
    Failure::new(
        crate::error::Kind::Io,
        format!("no locked memory or random bytes: {error}"),
        Some(
            "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)"
                .into(),
        ),
    )
}
