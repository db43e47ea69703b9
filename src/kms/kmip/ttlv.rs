//! TTLV, the encoding of KMIP: tag, type, length, value (KMIP 1.4, section 9.1).
//!
//! ```text
//! 0 3 tag   3 1 type   4 4 length of the value, big-endian
//! 8 n value, padded with zeroes to a multiple of 8 bytes
//! ```
//!
//! What is decoded borrows text and bytes from the message, and what is
//! encoded borrows them from the caller: key material stays in the memory it
//! is in, and is written once, into the message. Decoding takes any bytes,
//! never panics, and is bounded: depth by [`DEPTH_MAX`], memory by a small
//! multiple of the message, whose size the caller bounds.

use std::fmt;
use std::io;

use crate::secret::Secret;

/// Structures nest no deeper than this. KMIP's own messages need eight levels.
pub const DEPTH_MAX: usize = 16;

/// The head of an item: tag, type and length.
pub const HEAD_BYTES: usize = 8;

/// What an item is: one of the numbers in [`super::numbers`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u32);

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// One tagged value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// What it is.
    pub tag: Tag,
    /// Its value.
    pub value: Value<'a>,
}

/// A value of one of the types of TTLV.
#[derive(Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// Other items.
    Structure(Vec<Item<'a>>),
    /// 32 bits, signed.
    Integer(i32),
    /// 64 bits, signed.
    LongInteger(i64),
    /// Two's complement, big-endian, a multiple of 8 bytes.
    BigInteger(&'a [u8]),
    /// One of the values that the tag allows.
    Enumeration(u32),
    /// Yes or no.
    Boolean(bool),
    /// UTF-8, not terminated.
    Text(&'a str),
    /// Bytes, which may be key material: never shown.
    Bytes(&'a [u8]),
    /// Seconds since 1970.
    DateTime(i64),
    /// Seconds.
    Interval(u32),
    /// Microseconds since 1970 (KMIP 2.0).
    DateTimeExtended(i64),
}

impl fmt::Debug for Value<'_> {
    /// Bytes are shown by their length alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Structure(items) => f.debug_list().entries(items).finish(),
            Value::Integer(value) => write!(f, "{value}"),
            Value::LongInteger(value) => write!(f, "{value}"),
            Value::BigInteger(value) => write!(f, "big integer of {} bytes", value.len()),
            Value::Enumeration(value) => write!(f, "{value:#x}"),
            Value::Boolean(value) => write!(f, "{value}"),
            Value::Text(value) => write!(f, "{value:?}"),
            Value::Bytes(value) => write!(f, "{} bytes", value.len()),
            Value::DateTime(value) => write!(f, "@{value}"),
            Value::Interval(value) => write!(f, "{value} s"),
            Value::DateTimeExtended(value) => write!(f, "@{value} us"),
        }
    }
}

/// Why some bytes are not one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end within an item, or a structure's items go beyond it.
    #[error("it ends too early")]
    Short,
    /// There are bytes after the item.
    #[error("there is more than one item")]
    Long,
    /// A type that TTLV does not have.
    #[error("there is no type {0:#04x}")]
    Type(u8),
    /// A length that the type cannot have.
    #[error("a value of type {kind:#04x} has {length} bytes")]
    Length {
        /// The type.
        kind: u8,
        /// The length found, in bytes.
        length: usize,
    },
    /// A boolean that is neither true nor false.
    #[error("a boolean is neither 0 nor 1")]
    Boolean,
    /// Text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("it nests deeper than {DEPTH_MAX} levels")]
    Deep,
}

const STRUCTURE: u8 = 0x01;
const INTEGER: u8 = 0x02;
const LONG_INTEGER: u8 = 0x03;
const BIG_INTEGER: u8 = 0x04;
const ENUMERATION: u8 = 0x05;
const BOOLEAN: u8 = 0x06;
const TEXT: u8 = 0x07;
const BYTES: u8 = 0x08;
const DATE_TIME: u8 = 0x09;
const INTERVAL: u8 = 0x0a;
const DATE_TIME_EXTENDED: u8 = 0x0b;

