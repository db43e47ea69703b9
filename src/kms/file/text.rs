//! The text form of a platform key file.
//!
//! ```json
//! {"format": "sealblk-platform-key", "version": 1, "key_id": "UUID",
//!  "versions": [{"id": "9f3c1a7b", "created": "2031-…Z", "state": "enabled", "key": "base64"}],
//!  "checksum": "hex SHA-256"}
//! ```
//!
//! The checksum is over the same object without `checksum`, written without
//! spaces. It tells a damaged or hand-edited file from a sound one. It is not
//! a defence: whoever can write the file has the keys.
//!
//! The text is handled in [`Secret`] memory only, and keys are decoded from
//! it straight into [`Secret`]s.

use std::io::{self, Cursor, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::error::Cause;
use super::keyfile::{KEY_BYTES, KeyFile, State, Version, VersionId};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

const FORMAT: &str = "sealblk-platform-key";
const FORMAT_VERSION: u32 = 1;

/// 32 bytes in base64.
const KEY_TEXT_BYTES: usize = 44;

/// The largest file that is read, in bytes. All versions that one may hold
/// fit into it.
pub const FILE_MAX: usize = 64 * 1024;

/// The text form. Borrows everything secret from the text itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text<'a> {
    format: &'a str,
    version: u32,
    key_id: Uuid,
    #[serde(borrow)]
    versions: Vec<VersionText<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionText<'a> {
    id: VersionId,
    created: Timestamp,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

/// What is looked at first: a later version may have changed all else.
#[derive(Deserialize)]
struct Preamble<'a> {
    format: &'a str,
    version: u32,
}

impl KeyFile {
    /// Reads the text of a key file.
    pub fn parse(text: &Secret) -> Result<Self, Cause> {
        let damaged = |why: &str| Cause::Damaged(why.to_string());
        if text.iter().all(|c| c.is_ascii_whitespace() || *c == 0) {
            return Err(damaged("it is empty"));
        }
        // The parser's own message could quote what it stumbled over, so
        // only the place is kept.
        let place = |e: serde_json::Error| {
            Cause::Damaged(if e.is_eof() {
                "it ends too early".to_string()
            } else {
                format!(
                    "line {}, column {} is not as it was written",
                    e.line(),
                    e.column()
                )
            })
        };
        let preamble: Preamble<'_> = serde_json::from_slice(text).map_err(place)?;
        if preamble.format != FORMAT {
            return Err(damaged("it is not a platform key file"));
        }
        match preamble.version {
            FORMAT_VERSION => {}
            0 => return Err(damaged("there never was a format version 0")),
            newer => return Err(Cause::Newer(newer)),
        }
        let mut parsed: Text<'_> = serde_json::from_slice(text).map_err(place)?;
        let checksum = parsed
            .checksum
            .take()
            .ok_or_else(|| damaged("its checksum is missing"))?;
        if checksum != checksum_of(&parsed).map_err(Cause::Memory)? {
            return Err(damaged("its checksum does not match its content"));
        }

        let mut file = KeyFile {
            key_id: parsed.key_id,
            versions: Vec::with_capacity(parsed.versions.len()),
        };
        for entry in parsed.versions {
            if file.version(entry.id).is_some() {
                return Err(Cause::Damaged(format!(
                    "version {} is in it twice",
                    entry.id
                )));
            }
            let key = match (entry.state, entry.key) {
                (State::Removed, None) => None,
                (State::Enabled | State::Disabled, Some(text)) => Some(decode_key(text)?),
                _ => {
                    return Err(Cause::Damaged(format!(
                        "the state of version {} does not fit its key",
                        entry.id
                    )));
                }
            };
            file.versions.push(Version {
                id: entry.id,
                created: entry.created,
                state: entry.state,
                key,
            });
        }
        Ok(file)
    }

    /// The text of the key file, ready to be written.
    pub fn to_text(&self) -> io::Result<Secret> {
        let mut encoded = Vec::with_capacity(self.versions.len());
        for version in &self.versions {
            encoded.push(match &version.key {
                Some(key) => Some(encode_key(key)?),
                None => None,
            });
        }
        let mut versions = Vec::with_capacity(self.versions.len());
        for (version, key) in self.versions.iter().zip(&encoded) {
            let key = key.as_deref().map(std::str::from_utf8).transpose();
            versions.push(VersionText {
                id: version.id,
                created: version.created,
                state: version.state,
                key: key.map_err(io::Error::other)?,
            });
        }
        let mut text = Text {
            format: FORMAT,
            version: FORMAT_VERSION,
            key_id: self.key_id,
            versions,
            checksum: None,
        };
        let checksum = checksum_of(&text)?;
        text.checksum = Some(&checksum);
        let mut out = Cursor::new(Secret::zeroed(FILE_MAX)?);
        let mut slice = Cursor::new(&mut out.get_mut()[..]);
        serde_json::to_writer_pretty(&mut slice, &text)?;
        slice.write_all(b"\n")?;
        let len = usize::try_from(slice.position()).map_err(io::Error::other)?;
        Secret::copy_of(&out.get_ref()[..len])
    }
}

