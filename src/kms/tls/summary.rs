//! What a person wants to know of a certificate: whose it is, who issued it,
//! and when it ends. Whether it is genuine is for rustls to say.

use std::path::Path;

use super::files;
use super::validity::{self, INTEGER, SEQUENCE, VERSION, element};
use crate::kms::Error;
use crate::timestamp::Timestamp;

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Whose it is, such as `CN=kms.example,O=Example`.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// The first second in which it is valid.
    pub not_before: Timestamp,
    /// The last one.
    pub not_after: Timestamp,
}

impl Summary {
    /// Of a DER-encoded certificate; `None` if it is not one.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let validity = validity::of(certificate)?;
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (to_be_signed, _) = element(certificate, SEQUENCE)?;
        let rest = element(to_be_signed, VERSION).map_or(to_be_signed, |(_, rest)| rest);
        let (_serial, rest) = element(rest, INTEGER)?;
        let (_signature, rest) = element(rest, SEQUENCE)?;
        let (issuer, rest) = element(rest, SEQUENCE)?;
        let (_validity, rest) = element(rest, SEQUENCE)?;
        let (subject, _) = element(rest, SEQUENCE)?;
        Some(Summary {
            subject: name(subject),
            issuer: name(issuer),
            not_before: validity.not_before,
            not_after: validity.not_after,
        })
    }
}

/// The certificates in a PEM file, in their order.
///
/// # Errors
/// When it cannot be read, or holds none.
pub fn in_file(path: &Path) -> Result<Vec<Summary>, Error> {
    let found = files::certificates(path)?;
    Ok(found.iter().filter_map(|one| Summary::of(one)).collect())
}

const SET: u8 = 0x31;
const OID: u8 = 0x06;

/// The attributes of names that are shown, by the last byte of 2.5.4.x.
const ATTRIBUTES: [(u8, &str); 7] = [
    (3, "CN"),
    (5, "serialNumber"),
    (6, "C"),
    (7, "L"),
    (8, "ST"),
    (10, "O"),
    (11, "OU"),
];

/// A name on one line. What is no text in UTF-8 or ASCII, or of no common
/// attribute, is left out.
fn name(mut bytes: &[u8]) -> String {
    let mut parts = Vec::new();
    while let Some((set, rest)) = element(bytes, SET) {
        bytes = rest;
        parts.extend(attribute(set));
    }
    match parts.as_slice() {
        [] => "(no name)".into(),
        parts => parts.join(","),
    }
}

fn attribute(set: &[u8]) -> Option<String> {
    let (pair, _) = element(set, SEQUENCE)?;
    let (oid, value) = element(pair, OID)?;
    let [0x55, 0x04, which] = oid else {
        return None;
    };
    let (_, label) = ATTRIBUTES.iter().find(|(id, _)| id == which)?;
    // UTF8String, PrintableString, IA5String.
    let (text, _) = [0x0c, 0x13, 0x16]
        .iter()
        .find_map(|tag| element(value, *tag))?;
    let text = std::str::from_utf8(text).ok()?;
    // It may come from anybody.
    let text: String = text.chars().filter(|c| !c.is_control()).take(128).collect();
    Some(format!("{label}={text}"))
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::{X509, X509Name};

    use super::*;

    #[test]
    fn names_are_read_from_what_openssl_makes() {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let name = |entries: &[(&str, &str)]| {
            let mut name = X509Name::builder().unwrap();
            for (field, text) in entries {
                name.append_entry_by_text(field, text).unwrap();
            }
            name.build()
        };
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let subject = name(&[("C", "DE"), ("O", "Exämple"), ("CN", "kms\u{1b}[1m")]);
        builder.set_subject_name(&subject).unwrap();
        builder
            .set_issuer_name(&name(&[("CN", "authority")]))
            .unwrap();
        builder.set_pubkey(&key).unwrap();
        builder
            .set_not_before(&Asn1Time::from_unix(0).unwrap())
            .unwrap();
        builder
            .set_not_after(&Asn1Time::from_unix(86_399).unwrap())
            .unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let der = builder.build().to_der().unwrap();
        let summary = Summary::of(&der).unwrap();
        assert_eq!(summary.subject, "C=DE,O=Exämple,CN=kms[1m");
        assert_eq!(summary.issuer, "CN=authority");
        assert_eq!(summary.not_after.to_string(), "1970-01-01T23:59:59Z");
        for cut in 0..150 {
            // Nothing to be afraid of; what is asserted is that it returns.
            assert_eq!(Summary::of(&der[..cut]), None);
        }
    }
}
