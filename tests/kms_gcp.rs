//! What Cloud KMS can do to the `gcp-kms` provider, against a faithful fake of
//! it: rights, states, checksums, errors one by one, endpoints. Tokens are in
//! `gcp_identity`, and what all providers do is in `kms_conformance`.
#![cfg(feature = "gcp-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/gcp/mod.rs"]
#[allow(dead_code)]
mod gcp;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gcp::kms::full_name;
use gcp::{Answer, Asked, Gcp};
use sealblk::error::Explain;
use sealblk::kms::gcp::GcpProvider;
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, call};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use uuid::Uuid;

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);
const DISABLED: Class = Class::Denied(Denied::Disabled);
const DELETED: Class = Class::Denied(Denied::Deleted);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn provider(gcp: &Gcp) -> GcpProvider {
    GcpProvider::new(gcp.settings(gcp.metadata()))
}

fn key() -> KeyRef {
    Gcp::key("disks")
}

fn pinned(version: &str) -> KeyRef {
    KeyRef {
        version: Some(version.into()),
        ..key()
    }
}

fn try_with(provider: &GcpProvider) -> Result<(), Error> {
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"volume"))?;
    assert_eq!(wait(provider.unwrap(&wrapped, b"volume"))?, payload);
    Ok(())
}

/// Panics unless the error has this class, and says all of `words`.
#[track_caller]
fn told(error: Error, class: Class, words: &[&str]) {
    let said = format!("{error} next: {}", error.help().unwrap());
    assert_eq!(error.class(), class, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

fn deny(gcp: &Gcp, permissions: &[&str]) {
    let full = permissions.iter().map(|one| format!("cloudkms.{one}"));
    gcp.cloud().keys.denied = full.collect();
}

#[test]
fn the_documented_rights_are_enough_and_each_is_needed_for_what_it_is_for() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    // What looking at keys is for: nothing that encrypting does not tell.
    deny(&gcp, &["cryptoKeys.get", "cryptoKeyVersions.get"]);
    try_with(&provider).unwrap();
    let current = wait(provider.current_version(&key())).unwrap();
    assert_eq!((current.id.as_str(), current.enabled), ("1", true));

    deny(&gcp, &["cryptoKeyVersions.useToEncrypt"]);
    let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
    told(
        error,
        FORBIDDEN,
        &["encrypt with", "useToEncrypt", "or it may not exist"],
    );
    assert_eq!(wait(provider.unwrap(&wrapped, b"v")).unwrap(), payload);
    assert!(wait(provider.current_version(&key())).unwrap().enabled);

    deny(&gcp, &["cryptoKeyVersions.useToDecrypt"]);
    let error = wait(provider.unwrap(&wrapped, b"v")).unwrap_err();
    told(
        error,
        FORBIDDEN,
        &["decrypt with", "cloudkms.cryptoKeyVersions.useToDecrypt"],
    );
    assert!(wait(provider.wrap(&key(), &payload, b"v")).is_ok());

    // A host that only opens volumes: what it misses is the right to look.
    deny(&gcp, &["cryptoKeys.get", "cryptoKeyVersions.useToEncrypt"]);
    let error = wait(provider.current_version(&key())).unwrap_err();
    told(error, FORBIDDEN, &["look at", "cloudkms.cryptoKeys.get"]);
}

#[test]
fn without_the_right_to_look_versions_are_told_by_what_they_encrypt() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    deny(&gcp, &["cryptoKeys.get", "cryptoKeyVersions.get"]);
    let payload = Secret::random(64).unwrap();
    let old = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    gcp.cloud().keys.rotate("disks");
    let new = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    assert_eq!((old.version.as_str(), new.version.as_str()), ("1", "2"));
    let of_first = wait(provider.wrap(&pinned("1"), &payload, b"v")).unwrap();
    assert_eq!(of_first.version, "1");
    for wrapped in [old, new, of_first] {
        assert_eq!(wait(provider.unwrap(&wrapped, b"v")).unwrap(), payload);
    }
    gcp.cloud().keys.set_state("disks", "2", "DISABLED");
    let current = wait(provider.current_version(&key())).unwrap();
    assert_eq!((current.id.as_str(), current.enabled), ("2", false));
    assert!(
        wait(provider.current_version(&pinned("1")))
            .unwrap()
            .enabled
    );
    let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
    told(error, DISABLED, &["version 2 of", "versions enable 2"]);
    let error = wait(provider.current_version(&pinned("9"))).unwrap_err();
    told(error, Class::NotFound, &["9 not found"]);
}

