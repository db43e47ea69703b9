//! One way to the key, step by step, from the address of an endpoint to a key
//! that was wrapped and unwrapped there. What a step needs and does not have,
//! leaves it out.

use std::net::SocketAddr;

use uuid::Uuid;

use super::check::{Check, Status};
use super::network;
use super::trial::{self, Sample};
use super::verdict;
use super::ways::{Client, Way};
use crate::error::Kind;
use crate::kms::{Class, Denied, Error, KeyRef, Wrapped, call};

/// The steps, in their order.
const STEPS: [&str; 13] = [
    "dns", "tcp", "tls", "service", "clock", "identity", "read_key", "key", "expiry", "version",
    "recovery", "wrap", "unwrap",
];

/// What was found at one endpoint.
pub(super) struct Found {
    pub(super) way: Way,
    pub(super) checks: Vec<Check>,
    pub(super) addresses: Vec<SocketAddr>,
    /// What was wrapped there, to be unwrapped elsewhere.
    pub(super) sample: Option<Sample>,
    /// Whether keys were asked for there.
    pub(super) reached: bool,
}

/// What an endpoint is asked about, and in whose name.
pub(super) struct Question {
    pub(super) key: KeyRef,
    /// Who we are, in plain words.
    pub(super) identity: String,
    /// Whether the token is one that nobody here renews.
    pub(super) given_token: bool,
}

/// Examines one way.
pub(super) async fn examine(way: Way, question: &Question) -> Found {
    let mut found = Found {
        way,
        checks: Vec::new(),
        addresses: Vec::new(),
        sample: None,
        reached: false,
    };
    // One id for all that is done, for the log of the service.
    let ((), _) = call::observed(Uuid::new_v4(), found.walk(question)).await;
    if let Some(failed) = found.checks.iter().find(|check| check.is_failed()) {
        let why = format!("not tried, since {} failed", failed.name);
        for step in STEPS {
            if found.way.net.is_none() && NETWORK.contains(&step)
                || step == RECOVERY && !found.way.client.recovers()
            {
                continue;
            }
            if !found.checks.iter().any(|check| check.name == step) {
                found.checks.push(Check::skip(step, why.clone()));
            }
        }
    }
    let order = |check: &Check| STEPS.iter().position(|step| *step == check.name);
    found.checks.sort_by_key(order);
    for check in &mut found.checks {
        check.endpoint = Some(found.way.endpoint.clone());
    }
    found
}

/// Steps that only what is on the network has.
const NETWORK: [&str; 6] = ["dns", "tcp", "tls", "service", "clock", "identity"];

/// The step that only services have which keep what was deleted.
const RECOVERY: &str = "recovery";

impl Found {
    fn add(&mut self, check: Check) -> bool {
        let good = !check.is_failed();
        self.checks.push(check);
        good
    }

    async fn walk(&mut self, question: &Question) {
        if self.connect().await && self.meet(question).await {
            self.reached = true;
            self.use_key(question).await;
        }
    }

    /// Name, connection, certificate.
    async fn connect(&mut self) -> bool {
        let Some(net) = self.way.net.clone() else {
            return true;
        };
        let patience = self.way.timeout;
        let (check, addresses) = network::dns(&net, patience).await;
        self.addresses = addresses;
        if !self.add(check) {
            return false;
        }
        let (check, stream) = network::tcp(&self.addresses, patience).await;
        self.add(check);
        match stream {
            Some(stream) => {
                let check = network::certificate(&net, stream, patience).await;
                self.add(check)
            }
            None => false,
        }
    }

    /// The service itself, and who we are there.
    async fn meet(&mut self, question: &Question) -> bool {
        let who = &question.identity;
        match &self.way.client {
            #[cfg(feature = "azure-keyvault")]
            Client::Azure(azure) => {
                let health = azure.health().await;
                let standing = match &health {
                    Ok(_) => Some(azure.standing().await),
                    Err(_) => None,
                };
                let date = health.as_ref().ok().and_then(|health| health.date);
                if !self.add(verdict::vault(health)) {
                    return false;
                }
                self.checks.push(verdict::clock(date));
                standing.is_some_and(|standing| self.add(verdict::standing(standing, who)))
            }
            Client::Plain(_) => true,
            #[cfg(feature = "broker")]
            Client::Broker(broker) => {
                let health = broker.health().await;
                let date = health.as_ref().ok().and_then(|(_, date)| *date);
                if !self.add(verdict::broker(health)) {
                    return false;
                }
                self.checks.push(verdict::clock(date));
                let Client::Broker(broker) = &self.way.client else {
                    return false;
                };
                self.add(match broker.greet(&question.key).await {
                    Ok(()) => Check::ok("identity", format!("the broker knows {who}")),
                    Err(error) => Check::failed("identity", &error),
                })
            }
            #[cfg(feature = "gcp-kms")]
            Client::Gcp(gcp) => {
                let date = match gcp.greet(&question.key).await {
                    Ok(date) => date,
                    Err(error) => return self.add(Check::failed("service", &error)),
                };
                let identity = gcp.identity().await;
                let service = "Cloud KMS, which asks for a token";
                self.checks.push(Check::ok("service", service));
                self.checks.push(verdict::clock(date));
                self.add(verdict::gcp_identity(identity, who))
            }
            #[cfg(feature = "aws-kms")]
            Client::Aws(aws) => {
                let greeting = aws.greeting().await;
                let date = greeting.as_ref().ok().and_then(|told| told.date);
                let known = aws.who().await;
                if !self.add(verdict::greeting(greeting)) {
                    return false;
                }
                self.checks.push(verdict::clock(date));
                self.add(verdict::who(known, who))
            }
            Client::Vault(vault) => {
                let health = vault.health().await;
                let date = health.as_ref().ok().and_then(|health| health.date);
                if !self.add(verdict::service(health)) {
                    return false;
                }
                self.checks.push(verdict::clock(date));
                let Client::Vault(vault) = &self.way.client else {
                    return false;
                };
                let check = verdict::identity(vault.identity().await, question);
                self.add(check)
            }
            Client::Kmip(kmip) => {
                let offer = match kmip.offer().await {
                    Ok(offer) => offer,
                    Err(error) => return self.add(Check::failed("service", &error)),
                };
                let maker = offer
                    .vendor
                    .as_deref()
                    .unwrap_or("a server of unknown make");
                self.checks.push(Check::ok(
                    "service",
                    format!("{maker:?} speaks KMIP {}", offer.version),
                ));
                self.checks.push(Check::skip(
                    "clock",
                    "KMIP tells no time; the certificates are within theirs by the clock of this host",
                ));
                self.add(Check::ok("identity", format!("the server took {who}")))
            }
        }
    }

