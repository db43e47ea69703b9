//! No call is taken twice.

use std::fs;

use sealblk::kms::broker::protocol::{Operation, ProblemKind};
use sealblk::secret::Secret;
use uuid::Uuid;

use super::broker::{Broker, Host, Site};
use super::client::{Client, unwrap};
use super::policy::ALL;

fn refused(client: &Client<'_>, frame: &sealblk::kms::broker::protocol::Frame) {
    let (status, problem) = client.send(frame).unwrap_err();
    assert_eq!((status, problem.problem), (409, ProblemKind::Challenge));
}

fn reasons(broker: &Broker) -> Vec<String> {
    let lines = broker.audit();
    let refused = lines.iter().filter(|line| line["event"] == "call_refused");
    refused
        .map(|line| line["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_captured_call_is_refused_at_the_same_broker_a_sibling_and_after_a_restart() {
    let site = Site::new();
    let host: Host = site.host("hv1");
    site.policy(&[&host], ALL);
    let key_set = site.file_key_set("prod", "");
    let mut broker = site.broker("one", "", &key_set);
    let mut sibling = site.broker("two", "", &key_set);
    // With the same key even, so that it can read the call.
    let copy = |from: &Broker, to: &Broker| {
        let name = "broker.x25519";
        fs::copy(from.directory.join(name), to.directory.join(name)).unwrap();
    };
    sibling.kill();
    copy(&broker, &sibling);
    sibling.start();

    let client = Client::new(&site, &host, &broker);
    let at_sibling = Client::new(&site, &host, &sibling);
    assert_eq!(client.to, at_sibling.to);
    let secret = Secret::random(64).unwrap();
    let wrapped = client.wrap("prod", b"x", &secret).unwrap();
    let captured = client.seal(Uuid::new_v4(), "prod", unwrap(b"x", &wrapped));
    // Not made yet, and not for the sibling.
    refused(&at_sibling, &captured);
    assert!(client.send(&captured).is_ok());
    for _ in 0..3 {
        refused(&client, &captured);
    }
    refused(&at_sibling, &captured);
    assert_eq!(reasons(&broker), ["replay"; 3]);
    assert_eq!(reasons(&sibling), ["challenge"; 2]);
    broker.kill();
    broker.start();
    refused(&client, &captured);
    assert_eq!(reasons(&broker)[3..], ["challenge"]);
    client.round_trip("prod");

    // Many at once: one is taken.
    let captured = client.seal(Uuid::new_v4(), "prod", unwrap(b"x", &wrapped));
    let taken: usize = std::thread::scope(|scope| {
        let sending: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| usize::from(client.send(&captured).is_ok())))
            .collect();
        sending.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!(taken, 1);
}

#[test]
fn each_answer_brings_the_next_challenge_and_it_is_good_once() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let version = || Operation::CurrentVersion { version: None };
    let mut next = client.challenge().unwrap().challenge;
    for _ in 0..5 {
        let used = next.clone();
        let frame = client.seal_with(next, Uuid::new_v4(), "prod", version());
        next = client.send(&frame).unwrap().next_challenge;
        // Another call with it.
        let again = client.seal_with(used, Uuid::new_v4(), "prod", version());
        refused(&client, &again);
    }
    // One that is made up, and one that is cut.
    for bytes in [vec![0; 73], next.0[..72].to_vec(), Vec::new()] {
        let challenge = sealblk::kms::broker::protocol::Challenge(bytes);
        let frame = client.seal_with(challenge, Uuid::new_v4(), "prod", version());
        refused(&client, &frame);
    }
}

#[test]
fn thousands_of_challenges_cost_no_memory() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let resident = || {
        let pid = broker.pid().as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let ask = |count: usize| {
        let mut stream = client.connect();
        for _ in 0..count {
            super::hostile::ask_for_challenge(&mut stream);
        }
    };
    ask(500);
    let before = resident();
    ask(5000);
    let grown = resident().saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB more for 5000 challenges");
    client.round_trip("prod");
}
