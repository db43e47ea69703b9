//! Keys that end: said once each time that it gets closer.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::keys::Name;
use crate::kms::KeyVersion;

/// How many days before its end it is said.
const DAYS: [u32; 4] = [30, 7, 1, 0];

const DAY: Duration = Duration::from_secs(86_400);

/// What has been said already.
#[derive(Debug, Default)]
pub struct Expiry(BTreeMap<Name, (String, SystemTime, u32)>);

impl Expiry {
    /// Whether it is to be said now that `version` ends: within how many days.
    /// 0: it has ended.
    pub fn due(&mut self, name: &Name, version: &KeyVersion, now: SystemTime) -> Option<u32> {
        let expires = version.expires?;
        let left = expires.duration_since(now).unwrap_or_default();
        // The smallest that is not exceeded.
        let days = DAYS.into_iter().rfind(|days| left <= DAY * *days)?;
        let said = self.0.get(name);
        if said.is_some_and(|(id, at, said)| *id == version.id && *at == expires && *said <= days) {
            return None;
        }
        self.0
            .insert(name.clone(), (version.id.clone(), expires, days));
        Some(days)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_30_7_and_1_days_and_at_the_end_and_once_each() {
        let mut expiry = Expiry::default();
        let name = Name::default();
        let end = SystemTime::UNIX_EPOCH + DAY * 1000;
        let version = |id: &str, expires| KeyVersion {
            id: id.into(),
            enabled: true,
            expires,
        };
        let hour = Duration::from_secs(3600);
        let mut at = |before: Duration| expiry.due(&name, &version("1", Some(end)), end - before);
        let said: Vec<_> = (0..40 * 24)
            .rev()
            .filter_map(|hours| Some((hours, at(hour * hours)?)))
            .collect();
        assert_eq!(said, [(720, 30), (168, 7), (24, 1), (0, 0)]);
        // A manager that starts late says the closest alone.
        let mut late = Expiry::default();
        let found = late.due(&name, &version("1", Some(end)), end - hour * 30);
        assert_eq!(found, Some(7));
        // Another version, or another end, is said anew.
        let two = version("2", Some(end));
        assert_eq!(late.due(&name, &two, end - hour), Some(1));
        let later = version("2", Some(end + DAY));
        assert_eq!(late.due(&name, &later, end - hour), Some(7));
        assert_eq!(late.due(&name, &version("3", None), end), None);
        assert_eq!(expiry.due(&name, &version("1", Some(end)), end + DAY), None);
    }
}
