//! Start, signals, end.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use rustix::process::Signal;
use sealblk::kms::broker::keyfile;
use sealblk::kms::broker::protocol::{CALL_PATH, CHALLENGE_PATH, FailureClass, Operation, Outcome};
use uuid::Uuid;

use super::broker::{Site, eventually};
use super::certificates::Authority;
use super::client::Client;
use super::policy::ALL;

/// A Vault that answers when the test says so, and denies everything then.
struct Slow {
    key_set: String,
    is_asked: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
}

impl Slow {
    fn start(site: &Site) -> Self {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = service.local_addr().unwrap();
        let token = site.write("token", b"a token");
        let key_set = format!(
            "[key_sets.slow]\nprovider = \"vault\"\nendpoints = [\"http://{address}\"]\nkey = \"k\"\n\
             timeout = \"20s\"\nauth = {{ method = \"token\", token = \"{}\" }}\n",
            token.display()
        );
        let (asked, is_asked) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            for stream in service.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                if asked.send(()).is_err() {
                    return;
                }
                let _ = goes_on.recv();
                let body = "{\"errors\":[\"1 error occurred: permission denied\"]}";
                let answer = format!(
                    "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Slow {
            key_set,
            is_asked,
            go_on,
        }
    }
}

#[test]
fn sigterm_lets_calls_in_flight_end_and_takes_no_new_ones() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let slow = Slow::start(&site);
    let mut broker = site.broker("broker", "", &slow.key_set);
    let client = Client::new(&site, &host, &broker);
    let version = || Operation::CurrentVersion { version: None };
    let frame = client.seal(Uuid::new_v4(), "slow", version());
    let gone = Uuid::new_v4();
    let left = serde_json::to_vec(&client.seal(gone, "slow", version())).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| client.send(&frame).unwrap());
        slow.is_asked.recv().unwrap();
        // One more, of a host that does not wait for the answer.
        let mut stream = client.connect();
        super::client::send(&mut stream, "POST", CALL_PATH, &left).unwrap();
        eventually("both are worked on", || {
            let calls = broker.metric(&["sealblk_broker_calls_in_flight "]);
            (calls == 2.0).then_some(())
        });
        drop(stream);
        broker.signal(Signal::TERM);
        eventually("it listens no longer", || {
            TcpStream::connect(("127.0.0.1", broker.port())).err()
        });
        assert!(broker.is_running() && !call.is_finished());
        // For these calls, and for whatever else is tried before they fail.
        drop(slow.go_on);
        let outcome = call.join().unwrap().outcome;
        assert!(
            matches!(&outcome, Outcome::Error(failure) if failure.class == FailureClass::DeniedForbidden),
            "{outcome:?}"
        );
    });
    assert_eq!(broker.wait().code(), Some(0));
    let lines = broker.audit();
    assert_eq!(lines.last().unwrap()["event"], "broker_stopped");
    let of_gone = |line: &&serde_json::Value| line["correlation"] == gone.to_string();
    let line = lines.iter().find(of_gone).expect("it is not recorded");
    assert_eq!(line["reason"], "forbidden", "{line}");
    assert!(!broker.directory.join("metrics.sock").exists());
}

#[test]
fn sighup_takes_new_certificates_authorities_and_key_sets() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let mut broker = site.broker("broker", "", &site.file_key_set("prod", ""));
    let client = Client::new(&site, &host, &broker);
    let shown = || {
        let mut stream = client.connect();
        super::hostile::ask_for_challenge(&mut stream);
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let before = shown();
    let mut held = client.connect();
    super::hostile::ask_for_challenge(&mut held);
    let reloads = |broker: &super::broker::Broker| {
        let lines = broker.audit();
        lines
            .iter()
            .filter(|line| line["event"] == "broker_reloaded")
            .count()
    };
    let reload = |broker: &super::broker::Broker| {
        let before = reloads(broker);
        broker.signal(Signal::HUP);
        eventually("it was read again", || {
            (reloads(broker) > before).then_some(())
        });
    };

    // A certificate without its key: everything stays.
    let renewed = site.authority.server();
    site.write("broker/server.pem", &renewed.certificate_pem());
    reload(&broker);
    assert_eq!(shown(), before);
    client.round_trip("prod");
    site.write("broker/server.key", &renewed.key_pem());
    let more = site.file_key_set("prod", "") + &site.file_key_set("more", "");
    broker.configure(Some(&more));
    reload(&broker);
    assert_eq!(shown(), renewed.certificate.to_der().unwrap());
    client.round_trip("more");
    // Who was connected has to show its certificate again.
    assert!(matches!(held.read(&mut [0; 1]), Ok(0) | Err(_)));

    // Another authority for clients: those of the old one are out.
    let other = Authority::new("another authority");
    site.write("ca.pem", &other.certificate_pem());
    reload(&broker);
    assert_eq!(client.http("POST", CHALLENGE_PATH, b""), None);
    let issued = other.client("hv1.example");
    Client::showing(&site, &host, Some(&issued), &broker).round_trip("prod");
    // A configuration that is broken.
    fs::write(broker.directory.join("sealblk.toml"), "[broken").unwrap();
    reload(&broker);
    let after = Client::showing(&site, &host, Some(&issued), &broker);
    after.round_trip("more");

    // Another key of the broker: the old one is good for challenges that were
    // had with it, for a while.
    let challenge = after.challenge().unwrap().challenge;
    fs::remove_file(broker.directory.join("broker.x25519")).unwrap();
    keyfile::generate(&broker.directory.join("broker.x25519")).unwrap();
    broker.configure(None);
    reload(&broker);
    let version = || Operation::CurrentVersion { version: None };
    let frame = after.seal_with(challenge, Uuid::new_v4(), "prod", version());
    assert!(after.send(&frame).is_ok());
    let renewed = Client::showing(&site, &host, Some(&issued), &broker);
    assert_ne!(renewed.to, after.to);
    assert_eq!(renewed.challenge().unwrap().key, renewed.to);
    renewed.round_trip("prod");
}

#[test]
fn a_killed_broker_comes_back_with_its_group_key() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let key_set = site.file_key_set("prod", "hierarchy = \"group\"");
    let mut broker = site.broker("broker", "", &key_set);
    let client = Client::new(&site, &host, &broker);
    let secret = sealblk::secret::Secret::random(64).unwrap();
    let wrapped = client.wrap("prod", b"x", &secret).unwrap();
    broker.kill();
    broker.start();
    assert_eq!(client.unwrap("prod", b"x", &wrapped).unwrap(), secret);
    let groups = || {
        let lines = broker.audit();
        let made: std::collections::BTreeSet<String> = lines
            .iter()
            .filter_map(|line| line["group"].as_str().map(str::to_owned))
            .collect();
        made.len()
    };
    client.round_trip("prod");
    assert_eq!(groups(), 1);
    // A payload that is too long is refused by name.
    let long = sealblk::secret::Secret::random(1025).unwrap();
    let failure = client.wrap("prod", b"x", &long).unwrap_err();
    assert_eq!(failure.class, FailureClass::Protocol);
    let longest = sealblk::secret::Secret::random(1024).unwrap();
    let wrapped = client.wrap("prod", b"x", &longest).unwrap();
    assert_eq!(client.unwrap("prod", b"x", &wrapped).unwrap(), longest);
}