#[test]
fn each_state_is_told_with_the_way_out_of_it() {
    const OPTIONS: &str = "--key=disks --keyring=hosts --location=europe-west3 --project=prod-1";
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    for (state, class, words) in [
        (
            "DISABLED",
            DISABLED,
            &[
                "version 1 of",
                "is disabled",
                "gcloud kms keys versions enable 1",
                OPTIONS,
            ][..],
        ),
        (
            "DESTROY_SCHEDULED",
            DELETED,
            &[
                "scheduled for destruction at 2031-05-17",
                "versions restore 1",
                OPTIONS,
            ],
        ),
        (
            "PENDING_GENERATION",
            Class::Unreachable,
            &["not ready", "wait"],
        ),
        ("PENDING_IMPORT", Class::Unreachable, &["not ready"]),
        ("IMPORT_FAILED", DISABLED, &["never made", "--primary"]),
        ("GENERATION_FAILED", DISABLED, &["never made", "--primary"]),
        (
            "PENDING_EXTERNAL_DESTRUCTION",
            DELETED,
            &["external key manager"],
        ),
        (
            "EXTERNAL_DESTRUCTION_FAILED",
            DELETED,
            &["external key manager"],
        ),
    ] {
        gcp.cloud().keys.set_state("disks", "1", state);
        for hidden in [&[][..], &["cryptoKeys.get", "cryptoKeyVersions.get"]] {
            deny(&gcp, hidden);
            // The time of its destruction is only told to who may look.
            let words = match words.first() {
                Some(_) if !hidden.is_empty() => &words[1..],
                _ => words,
            };
            let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
            told(error, class, words);
            let error = wait(provider.unwrap(&wrapped, b"v")).unwrap_err();
            told(error, class, words);
            let current = wait(provider.current_version(&key())).unwrap();
            assert!(!current.enabled, "{state}");
            let ends = state == "DESTROY_SCHEDULED" && hidden.is_empty();
            assert_eq!(current.expires.is_some(), ends, "{state}");
        }
    }
    deny(&gcp, &[]);
    gcp.cloud().keys.set_state("disks", "1", "SOMETHING_NEW");
    let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
    told(error, Class::Protocol, &["SOMETHING_NEW", "upgrade"]);
    // Not what is known to forbid it: the service may say otherwise in a moment.
    let error = wait(provider.unwrap(&wrapped, b"v")).unwrap_err();
    told(
        error,
        Class::Unreachable,
        &["cannot be used now", "SOMETHING_NEW"],
    );
    gcp.cloud().keys.set_state("disks", "1", "DESTROYED");
    let error = wait(provider.unwrap(&wrapped, b"v")).unwrap_err();
    told(error, DELETED, &["destroyed at 2031-05-17", "break-glass"]);
}

