//! One line: how it is closed with its hash, and how it is checked.
//!
//! A line is a JSON object whose last member is `hash`, the SHA-256 of the
//! bytes of the line as they would be without that member. The hash is over
//! bytes, so that members which a reader does not know are covered as well.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// More than any line has.
pub const LINE_MAX: usize = 64 << 10;

/// The format of lines that this sealblk writes and reads.
pub(super) const VERSION: u32 = 1;

/// With what every line begins, up to its sequence number.
pub(super) const START: &str = "{\"v\":";

/// What stands between the members that are hashed, and the hash.
const SEAL: &[u8] = b",\"hash\":\"";

/// The hash of a line, or of what was found instead of one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What stands for the line before the first one.
    pub const NONE: Hash = Hash([0; 32]);

    pub(super) fn of(bytes: &[u8]) -> Self {
        Hash(Sha256::digest(bytes).into())
    }
}

impl From<Sha256> for Hash {
    fn from(hasher: Sha256) -> Self {
        Hash(hasher.finalize().into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Hash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a hash: it has 64 hexadecimal digits in lower case");
        let digits = text.as_bytes();
        let lower = |c: &u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 64 || !digits.iter().all(lower) {
            return Err(bad());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Hash(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What of a line binds it to the others. All else in it is ignored here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Line {
    /// The version of the format.
    pub v: u32,
    /// Its number; the first one ever has 1.
    pub seq: u64,
    /// What happened.
    pub event: String,
    /// The hash of the line before.
    pub prev: Hash,
    /// What was found after the line before, in place of lines.
    pub torn: Option<TornBytes>,
    /// The last line that was in the files removed by rotation.
    pub removed_through: Option<u64>,
    /// Its own hash.
    #[serde(skip, default = "no_hash")]
    pub hash: Hash,
}

fn no_hash() -> Hash {
    Hash::NONE
}

/// Bytes that are no lines: what an append left that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TornBytes {
    /// How many there are.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Hash,
}

/// Why some bytes are not a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsound {
    /// They are not a whole line: the rest was never written, or cut off.
    Torn,
    /// They have the form of a whole line, and the hash of another one.
    Altered,
    /// The hash is right, and the line makes no sense.
    Senseless(String),
    /// Written by a later sealblk.
    Newer(u32),
}

impl fmt::Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsound::Torn => f.write_str("it is not a whole line"),
            Unsound::Altered => f.write_str("it was altered: its hash does not match its content"),
            Unsound::Senseless(why) => write!(f, "its hash is right, and it makes no sense: {why}"),
            Unsound::Newer(version) => {
                write!(
                    f,
                    "it has format version {version}, made by a newer sealblk"
                )
            }
        }
    }
}

/// Closes `body`, a JSON object, with its hash, to a line with its end.
pub(super) fn seal(mut body: Vec<u8>) -> (Vec<u8>, Hash) {
    let hash = Hash::of(&body);
    // The brace that ends the object comes after the hash.
    body.pop();
    body.extend_from_slice(SEAL);
    body.extend_from_slice(hash.to_string().as_bytes());
    body.extend_from_slice(b"\"}\n");
    (body, hash)
}

/// Checks one line by itself, without the newline that ends it.
///
/// # Errors
/// What it is instead.
pub(super) fn check(line: &[u8]) -> Result<Line, Unsound> {
    // No line has such a byte: it stands for what had not reached the disk when
    // the power failed, and the end of the line had.
    if line.contains(&0) {
        return Err(Unsound::Torn);
    }
    // The last 75 bytes are the seal, 64 digits, a quote and the brace.
    let sealed = line
        .len()
        .checked_sub(SEAL.len() + 64 + 2)
        .map(|at| line.split_at(at));
    let Some((body, end)) = sealed else {
        return Err(Unsound::Torn);
    };
    let hash = end
        .strip_prefix(SEAL)
        .and_then(|end| end.strip_suffix(b"\"}"))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse::<Hash>().ok())
        .ok_or(Unsound::Torn)?;
    let mut hasher = Sha256::new();
    hasher.update(body);
    hasher.update(b"}");
    if Hash::from(hasher) != hash {
        return Err(Unsound::Altered);
    }
    let mut parsed: Line =
        serde_json::from_slice(line).map_err(|error| Unsound::Senseless(error.to_string()))?;
    if parsed.v != VERSION {
        return Err(Unsound::Newer(parsed.v));
    }
    parsed.hash = hash;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(more: &str) -> Vec<u8> {
        let body = format!(
            "{{\"v\":1,\"seq\":7,\"event\":\"wrap\",{more}\"prev\":\"{}\"}}",
            Hash::NONE
        );
        let mut line = seal(body.into_bytes()).0;
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[test]
    fn a_line_is_checked_with_members_that_nobody_knows() {
        let line = check(&sealed("\"later\":{\"hash\":\"x\"},")).unwrap();
        assert_eq!((line.seq, line.event.as_str()), (7, "wrap"));
        assert_eq!((line.torn, line.removed_through), (None, None));
        assert_ne!(line.hash, Hash::NONE);
    }

    #[test]
    fn each_byte_counts() {
        let whole = sealed("");
        for at in 0..whole.len() {
            for flip in [1, 0x20, 0x80] {
                let mut line = whole.clone();
                line[at] ^= flip;
                assert!(check(&line).is_err(), "byte {at}");
            }
            assert_eq!(check(&whole[..at]), Err(Unsound::Torn), "cut at {at}");
        }
    }

    #[test]
    fn a_right_hash_is_not_enough() {
        let senseless = seal(b"{\"v\":1}".to_vec()).0;
        let check = |line: &[u8]| check(line.trim_ascii_end());
        assert!(matches!(check(&senseless), Err(Unsound::Senseless(_))));
        let body = format!(
            "{{\"v\":2,\"seq\":7,\"event\":\"wrap\",\"prev\":\"{}\"}}",
            Hash::NONE
        );
        assert_eq!(check(&seal(body.into_bytes()).0), Err(Unsound::Newer(2)));
        // Which of two would be meant?
        let twice = seal(b"{\"v\":1,\"v\":1}".to_vec()).0;
        assert!(matches!(check(&twice), Err(Unsound::Senseless(_))));
    }

    #[test]
    fn a_hash_is_written_in_one_way_only() {
        let text = Hash::of(b"").to_string();
        assert_eq!(
            text,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(text.parse(), Ok(Hash::of(b"")));
        assert!(text.to_uppercase().parse::<Hash>().is_err());
        assert!(text[1..].parse::<Hash>().is_err());
        assert!(format!("+{}", &text[1..]).parse::<Hash>().is_err());
    }
}
