//! PKCS#11 URIs (RFC 7512): which module, which token, which key.
//!
//! All that a URI says is used, or refused: an attribute that were passed over
//! could make it mean another key than its author thought.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longer than any URI that a person or a tool writes.
const URI_MAX: usize = 4096;

/// The longest label or id of a key, in bytes.
const CALLED_MAX: usize = 256;

/// What a URI says, with its percent-encoding resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uri {
    /// The token.
    pub token: TokenMatch,
    /// The key's label (`object`).
    pub object: Option<String>,
    /// The key's id (`id`).
    pub id: Option<Vec<u8>>,
    /// Which kind of object (`type`).
    pub kind: Option<Kind>,
    /// The library (`module-path`).
    pub module: Option<PathBuf>,
    /// The file with the PIN (`pin-source`).
    pub pin_source: Option<PathBuf>,
}

/// What a token must have for a URI to mean it. What is `None` may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMatch {
    /// Its label.
    pub label: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Who made it.
    pub manufacturer: Option<String>,
    /// Which model it is.
    pub model: Option<String>,
    /// The number of the slot that it is in.
    pub slot: Option<u64>,
}

/// A kind of object that can wrap keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A secret key: AES.
    Secret,
    /// The private key of a pair: RSA.
    Private,
}

impl FromStr for Uri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map_err(|why| format!("{why} in the PKCS#11 URI"))
    }
}

fn parse(text: &str) -> Result<Uri, String> {
    if text.len() > URI_MAX {
        return Err(format!("there are more than {URI_MAX} characters"));
    }
    let rest = text
        .strip_prefix("pkcs11:")
        .ok_or("there is no \"pkcs11:\" at the beginning")?;
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    let mut uri = Uri::default();
    let mut seen = Vec::new();
    for attribute in path.split(';').filter(|_| !path.is_empty()) {
        let (name, value) = pair(attribute, PATH, &mut seen)?;
        let token = &mut uri.token;
        match name {
            "token" => token.label = Some(string(name, value)?),
            "serial" => token.serial = Some(string(name, value)?),
            "manufacturer" => token.manufacturer = Some(string(name, value)?),
            "model" => token.model = Some(string(name, value)?),
            "slot-id" => token.slot = Some(number(name, value)?),
            "object" => uri.object = Some(string(name, value)?),
            "id" => uri.id = Some(bounded(name, decode(name, value)?)?),
            "type" => uri.kind = Some(kind(value)?),
            "slot-manufacturer"
            | "slot-description"
            | "library-manufacturer"
            | "library-description"
            | "library-version" => {
                return Err(format!(
                    "\"{name}\" is not used here, and would be passed over: leave it out"
                ));
            }
            _ => return Err(unknown(name)),
        }
    }
    let mut seen = Vec::new();
    for attribute in query.into_iter().flat_map(|query| query.split('&')) {
        let (name, value) = pair(attribute, QUERY, &mut seen)?;
        match name {
            "module-path" => uri.module = Some(absolute(name, string(name, value)?)?),
            "pin-source" => {
                let source = string(name, value)?;
                let path = source.strip_prefix("file:").unwrap_or(&source);
                // file:///etc/pin has an empty host.
                let path = path.strip_prefix("//").unwrap_or(path);
                uri.pin_source = Some(absolute(name, path.into())?);
            }
            "pin-value" => {
                return Err(
                    "there is \"pin-value\", and secrets are not written into the configuration: put the PIN into a file and name that with pin = \"/PATH\""
                        .into(),
                );
            }
            "module-name" => {
                return Err(
                    "there is \"module-name\", for which there is no one place to look: write module-path".into(),
                );
            }
            _ => return Err(unknown(name)),
        }
    }
    Ok(uri)
}

/// What may stand in a path besides letters, digits and `-._~` (RFC 7512,
/// section 2.3, `pk11-path-res-avail`).
const PATH: &[u8] = b":[]@!$'()*+,=&";
/// The same in a query (`pk11-query-res-avail`).
const QUERY: &[u8] = b":[]@!$'()*+,=/?|";

fn pair<'a>(
    attribute: &'a str,
    reserved: &[u8],
    seen: &mut Vec<&'a str>,
) -> Result<(&'a str, &'a str), String> {
    let (name, value) = attribute
        .split_once('=')
        .ok_or_else(|| format!("{attribute:?} is no NAME=VALUE"))?;
    let wrong =
        |c: &u8| !(c.is_ascii_alphanumeric() || b"-._~%".contains(c) || reserved.contains(c));
    if let Some(wrong) = value.bytes().find(wrong) {
        return Err(format!("a %{wrong:02X} in \"{name}\" has to be written so"));
    }
    if seen.contains(&name) {
        return Err(format!("\"{name}\" stands twice"));
    }
    seen.push(name);
    Ok((name, value))
}

fn unknown(name: &str) -> String {
    format!("there is no attribute {name:?}")
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |at: usize| {
            let digit = char::from(*after.get(at)?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(format!(
                "a % in \"{name}\" is not followed by two hexadecimal digits"
            ));
        };
        bytes.push(high << 4 | low);
        rest = &after[2..];
    }
    Ok(bytes)
}

fn bounded(name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    match bytes.len() {
        0 => Err(format!("\"{name}\" is empty")),
        1..=CALLED_MAX => Ok(bytes),
        _ => Err(format!("\"{name}\" is longer than {CALLED_MAX} bytes")),
    }
}

fn string(name: &str, value: &str) -> Result<String, String> {
    let bytes = decode(name, value)?;
    let bytes = match name {
        // Paths may be longer than names.
        "module-path" | "pin-source" => bytes,
        _ => bounded(name, bytes)?,
    };
    let text = String::from_utf8(bytes).map_err(|_| format!("\"{name}\" is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(format!("\"{name}\" has a control character"));
    }
    Ok(text)
}

