//! From when to when an X.509 certificate is valid (RFC 5280, section 4.1).
//!
//! Only that is read. Whether a certificate is genuine is for rustls to say.

use crate::timestamp::Timestamp;

/// When a certificate begins and ends to be valid. Both are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

pub(super) const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const VERSION: u8 = 0xa0;

/// The validity in a DER-encoded certificate; `None` if it is not one.
pub(super) fn of(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (to_be_signed, _) = element(certificate, SEQUENCE)?;
    let rest = element(to_be_signed, VERSION).map_or(to_be_signed, |(_, rest)| rest);
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_signature, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, _) = element(rest, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some(Validity {
        not_before,
        not_after,
    })
}

/// The content of the element that `bytes` begin with, if it has this tag,
/// and what follows it (X.690, sections 8.1 and 10.1).
pub(super) fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = next(bytes)?;
    (found == tag).then_some((content, rest))
}

/// The element that `bytes` begin with, whatever its tag: that, the content,
/// and what follows it.
pub(super) fn next(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0, |sum, &digit| sum << 8 | usize::from(digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// A time in one of the two forms that certificates have.
fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (text, rest, century) = match element(bytes, UTC_TIME) {
        Some((text, rest)) => {
            // RFC 5280: 50 to 99 are in the 20th century.
            let century = if *text.first()? >= b'5' { "19" } else { "20" };
            (text, rest, century)
        }
        None => {
            let (text, rest) = element(bytes, GENERALIZED_TIME)?;
            (text, rest, "")
        }
    };
    let digits = format!(
        "{century}{}",
        std::str::from_utf8(text).ok()?.strip_suffix('Z')?
    );
    if digits.len() != 14 || !digits.is_ascii() {
        return None;
    }
    let part = |from: usize, to: usize| &digits[from..to];
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    Some((text.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::x509::{X509, X509Name};

    /// Certificates by OpenSSL, which writes the first kind of time until 2049.
    #[test]
    fn both_forms_of_time_are_read() {
        for (from, to) in [
            ("1970-01-02T03:04:05Z", "2049-12-31T23:59:59Z"),
            ("2026-02-28T12:00:00Z", "2050-01-01T00:00:00Z"),
            ("2051-03-04T05:06:07Z", "9999-12-31T23:59:59Z"),
        ] {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
            let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
            let mut name = X509Name::builder().unwrap();
            name.append_entry_by_text("CN", &"long ".repeat(10))
                .unwrap();
            let name = name.build();
            let asn1 = |text: &str| {
                let digits: String = text.chars().filter(char::is_ascii_digit).collect();
                Asn1Time::from_str_x509(&format!("{digits}Z")).unwrap()
            };
            let mut builder = X509::builder().unwrap();
            builder.set_version(2).unwrap();
            builder.set_subject_name(&name).unwrap();
            builder.set_issuer_name(&name).unwrap();
            builder.set_pubkey(&key).unwrap();
            builder.set_not_before(&asn1(from)).unwrap();
            builder.set_not_after(&asn1(to)).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
            let der = builder.build().to_der().unwrap();
            let validity = of(&der).unwrap();
            assert_eq!(validity.not_before.to_string(), from);
            assert_eq!(validity.not_after.to_string(), to);
            for cut in 0..der.len().min(200) {
                assert_eq!(of(&der[..cut]), None, "cut at {cut}");
            }
        }
    }
}