    /// The key: whether it may be looked at, wrapped with, and unwrapped with.
    async fn use_key(&mut self, question: &Question) {
        let key = &question.key;
        let provider = self.way.client.provider();
        let current = provider.current_version(key).await;
        let latest = match (&current, &key.version) {
            (Ok(_), Some(_)) => {
                let latest = KeyRef {
                    version: None,
                    ..key.clone()
                };
                provider.current_version(&latest).await.ok()
            }
            _ => None,
        };
        let wrapping = trial::wrap(self.way.client.provider(), key).await;
        let unwrapping = match &wrapping {
            Ok(sample) => trial::unwrap(self.way.client.provider(), sample).await,
            Err(_) => {
                let version = match &current {
                    Ok(current) => current.id.as_str(),
                    Err(_) => key.version.as_deref().unwrap_or("1"),
                };
                trial::try_unwrap(&self.way.client, key, version).await
            }
        };
        let forbidden = |error: &Error| error.class() == Class::Denied(Denied::Forbidden);
        let all_forbidden = current.as_ref().is_err_and(forbidden)
            && wrapping.as_ref().is_err_and(forbidden)
            && unwrapping.status == Status::Fail;
        match current {
            Ok(current) => {
                self.checks
                    .push(Check::ok("read_key", format!("permitted: {key}")));
                self.checks
                    .push(verdict::enabled(&current, wrapping.as_ref().err()));
                self.checks.push(verdict::expiry(current.expires));
                self.checks
                    .push(verdict::version(key, &current, latest.as_ref()));
                self.recovery(key).await;
            }
            Err(error) => self.checks.push(Check::failed("read_key", &error)),
        }
        match wrapping {
            Ok(sample) => {
                let Wrapped {
                    key_id,
                    version,
                    alg,
                    ..
                } = &sample.wrapped;
                self.checks.push(Check::ok(
                    "wrap",
                    format!("permitted: with version {version} of {key_id} ({alg})"),
                ));
                self.sample = Some(sample);
            }
            // Wrapping begins with a look at the key.
            Err(_)
                if self
                    .checks
                    .last()
                    .is_some_and(|c| c.name == "read_key" && c.is_failed()) =>
            {
                self.checks
                    .push(Check::skip("wrap", "not tried without a look at the key"));
            }
            Err(error) => self.checks.push(Check::failed("wrap", &error)),
        }
        self.checks.push(unwrapping);
        if all_forbidden {
            self.suspect_identity();
        }
    }

    /// Whether the key would be lost at once if somebody deleted it.
    async fn recovery(&mut self, key: &KeyRef) {
        match &self.way.client {
            #[cfg(feature = "azure-keyvault")]
            Client::Azure(azure) => {
                let check = verdict::recovery(azure.recovery_level(key).await);
                self.checks.push(check);
            }
            _ => {
                let _ = key;
            }
        }
    }

    /// Where nothing is permitted, and the token may not even look itself up,
    /// it is most likely none.
    fn suspect_identity(&mut self) {
        let unknown = |check: &&mut Check| check.name == "identity" && check.status == Status::Warn;
        if let Some(identity) = self.checks.iter_mut().find(unknown) {
            *identity = Check::fail(
                "identity",
                Kind::Key,
                format!("{}, and nothing else either", identity.message),
                "put a token that is valid into the file, and see that its policies permit what docs/kms/vault.md lists",
            );
        }
    }

    /// Whether this endpoint alone opens what another one wrapped.
    pub(super) async fn opens(&self, sample: &Sample) -> Result<(), Error> {
        sample.opened_by(self.way.client.provider()).await
    }
}
