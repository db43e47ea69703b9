//! What the `kmip` provider makes of answers that no good server gives:
//! malformed, oversized, slow, missing; and of those that PyKMIP cannot give.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;
#[allow(dead_code)]
#[path = "support/tls_server.rs"]
mod tls_server;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::kmip::numbers::{AES, Operation, RAW, reason, tag};
use sealblk::kms::kmip::protocol::{State, Version};
use sealblk::kms::kmip::ttlv::{self, Item, Tag, Value};
use sealblk::kms::kmip::{KmipProvider, Mode, Settings, by_id};
use sealblk::kms::tls::{self, ClientCertificate};
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider as _, call};
use sealblk::secret::Secret;
use tempfile::TempDir;
use uuid::Uuid;

use certificates::Authority;
use tls_server::{Serve, answering};

/// What a client needs to reach servers that this authority vouches for.
struct Host {
    directory: TempDir,
    authority: Authority,
}

impl Host {
    fn new() -> Self {
        let authority = Authority::new("answers");
        let directory = TempDir::new().unwrap();
        let client = authority.client("host");
        for (name, bytes) in [
            ("ca.pem", authority.certificate_pem()),
            ("host.pem", client.certificate_pem()),
            ("host.key", client.key_pem()),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        }
        Host {
            directory,
            authority,
        }
    }

    /// A client of a server that serves connections with `serve`.
    fn client(&self, mode: Mode, timeout: Duration, serve: Box<Serve>) -> KmipProvider {
        let port = tls_server::start(&self.authority, serve);
        let path = |name: &str| self.directory.path().join(name);
        KmipProvider::new(Settings {
            endpoints: vec![format!("127.0.0.1:{port}").parse().unwrap()],
            tls: tls::Settings {
                ca_files: vec![path("ca.pem")],
                client: Some(ClientCertificate {
                    certificate: path("host.pem"),
                    key: SecretFile::new(path("host.key")),
                }),
            },
            mode,
            wrapping_key: None,
            timing: Timing {
                timeout,
                deadline: timeout,
            },
            version: None,
        })
    }
}

/// Long enough for a machine that is busy with other tests.
const PATIENT: Duration = Duration::from_secs(20);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn key() -> KeyRef {
    KeyRef {
        id: Some(by_id("17").unwrap()),
        version: None,
    }
}

fn wrap(provider: &KmipProvider) -> Result<(), Error> {
    wait(provider.wrap(&key(), &Secret::random(64).unwrap(), b"")).map(|_| ())
}

/// Which operation a request asks for, and under which version.
fn asked(request: &[u8]) -> (u32, i32) {
    let message = ttlv::decode(request).unwrap();
    let header = message.get(tag::REQUEST_HEADER).unwrap();
    let version = header.get(tag::PROTOCOL_VERSION).unwrap();
    let item = message.get(tag::BATCH_ITEM).unwrap();
    (
        item.enumeration(tag::OPERATION).unwrap(),
        version.integer(tag::PROTOCOL_VERSION_MAJOR).unwrap(),
    )
}

fn message(items: Vec<Item<'_>>) -> Vec<u8> {
    let item = Item::structure(tag::BATCH_ITEM, items);
    let message = Item::structure(tag::RESPONSE_MESSAGE, vec![item]);
    message.encode().unwrap().to_vec()
}

fn enumeration(tag: Tag, value: u32) -> Item<'static> {
    Item::new(tag, Value::Enumeration(value))
}

fn good(operation: Operation, payload: Vec<Item<'_>>) -> Vec<u8> {
    message(vec![
        enumeration(tag::OPERATION, operation as u32),
        enumeration(tag::RESULT_STATUS, 0),
        Item::structure(tag::RESPONSE_PAYLOAD, payload),
    ])
}

/// An answer about this object.
fn about(id: &str, operation: Operation) -> Vec<u8> {
    good(
        operation,
        vec![Item::new(tag::UNIQUE_IDENTIFIER, Value::Text(id))],
    )
}

/// The same result once more, as that of another request in a batch.
fn twice(answer: &[u8]) -> Vec<u8> {
    let message = ttlv::decode(answer).unwrap();
    let items = [message.items(), message.items()].concat();
    Item::structure(tag::RESPONSE_MESSAGE, items)
        .encode()
        .unwrap()
        .to_vec()
}

fn refused(reason: u32) -> Vec<u8> {
    message(vec![
        enumeration(tag::RESULT_STATUS, 1),
        enumeration(tag::RESULT_REASON, reason),
        Item::new(tag::RESULT_MESSAGE, Value::Text("own words")),
    ])
}

