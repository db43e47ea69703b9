//! One way to the key, step by step, from the address of an endpoint to a key
//! that was wrapped and unwrapped there. What a step needs and does not have,
//! leaves it out.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::check::Check;
use super::network;
use super::ways::{Client, Way};
use crate::error::Kind;
use crate::kms::vault::{Health, Identity};
use crate::kms::{Class, Denied, Error, KeyRef, KeyVersion, Wrapped, call};
use crate::secret::{DEK_BYTES, Secret};
use crate::timestamp::Timestamp;

/// The steps, in their order.
const STEPS: [&str; 12] = [
    "dns", "tcp", "tls", "service", "clock", "identity", "read_key", "key", "expiry", "version",
    "wrap", "unwrap",
];

/// A clock that differs by less is good enough: HTTP tells whole seconds.
const SKEW: u64 = 30;

/// An end that is nearer is to be looked at.
const NEAR: Duration = Duration::from_secs(30 * 86_400);

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

/// Random bytes, and the same wrapped.
pub(super) struct Sample {
    plain: Secret,
    pub(super) wrapped: Wrapped,
}

/// What the bytes are bound to.
const AAD: &[u8] = b"sealblk doctor";

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
            if found.way.net.is_none() && NETWORK.contains(&step) {
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
            Client::Plain(_) => true,
            Client::Vault(vault) => {
                let health = vault.health().await;
                let date = health.as_ref().ok().and_then(|health| health.date);
                if !self.add(service(health)) {
                    return false;
                }
                self.checks.push(clock(date));
                let Client::Vault(vault) = &self.way.client else {
                    return false;
                };
                let check = identity(vault.identity().await, question);
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
        let wrapping = wrap(&self.way, key).await;
        let unwrapping = match &wrapping {
            Ok(sample) => unwrap(&self.way, sample).await,
            Err(_) => {
                let version = match &current {
                    Ok(current) => current.id.as_str(),
                    Err(_) => key.version.as_deref().unwrap_or("1"),
                };
                try_unwrap(&self.way.client, key, version).await
            }
        };
        let forbidden = |error: &Error| error.class() == Class::Denied(Denied::Forbidden);
        let all_forbidden = current.as_ref().is_err_and(forbidden)
            && wrapping.as_ref().is_err_and(forbidden)
            && unwrapping.status == super::Status::Fail;
        match current {
            Ok(current) => {
                self.checks
                    .push(Check::ok("read_key", format!("permitted: {key}")));
                self.checks.push(enabled(&current, wrapping.as_ref().err()));
                self.checks.push(expiry(current.expires));
                self.checks.push(version(key, &current, latest.as_ref()));
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

    /// Where nothing is permitted, and the token may not even look itself up,
    /// it is most likely none.
    fn suspect_identity(&mut self) {
        let unknown =
            |check: &&mut Check| check.name == "identity" && check.status == super::Status::Warn;
        if let Some(identity) = self.checks.iter_mut().find(unknown) {
            *identity = Check::fail(
                "identity",
                Kind::Key,
                format!("{}, and nothing else either", identity.message),
                "put a token that is valid into the file, and see that its policies permit what docs/kms.md lists",
            );
        }
    }

    /// Whether this endpoint alone opens what another one wrapped.
    pub(super) async fn opens(&self, sample: &Sample) -> Result<(), Error> {
        let provider = self.way.client.provider();
        let opened = provider.unwrap(&sample.wrapped, AAD).await?;
        match opened == sample.plain {
            true => Ok(()),
            false => Err(other_bytes()),
        }
    }
}

fn service(health: Result<Health, Error>) -> Check {
    const NAME: &str = "service";
    let health = match health {
        Ok(health) => health,
        Err(error) => return Check::failed(NAME, &error),
    };
    let version = &health.version;
    if !health.initialized {
        return Check::fail(
            NAME,
            Kind::Unreachable,
            format!("version {version} runs, and was never initialized"),
            "have its operators initialize it, or correct the endpoint",
        );
    }
    if health.sealed {
        return Check::fail(
            NAME,
            Kind::Unreachable,
            format!("version {version} runs, and is sealed"),
            "have its operators unseal it; then this works by itself",
        );
    }
    let role = match health.standby {
        true => "on standby, and passes requests on",
        false => "unsealed and active",
    };
    Check::ok(NAME, format!("version {version}, {role}"))
}

fn clock(there: Option<Timestamp>) -> Check {
    const NAME: &str = "clock";
    let Some(there) = there else {
        return Check::skip(NAME, "the service tells no time");
    };
    let (there, here) = (there.to_system(), SystemTime::now());
    let (seconds, which) = match here.duration_since(there) {
        Ok(ahead) => (ahead.as_secs(), "ahead of"),
        Err(behind) => (behind.duration().as_secs(), "behind"),
    };
    match seconds {
        0..=1 => Check::ok(NAME, "the same as that of the service"),
        2..SKEW => Check::ok(
            NAME,
            format!("{seconds} seconds {which} that of the service"),
        ),
        _ => Check::warn(
            NAME,
            format!("the clock of this host is {seconds} seconds {which} that of the service"),
            "have both set by NTP: certificates and tokens are valid by the clock",
        ),
    }
}

fn identity(told: Result<Option<Identity>, Error>, question: &Question) -> Check {
    const NAME: &str = "identity";
    let who = &question.identity;
    match told {
        Err(error) => {
            let mut check = Check::failed(NAME, &error);
            check.message = format!("{who}: {}", check.message);
            check
        }
        Ok(None) => Check::warn(
            NAME,
            format!("{who}: the service does not let it look itself up"),
            "see that the token is valid still; if its policies leave that out, nothing is wrong",
        ),
        Ok(Some(identity)) => {
            let left = match identity.ttl {
                None => "has no end".into(),
                Some(ttl) => format!("lasts {}", rough(ttl)),
            };
            let renewable = match (identity.ttl, identity.renewable) {
                (Some(_), true) => ", and is renewed before",
                (Some(_), false) if question.given_token => ", and cannot be renewed",
                _ => "",
            };
            let message = format!(
                "{who}: {:?} with policies {}; the token {left}{renewable}",
                identity.name,
                identity.policies.join(", ")
            );
            let ends = question.given_token && !identity.renewable;
            match identity.ttl {
                Some(ttl) if ends && ttl < Duration::from_secs(86_400) => Check::warn(
                    NAME,
                    message,
                    "let an agent put a fresh token into the file in time, or use another method of auth",
                ),
                _ => Check::ok(NAME, message),
            }
        }
    }
}

fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds @ 120..7200 => format!("{} minutes", seconds / 60),
        seconds @ 7200..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn enabled(current: &KeyVersion, why_not: Option<&Error>) -> Check {
    const NAME: &str = "key";
    match (current.enabled, why_not) {
        (true, _) => Check::ok(NAME, format!("version {} is enabled", current.id)),
        (false, Some(error)) => Check::failed(NAME, error),
        (false, None) => Check::fail(
            NAME,
            Kind::Key,
            format!(
                "the service says that version {} may not be used",
                current.id
            ),
            "have it enabled at the service",
        ),
    }
}

fn expiry(expires: Option<SystemTime>) -> Check {
    const NAME: &str = "expiry";
    let Some(end) = expires else {
        return Check::ok(NAME, "the key has no end");
    };
    let at = Timestamp::from(end);
    let renew = "have a new version or key made in time, and the volumes wrapped by it";
    match end.duration_since(SystemTime::now()) {
        Err(_) => Check::fail(NAME, Kind::Key, format!("the key ended at {at}"), renew),
        Ok(left) => {
            let message = format!("the key ends at {at}, in {}", rough(left));
            match left < NEAR {
                true => Check::warn(NAME, message, renew),
                false => Check::ok(NAME, message),
            }
        }
    }
}

fn version(key: &KeyRef, current: &KeyVersion, latest: Option<&KeyVersion>) -> Check {
    const NAME: &str = "version";
    let current = &current.id;
    match (&key.version, latest) {
        (None, _) => Check::ok(NAME, format!("follows the latest one, which is {current}")),
        (Some(_), Some(latest)) if latest.id != *current => Check::warn(
            NAME,
            format!("pinned to {current}, and {} is the latest one", latest.id),
            "if that is not on purpose, set version = \"latest\" in the key set",
        ),
        (Some(_), _) => Check::ok(NAME, format!("pinned to {current}")),
    }
}

async fn wrap(way: &Way, key: &KeyRef) -> Result<Sample, Error> {
    let plain = Secret::random(DEK_BYTES).map_err(|error| {
        Error::new(
            Class::Unreachable,
            format!("no locked memory or random bytes to try it with: {error}"),
            "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
        )
        .with_kind(Kind::Io)
    })?;
    let wrapped = way.client.provider().wrap(key, &plain, AAD).await?;
    Ok(Sample { plain, wrapped })
}

async fn unwrap(way: &Way, sample: &Sample) -> Check {
    const NAME: &str = "unwrap";
    let provider = way.client.provider();
    match provider.unwrap(&sample.wrapped, AAD).await {
        Ok(opened) if opened == sample.plain => {}
        Ok(_) => return Check::failed(NAME, &other_bytes()),
        Err(error) => return Check::failed(NAME, &error),
    }
    // A wrap that opens anywhere protects no volume from another one.
    match provider.unwrap(&sample.wrapped, b"another volume").await {
        Ok(_) => Check::fail(
            NAME,
            Kind::Unsupported,
            "permitted, and the service does not look at what a key is bound to",
            "use another service: this one would open the key of one volume for another",
        ),
        Err(error) if error.class() == Class::BadKey => Check::ok(
            NAME,
            "permitted: what was wrapped comes back, and for its own volume only",
        ),
        Err(error) => Check::failed(NAME, &error),
    }
}

/// Whether unwrapping is permitted, where there is nothing to unwrap.
async fn try_unwrap(client: &Client, key: &KeyRef, version: &str) -> Check {
    const NAME: &str = "unwrap";
    let Some(unopenable) = client.unopenable(key, version) else {
        return Check::skip(NAME, "there is nothing to unwrap");
    };
    match client.provider().unwrap(&unopenable, AAD).await {
        Err(error) if error.class() == Class::BadKey => {
            Check::ok(NAME, "permitted: a made-up key is refused for what it is")
        }
        Err(error) => Check::failed(NAME, &error),
        Ok(_) => Check::failed(NAME, &other_bytes()),
    }
}

fn other_bytes() -> Error {
    Error::new(
        Class::Protocol,
        "the service unwraps something else than was wrapped",
        "do not use it for volumes, and find out what answers there",
    )
    .with_kind(Kind::Corrupt)
}
