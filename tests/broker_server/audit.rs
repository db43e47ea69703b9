//! What stands in the broker's record, and what becomes of calls where it
//! cannot be written.

use rustix::process::{Resource, Rlimit, prlimit};
use sealblk::audit::{Files, verify};
use sealblk::kms::broker::protocol::{FailureClass, Operation, Outcome};
use sealblk::secret::Secret;
use serde_json::Value;
use uuid::Uuid;

use super::broker::{Broker, Site};
use super::client::{Client, unwrap, wrap};
use super::policy::{ALL, binding};

fn line_of(broker: &Broker, correlation: Uuid) -> Value {
    let lines = broker.audit();
    let mut found = lines
        .into_iter()
        .filter(|line| line["correlation"] == correlation.to_string());
    let line = found.next().expect("there is no line");
    assert_eq!(found.next(), None, "one line for a call");
    line
}

#[test]
fn each_call_is_recorded_with_its_host_and_the_id_that_the_host_has() {
    let site = Site::new();
    let (host, other) = (site.host("hv1"), site.host("hv2"));
    let rule = "[[rules]]\nhosts = [\"hv1\"]\nkey_sets = [\"*\"]\n";
    site.policy(&[&host, &other], rule);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let volume = Uuid::new_v4();
    let secret = Secret::random(64).unwrap();
    let id = Uuid::new_v4();
    let Outcome::Wrapped(wrapped) = client.ask(id, "prod", wrap(&binding(volume), &secret)) else {
        panic!("not wrapped");
    };
    let line = line_of(&broker, id);
    let text = |line: &Value, pointer: &str| {
        let value = line.pointer(pointer).unwrap_or(&Value::Null);
        value.as_str().unwrap_or("-").to_owned()
    };
    for (pointer, expected) in [
        ("/event", "wrap"),
        ("/outcome", "ok"),
        ("/key_set", "prod"),
        ("/provider", "file"),
        ("/volume", &volume.to_string()),
        ("/key_version", &wrapped.version),
        ("/actor/role", "broker"),
        ("/actor/host", "hv1"),
        ("/actor/certificate", "hv1.example"),
    ] {
        assert_eq!(text(&line, pointer), expected, "{pointer}");
    }

    let id = Uuid::new_v4();
    client.ask(id, "prod", unwrap(&binding(volume), &wrapped));
    let line = line_of(&broker, id);
    assert_eq!(
        (text(&line, "/event"), text(&line, "/outcome")),
        ("unwrap".into(), "ok".into())
    );

    // Denied by the policy.
    let id = Uuid::new_v4();
    let stranger = Client::new(&site, &other, &broker);
    stranger.ask(id, "prod", unwrap(&binding(volume), &wrapped));
    let line = line_of(&broker, id);
    for (pointer, expected) in [
        ("/event", "unwrap"),
        ("/outcome", "denied"),
        ("/reason", "policy"),
        ("/key_set", "prod"),
        ("/volume", &volume.to_string()),
        ("/actor/host", "hv2"),
        ("/actor/certificate", "hv2.example"),
    ] {
        assert_eq!(text(&line, pointer), expected, "{pointer}");
    }
    // Failed before a key was used, and by the key.
    for (key_set, aad, class) in [
        ("nothing", binding(volume), "not_found"),
        ("prod", binding(Uuid::new_v4()), "bad_key"),
    ] {
        let id = Uuid::new_v4();
        client.ask(id, key_set, unwrap(&aad, &wrapped));
        let line = line_of(&broker, id);
        assert_eq!(text(&line, "/outcome"), "failed");
        assert_eq!(text(&line, "/actor/host"), "hv1");
        if key_set == "prod" {
            assert_eq!(text(&line, "/class"), class);
        }
    }
    let lines = broker.audit();
    assert_eq!(lines[1]["event"], "broker_started");
    assert_eq!(lines[2]["event"], "policy_loaded");
    let report = verify(&Files::of(&broker.audit_path()).unwrap(), None, false).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.lines as usize, lines.len());
}

#[test]
fn what_cannot_be_recorded_is_not_handed_out() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let secret = Secret::random(64).unwrap();
    let wrapped = client.wrap("prod", b"x", &secret).unwrap();
    let before = broker.audit().len();
    let limit = |bytes: Option<u64>| {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(broker.pid()), Resource::Fsize, limit).unwrap();
    };
    // As on a full disk: not one byte more.
    let length = std::fs::metadata(broker.audit_path()).unwrap().len();
    limit(Some(length));
    let asked = [
        unwrap(b"x", &wrapped),
        wrap(b"x", &secret),
        // Denied or failed: that is not told either without a record.
        unwrap(b"y", &wrapped),
    ];
    for operation in asked {
        let frame = client.seal(Uuid::new_v4(), "prod", operation);
        match client.send(&frame).unwrap().outcome {
            Outcome::Error(failure) => assert_eq!(failure.class, FailureClass::Unreachable),
            other => panic!("{other:?}"),
        }
    }
    let id = Uuid::new_v4();
    let frame = client.seal(id, "none", Operation::CurrentVersion { version: None });
    assert!(matches!(
        client.send(&frame).unwrap().outcome,
        Outcome::Error(failure) if failure.class == FailureClass::Unreachable
    ));
    assert_eq!(broker.audit().len(), before);
    assert!(broker.metric(&["sealblk_audit_failures_total"]) >= 4.0);
    limit(None);
    assert_eq!(client.unwrap("prod", b"x", &wrapped).unwrap(), secret);
    let report = verify(&Files::of(&broker.audit_path()).unwrap(), None, false).unwrap();
    assert!(report.ok, "{report:?}");
}
