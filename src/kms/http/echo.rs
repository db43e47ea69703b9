//! What a request keeps secret, so that an answer that quotes it is not shown.
//!
//! Services, and more so what stands before them, quote what they were sent
//! when they refuse it: a token, a password, the key that was to be wrapped.
//! What they say goes into messages, logs and records. So all that was secret
//! in a request is taken out of the answer before anybody reads it.

use reqwest::header::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

/// What is shorter is no secret, and would be found anywhere.
const LENGTH_MIN: usize = 8;

/// Fields that may be quoted. All others are taken for secret, so that a field
/// that somebody adds is.
const PLAIN: [&str; 24] = [
    // Names of what is asked for.
    "Action",
    "KeyId",
    "Version",
    "alg",
    "audience",
    "client_assertion_type",
    "client_id",
    "grant_type",
    "host",
    "key_version",
    "lifetime",
    "name",
    "requested_token_type",
    "role",
    "role_id",
    "scope",
    "subject_token_type",
    // What is wrapped already, and what that is bound to.
    "CiphertextBlob",
    "EncryptionContext",
    "additionalAuthenticatedData",
    "associated_data",
    "ciphertext",
    "enc",
    "EncryptionAlgorithm",
];

/// The secrets of one request.
pub(super) struct Sent(Vec<Zeroizing<Vec<u8>>>);

impl Sent {
    /// Those in headers that are credentials, and in a body in JSON or of a form.
    pub(super) fn of(headers: &HeaderMap, body: Option<&[u8]>) -> Self {
        let mut sent = Sent(Vec::new());
        let credentials = headers.values().filter(|value| value.is_sensitive());
        for word in credentials.flat_map(|value| value.as_bytes().split(|byte| *byte == b' ')) {
            sent.add(word);
        }
        match body {
            Some(body) if body.first() == Some(&b'{') => sent.add_json(body),
            Some(body) => sent.add_form(body),
            None => {}
        }
        sent
    }

    fn add(&mut self, secret: &[u8]) {
        if secret.len() < LENGTH_MIN {
            return;
        }
        // As some write it in JSON.
        if secret.contains(&b'/') {
            let mut escaped = Zeroizing::new(Vec::with_capacity(2 * secret.len()));
            for &byte in secret {
                if byte == b'/' {
                    escaped.push(b'\\');
                }
                escaped.push(byte);
            }
            self.0.push(escaped);
        }
        self.0.push(Zeroizing::new(secret.to_vec()));
    }

    /// The text of each field that is not a plain one, at any depth.
    fn add_json(&mut self, body: &[u8]) {
        let (mut rest, mut name) = (body, &b""[..]);
        while let Some(start) = rest.iter().position(|byte| *byte == b'"') {
            rest = &rest[start + 1..];
            let Some(length) = text_length(rest) else {
                return;
            };
            let (text, after) = rest.split_at(length);
            rest = &after[1..];
            if rest.first() == Some(&b':') {
                name = text;
            } else if !is_plain(name) {
                self.add(text);
            }
        }
    }

    fn add_form(&mut self, body: &[u8]) {
        for field in body.split(|byte| *byte == b'&') {
            let Some(equals) = field.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, value) = (&field[..equals], &field[equals + 1..]);
            if is_plain(name) {
                continue;
            }
            self.add(value);
            let decoded = decoded(value);
            if *decoded != value {
                self.add(&decoded);
            }
        }
    }

    /// Puts asterisks in place of each secret in `bytes`.
    pub(super) fn hide(&self, bytes: &mut [u8]) {
        for secret in &self.0 {
            let mut from = 0;
            while let Some(at) = find(&bytes[from..], secret) {
                let end = from + at + secret.len();
                bytes[from + at..end].fill(b'*');
                from = end;
            }
        }
    }

    /// Does that in the values of headers.
    pub(super) fn hide_in_headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            let quoted = self
                .0
                .iter()
                .any(|one| find(value.as_bytes(), one).is_some());
            if quoted {
                let mut bytes = Zeroizing::new(value.as_bytes().to_vec());
                self.hide(&mut bytes);
                // It was one before, and asterisks may be in any.
                *value = HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static("*"));
            }
        }
    }
}

fn is_plain(name: &[u8]) -> bool {
    PLAIN.iter().any(|plain| plain.as_bytes() == name)
}

/// How long a text in JSON is that ends with a quotation mark.
fn text_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })
}

fn decoded(value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len()));
    let mut rest = value;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

fn find(bytes: &[u8], secret: &[u8]) -> Option<usize> {
    let &first = secret.first()?;
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
        if bytes[from + at..].starts_with(secret) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(sent: &Sent, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        sent.hide(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn credentials_and_fields_are_hidden_and_names_are_not() {
        let mut headers = HeaderMap::new();
        let mut token = HeaderValue::from_static("Bearer token-of-this-host");
        token.set_sensitive(true);
        headers.insert("authorization", token);
        headers.insert("x-plain", HeaderValue::from_static("plain-header"));
        let body = br#"{"KeyId":"the-key-id","plain\"text":"AB/DEFGH==","n":[{"x":"inner-secret"}],"e":"","s":"short"}"#;
        let sent = Sent::of(&headers, Some(body));
        assert_eq!(
            hidden(
                &sent,
                r"Bearer token-of-this-host plain-header the-key-id AB/DEFGH== AB\/DEFGH== inner-secret short"
            ),
            format!(
                "Bearer {} plain-header the-key-id {} {} {} short",
                "*".repeat(18),
                "*".repeat(10),
                "*".repeat(11),
                "*".repeat(12)
            )
        );
        let mut told = HeaderMap::new();
        told.insert(
            "x-request-id",
            HeaderValue::from_static("1-token-of-this-host-2"),
        );
        told.insert("date", HeaderValue::from_static("today"));
        sent.hide_in_headers(&mut told);
        assert_eq!(told["x-request-id"], "1-******************-2");
        assert_eq!(told["date"], "today");
    }

    #[test]
    fn what_is_in_a_form_is_hidden_as_it_is_and_as_it_is_meant() {
        let body = b"client_id=the-client-id&client_secret=a%2Fb%20secret%&other";
        let sent = Sent::of(&HeaderMap::new(), Some(body));
        assert_eq!(
            hidden(&sent, "the-client-id a/b secret% a%2Fb%20secret% other"),
            format!("the-client-id {} {} other", "*".repeat(11), "*".repeat(15))
        );
    }

    #[test]
    fn what_is_no_json_hides_nothing_and_does_no_harm() {
        for body in [
            &b"{"[..],
            b"{\"",
            b"{\"a\":\"b\\",
            b"",
            b"%",
            b"=&%=%4",
            b"{\"a\":\"",
        ] {
            let sent = Sent::of(&HeaderMap::new(), Some(body));
            assert_eq!(hidden(&sent, "{\"a\":\"b\\"), "{\"a\":\"b\\");
        }
    }
}
