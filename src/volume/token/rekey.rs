//! What the token says of a volume whose data is being re-encrypted, and of one
//! that is plain again (`docs/format.md`, "Volumes under way").
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rekey::Kind;
use crate::timestamp::Timestamp;
use crate::volume::base64_text;

/// Length of [`Rekey::previous`]: nonce, the key, tag.
pub const PREVIOUS_BYTES: usize = 12 + crate::secret::DEK_BYTES + 16;

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
