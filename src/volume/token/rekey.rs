//! What the token says of a volume whose data is being re-encrypted, and of one
//! that is plain again (`docs/format.md`, "Volumes under way").
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::rekey::PREVIOUS_BYTES;

use crate::rekey::Kind;
use crate::timestamp::Timestamp;
use crate::volume::base64_text;

/// The operation that is under way. A field that is not known is none that may
/// be passed over: what is here decides how data is decrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rekey {
    /// Which operation: random, new for each.
    pub id: Uuid,
    /// What it does.
    pub kind: Kind,
    /// When it was begun. For people; nothing depends on it.
    pub since: Timestamp,
    /// The old key, encrypted under one that is derived from the new key. Base64
    /// in JSON; of [`Kind::Rekey`], and of no other.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "optional_base64"
    )]
    pub previous: Option<Vec<u8>>,
}

impl Rekey {
    /// What contradicts itself in it.
    pub(super) fn fault(&self) -> Option<&'static str> {
        match (self.kind, self.previous.as_ref().map(Vec::len)) {
            (Kind::Rekey, Some(PREVIOUS_BYTES)) | (Kind::Encrypt | Kind::Decrypt, None) => None,
            (Kind::Rekey, Some(_)) => Some("the previous key has a wrong length"),
            (Kind::Rekey, None) => Some("the previous key is missing"),
            (_, Some(_)) => Some("it has a previous key, and what is under way has none"),
        }
    }

    /// What is under way, as in "the volume is being …".
    pub fn doing(&self) -> &'static str {
        match self.kind {
            Kind::Rekey => "re-encrypted",
            Kind::Encrypt => "encrypted",
            Kind::Decrypt => "decrypted",
        }
    }

    /// Whether a part of the data is stored as it is while this is under way.
    pub fn is_partly_plain(&self) -> bool {
        self.kind != Kind::Rekey
    }
}

/// The data of the volume is plain: it was decrypted, or encrypting it was taken
/// back. Its header has no key any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Since when.
    pub since: Timestamp,
}

/// Base64 text, or nothing.
mod optional_base64 {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::base64_text;

    #[derive(Deserialize)]
    struct Text(#[serde(with = "base64_text")] Vec<u8>);

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => base64_text::serialize(bytes, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        // No null: the field is there, or it is not.
        Text::deserialize(from).map(|text| Some(text.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::volume::Token;

    /// The last example of a section of the format page.
    fn example(section: &str) -> Value {
        let page = include_str!("../../../docs/format.md");
        let (_, section) = page.split_once(&format!("\n### {section}\n")).unwrap();
        let (section, _) = section.split_once("\n### ").unwrap();
        let (_, block) = section.rsplit_once("```json\n").unwrap();
        serde_json::from_str(block.split_once("```").unwrap().0).unwrap()
    }

    #[test]
    fn the_examples_of_the_format_page_are_tokens() {
        let value = example("Volumes under way");
        let token = Token::from_json(&value).unwrap();
        assert!(token.extra.is_empty());
        let rekey = token.rekey.as_ref().unwrap();
        assert_eq!((rekey.kind, rekey.doing()), (Kind::Rekey, "re-encrypted"));
        let previous: Vec<u8> = (0..PREVIOUS_BYTES as u8).collect();
        assert_eq!(rekey.previous.as_ref(), Some(&previous));
        assert_eq!(token.to_json().unwrap(), value);

        let value = example("Plain volumes");
        let token = Token::from_json(&value).unwrap();
        let since = token.plain.as_ref().unwrap().since;
        assert_eq!(token.keyless_since(), Some(since));
        assert_eq!(token.to_json().unwrap(), value);
    }

    #[test]
    fn a_token_is_under_way_or_plain_in_one_way_only() {
        let under_way = example("Volumes under way");
        let plain = example("Plain volumes");
        let since = plain["plain"].clone();
        for (of, field, value) in [
            (&under_way, "version", json!(1)),
            (&under_way, "version", json!(2)),
            (&under_way, "rekey", Value::Null),
            (&under_way, "plain", since),
            (&under_way, "key_store", json!("s")),
            (&under_way, "copy_in", json!("s")),
            (&under_way, "wraps", json!([])),
            (&plain, "version", json!(1)),
            (&plain, "version", json!(2)),
            (&plain, "plain", Value::Null),
            (
                &plain,
                "plain",
                json!({"since": "2031-02-28T23:59:59Z", "how": 1}),
            ),
            (&plain, "wraps", under_way["wraps"].clone()),
            (&plain, "wraps", Value::Null),
            (&plain, "key_store", json!("s")),
        ] {
            let mut edited = of.clone();
            match value {
                Value::Null => _ = edited.as_object_mut().unwrap().remove(field),
                value => edited[field] = value,
            }
            assert!(Token::from_json(&edited).is_err(), "{edited}");
        }
        // No operation has a previous key but a rekey, and none of another length.
        for (kind, previous, is_good) in [
            ("rekey", Some(PREVIOUS_BYTES), true),
            ("rekey", Some(PREVIOUS_BYTES - 1), false),
            ("rekey", None, false),
            ("encrypt", None, true),
            ("encrypt", Some(PREVIOUS_BYTES), false),
            ("decrypt", None, true),
            ("decrypt", Some(PREVIOUS_BYTES), false),
        ] {
            let mut token = Token::from_json(&under_way).unwrap();
            let rekey = token.rekey.as_mut().unwrap();
            rekey.kind = serde_json::from_value(kind.into()).unwrap();
            rekey.previous = previous.map(|length| vec![1; length]);
            let read = Token::from_json(&token.to_json().unwrap());
            assert_eq!(read.is_ok(), is_good, "{kind} {previous:?}");
        }
    }
}