/// The SHA-256 over the compact JSON of everything but the checksum.
fn checksum_of(text: &Text<'_>) -> io::Result<String> {
    let mut hash = Sha256::new();
    serde_json::to_writer(HashWriter(&mut hash), text)?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Feeds a hash without keeping the text anywhere.
struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decode_key(text: &str) -> Result<Secret, Cause> {
    let bad = || Cause::Damaged("a key in it is not 32 bytes in base64".into());
    if text.len() != KEY_TEXT_BYTES {
        return Err(bad());
    }
    // The decoder wants room for the padding, too.
    let mut room = Secret::zeroed(KEY_BYTES + 1).map_err(Cause::Memory)?;
    match BASE64.decode_slice(text, &mut room) {
        Ok(KEY_BYTES) => Secret::copy_of(&room[..KEY_BYTES]).map_err(Cause::Memory),
        _ => Err(bad()),
    }
}

fn encode_key(key: &Secret) -> io::Result<Secret> {
    let mut text = Secret::zeroed(KEY_TEXT_BYTES)?;
    BASE64
        .encode_slice(&key[..], &mut text)
        .map_err(io::Error::other)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::keyfile::VERSIONS_MAX;
    use super::*;

    fn text_of(file: &KeyFile) -> String {
        String::from_utf8(file.to_text().unwrap().to_vec()).unwrap()
    }

    fn parse(text: &str) -> Result<KeyFile, Cause> {
        KeyFile::parse(&Secret::copy_of(text.as_bytes()).unwrap())
    }

    fn sample() -> KeyFile {
        let mut file = KeyFile::generate().unwrap();
        let removed = file.add_version().unwrap();
        file.set_enabled(removed, false).unwrap();
        file.remove_version(removed).unwrap();
        let disabled = file.add_version().unwrap();
        file.set_enabled(disabled, false).unwrap();
        file
    }

    #[test]
    fn text_and_back_keeps_everything() {
        let file = sample();
        let back = parse(&text_of(&file)).unwrap();
        assert_eq!(back.key_id, file.key_id);
        assert_eq!(back.versions.len(), 3);
        for (a, b) in back.versions.iter().zip(&file.versions) {
            assert_eq!((a.id, a.created, a.state), (b.id, b.created, b.state));
            assert_eq!(a.key(), b.key());
        }
        let states: Vec<State> = back.versions.iter().map(|v| v.state).collect();
        assert_eq!(states, [State::Enabled, State::Removed, State::Disabled]);
    }

    #[test]
    fn a_full_file_still_fits() {
        let mut file = KeyFile::generate().unwrap();
        while file.add_version().is_ok() {}
        assert_eq!(file.versions.len(), VERSIONS_MAX);
        let text = file.to_text().unwrap();
        assert_eq!(KeyFile::parse(&text).unwrap().versions.len(), VERSIONS_MAX);
    }

    #[test]
    fn no_byte_can_change_and_no_end_be_missing() {
        let text = text_of(&sample());
        for at in 0..text.len() - 1 {
            assert!(
                matches!(parse(&text[..at]), Err(Cause::Damaged(_))),
                "cut at {at}"
            );
        }
        for at in 0..text.len() {
            for flip in [0x01, 0x20] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= flip;
                let Ok(changed) = String::from_utf8(bytes) else {
                    continue;
                };
                // White space between fields, and the case of the digits of
                // an id, carry no meaning.
                let same = |text: &str| {
                    let mut text = text.to_string();
                    text.retain(|c| !c.is_ascii_whitespace());
                    text
                };
                match parse(&changed) {
                    Err(Cause::Damaged(_) | Cause::Newer(_)) => {}
                    Ok(parsed) => {
                        let written = text_of(&parsed);
                        assert_eq!(same(&written), same(&text), "byte {at}: {changed}");
                    }
                    Err(other) => panic!("byte {at}: {other}"),
                }
            }
        }
    }

    #[test]
    fn errors_never_quote_the_file() {
        let file = sample();
        let text = text_of(&file);
        let key = text.split('"').find(|part| part.len() == 44).unwrap();
        // A key where another type or another field is expected.
        for edited in [
            text.replace("\"enabled\"", &format!("\"{key}\"")),
            text.replace("\"key_id\"", &format!("\"{key}\"")),
            text.replacen("\"version\": 1", &format!("\"version\": \"{key}\""), 1),
            text.replacen(key, &key[..40], 1),
        ] {
            assert_ne!(edited, text);
            let error = parse(&edited).unwrap_err();
            assert!(matches!(error, Cause::Damaged(_)), "{error}");
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains(&key[..16]), "{shown}");
            }
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let later = r#"{"format": "sealblk-platform-key", "version": 2, "all": ["new"]}"#;
        assert!(matches!(parse(later), Err(Cause::Newer(2))));
        for other in [
            "",
            "\0\0\0",
            "{}",
            r#"{"format": "jwk", "version": 1}"#,
            "key",
        ] {
            assert!(matches!(parse(other), Err(Cause::Damaged(_))), "{other:?}");
        }
    }

    #[test]
    fn an_edit_with_a_recomputed_checksum_must_still_make_sense() {
        let mut file = sample();
        let copy = file.versions[0].id;
        file.versions[2].id = copy;
        assert!(matches!(parse(&text_of(&file)), Err(Cause::Damaged(_))));
        let mut file = sample();
        file.versions[1].state = State::Enabled;
        assert!(matches!(parse(&text_of(&file)), Err(Cause::Damaged(_))));
    }
}
