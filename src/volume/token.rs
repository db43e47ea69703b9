//! The LUKS2 token of type `sealblk`: which key set a volume belongs to, and
//! its data encryption key in wrapped form.
//!
//! `docs/format.md` specifies the JSON. The rule for extensions: a field that
//! an older sealblk may ignore is simply added (unknown fields survive a
//! rewrite, see [`Token::extra`]); a change that an older sealblk must not
//! ignore raises the version, and an older sealblk then refuses the volume.
//!
//! Version 2 is for volumes whose wraps are in a key store, and for no others:
//! an older sealblk would take a token without wraps for that of a volume that
//! was erased. Version 3 is for volumes that are not encrypted with one key from
//! end to end: those whose data is being re-encrypted, and those that are plain.
#![forbid(unsafe_code)]

mod rekey;

pub use rekey::{PREVIOUS_BYTES, Plain, Rekey};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::base64_text;
use crate::error::{Explain, Kind};
use crate::timestamp::Timestamp;

/// The `type` of the token in the LUKS2 header.
pub const TYPE: &str = "sealblk";

/// The highest version of the token that this sealblk reads.
pub const VERSION: u32 = 3;

/// The version of a token that has its wraps in itself.
const WITH_WRAPS: u32 = 1;
/// The version of a token whose wraps are in a key store.
const IN_KEY_STORE: u32 = 2;
/// The version of a token of a volume that is not encrypted with one key.
const UNDER_WAY: u32 = 3;

/// What a volume knows about its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Version of this structure: 1; 2 if the wraps are in a key store; 3 if
    /// the data is being re-encrypted, or is plain.
    pub version: u32,
    /// The key set that the volume belongs to: a name, never a key.
    pub key_set: String,
    /// The key store that has the wraps, by its name. `None`: they are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_store: Option<String>,
    /// A key store that may have a copy of the wraps beside, which no opening
    /// looks at: they are being moved there or were moved away from there, and
    /// that was not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_in: Option<String>,
    /// Whether a data unit whose stored bytes are all zero reads as zeroes.
    /// Every wrap is bound to it, so editing it on disk is detected.
    pub zero_units: bool,
    /// The data encryption key, wrapped once or more. Any one of them opens
    /// the volume. None at all: they are in the key store; without one, the
    /// volume was erased.
    #[serde(default)]
    pub wraps: Vec<Wrap>,
    /// What is left to be said of a volume whose keys were destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Erased>,
    /// The operation by which the data is being re-encrypted. The wraps are of
    /// its main key: the new one, or with [`Kind::Decrypt`](crate::rekey::Kind)
    /// the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<Rekey>,
    /// The data is plain, and this header opens nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<Plain>,
    /// Fields that this version does not know. Kept as they are on a rewrite.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A volume was erased, or erasing it was begun: its header has no wrapped key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// When it was begun.
    pub since: Timestamp,
    /// Whether nothing is left to be destroyed, as far as is known.
    pub finished: bool,
    /// Key stores that may have wrapped keys of the volume still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_stores: Vec<String>,
    /// A part of its data was plain when it was erased, and was left as it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partly_plain: bool,
}

/// The data encryption key, wrapped by one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wrap {
    /// The key set whose key wrapped it: that of the volume, or another one
    /// for break-glass access.
    pub key_set: String,
    /// The provider that unwraps it: `file`, `vault`, `azure-keyvault`, …
    pub provider: String,
    /// The key, in the provider's own notation.
    pub key_id: String,
    /// The version of the key, in the provider's own notation.
    pub key_version: String,
    /// The algorithm, in the provider's own notation, such as `A256GCM`.
    pub alg: String,
    /// How the wrap is bound to its volume.
    pub bound: Bound,
    /// What the provider returned, or with [`Bound::Group`] what the group key
    /// made of it. Base64 in JSON.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
    /// The group key, if there is one between the provider and this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Fields that this version does not know. Kept as they are on a rewrite.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A group key in wrapped form. Provider, key, version and algorithm of the
/// [`Wrap`] are those that it was wrapped with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Which group key.
    pub id: Uuid,
    /// What the provider returned. Base64 in JSON.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
    /// Fields that this version does not know. Kept as they are on a rewrite.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// How a wrap is tied to the volume it belongs to. An open set: a wrap that
