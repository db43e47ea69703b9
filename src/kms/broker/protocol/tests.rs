use uuid::Uuid;

use super::*;
use crate::kms::{self, Class, Denied};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

fn request(operation: Operation) -> Request {
    Request {
        challenge: Challenge(b"challenge".to_vec()),
        correlation: Uuid::from_u128(7),
        key_set: "prod-eu".into(),
        patience: Some(Duration::from_millis(4500)),
        operation,
    }
}

fn wrapped() -> kms::Wrapped {
    kms::Wrapped {
        key_id: "prod-eu".into(),
        version: "3".into(),
        alg: "broker+aes256-gcm96".into(),
        bytes: vec![1, 2, 3],
    }
}

fn json(secret: &Secret) -> serde_json::Value {
    serde_json::from_slice(secret).unwrap()
}

#[test]
fn requests_are_read_as_they_were_written() {
    let wrap = request(Operation::Wrap {
        version: Some("2".into()),
        aad: b"volume".to_vec(),
        payload: Secret::copy_of(b"top secret").unwrap(),
    });
    let text = wrap.to_secret().unwrap();
    assert_eq!(
        json(&text),
        serde_json::json!({
            "challenge": "Y2hhbGxlbmdl",
            "correlation": "00000000-0000-0000-0000-000000000007",
            "operation": "wrap",
            "key_set": "prod-eu",
            "patience_ms": 4500,
            "version": "2",
            "aad": "dm9sdW1l",
            "payload": "dG9wIHNlY3JldA==",
        })
    );
    let read = Request::parse(&text).unwrap();
    assert_eq!(read.correlation, wrap.correlation);
    assert_eq!(read.challenge, wrap.challenge);
    assert_eq!(read.patience, wrap.patience);
    let Operation::Wrap {
        version,
        aad,
        payload,
    } = read.operation
    else {
        panic!("it is a wrap");
    };
    assert_eq!(version.as_deref(), Some("2"));
    assert_eq!((&*aad, &*payload), (&b"volume"[..], &b"top secret"[..]));

    let unwrap = request(Operation::Unwrap {
        wrapped: wrapped(),
        aad: vec![],
    });
    let read = Request::parse(&unwrap.to_secret().unwrap()).unwrap();
    assert!(
        matches!(read.operation, Operation::Unwrap { wrapped: w, aad } if w == wrapped() && aad.is_empty())
    );

    let version = request(Operation::CurrentVersion { version: None });
    let read = Request::parse(&version.to_secret().unwrap()).unwrap();
    assert!(matches!(
        read.operation,
        Operation::CurrentVersion { version: None }
    ));
}

#[test]
fn fields_of_other_operations_are_refused() {
    let good = request(Operation::Wrap {
        version: None,
        aad: vec![],
        payload: Secret::copy_of(b"top secret").unwrap(),
    });
    let good = json(&good.to_secret().unwrap());
    let parse = |value: &serde_json::Value| {
        Request::parse(&Secret::copy_of(value.to_string().as_bytes()).unwrap())
    };
    assert!(parse(&good).is_ok());
    for (field, value) in [
        ("operation", serde_json::json!("unwrap")),
        ("operation", serde_json::json!("current_version")),
        ("operation", serde_json::json!("destroy")),
        ("payload", serde_json::Value::Null),
        ("payload", serde_json::json!("top secret")),
        ("aad", serde_json::Value::Null),
        ("aad", serde_json::json!("?")),
        ("host", serde_json::json!("hv1")),
        (
            "challenge",
            serde_json::json!("A".repeat(4 * CHALLENGE_MAX)),
        ),
    ] {
        let mut bad = good.clone();
        bad[field] = value.clone();
        let error = parse(&bad).unwrap_err();
        assert!(
            !error.to_string().contains("top secret"),
            "{field} = {value}: {error}"
        );
    }
    let escaped = good.to_string().replace("dG9w", "\\u0064G9w");
    let escaped = Secret::copy_of(escaped.as_bytes()).unwrap();
    assert!(
        Request::parse(&escaped).is_err(),
        "a secret is read only where it lies"
    );
}

#[test]
fn answers_are_read_as_they_were_written() {
    let answer = |outcome| {
        let answer = Answer {
            next_challenge: Challenge(vec![9; 32]),
            request_id: Some("b1-7".into()),
            outcome,
        };
        Answer::parse(&answer.to_secret().unwrap()).unwrap()
    };
    let read = answer(Outcome::Payload(Secret::copy_of(&[7; 64]).unwrap()));
    assert_eq!(read.next_challenge, Challenge(vec![9; 32]));
    assert_eq!(read.request_id.as_deref(), Some("b1-7"));
    assert!(matches!(read.outcome, Outcome::Payload(p) if *p == [7; 64]));
    assert!(
        matches!(answer(Outcome::Wrapped(wrapped())).outcome, Outcome::Wrapped(w) if w == wrapped())
    );
    let expires: Timestamp = "2031-01-01T00:00:00Z".parse().unwrap();
    for expires in [None, Some(expires.to_system())] {
        let version = kms::KeyVersion {
            id: "3".into(),
            enabled: false,
            expires,
        };
        assert!(
            matches!(answer(Outcome::Version(version.clone())).outcome, Outcome::Version(v) if v == version)
        );
    }
}

#[test]
fn every_class_of_error_comes_over() {
    for class in [
        Class::Denied(Denied::Disabled),
        Class::Denied(Denied::Expired),
        Class::Denied(Denied::Deleted),
        Class::Denied(Denied::Forbidden),
        Class::NotFound,
        Class::Throttled { retry_after: None },
        Class::Throttled {
            retry_after: Some(Duration::from_secs(7)),
        },
        Class::Unreachable,
        Class::Sealed,
        Class::BadKey,
        Class::Protocol,
    ] {
        let error = kms::Error::new(class, "cause", "next").with_words("words");
        let failure = Failure::from(&error);
        let text = serde_json::to_string(&failure).unwrap();
        let read: Failure = serde_json::from_str(&text).unwrap();
        assert_eq!(read, failure);
        assert_eq!(read.class(), class);
        assert_eq!((&*read.cause, &*read.next), ("cause", "next"));
        assert_eq!(read.words.as_deref(), Some("words"));
    }
}

#[test]
fn a_problem_of_a_newer_broker_is_still_one() {
    let text = r#"{"problem": "full-moon", "detail": "wait"}"#;
    let problem: Problem = serde_json::from_str(text).unwrap();
    assert_eq!(problem.problem, ProblemKind::Other);
}