fn versions(spoken: &[(i32, i32)]) -> Vec<u8> {
    let items = spoken.iter().map(|(major, minor)| {
        Item::structure(
            tag::PROTOCOL_VERSION,
            vec![
                Item::new(tag::PROTOCOL_VERSION_MAJOR, Value::Integer(*major)),
                Item::new(tag::PROTOCOL_VERSION_MINOR, Value::Integer(*minor)),
            ],
        )
    });
    good(Operation::DiscoverVersions, items.collect())
}

/// The attributes of KMIP 1.x of an AES-256 key in `state`, and `more` dates.
fn attributes(state: u32, more: &[(&str, i64)]) -> Vec<u8> {
    let attribute = |name, value| {
        Item::structure(
            tag::ATTRIBUTE,
            vec![
                Item::new(tag::ATTRIBUTE_NAME, Value::Text(name)),
                Item::new(tag::ATTRIBUTE_VALUE, value),
            ],
        )
    };
    let mut items = vec![
        attribute("State", Value::Enumeration(state)),
        attribute("Cryptographic Algorithm", Value::Enumeration(AES)),
        attribute("Cryptographic Length", Value::Integer(256)),
    ];
    let dates = more.iter();
    items.extend(dates.map(|(name, date)| attribute(name, Value::DateTime(*date))));
    good(Operation::GetAttributes, items)
}

fn material(format: u32, material: &[u8], wrapped: bool) -> Vec<u8> {
    let mut block = vec![
        enumeration(tag::KEY_FORMAT_TYPE, format),
        Item::structure(
            tag::KEY_VALUE,
            vec![Item::new(tag::KEY_MATERIAL, Value::Bytes(material))],
        ),
    ];
    if wrapped {
        block.push(Item::structure(tag::KEY_WRAPPING_DATA, vec![]));
    }
    let key = Item::structure(
        tag::SYMMETRIC_KEY,
        vec![Item::structure(tag::KEY_BLOCK, block)],
    );
    good(Operation::Get, vec![key])
}

const DISCOVER: u32 = Operation::DiscoverVersions as u32;
const ATTRIBUTES: u32 = Operation::GetAttributes as u32;
const ACTIVE: u32 = State::Active as u32;

/// A server of KMIP 1.4 with one active key, that answers what is asked of
/// the key with `last`.
fn with_active_key(last: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Box<Serve> {
    answering(move |request| {
        Some(match asked(request).0 {
            DISCOVER => versions(&[(1, 4)]),
            ATTRIBUTES => attributes(ACTIVE, &[]),
            _ => last(),
        })
    })
}

#[test]
fn what_is_not_an_answer_is_a_protocol_error_that_shows_nothing_of_it() {
    let host = Host::new();
    let deep = || {
        let mut item = Item::new(tag::DATA, Value::Bytes(b"do not show this"));
        for _ in 0..40 {
            item = Item::structure(tag::RESPONSE_MESSAGE, vec![item]);
        }
        item.encode().unwrap().to_vec()
    };
    let cut = || {
        let mut whole = material(RAW, b"do not show this, which is a key", false);
        // Ends within an item, as its own length has it.
        let shorter = u32::try_from(whole.len() - 16).unwrap();
        whole.truncate(whole.len() - 8);
        whole[4..8].copy_from_slice(&shorter.to_be_bytes());
        whole
    };
    let structure = |tag| Item::structure(tag, vec![]).encode().unwrap().to_vec();
    #[rustfmt::skip]
    let table: Vec<(Mode, Vec<u8>, &str)> = vec![
        (Mode::Get, b"HTTP/1.1 400 Bad Request\r\n\r\n".into(), "at most 65536 are taken"),
        (Mode::Get, [&[0x42, 0, 0x7b, 1][..], &u32::MAX.to_be_bytes()].concat(), "it has 4294967295 bytes"),
        (Mode::Get, deep(), "nests deeper"),
        (Mode::Get, cut(), "ends too early"),
        (Mode::Get, structure(tag::REQUEST_MESSAGE), "not a KMIP response"),
        (Mode::Get, structure(tag::RESPONSE_MESSAGE), "no result"),
        (Mode::Get, message(vec![]), "no result status"),
        (Mode::Get, message(vec![enumeration(tag::RESULT_STATUS, 0)]), "does not answer Get"),
        (Mode::Get, attributes(ACTIVE, &[]), "does not answer Get"),
        (Mode::Get, good(Operation::Get, vec![]), "no symmetric key"),
        (Mode::Get, material(2, b"do not show this, which is a key", false), "not raw"),
        (Mode::Get, material(RAW, b"do not show this", false), "has 16 bytes, and not 32"),
        (Mode::Get, material(RAW, b"do not show this, which is a key", true), "wrapped under another"),
        (Mode::Get, about("18", Operation::Get), "about another object than was asked for"),
        (Mode::Get, twice(&material(RAW, b"do not show this, which is a key", false)), "more results than were asked for"),
        (Mode::Server, about("18", Operation::Encrypt), "about another object than was asked for"),
        (Mode::Server, good(Operation::Encrypt, vec![]), "missing or has another length"),
        (Mode::Server, good(Operation::Encrypt, vec![
            Item::new(tag::DATA, Value::Bytes(&[1; 64])),
            Item::new(tag::AUTHENTICATED_ENCRYPTION_TAG, Value::Bytes(&[1; 12])),
        ]), "missing or has another length"),
        (Mode::Server, good(Operation::Encrypt, vec![
            Item::new(tag::DATA, Value::Bytes(&[1; 64])),
            Item::new(tag::IV_COUNTER_NONCE, Value::Bytes(&[1; 12])),
            Item::new(tag::AUTHENTICATED_ENCRYPTION_TAG, Value::Bytes(&[1; 16])),
        ]), "another nonce"),
    ];
    for (mode, answer, told) in table {
        let serve = with_active_key(move || answer.clone());
        let error = wrap(&host.client(mode, PATIENT, serve)).unwrap_err();
        assert_eq!(error.class(), Class::Protocol, "{told}: {error}");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(shown.contains(told), "{told}: {shown}");
            assert!(!shown.contains("do not show"), "{shown}");
        }
    }
}

