//! What a certificate calls its holder (RFC 5280, sections 4.1.2.6 and
//! 4.2.1.6). Whether it is genuine is for rustls to say, before.
//!
//! Somebody decides by these names, so that a certificate in which anything
//! about them is unusual has none: no name is better than a wrong one.

use super::validity::{self, INTEGER, SEQUENCE, VERSION, element, next};
use crate::timestamp::Timestamp;

/// One name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderName {
    /// A URI of the subject alternative names, such as a SPIFFE id.
    Uri(String),
    /// A DNS name of the subject alternative names, in lower case.
    Dns(String),
    /// The common name of the subject.
    CommonName(String),
}

impl HolderName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        match self {
            HolderName::Uri(name) | HolderName::Dns(name) | HolderName::CommonName(name) => name,
        }
    }
}

/// Whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its names: URIs before DNS names; the common name where it has neither.
    pub names: Vec<HolderName>,
    /// The last second in which the certificate is valid.
    pub not_after: Timestamp,
}

const SET: u8 = 0x31;
const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const EXTENSIONS: u8 = 0xa3;
/// What may stand before the extensions: unique identifiers, which nobody uses.
const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
/// In the subject alternative names: dNSName and uniformResourceIdentifier.
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
/// 2.5.29.17
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// 2.5.4.3
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// More than any name has that somebody writes into a policy.
const NAME_MAX: usize = 1024;

impl Holder {
    /// The holder of a DER-encoded certificate. `None` if it is not one, or
    /// not one whose names are beyond doubt.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let not_after = validity::of(certificate)?.not_after;
        let (certificate, []) = element(certificate, SEQUENCE)? else {
            return None;
        };
        let (to_be_signed, _) = element(certificate, SEQUENCE)?;
        let rest = element(to_be_signed, VERSION).map_or(to_be_signed, |(_, rest)| rest);
        let (_serial, rest) = element(rest, INTEGER)?;
        let (_signature, rest) = element(rest, SEQUENCE)?;
        let (_issuer, rest) = element(rest, SEQUENCE)?;
        let (_validity, rest) = element(rest, SEQUENCE)?;
        let (subject, rest) = element(rest, SEQUENCE)?;
        let (_public_key, mut rest) = element(rest, SEQUENCE)?;
        for tag in UNIQUE_IDS {
            rest = element(rest, tag).map_or(rest, |(_, rest)| rest);
        }
        let mut names = match element(rest, EXTENSIONS) {
            Some((extensions, [])) => alternative_names(extensions)?,
            None if rest.is_empty() => Vec::new(),
            _ => return None,
        };
        if names.is_empty() {
            names.extend(common_name(subject)?.map(HolderName::CommonName));
        }
        names.sort_by_key(|name| !matches!(name, HolderName::Uri(_)));
        Some(Holder { names, not_after })
    }
}

/// The names in the one extension that has them. Addresses and what else may
/// stand there are passed over.
fn alternative_names(extensions: &[u8]) -> Option<Vec<HolderName>> {
    let (mut extensions, []) = element(extensions, SEQUENCE)? else {
        return None;
    };
    let mut found = None;
    while !extensions.is_empty() {
        let (extension, rest) = element(extensions, SEQUENCE)?;
        extensions = rest;
        let (id, rest) = element(extension, OID)?;
        if id != SUBJECT_ALT_NAME {
            continue;
        }
        let rest = element(rest, BOOLEAN).map_or(rest, |(_critical, rest)| rest);
        let (value, []) = element(rest, OCTET_STRING)? else {
            return None;
        };
        // Of two that differ, which one would count?
        if found.replace(value).is_some() {
            return None;
        }
    }
    let Some(value) = found else {
        return Some(Vec::new());
    };
    let (mut value, []) = element(value, SEQUENCE)? else {
        return None;
    };
    let mut names = Vec::new();
    while !value.is_empty() {
        let (tag, content, rest) = next(value)?;
        value = rest;
        match tag {
            DNS_NAME => names.push(HolderName::Dns(ascii(content)?.to_ascii_lowercase())),
            URI => names.push(HolderName::Uri(ascii(content)?)),
            _ => {}
        }
    }
    Some(names)
}

