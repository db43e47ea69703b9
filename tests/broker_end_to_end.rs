//! Hosts and real brokers, whose key is at a real OpenBao: what a box between
//! them can see and do, brokers that die, and volumes on a host that has no
//! credential of the key service.
#![cfg(feature = "broker")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/broker_site.rs"]
#[allow(dead_code)]
mod broker_site;
#[path = "support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "support/needles.rs"]
mod needles;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
mod support;
#[path = "support/tls_box.rs"]
#[allow(dead_code)]
mod tls_box;
#[path = "support/tls_server.rs"]
#[allow(dead_code)]
mod tls_server;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use broker_site::{Broker, CERTIFICATE, HOST, Site};
use openbao::OpenBao;
use sealblk::error::Kind;
use sealblk::kms::broker::BrokerProvider;
use sealblk::kms::broker::protocol::Frame;
use sealblk::kms::broker::seal::PrivateKey;
use sealblk::kms::{Class, Denied, KeyRef, Provider, call};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use support::daemon::{Daemon, Reply, command, configure};
use support::front_end::{FrontEnd, Options};
use support::home::{Home, refused};
use support::server::{eventually, succeed};
use support::tree;
use tls_box::TlsBox;
use uuid::Uuid;

const AAD: &[u8] = b"a volume of this test";
const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

/// One server for all tests.
fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start)
}

/// A key of its own, and the key set `prod` of brokers that may use it. Also
/// the token, which no host has.
fn service(more: &str) -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("engine-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server().mount(&name);
    server().post(&format!("{name}/keys/disks"), json!({}));
    server().permit(&name, &name, "disks");
    let token = server().token(&name);
    let file = server().write(&format!("{name}.token"), &token);
    let table = format!(
        "[key_sets.prod]\nprovider = \"vault\"\nendpoints = [{:?}]\nmount = {name:?}\nkey = \"disks\"\n\
         auth = {{ method = \"token\", token = {file:?} }}\n{more}\n",
        server().url()
    );
    (table, token)
}

fn site() -> Site {
    Site::new(&service("").0)
}

fn key() -> KeyRef {
    KeyRef {
        id: Some("prod".into()),
        version: None,
    }
}

/// Whether a host gets what it wrapped.
fn works(client: &BrokerProvider) {
    let payload = Secret::random(64).unwrap();
    wait(async {
        let wrapped = client.wrap(&key(), &payload, AAD).await.unwrap();
        assert_eq!(client.unwrap(&wrapped, AAD).await.unwrap(), payload);
    });
}

/// A site with a box before its one broker.
fn boxed() -> (Site, Broker, TlsBox, BrokerProvider) {
    let site = site();
    site.permit(tls_box::CERTIFICATE);
    let broker = site.start();
    let tls_box = TlsBox::before(&site.authority, broker.port);
    let client = BrokerProvider::new(site.settings_at(&[tls_box.port], vec![broker.key]));
    (site, broker, tls_box, client)
}

#[test]
fn a_box_on_the_way_finds_no_key_and_no_name() {
    let (_site, _broker, tls_box, client) = boxed();
    let payload = Secret::random(64).unwrap();
    let id = Uuid::new_v4();
    let (opened, notes) = wait(call::observed(id, async {
        let wrapped = client.wrap(&key(), &payload, AAD).await.unwrap();
        client.unwrap(&wrapped, AAD).await.unwrap()
    }));
    assert_eq!(opened, payload);
    let passed = tls_box.passed();
    assert_eq!(passed.len(), 3, "a challenge and two calls: {passed:?}");
    let request_id = notes.request_id.unwrap();
    for passed in &passed {
        assert_eq!(passed.status, 200);
        for bytes in [passed.head.as_bytes(), &passed.request, &passed.answer] {
            needles::assert_absent(bytes, &payload, "what went through");
            needles::assert_absent(bytes, AAD, "what went through");
            needles::assert_absent(bytes, id.to_string().as_bytes(), "what went through");
            needles::assert_absent(bytes, request_id.as_bytes(), "what went through");
            needles::assert_absent(bytes, b"current_version", "what went through");
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains("prod"), "{text}");
        }
    }
}