#[test]
fn a_state_that_is_missing_or_unknown_is_not_taken_for_active() {
    let host = Host::new();
    for answer in [
        good(Operation::GetAttributes, vec![]),
        attributes(7, &[]),
        attributes(0, &[]),
    ] {
        let serve = answering(move |request| {
            Some(match asked(request).0 {
                DISCOVER => versions(&[(1, 4)]),
                ATTRIBUTES => answer.clone(),
                _ => material(RAW, &[7; 32], false),
            })
        });
        let error = wrap(&host.client(Mode::Get, PATIENT, serve)).unwrap_err();
        assert_eq!(error.class(), Class::Protocol);
        assert!(error.to_string().contains("no State"), "{error}");
    }
}

#[test]
fn a_server_that_is_silent_slow_or_gone_is_unreachable_in_time() {
    const SHORT: Duration = Duration::from_millis(700);
    let host = Host::new();
    let silent = |stream: &mut openssl::ssl::SslStream<std::net::TcpStream>| {
        let _ = std::io::copy(stream, &mut std::io::sink());
    };
    // Always something, and never all of it.
    let dripping = |stream: &mut openssl::ssl::SslStream<std::net::TcpStream>| {
        let mut request = [0; 8];
        let _ = stream.read_exact(&mut request);
        let _ = stream.write_all(&[0x42, 0, 0x7b, 1, 0, 0, 0x80, 0]);
        while stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let gone = answering(|_| None);
    const LONG: Duration = Duration::from_secs(5);
    for (serve, timeout, told) in [
        (
            Box::new(silent) as Box<Serve>,
            SHORT,
            "did not answer within",
        ),
        (Box::new(dripping), SHORT, "did not answer within"),
        (gone, LONG, "closed the connection instead of answering"),
    ] {
        let client = host.client(Mode::Get, timeout, serve);
        let start = Instant::now();
        let error = wrap(&client).unwrap_err();
        assert_eq!(error.class(), Class::Unreachable);
        assert!(error.to_string().contains(told), "{error}");
        assert!(start.elapsed() < PATIENT, "{told}: {:?}", start.elapsed());
    }
}

#[test]
fn dates_end_a_key_and_are_told_before() {
    const EXPIRED: Class = Class::Denied(Denied::Expired);
    let host = Host::new();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let client = |state: State, dates: Vec<(&'static str, i64)>| {
        let serve = answering(move |request| {
            Some(match asked(request).0 {
                DISCOVER => versions(&[(1, 4)]),
                ATTRIBUTES => attributes(state as u32, &dates),
                _ => material(RAW, &[7; 32], false),
            })
        });
        host.client(Mode::Get, PATIENT, serve)
    };
    let expires = |client: &KmipProvider| {
        let current = wait(client.current_version(&key())).unwrap();
        let since = |end: SystemTime| end.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        (
            current.enabled,
            current.expires.map(|end| since(end).as_secs() as i64),
        )
    };
    let later = client(State::Active, vec![("Deactivation Date", now + 1000)]);
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(later.wrap(&key(), &payload, b"")).unwrap();
    assert_eq!(expires(&later), (true, Some(now + 1000)));

    for (state, dates) in [
        (State::Active, vec![("Deactivation Date", now - 1)]),
        (State::Deactivated, vec![("Deactivation Date", now - 1)]),
    ] {
        let ended = client(state, dates);
        assert_eq!(wrap(&ended).unwrap_err().class(), EXPIRED);
        let error = wait(ended.unwrap(&wrapped, b"")).unwrap_err();
        assert_eq!(error.class(), EXPIRED, "{error}");
        assert_eq!(expires(&ended), (false, Some(now - 1)));
    }
    // Past its Protect Stop Date a key still unwraps.
    let stopped = client(State::Active, vec![("Protect Stop Date", now - 1)]);
    assert_eq!(wrap(&stopped).unwrap_err().class(), EXPIRED);
    assert_eq!(wait(stopped.unwrap(&wrapped, b"")).unwrap(), payload);
}

#[test]
fn a_key_that_is_revoked_between_the_look_and_the_use_is_told_as_revoked() {
    let host = Host::new();
    for (mode, later, class) in [
        (Mode::Get, State::Deactivated, Denied::Disabled),
        (Mode::Server, State::Destroyed, Denied::Deleted),
        // Still active: then it is the permission.
        (Mode::Server, State::Active, Denied::Forbidden),
    ] {
        let looks = AtomicU32::new(0);
        let serve = answering(move |request| {
            Some(match asked(request).0 {
                DISCOVER => versions(&[(1, 4)]),
                ATTRIBUTES if looks.fetch_add(1, Ordering::Relaxed) == 0 => attributes(ACTIVE, &[]),
                ATTRIBUTES => attributes(later as u32, &[]),
                _ => refused(reason::PERMISSION_DENIED),
            })
        });
        let error = wrap(&host.client(mode, PATIENT, serve)).unwrap_err();
        assert_eq!(error.class(), Class::Denied(class), "{error}");
    }
}

#[test]
fn the_highest_common_version_is_taken_and_none_is_told() {
    let host = Host::new();
    let agreed = |serve| {
        let client = host.client(Mode::Get, PATIENT, serve);
        wait(client.offer()).map(|offer| offer.version)
    };
    let speaking = |spoken: &'static [(i32, i32)]| {
        answering(move |request| {
            Some(match asked(request).0 {
                DISCOVER => versions(spoken),
                _ => good(Operation::Query, vec![]),
            })
        })
    };
    let v1_3 = Version { major: 1, minor: 3 };
    for (spoken, version) in [
        (&[(1, 0), (1, 1), (2, 0)][..], Version::V2_0),
        (&[(1, 1), (1, 3), (1, 2)], v1_3),
        (&[(3, 0), (1, 4)], Version::V1_4),
    ] {
        assert_eq!(agreed(speaking(spoken)).unwrap(), version);
    }
    for (spoken, told) in [(&[(1, 0), (2, 1)][..], "but 1.0, 2.1"), (&[], "but others")] {
        let error = agreed(speaking(spoken)).unwrap_err();
        assert_eq!(error.class(), Class::Protocol);
        assert!(error.to_string().contains(told), "{error}");
    }
    // One that no longer understands 1.1, and one that has never heard of it.
    let strict = answering(|request| {
        Some(match asked(request) {
            (_, 1) => refused(reason::UNSUPPORTED_PROTOCOL_VERSION),
            (DISCOVER, _) => versions(&[(2, 0)]),
            _ => good(Operation::Query, vec![]),
        })
    });
    assert_eq!(agreed(strict).unwrap(), Version::V2_0);
    let old = answering(|_| Some(refused(reason::OPERATION_NOT_SUPPORTED)));
    let error = agreed(old).unwrap_err();
    assert_eq!(error.class(), Class::Protocol);
    assert_eq!(error.words(), Some("own words"));
}

