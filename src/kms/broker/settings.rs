//! What is configured, and the names that may be.

use std::fmt;
use std::str::FromStr;

use super::seal::PublicKey;
use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;

/// Brokers with the same key sets and policy, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The brokers, the nearest first.
    pub endpoints: Vec<BaseUrl>,
    /// Our name in their policy.
    pub host: PlainName,
    /// Our private key.
    pub host_key: SecretFile,
    /// The public keys that brokers may have.
    pub broker_keys: Vec<PublicKey>,
    /// Whom to trust, and our certificate.
    pub tls: tls::Settings,
    /// How long to wait.
    pub timing: Timing,
}

/// A name of a host or of a key set, as it stands in the configuration and the
/// policy of a broker: letters, digits, `.`, `-` and `_`, of which the first is
/// a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlainName(String);

/// The most that such a name has.
pub const NAME_MAX: usize = 128;

impl PlainName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PlainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let plain = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
        if begins && text.len() <= NAME_MAX && text.bytes().all(plain) {
            return Ok(PlainName(text.into()));
        }
        Err(format!(
            "{text:?} is not a name for a broker: letters, digits, '.', '-' and '_', at most {NAME_MAX}, and a letter or digit first"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain() {
        for good in ["hv1", "hv-1.rack_2", "0", &"x".repeat(NAME_MAX)] {
            assert_eq!(good.parse::<PlainName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-x",
            ".",
            "a b",
            "a/b",
            "ä",
            "a\n",
            &"x".repeat(NAME_MAX + 1),
        ] {
            assert!(bad.parse::<PlainName>().is_err(), "{bad:?}");
        }
    }
}
