//! What a plugin of the Kubernetes KMS API v2 can do to us, or somebody in its
//! place: with plugins in Python, and sockets of our own.
#![cfg(feature = "k8s-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/k8s_plugin.rs"]
mod k8s_plugin;
#[path = "support/needles.rs"]
mod needles;

use std::fs;
use std::io::{Read as _, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::symm::{Cipher, decrypt_aead};
use sealblk::error::{Explain, Kind};
use sealblk::kms::k8s::{K8sProvider, envelope};
use sealblk::kms::{Class, Denied, Error, KeyRef, KeyVersion, Provider, Wrapped, call};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use k8s_plugin::Plugin;

const AAD: &[u8] = b"volume 1";

fn provider(plugin: &Plugin) -> K8sProvider {
    K8sProvider::new(plugin.settings())
}

fn at(socket: PathBuf) -> K8sProvider {
    let mut settings = Plugin::start().settings();
    settings.socket = socket;
    K8sProvider::new(settings)
}

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn payload() -> Secret {
    Secret::copy_of(&[0x42; 64]).unwrap()
}

fn wrap(provider: &K8sProvider) -> Result<Wrapped, Error> {
    wait(provider.wrap(&KeyRef::default(), &payload(), AAD))
}

fn unwrap(provider: &K8sProvider, wrapped: &Wrapped) -> Result<(), Error> {
    let opened = wait(provider.unwrap(wrapped, AAD))?;
    assert_eq!(opened, payload());
    Ok(())
}

fn current(provider: &K8sProvider) -> Result<KeyVersion, Error> {
    wait(provider.current_version(&KeyRef::default()))
}

/// What an error is, and that it says `told`.
fn told<T: std::fmt::Debug>(result: Result<T, Error>, told: &str) -> (Class, Kind) {
    let error = result.unwrap_err();
    let help = error.help().unwrap();
    let said = format!("{error}; {help}");
    assert!(said.contains(told), "{told:?} is not in: {said}");
    assert!(said.len() < 1500 && !said.contains('\n'), "{said}");
    (error.class(), error.kind())
}

#[test]
fn each_request_has_the_id_of_the_caller_s_record_and_no_payload() {
    let plugin = Plugin::start();
    let provider = provider(&plugin);
    let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let (key, payload) = (KeyRef::default(), payload());
    let wrapping = provider.wrap(&key, &payload, AAD);
    let (wrapped, _) = wait(call::observed(ids[0], wrapping));
    let wrapped = wrapped.unwrap();
    let (opened, _) = wait(call::observed(ids[1], provider.unwrap(&wrapped, AAD)));
    assert_eq!(opened.unwrap(), payload);
    let requests = plugin.requests();
    let methods: Vec<&Value> = requests.iter().map(|request| &request["method"]).collect();
    assert_eq!(methods, ["Status", "Encrypt", "Decrypt"]);
    assert_eq!(requests[1]["uid"], ids[0].to_string());
    assert_eq!(requests[2]["uid"], ids[1].to_string());
    assert_eq!(requests[1]["length"], 32, "a key, and not the payload");
    assert_eq!(requests[2]["key_id"], "key-1");
    let remaining = requests[1]["time_remaining"].as_f64().unwrap();
    assert!((1.0..=20.1).contains(&remaining), "{remaining}");
    // Without a record there is an id, too, and another one each time.
    let uids = [0, 0].map(|_| {
        unwrap(&provider, &wrapped).unwrap();
        plugin.requests().pop().unwrap()["uid"].clone()
    });
    assert_ne!(uids[0], uids[1]);
}

#[test]
fn answers_beyond_the_limits_or_without_sense_are_refused() {
    let plugin = Plugin::start();
    let provider = provider(&plugin);
    let wrapped = wrap(&provider).unwrap();
    let annotations = |name: &str, length: usize| json!({name: "00".repeat(length)});
    let name = "a.example.com";
    for (method, field, value, says) in [
        (
            "Encrypt",
            "ciphertext",
            json!("00".repeat(1025)),
            "a ciphertext of 1025 bytes",
        ),
        ("Encrypt", "ciphertext", json!(""), "an empty ciphertext"),
        (
            "Encrypt",
            "key_id",
            json!("k".repeat(1025)),
            "a key_id of 1025 bytes",
        ),
        ("Encrypt", "key_id", json!(""), "an empty key_id"),
        ("Encrypt", "key_id", json!("a\nb"), "control characters"),
        (
            "Encrypt",
            "annotations",
            annotations("plain", 1),
            "\"plain\"",
        ),
        (
            "Encrypt",
            "annotations",
            annotations(&"x".repeat(500), 1),
            "fully qualified",
        ),
        (
            "Encrypt",
            "annotations",
            annotations(name, 32 * 1024),
            "may give 32768",
        ),
        (
            "Encrypt",
            "annotations",
            annotations(name, 100 * 1024),
            "decoded message length",
        ),
        ("Encrypt", "raw", json!("ff".repeat(9)), "cannot be read"),
        (
            "Encrypt",
            "raw",
            json!("00".repeat(200_000)),
            "decoded message length",
        ),
        ("Encrypt", "raw", json!(""), "an empty key_id"),
        ("Status", "raw", json!("ffff"), "cannot be read"),
        ("Status", "raw", json!("0a04ffffffff"), "cannot be read"),
        ("Status", "raw", json!(""), "version \"\" of the API"),
        (
            "Status",
            "version",
            json!("v1beta1"),
            "version \"v1beta1\" of the API",
        ),
        ("Status", "version", json!("v".repeat(5000)), "of the API"),
        ("Status", "key_id", json!(""), "an empty key_id"),
        ("Decrypt", "raw", json!("ff"), "cannot be read"),
        ("Decrypt", "raw", json!(""), "a key of 0 bytes"),
        (
            "Decrypt",
            "plaintext",
            json!("00".repeat(31)),
            "a key of 31 bytes",
        ),
        (
            "Decrypt",
            "plaintext",
            json!("00".repeat(64 << 10)),
            "a key of 65536 bytes",
        ),
    ] {
        plugin.set("answer", json!({method: {field: value}}));
        let class = match method {
            "Decrypt" => told(unwrap(&provider, &wrapped), says).0,
            _ => told(wrap(&provider), says).0,
        };
        assert_eq!(class, Class::Protocol, "{method} {field} {says}");
    }
    // Another key of the right length opens nothing.
    plugin.set("answer", json!({"Decrypt": {"plaintext": "00".repeat(32)}}));
    assert_eq!(
        told(unwrap(&provider, &wrapped), "does not open").0,
        Class::BadKey
    );
    // What is within the limits is taken.
    plugin.set("answer", json!({"Status": {"version": "v2beta1"}}));
    wrap(&provider).unwrap();
    let most = annotations(name, 32 * 1024 - name.len());
    plugin.set("answer", json!({"Encrypt": {"annotations": most}}));
    assert!(wrap(&provider).unwrap().bytes.len() > 32 * 1024);
}

#[test]
fn texts_are_looked_at_where_codes_say_nothing() {
    let plugin = Plugin::start();
    let provider = provider(&plugin);
    let wrapped = wrap(&provider).unwrap();
    let disabled = Class::Denied(Denied::Disabled);
    for (healthz, class) in [
        ("not ok: the key is disabled", disabled),
        ("key pending deletion", Class::Denied(Denied::Deleted)),
        (
            "AccessDeniedException: no",
            Class::Denied(Denied::Forbidden),
        ),
        ("too many requests", Class::Throttled { retry_after: None }),
        ("", Class::Unreachable),
        ("OK", Class::Unreachable),
        (
            "dial tcp 10.0.0.1:443: permission denied",
            Class::Unreachable,
        ),
    ] {
        plugin.set("healthz", json!(healthz));
        assert_eq!(told(wrap(&provider), "KMS plugin").0, class, "{healthz:?}");
        match class {
            Class::Denied(Denied::Forbidden) | Class::Throttled { .. } | Class::Unreachable => {
                assert_eq!(told(current(&provider), "KMS plugin").0, class);
            }
            _ => assert!(!current(&provider).unwrap().enabled),
        }
        // It may still decrypt: that is for Decrypt to say.
        unwrap(&provider, &wrapped).unwrap();
    }
    // An answer that says nothing is explained by how the plugin is.
    plugin.set("code", json!({"Decrypt": ["UNKNOWN", "boom"]}));
    plugin.set("healthz", json!("the key is disabled"));
    assert_eq!(told(unwrap(&provider, &wrapped), "is disabled").0, disabled);
    plugin.set("healthz", json!("ok"));
    assert_eq!(
        told(unwrap(&provider, &wrapped), "Unknown: boom").0,
        Class::Unreachable
    );
    // A text without end.
    plugin.set(
        "code",
        json!({"Decrypt": ["INVALID_ARGUMENT", "x".repeat(5000)]}),
    );
    assert_eq!(told(unwrap(&provider, &wrapped), "xxx").0, Class::BadKey);
    plugin.set(
        "code",
        json!({"Decrypt": ["INVALID_ARGUMENT", "x".repeat(100_000)]}),
    );
    told(unwrap(&provider, &wrapped), "KMS plugin");
}

#[test]
fn a_plugin_that_is_silent_or_away_is_given_up_and_found_again() {
    let plugin = Plugin::start();
    let mut settings = plugin.settings();
    settings.timing.timeout = Duration::from_millis(200);
    let hasty = K8sProvider::new(settings);
    let wrapped = wrap(&provider(&plugin)).unwrap();
    plugin.set("silent", json!(["Decrypt"]));
    assert_eq!(
        told(unwrap(&hasty, &wrapped), "did not answer within"),
        (Class::Unreachable, Kind::Unreachable)
    );
    plugin.set("silent", json!([]));
    let provider = provider(&plugin);
    unwrap(&provider, &wrapped).unwrap();

    plugin.stop();
    assert_eq!(
        told(unwrap(&provider, &wrapped), "there is no socket"),
        (Class::Unreachable, Kind::Unreachable)
    );
    plugin.start_again();
    unwrap(&provider, &wrapped).unwrap();
    // Who waits long enough finds it.
    plugin.stop();
    let mut patient = plugin.settings();
    patient.timing.deadline = Duration::from_secs(60);
    let patient = K8sProvider::new(patient);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| unwrap(&patient, &wrapped));
        assert_eq!(
            told(unwrap(&provider, &wrapped), "there is no socket").0,
            Class::Unreachable
        );
        plugin.start_again();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn who_is_not_trusted_gets_nothing_to_encrypt() {
    let plugin = Plugin::start();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let permission = (Class::Unreachable, Kind::Permission);

    fs::write(&path, "").unwrap();
    assert_eq!(told(wrap(&at(path.clone())), "not a socket"), permission);
    fs::remove_file(&path).unwrap();

    fs::set_permissions(plugin.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    let asked = plugin.requests().len();
    assert_eq!(
        told(wrap(&provider(&plugin)), "everybody can use the key"),
        permission
    );
    assert_eq!(plugin.requests().len(), asked);
    fs::set_permissions(plugin.socket(), PermissionsExt::from_mode(0o600)).unwrap();
    wrap(&provider(&plugin)).unwrap();

    // A socket that a plugin has left.
    drop(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(
        told(wrap(&at(path)), "no KMS plugin listens"),
        (Class::Unreachable, Kind::Unreachable)
    );
}

#[test]
#[ignore = "needs root"]
fn a_socket_of_another_user_is_refused_unless_that_is_the_plugin_s() {
    const NOBODY: u32 = 65534;
    let plugin = Plugin::start();
    std::os::unix::fs::chown(plugin.socket(), Some(NOBODY), None).unwrap();
    assert_eq!(
        told(wrap(&provider(&plugin)), "its owner is user 65534"),
        (Class::Unreachable, Kind::Permission)
    );
    let mut settings = plugin.settings();
    settings.plugin_user = Some(NOBODY);
    wrap(&K8sProvider::new(settings)).unwrap();
}

/// What listens there need not be a plugin.
#[test]
fn who_speaks_something_else_is_told() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        // An HTTP/2 frame of settings, and then nonsense.
        b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let provider = at(path);
        std::thread::scope(|scope| {
            let _last = Last(directory.path().join("s"));
            scope.spawn(|| {
                loop {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut first = [0; 1];
                    if stream.read(&mut first).unwrap_or(0) == 1 && first == *b"!" {
                        return;
                    }
                    let _ = stream.write_all(answer);
                }
            });
            let class = told(wrap(&provider), "KMS plugin").0;
            assert_eq!(class, Class::Unreachable);
        });
    }
}

/// Ends who listens there with a last connection, also when the test fails.
struct Last(PathBuf);

impl Drop for Last {
    fn drop(&mut self) {
        let mut last = UnixStream::connect(&self.0).unwrap();
        last.write_all(b"!").unwrap();
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_key_that_the_plugin_encrypts_is_in_no_log() {
    let plugin = Plugin::start();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let wrapped = tracing::subscriber::with_default(subscriber, || {
        let provider = provider(&plugin);
        let wrapped = wrap(&provider).unwrap();
        unwrap(&provider, &wrapped).unwrap();
        wrapped
    });
    // As the plugin decrypts it.
    let parsed = envelope::parse(&wrapped.bytes).unwrap();
    let (nonce, rest) = parsed.encrypted.ciphertext.split_at(12);
    let (sealed, tag) = rest.split_at(rest.len() - 16);
    let key = &plugin.keys()[0];
    let inner = decrypt_aead(
        Cipher::aes_256_gcm(),
        key,
        Some(nonce),
        b"key-1",
        sealed,
        tag,
    );
    let inner = inner.unwrap();
    assert_eq!(inner.len(), 32);
    let shown = log.0.lock().unwrap().clone();
    assert!(shown.len() > 1000, "HTTP/2 logs a lot at this level");
    needles::assert_absent(&shown, &inner, "the log");
    needles::assert_absent(&wrapped.bytes, &inner, "the envelope");
    // The rest is AES-256-GCM, by another implementation.
    let header = wrapped.bytes.len() - 12 - 64 - 16;
    let (header, rest) = wrapped.bytes.split_at(header);
    let associated = [header, &(AAD.len() as u64).to_be_bytes(), AAD].concat();
    let (nonce, rest) = rest.split_at(12);
    let (sealed, tag) = rest.split_at(64);
    let cipher = Cipher::aes_256_gcm();
    let opened = decrypt_aead(cipher, &inner, Some(nonce), &associated, sealed, tag).unwrap();
    assert_eq!(opened, payload()[..]);
}

#[test]
fn an_echo_is_no_encryption() {
    let plugin = Plugin::start();
    plugin.set("echo", json!(true));
    assert_eq!(
        told(wrap(&provider(&plugin)), "back the key").0,
        Class::Protocol
    );
}
