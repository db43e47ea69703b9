//! The closed set of ways in which a key management service can fail.

use std::fmt;
use std::time::Duration;

use crate::error::{Explain, Kind};

/// How a call failed, as far as policy needs to tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The service works, and does not let this key be used.
    Denied(Denied),
    /// There is no such key, or no such version of it.
    NotFound,
    /// Too many calls; `retry_after` is what the service asked for.
    Throttled {
        /// How long the service wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No answer: no route, refused, silent, the storage does not respond, or
    /// this host has not what it takes to ask (certificates, credentials).
    Unreachable,
    /// The service runs, but has not been unsealed or unlocked by its operators.
    Sealed,
    /// The wrapped bytes, or what they are bound to, are not what was wrapped.
    BadKey,
    /// The answer, or the envelope, is not understood.
    Protocol,
}

/// Why a key may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Someone disabled the key or this version.
    Disabled,
    /// It is past its end, or before its start.
    Expired,
    /// It was deleted; the service remembers that there was one.
    Deleted,
    /// This identity has no permission, or the way to the key is unsafe.
    Forbidden,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Denied(Denied::Disabled) => "denied: disabled",
            Class::Denied(Denied::Expired) => "denied: expired",
            Class::Denied(Denied::Deleted) => "denied: deleted",
            Class::Denied(Denied::Forbidden) => "denied: forbidden",
            Class::NotFound => "not found",
            Class::Throttled { .. } => "throttled",
            Class::Unreachable => "unreachable",
            Class::Sealed => "sealed",
            Class::BadKey => "bad key",
            Class::Protocol => "protocol",
        })
    }
}

/// The service's own words are cut to this many characters.
const WORDS_MAX: usize = 400;

/// A failed call: its class, the plain cause, the service's own words, and
/// the next step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    class: Class,
    kind: Kind,
    cause: String,
    words: Option<String>,
    next: String,
}

impl Error {
    /// An error of `class`. `cause` says in plain words what is wrong, `next`
    /// what to do about it.
    pub fn new(class: Class, cause: impl Into<String>, next: impl Into<String>) -> Self {
        let kind = match class {
            Class::Denied(_) | Class::BadKey => Kind::Key,
            Class::NotFound => Kind::NotFound,
            Class::Throttled { .. } | Class::Unreachable | Class::Sealed => Kind::Unreachable,
            Class::Protocol => Kind::Unsupported,
        };
        Error(Box::new(Inner {
            class,
            kind,
            cause: cause.into(),
            words: None,
            next: next.into(),
        }))
    }

    /// Keeps what the service itself said: on one line, and not endlessly.
    #[must_use]
    pub fn with_words(mut self, words: &str) -> Self {
        let mut kept: String = words
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(WORDS_MAX)
            .collect();
        if words.trim().chars().nth(WORDS_MAX).is_some() {
            kept.push('…');
        }
        self.0.words = (!kept.is_empty()).then_some(kept);
        self
    }

    /// Says something else, in place of the cause and the service's own words.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.0.cause = cause.into();
        self.0.words = None;
        self
    }

    /// Exits with another status than that of the class, where more is known.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What policy acts on.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// What is wrong, without the service's own words.
    pub fn cause(&self) -> &str {
        &self.0.cause
    }

    /// The service's own words, if it had any.
    pub fn words(&self) -> Option<&str> {
        self.0.words.as_deref()
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        match &self.words {
            Some(words) => write!(f, " (it said: {words})"),
            None => Ok(()),
        }
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        self.0.kind
    }

    fn help(&self) -> Option<String> {
        Some(self.0.next.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_s_words_are_kept_on_one_line_and_cut() {
        let error = Error::new(
            Class::Sealed,
            "the server is sealed",
            "ask for it to be unsealed",
        )
        .with_words("Vault is\n\x1b[31msealed ");
        assert_eq!(error.words(), Some("Vault is  [31msealed"));
        assert_eq!(
            error.to_string(),
            "the server is sealed (it said: Vault is  [31msealed)"
        );
        let long = error.with_words(&"x".repeat(WORDS_MAX + 1));
        assert_eq!(
            long.words().map(|w| w.chars().count()),
            Some(WORDS_MAX + 1),
            "cut and marked"
        );
        assert_eq!(long.kind(), Kind::Unreachable);
        assert_eq!(long.help().as_deref(), Some("ask for it to be unsealed"));
    }

    #[test]
    fn empty_words_are_no_words() {
        let error = Error::new(Class::BadKey, "cause", "next").with_words(" \n");
        assert_eq!(error.words(), None);
        assert_eq!(error.to_string(), "cause");
    }
}
