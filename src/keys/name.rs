//! What key sets are called.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// The key set of a volume for which no other is named.
pub const DEFAULT: &str = "default";

/// The name of a key set: 1 to 64 letters, digits, dots, dashes and
/// underscores, of which the first is a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Default for Name {
    fn default() -> Self {
        Name(DEFAULT.into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(inner)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if good {
            Ok(Name(text.into()))
        } else {
            Err(format!(
                "{text:?} is not a name for a key set: use 1 to 64 letters, digits, '.', '-' and '_', and begin with a letter or digit"
            ))
        }
    }
}
