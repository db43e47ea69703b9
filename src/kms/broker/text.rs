//! Bytes as base64 in JSON: those that anybody may see, and secrets, of which
//! no copy stays in memory that is not wiped.

use std::fmt;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Bytes that are no secret.
pub(super) mod bytes {
    use super::*;

    pub fn serialize<S: Serializer>(
        bytes: &(impl AsRef<[u8]> + ?Sized),
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        BASE64
            .decode(text.as_bytes())
            .map_err(|_| de::Error::custom("not base64"))
    }
}

/// A secret as text, which is wiped.
pub(super) mod secret {
    use super::*;

    pub fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
        let room = secret.len().div_ceil(3) * 4;
        let mut text = Zeroizing::new(vec![0; room]);
        let length = BASE64
            .encode_slice(&secret[..], &mut text)
            .map_err(serde::ser::Error::custom)?;
        let text = std::str::from_utf8(&text[..length]).map_err(serde::ser::Error::custom)?;
        to.serialize_str(text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        from.deserialize_str(InPlace)
    }

    /// Takes text only where it lies: an escaped one would be copied to where
    /// nobody wipes it, and base64 needs no escapes.
    struct InPlace;

    impl<'de> Visitor<'de> for InPlace {
        type Value = Secret;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("base64 without escapes")
        }

        fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Secret, E> {
            let mut room = Secret::zeroed(base64::decoded_len_estimate(text.len()))
                .map_err(|error| E::custom(format!("no locked memory: {error}")))?;
            let length = BASE64
                .decode_slice(text, &mut room)
                .map_err(|_| E::custom("not base64"))?;
            Secret::copy_of(&room[..length])
                .map_err(|error| E::custom(format!("no locked memory: {error}")))
        }
    }
}

/// `value` as JSON, in secret memory of just that size.
///
/// # Errors
/// When there is no locked memory, or `value` cannot be JSON.
pub(super) fn to_secret(value: &impl Serialize) -> io::Result<Secret> {
    let mut length = Count(0);
    serde_json::to_writer(&mut length, value)?;
    let mut text = Secret::zeroed(length.0)?;
    serde_json::to_writer(&mut text[..], value)?;
    Ok(text)
}

/// Counts what is written to it.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
