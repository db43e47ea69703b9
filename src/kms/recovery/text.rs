//! How a recovery key is written on paper.
//!
//! Eight groups of eight characters. Each group is 32 bits of the key and eight
//! check bits, as five bytes in base 32 (Crockford's alphabet: no I, L, O, U). The
//! check bits depend on the place of the group, so that a group which was
//! misread, left out or put in another place is named, and nothing is guessed.
//!
//! ```text
//! # whatever somebody notes beside it
//! 1: 9D4K2M0A  2: …
//! ```
//!
//! Reading takes either case, O for 0, I and L for 1, and passes over white
//! space, dashes, numbers before a colon, and lines that begin with #. The text is
//! handled in [`Secret`] memory alone.
#![forbid(unsafe_code)]

use std::io;

use sha2::{Digest as _, Sha256};

use super::KEY_BYTES;
use crate::error::{Explain, Kind};
use crate::secret::Secret;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Groups in a key.
const GROUPS: usize = 8;
/// Bytes of the key in a group.
const PART: usize = KEY_BYTES / GROUPS;
/// Characters of a group.
const CHARACTERS: usize = 8;

const PURPOSE: &[u8] = b"sealblk recovery key group v1";

/// Why some text is not a recovery key.
#[derive(Debug, thiserror::Error)]
pub enum BadText {
    /// A character that is never in one.
    #[error("group {group} of the recovery key has {character:?} in it, which no recovery key has")]
    Character {
        /// Which group, from 1.
        group: usize,
        /// The character.
        character: char,
    },
    /// A group does not have its check bits.
    #[error("group {0} of the recovery key was misread, or is another group")]
    Group(usize),
    /// Not eight groups of eight.
    #[error(
        "a recovery key has {GROUPS} groups of {CHARACTERS} characters, and there are {0} characters"
    )]
    Length(usize),
    /// No locked memory.
    #[error("no locked memory for the recovery key: {0}")]
    Memory(io::Error),
}

impl Explain for BadText {
    fn kind(&self) -> Kind {
        match self {
            BadText::Memory(_) => Kind::Io,
            _ => Kind::Corrupt,
        }
    }

    fn help(&self) -> Option<String> {
        Some(
            match self {
                BadText::Memory(_) => "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)",
                BadText::Length(_) => {
                    "type all groups, in their order; lines that are not of the key begin with #"
                }
                BadText::Group(_) | BadText::Character { .. } => {
                    "compare that group with the paper"
                }
            }
            .into(),
        )
    }
}

fn check(group: usize, part: &[u8]) -> u8 {
    let mut hash = Sha256::new();
    hash.update(PURPOSE);
    hash.update([u8::try_from(group).unwrap_or(u8::MAX)]);
    hash.update(part);
    hash.finalize()[0]
}

/// The groups of a key, in two lines.
///
/// # Errors
/// When there is no locked memory.
pub fn write(key: &Secret) -> io::Result<Secret> {
    // "1: XXXXXXXX  " for each.
    const SHOWN: usize = 3 + CHARACTERS + 2;
    let mut text = Secret::zeroed(GROUPS * SHOWN)?;
    let mut five = Secret::zeroed(PART + 1)?;
    for (index, part) in key.chunks(PART).take(GROUPS).enumerate() {
        five[..PART].copy_from_slice(part);
        five[PART] = check(index, part);
        let shown = &mut text[index * SHOWN..][..SHOWN];
        shown.fill(b' ');
        shown[0] = b'1' + index as u8;
        shown[1] = b':';
        for place in 0..CHARACTERS {
            let bit = place * 5;
            let (byte, shift) = (bit / 8, bit % 8);
            let next = five.get(byte + 1).copied().unwrap_or(0);
            let window = u16::from_be_bytes([five[byte], next]);
            let value = (window >> (11 - shift)) & 31;
            shown[3 + place] = ALPHABET[usize::from(value)];
        }
        if index % 4 == 3 {
            shown[SHOWN - 2] = b'\n';
            shown[SHOWN - 1] = b' ';
        }
    }
    // The blank after a line break is none, and neither is what follows the last.
    let mut length = 0;
    let mut clean = Secret::zeroed(text.len())?;
    for index in 0..text.len() {
        let after_break = index > 0 && text[index - 1] == b'\n';
        if !(after_break && text[index] == b' ') {
            clean[length] = text[index];
            length += 1;
        }
    }
    Secret::copy_of(&clean[..length])
}

fn value_of(character: u8) -> Option<u8> {
    let upper = match character.to_ascii_uppercase() {
        b'O' => b'0',
        b'I' | b'L' => b'1',
        other => other,
    };
    let found = ALPHABET.iter().position(|&known| known == upper);
    found.and_then(|value| u8::try_from(value).ok())
}

