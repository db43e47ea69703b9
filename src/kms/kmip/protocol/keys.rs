//! Finding, making and describing keys: Locate, Create, Activate, Get Attributes.

use super::{Refusal, Version, unique_identifier};
use crate::kms::kmip::numbers::{self, tag};
use crate::kms::kmip::ttlv::{Item, Tag, Value};

/// The most keys of one name.
pub const LOCATE_MAX: i32 = 256;

/// An attribute of a key, to look for or to give to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute<'a> {
    /// A name, which need not be unique.
    Name(&'a str),
    /// The object is a symmetric key.
    SymmetricKey,
    /// Where in its life it is.
    State(State),
    /// The algorithm is AES.
    Aes,
    /// The length of the key, in bits.
    Bits(i32),
    /// What it may be used for: a sum of bits of Cryptographic Usage Mask.
    Usage(i32),
}

impl<'a> Attribute<'a> {
    /// Its name in KMIP 1.x, its tag in KMIP 2.0, and its value.
    fn parts(self) -> (&'static str, Tag, Value<'a>) {
        match self {
            Attribute::Name(name) => (
                "Name",
                tag::NAME,
                Value::Structure(vec![
                    Item::new(tag::NAME_VALUE, Value::Text(name)),
                    Item::new(
                        tag::NAME_TYPE,
                        Value::Enumeration(numbers::UNINTERPRETED_TEXT),
                    ),
                ]),
            ),
            Attribute::SymmetricKey => (
                "Object Type",
                tag::OBJECT_TYPE,
                Value::Enumeration(numbers::SYMMETRIC_KEY),
            ),
            Attribute::State(state) => ("State", tag::STATE, Value::Enumeration(state as u32)),
            Attribute::Aes => (
                "Cryptographic Algorithm",
                tag::CRYPTOGRAPHIC_ALGORITHM,
                Value::Enumeration(numbers::AES),
            ),
            Attribute::Bits(bits) => (
                "Cryptographic Length",
                tag::CRYPTOGRAPHIC_LENGTH,
                Value::Integer(bits),
            ),
            Attribute::Usage(mask) => (
                "Cryptographic Usage Mask",
                tag::CRYPTOGRAPHIC_USAGE_MASK,
                Value::Integer(mask),
            ),
        }
    }

    /// As an Attribute structure of KMIP 1.x.
    fn item(self) -> Item<'a> {
        let (name, _, value) = self.parts();
        Item::structure(
            tag::ATTRIBUTE,
            vec![
                Item::new(tag::ATTRIBUTE_NAME, Value::Text(name)),
                Item::new(tag::ATTRIBUTE_VALUE, value),
            ],
        )
    }
}

/// The Attributes structure of KMIP 2.0.
fn attributes<'a>(attributes: &[Attribute<'a>]) -> Item<'a> {
    let items = attributes.iter().map(|attribute| {
        let (_, tag, value) = attribute.parts();
        Item::new(tag, value)
    });
    Item::structure(tag::ATTRIBUTES, items.collect())
}

/// Locate (section 4.9): the keys that have all of `wanted`.
pub fn locate<'a>(version: Version, wanted: &[Attribute<'a>]) -> Vec<Item<'a>> {
    let mut payload = vec![Item::new(
        tag::MAXIMUM_ITEMS,
        Value::Integer(LOCATE_MAX + 1),
    )];
    if version >= Version::V2_0 {
        payload.push(attributes(wanted));
    } else {
        payload.extend(wanted.iter().map(|attribute| attribute.item()));
    }
    payload
}

/// The unique identifiers that were located.
pub fn located(payload: &Item<'_>) -> Vec<String> {
    let items = payload.items().iter();
    items
        .filter_map(|item| match item.value {
            Value::Text(id) if item.tag == tag::UNIQUE_IDENTIFIER => Some(id.to_string()),
            _ => None,
        })
        .collect()
}

/// Create (section 4.1): a new symmetric key.
pub fn create<'a>(version: Version, wanted: &[Attribute<'a>]) -> Vec<Item<'a>> {
    let object = Item::new(tag::OBJECT_TYPE, Value::Enumeration(numbers::SYMMETRIC_KEY));
    if version >= Version::V2_0 {
        return vec![object, attributes(wanted)];
    }
    let items = wanted.iter().map(|attribute| attribute.item()).collect();
    vec![object, Item::structure(tag::TEMPLATE_ATTRIBUTE, items)]
}

