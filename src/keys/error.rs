//! Why a key set yields no key.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, io_kind};
use crate::key_store;
use crate::kms::{self, recovery};
use crate::secret::BadDek;

/// A key that could not be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody defined a key set of that name.
    #[error("there is no key set {name:?}; there is {}", list(known))]
    UnknownKeySet {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The provider failed to wrap, or to tell its current version.
    #[error("key set {key_set:?} (provider {provider})")]
    Kms {
        /// The key set.
        key_set: String,
        /// Its provider.
        provider: &'static str,
        /// What the provider said.
        source: kms::Error,
    },
    /// There is no directory for the group key of the key set.
    #[error("key set {0:?} has a group key for its volumes, and no state directory to keep it in")]
    NoState(String),
    /// The stored group key cannot be read or written.
    #[error("cannot use the stored group key {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key store that has the wraps does not give them.
    #[error(transparent)]
    Store(#[from] key_store::Error),
    /// Wraps in a key store were asked for, and nobody said of which volume.
    #[error("the wrapped keys are in a key store, and nobody said of which volume they are")]
    NoVolume,
    /// No wrap of the volume opened. Empty when it has none.
    #[error("{}", attempts(.0))]
    Unwrap(Vec<Attempt>),
}

/// One wrap that did not open.
#[derive(Debug)]
pub struct Attempt {
    /// The key set named by the wrap.
    pub key_set: String,
    /// The provider named by the wrap.
    pub provider: String,
    /// The key named by the wrap.
    pub key_id: String,
    /// The key version named by the wrap.
    pub key_version: String,
    /// Why it did not open.
    pub why: Why,
}

/// Why a wrap did not open.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Its key set is not defined here.
    #[error("this host has no such key set; it has {}", list(.0))]
    UnknownKeySet(Vec<String>),
    /// Its key set has since been given another provider.
    #[error("the key set uses provider {0} now")]
    OtherProvider(&'static str),
    /// It is bound to its volume in a way that this version does not know.
    #[error("it is bound to its volume by {0:?}, which this sealblk does not know")]
    Binding(String),
    /// It is for break-glass access, which nobody asked for.
    #[error("it is for break-glass access, and was not tried")]
    BreakGlass,
    /// It is for break-glass access, and the own key set denies its key.
    #[error(
        "it is for break-glass access, and was not tried because the volume's own key set denies its key"
    )]
    Denied,
    /// It opens with a recovery key, which nobody has shown.
    #[error("it opens with a recovery key alone, and was not tried")]
    RecoveryKey,
    /// It opens with another recovery key.
    #[error("it opens with another recovery key than {0}, which was given")]
    OtherRecoveryKey(recovery::Id),
    /// The provider did not unwrap it.
    #[error(transparent)]
    Kms(kms::Error),
    /// What came out is not a data encryption key.
    #[error("what was unwrapped is not usable: {0}")]
    BadDek(BadDek),
}

impl Error {
    /// What policy acts on: the class of the first provider error, if a
    /// provider was asked at all.
    pub fn class(&self) -> Option<kms::Class> {
        match self {
            Error::UnknownKeySet { .. }
            | Error::NoState(_)
            | Error::NoVolume
            | Error::Record { .. } => None,
            Error::Kms { source, .. } => Some(source.class()),
            Error::Store(source) => source.class(),
            Error::Unwrap(attempts) => attempts.iter().find_map(|attempt| match &attempt.why {
                Why::Kms(error) => Some(error.class()),
                _ => None,
            }),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // From the disk, so with whatever someone wrote there: quoted.
        write!(
            f,
            "key set {:?} (provider {:?}, key {:?}, version {:?}): {}",
            self.key_set, self.provider, self.key_id, self.key_version, self.why
        )
    }
}

impl Explain for Why {
    fn kind(&self) -> Kind {
        match self {
            Why::UnknownKeySet(_) => Kind::NotFound,
            Why::OtherProvider(_) => Kind::Key,
            Why::Binding(_) => Kind::Unsupported,
            Why::BreakGlass | Why::Denied | Why::RecoveryKey | Why::OtherRecoveryKey(_) => {
                Kind::Key
            }
            Why::Kms(error) => error.kind(),
            Why::BadDek(_) => Kind::Corrupt,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            Why::UnknownKeySet(_) => "define the key set in the configuration of this host".into(),
            Why::OtherProvider(_) => {
                "define a key set of that name with the provider that wrapped the key".into()
            }
            Why::Binding(_) => "upgrade sealblk on this host".into(),
            Why::BreakGlass => {
                "if the volume's own key set is lost, ask for it: --break-glass".into()
            }
            Why::Denied => "if the key was not denied on purpose, have it permitted again; to get \
                 around its owner's will, say so: --break-glass --even-if-denied"
                .into(),
            Why::RecoveryKey => "type the recovery key from the safe into a file, and name that: \
                 --recovery-key-file"
                .into(),
            Why::OtherRecoveryKey(_) => {
                "take the paper with the id that `sealblk volume info` shows".into()
            }
            Why::Kms(error) => return error.help(),
            Why::BadDek(_) => "restore the volume's header from a backup".into(),
        })
    }
}

impl Explain for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::UnknownKeySet { .. } => Kind::NotFound,
            Error::Kms { source, .. } => source.kind(),
            Error::NoState(_) => Kind::Usage,
            Error::NoVolume => Kind::Internal,
            Error::Store(source) => source.kind(),
            Error::Record { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                Kind::Corrupt
            }
            Error::Record { source, .. } => io_kind(source),
            Error::Unwrap(attempts) => attempts.first().map_or(Kind::Key, |a| a.why.kind()),
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Error::UnknownKeySet { .. } => {
                Some("define it as [key_sets.NAME] in the configuration, or name another".into())
            }
            Error::Kms { source, .. } => source.help(),
            Error::Store(source) => source.help(),
            Error::NoVolume => Some("this is a defect of sealblk: report it".into()),
            Error::NoState(_) => Some("set state_dir, or hierarchy = \"direct\" for the key set".into()),
            Error::Record { path, source } if source.kind() == io::ErrorKind::InvalidData => {
                Some(format!(
                    "volumes do not need it: move {} away, and new volumes get a new group key",
                    path.display()
                ))
            }
            Error::Record { .. } => Some(
                "run it as the user that owns the state directory (state_dir), or set hierarchy = \"direct\" for the key set".into(),
            ),
            // The first wrap is that of the volume's own key set.
            Error::Unwrap(attempts) => match attempts.first() {
                Some(attempt) => attempt.why.help(),
                None => Some(
                    "if it was not meant to be erased, restore its header from a backup".into(),
                ),
            },
        }
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => names.join(", "),
    }
}

fn attempts(attempts: &[Attempt]) -> String {
    match attempts {
        [] => "the volume has no wrapped key any more: it was erased, or is plain".into(),
        [only] => format!("cannot unwrap the volume's key: {only}"),
        several => {
            let told: Vec<String> = several.iter().map(Attempt::to_string).collect();
            format!(
                "none of the volume's {} wrapped keys opens: {}",
                several.len(),
                told.join("; ")
            )
        }
    }
}
