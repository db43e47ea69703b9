//! Whether a key may be used, from what the server tells of it.
//!
//! A server may hand out a key that was revoked (PyKMIP does), so what it
//! says of the key is looked at before each use, and decided upon here.

use std::time::{Duration, SystemTime};

use super::numbers::AES;
use super::protocol::{Attributes, State};
use crate::kms::{Class, Denied, Error};

/// What a key is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To wrap with it.
    Wrap,
    /// To unwrap with it: also after its Protect Stop Date.
    Unwrap,
}

/// Why a key may not be used: the class, the rest of a sentence that begins
/// with the key, and the next step.
type Obstacle = (Denied, &'static str, &'static str);

/// Checks that the key may be used, and is an AES-256 key.
///
/// # Errors
/// When it may not be used now, or is another kind of key. `key` is how the
/// key is called in the message.
pub fn check(key: &str, told: &Attributes, purpose: Purpose, now: i64) -> Result<(), Error> {
    if let Some((denied, what, next)) = obstacle(told, purpose, now) {
        return Err(Error::new(
            Class::Denied(denied),
            format!("{key} {what}"),
            next,
        ));
    }
    match (told.algorithm, told.bits) {
        (Some(AES), Some(256)) => Ok(()),
        _ => Err(Error::new(
            Class::Protocol,
            format!("{key} is not an AES-256 key"),
            "use a symmetric key with Cryptographic Algorithm AES and Cryptographic Length 256",
        )),
    }
}

/// Whether the key may be used at all, as [`crate::kms::KeyVersion::enabled`] has it.
pub fn enabled(told: &Attributes, now: i64) -> bool {
    obstacle(told, Purpose::Wrap, now).is_none()
}

/// When the key ends, if that is set.
pub fn expires(told: &Attributes) -> Option<SystemTime> {
    let ends = [told.deactivation, told.protect_stop];
    let end = ends.into_iter().flatten().min()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(end).unwrap_or(0)))
}

fn obstacle(told: &Attributes, purpose: Purpose, now: i64) -> Option<Obstacle> {
    let past = |date: Option<i64>| date.is_some_and(|date| date <= now);
    Some(match told.state {
        State::Active if past(told.deactivation) => (
            Denied::Expired,
            "is past its Deactivation Date",
            "wrap with another key, or have the date changed on the server",
        ),
        State::Active if purpose == Purpose::Wrap && past(told.protect_stop) => (
            Denied::Expired,
            "is past its Protect Stop Date, after which it only unwraps",
            "wrap with another key, or have the date changed on the server",
        ),
        State::Active => return None,
        State::PreActive => (
            Denied::Disabled,
            "has not been activated yet",
            "activate it on the server",
        ),
        State::Deactivated if past(told.deactivation) && !told.revoked => (
            Denied::Expired,
            "was deactivated at its Deactivation Date",
            "activate a new key; to open what this one wrapped, have it activated again on the server",
        ),
        State::Deactivated => (
            Denied::Disabled,
            "has been deactivated",
            "find out who revoked it and why; to open what it wrapped, have it activated again on the server",
        ),
        State::Compromised => (
            Denied::Disabled,
            "has been revoked as compromised",
            "find out what happened; to open what it wrapped, have it activated again on the server, and then wrap with another key",
        ),
        State::Destroyed | State::DestroyedCompromised => (
            Denied::Deleted,
            "has been destroyed",
            "restore the key from a backup of the server",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_900_000_000;

    fn told(state: State) -> Attributes {
        Attributes {
            state,
            algorithm: Some(AES),
            bits: Some(256),
            made: Some(NOW - 100),
            deactivation: None,
            protect_stop: None,
            revoked: false,
        }
    }

    #[test]
    fn each_state_has_its_answer() {
        use Purpose::*;
        use State::*;
        let ended = |state, revoked| Attributes {
            deactivation: Some(NOW),
            revoked,
            ..told(state)
        };
        let stopped = Attributes {
            protect_stop: Some(NOW - 1),
            ..told(Active)
        };
        let later = Attributes {
            deactivation: Some(NOW + 1),
            protect_stop: Some(NOW + 2),
            ..told(Active)
        };
        let (disabled, expired, deleted) = (
            Some(Denied::Disabled),
            Some(Denied::Expired),
            Some(Denied::Deleted),
        );
        #[rustfmt::skip]
        let table = [
            (told(Active), None, None),
            (later, None, None),
            (told(PreActive), disabled, disabled),
            (told(Deactivated), disabled, disabled),
            (told(Compromised), disabled, disabled),
            (told(Destroyed), deleted, deleted),
            (told(DestroyedCompromised), deleted, deleted),
            (ended(Active, false), expired, expired),
            (ended(Deactivated, false), expired, expired),
            (ended(Deactivated, true), disabled, disabled),
            (stopped, expired, None),
        ];
        for (told, wrap, unwrap) in table {
            for (purpose, expected) in [(Wrap, wrap), (Unwrap, unwrap)] {
                let class = check("the key", &told, purpose, NOW)
                    .err()
                    .map(|e| e.class());
                assert_eq!(class, expected.map(Class::Denied), "{told:?} {purpose:?}");
            }
            assert_eq!(enabled(&told, NOW), wrap.is_none());
        }
    }

    #[test]
    fn only_aes_256_keys_are_used() {
        for (algorithm, bits) in [(Some(AES), Some(128)), (Some(2), Some(256)), (None, None)] {
            let other = Attributes {
                algorithm,
                bits,
                ..told(State::Active)
            };
            let error = check("the key", &other, Purpose::Wrap, NOW).unwrap_err();
            assert_eq!(error.class(), Class::Protocol);
        }
    }

    #[test]
    fn the_end_is_the_first_of_its_dates() {
        let mut told = told(State::Active);
        assert_eq!(expires(&told), None);
        told.deactivation = Some(20);
        assert_eq!(
            expires(&told),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(20))
        );
        told.protect_stop = Some(10);
        assert_eq!(
            expires(&told),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10))
        );
        told.protect_stop = Some(i64::MIN);
        assert_eq!(expires(&told), Some(SystemTime::UNIX_EPOCH));
    }
}
