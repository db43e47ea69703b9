//! Messages: one request with one operation, and its answer.
//!
//! Here are the messages as such, and what a server says of itself; `keys`
//! finds, makes and describes keys, `crypto` uses them. KMIP 2.0 encodes
//! attributes differently from 1.x, and the difference ends here. Sections are
//! those of KMIP 1.4 unless they say 2.0.

mod crypto;
mod keys;

pub use crypto::{decrypt, decrypted, encrypt, encrypted, get, got};
pub use keys::{
    Attribute, Attributes, LOCATE_MAX, State, activate, create, get_attributes, got_attributes,
    identifier, locate, located,
};

use std::fmt;
use std::str::FromStr;

use super::numbers::{self, Operation, reason, tag};
use super::ttlv::{Item, Value};

/// The most that a server is asked to answer, and the most that is taken, in
/// bytes. A key needs 300, and the names of [`LOCATE_MAX`] keys 24,000.
pub const ANSWER_MAX: u32 = 64 * 1024;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: i32,
    /// The second one.
    pub minor: i32,
}

impl Version {
    /// KMIP 1.1, the first with Discover Versions.
    pub const V1_1: Self = Version { major: 1, minor: 1 };
    /// KMIP 1.4, the first whose Encrypt takes associated data.
    pub const V1_4: Self = Version { major: 1, minor: 4 };
    /// KMIP 2.0, which changed how attributes are encoded.
    pub const V2_0: Self = Version { major: 2, minor: 0 };

    /// What this client speaks, the preferred one first.
    pub const SPOKEN: [Self; 5] = [
        Self::V2_0,
        Self::V1_4,
        Version { major: 1, minor: 3 },
        Version { major: 1, minor: 2 },
        Self::V1_1,
    ];

    fn item(self) -> Item<'static> {
        Item::structure(
            tag::PROTOCOL_VERSION,
            vec![
                Item::new(tag::PROTOCOL_VERSION_MAJOR, Value::Integer(self.major)),
                Item::new(tag::PROTOCOL_VERSION_MINOR, Value::Integer(self.minor)),
            ],
        )
    }

    fn of(item: &Item<'_>) -> Option<Self> {
        Some(Version {
            major: item.integer(tag::PROTOCOL_VERSION_MAJOR)?,
            minor: item.integer(tag::PROTOCOL_VERSION_MINOR)?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::SPOKEN.iter().find(|known| known.to_string() == text);
        known.copied().ok_or_else(|| {
            format!("{text:?} is not a version of KMIP that is spoken here: write \"1.1\", \"1.2\", \"1.3\", \"1.4\" or \"2.0\"")
        })
    }
}

/// Why a request was not answered with what it asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server says no.
    Failed {
        /// The Result Reason (section 9.1.3.2.29).
        reason: u32,
        /// The server's own words.
        message: String,
    },
    /// The answer is not one. Says what is wrong with it.
    Malformed(String),
}

impl Refusal {
    /// An answer that lacks something, or has something else in its place.
    fn without(what: &str) -> Self {
        Refusal::Malformed(format!("it has no {what}"))
    }
}

/// A whole request (section 7.1). `correlation` is an id of it for the records
/// of both sides, from KMIP 1.4 on (section 6.18).
pub fn request<'p>(
    version: Version,
    operation: Operation,
    payload: Vec<Item<'p>>,
    correlation: Option<&'p str>,
) -> Item<'p> {
    let answer_max = i32::try_from(ANSWER_MAX).unwrap_or(i32::MAX);
    let mut header = vec![
        version.item(),
        Item::new(tag::MAXIMUM_RESPONSE_SIZE, Value::Integer(answer_max)),
    ];
    header.extend(correlation.map(|id| Item::new(tag::CLIENT_CORRELATION_VALUE, Value::Text(id))));
    header.push(Item::new(tag::BATCH_COUNT, Value::Integer(1)));
    Item::structure(
        tag::REQUEST_MESSAGE,
        vec![
            Item::structure(tag::REQUEST_HEADER, header),
            Item::structure(
                tag::BATCH_ITEM,
                vec![
                    Item::new(tag::OPERATION, Value::Enumeration(operation as u32)),
                    Item::structure(tag::REQUEST_PAYLOAD, payload),
                ],
            ),
        ],
    )
}