#[test]
fn a_call_that_was_made_is_refused_everywhere_when_it_comes_again() {
    let (site, broker, tls_box, client) = boxed();
    let sibling = site.start();
    works(&client);
    let calls: Vec<_> = tls_box
        .passed()
        .into_iter()
        .filter(|passed| passed.is_call())
        .collect();
    assert_eq!(calls.len(), 2);
    let refused = |target: u16, status: u16, problem: &str| {
        for call in &calls {
            let (found, body) = tls_box.again(target, call);
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (found, &body["problem"]),
                (status, &json!(problem)),
                "{body}"
            );
        }
    };
    refused(broker.port, 409, "challenge");
    // It was sealed to the other one.
    refused(sibling.port, 403, "unknown");
    broker.restart();
    refused(broker.port, 409, "challenge");
    // The host itself goes on.
    works(&client);
    let outcomes: Vec<Value> = broker.audit();
    let refusals = outcomes.iter().filter(|line| line["outcome"] == "refused");
    assert_eq!(
        refusals.count(),
        5,
        "also the host's own old challenge: {outcomes:?}"
    );
    let used = |line: &Value| line["event"] == "wrap" || line["event"] == "unwrap";
    assert!(!sibling.audit().iter().any(used), "no key was used there");
    let lines = broker.audit();
    let calls: BTreeSet<&str> = lines
        .iter()
        .filter(|line| used(line))
        .map(|line| line["correlation"].as_str().unwrap())
        .collect();
    assert_eq!(calls.len(), 4, "those of the host itself: {lines:?}");
}

#[test]
fn a_box_cannot_send_a_call_in_the_name_of_another_host() {
    let (site, broker, tls_box, client) = boxed();
    works(&client);
    let mut call = tls_box.passed().pop().unwrap();
    let second = format!(
        "{}[[hosts]]\nname = \"hv2\"\ncertificates = [{:?}]\nkeys = [\"{}\"]\n\
         [[rules]]\nhosts = [\"*\"]\nkey_sets = [\"*\"]\n",
        site.host_table(tls_box::CERTIFICATE),
        tls_box::CERTIFICATE,
        PrivateKey::generate().unwrap().public()
    );
    site.set_policy(&second);
    broker.restart();
    let mut frame = Frame::parse(&call.request).unwrap();
    frame.host = "hv2".into();
    call.request = serde_json::to_vec(&frame).unwrap();
    call.head = format!(
        "POST /v1/broker/call HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        call.request.len()
    );
    assert_eq!(tls_box.again(broker.port, &call).0, 403);
}

#[test]
fn what_one_broker_wraps_its_siblings_open() {
    let site = site();
    let (a, b) = (site.start(), site.start());
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(site.client(&[&a]).wrap(&key(), &payload, AAD)).unwrap();
    assert_eq!(
        wait(site.client(&[&b]).unwrap(&wrapped, AAD)).unwrap(),
        payload
    );
    let both = site.client(&[&a, &b]);
    works(&both);
    a.kill();
    works(&both);
    a.restart();
    b.kill();
    eventually("the first one is asked again", || {
        wait(both.unwrap(&wrapped, AAD)).ok()
    });
}

/// Waits until the broker has read the policy that it denies by.
fn until_denied(client: &BrokerProvider) -> sealblk::kms::Error {
    eventually("the policy is in force", || {
        wait(client.current_version(&key()))
            .err()
            .filter(|error| error.class() == FORBIDDEN)
    })
}

#[test]
fn a_permission_that_is_withdrawn_is_gone_and_both_ends_know_of_it() {
    let site = site();
    let (a, b) = (site.start(), site.start());
    let client = site.client(&[&a, &b]);
    works(&client);
    site.permit_nothing();
    until_denied(&client);
    let id = Uuid::new_v4();
    let (result, notes) = wait(call::observed(id, client.current_version(&key())));
    let error = result.unwrap_err();
    assert_eq!(error.class(), FORBIDDEN);
    assert_eq!(sealblk::error::Explain::kind(&error), Kind::Key);
    assert_eq!(notes.attempts.len(), 1, "the sibling is not asked");
    let lines = a.audit();
    let line = lines
        .iter()
        .find(|line| line["correlation"] == id.to_string())
        .unwrap();
    assert_eq!(
        (&line["event"], &line["outcome"]),
        (&json!("check"), &json!("denied")),
        "{line}"
    );
    assert_eq!(line["actor"]["host"], HOST, "{line}");
    site.permit(CERTIFICATE);
    eventually("the permission is there again", || {
        wait(client.current_version(&key())).ok()
    });
}

