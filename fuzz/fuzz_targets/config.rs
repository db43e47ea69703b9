//! Configuration files of daemon, serve and broker, files of key sets, and policies
//! of brokers: TOML that is mostly right, with edits.
//!
//! Reading them never panics. What is wrong is told with the file, in words that
//! show on a terminal as they are; what is right can be put into the file of a key
//! set, and means the same there.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sealblk::broker::policy::{Asked, Decision, Operation, Policy};
use sealblk::config::{Config, KeySetFiles, Overrides};
use sealblk::error::Explain;
use sealblk::timestamp::Timestamp;
use sealblk_fuzz::edit::edit;
use sealblk_fuzz::source::Source;
use sealblk_fuzz::toml;
use serde_json::{Value, json};
use uuid::Uuid;

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("sealblk-config-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a directory");
    path
});

const WORDS: [&str; 46] = [
    "key_sets",
    "key_stores",
    "log",
    "audit",
    "serve",
    "daemon",
    "verify",
    "broker",
    "provider",
    "file",
    "vault",
    "azure-keyvault",
    "aws-kms",
    "gcp-kms",
    "kmip",
    "pkcs11",
    "k8s-kms",
    "key",
    "key_file",
    "version",
    "latest",
    "endpoints",
    "auth",
    "method",
    "token",
    "hierarchy",
    "group",
    "direct",
    "poll",
    "on_denied",
    "denied_grace",
    "break_glass",
    "key_store",
    "previous",
    "timeout",
    "deadline",
    "limits",
    "iops",
    "burst",
    "1MiB",
    "10s",
    "roles",
    "socket",
    "queues",
    "cpus",
    "on_error",
];

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(4) {
        0 | 1 => {
            let mut value = configuration(&mut source);
            edit(&mut value, &mut source, &WORDS);
            check_config(toml::text(&value).as_bytes());
        }
        2 => {
            let mut value = policy(&mut source);
            edit(
                &mut value,
                &mut source,
                &["host", "rule", "deny", "allow", "*", "volumes"],
            );
            check_policy(&toml::text(&value));
        }
        _ => {
            let text = source.rest();
            check_config(text);
            check_policy(&String::from_utf8_lossy(text));
        }
    }
});

/// A key set of each provider.
fn key_set(source: &mut Source<'_>) -> Value {
    let endpoint = json!(["https://kms.example:8200"]);
    match source.below(9) {
        0 => json!({"provider": "file", "key_file": "/etc/k.json"}),
        1 => json!({
            "provider": "vault", "endpoints": endpoint, "key": "disks", "mount": "transit",
            "auth": {"method": "approle", "role_id": "r", "secret_id": "/s"}, "timeout": "2s",
            "ca_file": "/ca.pem", "deadline": "20s", "hierarchy": "group", "poll": "60s",
        }),
        2 => json!({
            "provider": "azure-keyvault", "vault": "https://v.vault.azure.net", "key": "disks",
            "identity": {"kind": "managed"}, "on_denied": "pause", "denied_grace": "5m",
        }),
        3 => json!({
            "provider": "aws-kms", "key": "alias/disks", "region": "eu-central-1",
            "credentials": {"source": "environment"}, "break_glass": "default",
        }),
        4 => json!({
            "provider": "gcp-kms", "auth": {"method": "metadata"},
            "key": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        }),
        5 => json!({
            "provider": "kmip", "endpoints": ["kmip.example:5696"], "key_name": "k",
            "ca_file": "/ca.pem", "client_cert": "/c.pem", "client_key": "/c.key",
        }),
        6 => json!({
            "provider": "pkcs11", "module": "/usr/lib/p.so", "key": "pkcs11:object=k",
            "token": "pkcs11:token=t", "pin": "/pin",
        }),
        7 => json!({"provider": "k8s-kms", "socket": "unix:///run/kms.sock"}),
        _ => json!({
            "provider": "broker", "endpoints": ["https://b:8843"], "key_set": "k", "host": "h",
            "host_key": "/h.key", "broker_keys": ["AAAA"], "ca_file": "/ca.pem",
            "client_cert": "/c.pem", "client_key": "/c.key",
        }),
    }
}

