//! What the `kmip` provider does with a real server that the conformance
//! suite cannot ask of every provider: versions of the protocol, both modes
//! on one key, finding keys, states, identities, wrapped keys and failover.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;
#[allow(dead_code)]
#[path = "support/pykmip.rs"]
mod pykmip;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::error::Explain as _;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::kmip::numbers::Operation;
use sealblk::kms::kmip::protocol::{Attribute, State, Version};
use sealblk::kms::kmip::{KmipProvider, Mode, Settings, WrappingKey, by_id, by_name};
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider as _, Wrapped, call};
use sealblk::secret::Secret;
use uuid::Uuid;

use certificates::Authority;
use pykmip::{PyKmip, free_port};

const AAD: &[u8] = b"volume 1";
const MODES: [Mode; 2] = [Mode::Server, Mode::Get];
const DISABLED: Class = Class::Denied(Denied::Disabled);
const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn id(id: &str) -> KeyRef {
    KeyRef {
        id: Some(by_id(id).unwrap()),
        version: None,
    }
}

fn name(name: &str) -> KeyRef {
    KeyRef {
        id: Some(by_name(name).unwrap()),
        version: None,
    }
}

fn payload() -> Secret {
    Secret::random(64).unwrap()
}

fn create(server: &PyKmip, name: &str) -> String {
    wait(server.client(Mode::Get).create_key(name)).unwrap()
}

fn class<T: std::fmt::Debug>(result: Result<T, Error>) -> Class {
    result.unwrap_err().class()
}

/// Wraps and unwraps: the wrapped key, or what failed.
fn round(provider: &KmipProvider, key: &KeyRef) -> Result<Wrapped, Error> {
    let payload = payload();
    let wrapped = wait(provider.wrap(key, &payload, AAD))?;
    assert_eq!(wait(provider.unwrap(&wrapped, AAD))?, payload);
    Ok(wrapped)
}

#[test]
fn every_version_and_both_modes_open_what_any_of_them_wrapped() {
    let server = PyKmip::shared();
    let key = name("versions");
    create(&server, "versions");
    let client = |mode, version| {
        let mut settings = server.settings("host", mode);
        settings.version = Some(version);
        KmipProvider::new(settings)
    };
    let payload = payload();
    let mut wraps = Vec::new();
    for version in Version::SPOKEN {
        assert_eq!(
            wait(client(Mode::Get, version).offer()).unwrap().version,
            version
        );
        for mode in MODES {
            let wrapped = wait(client(mode, version).wrap(&key, &payload, AAD));
            if mode == Mode::Server && version < Version::V1_4 {
                let error = wrapped.unwrap_err();
                assert_eq!(error.class(), Class::Protocol);
                assert!(error.help().unwrap().contains("mode = \"get\""), "{error}");
            } else {
                wraps.push(wrapped.unwrap());
            }
        }
    }
    assert_eq!(wraps.len(), 7);
    for version in Version::SPOKEN {
        for mode in MODES {
            if mode == Mode::Server && version < Version::V1_4 {
                continue;
            }
            for wrapped in &wraps {
                let opened = wait(client(mode, version).unwrap(wrapped, AAD)).unwrap();
                assert_eq!(opened, payload, "{mode:?} {version}");
            }
        }
    }
    // Left alone, both sides take the highest.
    let offer = wait(server.client(Mode::Get).offer()).unwrap();
    assert_eq!(offer.version, Version::V2_0);
    assert!(offer.vendor.unwrap().contains("PyKMIP"));
    for operation in [Operation::Locate, Operation::Get, Operation::Encrypt] {
        assert!(
            offer.operations.contains(&(operation as u32)),
            "{operation}"
        );
    }
}

