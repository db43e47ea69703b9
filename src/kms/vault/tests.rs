//! Names, envelopes and answers. What needs a service is in `tests/kms_*`.

use super::answer::{Question, refusal};
use super::settings::version;
use super::transit::Ciphertext;
use super::*;
use crate::kms::http::Reply;

#[test]
fn only_plain_names_get_into_a_path() {
    for good in ["k", "disk-keys", "a.b_c", "9"] {
        assert_eq!(good.parse::<KeyName>().unwrap().as_str(), good);
    }
    let long = "x".repeat(129);
    for bad in [
        "", ".", "..", "a/b", "a?b", "a b", "-a", "a.", "é", "a%2f", &long,
    ] {
        assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
    }
    let path: MountPath = "/team/transit/".parse().unwrap();
    assert_eq!(path.to_string(), "team/transit");
    for bad in ["", "/", "a//b", "a/../b", "../sys"] {
        assert!(bad.parse::<MountPath>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_version_has_one_spelling() {
    assert_eq!(version("12").unwrap(), 12);
    for bad in ["", "0", "01", "+1", "-1", "v1", "4294967296"] {
        assert!(version(bad).is_err(), "{bad:?}");
    }
}

fn wrapped(text: &str) -> Wrapped {
    Wrapped {
        key_id: "k".into(),
        version: "3".into(),
        alg: "aes256-gcm96".into(),
        bytes: [&[1], text.as_bytes()].concat(),
    }
}

#[test]
fn an_envelope_has_one_spelling() {
    let good = wrapped("vault:v3:AAE=");
    let (name, ciphertext) = Ciphertext::of(&good).unwrap();
    assert_eq!((name.as_str(), ciphertext.version()), ("k", 3));
    assert_eq!(ciphertext.to_bytes(), good.bytes);
    // `AAF=` decodes to the same bytes with a lax decoder.
    for bad in [
        "vault:v3:AAF=",
        "vault:v3:AAE",
        "vault:v3:",
        "vault:v03:AAE=",
        "vault:3:AAE=",
        "Vault:v3:AAE=",
        "vault:v3:AAE=\n",
        "vault:v4:AAE=",
        "",
    ] {
        let class = Ciphertext::of(&wrapped(bad)).unwrap_err().class();
        assert_eq!(class, Class::BadKey, "{bad:?}");
    }
    let newer = Wrapped {
        bytes: b"\x02vault:v3:AAE=".to_vec(),
        ..good.clone()
    };
    assert_eq!(Ciphertext::of(&newer).unwrap_err().class(), Class::Protocol);
    let elsewhere = Wrapped {
        key_id: "../../sys/seal".into(),
        ..good
    };
    assert_eq!(
        Ciphertext::of(&elsewhere).unwrap_err().class(),
        Class::BadKey
    );
}

/// What no server here answers, because it takes an enterprise cluster or
/// something between us and the service.
#[test]
fn answers_of_others_are_told_apart() {
    let class = |status: u16, body: &str, location: Option<&str>| {
        let question = Question {
            endpoint: &"https://x".parse().unwrap(),
            path: "transit/keys/k".into(),
        };
        let reply = Reply {
            status,
            retry_after: None,
            location: location.map(str::to_owned),
            date: None,
            headers: reqwest::header::HeaderMap::new(),
            body: zeroize::Zeroizing::new(body.into()),
        };
        let error = refusal(&question, &reply);
        (error.class(), error.to_string())
    };
    let (standby, told) = class(307, "", Some("https://active:8200/v1/transit/keys/k?x"));
    assert_eq!(standby, Class::Unreachable);
    assert!(told.contains("\"active:8200\""), "{told}");
    for status in [301, 412, 472, 473, 500, 502, 503, 504] {
        assert_eq!(
            class(status, "<html>", None).0,
            Class::Unreachable,
            "{status}"
        );
    }
    let (sealed, _) = class(503, r#"{"errors":["Vault is sealed"]}"#, None);
    assert_eq!(sealed, Class::Sealed);
    for status in [400, 401, 403, 404, 405, 418] {
        for body in ["{}", "<html>", "[]", r#"{"message":"Forbidden"}"#] {
            let (found, told) = class(status, body, None);
            assert_eq!(found, Class::Protocol, "{status} {body}: {told}");
        }
    }
    let own = r#"{"errors":["permission denied"]}"#;
    assert_eq!(class(403, own, None).0, Class::Denied(Denied::Forbidden));
    assert_eq!(class(404, r#"{"errors":[]}"#, None).0, Class::NotFound);
}