fn configuration(source: &mut Source<'_>) -> Value {
    let mut value = json!({
        "key_sets": {"default": {"provider": "file"}, "one": key_set(source)},
        "key_stores": {"s": {"kind": "directory", "path": "/store"}},
        "log": {"level": "info", "format": "json"},
        "daemon": {
            "socket": "/run/sealblk/sealblk.sock", "state_dir": "/var/lib/sealblk",
            "attach_concurrency": 8, "keep_deks": false, "poll": "10s",
            "roles": {"reader": ["group:g"], "operator": ["user:u"], "key_admin": []},
        },
        "serve": {"queues": 4, "queue_size": 256, "engine": "auto", "on_error": "stop"},
    });
    match source.below(4) {
        0 => {}
        1 => value["audit"] = json!({"path": "/var/log/a.jsonl", "max_size": "64MiB", "keep": 5}),
        2 => {
            value["broker"] = json!({
                "listen": "[::]:8843", "certificate": "/b.pem", "certificate_key": "credential:tls",
                "client_ca_file": "/ca.pem", "key": "/b.key", "policy": "/policy.toml",
                "connections": 100, "handshake_timeout": "5s",
            });
        }
        _ => {
            value["serve"] = json!({"limits": {"iops": 1000, "bandwidth": "10MiB"}, "cpus": "0-1"})
        }
    }
    value
}

fn policy(source: &mut Source<'_>) -> Value {
    let mut value = json!({
        "hosts": [{
            "name": "h1", "certificates": ["h1.example"], "keys": ["A".repeat(42) + "E="],
        }],
        "rules": [{
            "hosts": ["h*"], "key_sets": ["k"], "operations": ["wrap", "unwrap"],
            "volumes": ["*"],
        }],
    });
    match source.below(4) {
        0 => {}
        1 => value["rules"][0]["hours"] = "08:00-18:00".into(),
        2 => {
            value["rules"][0]["not_before"] = "1970-01-01T00:00:00Z".into();
            value["rules"][0]["not_after"] = "9999-12-31T23:59:59Z".into();
        }
        _ => {
            let deny = json!({"hosts": ["h1"], "key_sets": ["*"], "deny": true});
            value["rules"].as_array_mut().expect("it is one").push(deny);
        }
    }
    value
}

/// What a person is told of an error: something.
fn check_words(error: &(impl std::error::Error + Explain)) {
    assert!(!error.to_string().trim().is_empty());
    let _ = (error.kind(), error.help());
}

fn check_config(text: &[u8]) {
    let path = DIRECTORY.join("sealblk.toml");
    std::fs::write(&path, text).expect("a file");
    let config = match Config::load(Some(&path), Overrides::default()) {
        Ok(config) => config,
        Err(error) => return check_words(&error),
    };
    let all = config.settings();
    assert!(!all.is_empty());
    let files = KeySetFiles::new(DIRECTORY.join("none"));
    for (name, definition) in &config.key_sets {
        let table = config.settings_of(name);
        // What the file of a key set may not have is nothing that changes it.
        if let Ok(again) = files.check(name, &table) {
            assert_eq!(again, *definition);
        }
        let _ = (definition.source.key_id(), definition.source.provider());
    }
}

fn check_policy(text: &str) {
    match sealblk::broker::policy::parse(Path::new("policy.toml"), text) {
        Ok(policy) => check_decisions(&policy),
        Err(error) => check_words(&error),
    }
}

/// What is denied by one rule is permitted by none.
fn check_decisions(policy: &Policy) {
    for host in ["h1", "", "nobody"] {
        for key_set in ["k", "x"] {
            let asked = Asked {
                host,
                operation: Operation::Unwrap,
                key_set,
                volume: Some(Uuid::from_u128(1)),
            };
            let now = Timestamp::now();
            let decision = policy.decide(&asked, now);
            let denied = policy.rules.iter();
            let denied = denied
                .clone()
                .any(|rule| rule.deny && rule.denies(&asked, now));
            match decision {
                Decision::Permitted(number) => {
                    assert!(!denied && !policy.rules[number - 1].deny, "{policy:?}");
                }
                Decision::Denied(denial) => {
                    assert!(!denial.cause.is_empty() && !denial.next.is_empty());
                }
            }
        }
    }
}