fn number(name: &str, value: &str) -> Result<u64, String> {
    let digits = !value.is_empty() && value.bytes().all(|c| c.is_ascii_digit());
    let number = value.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("\"{name}\" is not a decimal number"))
}

fn kind(value: &str) -> Result<Kind, String> {
    match value {
        "secret-key" => Ok(Kind::Secret),
        "private" => Ok(Kind::Private),
        "public" | "cert" | "data" => Err(format!(
            "\"type\" is {value}, which unwraps nothing: write secret-key or private"
        )),
        _ => Err(format!("there is no type {value:?}")),
    }
}

fn absolute(name: &str, path: String) -> Result<PathBuf, String> {
    if path.starts_with('/') {
        Ok(path.into())
    } else {
        Err(format!("\"{name}\" is not an absolute path"))
    }
}

impl fmt::Display for TokenMatch {
    /// As the path of a URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [
            ("token", &self.label),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ];
        let mut parts: Vec<String> = named
            .into_iter()
            .filter_map(|(name, value)| {
                Some(format!("{name}={}", encode(value.as_ref()?.as_bytes())))
            })
            .collect();
        parts.extend(self.slot.map(|slot| format!("slot-id={slot}")));
        write!(f, "pkcs11:{}", parts.join(";"))
    }
}

/// `bytes` as they stand in a URI: all but letters, digits and `-._~` encoded.
pub fn encode(bytes: &[u8]) -> String {
    let one = |&byte: &u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_part_is_read() {
        let uri: Uri = "pkcs11:token=Software%20%C3%A9;serial=a+b;manufacturer=Snake%20Oil,%20Inc.;model=1.0;slot-id=42;object=my%3Bkey;type=private;id=%01%fFa?module-path=/usr/lib/a%20b.so&pin-source=file:/etc/token%2Fpin"
            .parse()
            .unwrap();
        assert_eq!(
            uri,
            Uri {
                token: TokenMatch {
                    label: Some("Software é".into()),
                    serial: Some("a+b".into()),
                    manufacturer: Some("Snake Oil, Inc.".into()),
                    model: Some("1.0".into()),
                    slot: Some(42),
                },
                object: Some("my;key".into()),
                id: Some(vec![1, 0xff, b'a']),
                kind: Some(Kind::Private),
                module: Some("/usr/lib/a b.so".into()),
                pin_source: Some("/etc/token/pin".into()),
            }
        );
        assert_eq!(
            uri.token.to_string(),
            "pkcs11:token=Software%20%C3%A9;serial=a%2Bb;manufacturer=Snake%20Oil%2C%20Inc.;model=1.0;slot-id=42"
        );
        for source in ["file:///etc/pin", "file:/etc/pin", "/etc/pin"] {
            let uri: Uri = format!("pkcs11:?pin-source={source}").parse().unwrap();
            assert_eq!(uri.pin_source, Some("/etc/pin".into()));
        }
        assert_eq!("pkcs11:".parse(), Ok(Uri::default()));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, told) in [
            ("", "no \"pkcs11:\""),
            ("PKCS11:token=a", "no \"pkcs11:\""),
            ("pkcs11:token", "is no NAME=VALUE"),
            ("pkcs11:token=a;", "is no NAME=VALUE"),
            ("pkcs11:token=", "\"token\" is empty"),
            ("pkcs11:token=a;token=b", "\"token\" stands twice"),
            (
                "pkcs11:token=a b",
                "a %20 in \"token\" has to be written so",
            ),
            ("pkcs11:object=é", "a %C3 in \"object\""),
            ("pkcs11:object=a/b", "a %2F in \"object\""),
            ("pkcs11:id=%0", "two hexadecimal digits"),
            ("pkcs11:id=%+1", "two hexadecimal digits"),
            ("pkcs11:object=%ff", "is not UTF-8"),
            ("pkcs11:object=%0a", "a control character"),
            ("pkcs11:slot-id=-1", "not a decimal number"),
            ("pkcs11:slot-id=+1", "not a decimal number"),
            (
                "pkcs11:slot-id=99999999999999999999",
                "not a decimal number",
            ),
            ("pkcs11:type=cert", "unwraps nothing"),
            ("pkcs11:type=key", "no type \"key\""),
            ("pkcs11:library-version=3", "leave it out"),
            ("pkcs11:x-muppet=1", "no attribute \"x-muppet\""),
            ("pkcs11:?pin-value=1234", "secrets are not written"),
            ("pkcs11:?module-name=softhsm", "write module-path"),
            ("pkcs11:?module-path=lib.so", "not an absolute path"),
            ("pkcs11:?pin-source=|/bin/echo", "not an absolute path"),
            ("pkcs11:?pin-source=http://a/b", "not an absolute path"),
            ("pkcs11:?", "is no NAME=VALUE"),
        ] {
            let error = text.parse::<Uri>().expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
            assert!(!error.contains("1234"), "the PIN is not shown: {error}");
        }
        let long = format!("pkcs11:object={}", "x".repeat(CALLED_MAX + 1));
        assert!(long.parse::<Uri>().is_err());
        let long = format!("pkcs11:?module-path=/{}", "x".repeat(URI_MAX));
        assert!(long.parse::<Uri>().is_err());
    }

    proptest! {
        #[test]
        fn anything_can_be_encoded(id in proptest::collection::vec(any::<u8>(), 1..CALLED_MAX)) {
            let uri: Uri = format!("pkcs11:id={}", encode(&id)).parse().unwrap();
            prop_assert_eq!(uri.id, Some(id));
        }

        #[test]
        fn nothing_panics(text in "pkcs11:[ -~]{0,80}") {
            let _ = text.parse::<Uri>();
        }
    }
}