#[test]
fn a_connection_is_kept_for_the_next_call_and_made_again_when_it_was_closed() {
    let host = Host::new();
    // Closes a connection after the second call on it.
    let connections = Arc::new(AtomicU32::new(0));
    let counted = connections.clone();
    let serve: Box<Serve> = Box::new(move |stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        let calls = AtomicU32::new(0);
        let serve = answering(move |request| match asked(request).0 {
            DISCOVER => Some(versions(&[(1, 4)])),
            _ if calls.fetch_add(1, Ordering::Relaxed) < 2 => Some(attributes(ACTIVE, &[])),
            _ => None,
        });
        serve(stream);
    });
    let client = host.client(Mode::Get, PATIENT, serve);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for call in 0..6 {
        let current = runtime.block_on(client.current_version(&key())).unwrap();
        assert!(current.enabled);
        assert_eq!(
            connections.load(Ordering::Relaxed),
            1 + call / 2,
            "call {call}"
        );
    }
    // Another runtime cannot drive it.
    wait(client.current_version(&key())).unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 4);
}

/// The state of another key is not taken for that of the one that was asked for.
#[test]
fn what_is_said_of_another_key_is_not_believed() {
    let host = Host::new();
    let serve = answering(|request| {
        Some(match asked(request).0 {
            DISCOVER => versions(&[(1, 4)]),
            _ => about("18", Operation::GetAttributes),
        })
    });
    let client = host.client(Mode::Get, PATIENT, serve);
    let error = wait(client.current_version(&key())).unwrap_err();
    assert_eq!(error.class(), Class::Protocol, "{error}");
    assert!(error.to_string().contains("another object"), "{error}");
}

