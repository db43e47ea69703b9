//! How what is recorded ended.

use serde::Serialize;

use super::text::text;
use crate::error::{Explain as _, Failure, Kind};
use crate::key_store;
use crate::keys;
use crate::kms::{self, Class, Denied};

/// How it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Somebody, here or at the service, does not permit it.
    Denied {
        /// `disabled`, `expired`, `deleted`, `forbidden`, `role` or `policy`.
        reason: &'static str,
        /// In plain words.
        #[serde(serialize_with = "text")]
        message: String,
    },
    /// A call that was not looked at any further.
    Refused {
        /// Why: `certificate`, `host`, `key`, `challenge`, `replay` or `request`.
        reason: &'static str,
        /// In plain words.
        #[serde(serialize_with = "text")]
        message: String,
    },
    /// It failed for another reason.
    Failed {
        /// The class of the error.
        class: &'static str,
        /// In plain words.
        #[serde(serialize_with = "text")]
        message: String,
    },
}

impl Outcome {
    /// How `result` is recorded.
    pub fn of<T, E>(result: &Result<T, E>) -> Self
    where
        for<'e> Outcome: From<&'e E>,
    {
        match result {
            Ok(_) => Outcome::Ok,
            Err(error) => error.into(),
        }
    }

    /// Refused here, for want of a role.
    pub fn role_refused(message: impl Into<String>) -> Self {
        Outcome::Denied {
            reason: "role",
            message: message.into(),
        }
    }

    /// Denied here, by the policy of the broker.
    pub fn policy_denied(message: impl Into<String>) -> Self {
        Outcome::Denied {
            reason: "policy",
            message: message.into(),
        }
    }

    fn of_class(class: Class, message: String) -> Self {
        match class {
            Class::Denied(_) => Outcome::Denied {
                reason: class_word(class),
                message,
            },
            _ => Outcome::Failed {
                class: class_word(class),
                message,
            },
        }
    }
}

impl From<&kms::Error> for Outcome {
    fn from(error: &kms::Error) -> Self {
        Outcome::of_class(error.class(), error.to_string())
    }
}

impl From<&keys::Error> for Outcome {
    fn from(error: &keys::Error) -> Self {
        match error.class() {
            Some(class) => Outcome::of_class(class, error.to_string()),
            None => Outcome::Failed {
                class: kind_word(error.kind()),
                message: error.to_string(),
            },
        }
    }
}

impl From<&keys::Why> for Outcome {
    fn from(why: &keys::Why) -> Self {
        match why {
            keys::Why::Kms(error) => error.into(),
            other => Outcome::Failed {
                class: kind_word(other.kind()),
                message: other.to_string(),
            },
        }
    }
}

impl From<&key_store::Error> for Outcome {
    fn from(error: &key_store::Error) -> Self {
        // With what the store itself said.
        let message = crate::error::chain(error);
        match error.class() {
            Some(class) => Outcome::of_class(class, message),
            None => Outcome::Failed {
                class: kind_word(error.kind()),
                message,
            },
        }
    }
}

impl From<&Failure> for Outcome {
    fn from(failure: &Failure) -> Self {
        Outcome::Failed {
            class: kind_word(failure.kind()),
            message: failure.to_string(),
        }
    }
}

/// The class of an error of a service, in one word.
pub(super) fn class_word(class: Class) -> &'static str {
    match class {
        Class::Denied(Denied::Disabled) => "disabled",
        Class::Denied(Denied::Expired) => "expired",
        Class::Denied(Denied::Deleted) => "deleted",
        Class::Denied(Denied::Forbidden) => "forbidden",
        Class::NotFound => "not_found",
        Class::Throttled { .. } => "throttled",
        Class::Unreachable => "unreachable",
        Class::Sealed => "sealed",
        Class::BadKey => "bad_key",
        Class::Protocol => "protocol",
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Internal => "internal",
        Kind::Usage => "usage",
        Kind::NotFound => "not_found",
        Kind::Permission => "permission",
        Kind::Busy => "busy",
        Kind::Refused => "refused",
        Kind::Corrupt => "corrupt",
        Kind::Key => "key",
        Kind::Unreachable => "unreachable",
        Kind::Io => "io",
        Kind::Unsupported => "unsupported",
        // Verdicts are found, and stand in the line of the event.
        Kind::Disproved => "disproved",
        Kind::Undecided => "undecided",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_denies_is_denied_and_the_rest_failed() {
        let outcome = |class| {
            let error = kms::Error::new(class, "cause", "next");
            serde_json::to_value(Outcome::from(&error)).unwrap()
        };
        let denied = outcome(Class::Denied(Denied::Expired));
        assert_eq!(
            (&denied["outcome"], &denied["reason"]),
            (&"denied".into(), &"expired".into())
        );
        let failed = outcome(Class::Unreachable);
        assert_eq!(
            (&failed["outcome"], &failed["class"], &failed["message"]),
            (&"failed".into(), &"unreachable".into(), &"cause".into())
        );
    }
}