/// The common name in a subject that has one, and not several.
#[allow(clippy::option_option, reason = "doubtful, or not there")]
fn common_name(mut subject: &[u8]) -> Option<Option<String>> {
    let mut found = None;
    while !subject.is_empty() {
        let (mut set, rest) = element(subject, SET)?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (id, value) = element(pair, OID)?;
            if id != COMMON_NAME {
                continue;
            }
            let (tag, text, []) = next(value)? else {
                return None;
            };
            let name = match tag {
                UTF8_STRING => plain(std::str::from_utf8(text).ok()?)?,
                PRINTABLE_STRING | IA5_STRING => ascii(text)?,
                _ => return None,
            };
            if found.replace(name).is_some() {
                return None;
            }
        }
    }
    Some(found)
}

fn ascii(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    plain(text).filter(|text| text.is_ascii())
}

/// A name that is not empty, not endless, and has nothing in it that a person
/// would not see.
fn plain(text: &str) -> Option<String> {
    let good = (1..=NAME_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
    use openssl::x509::{X509, X509Name};

    use super::*;

    /// A certificate by OpenSSL, with these common names and this extension.
    fn certificate(common_names: &[&str], names: Option<SubjectAlternativeName>) -> Vec<u8> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut subject = X509Name::builder().unwrap();
        subject.append_entry_by_text("O", "Example").unwrap();
        for name in common_names {
            subject.append_entry_by_text("CN", name).unwrap();
        }
        let subject = subject.build();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder.set_issuer_name(&subject).unwrap();
        builder.set_pubkey(&key).unwrap();
        let at = |seconds| Asn1Time::from_unix(seconds).unwrap();
        builder.set_not_before(&at(0)).unwrap();
        builder.set_not_after(&at(86_399)).unwrap();
        let constraints = BasicConstraints::new().critical().build().unwrap();
        builder.append_extension(constraints).unwrap();
        if let Some(names) = names {
            let names = names.build(&builder.x509v3_context(None, None)).unwrap();
            builder.append_extension(names).unwrap();
        }
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build().to_der().unwrap()
    }

    fn names(certificate: &[u8]) -> Option<Vec<String>> {
        let holder = Holder::of(certificate)?;
        assert_eq!(holder.not_after.to_string(), "1970-01-01T23:59:59Z");
        let names = holder.names.iter();
        Some(names.map(|name| name.as_str().to_owned()).collect())
    }

    #[test]
    fn names_are_read_from_what_openssl_makes() {
        let mut both = SubjectAlternativeName::new();
        both.dns("HV1.example").ip("192.0.2.1");
        both.uri("spiffe://example/HV1").email("a@example");
        assert_eq!(
            names(&certificate(&["other"], Some(both))).unwrap(),
            ["spiffe://example/HV1", "hv1.example"],
            "URIs first, and no common name beside them"
        );
        assert_eq!(names(&certificate(&["hv1"], None)).unwrap(), ["hv1"]);
        assert_eq!(names(&certificate(&["hv-ä"], None)).unwrap(), ["hv-ä"]);
        let mut address = SubjectAlternativeName::new();
        address.ip("192.0.2.1");
        assert_eq!(
            names(&certificate(&["hv1"], Some(address))).unwrap(),
            ["hv1"]
        );
        assert_eq!(names(&certificate(&[], None)).unwrap(), [""; 0]);
    }

    #[test]
    fn doubtful_names_are_none() {
        assert_eq!(names(&certificate(&["hv1", "hv2"], None)), None);
        assert_eq!(names(&certificate(&["hv1\n"], None)), None);
        let mut odd = SubjectAlternativeName::new();
        odd.uri("spiffe://example/\u{1}");
        assert_eq!(names(&certificate(&["hv1"], Some(odd))), None);
    }

    #[test]
    fn what_is_cut_or_changed_is_read_without_fear() {
        let mut both = SubjectAlternativeName::new();
        both.dns("hv1.example").uri("spiffe://example/hv1");
        let der = certificate(&["hv1"], Some(both));
        for cut in 0..der.len() {
            assert_eq!(Holder::of(&der[..cut]), None, "cut at {cut}");
        }
        let longer = [&der[..], &[0]].concat();
        assert_eq!(Holder::of(&longer), None);
        for bit in 0..der.len() * 8 {
            let mut changed = der.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // What is asserted is that it returns.
            let _ = Holder::of(&changed);
        }
    }
}