#[test]
fn a_host_that_a_broker_does_not_know_is_told_so_and_not_denied() {
    let site = site();
    site.permit("hv9.example");
    let broker = site.start();
    let error = wait(site.client(&[&broker]).current_version(&key())).unwrap_err();
    assert_eq!(error.class(), Class::Unreachable, "{error}");
    assert!(error.to_string().contains("does not know this host as hv1"));
    let refused =
        |line: &Value| line["outcome"] == "refused" && line["actor"]["certificate"] == CERTIFICATE;
    assert!(broker.audit().iter().any(refused), "{:?}", broker.audit());
}

/// A host with a daemon, whose key set `prod` is at these brokers.
struct Host(Daemon);

impl Host {
    fn new(site: &Site, brokers: &[&Broker], more: &str) -> Self {
        let home = Home::new();
        configure(&home, "", &site.key_set_table(brokers, more));
        let command = command(&home);
        Host(Daemon::run(home, command))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.home.path(name)
    }

    fn disk(&self, volume: &str) -> String {
        let directory = self.0.home.directory().file_name().unwrap();
        format!("{}-{volume}", directory.to_str().unwrap())
    }

    fn create(&self, volume: &str) {
        let create = [
            "volume",
            "create",
            volume,
            "--key-set",
            "prod",
            "--size",
            "4M",
        ];
        succeed(&mut self.0.sealblk(&create));
    }

    fn attach(&self, volume: &str) -> Reply {
        let request = json!({
            "volume": self.path(volume),
            "socket": self.path(&format!("{volume}.sock")),
            "name": self.disk(volume),
        });
        self.0.ask("POST", "/v1/disks", Some(&request.to_string()))
    }

    fn attach_command(&self, volume: &str) -> Command {
        let (socket, disk) = (format!("{volume}.sock"), self.disk(volume));
        self.0
            .sealblk(&["attach", volume, "--socket", &socket, "--name", &disk])
    }

    fn show(&self, volume: &str) -> Value {
        self.0
            .get(&format!("/v1/disks/{}", self.disk(volume)))
            .json()
    }

