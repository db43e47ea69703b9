//! What a broker, a box on the way to it, or an operator can do to a host.
//! What all providers do is in `kms_conformance`, and what hosts can do to a
//! broker in `broker`.
#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "support/evil_broker.rs"]
mod evil_broker;
#[path = "support/needles.rs"]
mod needles;
#[path = "support/tls_server.rs"]
#[allow(dead_code)]
mod tls_server;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evil_broker::{Asked, EvilBroker, Honest, Host, Said, key, write_secret};
use sealblk::error::{Explain, Kind};
use sealblk::kms::broker::protocol::{Failure, Operation, Outcome, ProblemKind};
use sealblk::kms::broker::seal::PrivateKey;
use sealblk::kms::broker::{BrokerProvider, Settings};
use sealblk::kms::{Class, Denied, Error, Provider, call};
use sealblk::secret::Secret;
use uuid::Uuid;

const AAD: &[u8] = b"a volume of this test";

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn payload() -> Secret {
    Secret::random(64).unwrap()
}

/// A host and a broker that knows it.
fn pair() -> (Host, EvilBroker) {
    let host = Host::new("hv1.example");
    let broker = EvilBroker::start(&host.authority, host.key.public());
    (host, broker)
}

/// The error of a call that must fail, and deny nothing unless a broker itself
/// said so.
fn refused(client: &BrokerProvider) -> Error {
    let error = wait(client.current_version(&key())).unwrap_err();
    assert!(!error.help().unwrap().is_empty(), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// That nobody has been believed.
fn assert_no_word_of_the_key(error: &Error, what: &str) {
    let class = error.class();
    assert!(
        matches!(
            class,
            Class::Unreachable | Class::Protocol | Class::Throttled { .. }
        ),
        "{what}: {class}: {error}"
    );
}

#[test]
fn what_is_wrapped_comes_back_and_costs_one_round_trip() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let payload = payload();
    wait(async {
        let wrapped = client.wrap(&key(), &payload, AAD).await.unwrap();
        assert_eq!(wrapped.key_id, "prod");
        let opened = client.unwrap(&wrapped, AAD).await.unwrap();
        assert_eq!(opened, payload);
        assert!(client.current_version(&key()).await.unwrap().enabled);
    });
    let asked = broker.asked();
    let paths: Vec<&str> = asked.iter().map(|asked| asked.path.as_str()).collect();
    let call = "/v1/broker/call";
    assert_eq!(paths, ["/v1/broker/challenge", call, call, call]);
    // What a box in between sees.
    for asked in &asked {
        needles::assert_absent(&asked.body, &payload, "a request");
        needles::assert_absent(&asked.body, AAD, "a request");
    }
    let challenges: HashSet<_> = asked[1..]
        .iter()
        .map(|asked| broker.honest.request(&asked.frame()).challenge)
        .collect();
    assert_eq!(challenges.len(), 3, "each call has one of its own");
}

#[test]
fn no_bare_answer_denies_anything() {
    let (host, broker) = pair();
    for at_call in [false, true] {
        for status in [
            200, 204, 302, 400, 401, 403, 404, 405, 407, 409, 410, 413, 418, 429, 500, 502, 503,
        ] {
            broker.trick(move |asked, honest| {
                if asked.is_call() != at_call {
                    return honest.answer(asked);
                }
                let body = if status == 204 {
                    ""
                } else {
                    "{\"errors\":[\"permission denied\"]}"
                };
                Said::status(status, body)
            });
            let error = refused(&host.client(&[&broker]));
            assert_no_word_of_the_key(&error, &format!("status {status}"));
            assert_ne!(error.kind(), Kind::Key);
        }
    }
}

#[test]
fn a_host_that_is_not_known_is_told_what_to_have_checked() {
    let (host, broker) = pair();
    broker.trick(|asked, honest| match asked.is_call() {
        true => Said::problem(ProblemKind::Unknown),
        false => honest.answer(asked),
    });
    let error = refused(&host.client(&[&broker]));
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.to_string().contains("hv1"), "{error}");
    assert_eq!(error.words(), Some("so says the test"));
    let help = error.help().unwrap();
    assert!(
        help.contains("policy") && help.contains("host_key"),
        "{help}"
    );
}

/// Edits the JSON of an answer.
fn edited(said: Said, edit: impl FnOnce(&mut serde_json::Value)) -> Said {
    let mut value = serde_json::from_slice(&said.body).unwrap();
    edit(&mut value);
    Said::ok(value.to_string())
}

