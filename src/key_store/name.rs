//! What key stores are called.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// What stands for the header of the volume itself where a key store can be
/// named, so that no key store is called so.
pub const HEADER: &str = "header";

/// The name of a key store: 1 to 64 letters, digits, dots, dashes and
/// underscores, of which the first is a letter or digit, and not [`HEADER`].
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

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == HEADER {
            return Err(format!(
                "{HEADER:?} means the header of a volume, and is no name for a key store"
            ));
        }
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(inner)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        match good {
            true => Ok(Name(text.into())),
            false => Err(format!(
                "{text:?} is not a name for a key store: use 1 to 64 letters, digits, '.', '-' and '_', and begin with a letter or digit"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_no_key_store() {
        for good in ["vault-eu", "7", "a.b_c"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", HEADER, ".a", "a/b", "-", "é", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