/// is bound in a way this sealblk does not know is kept, and not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Bound {
    /// `aad:1`: the volume's binding, version 1, is the additional
    /// authenticated data of the wrapping algorithm.
    Aad,
    /// `group:1`: the same, of the group key's AES-256-GCM.
    Group,
    /// Something newer.
    Other(String),
}

impl From<String> for Bound {
    fn from(text: String) -> Self {
        match text.as_str() {
            "aad:1" => Bound::Aad,
            "group:1" => Bound::Group,
            _ => Bound::Other(text),
        }
    }
}

impl From<Bound> for String {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::Aad => "aad:1".into(),
            Bound::Group => "group:1".into(),
            Bound::Other(text) => text,
        }
    }
}

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Written by a later sealblk in a way that this one must not ignore.
    #[error("the sealblk token has version {found}, and this sealblk reads up to {VERSION}")]
    Newer {
        /// The version in the token.
        found: u64,
    },
    /// Not what the format says.
    #[error("the sealblk token is malformed")]
    Malformed(#[source] serde_json::Error),
    /// No version, or one that never existed.
    #[error("the sealblk token has no valid version")]
    NoVersion,
}

impl Explain for TokenError {
    fn kind(&self) -> Kind {
        match self {
            TokenError::Newer { .. } => Kind::Unsupported,
            TokenError::Malformed(_) | TokenError::NoVersion => Kind::Corrupt,
        }
    }

    fn help(&self) -> Option<String> {
        Some(match self {
            TokenError::Newer { .. } => "upgrade sealblk on this host".into(),
            TokenError::Malformed(_) | TokenError::NoVersion => {
                "restore the header from a backup: sealblk volume restore-header".into()
            }
        })
    }
}

impl Token {
    /// A token that has its wraps in itself.
    pub fn new(key_set: impl Into<String>, zero_units: bool, wraps: Vec<Wrap>) -> Self {
        Token {
            version: WITH_WRAPS,
            key_set: key_set.into(),
            key_store: None,
            copy_in: None,
            zero_units,
            wraps,
            erased: None,
            rekey: None,
            plain: None,
            extra: Map::new(),
        }
    }

    /// What stays of a volume that is erased. It has nothing of the token that
    /// was there: not even fields that this version does not know, since a key
    /// might be in them.
    pub fn of_erased(key_set: impl Into<String>, zero_units: bool, erased: Erased) -> Self {
        Token {
            erased: Some(erased),
            ..Token::new(key_set, zero_units, Vec::new())
        }
    }

    /// What stays of a volume whose data is plain. As with one that was erased,
    /// nothing of the token that was there.
    pub fn of_plain(key_set: impl Into<String>, zero_units: bool, plain: Plain) -> Self {
        Token {
            version: UNDER_WAY,
            plain: Some(plain),
            ..Token::new(key_set, zero_units, Vec::new())
        }
    }

    /// The same token with its wraps in itself.
    #[must_use]
    pub fn with_wraps(self, wraps: Vec<Wrap>) -> Self {
        Token {
            version: match self.rekey {
                Some(_) => UNDER_WAY,
                None => WITH_WRAPS,
            },
            key_store: None,
            wraps,
            ..self
        }
    }

    /// The same token with an operation under way, or without one.
    #[must_use]
    pub fn with_rekey(self, rekey: Option<Rekey>) -> Self {
        let wraps = self.wraps.clone();
        Token { rekey, ..self }.with_wraps(wraps)
    }

    /// Since when there has been no key, if there is none any more: the volume
    /// was erased, or is plain.
    pub fn keyless_since(&self) -> Option<Timestamp> {
        let erased = self.erased.as_ref().map(|erased| erased.since);
        erased.or(self.plain.as_ref().map(|plain| plain.since))
    }

    /// The same token with its wraps in a key store, and not here.
    #[must_use]
    pub fn in_key_store(self, name: impl Into<String>) -> Self {
        Token {
            version: IN_KEY_STORE,
            key_store: Some(name.into()),
            wraps: Vec::new(),
            ..self
        }
    }

    /// The same token, which says that there may be a copy of its wraps.
    #[must_use]
    pub fn with_copy_in(self, name: Option<String>) -> Self {
        Token {
            copy_in: name,
            ..self
        }
    }