#[test]
fn what_was_changed_on_its_way_is_not_believed() {
    let (host, broker) = pair();
    type Edit = fn(Said) -> Said;
    let edits: [(&str, Edit); 9] = [
        ("nothing", |_| Said::ok("")),
        ("no JSON", |_| Said::ok("<html>Log in</html>")),
        ("another JSON", |_| Said::ok("{\"payload\":\"AAAA\"}")),
        ("cut", |said| Said::ok(&said.body[..said.body.len() / 2])),
        ("too long", |said| {
            Said::ok([said.body, vec![b' '; 70_000]].concat())
        }),
        ("another version", |said| {
            edited(said, |frame| frame["version"] = 2.into())
        }),
        ("another field", |said| {
            edited(said, |frame| frame["error"] = "denied".into())
        }),
        ("another ciphertext", |said| {
            edited(said, |frame| {
                let text = frame["ciphertext"].as_str().unwrap();
                let first = if text.starts_with('A') { "B" } else { "A" };
                frame["ciphertext"] = format!("{first}{}", &text[1..]).into();
            })
        }),
        ("another key", |said| {
            edited(said, |frame| {
                frame["enc"] = PrivateKey::generate().unwrap().public().to_string().into();
            })
        }),
    ];
    let edits_of_any_body = [
        "nothing",
        "no JSON",
        "another JSON",
        "cut",
        "another version",
    ];
    for (what, edit) in edits {
        broker.trick(move |asked, honest| match asked.is_call() {
            true => edit(honest.answer(asked)),
            false => honest.answer(asked),
        });
        let error = refused(&host.client(&[&broker]));
        assert_no_word_of_the_key(&error, what);
        if edits_of_any_body.contains(&what) {
            broker.trick(move |asked, honest| edit(honest.answer(asked)));
            assert_no_word_of_the_key(&refused(&host.client(&[&broker])), what);
        }
    }
    broker.trick(|asked, honest| honest.answer(asked));
    wait(host.client(&[&broker]).current_version(&key())).unwrap();
}

#[test]
fn the_answer_of_another_request_is_not_taken() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let first = payload();
    let wrapped = wait(client.wrap(&key(), &first, AAD)).unwrap();
    let answers: Arc<Mutex<Vec<Said>>> = Arc::default();
    let kept = answers.clone();
    broker.trick(move |asked, honest| {
        let said = honest.answer(asked);
        if asked.is_call() {
            kept.lock().unwrap().push(said.clone());
        }
        said
    });
    assert_eq!(wait(client.unwrap(&wrapped, AAD)).unwrap(), first);
    let old = answers.lock().unwrap()[0].clone();
    // The same question, and the answer that it had before.
    let replayed = old.clone();
    broker.trick(move |asked, honest| match asked.is_call() {
        true => replayed.clone(),
        false => honest.answer(asked),
    });
    let error = wait(client.unwrap(&wrapped, AAD)).unwrap_err();
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.to_string().contains("not the answer"), "{error}");
    // The question itself, as its answer.
    broker.trick(move |asked, honest| match asked.is_call() {
        true => Said::ok(asked.body.clone()),
        false => honest.answer(asked),
    });
    let error = wait(client.unwrap(&wrapped, AAD)).unwrap_err();
    assert_eq!(error.class(), Class::Unreachable);
}

#[test]
fn a_broker_with_another_key_is_not_asked_and_not_believed() {
    let (host, broker) = pair();
    let (stranger, asked) = (PrivateKey::generate().unwrap(), stranger_is_asked(&broker));
    let unknown = stranger.public();
    broker.trick(move |asked, honest| match asked.is_call() {
        true => honest.answer(asked),
        false => honest.challenge_answer(unknown),
    });
    let error = refused(&host.client(&[&broker]));
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.to_string().contains(&unknown.to_string()), "{error}");
    assert!(error.help().unwrap().contains("pubkey"));
    assert!(!asked(), "nothing was sealed to it");

    // The right name, and another key.
    broker.trick(move |asked, honest| match asked.is_call() {
        true => {
            let frame = asked.frame();
            let denied = denial(Denied::Disabled);
            honest.seal_with(&stranger, &frame, Outcome::Error(denied))
        }
        false => honest.answer(asked),
    });
    let error = refused(&host.client(&[&broker]));
    assert_eq!(error.class(), Class::Unreachable, "{error}");
}

