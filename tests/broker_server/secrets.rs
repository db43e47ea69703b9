//! What others on the broker's host can see of what it wraps: nothing.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealblk::secret::Secret;

use super::broker::{Broker, Site};
use super::client::Client;
use super::needles::assert_absent;
use super::policy::ALL;

/// All that the process has in ordinary memory that it can write to.
fn memory(broker: &Broker) -> Option<Vec<u8>> {
    let pid = broker.pid().as_raw_nonzero();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, mode) = (fields.next().unwrap(), fields.next().unwrap());
        if !mode.starts_with("rw") || line.contains("secretmem") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let at = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(at(to) - at(from)).unwrap()];
        memory.seek(SeekFrom::Start(at(from))).ok()?;
        // What the kernel does not show is not in its map.
        if memory.read_exact(&mut bytes).is_ok() {
            all.extend_from_slice(&bytes);
        }
    }
    Some(all)
}

fn contains(memory: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = memory[from..].iter().position(|byte| *byte == first) {
        if memory[from + at..].starts_with(needle) {
            return true;
        }
        from += at + 1;
    }
    false
}

fn walk(directory: &Path, shown: &mut Vec<u8>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => walk(&path, shown),
            path if path.is_file() => shown.extend(fs::read(path).unwrap()),
            _ => {}
        }
    }
}

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
    let mut shown = Vec::new();
    walk(&broker.directory, &mut shown);
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
    let Some(memory) = memory(&broker) else {
        assert!(!rustix::process::geteuid().is_root(), "root can read it");
        return;
    };
    let policy = site.path("policy.toml");
    assert!(
        contains(&memory, policy.as_os_str().as_encoded_bytes()),
        "the memory that was read is not that of the broker"
    );
    for secret in secrets.iter().map(|secret| &secret[..]).chain([&own[..]]) {
        assert!(!contains(&memory, secret), "a secret is in memory");
        let text = STANDARD.encode(secret);
        assert!(
            !contains(&memory, text.as_bytes()),
            "a secret is in memory as base64"
        );
    }
}
