//! The JSON area of a header copy ("JSON Area").
//!
//! The document is kept as it was read, so that whatever cryptsetup or a
//! later sealblk put there survives a rewrite; the parts that sealblk acts
//! on are parsed from it into types, strictly.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::digest::Digest;

/// The one encryption that a volume may have, in dm-crypt's notation.
pub const ENCRYPTION: &str = "aes-xts-plain64";

/// The mandatory requirement of a volume whose data is being re-encrypted.
pub const REKEY: &str = "sealblk-rekey-v1";

/// What a header demands of whoever opens it ("Mandatory Requirements").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing.
    None,
    /// To know what is written in a sealblk token about an operation under way.
    Rekey,
}

/// The JSON document of a header.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    document: Map<String, Value>,
}

/// A segment of type `crypt` ("Segments Object"). Integers of 64 bits are decimal
/// text in LUKS2, since JSON numbers are not exact everywhere. Fields that are
/// not listed are ignored, as the specification demands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Always `crypt`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the data starts on the data device, in bytes.
    #[serde(with = "decimal")]
    pub offset: u64,
    /// How many bytes of data there are.
    #[serde(with = "decimal")]
    pub size: u64,
    /// Added to the number of the 512-byte sector to make the tweak.
    #[serde(with = "decimal")]
    pub iv_tweak: u64,
    /// Cipher, mode and tweak in dm-crypt's notation.
    pub encryption: String,
    /// The size of a data unit in bytes.
    pub sector_size: u64,
}

/// What is wrong with a document whose checksum is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It contradicts the specification.
    #[error("{0}")]
    Invalid(String),
    /// It is valid LUKS2, and nothing that sealblk makes or understands.
    #[error("{0}")]
    Unsupported(String),
    /// It may only be opened by what understands these requirements ("Mandatory Requirements").
    #[error("it demands support for {}", .0.join(", "))]
    Requirements(Vec<String>),
}

fn invalid(what: impl Into<String>) -> Fault {
    Fault::Invalid(what.into())
}

/// Whether a digest is that of segment 0.
fn is_of_segment(digest: &Value) -> bool {
    let segments = digest.get("segments").and_then(Value::as_array);
    segments.is_some_and(|list| list.iter().any(|id| id == "0"))
}

impl Metadata {
    /// A document with one segment, its digest and one token, whose header
    /// copies have `copy_bytes` bytes in a header area of `area` bytes.
    pub fn new(
        segment: &Segment,
        digest: &Digest,
        token: Value,
        copy_bytes: u64,
        area: u64,
    ) -> Result<Self, Fault> {
        let value =
            |part: Result<Value, serde_json::Error>| part.map_err(|e| invalid(e.to_string()));
        let document = json!({
            "keyslots": {},
            "tokens": { "0": token },
            "segments": { "0": value(serde_json::to_value(segment))? },
            "digests": { "0": value(serde_json::to_value(digest))? },
            "config": {
                "json_size": (copy_bytes - super::binary::BINARY_BYTES as u64).to_string(),
                "keyslots_size": (area - 2 * copy_bytes).to_string(),
            },
        });
        match document {
            Value::Object(document) => Ok(Metadata { document }),
            _ => Err(invalid("not an object")),
        }
    }

