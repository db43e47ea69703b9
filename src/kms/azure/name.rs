//! What keys and their versions are called: nothing that is not a plain name
//! gets into the path of a request.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

use crate::kms::http::BaseUrl;
use crate::kms::{Class, Error, KeyRef};

/// The name of a key in its vault: letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

impl KeyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        if (1..=127).contains(&text.len()) && text.bytes().all(good) {
            return Ok(KeyName(text.into()));
        }
        Err(format!(
            "{text:?} is not the name of a key of a vault: 1 to 127 letters, digits and '-'"
        ))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version of a key: 32 hexadecimal digits, in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(String);

impl Version {
    /// The version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 32 && text.bytes().all(good) {
            return Ok(Version(text.into()));
        }
        Err(format!(
            "{text:?} is not a version of a key of a vault: versions have 32 hexadecimal digits in lower case"
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key identifier: `https://VAULT/keys/NAME` or `https://VAULT/keys/NAME/VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUri {
    /// Where it is.
    pub vault: BaseUrl,
    /// Its name there.
    pub name: KeyName,
    /// The version, if one is named.
    pub version: Option<Version>,
}

impl FromStr for KeyUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: String| {
            format!(
                "{text:?} is not a key identifier such as https://NAME.vault.azure.net/keys/KEY: {why}"
            )
        };
        let url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
        let segments: Vec<&str> = url.path().trim_start_matches('/').split('/').collect();
        let (name, version) = match segments[..] {
            ["keys", name] | ["keys", name, ""] => (name, None),
            ["keys", name, version] => (name, Some(version)),
            _ => return Err(bad("its path is not /keys/KEY or /keys/KEY/VERSION".into())),
        };
        let (name, version) = (
            name.parse().map_err(bad)?,
            version.map(str::parse).transpose().map_err(bad)?,
        );
        let mut vault = url.clone();
        vault.set_path("");
        Ok(KeyUri {
            vault: vault.as_str().parse().map_err(bad)?,
            name,
            version,
        })
    }
}

/// The key identifier without a version, as it stands beside what it wrapped.
pub fn key_id(vault: &BaseUrl, name: &KeyName) -> String {
    format!("{vault}/keys/{name}")
}

/// The key that is meant: by its name in the vault that is configured, or by
/// its whole identifier, of which that vault then has to be the one.
pub(super) fn wanted(key: &KeyRef, vault: &BaseUrl) -> Result<(KeyName, Option<Version>), Error> {
    let missing = |why: String| {
        Error::new(
            Class::NotFound,
            why,
            "name a key of the vault in the key set: key = \"NAME\", and a version that it has, or \"latest\"",
        )
    };
    let id = key.id.as_deref().unwrap_or_default();
    let (name, named) = match id.contains("://") {
        false => (id.parse().map_err(missing)?, None),
        true => {
            let uri: KeyUri = id.parse().map_err(missing)?;
            if uri.vault != *vault {
                return Err(missing(format!("{id} is not a key of {vault}")));
            }
            (uri.name, uri.version)
        }
    };
    let version = match key.version.as_deref() {
        Some(version) => Some(version.parse().map_err(missing)?),
        None => named,
    };
    Ok((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_plain_names_get_into_a_path() {
        for good in ["k", "disk-keys", "9", "A-1-"] {
            assert_eq!(good.parse::<KeyName>().unwrap().as_str(), good);
        }
        let long = "x".repeat(128);
        for bad in ["", ".", "a.b", "a/b", "a_b", "a b", "é", "a%2f", &long] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
        assert!(VERSION.parse::<Version>().is_ok());
        for bad in ["", "latest", &VERSION[1..], &VERSION.to_uppercase()] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_identifier_is_taken_apart() {
        let uri: KeyUri = format!("https://v.vault.azure.net/keys/disks/{VERSION}")
            .parse()
            .unwrap();
        assert_eq!(uri.vault.to_string(), "https://v.vault.azure.net");
        assert_eq!(
            (uri.name.as_str(), uri.version.as_ref().map(Version::as_str)),
            ("disks", Some(VERSION))
        );
        assert_eq!(
            key_id(&uri.vault, &uri.name),
            "https://v.vault.azure.net/keys/disks"
        );
        for latest in ["keys/disks", "keys/disks/"] {
            let uri: KeyUri = format!("https://V.vault.azure.net:443/{latest}")
                .parse()
                .unwrap();
            assert_eq!((uri.version, uri.vault.host()), (None, "v.vault.azure.net"));
        }
        for bad in [
            "disks",
            "https://v.vault.azure.net",
            "https://v.vault.azure.net/secrets/disks",
            "https://v.vault.azure.net/keys/disks/1",
            "https://v.vault.azure.net/keys/disks?x=y",
            "https://u:p@v.vault.azure.net/keys/disks",
            "https://v.vault.azure.net/x/../keys/di%73ks/",
            "http://v.vault.azure.net/keys/disks",
        ] {
            assert!(bad.parse::<KeyUri>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_of_another_vault_is_not_asked_for_here() {
        let vault: BaseUrl = "https://v.vault.azure.net".parse().unwrap();
        let key = |id: &str, version: Option<&str>| KeyRef {
            id: Some(id.into()),
            version: version.map(Into::into),
        };
        let id = format!("https://v.vault.azure.net/keys/disks/{VERSION}");
        let (name, version) = wanted(&key(&id, None), &vault).unwrap();
        assert_eq!(
            (name.as_str(), version.unwrap().as_str()),
            ("disks", VERSION)
        );
        assert!(wanted(&key("disks", Some(VERSION)), &vault).is_ok());
        for (id, version) in [
            ("https://w.vault.azure.net/keys/disks", None),
            ("disks", Some("1")),
            ("", None),
        ] {
            let error = wanted(&key(id, version), &vault).unwrap_err();
            assert_eq!(error.class(), Class::NotFound);
        }
    }
}
