//! What answers of a service mean, as checks.

use std::time::{Duration, SystemTime};

use super::check::Check;
use super::endpoint::Question;
use crate::error::Kind;
#[cfg(feature = "aws-kms")]
use crate::kms::aws;
#[cfg(feature = "azure-keyvault")]
use crate::kms::azure;
#[cfg(feature = "gcp-kms")]
use crate::kms::gcp;
use crate::kms::vault::{Health, Identity};
use crate::kms::{Error, KeyRef, KeyVersion};
use crate::timestamp::Timestamp;

/// A clock that differs by less is good enough: HTTP tells whole seconds.
const SKEW: u64 = 30;

/// An end that is nearer is to be looked at.
const NEAR: Duration = Duration::from_secs(30 * 86_400);

pub(super) fn service(health: Result<Health, Error>) -> Check {
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

#[cfg(feature = "broker")]
pub(super) fn broker(
    health: Result<(crate::kms::broker::protocol::Health, Option<Timestamp>), Error>,
) -> Check {
    const NAME: &str = "service";
    match health {
        Ok((health, _)) if health.key_sets == 0 => Check::fail(
            NAME,
            Kind::NotFound,
            format!(
                "a broker of sealblk {} runs, and has no key sets",
                health.version
            ),
            "have key sets configured at the broker",
        ),
        Ok((health, _)) => Check::ok(
            NAME,
            format!(
                "a broker of sealblk {} with {} key set(s)",
                health.version, health.key_sets
            ),
        ),
        Err(error) => Check::failed(NAME, &error),
    }
}

/// What a vault of Azure tells of itself.
#[cfg(feature = "azure-keyvault")]
pub(super) fn vault(health: Result<azure::Health, Error>) -> Check {
    const NAME: &str = "service";
    let health = match health {
        Ok(health) => health,
        Err(error) => return Check::failed(NAME, &error),
    };
    let named = |what: &str, told: Option<String>| {
        told.map_or(String::new(), |told| format!(", {what} {told}"))
    };
    Check::ok(
        NAME,
        format!(
            "a vault of {}{}{}{}",
            health.resource,
            named("tenant", health.tenant),
            named("region", health.region),
            named("version", health.version),
        ),
    )
}

/// Who a token of Azure says that we are.
#[cfg(feature = "azure-keyvault")]
pub(super) fn standing(told: Result<azure::Standing, Error>, who: &str) -> Check {
    const NAME: &str = "identity";
    match told {
        Err(error) => {
            let mut check = Check::failed(NAME, &error);
            check.message = format!("{who}: {}", check.message);
            check
        }
        Ok(standing) => {
            let named = |what: &str, told: Option<String>| {
                told.map_or(String::new(), |told| format!(", {what} {told}"))
            };
            Check::ok(
                NAME,
                format!(
                    "{who}{}{}; the token lasts {}, and is replaced before",
                    named("object id", standing.object_id),
                    named("client id", standing.client_id),
                    rough(standing.ttl),
                ),
            )
        }
    }
}

/// Whether a key that is deleted can be had back, as Azure calls that.
#[cfg(feature = "azure-keyvault")]
pub(super) fn recovery(level: Result<Option<String>, Error>) -> Check {
    const NAME: &str = "recovery";
    let protect = "have purge protection switched on, which cannot be taken back: az keyvault update --enable-purge-protection true";
    match level {
        Err(error) => Check::failed(NAME, &error),
        Ok(None) => Check::skip(NAME, "the service does not say"),
        Ok(Some(level)) if level == "Purgeable" => Check::warn(
            NAME,
            format!("{level}: a key that is deleted is lost at once, and all volumes with it"),
            protect,
        ),
        Ok(Some(level)) if level.contains("Purgeable") => Check::warn(
            NAME,
            format!("{level}: a deleted key can be recovered, unless somebody purges it"),
            protect,
        ),
        Ok(Some(level)) => Check::ok(
            NAME,
            format!("{level}: a deleted key can be recovered, and nobody can purge it before"),
        ),
    }
}

pub(super) fn clock(there: Option<Timestamp>) -> Check {
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

#[cfg(feature = "aws-kms")]
pub(super) fn greeting(told: Result<aws::Greeting, Error>) -> Check {
    const NAME: &str = "service";
    match told {
        Ok(told) => Check::ok(NAME, format!("AWS KMS answers for {}", told.region)),
        Err(error) => Check::failed(NAME, &error),
    }
}

/// Who AWS says that `who` is.
#[cfg(feature = "aws-kms")]
pub(super) fn who(told: Result<aws::Who, Error>, who: &str) -> Check {
    const NAME: &str = "identity";
    let told = match told {
        Ok(told) => told,
        Err(error) => {
            let mut check = Check::failed(NAME, &error);
            check.message = format!("{who}: {}", check.message);
            return check;
        }
    };
    let ends = match told.ends {
        None => "without an end".into(),
        Some(ends) => {
            let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
            format!("for {}, and replaced before", rough(left))
        }
    };
    let source = told.source;
    match told.arn {
        Ok(arn) => Check::ok(
            NAME,
            format!("{who}: {arn}, from source {source:?}, {ends}"),
        ),
        Err(why) => Check::warn(
            NAME,
            format!(
                "{who}: credentials from source {source:?}, {ends}; whose they are is not known: {why}"
            ),
            "nothing is wrong if STS cannot be reached from this host and need not be (sts_endpoint in the key set names another address)",
        ),
    }
}

pub(super) fn identity(told: Result<Option<Identity>, Error>, question: &Question) -> Check {
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

#[cfg(feature = "gcp-kms")]
pub(super) fn gcp_identity(told: Result<gcp::Identity, Error>, who: &str) -> Check {
    const NAME: &str = "identity";
    match told {
        Err(error) => {
            let mut check = Check::failed(NAME, &error);
            check.message = format!("{who}: {}", check.message);
            check
        }
        Ok(gcp::Identity { name, left }) => Check::ok(
            NAME,
            format!(
                "{who}: {name}; the token lasts {}, and is replaced before",
                rough(left)
            ),
        ),
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

pub(super) fn enabled(current: &KeyVersion, why_not: Option<&Error>) -> Check {
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

pub(super) fn expiry(expires: Option<SystemTime>) -> Check {
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

pub(super) fn version(key: &KeyRef, current: &KeyVersion, latest: Option<&KeyVersion>) -> Check {
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
