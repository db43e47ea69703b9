//! What is known of the keys of the key sets.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::encode::About;
use crate::kms::{Class, Error, KeyVersion};

/// The values of the label `state`.
const STATES: [&str; 4] = ["ok", "denied", "unreachable", "failed"];

#[derive(Debug, Default)]
pub struct KeySets(Mutex<BTreeMap<String, Known>>);

/// What the last answers were.
#[derive(Debug)]
struct Known {
    provider: String,
    key_id: String,
    /// Empty until there was an answer.
    key_version: String,
    expires: Option<SystemTime>,
    state: &'static str,
    answered: Option<SystemTime>,
    /// Since when a key is denied that disks need.
    denied: Option<SystemTime>,
}

impl KeySets {
    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn checked(
        &self,
        key_set: &str,
        provider: &str,
        key_id: &str,
        answer: Result<&KeyVersion, &Error>,
    ) {
        let mut table = self.table();
        let known = table.entry(key_set.into()).or_insert_with(|| Known {
            provider: String::new(),
            key_id: String::new(),
            key_version: String::new(),
            expires: None,
            state: "ok",
            answered: None,
            denied: None,
        });
        known.provider = provider.into();
        known.key_id = key_id.into();
        known.state = state(answer);
        // A failure leaves what was known before: an expiry does not go away
        // because the service does.
        if let Ok(version) = answer {
            known.key_version.clone_from(&version.id);
            known.expires = version.expires;
            known.answered = Some(SystemTime::now());
        }
    }

    pub fn denied(&self, key_set: &str, since: Option<SystemTime>) {
        if let Some(known) = self.table().get_mut(key_set) {
            known.denied = since;
        }
    }

    pub fn removed(&self, key_set: &str) {
        self.table().remove(key_set);
    }
}

fn state(answer: Result<&KeyVersion, &Error>) -> &'static str {
    match answer.map_err(Error::class) {
        Ok(version) if version.enabled => "ok",
        Ok(_) | Err(Class::Denied(_)) => "denied",
        Err(Class::Unreachable | Class::Sealed | Class::Throttled { .. }) => "unreachable",
        Err(Class::NotFound | Class::BadKey | Class::Protocol) => "failed",
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> f64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

impl Collector for KeySets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let table = self.table();
        if table.is_empty() {
            return Ok(());
        }
        let infos = table.iter().map(|(name, known)| {
            let labels = [
                ("key_set", name.as_str()),
                ("provider", &known.provider),
                ("key_id", &known.key_id),
                ("key_version", &known.key_version),
            ];
            (labels, 1.0)
        });
        About(
            "key_set_info",
            "The key that a key set wraps with, and its version.",
            None,
        )
        .gauges(encoder, infos)?;
        let states = table.iter().flat_map(|(name, known)| {
            STATES.map(|state| {
                let labels = [("key_set", name.as_str()), ("state", state)];
                let now = match known.denied {
                    Some(_) => "denied",
                    None => known.state,
                };
                (labels, f64::from(u8::from(state == now)))
            })
        });
        About(
            "key_set_state",
            "Whether the key is in this state (1) or not (0), as the service last said.",
            None,
        )
        .gauges(encoder, states)?;
        let times = |time: fn(&Known) -> Option<SystemTime>| {
            table.iter().filter_map(move |(name, known)| {
                let time = seconds(time(known)?);
                Some(([("key_set", name.as_str())], time))
            })
        };
        About(
            "key_set_expiry_timestamp",
            "When the key ends, in seconds since 1970. Absent where it has no end.",
            Some("seconds"),
        )
        .gauges(encoder, times(|known| known.expires))?;
        About(
            "key_set_last_answer_timestamp",
            "When the service last told the state of the key, in seconds since 1970.",
            Some("seconds"),
        )
        .gauges(encoder, times(|known| known.answered))?;
        About(
            "key_set_denied_timestamp",
            "Since when the service denies a key that served disks need, in seconds since 1970. \
             Absent where it does not.",
            Some("seconds"),
        )
        .gauges(encoder, times(|known| known.denied))
    }
}
