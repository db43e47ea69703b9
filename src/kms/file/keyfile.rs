//! What a platform key file holds: a key id, and the versions of the key.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Change;
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// An AES-256 key.
pub const KEY_BYTES: usize = 32;

/// How many versions, removed ones included, one key file holds.
pub const VERSIONS_MAX: usize = 256;

/// Names one version of a key: eight hexadecimal digits.
///
/// Random and not counted, so that two copies of a key file that were both
/// rotated are told apart: the copy says "no such version", and not merely
/// that some bytes do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VersionId(pub u32);

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for VersionId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.len() == 8 && text.bytes().all(|c| c.is_ascii_hexdigit());
        match u32::from_str_radix(text, 16) {
            Ok(id) if hex => Ok(VersionId(id)),
            _ => Err(format!(
                "{text:?} is not a key version: write the eight hexadecimal digits that `sealblk key list` shows"
            )),
        }
    }
}

impl From<VersionId> for String {
    fn from(id: VersionId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for VersionId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What may be done with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Wraps, if it is the latest, and unwraps.
    Enabled,
    /// Neither, until it is enabled again.
    Disabled,
    /// The key is gone. The entry stays, so that the reason can be told.
    Removed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Enabled => "enabled",
            State::Disabled => "disabled",
            State::Removed => "removed",
        })
    }
}

/// One version of the platform key.
#[derive(Debug)]
pub struct Version {
    /// Its name.
    pub id: VersionId,
    /// When it was made.
    pub created: Timestamp,
    /// What may be done with it.
    pub state: State,
    /// The key; `None` exactly when the state is [`State::Removed`].
    pub(super) key: Option<Secret>,
}

impl Version {
    /// The key, unless it has been removed.
    pub fn key(&self) -> Option<&Secret> {
        self.key.as_ref()
    }
}

/// A platform key: its id, and all of its versions, oldest first.
#[derive(Debug)]
pub struct KeyFile {
    /// Names this key among all others.
    pub key_id: Uuid,
    /// Oldest first.
    pub versions: Vec<Version>,
}

impl KeyFile {
    /// A new key with one version.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let mut file = KeyFile {
            key_id: uuid::Builder::from_random_bytes(bytes).into_uuid(),
            versions: Vec::new(),
        };
        file.push_version()?;
        Ok(file)
    }

    /// The newest version that has not been removed.
    pub fn latest(&self) -> Option<&Version> {
        self.versions
            .iter()
            .rev()
            .find(|v| v.state != State::Removed)
    }

    /// The version of that name.
    pub fn version(&self, id: VersionId) -> Option<&Version> {
        self.versions.iter().find(|version| version.id == id)
    }

    /// How many versions still have their key.
    pub fn keys(&self) -> usize {
        self.versions.iter().filter(|v| v.key.is_some()).count()
    }

    /// Adds a new random version, which becomes the latest.
    pub fn add_version(&mut self) -> Result<VersionId, Change> {
        if self.versions.len() >= VERSIONS_MAX {
            return Err(Change::Full);
        }
        self.push_version().map_err(Change::Memory)
    }

    fn push_version(&mut self) -> io::Result<VersionId> {
        let id = loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            let id = VersionId(u32::from_be_bytes(bytes));
            if self.version(id).is_none() {
                break id;
            }
        };
        self.versions.push(Version {
            id,
            created: Timestamp::now(),
            state: State::Enabled,
            key: Some(Secret::random(KEY_BYTES)?),
        });
        Ok(id)
    }

    /// Enables or disables a version.
    pub fn set_enabled(&mut self, id: VersionId, enabled: bool) -> Result<(), Change> {
        let version = self.version_mut(id)?;
        if version.state == State::Removed {
            return Err(Change::Removed(id));
        }
        version.state = if enabled {
            State::Enabled
        } else {
            State::Disabled
        };
        Ok(())
    }

    /// Destroys the key of a version that was disabled before.
    pub fn remove_version(&mut self, id: VersionId) -> Result<(), Change> {
        let version = self.version_mut(id)?;
        match version.state {
            State::Enabled => Err(Change::StillEnabled(id)),
            State::Removed => Err(Change::Removed(id)),
            State::Disabled => {
                version.state = State::Removed;
                version.key = None;
                Ok(())
            }
        }
    }

    fn version_mut(&mut self, id: VersionId) -> Result<&mut Version, Change> {
        self.versions
            .iter_mut()
            .find(|version| version.id == id)
            .ok_or(Change::NoSuchVersion(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_version_is_the_newest_that_was_not_removed() {
        let mut file = KeyFile::generate().unwrap();
        let first = file.latest().unwrap().id;
        let second = file.add_version().unwrap();
        assert_eq!(file.latest().unwrap().id, second);
        file.set_enabled(second, false).unwrap();
        assert_eq!(file.latest().unwrap().id, second, "disabled is not gone");
        file.remove_version(second).unwrap();
        assert_eq!(file.latest().unwrap().id, first);
        file.set_enabled(first, false).unwrap();
        file.remove_version(first).unwrap();
        assert!(file.latest().is_none());
        assert!(file.versions.iter().all(|version| version.key().is_none()));
    }

    #[test]
    fn removing_takes_two_steps_and_is_final() {
        let mut file = KeyFile::generate().unwrap();
        let id = file.latest().unwrap().id;
        assert!(matches!(
            file.remove_version(id),
            Err(Change::StillEnabled(_))
        ));
        file.set_enabled(id, false).unwrap();
        file.remove_version(id).unwrap();
        assert!(matches!(file.remove_version(id), Err(Change::Removed(_))));
        assert!(matches!(
            file.set_enabled(id, true),
            Err(Change::Removed(_))
        ));
        let unknown = VersionId(id.0 ^ 1);
        assert!(matches!(
            file.set_enabled(unknown, true),
            Err(Change::NoSuchVersion(_))
        ));
    }

    #[test]
    fn a_version_is_written_as_eight_hexadecimal_digits() {
        assert_eq!(VersionId(0xbeef).to_string(), "0000beef");
        assert_eq!("0000BEEF".parse(), Ok(VersionId(0xbeef)));
        for text in ["", "beef", "0000beefs", "+000beef", "00000beef"] {
            assert!(text.parse::<VersionId>().is_err(), "{text}");
        }
    }
}