#[test]
fn a_key_for_something_else_is_not_used() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    for (purpose, algorithm) in [
        ("ASYMMETRIC_DECRYPT", "RSA_DECRYPT_OAEP_3072_SHA256"),
        ("RAW_ENCRYPT_DECRYPT", "AES_256_CBC"),
        ("MAC", "HMAC_SHA256"),
    ] {
        {
            let mut cloud = gcp.cloud();
            let key = cloud.keys.key("disks");
            (key.purpose, key.algorithm) = (purpose, algorithm);
        }
        let error = wait(provider.wrap(&key(), &payload, b"")).unwrap_err();
        told(error, Class::Protocol, &[purpose, "--purpose=encryption"]);
        let error = wait(provider.wrap(&pinned("1"), &payload, b"")).unwrap_err();
        told(error, Class::Protocol, &[algorithm]);
        deny(&gcp, &["cryptoKeys.get", "cryptoKeyVersions.get"]);
        let error = wait(provider.wrap(&key(), &payload, b"")).unwrap_err();
        told(error, Class::Protocol, &[purpose, "ENCRYPT_DECRYPT"]);
        deny(&gcp, &[]);
    }
    gcp.cloud().keys.make("disks");
    gcp.cloud().keys.key("disks").primary = 0;
    let error = wait(provider.wrap(&key(), &payload, b"")).unwrap_err();
    told(
        error,
        Class::NotFound,
        &["no primary version", "create --primary"],
    );
}

#[test]
fn where_the_key_is_held_makes_no_difference_but_in_its_algorithm() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    for (protection, algorithm) in [
        ("SOFTWARE", "GOOGLE_SYMMETRIC_ENCRYPTION"),
        ("HSM", "GOOGLE_SYMMETRIC_ENCRYPTION"),
        ("EXTERNAL", "EXTERNAL_SYMMETRIC_ENCRYPTION"),
        ("EXTERNAL_VPC", "EXTERNAL_SYMMETRIC_ENCRYPTION"),
    ] {
        {
            let mut cloud = gcp.cloud();
            let key = cloud.keys.key("disks");
            (key.protection, key.algorithm) = (protection, algorithm);
        }
        let wrapped = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
        assert_eq!(wrapped.alg, algorithm);
        assert_eq!(wait(provider.unwrap(&wrapped, b"v")).unwrap(), payload);
    }
    // More than a hardware module takes is not even sent.
    let before = gcp.count(":encrypt");
    let error = wait(provider.wrap(&key(), &payload, &[0; 8 << 10])).unwrap_err();
    assert_eq!(error.class(), Class::Protocol);
    assert_eq!(gcp.count(":encrypt"), before);
}

#[test]
fn what_was_damaged_on_the_way_is_never_used() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    let changed = |change: fn(&Asked, &mut Value)| {
        gcp.alter(change);
        let wrap = wait(provider.wrap(&key(), &payload, b"v")).map(drop);
        let unwrap = wait(provider.unwrap(&wrapped, b"v")).map(drop);
        gcp.leave_alone();
        (wrap, unwrap)
    };
    let unset = |name: &'static str| {
        gcp.alter(move |_, answer| {
            if let Some(fields) = answer.as_object_mut() {
                fields.remove(name);
            }
        });
        let wrap = wait(provider.wrap(&key(), &payload, b"v"));
        let unwrap = wait(provider.unwrap(&wrapped, b"v"));
        gcp.leave_alone();
        (wrap.map(drop), unwrap.map(drop))
    };
    for name in [
        "verifiedPlaintextCrc32c",
        "verifiedAdditionalAuthenticatedDataCrc32c",
    ] {
        let (wrap, unwrap) = unset(name);
        told(wrap.unwrap_err(), Class::Unreachable, &["did not confirm"]);
        assert!(unwrap.is_ok());
    }
    let (wrap, unwrap) = unset("ciphertextCrc32c");
    told(wrap.unwrap_err(), Class::Unreachable, &["checksum"]);
    assert!(unwrap.is_ok());
    let (wrap, unwrap) = unset("plaintextCrc32c");
    told(unwrap.unwrap_err(), Class::Unreachable, &["checksum"]);
    assert!(wrap.is_ok());
    let (wrap, unwrap) = changed(|asked, answer| match asked.path.rsplit(':').next() {
        Some("encrypt") => answer["ciphertext"] = BASE64.encode([7; 100]).into(),
        Some("decrypt") => answer["plaintext"] = BASE64.encode([7; 64]).into(),
        _ => {}
    });
    told(wrap.unwrap_err(), Class::Unreachable, &["checksum"]);
    told(unwrap.unwrap_err(), Class::Unreachable, &["checksum"]);

    // Another key or version than was meant is not an accident.
    for name in [
        format!("{}/cryptoKeyVersions/2", full_name("disks")),
        format!("{}/cryptoKeyVersions/1", full_name("other")),
    ] {
        gcp.alter(move |asked, answer| {
            if asked.path.ends_with(":encrypt") {
                answer["name"] = name.clone().into();
            }
        });
        let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
        told(error, Class::Protocol, &["answers for"]);
    }
    gcp.leave_alone();
    // What was damaged on the way there: the service tells.
    gcp.intercept(|asked| {
        let mut asked = asked.clone();
        let mut body = asked.json()?;
        body.get("plaintext")?;
        body["plaintext"] = BASE64.encode([7; 64]).into();
        asked.body = body.to_string().into_bytes();
        let message =
            "The checksum in field plaintext_crc32c did not match the data in field plaintext.";
        let error = json!({"code": 400, "status": "INVALID_ARGUMENT", "message": message});
        Some(Answer::Json(400, json!({ "error": error })))
    });
    let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
    told(error, Class::Unreachable, &["changed on the way"]);
    gcp.leave_alone();
    // Both spellings of the same JSON are read.
    gcp.cloud().escaping = true;
    try_with(&provider).unwrap();
    assert_eq!(wait(provider.unwrap(&wrapped, b"v")).unwrap(), payload);
}

