//! What others on the broker's host can see of what it wraps: nothing.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealblk::secret::Secret;

use super::broker::Site;
use super::client::Client;
use super::key_needles::Needles;
use super::key_search::{outside, search};
use super::needles::assert_absent;
use super::policy::ALL;
use super::process_memory::wait_until_idle;
use super::tree;

#[test]
fn payloads_are_in_no_log_record_file_or_memory() {
    let site = Site::new();
    let host = site.host("hv1");
    site.policy(&[&host], ALL);
    let key_sets =
        site.file_key_set("direct", "") + &site.file_key_set("group", "hierarchy = \"group\"");
    let broker = site.broker("broker", "", &key_sets);
    let client = Client::new(&site, &host, &broker);
    let secrets: Vec<Secret> = (0..8).map(|_| Secret::random(63).unwrap()).collect();
    for (secret, key_set) in secrets.iter().zip(["direct", "group"].iter().cycle()) {
        let wrapped = client.wrap(key_set, b"x", secret).unwrap();
        assert_eq!(client.unwrap(key_set, b"x", &wrapped).unwrap(), *secret);
        // And where it fails.
        client.unwrap(key_set, b"y", &wrapped).unwrap_err();
    }
    // The log is at its most talkative.
    let log = broker.messages();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "{log}");
    let files = tree::files(&broker.directory);
    let mut shown: Vec<u8> = files.into_iter().flat_map(|(_, bytes)| bytes).collect();
    shown.extend(broker.metrics().into_bytes());
    // But for the key file of the broker itself, nothing may be there.
    let key = fs::read_to_string(broker.directory.join("broker.x25519")).unwrap();
    let own = STANDARD
        .decode(key.lines().nth(1).unwrap())
        .unwrap()
        .split_off(16);
    for secret in &secrets {
        assert_absent(&shown, secret, "a file or the metrics");
    }
    assert_absent(log.as_bytes(), &own, "the log");
    let pid = broker.pid().as_raw_nonzero();
    for name in ["cmdline", "environ"] {
        let shown = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        assert_absent(&shown, &own, name);
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.contains("core file"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2
    );
    // Who is not root does not get to see it at all: it is not dumpable.
    let pid = u32::try_from(pid.get()).unwrap();
    if !rustix::process::geteuid().is_root() {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"));
        assert!(maps.is_err(), "its memory can be looked at");
        return;
    }
    wait_until_idle(pid);
    let policy = site.path("policy.toml");
    let control = Needles::new().text("the policy's path", policy.to_str().unwrap());
    assert!(!search(pid, &control).is_empty(), "its memory is another");
    let mut needles = Needles::new().bytes("the broker's key", &own);
    for secret in &secrets {
        needles = needles.bytes("a secret of a call", secret);
    }
    let hits = search(pid, &needles);
    assert!(outside(&hits).is_empty(), "{:?}", outside(&hits));
}
