//! The cases. Each gets a lab of its own, and notes what it saw; nothing
//! noted and nothing logged may show a secret.

use std::cell::RefCell;
use std::fmt::{Debug, Display};
use std::future::Future;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use sealblk::error::Explain;
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, Wrapped};
use sealblk::secret::Secret;

use crate::lab::{Broken, Granularity, Lab};
use crate::needles;

const AAD: &[u8] = b"volume 6f1c, purpose: test";

/// Runs one case on one lab, and then looks for secrets in all that was shown.
pub fn run(lab: &dyn Lab, case: fn(&dyn Lab, &Witness)) {
    let witness = Witness::default();
    let log = witness.log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || case(lab, &witness));

    let mut shown = witness.log.0.lock().unwrap().clone();
    shown.extend_from_slice(witness.shown.borrow().as_bytes());
    assert!(!shown.is_empty(), "the case noted nothing");
    for secret in lab.secrets().iter().chain(&*witness.secrets.borrow()) {
        needles::assert_absent(&shown, secret, "an error, a debug output or a log line");
    }
}

/// Remembers what a case was shown, and which secrets it used.
#[derive(Default)]
pub struct Witness {
    shown: RefCell<String>,
    secrets: RefCell<Vec<Vec<u8>>>,
    log: Log,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Witness {
    /// A secret payload that must not be shown.
    fn payload(&self, len: usize) -> Secret {
        let secret = Secret::random(len).unwrap();
        self.secrets.borrow_mut().push(secret.to_vec());
        secret
    }

    fn note(&self, seen: &impl Debug) {
        self.shown.borrow_mut().push_str(&format!("{seen:?}\n"));
    }

    /// Takes the error of a call that must fail, and checks what all have.
    fn refused<T: Debug>(&self, result: Result<T, Error>, what: &dyn Display) -> Class {
        let error = match result {
            Err(error) => error,
            Ok(value) => panic!("{what}: must fail, and gave {value:?}"),
        };
        self.note(&error);
        let help = error.help().unwrap_or_default();
        self.shown
            .borrow_mut()
            .push_str(&format!("{error}\n{help}\n"));
        assert!(
            !error.to_string().is_empty() && !help.is_empty(),
            "{what}: says what and what next"
        );
        assert!(!error.to_string().contains('\n'), "{what}: on one line");
        error.class()
    }

    fn wrap(&self, provider: &dyn Provider, key: &KeyRef, payload: &Secret) -> Wrapped {
        let wrapped = wait(provider.wrap(key, payload, AAD)).unwrap();
        self.note(&wrapped);
        self.note(&provider);
        wrapped
    }
}

/// Waits for a provider. The one place that knows how.
fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

pub fn round_trip(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let current = wait(provider.current_version(&lab.key())).unwrap();
    assert!(current.enabled);
    for len in [64, 32] {
        let payload = witness.payload(len);
        let wrapped = witness.wrap(&*provider, &lab.key(), &payload);
        assert_eq!(wrapped.version, current.id);
        assert!(!wrapped.alg.is_empty() && !wrapped.key_id.is_empty());
        needles::assert_absent(&wrapped.bytes, &payload, "the envelope");
        assert_eq!(wait(provider.unwrap(&wrapped, AAD)).unwrap(), payload);
        // Another client, as after a restart.
        assert_eq!(wait(lab.provider().unwrap(&wrapped, AAD)).unwrap(), payload);
        // Nothing in it is the same twice.
        assert_ne!(
            witness.wrap(&*provider, &lab.key(), &payload).bytes,
            wrapped.bytes
        );
    }
}

pub fn the_binding_must_match(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let payload = witness.payload(64);
    let wrapped = witness.wrap(&*provider, &lab.key(), &payload);
    let longer = [AAD, b"\0"].concat();
    for aad in [&b""[..], b"volume", &AAD[1..], &longer] {
        let class = witness.refused(wait(provider.unwrap(&wrapped, aad)), &"other binding");
        assert_eq!(class, Class::BadKey);
    }
    // No binding is a binding, too.
    let unbound = wait(provider.wrap(&lab.key(), &payload, b"")).unwrap();
    assert_eq!(wait(provider.unwrap(&unbound, b"")).unwrap(), payload);
    let class = witness.refused(wait(provider.unwrap(&unbound, AAD)), &"binding added");
    assert_eq!(class, Class::BadKey);
}

pub fn another_key_does_not_open(lab: &dyn Lab, witness: &Witness) {
    let (stranger, key) = lab.stranger();
    let payload = witness.payload(64);
    let theirs = witness.wrap(&*stranger, &key, &payload);
    let ours = witness.wrap(&*lab.provider(), &lab.key(), &payload);
    let refused = |class| matches!(class, Class::BadKey | Class::NotFound | Class::Denied(_));
    // Bytes of the one with the labels of the other.
    let swapped = Wrapped {
        bytes: theirs.bytes.clone(),
        ..ours.clone()
    };
    let class = witness.refused(wait(lab.provider().unwrap(&swapped, AAD)), &"swapped bytes");
    assert!(refused(class), "{class}");
    if lab.key().id == key.id {
        // A provider that is one key cannot open what another one wrapped.
        let class = witness.refused(wait(lab.provider().unwrap(&theirs, AAD)), &"other key");
        assert!(refused(class), "{class}");
    }
}

pub fn no_bit_of_the_envelope_can_change(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let wrapped = witness.wrap(&*provider, &lab.key(), &witness.payload(64));
    let refuse = |bytes: Vec<u8>, what: &dyn Display| {
        let changed = Wrapped {
            bytes,
            ..wrapped.clone()
        };
        let class = witness.refused(wait(provider.unwrap(&changed, AAD)), what);
        assert!(
            matches!(class, Class::BadKey | Class::Protocol),
            "{what}: {class}"
        );
    };
    let bits = 0..wrapped.bytes.len() * 8;
    // Not the same bit of each byte: 3 and 8 have no common divisor.
    let chosen = |bit: &usize| !lab.calls_are_slow() || bit / 8 * 3 % 8 == bit % 8;
    for bit in bits.filter(chosen) {
        let mut bytes = wrapped.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refuse(bytes, &format_args!("bit {bit}"));
    }
    let step = if lab.calls_are_slow() { 7 } else { 1 };
    for len in (0..wrapped.bytes.len()).rev().step_by(step) {
        refuse(wrapped.bytes[..len].to_vec(), &format_args!("{len} bytes"));
    }
    refuse([&wrapped.bytes[..], &[0]].concat(), &"one byte more");
}

pub fn no_field_beside_the_envelope_can_change(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let wrapped = witness.wrap(&*provider, &lab.key(), &witness.payload(64));
    lab.rotate();
    let current = wait(provider.current_version(&lab.key())).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Wrapped);
    let changes: [(&str, Change<'_>); 4] = [
        ("key id", &|wrapped| wrapped.key_id.push('0')),
        ("another version", &|wrapped| {
            wrapped.version.clone_from(&current.id)
        }),
        ("no version", &|wrapped| wrapped.version = lab.no_version()),
        ("algorithm", &|wrapped| wrapped.alg.push('0')),
    ];
    for (what, change) in changes {
        let mut changed = wrapped.clone();
        change(&mut changed);
        assert_ne!(changed, wrapped);
        witness.refused(wait(provider.unwrap(&changed, AAD)), &what);
    }
    assert!(wait(provider.unwrap(&wrapped, AAD)).is_ok());
}

pub fn old_wraps_open_after_rotation(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let mut made = Vec::new();
    for _ in 0..3 {
        let payload = witness.payload(64);
        let wrapped = witness.wrap(&*provider, &lab.key(), &payload);
        let current = wait(provider.current_version(&lab.key())).unwrap();
        assert_eq!(wrapped.version, current.id);
        made.push((wrapped, payload));
        lab.rotate();
    }
    for (at, (wrapped, payload)) in made.iter().enumerate() {
        assert_eq!(wait(provider.unwrap(wrapped, AAD)).unwrap(), *payload);
        let same = made
            .iter()
            .position(|(other, _)| other.version == wrapped.version);
        assert_eq!(same, Some(at), "each rotation made a version");
    }
}

pub fn a_pinned_version_stays(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let first = wait(provider.current_version(&lab.key())).unwrap();
    let pinned = pinned(lab, &first.id);
    let payload = witness.payload(64);
    let wrapped = witness.wrap(&*provider, &pinned, &payload);
    assert_eq!(wrapped.version, first.id);
    lab.rotate();
    if !lab.can_pin() {
        // Another one is never taken in its place.
        let wrap = wait(provider.wrap(&pinned, &payload, AAD));
        assert_eq!(witness.refused(wrap, &"wrap"), Class::NotFound);
        let status = wait(provider.current_version(&pinned));
        assert_eq!(witness.refused(status, &"status"), Class::NotFound);
        return;
    }
    assert_eq!(wait(provider.current_version(&pinned)).unwrap(), first);
    let wrapped = witness.wrap(&*provider, &pinned, &payload);
    assert_eq!(wrapped.version, first.id);
    assert_eq!(wait(provider.unwrap(&wrapped, AAD)).unwrap(), payload);
    assert_ne!(
        witness.wrap(&*provider, &lab.key(), &payload).version,
        first.id
    );
}

pub fn a_disabled_version_is_denied(lab: &dyn Lab, witness: &Witness) {
    const DISABLED: Class = Class::Denied(Denied::Disabled);
    let provider = lab.provider();
    let payload = witness.payload(64);
    let old = witness.wrap(&*provider, &lab.key(), &payload);
    lab.rotate();
    let new = witness.wrap(&*provider, &lab.key(), &payload);
    let pinned = pinned(lab, &old.version);

    lab.set_enabled(&old.version, false);
    assert_eq!(
        witness.refused(wait(provider.unwrap(&old, AAD)), &"unwrap"),
        DISABLED
    );
    if lab.can_pin() {
        let wrap = wait(provider.wrap(&pinned, &payload, AAD));
        assert_eq!(witness.refused(wrap, &"wrap"), DISABLED);
        let status = wait(provider.current_version(&pinned)).unwrap();
        assert_eq!(
            (status.id.as_str(), status.enabled),
            (old.version.as_str(), false)
        );
    }
    if lab.granularity() == Granularity::WholeKey {
        let unwrap = wait(provider.unwrap(&new, AAD));
        assert_eq!(witness.refused(unwrap, &"unwrap"), DISABLED);
        lab.set_enabled(&old.version, true);
        assert_eq!(wait(provider.unwrap(&old, AAD)).unwrap(), payload);
        assert_eq!(wait(provider.unwrap(&new, AAD)).unwrap(), payload);
        return;
    }
    assert_eq!(wait(provider.unwrap(&new, AAD)).unwrap(), payload);
    if lab.granularity() == Granularity::OlderVersions {
        lab.set_enabled(&old.version, true);
        assert_eq!(wait(provider.unwrap(&old, AAD)).unwrap(), payload);
        return;
    }
    // The latest one being disabled does not bring an older one back.
    lab.set_enabled(&new.version, false);
    lab.set_enabled(&old.version, true);
    let wrap = wait(provider.wrap(&lab.key(), &payload, AAD));
    assert_eq!(witness.refused(wrap, &"wrap with the latest"), DISABLED);
    assert!(!wait(provider.current_version(&lab.key())).unwrap().enabled);

    assert_eq!(wait(provider.unwrap(&old, AAD)).unwrap(), payload);
    lab.set_enabled(&new.version, true);
    assert_eq!(wait(provider.unwrap(&new, AAD)).unwrap(), payload);
}

pub fn a_deleted_version_is_gone(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let payload = witness.payload(64);
    let old = witness.wrap(&*provider, &lab.key(), &payload);
    lab.rotate();
    let new = witness.wrap(&*provider, &lab.key(), &payload);
    lab.set_enabled(&old.version, false);
    lab.delete(&old.version);
    let class = witness.refused(wait(provider.unwrap(&old, AAD)), &"deleted");
    assert!(
        matches!(class, Class::Denied(Denied::Deleted) | Class::NotFound),
        "{class}"
    );
    if matches!(
        lab.granularity(),
        Granularity::WholeKey | Granularity::DeletedTogether
    ) {
        return;
    }
    assert_eq!(wait(provider.unwrap(&new, AAD)).unwrap(), payload);
    assert_eq!(
        wait(provider.current_version(&lab.key())).unwrap().id,
        new.version
    );
}

pub fn what_does_not_exist_is_not_found(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let payload = witness.payload(64);
    let unknown = pinned(lab, &lab.no_version());
    let wrap = wait(provider.wrap(&unknown, &payload, AAD));
    assert_eq!(witness.refused(wrap, &"wrap"), Class::NotFound);
    let status = wait(provider.current_version(&unknown));
    assert_eq!(witness.refused(status, &"status"), Class::NotFound);
    let unknown = KeyRef {
        id: Some("no-such-key".into()),
        version: None,
    };
    let wrap = wait(provider.wrap(&unknown, &payload, AAD));
    assert_eq!(
        witness.refused(wrap, &"wrap with no such key"),
        Class::NotFound
    );
}

pub fn each_class_of_failure_is_told(lab: &dyn Lab, witness: &Witness) {
    let payload = witness.payload(64);
    let wrapped = witness.wrap(&*lab.provider(), &lab.key(), &payload);
    // All but BadKey, which takes wrong bytes: other cases have them.
    for class in [
        Class::Denied(Denied::Disabled),
        Class::Denied(Denied::Expired),
        Class::Denied(Denied::Deleted),
        Class::Denied(Denied::Forbidden),
        Class::NotFound,
        Class::Throttled { retry_after: None },
        Class::Unreachable,
        Class::Sealed,
        Class::Protocol,
    ] {
        let Broken::Client(provider) = lab.broken(class) else {
            continue;
        };
        let same = |found: Class| match (found, class) {
            (Class::Throttled { .. }, Class::Throttled { .. }) => true,
            (found, class) => found == class,
        };
        let wrap = witness.refused(wait(provider.wrap(&lab.key(), &payload, AAD)), &class);
        assert!(same(wrap), "wrap: {wrap}, and not {class}");
        // An expired key may still unwrap: that is for the service to say.
        if class != Class::Denied(Denied::Expired) {
            let unwrap = witness.refused(wait(provider.unwrap(&wrapped, AAD)), &class);
            assert!(same(unwrap), "unwrap: {unwrap}, and not {class}");
        }
    }
}

pub fn calls_do_not_disturb_each_other(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let (provider, key) = (&*provider, &lab.key());
    let payloads: Vec<Secret> = (0..4).map(|_| witness.payload(64)).collect();
    std::thread::scope(|scope| {
        for payload in &payloads {
            scope.spawn(move || {
                for _ in 0..25 {
                    let wrapped = wait(provider.wrap(key, payload, AAD)).unwrap();
                    assert_eq!(wait(provider.unwrap(&wrapped, AAD)).unwrap(), *payload);
                }
            });
        }
    });
    witness.note(&provider);
}

pub fn too_long_a_payload_is_refused(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let payload = witness.payload(1025);
    let wrap = wait(provider.wrap(&lab.key(), &payload, AAD));
    assert_eq!(witness.refused(wrap, &"1025 bytes"), Class::Protocol);
}

/// Whatever stands in a token is taken apart with care, and opens nothing.
pub fn what_was_never_wrapped_is_refused(lab: &dyn Lab, witness: &Witness) {
    let provider = lab.provider();
    let wrapped = witness.wrap(&*provider, &lab.key(), &witness.payload(64));
    let beginning = &wrapped.bytes[..wrapped.bytes.len().min(6)];
    for bytes in [
        vec![],
        vec![0],
        vec![0; 64 << 10],
        vec![0xff; 64 << 10],
        b"vault:v1:AAAA".to_vec(),
        [beginning, &[0xff; 32]].concat(),
        [beginning, &vec![0; 64 << 10]].concat(),
        wrapped.bytes.repeat(2),
        [&wrapped.bytes[..], &vec![0; 64 << 10]].concat(),
    ] {
        let what = format!("{} bytes", bytes.len());
        let other = Wrapped {
            bytes,
            ..wrapped.clone()
        };
        let class = witness.refused(wait(provider.unwrap(&other, AAD)), &what);
        assert!(
            matches!(class, Class::BadKey | Class::Protocol),
            "{what}: {class}"
        );
    }
    // What stands beside it is as little to be trusted.
    for (key_id, version) in [("", ""), ("\n", "\u{1b}[31m"), (&"x".repeat(70_000), "0")] {
        let other = Wrapped {
            key_id: key_id.into(),
            version: version.into(),
            ..wrapped.clone()
        };
        witness.refused(wait(provider.unwrap(&other, AAD)), &"other names");
    }
}

fn pinned(lab: &dyn Lab, version: &str) -> KeyRef {
    KeyRef {
        version: Some(version.into()),
        ..lab.key()
    }
}