    /// Reads the JSON area: an object, a NUL, and nothing but zeroes after it.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse(area: &[u8]) -> Result<Self, Fault> {
        let end = area
            .iter()
            .position(|&b| b == 0)
            .ok_or_else(|| invalid("the JSON text has no end"))?;
        if area[end..].iter().any(|&b| b != 0) {
            return Err(invalid("something follows the JSON text"));
        }
        serde_json::from_slice(&area[..end])
            .map(|document| Metadata { document })
            .map_err(|error| invalid(error.to_string()))
    }

    /// The JSON text.
    pub fn text(&self) -> Vec<u8> {
        // Writing a map of values cannot fail; an empty text would be refused
        // by every reader.
        serde_json::to_vec(&self.document).unwrap_or_default()
    }

    /// The whole document.
    pub fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    fn section(&self, name: &str) -> Result<&Map<String, Value>, Fault> {
        self.document
            .get(name)
            .and_then(Value::as_object)
            .ok_or_else(|| invalid(format!("there is no object {name:?}")))
    }

    /// What the header demands of whoever opens it. Whatever is there was put
    /// there so that a reader which does not know it keeps off.
    ///
    /// # Errors
    /// [`Fault::Requirements`] with the names that sealblk does not know.
    pub fn requirement(&self) -> Result<Requirement, Fault> {
        let Some(requirements) = self.section("config")?.get("requirements") else {
            return Ok(Requirement::None);
        };
        let malformed = || invalid("config.requirements is malformed");
        let Some(mandatory) = requirements
            .as_object()
            .ok_or_else(malformed)?
            .get("mandatory")
        else {
            return Ok(Requirement::None);
        };
        let names = mandatory
            .as_array()
            .ok_or_else(malformed)?
            .iter()
            .map(|name| name.as_str().ok_or_else(malformed))
            .collect::<Result<Vec<_>, _>>()?;
        match names.as_slice() {
            [] => Ok(Requirement::None),
            [REKEY] => Ok(Requirement::Rekey),
            _ => {
                let unknown: Vec<_> = names.iter().filter(|name| **name != REKEY).collect();
                match unknown.is_empty() {
                    true => Err(malformed()),
                    false => Err(Fault::Requirements(
                        unknown.into_iter().map(|&name| name.to_owned()).collect(),
                    )),
                }
            }
        }
    }

    /// Demands what `requirement` says, and nothing else.
    ///
    /// # Errors
    /// When there is no `config`.
    pub fn set_requirement(&mut self, requirement: Requirement) -> Result<(), Fault> {
        self.section("config")?;
        if let Some(Value::Object(config)) = self.document.get_mut("config") {
            match requirement {
                Requirement::None => drop(config.remove("requirements")),
                Requirement::Rekey => {
                    config.insert("requirements".into(), json!({ "mandatory": [REKEY] }));
                }
            }
        }
        Ok(())
    }

    /// Puts `digest` in the place of the one that belongs to the segment.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn replace_digest(&mut self, digest: &Digest) -> Result<(), Fault> {
        self.digest()?;
        let value = serde_json::to_value(digest).map_err(|error| invalid(error.to_string()))?;
        if let Some(Value::Object(digests)) = self.document.get_mut("digests")
            && let Some(old) = digests.values_mut().find(|value| is_of_segment(value))
        {
            *old = value;
        }
        Ok(())
    }

    /// The one segment.
    ///
    /// # Errors
    /// When there is none, or more, or it is not one of sealblk's.
    pub fn segment(&self) -> Result<Segment, Fault> {
        let segments = self.section("segments")?;
        let (Some(value), 1) = (segments.get("0"), segments.len()) else {
            return Err(Fault::Unsupported(format!(
                "it has {} segments, and a volume has exactly one, numbered 0",
                segments.len()
            )));
        };
        for foreign in ["integrity", "flags"] {
            if value.get(foreign).is_some() {
                return Err(Fault::Unsupported(format!("its segment has {foreign:?}")));
            }
        }
        if value.get("size").and_then(Value::as_str) == Some("dynamic") {
            return Err(Fault::Unsupported(
                "its segment has no fixed size, so a truncated file would go unnoticed".into(),
            ));
        }
        let segment: Segment = serde_json::from_value(value.clone())
            .map_err(|error| invalid(format!("segment 0: {error}")))?;
        if segment.kind != "crypt" {
            return Err(Fault::Unsupported(format!(
                "its segment is {:?}",
                segment.kind
            )));
        }
        if segment.encryption != ENCRYPTION {
            return Err(Fault::Unsupported(format!(
                "its encryption is {:?}, not {ENCRYPTION}",
                segment.encryption
            )));
        }
        Ok(segment)
    }

    /// The digest that belongs to the segment.
    ///
    /// # Errors
    /// When there is not exactly one, or it is of an unknown kind.
    pub fn digest(&self) -> Result<Digest, Fault> {
        let digests = self.section("digests")?.values();
        let mut digests = digests.filter(|value| is_of_segment(value));
        let (Some(value), None) = (digests.next(), digests.next()) else {
            return Err(invalid("segment 0 does not have exactly one digest"));
        };
        Digest::from_json(value)
    }

    /// The one token of type `kind`, with its number. `None` if there is none.
    ///
    /// # Errors
    /// When there are several: nobody could say which one counts.
    pub fn token(&self, kind: &str) -> Result<Option<(&str, &Value)>, Fault> {
        let mut tokens = self
            .section("tokens")?
            .iter()
            .filter(|(_, value)| value.get("type").is_some_and(|t| t == kind));
        let first = tokens.next();
        if tokens.next().is_some() {
            return Err(invalid(format!(
                "there are several tokens of type {kind:?}"
            )));
        }
        Ok(first.map(|(id, value)| (id.as_str(), value)))
    }

    /// Replaces the token of type `kind`, keeping its number and whichever
    /// keyslots it was assigned to.
    ///
    /// # Errors
    /// When there is not exactly one such token.
    pub fn replace_token(&mut self, kind: &str, mut token: Value) -> Result<(), Fault> {
        let (id, old) = self
            .token(kind)?
            .ok_or_else(|| invalid(format!("there is no token of type {kind:?}")))?;
        let id = id.to_owned();
        if let Some(keyslots) = old.get("keyslots") {
            token["keyslots"] = keyslots.clone();
        }
        if let Some(Value::Object(tokens)) = self.document.get_mut("tokens") {
            tokens.insert(id, token);
        }
        Ok(())
    }

    /// Writes another size into the one segment, and leaves the rest of it.
    ///
    /// # Errors
    /// When there is not exactly one segment.
    pub fn set_segment_size(&mut self, size: u64) -> Result<(), Fault> {
        self.segment()?;
        if let Some(segment) = self
            .document
            .get_mut("segments")
            .and_then(|all| all.get_mut("0"))
        {
            segment["size"] = size.to_string().into();
        }
        Ok(())
    }

    /// How many passphrase keyslots there are. sealblk makes none.
    pub fn keyslots(&self) -> Result<usize, Fault> {
        self.section("keyslots").map(Map::len)
    }

    /// Length of the keyslots area in bytes; it follows the second copy.
    pub fn keyslots_size(&self) -> Result<u64, Fault> {
        self.decimal("keyslots_size")
    }

    /// Length of the JSON area in bytes, as the document says it.
    pub fn json_size(&self) -> Result<u64, Fault> {
        self.decimal("json_size")
    }

    fn decimal(&self, name: &str) -> Result<u64, Fault> {
        self.section("config")?
            .get(name)
            .and_then(Value::as_str)
            .and_then(decimal::parse)
            .ok_or_else(|| invalid(format!("config.{name} is not a number")))
    }
}

/// 64-bit integers as decimal text.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn parse(text: &str) -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    }

    pub fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a decimal number")))
    }
}