/// The length of the value that follows `head`, without its padding.
pub fn value_length(head: [u8; HEAD_BYTES]) -> u32 {
    u32::from_be_bytes([head[4], head[5], head[6], head[7]])
}

/// Decodes bytes that are exactly one item.
///
/// # Errors
/// When they are not.
pub fn decode(bytes: &[u8]) -> Result<Item<'_>, Malformed> {
    let (item, rest) = split_item(bytes, DEPTH_MAX)?;
    match rest {
        [] => Ok(item),
        _ => Err(Malformed::Long),
    }
}

/// The first item in `bytes`, and what follows it.
fn split_item(bytes: &[u8], depth: usize) -> Result<(Item<'_>, &[u8]), Malformed> {
    let (head, rest) = bytes
        .split_first_chunk::<HEAD_BYTES>()
        .ok_or(Malformed::Short)?;
    let tag = Tag(u32::from_be_bytes([0, head[0], head[1], head[2]]));
    let length = usize::try_from(value_length(*head)).map_err(|_| Malformed::Short)?;
    let padded = length.checked_next_multiple_of(8).ok_or(Malformed::Short)?;
    let (value, rest) = rest.split_at_checked(padded).ok_or(Malformed::Short)?;
    // What the padding holds means nothing, and so is not looked at.
    let value = decode_value(head[3], &value[..length], depth)?;
    Ok((Item { tag, value }, rest))
}

fn decode_value(kind: u8, bytes: &[u8], depth: usize) -> Result<Value<'_>, Malformed> {
    let length = || Malformed::Length {
        kind,
        length: bytes.len(),
    };
    let four = || <[u8; 4]>::try_from(bytes).map_err(|_| length());
    let eight = || <[u8; 8]>::try_from(bytes).map_err(|_| length());
    Ok(match kind {
        STRUCTURE => Value::Structure(decode_items(bytes, depth)?),
        INTEGER => Value::Integer(i32::from_be_bytes(four()?)),
        LONG_INTEGER => Value::LongInteger(i64::from_be_bytes(eight()?)),
        BIG_INTEGER if !bytes.is_empty() && bytes.len().is_multiple_of(8) => {
            Value::BigInteger(bytes)
        }
        BIG_INTEGER => return Err(length()),
        ENUMERATION => Value::Enumeration(u32::from_be_bytes(four()?)),
        BOOLEAN => match u64::from_be_bytes(eight()?) {
            0 => Value::Boolean(false),
            1 => Value::Boolean(true),
            _ => return Err(Malformed::Boolean),
        },
        TEXT => Value::Text(std::str::from_utf8(bytes).map_err(|_| Malformed::Text)?),
        BYTES => Value::Bytes(bytes),
        DATE_TIME => Value::DateTime(i64::from_be_bytes(eight()?)),
        INTERVAL => Value::Interval(u32::from_be_bytes(four()?)),
        DATE_TIME_EXTENDED => Value::DateTimeExtended(i64::from_be_bytes(eight()?)),
        kind => return Err(Malformed::Type(kind)),
    })
}

fn decode_items(mut bytes: &[u8], depth: usize) -> Result<Vec<Item<'_>>, Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed::Deep)?;
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let (item, rest) = split_item(bytes, depth)?;
        items.push(item);
        bytes = rest;
    }
    Ok(items)
}

impl<'a> Item<'a> {
    /// An item.
    pub fn new(tag: Tag, value: Value<'a>) -> Self {
        Item { tag, value }
    }

    /// A structure of `items`.
    pub fn structure(tag: Tag, items: Vec<Item<'a>>) -> Self {
        Item::new(tag, Value::Structure(items))
    }

    /// The items of a structure; none if it is something else.
    pub fn items(&self) -> &[Item<'a>] {
        match &self.value {
            Value::Structure(items) => items,
            _ => &[],
        }
    }