/// One error body, and what has to be made of it.
struct Case {
    http: u16,
    status: &'static str,
    message: &'static str,
    details: Value,
    class: Class,
    words: &'static [&'static str],
}

fn reason(reason: &str) -> Value {
    json!([{
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "cloudkms.googleapis.com", "consumer": "projects/4711"},
    }])
}

#[test]
fn errors_are_told_apart_by_what_stands_in_them() {
    let cases = [
        Case {
            http: 403,
            status: "PERMISSION_DENIED",
            message: "Cloud Key Management Service (KMS) API has not been used in project 4711 before or it is disabled. Enable it by visiting https://console.developers.google.com/apis/api/cloudkms.googleapis.com/overview?project=4711 then retry.",
            details: reason("SERVICE_DISABLED"),
            class: FORBIDDEN,
            words: &[
                "API is not enabled in project 4711",
                "gcloud services enable cloudkms.googleapis.com --project=4711",
            ],
        },
        Case {
            http: 400,
            status: "FAILED_PRECONDITION",
            message: "Google Cloud KMS API has not been used in this project before, or it is disabled. Enable it by visiting …",
            details: json!([]),
            class: FORBIDDEN,
            words: &["API is not enabled in project prod-1"],
        },
        Case {
            http: 403,
            status: "PERMISSION_DENIED",
            message: "This API method requires billing to be enabled.",
            details: reason("BILLING_DISABLED"),
            class: FORBIDDEN,
            words: &["billing is disabled", "gcloud billing projects link prod-1"],
        },
        Case {
            http: 403,
            status: "PERMISSION_DENIED",
            message: "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: VQQnKfXtZ16N",
            details: json!([{
                "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                "violations": [{"type": "VPC_SERVICE_CONTROLS", "description": "VQQnKfXtZ16N"}],
            }]),
            class: FORBIDDEN,
            words: &["service perimeter", "ingress rule", "VQQnKfXtZ16N"],
        },
        Case {
            http: 403,
            status: "PERMISSION_DENIED",
            message: "Request had insufficient authentication scopes.",
            details: reason("ACCESS_TOKEN_SCOPE_INSUFFICIENT"),
            class: FORBIDDEN,
            words: &["not for Cloud KMS", "--scopes=cloud-platform"],
        },
        Case {
            http: 403,
            status: "PERMISSION_DENIED",
            message: "Permission 'cloudkms.x' denied on resource 'y' (or it may not exist).",
            details: json!([]),
            class: FORBIDDEN,
            words: &["given cloudkms.x"],
        },
        Case {
            http: 404,
            status: "NOT_FOUND",
            message: "CryptoKey projects/… not found.",
            details: json!([]),
            class: Class::NotFound,
            words: &["gcloud kms keys list"],
        },
        Case {
            http: 429,
            status: "RESOURCE_EXHAUSTED",
            message: "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic requests per minute' of service 'cloudkms.googleapis.com'.",
            details: json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "31.5s"}]),
            class: Class::Throttled { retry_after: None },
            words: &["throttling", "quota"],
        },
        Case {
            http: 503,
            status: "UNAVAILABLE",
            message: "The service is currently unavailable.",
            details: json!([]),
            class: Class::Unreachable,
            words: &["cannot answer now (UNAVAILABLE)"],
        },
        Case {
            http: 504,
            status: "DEADLINE_EXCEEDED",
            message: "Deadline exceeded",
            details: json!([]),
            class: Class::Unreachable,
            words: &["DEADLINE_EXCEEDED"],
        },
        Case {
            http: 500,
            status: "INTERNAL",
            message: "Internal error encountered.",
            details: json!([]),
            class: Class::Unreachable,
            words: &["INTERNAL"],
        },
        Case {
            http: 400,
            status: "INVALID_ARGUMENT",
            message: "Decryption failed: verify that 'name' refers to the correct CryptoKey.",
            details: json!([]),
            class: Class::BadKey,
            words: &["tampered", "backup"],
        },
        Case {
            http: 400,
            status: "INVALID_ARGUMENT",
            message: "Request contains an invalid argument.",
            details: json!([]),
            class: Class::Protocol,
            words: &["invalid argument"],
        },
        Case {
            http: 501,
            status: "UNIMPLEMENTED",
            message: "Operation is not implemented.",
            details: json!([]),
            class: Class::Unreachable,
            words: &["status 501"],
        },
    ];
    let gcp = Gcp::start();
    let healthy = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(healthy.wrap(&key(), &payload, b"v")).unwrap();
    for case in cases {
        let mut error = json!({"code": case.http, "status": case.status, "message": case.message});
        error["details"] = case.details;
        let answer = Answer::Json(case.http, json!({ "error": error }));
        gcp.intercept(move |asked| {
            let kms = asked.path.starts_with("/v1/projects/");
            kms.then(|| answer.clone())
        });
        // A new one, which has not been told to wait.
        let error = wait(provider(&gcp).unwrap(&wrapped, b"v")).unwrap_err();
        assert!(error.words().is_some(), "{error}");
        let class = match error.class() {
            Class::Throttled { retry_after } => {
                assert_eq!(retry_after, Some(Duration::from_millis(31_500)));
                Class::Throttled { retry_after: None }
            }
            class => class,
        };
        let said = format!("{error} next: {}", error.help().unwrap());
        assert_eq!(class, case.class, "{said}");
        for word in case.words {
            assert!(said.contains(word), "{word:?} is not in {said}");
        }
    }
    // What is between us and the service speaks for itself alone.
    for (status, class) in [
        (404, Class::Protocol),
        (403, Class::Protocol),
        (302, Class::Protocol),
        (502, Class::Unreachable),
        (429, Class::Throttled { retry_after: None }),
    ] {
        gcp.intercept(move |asked| {
            let kms = asked.path.starts_with("/v1/projects/");
            kms.then(|| Answer::page(status))
        });
        let error = wait(provider(&gcp).unwrap(&wrapped, b"v")).unwrap_err();
        assert_eq!(error.class(), class, "{status}: {error}");
        assert_eq!(error.words(), None, "a page says nothing");
    }
}

