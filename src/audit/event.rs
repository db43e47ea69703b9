//! What is recorded.
//!
//! The names here, in snake case, are those in the log: `docs/audit.md` lists
//! them. Texts come from volumes, services and requests, so that all of them
//! are cut to a length before they are written.

use std::path::Path;
use std::time::Duration;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::line::{Hash, VERSION};
use crate::error::{Explain as _, Failure, Kind};
use crate::keys::{self, Actor};
use crate::kms::{self, Class, Denied};
use crate::timestamp::Moment;

/// A text is cut to this many characters.
const TEXT_MAX: usize = 512;

/// A list is cut to this many entries.
const LIST_MAX: usize = 32;

/// What somebody did.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A disk was attached, or should have been.
    Attach {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The key set of the volume, as far as it was read.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        key_set: &'a str,
        /// Whether it was asked for by break-glass access.
        #[serde(skip_serializing_if = "no")]
        break_glass: bool,
    },
    /// A disk was detached.
    Detach {
        /// Its name.
        #[serde(serialize_with = "text")]
        disk: &'a str,
        /// Its volume.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// Whether it was told not to wait for the guest.
        #[serde(skip_serializing_if = "no")]
        force: bool,
    },
    /// A key was wrapped.
    Wrap(KeyEvent<'a>),
    /// A key was unwrapped.
    Unwrap(KeyEvent<'a>),
    /// A service was asked for the state of a key, and did not tell it.
    Check(KeyEvent<'a>),
    /// A key set was made.
    KeySetCreated {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider.
        #[serde(serialize_with = "text")]
        provider: &'a str,
    },
    /// The settings of a key set were changed.
    KeySetEdited {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
        /// Its provider, after the change.
        #[serde(serialize_with = "text")]
        provider: &'a str,
        /// Which settings.
        #[serde(serialize_with = "list")]
        changed: &'a [String],
    },
    /// A key set was removed.
    KeySetRemoved {
        /// Its name.
        #[serde(serialize_with = "text")]
        key_set: &'a str,
    },
    /// A bare data encryption key was written to a file.
    KeyExported {
        /// The volume whose key it is.
        volume: Uuid,
        /// The file.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// A volume's header was copied.
    HeaderBackup {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The copy.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// A volume's header was written back.
    HeaderRestore {
        /// The volume, as far as it was read.
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<Uuid>,
        /// The copy.
        #[serde(serialize_with = "path_text")]
        path: &'a Path,
    },
    /// The manager started.
    DaemonStarted {
        /// Its version.
        #[serde(serialize_with = "text")]
        version: &'a str,
    },
    /// The manager read its configuration again.
    DaemonReloaded {
        /// Which settings have changed.
        #[serde(serialize_with = "list")]
        changed: &'a [String],
    },
    /// The manager ends.
    DaemonStopped,
    /// Somebody asked for what their role does not permit.
    RoleRefused {
        /// What they asked for.
        #[serde(serialize_with = "text")]
        operation: &'a str,
        /// The disk, key set or volume that it was about; may be empty.
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        object: &'a str,
        /// The role that it takes.
        #[serde(serialize_with = "text")]
        needs: &'a str,
    },
}

/// What is recorded of a use of a key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyEvent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<Uuid>,
    #[serde(serialize_with = "text")]
    pub(super) key_set: &'a str,
    #[serde(serialize_with = "text")]
    pub(super) provider: &'a str,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) key_id: &'a str,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) key_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<Uuid>,
    /// Whether the service was asked, or memory answered.
    pub(super) service_asked: bool,
    #[serde(skip_serializing_if = "no")]
    pub(super) break_glass: bool,
    #[serde(skip_serializing_if = "empty", serialize_with = "text")]
    pub(super) request_id: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "list")]
    pub(super) endpoints: Vec<EndpointAsked<'a>>,
}

/// An endpoint that was asked, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EndpointAsked<'a> {
    #[serde(serialize_with = "text")]
    pub(super) endpoint: &'a str,
    pub(super) took_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<&'static str>,
}

/// How it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Somebody, here or at the service, does not permit it.
    Denied {
        /// `disabled`, `expired`, `deleted`, `forbidden` or `role`.
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
    }
}