/// Whether a call has come since.
fn stranger_is_asked(broker: &EvilBroker) -> impl Fn() -> bool + '_ {
    || broker.asked().iter().any(Asked::is_call)
}

fn failure(class: Class) -> Failure {
    let error = Error::new(class, "the plain cause", "the next step");
    Failure::from(&error.with_words("the service's words"))
}

fn denial(why: Denied) -> Failure {
    failure(Class::Denied(why))
}

#[test]
fn what_the_broker_itself_says_has_its_class() {
    let (host, broker) = pair();
    for class in [
        Class::Denied(Denied::Disabled),
        Class::Denied(Denied::Expired),
        Class::Denied(Denied::Deleted),
        Class::Denied(Denied::Forbidden),
        Class::NotFound,
        Class::Throttled {
            retry_after: Some(Duration::from_secs(3)),
        },
        Class::Unreachable,
        Class::Sealed,
        Class::BadKey,
        Class::Protocol,
    ] {
        broker.trick(move |asked, honest| match asked.is_call() {
            true => honest.seal(&asked.frame(), Outcome::Error(failure(class))),
            false => honest.answer(asked),
        });
        let error = refused(&host.client(&[&broker]));
        match (error.class(), class) {
            (Class::Throttled { .. }, Class::Throttled { .. }) => continue,
            (found, expected) => assert_eq!(found, expected, "{error}"),
        }
        let text = error.to_string();
        assert!(
            text.contains("prod") && text.contains("the plain cause"),
            "{text}"
        );
        assert_eq!(error.words(), Some("the service's words"));
        assert_eq!(error.help().as_deref(), Some("the next step"));
    }
}

#[test]
fn text_of_a_broker_is_on_one_line() {
    let (host, broker) = pair();
    broker.trick(|asked, honest| {
        if !asked.is_call() {
            return honest.answer(asked);
        }
        let error = Error::new(
            Class::Denied(Denied::Forbidden),
            format!("no\n\u{1b}[31m{}", "x".repeat(9000)),
            "ask\nthem",
        );
        honest.seal(&asked.frame(), Outcome::Error(Failure::from(&error)))
    });
    let error = refused(&host.client(&[&broker]));
    assert!(!error.to_string().contains(['\n', '\u{1b}']), "{error}");
    assert!(error.to_string().len() < 2000);
    assert_eq!(error.help().as_deref(), Some("ask them"));
}

#[test]
fn an_answer_to_something_else_is_not_taken() {
    let (host, broker) = pair();
    broker.trick(|asked, honest| {
        if !asked.is_call() {
            return honest.answer(asked);
        }
        let payload = Secret::copy_of(&[7; 64]).unwrap();
        honest.seal(&asked.frame(), Outcome::Payload(payload))
    });
    let client = host.client(&[&broker]);
    assert_eq!(refused(&client).class(), Class::Protocol);
    let error = wait(client.wrap(&key(), &payload(), AAD)).unwrap_err();
    assert_eq!(error.class(), Class::Protocol);
}

#[test]
fn a_challenge_that_is_not_taken_is_replaced_once() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    wait(client.current_version(&key())).unwrap();
    // The broker was started again, and knows its old challenges no more.
    let restarted = Arc::new(Mutex::new(true));
    broker.asked();
    broker.trick(move |asked, honest| {
        if asked.is_call() && std::mem::take(&mut *restarted.lock().unwrap()) {
            return Said::problem(ProblemKind::Challenge);
        }
        honest.answer(asked)
    });
    wait(client.current_version(&key())).unwrap();
    let calls = |asked: Vec<Asked>| -> Vec<bool> { asked.iter().map(Asked::is_call).collect() };
    assert_eq!(calls(broker.asked()), [true, false, true]);

    // One that takes none is not asked forever.
    broker.trick(|asked, honest| match asked.is_call() {
        true => Said::problem(ProblemKind::Challenge),
        false => honest.answer(asked),
    });
    let error = refused(&client);
    assert_eq!(error.class(), Class::Unreachable);
    assert!(error.help().unwrap().contains("load balancer"));
    let calls = calls(broker.asked());
    let rounds = calls.iter().filter(|call| **call).count();
    // One more in the first round, for the challenge that was kept.
    assert!(calls.len() <= 2 * rounds && rounds <= 8, "{calls:?}");
}