#[test]
fn keys_are_found_by_name_attributes_and_state() {
    let server = PyKmip::shared();
    for version in [Version::V1_1, Version::V1_4, Version::V2_0] {
        let called = format!("found in {version}");
        let mut settings = server.settings("host", Mode::Get);
        settings.version = Some(version);
        let client = KmipProvider::new(settings);
        let active = wait(client.create_key(&called)).unwrap();
        let revoked = wait(client.create_key(&called)).unwrap();
        server.set_state(&revoked, State::Deactivated as u32);
        let locate = |wanted: &[Attribute<'_>]| {
            let mut found = wait(client.locate(wanted)).unwrap();
            found.sort();
            found
        };
        let named = Attribute::Name(&called);
        let mut both = vec![active.clone(), revoked.clone()];
        both.sort();
        assert_eq!(locate(&[named]), both);
        assert_eq!(
            locate(&[
                named,
                Attribute::SymmetricKey,
                Attribute::Aes,
                Attribute::Bits(256)
            ]),
            both
        );
        assert_eq!(locate(&[named, Attribute::State(State::Active)]), [active]);
        assert_eq!(
            locate(&[named, Attribute::State(State::Deactivated)]),
            [revoked]
        );
        assert_eq!(locate(&[named, Attribute::Bits(128)]), [""; 0]);
        assert_eq!(locate(&[Attribute::Name("nobody")]), [""; 0]);
    }
}

#[test]
fn the_newest_activated_key_of_a_name_is_used_and_a_tie_is_refused() {
    let server = PyKmip::shared();
    let client = server.client(Mode::Get);
    let key = name("newest");
    let staged = server.operate(
        "print(c.create(enums.CryptographicAlgorithm.AES, 256, name='newest', \
         cryptographic_usage_mask=[enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]))",
    );
    let staged = staged.trim();
    let error = round(&client, &key).unwrap_err();
    assert_eq!(error.class(), DISABLED);
    assert!(error.help().unwrap().contains("activate"), "{error}");
    let current = wait(client.current_version(&key)).unwrap();
    assert_eq!((current.id.as_str(), current.enabled), (staged, false));

    let (a, b) = (create(&server, "newest"), create(&server, "newest"));
    server.set_made(&a, 1_000);
    server.set_made(&b, 2_000);
    assert_eq!(round(&client, &key).unwrap().version, b);
    // Wherever it stands in the answer, and although the staged one is newer.
    server.set_made(&a, 3_000);
    assert_eq!(round(&client, &key).unwrap().version, a);
    server.set_made(&b, 3_000);
    let error = round(&client, &key).unwrap_err();
    assert_eq!(error.class(), Class::Protocol);
    assert!(
        error.to_string().contains("made in the same second"),
        "{error}"
    );
    assert_eq!(class(wait(client.current_version(&key))), Class::Protocol);
    let pinned = KeyRef {
        version: Some(b.clone()),
        ..key
    };
    assert_eq!(round(&client, &pinned).unwrap().version, b);
    // What is destroyed is not in the way.
    server.set_state(&a, State::Destroyed as u32);
    assert_eq!(round(&client, &name("newest")).unwrap().version, b);
}

#[test]
fn a_key_that_the_server_still_hands_out_is_denied_in_each_bad_state() {
    let server = PyKmip::shared();
    for mode in MODES {
        let client = server.client(mode);
        let key = create(&server, "bad states");
        let payload = payload();
        let wrapped = wait(client.wrap(&id(&key), &payload, AAD)).unwrap();
        let check = |expected: Class| {
            let handed_out = server.operate(&format!("print(len(c.get({key:?}).value))"));
            assert_eq!(handed_out.trim(), "32");
            assert_eq!(class(wait(client.wrap(&id(&key), &payload, AAD))), expected);
            assert_eq!(class(wait(client.unwrap(&wrapped, AAD))), expected);
            assert!(!wait(client.current_version(&id(&key))).unwrap().enabled);
        };
        server.revoke(&key, false);
        check(DISABLED);
        server.revoke(&key, true);
        check(DISABLED);
        for (state, class) in [
            (State::PreActive, DISABLED),
            (State::Destroyed, Class::Denied(Denied::Deleted)),
            (State::DestroyedCompromised, Class::Denied(Denied::Deleted)),
        ] {
            server.set_state(&key, state as u32);
            check(class);
        }
        server.set_state(&key, State::Active as u32);
        assert_eq!(wait(client.unwrap(&wrapped, AAD)).unwrap(), payload);
        server.revoke(&key, false);
        server.destroy(&key);
        assert_eq!(class(wait(client.unwrap(&wrapped, AAD))), Class::NotFound);
    }
}

