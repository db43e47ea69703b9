//! What the suite needs to do at a service.

use sealblk::kms::{Class, KeyRef, Provider};

/// A service with one key, and the powers of its operator.
pub trait Lab {
    /// A client of the service that may use the key.
    fn provider(&self) -> Box<dyn Provider>;

    /// The key, at its latest version.
    fn key(&self) -> KeyRef;

    /// A client that uses another key in the same place, and that key.
    fn stranger(&self) -> (Box<dyn Provider>, KeyRef);

    /// Gives the key a new version, which becomes the latest.
    fn rotate(&self);

    /// What of a key can be disabled and deleted at this service.
    fn granularity(&self) -> Granularity {
        Granularity::AnyVersion
    }

    /// Whether a caller can choose a version to wrap with.
    fn can_pin(&self) -> bool {
        true
    }

    /// Disables or enables a version, and what goes with it at this service.
    fn set_enabled(&self, version: &str, enabled: bool);

    /// Deletes a version (that may have to be disabled for it) for good, and
    /// what goes with it at this service.
    fn delete(&self, version: &str);

    /// Whether a call takes so long that one bit of each byte has to do where
    /// every bit is changed elsewhere.
    fn calls_are_slow(&self) -> bool {
        false
    }

    /// A name that no version of the key has, in the service's form.
    fn no_version(&self) -> String;

    /// The service in a state in which each call fails with `class`.
    fn broken(&self, class: Class) -> Broken;

    /// What this host holds of the key and of credentials, and must not show.
    fn secrets(&self) -> Vec<Vec<u8>>;
}

/// How finely a service disables and deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Each version by itself.
    AnyVersion,
    /// A version with all older ones, and never the latest.
    OlderVersions,
    /// Each version by itself, and all of them deleted with the key.
    #[allow(dead_code)]
    DeletedTogether,
    /// The key with all its versions.
    #[allow(dead_code)]
    WholeKey,
}

/// An answer of [`Lab::broken`].
pub enum Broken {
    /// Each call of this client fails so.
    Client(Box<dyn Provider>),
    /// It cannot come to that with this provider. The reason is for the reader.
    Impossible(#[allow(dead_code)] &'static str),
}
