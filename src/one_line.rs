//! Texts that somebody else has written, and people get to see: how they are read.
#![forbid(unsafe_code)]

use serde::{Deserialize, Deserializer};

/// The most characters of such a text.
pub const MAX: usize = 2000;

/// The text with nothing in it that a terminal would obey, cut where it is too long.
pub fn tamed(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).take(MAX).collect()
}

/// Reads a text so.
///
/// # Errors
/// When it is none.
pub fn read<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(tamed(&String::deserialize(from)?))
}

/// Reads one that may be missing.
///
/// # Errors
/// When it is none.
pub fn read_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.as_deref().map(tamed))
}