#[test]
fn other_keys_than_aes_256_for_encryption_are_refused() {
    let server = PyKmip::shared();
    let make = |algorithm: &str, bits: u32| {
        let id = server.operate(&format!(
            "i = c.create(enums.CryptographicAlgorithm.{algorithm}, {bits}); c.activate(i); print(i)"
        ));
        id.trim().to_string()
    };
    for mode in MODES {
        let client = server.client(mode);
        for (algorithm, bits) in [("AES", 128), ("CAMELLIA", 256)] {
            let error = round(&client, &id(&make(algorithm, bits))).unwrap_err();
            assert_eq!(error.class(), Class::Protocol);
            assert!(error.to_string().contains("not an AES-256 key"), "{error}");
        }
    }
    // The usage mask binds the server; a key that is got is ours to use.
    let signer = create(&server, "signer");
    server.set_usage(&signer, 1);
    let error = round(&server.client(Mode::Server), &id(&signer)).unwrap_err();
    assert_eq!(error.class(), FORBIDDEN);
    assert!(error.help().unwrap().contains("usage mask"), "{error}");
}

#[test]
fn a_key_can_be_given_out_wrapped() {
    let server = PyKmip::shared();
    let key = name("given out wrapped");
    create(&server, "given out wrapped");
    let transport = Secret::random(32).unwrap();
    let wrapping = server.register_wrapping_key(&transport);
    let file = |file_name: &str, text: &[u8]| {
        let path = server.path(file_name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        SecretFile::new(path)
    };
    let client = |id: &str, file: SecretFile| {
        let id = id.to_string();
        let mut settings = server.settings("host", Mode::Get);
        settings.wrapping_key = Some(WrappingKey { id, file });
        KmipProvider::new(settings)
    };
    let good = file("transport", BASE64.encode(&transport[..]).as_bytes());
    let wrapped = round(&client(&wrapping, good.clone()), &key).unwrap();
    // The same as without, and in the other mode.
    assert!(wait(server.client(Mode::Get).unwrap(&wrapped, AAD)).is_ok());
    assert!(wait(server.client(Mode::Server).unwrap(&wrapped, AAD)).is_ok());

    let other = file("other", BASE64.encode([7; 32]).as_bytes());
    let error = round(&client(&wrapping, other), &key).unwrap_err();
    assert!(error.to_string().contains("is not key"), "{error}");
    let short = file("short", BASE64.encode([7; 16]).as_bytes());
    let error = round(&client(&wrapping, short), &key).unwrap_err();
    assert!(error.to_string().contains("32 bytes in base64"), "{error}");
    let missing = SecretFile::new(server.path("missing"));
    assert_eq!(
        class(round(&client(&wrapping, missing), &key)),
        Class::Unreachable
    );
    assert_eq!(class(round(&client("4711", good), &key)), Class::NotFound);
}

#[test]
fn who_may_not_is_told_so_and_who_is_not_known_gets_nowhere() {
    let server = PyKmip::shared();
    let key = create(&server, "private");
    let ours = round(&server.client(Mode::Get), &id(&key)).unwrap();
    let client = |name: &str| KmipProvider::new(server.settings(name, Mode::Get));
    server.place("guest", &server.authority.client("guest"));
    let error = round(&client("guest"), &id(&key)).unwrap_err();
    assert_eq!(error.class(), FORBIDDEN);
    assert!(error.to_string().contains("Get Attributes"), "{error}");
    assert_eq!(class(wait(client("guest").unwrap(&ours, AAD))), FORBIDDEN);
    // To them the name is nobody's.
    assert_eq!(
        class(round(&client("guest"), &name("private"))),
        Class::NotFound
    );

    // Clients that the server does not know, and a server that we do not.
    server.place("foreign", &Authority::new("another").client("host"));
    server.place("expired", &server.authority.client_valid("host", (-3, -1)));
    let unreachable = |settings: Settings, told: &str| {
        let mut settings = settings;
        settings.timing.deadline = Duration::from_secs(2);
        let error = round(&KmipProvider::new(settings), &id(&key)).unwrap_err();
        assert_eq!(error.class(), Class::Unreachable, "{error}");
        assert!(error.to_string().contains(told), "{told}: {error}");
        assert!(!error.help().unwrap().is_empty());
    };
    unreachable(
        server.settings("foreign", Mode::Get),
        "does not accept our client certificate",
    );
    unreachable(server.settings("expired", Mode::Get), "expired");
    let mut without = server.settings("host", Mode::Get);
    without.tls.client = None;
    unreachable(without, "client certificate");
    let mut wrong = server.settings("host", Mode::Get);
    let pem = Authority::new("another").certificate_pem();
    std::fs::write(server.path("wrong-ca.pem"), pem).unwrap();
    wrong.tls.ca_files = vec![server.path("wrong-ca.pem")];
    unreachable(wrong, "authority that is not trusted here");
    let mut elsewhere = server.settings("host", Mode::Get);
    elsewhere.endpoints = vec![format!("127.0.0.2:{}", server.port).parse().unwrap()];
    unreachable(elsewhere, "nothing listens");
}

#[test]
fn the_next_server_is_asked_and_a_lost_connection_is_made_again() {
    let server = PyKmip::start();
    let sibling = server.beside();
    // The sibling's first key is another one than the server's second.
    create(&server, "not it");
    let key = id(&create(&server, "replicated"));
    let endpoint = |port: u16| format!("127.0.0.1:{port}").parse().unwrap();
    let provider = |ports: &[u16]| {
        let mut settings = server.settings("host", Mode::Server);
        settings.endpoints = ports.iter().map(|port| endpoint(*port)).collect();
        settings.timing.deadline = Duration::from_secs(10);
        KmipProvider::new(settings)
    };
    let wrapped = round(&provider(&[free_port(), server.port]), &key).unwrap();
    // A replica that lags behind is no answer, as long as another one has the key.
    assert!(round(&provider(&[sibling.port, server.port]), &key).is_ok());
    let lacking = provider(&[sibling.port]);
    assert_eq!(class(wait(lacking.unwrap(&wrapped, AAD))), Class::NotFound);

    // One runtime, as in a daemon, so that connections are kept.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let provider = provider(&[server.port]);
    for restarted in [false, false, true, false] {
        if restarted {
            server.restart();
        }
        runtime.block_on(provider.unwrap(&wrapped, AAD)).unwrap();
    }
    server.stop();
    let error = runtime
        .block_on(provider.unwrap(&wrapped, AAD))
        .unwrap_err();
    assert_eq!(error.class(), Class::Unreachable, "{error}");
}

/// PyKMIP knows the versions in which requests can have an id, and not the ids.
#[test]
fn an_id_that_the_server_does_not_understand_is_left_out() {
    let server = PyKmip::shared();
    create(&server, "ids");
    for version in [Version::V1_1, Version::V1_4, Version::V2_0] {
        let mut settings = server.settings("host", Mode::Get);
        settings.version = Some(version);
        let client = KmipProvider::new(settings);
        for _ in 0..2 {
            let (key, payload) = (name("ids"), payload());
            let wrapping = client.wrap(&key, &payload, AAD);
            let (wrapped, _) = wait(call::observed(Uuid::from_u128(7), wrapping));
            let wrapped = wrapped.unwrap();
            assert_eq!(wait(client.unwrap(&wrapped, AAD)).unwrap(), payload);
        }
    }
}