/// A connection that is kept is not used with a certificate that was replaced.
#[test]
fn a_connection_does_not_outlive_the_files_that_it_was_made_with() {
    let host = Host::new();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = connections.clone();
    let serve: Box<Serve> = Box::new(move |stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        with_active_key(|| refused(reason::GENERAL_FAILURE))(stream);
    });
    let client = host.client(Mode::Get, PATIENT, serve);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let ask = || runtime.block_on(client.current_version(&key()));
    ask().unwrap();
    ask().unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let replace = |client: &certificates::Issued| {
        for (name, bytes) in [
            ("host.pem", client.certificate_pem()),
            ("host.key", client.key_pem()),
        ] {
            std::fs::write(host.directory.path().join(name), bytes).unwrap();
        }
    };
    replace(&host.authority.client("host"));
    ask().unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 2);
    replace(&host.authority.client_valid("host", (-3, -1)));
    let error = ask().unwrap_err();
    assert!(error.to_string().contains("expired on"), "{error}");
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

/// The id that the client gave to a request.
fn correlation(request: &[u8]) -> Option<String> {
    let message = ttlv::decode(request).unwrap();
    let header = message.get(tag::REQUEST_HEADER).unwrap();
    header
        .text(tag::CLIENT_CORRELATION_VALUE)
        .map(str::to_owned)
}

#[test]
fn requests_have_an_id_on_both_sides_where_the_server_knows_them() {
    let host = Host::new();
    let id = Uuid::from_u128(0x1234);
    // (the version, whether the server understands ids, what it is told)
    for (version, understands, expected) in [
        ((1, 4), true, vec![Some(id.to_string()); 2]),
        ((1, 3), true, vec![None, None]),
        ((1, 4), false, vec![Some(id.to_string()), None, None]),
    ] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let serve = answering(move |request| {
            let (operation, _) = asked(request);
            if operation == DISCOVER {
                return Some(versions(&[version]));
            }
            let given = correlation(request);
            told.lock().unwrap().push(given.clone());
            if given.is_some() && !understands {
                return Some(refused(reason::INVALID_MESSAGE));
            }
            let answer = attributes(ACTIVE, &[]);
            let answer = ttlv::decode(&answer).unwrap();
            let own = Item::new(tag::SERVER_CORRELATION_VALUE, Value::Text("4711"));
            let header = Item::structure(tag::RESPONSE_HEADER, vec![own]);
            let item = answer.get(tag::BATCH_ITEM).unwrap().clone();
            let answer = Item::structure(tag::RESPONSE_MESSAGE, vec![header, item]);
            Some(answer.encode().unwrap().to_vec())
        });
        let client = host.client(Mode::Get, PATIENT, serve);
        for _ in 0..2 {
            let (key, client) = (key(), &client);
            let (current, notes) = wait(call::observed(id, client.current_version(&key)));
            assert!(current.unwrap().enabled);
            assert_eq!(notes.request_id.as_deref(), Some("4711"), "{version:?}");
        }
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}