/// The server's own id of a request, if it has one (section 6.18).
pub fn server_correlation<'m>(message: &'m Item<'_>) -> Option<&'m str> {
    let header = message.get(tag::RESPONSE_HEADER)?;
    header.text(tag::SERVER_CORRELATION_VALUE)
}

/// The payload of an answer to `operation` (section 7.2).
///
/// # Errors
/// When the server refused, or the message is not such an answer.
pub fn answer<'m, 'b>(
    message: &'m Item<'b>,
    operation: Operation,
) -> Result<&'m Item<'b>, Refusal> {
    if message.tag != tag::RESPONSE_MESSAGE {
        return Err(Refusal::Malformed("it is not a KMIP response".into()));
    }
    let item = message
        .get(tag::BATCH_ITEM)
        .ok_or_else(|| Refusal::without("result"))?;
    // One thing is asked for at a time: another result is of something else.
    let results = message.items().iter();
    if results.filter(|one| one.tag == tag::BATCH_ITEM).count() > 1 {
        return Err(Refusal::Malformed(
            "it has more results than were asked for".into(),
        ));
    }
    let status = item
        .enumeration(tag::RESULT_STATUS)
        .ok_or_else(|| Refusal::without("result status"))?;
    if status != numbers::SUCCESS {
        return Err(Refusal::Failed {
            reason: item
                .enumeration(tag::RESULT_REASON)
                .unwrap_or(reason::GENERAL_FAILURE),
            message: item.text(tag::RESULT_MESSAGE).unwrap_or("").into(),
        });
    }
    if item.enumeration(tag::OPERATION) != Some(operation as u32) {
        return Err(Refusal::Malformed(format!(
            "it does not answer {operation}"
        )));
    }
    item.get(tag::RESPONSE_PAYLOAD)
        .ok_or_else(|| Refusal::without("payload"))
}

/// Which object a request is about, if it is about one.
pub fn object<'i>(payload: &'i [Item<'_>]) -> Option<&'i str> {
    payload.iter().find_map(|item| match &item.value {
        Value::Text(id) if item.tag == tag::UNIQUE_IDENTIFIER => Some(&**id),
        _ => None,
    })
}

/// Whether an answer is about the object `asked`, as far as it says: the key of
/// another one would be taken for it, or its state.
///
/// # Errors
/// When it is about another one.
pub fn check_object(payload: &Item<'_>, asked: Option<&str>) -> Result<(), Refusal> {
    match (asked, payload.text(tag::UNIQUE_IDENTIFIER)) {
        (Some(asked), Some(told)) if told != asked => Err(Refusal::Malformed(
            "it is about another object than was asked for".into(),
        )),
        _ => Ok(()),
    }
}

/// Discover Versions (section 4.26): which of ours the server speaks.
pub fn discover_versions() -> Vec<Item<'static>> {
    Version::SPOKEN
        .iter()
        .map(|version| version.item())
        .collect()
}

/// The versions that the server told.
pub fn discovered(payload: &Item<'_>) -> Vec<Version> {
    let items = payload.items().iter();
    items
        .filter(|item| item.tag == tag::PROTOCOL_VERSION)
        .filter_map(Version::of)
        .collect()
}

/// Query (section 4.25): what the server can do, and whose it is.
pub fn query() -> Vec<Item<'static>> {
    [numbers::QUERY_OPERATIONS, numbers::QUERY_SERVER_INFORMATION]
        .map(|function| Item::new(tag::QUERY_FUNCTION, Value::Enumeration(function)))
        .into()
}

/// What a server tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The version of KMIP that is spoken with it.
    pub version: Version,
    /// Who made it.
    pub vendor: Option<String>,
    /// The operations that it offers.
    pub operations: Vec<u32>,
}

/// The answer to [`query`].
pub fn queried(version: Version, payload: &Item<'_>) -> Offer {
    let items = payload.items().iter();
    let operations = items.filter_map(|item| match item.value {
        Value::Enumeration(operation) if item.tag == tag::OPERATION => Some(operation),
        _ => None,
    });
    Offer {
        version,
        operations: operations.collect(),
        vendor: payload.text(tag::VENDOR_IDENTIFICATION).map(Into::into),
    }
}

fn unique_identifier(id: &str) -> Item<'_> {
    Item::new(tag::UNIQUE_IDENTIFIER, Value::Text(id))
}
