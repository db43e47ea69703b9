//! Who is believed to be whom.

use sealblk::kms::broker::protocol::{CHALLENGE_PATH, HEALTH_PATH, Health, Operation, ProblemKind};
use sealblk::kms::broker::seal::PrivateKey;
use uuid::Uuid;

use super::broker::{Site, eventually};
use super::certificates::Authority;
use super::client::Client;
use super::policy::ALL;

fn version() -> Operation {
    Operation::CurrentVersion { version: None }
}

#[test]
fn who_shows_no_certificate_of_the_authority_gets_no_answer() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let other = Authority::new("another authority");
    let expired = site.authority.client_valid("hv1.example", (-3, -1));
    let early = site.authority.client_valid("hv1.example", (1, 3));
    let strange = other.client("hv1.example");
    let server = site.authority.server();
    for (what, shown) in [
        ("none", None),
        ("expired", Some(&expired)),
        ("not valid yet", Some(&early)),
        ("of another authority", Some(&strange)),
        ("of a server", Some(&server)),
    ] {
        let client = Client::showing(&site, &host, shown, &broker);
        for (method, path) in [("POST", CHALLENGE_PATH), ("GET", HEALTH_PATH)] {
            assert_eq!(client.http(method, path, b""), None, "{what}");
        }
    }
    eventually("they are counted", || {
        let failed =
            |reason| broker.metric(&["sealblk_broker_handshakes_failed_total", reason]) as u64;
        (failed("\"certificate\"") == 8 && failed("no_certificate") == 2).then_some(())
    });
    Client::new(&site, &host, &broker).round_trip("prod");
}

#[test]
fn a_certificate_is_that_of_its_host_and_of_no_other() {
    let site = Site::new();
    let (hv1, hv2, stranger) = (site.host("hv1"), site.host("hv2"), site.host("hv3"));
    site.policy(&[&hv1, &hv2], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let good = Client::new(&site, &hv1, &broker);
    good.round_trip("prod");
    let (status, health) = good.http("GET", HEALTH_PATH, b"").unwrap();
    let health: Health = serde_json::from_slice(&health).unwrap();
    assert_eq!((status, health.key_sets), (200, 2), "{health:?}");

    // A certificate of no host: not even a challenge.
    let unknown = Client::new(&site, &stranger, &broker);
    let (status, problem) = unknown.challenge().unwrap_err();
    assert_eq!((status, problem.problem), (403, ProblemKind::Unknown));
    assert_eq!(unknown.http("GET", HEALTH_PATH, b"").unwrap().0, 403);

    let refused = |client: &Client<'_>, challenge, what: &str| {
        let frame = client.seal_with(challenge, Uuid::new_v4(), "prod", version());
        let (status, problem) = client.send(&frame).unwrap_err();
        assert_eq!(
            (status, problem.problem),
            (403, ProblemKind::Unknown),
            "{what}"
        );
    };
    let fresh = || good.challenge().unwrap().challenge;
    refused(&unknown, fresh(), "a host that there is not");
    // The key of the one with the certificate of the other.
    let borrowed = Client::showing(&site, &hv1, Some(&hv2.issued), &broker);
    refused(&borrowed, fresh(), "certificate of another host");
    // The certificate and name of the one with the key of the other.
    let mut mixed = Client::new(&site, &hv1, &broker);
    mixed.key = &hv2.key;
    refused(&mixed, fresh(), "key of another host");
    let own = PrivateKey::generate().unwrap();
    mixed.key = &own;
    refused(&mixed, fresh(), "a key that nobody knows");
    // Sealed for another broker.
    let mut misled = Client::new(&site, &hv1, &broker);
    misled.to = own.public();
    refused(&misled, fresh(), "key of another broker");
    // Under another name than it was sealed for.
    let mut frame = good.seal(Uuid::new_v4(), "prod", version());
    frame.host = "hv2".into();
    assert_eq!(borrowed.send(&frame).unwrap_err().0, 403);

    let lines = broker.audit();
    let reasons: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "call_refused")
        .map(|line| {
            assert_eq!(line["outcome"], "refused");
            assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
            let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
            [
                text(&line["reason"]),
                text(&line["actor"]["certificate"]),
                text(&line["claimed"]),
            ]
        })
        .collect();
    let expected = [
        ["certificate", "hv3.example", "-"],
        ["certificate", "hv3.example", "-"],
        ["certificate", "hv3.example", "hv3"],
        ["host", "hv2.example", "hv1"],
        ["key", "hv1.example", "hv1"],
        ["key", "hv1.example", "hv1"],
        ["key", "hv1.example", "hv1"],
        ["key", "hv2.example", "hv2"],
    ];
    assert_eq!(reasons, expected);
    good.round_trip("prod");
}

#[test]
fn a_box_that_ends_tls_is_listed_for_its_hosts() {
    let site = Site::new();
    let (hv1, box_) = (site.host("hv1"), site.host("box"));
    let table = hv1
        .table()
        .replace("\"hv1.example\"", "\"hv1.example\", \"box.*\"");
    site.write("policy.toml", format!("{table}{ALL}").as_bytes());
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    Client::showing(&site, &hv1, Some(&box_.issued), &broker).round_trip("prod");
    // It has no key of the host.
    let mut alone = Client::showing(&site, &hv1, Some(&box_.issued), &broker);
    alone.key = &box_.key;
    let frame = alone.seal(Uuid::new_v4(), "prod", version());
    assert_eq!(alone.send(&frame).unwrap_err().0, 403);
}

#[test]
fn a_host_has_two_keys_while_one_is_replaced() {
    let site = Site::new();
    let host = site.host("hv1");
    let new = PrivateKey::generate().unwrap();
    let both = host
        .table()
        .replace("keys = [", &format!("keys = [\"{}\", ", new.public()));
    site.write("policy.toml", format!("{both}{ALL}").as_bytes());
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let old = Client::new(&site, &host, &broker);
    let mut renewed = Client::new(&site, &host, &broker);
    renewed.key = &new;
    old.round_trip("prod");
    renewed.round_trip("prod");
    let only_new = host
        .table()
        .replace(&host.key.public().to_string(), &new.public().to_string());
    site.write("policy.toml", format!("{only_new}{ALL}").as_bytes());
    renewed.round_trip("prod");
    let frame = old.seal(Uuid::new_v4(), "prod", version());
    assert_eq!(old.send(&frame).unwrap_err().0, 403);
}