#[test]
fn a_bare_refusal_leads_to_the_sibling_and_a_denial_does_not() {
    let (host, first) = pair();
    let second = EvilBroker::start(&host.authority, host.key.public());
    let client = host.client(&[&first, &second]);
    first.trick(|_, _| Said::status(403, "go away"));
    wait(client.current_version(&key())).unwrap();
    assert!(!first.asked().is_empty());
    assert!(second.asked().iter().any(Asked::is_call));

    let client = host.client(&[&first, &second]);
    first.trick(|asked, honest| match asked.is_call() {
        true => honest.seal(&asked.frame(), Outcome::Error(denial(Denied::Forbidden))),
        false => honest.answer(asked),
    });
    let error = refused(&client);
    assert_eq!(error.class(), Class::Denied(Denied::Forbidden));
    assert_eq!(error.kind(), Kind::Key);
    assert!(second.asked().is_empty(), "the denial is the answer");
}

#[test]
fn what_one_broker_wrapped_is_asked_for_under_its_own_name() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let mut wrapped = wait(client.wrap(&key(), &payload(), AAD)).unwrap();
    wrapped.key_id = "archive".into();
    broker.asked();
    wait(client.unwrap(&wrapped, AAD)).unwrap();
    let asked = broker.asked();
    assert_eq!(broker.honest.request(&asked[0].frame()).key_set, "archive");
    for bad in ["", "../prod", "a b", &"x".repeat(1000)] {
        wrapped.key_id = bad.into();
        let error = wait(client.unwrap(&wrapped, AAD)).unwrap_err();
        assert_eq!(error.class(), Class::BadKey);
    }
    assert!(broker.asked().is_empty(), "nobody is asked for such");
}

#[test]
fn both_ends_record_the_same_ids() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let id = Uuid::new_v4();
    let (result, notes) = wait(call::observed(id, client.current_version(&key())));
    result.unwrap();
    let asked = broker.asked();
    let request = broker.honest.request(&asked[1].frame());
    assert_eq!(request.correlation, id);
    assert!(matches!(
        request.operation,
        Operation::CurrentVersion { version: None }
    ));
    assert!(notes.request_id.unwrap().starts_with("evil-"));
    assert_eq!(notes.attempts.len(), 1);
    for asked in asked {
        needles::assert_absent(&asked.body, id.to_string().as_bytes(), "a request");
    }
}

#[test]
fn calls_at_the_same_time_have_challenges_of_their_own() {
    let (host, broker) = pair();
    let settings = Settings {
        timing: Default::default(),
        ..host.settings(&[broker.port], vec![broker.honest.key.public()])
    };
    let client = BrokerProvider::new(settings);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let payload = payload();
                wait(async {
                    let wrapped = client.wrap(&key(), &payload, AAD).await.unwrap();
                    assert_eq!(client.unwrap(&wrapped, AAD).await.unwrap(), payload);
                });
            });
        }
    });
    // The broker refuses one that comes twice.
    let calls = broker.asked().into_iter().filter(Asked::is_call);
    assert_eq!(calls.count(), 40);
}

#[test]
fn a_fault_of_this_host_is_told_before_anybody_is_asked() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let path = host.path("host.key");
    let good = std::fs::read(&path).unwrap();

    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let error = refused(&client);
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(refused(&client).kind(), Kind::NotFound);
    write_secret(&path, b"-----BEGIN EC PRIVATE KEY-----");
    assert_eq!(refused(&client).kind(), Kind::Usage);
    assert!(broker.asked().is_empty());
    // One that was put there is taken at once.
    write_secret(&path, &good);
    wait(client.current_version(&key())).unwrap();
}

#[test]
fn a_broker_says_how_it_is_and_whether_it_knows_us() {
    let (host, broker) = pair();
    let client = host.client(&[&broker]);
    let (health, _) = wait(client.health()).unwrap();
    assert_eq!((&*health.version, health.key_sets), ("0.0.0", 1));
    wait(client.greet(&key())).unwrap();
    // Who is denied is known.
    let deny = |asked: &Asked, honest: &Honest| match asked.is_call() {
        true => honest.seal(&asked.frame(), Outcome::Error(denial(Denied::Forbidden))),
        false => honest.answer(asked),
    };
    broker.trick(deny);
    wait(client.greet(&key())).unwrap();
    broker.trick(|_, _| Said::problem(ProblemKind::Unknown));
    assert_eq!(
        wait(client.greet(&key())).unwrap_err().class(),
        Class::Unreachable
    );
}
