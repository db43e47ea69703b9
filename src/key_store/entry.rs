//! What a key store keeps of a volume: the same wraps that would stand in its
//! header. `docs/format.md` specifies the JSON.
//!
//! The rule for extensions is that of the token: a field that an older sealblk
//! may ignore is added, and survives; a change that it must not ignore raises
//! the version.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::{Explain, Kind};
use crate::volume::token::Wrap;

/// The `type` of an entry.
const TYPE: &str = "sealblk-volume-keys";

/// The version of an entry that this sealblk writes, and the highest it reads.
const VERSION: u32 = 1;

/// The longest entry in bytes. That of a volume with a hundred large wraps has
/// less.
pub const ENTRY_MAX: usize = 256 << 10;

/// The wrapped keys of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(rename = "type")]
    kind: String,
    version: u32,
    /// The volume.
    pub volume: Uuid,
    /// The key set that the volume belonged to when this was written. For
    /// people: the header says it.
    pub key_set: String,
    /// How often the entry has been written, from 1.
    pub generation: u64,
    /// The data encryption key, wrapped once or more.
    pub wraps: Vec<Wrap>,
    /// Fields that this version does not know. Kept as they are on a rewrite.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Why something is not an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Written by a later sealblk in a way that this one must not ignore.
    #[error("the entry has version {0}, and this sealblk reads up to {VERSION}")]
    Newer(u64),
    /// Not what the format says.
    #[error("it is not an entry of a key store, or is damaged: {0}")]
    Malformed(String),
    /// More than an entry can have.
    #[error("it is longer than {} KiB, which no entry is", ENTRY_MAX >> 10)]
    TooLong,
}

impl Explain for EntryError {
    fn kind(&self) -> Kind {
        match self {
            EntryError::Newer(_) => Kind::Unsupported,
            EntryError::Malformed(_) | EntryError::TooLong => Kind::Corrupt,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            EntryError::Newer(_) => "upgrade sealblk on this host".into(),
            EntryError::Malformed(_) | EntryError::TooLong => {
                "restore the entry from a backup of the key store, and find out what wrote to it"
                    .into()
            }
        })
    }
}

impl Entry {
    /// The first entry of a volume.
    pub fn new(volume: Uuid, key_set: impl Into<String>, wraps: Vec<Wrap>) -> Self {
        Entry {
            kind: TYPE.into(),
            version: VERSION,
            volume,
            key_set: key_set.into(),
            generation: 1,
            wraps,
            extra: Map::new(),
        }
    }

    /// The entry that follows this one, with other wraps.
    #[must_use]
    pub fn next(&self, key_set: impl Into<String>, wraps: Vec<Wrap>) -> Self {
        Entry {
            key_set: key_set.into(),
            generation: self.generation.saturating_add(1),
            wraps,
            ..self.clone()
        }
    }

    /// Reads an entry from JSON text.
    ///
    /// # Errors
    /// When it is not one that this sealblk can read.
    pub fn parse(text: &[u8]) -> Result<Self, EntryError> {
        if text.len() > ENTRY_MAX {
            return Err(EntryError::TooLong);
        }
        let value: Value = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
        Self::from_json(value)
    }

    /// Reads an entry from JSON. The version is looked at first: a later one
    /// may have changed everything else.
    ///
    /// # Errors
    /// When it is not one that this sealblk can read.
    pub fn from_json(value: Value) -> Result<Self, EntryError> {
        let wrong = |what: &str| Err(EntryError::Malformed(what.into()));
        if value.get("type").and_then(Value::as_str) != Some(TYPE) {
            return wrong("its type is another one");
        }
        match value.get("version").and_then(Value::as_u64) {
            None | Some(0) => return wrong("it has no valid version"),
            Some(version) if version > u64::from(VERSION) => {
                return Err(EntryError::Newer(version));
            }
            Some(_) => {}
        }
        let entry: Entry = serde_json::from_value(value).map_err(|error| malformed(&error))?;
        match (entry.wraps.is_empty(), entry.generation) {
            (true, _) => wrong("it has no wraps"),
            (_, 0) => wrong("it has no valid generation"),
            _ => Ok(entry),
        }
    }