    /// Reads a token object of a LUKS2 header. The version is looked at
    /// first: a later version may have changed everything else.
    ///
    /// # Errors
    /// When the version is not supported, or the object is not as specified.
    pub fn from_json(value: &Value) -> Result<Self, TokenError> {
        match value.get("version").and_then(Value::as_u64) {
            None | Some(0) => return Err(TokenError::NoVersion),
            Some(version) if version > u64::from(VERSION) => {
                return Err(TokenError::Newer { found: version });
            }
            Some(_) => {}
        }
        let stored: Stored =
            serde_json::from_value(value.clone()).map_err(TokenError::Malformed)?;
        let token = stored.token;
        match token.fault(value.get("wraps").is_some()) {
            Some(fault) => Err(TokenError::Malformed(serde::de::Error::custom(fault))),
            None => Ok(token),
        }
    }

    /// What contradicts itself. What an older sealblk would pass over must not
    /// count here either: it belongs to its own version.
    fn fault(&self, has_list: bool) -> Option<&'static str> {
        if self.version >= UNDER_WAY || self.rekey.is_some() || self.plain.is_some() {
            return self.fault_under_way(has_list);
        }
        match (&self.key_store, self.version) {
            (Some(_), ..IN_KEY_STORE) => Some("it has wraps and a key store"),
            (Some(_), _) if !self.wraps.is_empty() => Some("it has wraps and a key store"),
            (Some(_), _) if self.erased.is_some() => Some("it has a key store, and was erased"),
            (None, IN_KEY_STORE..) => Some("it names no key store"),
            (None, _) if !has_list => Some("it has no wraps"),
            (None, _) if self.erased.is_some() && !self.wraps.is_empty() => {
                Some("it has wraps, and says that it was erased")
            }
            _ => None,
        }
    }

    fn fault_under_way(&self, has_list: bool) -> Option<&'static str> {
        if self.version != UNDER_WAY {
            return Some("what is under way does not belong to its version");
        }
        if self.key_store.is_some() || self.copy_in.is_some() {
            return Some("it has a key store, and an operation under way or done");
        }
        if self.erased.is_some() {
            return Some("it was erased, and has an operation under way or done");
        }
        match (&self.rekey, &self.plain) {
            (None, None) => Some("it says neither what is under way nor that its data is plain"),
            (Some(_), Some(_)) => Some("its data is plain, and on the way"),
            (Some(_), None) if self.wraps.is_empty() => Some("it has no wraps"),
            (Some(rekey), None) => rekey.fault(),
            (None, Some(_)) if !has_list => Some("it has no wraps"),
            (None, Some(_)) if !self.wraps.is_empty() => {
                Some("it has wraps, and says that its data is plain")
            }
            (None, Some(_)) => None,
        }
    }

    /// The token object for a LUKS2 header. It refers to no keyslot.
    ///
    /// # Errors
    /// When an unknown field has the name of a known one.
    pub fn to_json(&self) -> Result<Value, TokenError> {
        let stored = Stored {
            kind: TYPE.into(),
            keyslots: Vec::new(),
            token: self.clone(),
        };
        let mut value = serde_json::to_value(stored).map_err(TokenError::Malformed)?;
        if self.key_store.is_some()
            && let Some(object) = value.as_object_mut()
        {
            object.remove("wraps");
        }
        Ok(value)
    }
}