#[test]
fn who_throttles_is_left_alone_for_as_long_as_it_said() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key(), &payload, b"v")).unwrap();
    gcp.intercept(|asked| {
        let kms = asked.path.ends_with(":decrypt");
        let details = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3600s"}]);
        let error = json!({"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "no", "details": details});
        kms.then(|| Answer::Json(429, json!({ "error": error })))
    });
    for _ in 0..3 {
        let error = wait(provider.unwrap(&wrapped, b"v")).unwrap_err();
        assert!(matches!(error.class(), Class::Throttled { .. }), "{error}");
    }
    assert_eq!(gcp.count(":decrypt"), 1);
}

#[test]
fn a_service_that_quotes_the_request_is_not_quoted() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    gcp.intercept(|asked| {
        let plaintext = asked.json()?.get("plaintext")?.clone();
        let message = format!("Invalid value at 'plaintext' (TYPE_BYTES), {plaintext}");
        let error = json!({"code": 400, "status": "INVALID_ARGUMENT", "message": message});
        Some(Answer::Json(400, json!({ "error": error })))
    });
    let payload = Secret::random(64).unwrap();
    let error = wait(provider.wrap(&key(), &payload, b"v")).unwrap_err();
    let encoded = BASE64.encode(&payload[..]);
    let said = format!("{error} {error:?}");
    assert!(!said.contains(&encoded[..12]), "{said}");
    told(
        error,
        Class::Protocol,
        &["refuses to encrypt", "Invalid value at 'plaintext'"],
    );
}