    fn connect(&self, volume: &str) -> FrontEnd {
        FrontEnd::connect(&self.path(&format!("{volume}.sock")), &Options::default()).unwrap()
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("audit.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[test]
fn no_attach_fails_when_the_first_of_three_brokers_is_killed() {
    let site = site();
    let brokers = [site.start(), site.start(), site.start()];
    let [a, b, c] = &brokers;
    let host = Host::new(&site, &[a, b, c], "timeout = \"10s\"\ndeadline = \"30s\"");
    let names: Vec<String> = (0..20).map(|n| format!("v{n}")).collect();
    for name in &names {
        host.create(name);
    }
    let before = unwraps(a);
    std::thread::scope(|scope| {
        let host = &host;
        let (last, names) = names.split_last().unwrap();
        let mut attaches: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || host.attach(name)))
            .collect();
        eventually("some have been answered by the first", || {
            (unwraps(a) > before).then_some(())
        });
        a.kill();
        // However late that was: this one it cannot answer.
        attaches.push(scope.spawn(move || host.attach(last)));
        for attach in attaches {
            let reply = attach.join().unwrap();
            assert_eq!(reply.status, 201, "{reply:?}");
            assert_eq!(reply.json()["state"], "running");
        }
    });
    let asked = unwraps(a) + unwraps(b);
    assert!(unwraps(b) > 0, "{asked} in all");
    assert_eq!(unwraps(c), 0, "the second one was enough");
    // Each volume was decided on its own, and is known at the broker by name.
    let uuids: BTreeSet<String> = [a, b]
        .iter()
        .flat_map(|broker| broker.audit())
        .filter(|line| line["event"] == "unwrap" && line["outcome"] == "ok")
        .map(|line| line["volume"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(uuids.len(), 20);
}

/// How many keys a broker has given out.
fn unwraps(broker: &Broker) -> usize {
    let lines = broker.audit();
    let unwraps = lines
        .iter()
        .filter(|line| line["event"] == "unwrap" && line["outcome"] == "ok");
    unwraps.count()
}

#[test]
fn a_volume_lives_without_any_credential_of_the_key_service() {
    let (key_set, token) = service("");
    let site = Site::new(&key_set);
    let (a, b) = (site.start(), site.start());
    let host = Host::new(&site, &[&a, &b], "");
    host.create("disk");
    succeed(&mut host.attach_command("disk"));
    host.connect("disk").write(0, &[0x5a; 4096]);

    // All that the host has.
    for (path, bytes) in tree::files(host.0.home.directory()) {
        needles::assert_absent(&bytes, token.as_bytes(), &path.display().to_string());
    }
    let line = |lines: &[Value], event: &str| {
        let found = lines.iter().rfind(|line| line["event"] == event);
        found
            .unwrap_or_else(|| panic!("no {event} in {lines:?}"))
            .clone()
    };
    let (here, there) = (line(&host.audit(), "unwrap"), line(&a.audit(), "unwrap"));
    for same in ["correlation", "volume", "outcome", "request_id"] {
        assert_eq!(here[same], there[same], "{same}: {here} {there}");
    }
    assert_eq!(
        (&here["provider"], &there["provider"]),
        (&json!("broker"), &json!("vault"))
    );
    assert_eq!(there["actor"]["host"], HOST);
    assert_eq!(there["actor"]["certificate"], CERTIFICATE);

    // Permission withdrawn: no next attach, with status 8; the disk runs on.
    site.permit_nothing();
    until_denied(&site.client(&[&a]));
    until_denied(&site.client(&[&b]));
    host.connect("disk").write(8, &[0x5b; 4096]);
    assert_eq!(host.show("disk")["state"], "running");
    host.0
        .ask("DELETE", &format!("/v1/disks/{}", host.disk("disk")), None);
    refused(&mut host.attach_command("disk")).expect(8, &["key set \"prod\""], "");
    let (here, there) = (line(&host.audit(), "unwrap"), line(&a.audit(), "unwrap"));
    for (line, reason) in [(&here, "forbidden"), (&there, "policy")] {
        assert_eq!(line["outcome"], "denied", "{line}");
        assert_eq!(line["reason"], reason, "{line}");
    }
    assert_eq!(here["correlation"], there["correlation"]);
    assert_eq!(here["volume"], there["volume"]);

    site.permit(CERTIFICATE);
    let start = Instant::now();
    while !host.attach_command("disk").status().unwrap().success() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }

    let data = host.connect("disk").read(8, 4096);
    assert_eq!(data, [0x5b; 4096]);
    succeed(&mut host.0.sealblk(&["audit", "verify"]));
}

#[test]
fn the_doctor_finds_brokers_well_and_what_is_wrong_with_them() {
    let site = site();
    let (a, b) = (site.start(), site.start());
    let host = Host::new(&site, &[&a, &b], "");
    let examine = || -> Vec<Value> {
        let output = host
            .0
            .sealblk(&["doctor", "--json", "--key-set", "prod"])
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let sets = report["key_sets"].as_array().unwrap();
        let prod = sets.iter().find(|set| set["name"] == "prod").unwrap();
        prod["checks"].as_array().unwrap().clone()
    };
    let named = |checks: &[Value], name: &str| -> Vec<Value> {
        let found = checks.iter().filter(|check| check["name"] == name);
        found.cloned().collect()
    };
    let well = examine();
    for name in [
        "tls", "service", "clock", "identity", "read_key", "wrap", "unwrap",
    ] {
        let found = named(&well, name);
        assert_eq!(found.len(), 2, "{name}: {well:?}");
        assert!(
            found.iter().all(|check| check["status"] == "ok"),
            "{found:?}"
        );
    }
    assert_eq!(named(&well, "replication")[0]["status"], "ok");

    let until_failed = |name: &str| -> String {
        let failed = eventually("the policy is in force", || {
            let found = named(&examine(), name);
            let failed = found.iter().all(|check| check["status"] == "fail");
            failed.then_some(found)
        });
        failed[0]["message"].as_str().unwrap().to_owned()
    };
    let why = "does not know this host as hv1";
    site.permit("hv9.example");
    let message = until_failed("service");
    assert!(message.contains(why), "{message}");
    // The certificate is that of another host.
    let host_table = site.host_table("hv9.example");
    let other = PrivateKey::generate().unwrap().public();
    site.set_policy(&format!(
        "{host_table}[[hosts]]\nname = \"hv2\"\ncertificates = [{CERTIFICATE:?}]\nkeys = [\"{other}\"]\n"
    ));
    let message = until_failed("identity");
    assert!(message.contains(why), "{message}");

    site.permit_nothing();
    let denied = eventually("the policy is in force", || {
        let checks = examine();
        let known = named(&checks, "identity")
            .iter()
            .all(|check| check["status"] == "ok");
        known.then_some(checks)
    });
    for name in ["read_key", "unwrap"] {
        let found = &named(&denied, name)[0];
        assert_eq!(found["status"], "fail", "{found}");
        assert_eq!(found["exit_status"], 8, "{found}");
    }
}