/// The token with the two fields that LUKS2 demands of every token.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<Value>,
    #[serde(flatten)]
    token: Token,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Token {
        Token::new(
            "production",
            true,
            vec![Wrap {
                key_set: "production".into(),
                provider: "file".into(),
                key_id: "platform".into(),
                key_version: "3".into(),
                alg: "A256GCM".into(),
                bound: Bound::Aad,
                bytes: vec![1, 2, 3, 255],
                group: None,
                extra: Map::new(),
            }],
        )
    }

    #[test]
    fn a_token_has_the_json_form_that_the_format_says() {
        let expected = json!({
            "type": "sealblk",
            "keyslots": [],
            "version": 1,
            "key_set": "production",
            "zero_units": true,
            "wraps": [{
                "key_set": "production",
                "provider": "file",
                "key_id": "platform",
                "key_version": "3",
                "alg": "A256GCM",
                "bound": "aad:1",
                "bytes": "AQID/w==",
            }],
        });
        assert_eq!(sample().to_json().unwrap(), expected);
        assert_eq!(Token::from_json(&expected).unwrap(), sample());
    }

    #[test]
    fn the_example_of_the_format_page_is_a_token() {
        let page = include_str!("../../docs/format.md");
        let (_, section) = page.split_once("\n## The token\n").unwrap();
        let (_, block) = section.split_once("```json\n").unwrap();
        let (example, _) = block.split_once("```").unwrap();
        let value: Value = serde_json::from_str(example).unwrap();
        let token = Token::from_json(&value).unwrap();
        assert!(token.extra.is_empty() && token.wraps[0].extra.is_empty());
        assert_eq!(token.wraps[0].bound, Bound::Aad);
        assert_eq!(token.to_json().unwrap(), value);
    }

    #[test]
    fn unknown_fields_and_bindings_survive() {
        let mut value = sample().to_json().unwrap();
        value["note"] = json!({"kept": [1, 2]});
        value["wraps"][0]["granted_by"] = json!("somebody");
        value["wraps"][0]["bound"] = json!("sealed:7");
        let token = Token::from_json(&value).unwrap();
        assert_eq!(token.wraps[0].bound, Bound::Other("sealed:7".into()));
        assert_eq!(token.to_json().unwrap(), value);
    }

    #[test]
    fn a_token_with_a_key_store_is_of_version_2_and_has_no_wraps() {
        let token = sample().in_key_store("vault-eu");
        let expected = json!({
            "type": "sealblk",
            "keyslots": [],
            "version": 2,
            "key_set": "production",
            "key_store": "vault-eu",
            "zero_units": true,
        });
        assert_eq!(token.to_json().unwrap(), expected);
        assert_eq!(Token::from_json(&expected).unwrap(), token);
        let back = token.with_wraps(sample().wraps);
        assert_eq!(back.to_json().unwrap(), sample().to_json().unwrap());
        // All others are what an older sealblk reads, also in mid-move.
        let moving = sample().with_copy_in(Some("vault-eu".into()));
        let json = moving.to_json().unwrap();
        assert_eq!(
            (&json["version"], &json["copy_in"]),
            (&json!(1), &json!("vault-eu"))
        );
        assert_eq!(json["wraps"].as_array().unwrap().len(), 1);
        assert_eq!(Token::from_json(&json).unwrap(), moving);
    }

    #[test]
    fn a_token_says_in_one_way_only_where_its_wraps_are() {
        let here = sample().to_json().unwrap();
        let there = sample().in_key_store("s").to_json().unwrap();
        let edits: [(&Value, &str, Value); 6] = [
            (&here, "key_store", json!("s")),
            (&here, "wraps", Value::Null),
            (&here, "version", json!(2)),
            (&there, "version", json!(1)),
            (&there, "key_store", json!(7)),
            (&there, "wraps", here["wraps"].clone()),
        ];
        for (from, field, value) in edits {
            let mut edited = from.clone();
            match value {
                Value::Null => _ = edited.as_object_mut().unwrap().remove(field),
                value => edited[field] = value,
            }
            assert!(
                matches!(Token::from_json(&edited), Err(TokenError::Malformed(_))),
                "{edited}"
            );
        }
    }

    #[test]
    fn a_later_version_is_refused_before_anything_else_is_read() {
        let later = json!({"type": "sealblk", "keyslots": [], "version": 4, "all": "new"});
        let error = Token::from_json(&later).unwrap_err();
        assert!(matches!(error, TokenError::Newer { found: 4 }));
        assert_eq!(error.help().unwrap(), "upgrade sealblk on this host");
        for version in [json!(0), json!(-1), json!("1"), Value::Null] {
            let mut value = sample().to_json().unwrap();
            value["version"] = version;
            assert!(matches!(
                Token::from_json(&value),
                Err(TokenError::NoVersion)
            ));
        }
    }

    #[test]
    fn missing_and_mistyped_fields_are_malformed() {
        for (pointer, wrong) in [
            ("/zero_units", json!("yes")),
            ("/key_set", json!(7)),
            ("/wraps", json!({})),
            ("/wraps/0/bytes", json!("not base64!")),
            ("/wraps/0/alg", Value::Null),
        ] {
            let mut value = sample().to_json().unwrap();
            *value.pointer_mut(pointer).unwrap() = wrong;
            assert!(
                matches!(Token::from_json(&value), Err(TokenError::Malformed(_))),
                "{pointer}"
            );
        }
    }
}