/// The key that is written there.
///
/// # Errors
/// Which group is wrong. Nothing of the text is quoted but a character that no
/// key has.
pub fn read(text: &Secret) -> Result<Secret, BadText> {
    let mut values = Secret::zeroed(GROUPS * CHARACTERS).map_err(BadText::Memory)?;
    let mut count = 0;
    for line in text.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        if line.starts_with(b"#") {
            continue;
        }
        for word in line.split(|byte| byte.is_ascii_whitespace()) {
            if word.ends_with(b":") {
                continue;
            }
            // The number may stand close to its group.
            let word = match word.iter().position(|&byte| byte == b':') {
                Some(colon) => &word[colon + 1..],
                None => word,
            };
            for &byte in word.iter().filter(|&&byte| byte != b'-') {
                let value = value_of(byte).ok_or(BadText::Character {
                    group: count / CHARACTERS + 1,
                    character: char::from(byte),
                })?;
                if let Some(place) = values.get_mut(count) {
                    *place = value;
                }
                count += 1;
            }
        }
    }
    if count != GROUPS * CHARACTERS {
        return Err(BadText::Length(count));
    }
    let mut key = Secret::zeroed(KEY_BYTES).map_err(BadText::Memory)?;
    let mut five = Secret::zeroed(PART + 1).map_err(BadText::Memory)?;
    for index in 0..GROUPS {
        five.fill(0);
        for (place, value) in values[index * CHARACTERS..][..CHARACTERS]
            .iter()
            .enumerate()
        {
            let bit = place * 5;
            let (byte, shift) = (bit / 8, bit % 8);
            let window = u16::from(*value) << (11 - shift);
            let [high, low] = window.to_be_bytes();
            five[byte] |= high;
            if let Some(next) = five.get_mut(byte + 1) {
                *next |= low;
            }
        }
        if five[PART] != check(index, &five[..PART]) {
            return Err(BadText::Group(index + 1));
        }
        key[index * PART..][..PART].copy_from_slice(&five[..PART]);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(key: &Secret) -> String {
        String::from_utf8(write(key).unwrap().to_vec()).unwrap()
    }

    fn parse(text: &str) -> Result<Secret, BadText> {
        read(&Secret::copy_of(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_is_written_is_read_however_it_is_typed() {
        for _ in 0..50 {
            let key = Secret::random(KEY_BYTES).unwrap();
            let text = text_of(&key);
            assert_eq!(parse(&text).unwrap(), key, "{text}");
            let bare: String = text
                .split_whitespace()
                .filter(|word| !word.ends_with(':'))
                .collect();
            assert_eq!(bare.len(), 64);
            let with_dashes: Vec<&str> = (0..16).map(|at| &bare[at * 4..][..4]).collect();
            for typed in [
                bare.clone(),
                bare.to_lowercase(),
                with_dashes.join("-"),
                bare.replace('0', "O").replace('1', "l"),
                format!("# sealblk recovery key 1234, for the safe\n{text}\n# end\n"),
                text.replace(": ", ":").replace("  ", "\n"),
            ] {
                assert_eq!(parse(&typed).unwrap(), key, "{typed}");
            }
        }
    }

    #[test]
    fn the_text_is_that_of_the_documentation() {
        let key = Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        let text = text_of(&key);
        let page = include_str!("../../../docs/operations/break-glass.md");
        for line in text.lines() {
            assert!(page.contains(line.trim_end()), "{text}");
        }
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_wrong_character_is_found_in_its_group() {
        let key = Secret::random(KEY_BYTES).unwrap();
        let text = text_of(&key).replace('\n', " ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let groups: Vec<&str> = words.iter().skip(1).step_by(2).copied().collect();
        let (mut found, mut tried) = (0, 0);
        for (index, group) in groups.iter().enumerate() {
            for place in 0..CHARACTERS {
                for other in ALPHABET {
                    let mut edited = group.as_bytes().to_vec();
                    if edited[place] == *other {
                        continue;
                    }
                    edited[place] = *other;
                    let mut all: Vec<String> = groups.iter().map(|it| (*it).into()).collect();
                    all[index] = String::from_utf8(edited).unwrap();
                    tried += 1;
                    match parse(&all.join(" ")) {
                        Err(BadText::Group(at)) => {
                            assert_eq!(at, index + 1);
                            found += 1;
                        }
                        Ok(other) => assert!(other != key),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
        // Eight check bits: one in 256 passes. What passes opens nothing.
        assert!(found > tried * 97 / 100, "{found} of {tried}");
        let mut swapped = groups.clone();
        swapped.swap(2, 5);
        if let Ok(other) = parse(&swapped.join(" ")) {
            assert!(other != key);
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_quoted() {
        let key = Secret::random(KEY_BYTES).unwrap();
        let text = text_of(&key);
        assert!(matches!(parse(""), Err(BadText::Length(0))));
        assert!(matches!(parse(&text[..60]), Err(BadText::Length(_))));
        assert!(matches!(
            parse(&format!("{text}9")),
            Err(BadText::Length(65))
        ));
        let error = parse(&text.replacen(' ', " !", 1)).unwrap_err();
        assert!(matches!(
            error,
            BadText::Character {
                group: 1,
                character: '!'
            }
        ));
        for error in [error, parse(&text[..60]).unwrap_err()] {
            let told = format!("{error} {error:?} {:?}", error.help());
            for word in text.split_whitespace().filter(|word| word.len() == 8) {
                assert!(!told.contains(word), "{told}");
            }
        }
    }
}