    /// The first item with `tag` in this structure.
    pub fn get(&self, tag: Tag) -> Option<&Item<'a>> {
        self.items().iter().find(|item| item.tag == tag)
    }

    /// The value of the enumeration with `tag` in this structure.
    pub fn enumeration(&self, tag: Tag) -> Option<u32> {
        match self.get(tag)?.value {
            Value::Enumeration(value) => Some(value),
            _ => None,
        }
    }

    /// The integer with `tag` in this structure.
    pub fn integer(&self, tag: Tag) -> Option<i32> {
        match self.get(tag)?.value {
            Value::Integer(value) => Some(value),
            _ => None,
        }
    }

    /// The text with `tag` in this structure.
    pub fn text(&self, tag: Tag) -> Option<&'a str> {
        match self.get(tag)?.value {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The bytes with `tag` in this structure.
    pub fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        match self.get(tag)?.value {
            Value::Bytes(value) => Some(value),
            _ => None,
        }
    }

    /// The length of the encoded item.
    pub fn encoded_len(&self) -> usize {
        HEAD_BYTES + self.value.encoded_len().next_multiple_of(8)
    }

    /// The encoded item, in secret memory: requests may carry keys.
    ///
    /// # Errors
    /// When there is no secret memory, or the item is longer than TTLV can say.
    pub fn encode(&self) -> io::Result<Secret> {
        let mut message = Secret::zeroed(self.encoded_len())?;
        let rest = self.write(&mut message)?.len();
        debug_assert_eq!(rest, 0);
        Ok(message)
    }

    /// Writes the item at the beginning of `room`, whose zeroes become the
    /// padding, and returns what is left of it.
    fn write<'r>(&self, room: &'r mut [u8]) -> io::Result<&'r mut [u8]> {
        let length = self.value.encoded_len();
        let short = || io::Error::from(io::ErrorKind::InvalidInput);
        let told = u32::try_from(length).map_err(|_| short())?;
        let (head, room) = room.split_at_mut_checked(HEAD_BYTES).ok_or_else(short)?;
        head[..3].copy_from_slice(&self.tag.0.to_be_bytes()[1..]);
        head[3] = self.value.kind();
        head[4..].copy_from_slice(&told.to_be_bytes());
        let (value, room) = room
            .split_at_mut_checked(length.next_multiple_of(8))
            .ok_or_else(short)?;
        let value = &mut value[..length];
        match &self.value {
            Value::Structure(items) => {
                let mut value = value;
                for item in items {
                    value = item.write(value)?;
                }
            }
            Value::Integer(number) => value.copy_from_slice(&number.to_be_bytes()),
            Value::Enumeration(number) | Value::Interval(number) => {
                value.copy_from_slice(&number.to_be_bytes());
            }
            Value::LongInteger(number)
            | Value::DateTime(number)
            | Value::DateTimeExtended(number) => value.copy_from_slice(&number.to_be_bytes()),
            Value::Boolean(yes) => value.copy_from_slice(&u64::from(*yes).to_be_bytes()),
            Value::Text(text) => value.copy_from_slice(text.as_bytes()),
            Value::BigInteger(bytes) | Value::Bytes(bytes) => value.copy_from_slice(bytes),
        }
        Ok(room)
    }
}

impl Value<'_> {
    fn kind(&self) -> u8 {
        match self {
            Value::Structure(_) => STRUCTURE,
            Value::Integer(_) => INTEGER,
            Value::LongInteger(_) => LONG_INTEGER,
            Value::BigInteger(_) => BIG_INTEGER,
            Value::Enumeration(_) => ENUMERATION,
            Value::Boolean(_) => BOOLEAN,
            Value::Text(_) => TEXT,
            Value::Bytes(_) => BYTES,
            Value::DateTime(_) => DATE_TIME,
            Value::Interval(_) => INTERVAL,
            Value::DateTimeExtended(_) => DATE_TIME_EXTENDED,
        }
    }

    /// The length without head and padding.
    fn encoded_len(&self) -> usize {
        match self {
            Value::Structure(items) => items.iter().map(Item::encoded_len).sum(),
            Value::Integer(_) | Value::Enumeration(_) | Value::Interval(_) => 4,
            Value::LongInteger(_)
            | Value::Boolean(_)
            | Value::DateTime(_)
            | Value::DateTimeExtended(_) => 8,
            Value::Text(text) => text.len(),
            Value::BigInteger(bytes) | Value::Bytes(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests;