/// All that is recorded of one event.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Who did it.
    pub actor: &'a Actor,
    /// What.
    pub event: Event<'a>,
    /// How it ended.
    pub outcome: Outcome,
    /// Ties it to other lines, and to the log of a service.
    pub correlation: Option<Uuid>,
    /// How long it took.
    pub took: Option<Duration>,
}

/// A line without its hash, as it is written.
#[derive(Serialize)]
pub(super) struct Body<'a, E> {
    pub(super) v: u32,
    pub(super) seq: u64,
    pub(super) time: Moment,
    #[serde(flatten)]
    pub(super) event: &'a E,
    #[serde(serialize_with = "actor")]
    pub(super) actor: &'a Actor,
    #[serde(flatten)]
    pub(super) outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) took_us: Option<u64>,
    pub(super) prev: Hash,
}

impl<'a> Record<'a> {
    pub(super) fn body(&'a self, seq: u64, prev: Hash) -> Body<'a, Event<'a>> {
        Body {
            v: VERSION,
            seq,
            time: Moment::now(),
            event: &self.event,
            actor: self.actor,
            outcome: &self.outcome,
            correlation: self.correlation,
            took_us: self.took.map(micros),
            prev,
        }
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn actor<S: Serializer>(actor: &Actor, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Written<'a> {
        uid: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        #[serde(serialize_with = "text")]
        role: &'a str,
    }
    let written = Written {
        uid: actor.uid,
        pid: actor.pid,
        role: &actor.role,
    };
    written.serialize(to)
}

fn text<S: Serializer>(text: &(impl AsRef<str> + ?Sized), to: S) -> Result<S::Ok, S::Error> {
    let text = text.as_ref();
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => to.collect_str(&format_args!("{}…", &text[..end])),
        None => to.serialize_str(text),
    }
}

fn path_text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    text(&path.to_string_lossy(), to)
}

fn list<S: Serializer, T: Serialize>(
    list: &(impl AsRef<[T]> + ?Sized),
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(list.as_ref().iter().take(LIST_MAX))
}

fn empty(text: &&str) -> bool {
    text.is_empty()
}

fn no(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::LINE_MAX;

    /// Whatever a volume, a service or a request brings in.
    #[test]
    fn a_record_is_never_too_long_for_a_line() {
        let long = "\u{1}".repeat(100_000);
        let me = Actor {
            uid: u32::MAX,
            pid: Some(u32::MAX),
            role: long.clone().into(),
        };
        let asked = EndpointAsked {
            endpoint: "https://kms.example:8200",
            took_us: u64::MAX,
            failed: Some("unreachable"),
        };
        let record = Record {
            actor: &me,
            event: Event::Unwrap(KeyEvent {
                volume: Some(Uuid::max()),
                key_set: &long,
                provider: &long,
                key_id: &long,
                key_version: &long,
                group: Some(Uuid::max()),
                service_asked: true,
                break_glass: true,
                request_id: &long,
                endpoints: vec![asked; 1000],
            }),
            outcome: Outcome::Denied {
                reason: "forbidden",
                message: long.clone(),
            },
            correlation: Some(Uuid::max()),
            took: Some(Duration::MAX),
        };
        let body = serde_json::to_vec(&record.body(u64::MAX, Hash::NONE)).unwrap();
        assert!(body.len() < LINE_MAX / 2, "{}", body.len());
        // No control character is left to end a line early.
        assert!(!body.iter().any(u8::is_ascii_control));
    }

    #[test]
    fn events_have_their_names_and_no_empty_members() {
        let me = Actor::this_process("operator");
        let record = Record {
            actor: &me,
            event: Event::Attach {
                disk: "web-1",
                volume: None,
                key_set: "",
                break_glass: false,
            },
            outcome: Outcome::Ok,
            correlation: None,
            took: None,
        };
        let body = serde_json::to_value(record.body(3, Hash::NONE)).unwrap();
        let object = body.as_object().unwrap();
        let members: Vec<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(
            members,
            [
                "actor", "disk", "event", "outcome", "prev", "seq", "time", "v"
            ]
        );
        assert_eq!(
            (&body["event"], &body["outcome"]),
            (&"attach".into(), &"ok".into())
        );
        assert_eq!(body["actor"]["role"], "operator");
    }

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
