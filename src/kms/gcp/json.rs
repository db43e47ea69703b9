//! Secrets in JSON, taken out of it without copies that are not wiped.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// A string that is wiped.
pub(super) struct Text(pub(super) Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Text(Zeroizing::new(text)))
    }
}

/// The string that the object in `json` has under `name`.
pub(super) fn field(json: &[u8], name: &str) -> Option<Text> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let found = Field(name).deserialize(&mut from).ok()?;
    from.end().ok()?;
    found
}

struct Field<'f>(&'f str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<Text>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// What a private key in PEM is encoded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Pkcs8,
    Pkcs1,
}

/// The private key in PEM that stands as a string in `json`, in DER.
pub(super) fn private_key(json: &[u8]) -> Option<(Encoding, Secret)> {
    let text = unescaped(json);
    let find = |begin: &[u8], end: &[u8]| {
        let at = text.windows(begin.len()).position(|part| part == begin)?;
        let rest = &text[at + begin.len()..];
        let length = rest.windows(end.len()).position(|part| part == end)?;
        Some(&rest[..length])
    };
    let pkcs8 = find(b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----");
    let (encoding, body) = match pkcs8 {
        Some(body) => (Encoding::Pkcs8, body),
        None => (
            Encoding::Pkcs1,
            find(
                b"-----BEGIN RSA PRIVATE KEY-----",
                b"-----END RSA PRIVATE KEY-----",
            )?,
        ),
    };
    // Line ends stand as two characters each.
    let mut base64 = Secret::zeroed(body.len()).ok()?;
    let mut length = 0;
    let mut rest = body;
    while let Some((&first, after)) = rest.split_first() {
        rest = match (first, after.first()) {
            (b'\\', Some(b'n' | b'r' | b't')) => &after[1..],
            (b'\\', _) => return None,
            (b' ', _) => after,
            (character, _) => {
                base64[length] = character;
                length += 1;
                after
            }
        };
    }
    let mut der = Secret::zeroed(base64::decoded_len_estimate(length)).ok()?;
    let decoded = BASE64.decode_slice(&base64[..length], &mut der).ok()?;
    Some((encoding, Secret::copy_of(&der[..decoded]).ok()?))
}

/// Characters of base64 that may stand escaped in JSON, and do in what Google
/// writes for browsers.
const ESCAPES: [(&[u8], u8); 4] = [
    (br"\u003d", b'='),
    (br"\u002b", b'+'),
    (br"\u002f", b'/'),
    (br"\/", b'/'),
];

/// The same JSON, in which no character of base64 is escaped: so a string can
/// be borrowed from it. A parser would unescape in memory of its own.
pub(super) fn unescaped(json: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(json.len()));
    let mut rest = json;
    while let Some((&first, after)) = rest.split_first() {
        let same = |escape: &[u8]| {
            let begin = rest.get(..escape.len());
            begin.is_some_and(|begin| begin.eq_ignore_ascii_case(escape))
        };
        if first != b'\\' {
            plain.push(first);
            rest = after;
        } else if let Some((escape, character)) = ESCAPES.iter().find(|(e, _)| same(e)) {
            plain.push(*character);
            rest = &rest[escape.len()..];
        } else {
            // Two at a time: the second one may be a backslash too.
            let end = rest.len().min(2);
            plain.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unescaped_means_the_same() {
        for text in [
            r#"{"a":"x\u003d\u003D\/\u002F\u002b","b":"\\u003d\\\/\n\"\\"}"#,
            r#"{"a":"\\\\\u003d\u0041\ud83d\ude00"}"#,
            r#"["plain",1,{"c":null}]"#,
        ] {
            let plain = unescaped(text.as_bytes());
            let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
            assert_eq!(value(&plain), value(text.as_bytes()), "{text}");
        }
        assert_eq!(&**unescaped(br#""a\u003d""#), br#""a=""#);
        assert!(unescaped(b"").is_empty());
        for torn in [&b"\\"[..], b"\\u", b"\\u003", b"\\\\\\"] {
            assert_eq!(&**unescaped(torn), torn);
        }
    }

    #[test]
    fn a_field_is_found_whatever_is_beside_it() {
        let json = br#"{"a":{"token":"x"},"token":"right","b":[1,{"token":2}]}"#;
        assert_eq!(field(json, "token").unwrap().0.as_str(), "right");
        for (json, name) in [
            (&b"{\"a\":1}"[..], "a"),
            (b"{\"a\":\"x\"}", "b"),
            (b"{\"a\":\"x\"} more", "a"),
            (b"[\"a\"]", "a"),
            (b"", "a"),
        ] {
            assert!(field(json, name).is_none());
        }
    }

    #[test]
    fn a_private_key_is_taken_out_of_its_string() {
        let der: Vec<u8> = (0..200u8).collect();
        let base64 = BASE64.encode(&der);
        let lines = base64.as_bytes().chunks(64);
        let lines: Vec<&str> = lines
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        for (kind, encoding) in [("", Encoding::Pkcs8), ("RSA ", Encoding::Pkcs1)] {
            let pem = format!(
                "-----BEGIN {kind}PRIVATE KEY-----\n{}\n-----END {kind}PRIVATE KEY-----\n",
                lines.join("\n")
            );
            let json = serde_json::json!({"before": 1, "private_key": pem}).to_string();
            let escaped = json.replace('=', r"\u003d").replace('/', r"\/");
            for json in [json, escaped] {
                let (found, key) = private_key(json.as_bytes()).unwrap();
                assert_eq!((found, &key[..]), (encoding, &der[..]));
            }
        }
        for bad in [
            "{}",
            "-----BEGIN PRIVATE KEY-----",
            r"-----BEGIN PRIVATE KEY-----A\A-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----AAA-----END PRIVATE KEY-----",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----AAAA-----END ENCRYPTED PRIVATE KEY-----",
        ] {
            assert!(private_key(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
