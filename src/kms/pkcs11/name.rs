//! How keys and their versions are called.

use std::fmt;
use std::str::FromStr;

use super::uri::{Kind, Uri, encode};
use crate::kms::envelope::damaged;
use crate::kms::{Class, Error, KeyRef, Wrapped};

/// How a key is called, as in [`KeyRef::id`]: a URI with no more than `object`,
/// `id` and `type`, one of the first two at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName {
    /// Its label.
    pub label: Option<String>,
    /// Its id. It names one object, and so leaves no choice of a version.
    pub id: Option<Vec<u8>>,
    /// Which kind of object, where it is said.
    pub kind: Option<Kind>,
}

impl KeyName {
    /// The key that `uri` names.
    ///
    /// # Errors
    /// When it names none.
    pub fn of(uri: &Uri) -> Result<Self, String> {
        if uri.object.is_none() && uri.id.is_none() {
            return Err("the PKCS#11 URI names no key: add object=LABEL or id=%XX…".into());
        }
        Ok(KeyName {
            label: uri.object.clone(),
            id: uri.id.clone(),
            kind: uri.kind,
        })
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.map(|kind| match kind {
            Kind::Secret => "secret-key",
            Kind::Private => "private",
        });
        let parts = [
            (
                "object",
                self.label.as_ref().map(|label| encode(label.as_bytes())),
            ),
            ("id", self.id.as_ref().map(|id| encode(id))),
            ("type", kind.map(Into::into)),
        ];
        let parts: Vec<String> = parts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", value?)))
            .collect();
        write!(f, "pkcs11:{}", parts.join(";"))
    }
}

impl FromStr for KeyName {
    type Err = String;

    /// Takes the form that is displayed, and no other.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = KeyName::of(&text.parse()?)?;
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(format!(
                "{text:?} is not the name of a key, which is {name}"
            ))
        }
    }
}

/// The version of an object: its `CKA_ID` in hexadecimal digits.
pub(super) fn version(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `CKA_ID` of a version.
///
/// # Errors
/// When it is not an even number of lower-case hexadecimal digits.
pub fn id_of(version: &str) -> Result<Vec<u8>, String> {
    let digits = version.as_bytes();
    let bytes = digits.chunks(2).map(|pair| {
        let [high, low] = *pair else { return None };
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        Some(digit(high)? << 4 | digit(low)?)
    });
    match bytes.collect::<Option<Vec<u8>>>() {
        Some(id) if !id.is_empty() => Ok(id),
        _ => Err(format!(
            "{version:?} is not a CKA_ID: write an even number of hexadecimal digits, in lower case"
        )),
    }
}

/// Which key is meant, and which version of it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: KeyName,
    /// The `CKA_ID` of one version; the latest if `None`.
    pub(super) id: Option<Vec<u8>>,
}

impl Wanted {
    /// What a caller wants.
    pub(super) fn of(key: &KeyRef) -> Result<Self, Error> {
        let not_found = |next| move |why: String| Error::new(Class::NotFound, why, next);
        let name = key.id.as_deref().unwrap_or_default().parse();
        let id = key.version.as_deref().map(id_of).transpose();
        Ok(Wanted {
            name: name.map_err(not_found(
                "name a key of the token in the key set: uri = \"pkcs11:token=TOKEN;object=LABEL\"",
            ))?,
            id: id.map_err(not_found(
                "write the CKA_ID of one object in the key set, or version = \"latest\"",
            ))?,
        })
    }

    /// What opens `wrapped`.
    pub(super) fn of_wrapped(wrapped: &Wrapped) -> Result<Self, Error> {
        Ok(Wanted {
            name: wrapped.key_id.parse().map_err(|why: String| damaged(why))?,
            id: Some(id_of(&wrapped.version).map_err(damaged)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_form() {
        for text in [
            "pkcs11:object=disks",
            "pkcs11:id=%01a",
            "pkcs11:object=a%20b;id=%FF;type=private",
        ] {
            assert_eq!(text.parse::<KeyName>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "disks",
            "pkcs11:",
            "pkcs11:type=private",
            "pkcs11:id=%ff;object=a",
            "pkcs11:object=%61",
            "pkcs11:object=a;token=b",
            "pkcs11:object=a?module-path=/b",
        ] {
            assert!(text.parse::<KeyName>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_are_ids_in_hexadecimal_digits() {
        assert_eq!(version(&[0, 0xab]), "00ab");
        assert_eq!(id_of("00ab"), Ok(vec![0, 0xab]));
        for text in ["", "0", "0AB0", "0x01", "00a", "zz", "+1", "é"] {
            assert!(id_of(text).is_err(), "{text}");
        }
    }
}