#[test]
fn the_record_of_a_call_is_found_in_the_audit_log_of_the_service() {
    let gcp = Gcp::start();
    let provider = provider(&gcp);
    let id = Uuid::from_u128(0x4711);
    let (result, notes) = wait(call::observed(id, provider.current_version(&key())));
    result.unwrap();
    assert_eq!(notes.attempts.len(), 2, "a token, and the key");
    let cloud = gcp.cloud();
    let asked = cloud.asked.iter();
    let reasons: Vec<&str> = asked
        .map(|asked| asked.header("x-goog-request-reason"))
        .collect();
    assert!(reasons.contains(&&*format!("sealblk {id}")), "{reasons:?}");
}

#[test]
fn the_next_endpoint_is_asked_when_one_does_not_help() {
    let gcp = Gcp::start();
    let second = gcp.another();
    let third = gcp.another();
    let mut settings = gcp.settings(gcp.file(gcp.account_file()));
    settings.endpoints = [gcp.url(), second.url(), third.url()]
        .map(|url| url.parse().unwrap())
        .into();
    settings.timing.timeout = Duration::from_secs(2);
    settings.timing.deadline = Duration::from_secs(4);
    let new = || GcpProvider::new(settings.clone());
    let keeps = new();
    try_with(&keeps).unwrap();
    assert_eq!(gcp.count("/token"), 1);
    // By the port that the client says it meant.
    let at = |url: String| {
        let host = url.strip_prefix("http://").unwrap().to_owned();
        move |asked: &Asked| asked.header("host") == host && asked.path.starts_with("/v1/projects")
    };
    for answer in [
        Answer::page(502),
        Answer::Nothing,
        Answer::Silence,
        Answer::Json(
            404,
            json!({"error": {"code": 404, "status": "NOT_FOUND", "message": "not yet"}}),
        ),
        Answer::Json(
            429,
            json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "no"}}),
        ),
    ] {
        let first = at(gcp.url());
        let copy = answer.clone();
        gcp.intercept(move |asked| first(asked).then(|| copy.clone()));
        try_with(&new()).unwrap_or_else(|error| panic!("{answer:?}: {error}"));
    }
    gcp.leave_alone();
    // What is denied at one is denied.
    let first = at(gcp.url());
    gcp.intercept(move |asked| {
        let error = json!({"code": 403, "status": "PERMISSION_DENIED", "message": "no"});
        first(asked).then(|| Answer::Json(403, json!({ "error": error })))
    });
    told(try_with(&new()).unwrap_err(), FORBIDDEN, &[&gcp.url()]);
    gcp.leave_alone();
    // The token outlives the place that it came from.
    gcp.stop();
    try_with(&keeps).unwrap();
    second.stop();
    try_with(&keeps).unwrap();
    third.stop();
    let error = try_with(&keeps).unwrap_err();
    told(
        error,
        Class::Unreachable,
        &["none of 3 endpoints", &gcp.url(), &third.url()],
    );
}