/// The unique identifier of what the operation was about.
pub fn identifier(payload: &Item<'_>) -> Result<String, Refusal> {
    let id = payload.text(tag::UNIQUE_IDENTIFIER).map(Into::into);
    id.ok_or_else(|| Refusal::without("unique identifier"))
}

/// Activate (section 4.19).
pub fn activate(id: &str) -> Vec<Item<'_>> {
    vec![unique_identifier(id)]
}

/// Where a key is in its life (section 3.22).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // As the specification names them.
pub enum State {
    PreActive = 1,
    Active = 2,
    Deactivated = 3,
    Compromised = 4,
    Destroyed = 5,
    DestroyedCompromised = 6,
}

impl State {
    fn of(number: u32) -> Option<Self> {
        use State::*;
        [
            PreActive,
            Active,
            Deactivated,
            Compromised,
            Destroyed,
            DestroyedCompromised,
        ]
        .into_iter()
        .find(|state| *state as u32 == number)
    }
}

/// What is asked of a key: its name in KMIP 1.x, and its tag.
const ASKED: [(&str, Tag); 7] = [
    ("State", tag::STATE),
    ("Cryptographic Algorithm", tag::CRYPTOGRAPHIC_ALGORITHM),
    ("Cryptographic Length", tag::CRYPTOGRAPHIC_LENGTH),
    ("Initial Date", tag::INITIAL_DATE),
    ("Deactivation Date", tag::DEACTIVATION_DATE),
    ("Protect Stop Date", tag::PROTECT_STOP_DATE),
    ("Revocation Reason", tag::REVOCATION_REASON),
];

/// Get Attributes (section 4.12).
pub fn get_attributes(version: Version, id: &str) -> Vec<Item<'_>> {
    let asked = ASKED.iter().map(|(name, tag)| {
        if version >= Version::V2_0 {
            Item::new(tag::ATTRIBUTE_REFERENCE, Value::Enumeration(tag.0))
        } else {
            Item::new(tag::ATTRIBUTE_NAME, Value::Text(name))
        }
    });
    std::iter::once(unique_identifier(id))
        .chain(asked)
        .collect()
}

/// What a server tells of a key. Times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Where in its life it is.
    pub state: State,
    /// The algorithm, such as [`numbers::AES`].
    pub algorithm: Option<u32>,
    /// Its length in bits.
    pub bits: Option<i32>,
    /// When it was made.
    pub made: Option<i64>,
    /// When it will be, or was, deactivated.
    pub deactivation: Option<i64>,
    /// When it stops being used for wrapping.
    pub protect_stop: Option<i64>,
    /// Whether somebody revoked it.
    pub revoked: bool,
}

/// The answer to [`get_attributes`].
///
/// # Errors
/// When the state, without which no key is used, is missing or unknown.
pub fn got_attributes(version: Version, payload: &Item<'_>) -> Result<Attributes, Refusal> {
    let value = |name: &str, tag: Tag| {
        if version >= Version::V2_0 {
            return payload.get(tag::ATTRIBUTES)?.get(tag);
        }
        let named = |item: &&Item<'_>| {
            item.tag == tag::ATTRIBUTE && item.text(tag::ATTRIBUTE_NAME) == Some(name)
        };
        payload
            .items()
            .iter()
            .find(named)?
            .get(tag::ATTRIBUTE_VALUE)
    };
    let [
        state,
        algorithm,
        bits,
        made,
        deactivation,
        protect_stop,
        revoked,
    ] = ASKED.map(|(name, tag)| value(name, tag).map(|item| &item.value));
    let date = |value: Option<&Value<'_>>| match value? {
        Value::DateTime(seconds) => Some(*seconds),
        Value::DateTimeExtended(micros) => Some(micros / 1_000_000),
        _ => None,
    };
    let enumeration = |value: Option<&Value<'_>>| match value? {
        Value::Enumeration(number) => Some(*number),
        _ => None,
    };
    Ok(Attributes {
        state: enumeration(state)
            .and_then(State::of)
            .ok_or_else(|| Refusal::without("State of the key that is known here"))?,
        algorithm: enumeration(algorithm),
        bits: match bits {
            Some(Value::Integer(bits)) => Some(*bits),
            _ => None,
        },
        made: date(made),
        deactivation: date(deactivation),
        protect_stop: date(protect_stop),
        revoked: revoked.is_some(),
    })
}