    /// The entry as JSON.
    ///
    /// # Errors
    /// When an unknown field has the name of a known one, or it is too long.
    pub fn to_json(&self) -> Result<Value, EntryError> {
        let value = serde_json::to_value(self).map_err(|error| malformed(&error))?;
        match value.to_string().len() > ENTRY_MAX {
            true => Err(EntryError::TooLong),
            false => Ok(value),
        }
    }
}

fn malformed(error: &serde_json::Error) -> EntryError {
    // It may quote what somebody wrote there: on one line, and not endlessly.
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = error.to_string().chars().map(clean).take(200).collect();
    EntryError::Malformed(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "type": "sealblk-volume-keys",
            "version": 1,
            "volume": "00112233-4455-6677-8899-aabbccddeeff",
            "key_set": "production",
            "generation": 3,
            "wraps": [{
                "key_set": "production", "provider": "file", "key_id": "platform",
                "key_version": "3", "alg": "A256GCM", "bound": "aad:1", "bytes": "AQID/w==",
            }],
            "later": {"kept": true},
        })
    }

    #[test]
    fn an_entry_comes_back_with_what_nobody_knows() {
        let entry = Entry::from_json(sample()).unwrap();
        assert_eq!(entry.to_json().unwrap(), sample());
        let next = entry.next("production", entry.wraps.clone());
        assert_eq!((next.generation, &next.extra), (4, &entry.extra));
        let text = entry.to_json().unwrap().to_string();
        assert_eq!(Entry::parse(text.as_bytes()).unwrap(), entry);
    }

    #[test]
    fn the_example_of_the_format_page_is_an_entry() {
        let page = include_str!("../../docs/format.md");
        let (_, section) = page.split_once("\n## The entry of a key store\n").unwrap();
        let (_, block) = section.split_once("```json\n").unwrap();
        let (example, _) = block.split_once("```").unwrap();
        let entry = Entry::parse(example.as_bytes()).unwrap();
        assert!(entry.extra.is_empty() && entry.wraps[0].extra.is_empty());
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for (pointer, wrong) in [
            ("/type", json!("sealblk")),
            ("/version", json!(0)),
            ("/version", json!("1")),
            ("/volume", json!("../../etc/passwd")),
            ("/generation", json!(0)),
            ("/generation", json!(-1)),
            ("/wraps", json!([])),
            ("/wraps", json!({})),
            ("/wraps/0/bytes", json!("not base64!")),
        ] {
            let mut value = sample();
            *value.pointer_mut(pointer).unwrap() = wrong;
            let error = Entry::from_json(value).unwrap_err();
            assert!(matches!(error, EntryError::Malformed(_)), "{pointer}");
            assert_eq!(error.kind(), Kind::Corrupt);
        }
        let later = json!({"type": TYPE, "version": 2, "all": "new"});
        let error = Entry::from_json(later).unwrap_err();
        assert!(matches!(error, EntryError::Newer(2)));
    }

    #[test]
    fn hostile_text_is_refused_before_it_is_read() {
        let deep = "[".repeat(100_000);
        assert!(matches!(
            Entry::parse(deep.as_bytes()),
            Err(EntryError::Malformed(_))
        ));
        let huge = vec![b' '; ENTRY_MAX + 1];
        assert!(matches!(Entry::parse(&huge), Err(EntryError::TooLong)));
        let text = sample().to_string();
        for cut in 0..text.len() {
            assert!(Entry::parse(&text.as_bytes()[..cut]).is_err(), "{cut}");
        }
        let mut long = Entry::from_json(sample()).unwrap();
        long.wraps[0].bytes = vec![0; ENTRY_MAX];
        assert!(matches!(long.to_json(), Err(EntryError::TooLong)));
    }
}
