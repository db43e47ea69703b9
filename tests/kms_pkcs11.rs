//! What a PKCS#11 token, its library and its operator can do to us: with
//! SoftHSM, and a library before it that fails as it is told.
#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/softhsm.rs"]
mod softhsm;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cryptoki::object::{Attribute, ObjectClass};
use sealblk::error::{Explain, Kind};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::pkcs11::{Choice, Pkcs11Provider, Settings, TokenMatch};
use sealblk::kms::{Class, Denied, Error, KeyRef, KeyVersion, Provider, Wrapped};
use sealblk::secret::Secret;
use tempfile::TempDir;

use softhsm::{Keys, LABEL, LIBRARY, Token, date};

const AAD: &[u8] = b"volume 1";

/// Places of functions in `CK_FUNCTION_LIST`.
mod function {
    pub const INITIALIZE: u32 = 0;
    pub const GET_SLOT_LIST: u32 = 4;
    pub const GET_MECHANISM_LIST: u32 = 7;
    pub const OPEN_SESSION: u32 = 12;
    pub const GET_SESSION_INFO: u32 = 15;
    pub const LOGIN: u32 = 18;
    pub const FIND_OBJECTS_INIT: u32 = 26;
    pub const ENCRYPT_INIT: u32 = 29;
    pub const ENCRYPT: u32 = 30;
    pub const DECRYPT_INIT: u32 = 33;
    pub const DECRYPT: u32 = 34;
}

/// A library before SoftHSM, of one test.
struct Faulty {
    directory: TempDir,
}

impl Faulty {
    fn new() -> Self {
        static COMPILED: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let directory = TempDir::new().unwrap();
            let library = directory.path().join("faulty.so");
            let source =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faulty_module.c");
            let compiled = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
                .arg(&library)
                .arg(source)
                .arg("-ldl")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&compiled.stderr);
            assert!(compiled.status.success(), "{said}");
            fs::read(library).unwrap()
        });
        let faulty = Faulty {
            directory: TempDir::new().unwrap(),
        };
        fs::write(faulty.library(), &*COMPILED).unwrap();
        fs::set_permissions(faulty.library(), PermissionsExt::from_mode(0o644)).unwrap();
        faulty
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("faulty.so")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("faulty.so.{suffix}"))
    }

    /// From now on, `what` happens to this function; see `faulty_module.c`.
    fn set(&self, function: u32, what: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{function} {what}")).unwrap();
        fs::rename(new, self.beside("fault")).unwrap();
    }

    fn mend(&self) {
        let _ = fs::remove_file(self.beside("fault"));
    }

    /// How often this function was called so far.
    fn calls(&self, function: u32) -> usize {
        let calls = fs::read_to_string(self.beside("calls")).unwrap_or_default();
        let function = function.to_string();
        calls.lines().filter(|call| *call == function).count()
    }

    fn logins(&self) -> usize {
        self.calls(function::LOGIN)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Whoever hangs in it goes on.
        self.mend();
    }
}

fn settings(token: &Token, module: impl Into<PathBuf>) -> Settings {
    Settings {
        module: module.into(),
        token: TokenMatch {
            label: Some(token.label.clone()),
            ..TokenMatch::default()
        },
        pin: Some(SecretFile::new(token.pin_file())),
        mechanism: None,
        timing: Timing {
            timeout: Duration::from_secs(20),
            deadline: Duration::from_secs(2),
        },
    }
}

fn key() -> KeyRef {
    KeyRef {
        id: Some(format!("pkcs11:object={LABEL}")),
        version: None,
    }
}

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn payload() -> Secret {
    Secret::copy_of(&[0x42; 64]).unwrap()
}

fn wrap(provider: &Pkcs11Provider) -> Result<Wrapped, Error> {
    wait(provider.wrap(&key(), &payload(), AAD))
}

fn unwrap(provider: &Pkcs11Provider, wrapped: &Wrapped) -> Result<(), Error> {
    let opened = wait(provider.unwrap(wrapped, AAD))?;
    assert_eq!(opened, payload());
    Ok(())
}

fn current(provider: &Pkcs11Provider) -> Result<KeyVersion, Error> {
    wait(provider.current_version(&key()))
}

/// What an error is, and that it says `told`.
fn told<T: std::fmt::Debug>(result: Result<T, Error>, told: &str) -> (Class, Kind) {
    let error = result.unwrap_err();
    let help = error.help().unwrap();
    assert!(
        format!("{error}; {help}").contains(told),
        "{told:?} is not in: {error}; {help}"
    );
    (error.class(), error.kind())
}

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn with_key(keys: Keys) -> Token {
    let token = Token::new();
    token.make(keys, LABEL, &[1], &[]);
    token
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    softhsm::write(&token.pin_file(), "not the right pin");
    let (one, other) = (
        Pkcs11Provider::new(settings(&token, faulty.library())),
        Pkcs11Provider::new(settings(&token, faulty.library())),
    );
    assert_eq!(told(wrap(&one), "refuses the PIN").0, FORBIDDEN);
    assert_eq!(told(wrap(&one), "has refused the PIN in").0, FORBIDDEN);
    assert_eq!(told(current(&other), "has refused the PIN in").0, FORBIDDEN);
    assert_eq!(faulty.logins(), 1);
    // Another one is tried, and so is the right one.
    softhsm::write(&token.pin_file(), "another wrong pin");
    assert_eq!(told(wrap(&other), "refuses the PIN").0, FORBIDDEN);
    softhsm::write(&token.pin_file(), &token.pin);
    unwrap(&one, &wrap(&other).unwrap()).unwrap();
    assert_eq!(faulty.logins(), 3, "who is logged in does not log in again");
}

#[test]
fn each_way_to_be_kept_out_is_told() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let provider = Pkcs11Provider::new(settings(&token, faulty.library()));
    for (code, says) in [
        ("0xA4", "has locked the user PIN"),
        ("0xA3", "has expired"),
        ("0x102", "has no user PIN yet"),
    ] {
        faulty.set(function::LOGIN, code);
        assert_eq!(told(wrap(&provider), says).0, FORBIDDEN, "{code}");
    }
    faulty.mend();
    wrap(&provider).unwrap();

    let mut none = settings(&token, LIBRARY);
    none.pin = None;
    let none = Pkcs11Provider::new(none);
    // The other one is logged in, and that is so for the process.
    wrap(&none).unwrap();
    token.operate(|_| ());
    assert_eq!(
        told(wrap(&none), "pin = \"/PATH\""),
        (Class::Unreachable, Kind::Usage)
    );
    let mut missing = settings(&token, LIBRARY);
    missing.pin = Some(SecretFile::new("/no/such/file"));
    assert_eq!(
        told(wrap(&Pkcs11Provider::new(missing)), "/no/such/file"),
        (Class::Unreachable, Kind::NotFound)
    );
}

#[test]
fn who_is_logged_out_or_whose_token_was_removed_comes_back() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let provider = Pkcs11Provider::new(settings(&token, faulty.library()));
    let wrapped = wrap(&provider).unwrap();
    assert_eq!(faulty.logins(), 1);
    // Somebody else in this process logs the user out.
    token.operate(|_| ());
    unwrap(&provider, &wrapped).unwrap();
    assert_eq!(faulty.logins(), 2);

    // A session that ends between two calls of one operation: once it is
    // opened anew, here in vain, as the fault goes on.
    for code in ["0x32", "0xB3", "0xE0", "0x101"] {
        faulty.set(function::DECRYPT_INIT, code);
        unwrap(&provider, &wrapped).unwrap_err();
        faulty.mend();
        unwrap(&provider, &wrapped).unwrap();
    }
    // No slot with a token, and then there is one again: a caller that waits
    // long enough gets its answer.
    faulty.set(function::GET_SESSION_INFO, "0xB3");
    assert_eq!(
        told(unwrap(&provider, &wrapped), "C_GetSessionInfo").0,
        Class::Unreachable
    );
    faulty.set(function::OPEN_SESSION, "0xE0");
    assert_eq!(
        told(unwrap(&provider, &wrapped), "not in its slot").0,
        Class::Unreachable
    );
    let mut patient = settings(&token, faulty.library());
    patient.timing.deadline = Duration::from_secs(30);
    let patient = Pkcs11Provider::new(patient);
    let tried = faulty.calls(function::OPEN_SESSION);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| unwrap(&patient, &wrapped));
        let deadline = Instant::now() + Duration::from_secs(20);
        while faulty.calls(function::OPEN_SESSION) == tried {
            assert!(Instant::now() < deadline, "it does not try");
            std::thread::yield_now();
        }
        faulty.mend();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn a_library_that_hangs_is_given_up() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let mut settings = settings(&token, faulty.library());
    settings.timing = Timing {
        timeout: Duration::from_millis(100),
        deadline: Duration::from_millis(300),
    };
    let provider = Pkcs11Provider::new(settings);
    faulty.set(function::FIND_OBJECTS_INIT, "hang");
    // More often than calls may hang at once.
    for _ in 0..6 {
        assert_eq!(
            told(wrap(&provider), "did not answer").0,
            Class::Unreachable
        );
    }
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let hanging = threads
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("tokio"))
        })
        .count();
    assert!((1..40).contains(&hanging), "{hanging} threads");
    faulty.mend();
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = wrap(&provider) {
        assert!(Instant::now() < deadline, "{error}");
    }
}

/// The status of a command is about what it has done, and what it says is said.
#[test]
fn a_library_that_crashes_when_the_process_ends_does_not_come_to_that() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    fs::write(faulty.beside("end"), "").unwrap();
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("sealblk.toml");
    let text = format!(
        "[daemon]\nstate_dir = {:?}\n[key_sets.prod]\nprovider = \"pkcs11\"\n\
         uri = \"pkcs11:{};object={LABEL}?module-path={}\"\npin = {:?}\n",
        directory.path().join("state"),
        token.uri(),
        faulty.library().display(),
        token.pin_file(),
    );
    fs::write(&config, text).unwrap();
    for (fault, status, said) in [(None, 0, "made volume"), (Some("0xA3"), 8, "")] {
        if let Some(fault) = fault {
            faulty.set(function::LOGIN, fault);
        }
        let done = Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .arg("--config")
            .arg(&config)
            .args(["volume", "create", "--key-set", "prod", "--size", "4M"])
            .arg(directory.path().join(format!("{status}.img")))
            .env("SOFTHSM2_CONF", softhsm::configuration())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(
            done.status.code(),
            Some(status),
            "{:?}: {told}",
            done.status
        );
        assert!(String::from_utf8_lossy(&done.stdout).contains(said));
        assert_eq!(told.contains("error: "), status != 0, "{told}");
    }
}

#[test]
fn a_library_that_cannot_be_used_is_told() {
    let token = with_key(Keys::Aes(32));
    let directory = TempDir::new().unwrap();
    let at = |path: &Path| Pkcs11Provider::new(settings(&token, path));
    let path = directory.path().join("missing.so");
    assert_eq!(
        told(wrap(&at(&path)), "install the library"),
        (Class::Unreachable, Kind::NotFound)
    );
    let path = directory.path().join("text.so");
    fs::write(&path, "text").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(
        told(wrap(&at(&path)), "not a PKCS#11 library"),
        (Class::Unreachable, Kind::Unsupported)
    );
    fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(
        told(wrap(&at(&path)), "others can change it"),
        (Class::Unreachable, Kind::Permission)
    );
    // Nor is one loaded that others can exchange until it is, by their link or ours.
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let link = directory.path().join("link.so");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o770)).unwrap();
    for path in [&path, &link] {
        assert_eq!(
            told(wrap(&at(path)), "others than root"),
            (Class::Unreachable, Kind::Permission)
        );
    }
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(
        told(wrap(&at(directory.path())), "not a regular file"),
        (Class::Unreachable, Kind::Permission)
    );
    // It starts at last.
    let faulty = Faulty::new();
    let provider = at(&faulty.library());
    faulty.set(function::INITIALIZE, "0x5");
    assert_eq!(
        told(
            wrap(&provider),
            "does not start (it said: C_Initialize: CKR_GENERAL_ERROR)"
        )
        .0,
        Class::Unreachable
    );
    faulty.mend();
    wrap(&provider).unwrap();
    // Somebody finalised it.
    faulty.set(function::GET_SLOT_LIST, "0x190");
    token.operate(|_| ());
    assert_eq!(
        told(wrap(&provider), "CKR_CRYPTOKI_NOT_INITIALIZED").0,
        Class::Unreachable
    );
    faulty.mend();
    wrap(&provider).unwrap();
}

#[test]
fn what_breaks_is_not_taken_for_wrong_data() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let provider = Pkcs11Provider::new(settings(&token, faulty.library()));
    let wrapped = wrap(&provider).unwrap();
    // SoftHSM says general error for wrong data, too.
    let mut wrong = wrapped.clone();
    *wrong.bytes.last_mut().unwrap() ^= 1;
    assert_eq!(
        told(unwrap(&provider, &wrong), "CKR_GENERAL_ERROR").0,
        Class::BadKey
    );
    for (function, code, class, says) in [
        (
            function::DECRYPT,
            "0x5",
            Class::Unreachable,
            "CKR_GENERAL_ERROR",
        ),
        (
            function::DECRYPT,
            "0x6",
            Class::Unreachable,
            "CKR_FUNCTION_FAILED",
        ),
        (
            function::DECRYPT,
            "0x30",
            Class::Unreachable,
            "CKR_DEVICE_ERROR",
        ),
        (
            function::DECRYPT,
            "0x40",
            Class::BadKey,
            "CKR_ENCRYPTED_DATA_INVALID",
        ),
        (function::DECRYPT, "0x35", Class::BadKey, "code 0x35"),
        (
            function::DECRYPT_INIT,
            "0x60",
            Class::NotFound,
            "has just vanished",
        ),
        (
            function::DECRYPT_INIT,
            "0x68",
            Class::Denied(Denied::Disabled),
            "CKA_DECRYPT",
        ),
        (
            function::DECRYPT_INIT,
            "0x70",
            Class::Protocol,
            "choose another mechanism",
        ),
        (
            function::DECRYPT_INIT,
            "0x80000001",
            Class::Protocol,
            "VENDOR_DEFINED",
        ),
        (function::DECRYPT, "short", Class::BadKey, "does not open"),
    ] {
        faulty.set(function, code);
        assert_eq!(told(unwrap(&provider, &wrapped), says).0, class, "{code}");
        faulty.mend();
        unwrap(&provider, &wrapped).unwrap();
    }
    faulty.set(function::ENCRYPT, "short");
    assert_eq!(told(wrap(&provider), "not understood").0, Class::Protocol);
    faulty.mend();

    // A key that only unwraps cannot be tried.
    token.set(ObjectClass::SECRET_KEY, &[1], &[Attribute::Encrypt(false)]);
    assert_eq!(
        told(unwrap(&provider, &wrong), "does not open").0,
        Class::BadKey
    );
    unwrap(&provider, &wrapped).unwrap();
    assert_eq!(
        told(wrap(&provider), "CKA_ENCRYPT").0,
        Class::Denied(Denied::Disabled)
    );
    assert!(!current(&provider).unwrap().enabled);
}

#[test]
fn the_mechanism_follows_the_key_and_the_token() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let provider = Pkcs11Provider::new(settings(&token, faulty.library()));
    let gcm = wrap(&provider).unwrap();
    assert_eq!(gcm.alg, "A256GCM");
    faulty.set(function::GET_MECHANISM_LIST, "nogcm");
    let kwp = wrap(&provider).unwrap();
    assert_eq!(kwp.alg, "A256KWP");
    // Whatever is wrapped with now, what was wrapped before opens.
    let choose = |choice| {
        let mut settings = settings(&token, LIBRARY);
        settings.mechanism = Some(choice);
        Pkcs11Provider::new(settings)
    };
    for provider in [choose(Choice::Gcm), choose(Choice::Kwp)] {
        unwrap(&provider, &gcm).unwrap();
        unwrap(&provider, &kwp).unwrap();
    }
    assert_eq!(wrap(&choose(Choice::Kwp)).unwrap().alg, "A256KWP");
    assert_eq!(
        told(wrap(&choose(Choice::Oaep)), "\"gcm\" or \"kwp\"").0,
        Class::Protocol
    );

    // SoftHSM has OAEP with SHA-1 alone.
    let pair = with_key(Keys::Rsa(2048));
    let provider = Pkcs11Provider::new(settings(&pair, LIBRARY));
    let oaep = wrap(&provider).unwrap();
    assert_eq!(oaep.alg, "RSA-OAEP");
    unwrap(&provider, &oaep).unwrap();
    let mut strange = settings(&pair, LIBRARY);
    strange.mechanism = Some(Choice::Gcm);
    assert_eq!(
        told(wrap(&Pkcs11Provider::new(strange)), "\"oaep\"").0,
        Class::Protocol
    );
}

#[test]
fn a_nonce_that_the_token_chose_is_kept() {
    let token = with_key(Keys::Aes(32));
    let faulty = Faulty::new();
    let provider = Pkcs11Provider::new(settings(&token, faulty.library()));
    faulty.set(function::ENCRYPT_INIT, "nonce");
    let wrapped = wrap(&provider).unwrap();
    faulty.mend();
    assert!(wrapped.bytes.windows(12).any(|bytes| bytes == [0x5a; 12]));
    unwrap(&provider, &wrapped).unwrap();
}

#[test]
fn the_latest_version_is_the_one_whose_day_has_come_last() {
    let token = Token::new();
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    // SoftHSM cannot tell dates of private objects.
    let make = |id: &[u8], start: Option<&str>| {
        let start = start.map(|year| Attribute::StartDate(date(year, "01", "01")));
        let more: Vec<_> = start
            .into_iter()
            .chain([Attribute::Private(false)])
            .collect();
        token.make(Keys::Aes(32), LABEL, id, &more);
    };
    let latest = |expected: &str| {
        assert_eq!(current(&provider).unwrap().id, expected);
        assert_eq!(wrap(&provider).unwrap().version, expected);
    };
    // One that is staged does not count, unless there is no other.
    make(&[0x99], Some("2999"));
    assert!(!current(&provider).unwrap().enabled);
    assert_eq!(
        told(wrap(&provider), "is before its CKA_START_DATE").0,
        Class::Denied(Denied::Expired)
    );
    make(&[0x05], None);
    latest("05");
    make(&[0x01, 0x00], None);
    latest("0100");
    make(&[0x00, 0x06], None);
    latest("0100");
    make(&[0x02], Some("2021"));
    latest("02");
    make(&[0x01], Some("2022"));
    latest("01");

    // Dates of private objects: nothing is used of which they cannot be seen.
    let token = Token::new();
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    let end = Attribute::EndDate(date("2999", "01", "01"));
    token.make(Keys::Aes(32), LABEL, &[1], std::slice::from_ref(&end));
    assert_eq!(told(wrap(&provider), "CKA_PRIVATE").0, Class::Protocol);
    token.delete(&[1]);
    token.make(
        Keys::Aes(32),
        LABEL,
        &[1],
        &[end, Attribute::Private(false)],
    );
    let expires = current(&provider).unwrap().expires.unwrap();
    assert!(expires > std::time::SystemTime::now());
}

#[test]
fn names_that_mean_several_things_are_refused() {
    let token = with_key(Keys::Aes(32));
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    let wrapped = wrap(&provider).unwrap();
    token.make(Keys::Aes(32), LABEL, &[1], &[]);
    for result in [
        wrap(&provider).map(drop),
        unwrap(&provider, &wrapped),
        current(&provider).map(drop),
    ] {
        assert_eq!(
            told(result, "with the same CKA_ID"),
            (Class::Protocol, Kind::Usage)
        );
    }
    let token = with_key(Keys::Aes(32));
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    token.make(Keys::Rsa(2048), LABEL, &[2], &[]);
    assert_eq!(
        told(wrap(&provider), "add type=secret-key").0,
        Class::Protocol
    );
    let typed = |kind: &str| KeyRef {
        id: Some(format!("pkcs11:object={LABEL};type={kind}")),
        version: None,
    };
    for (kind, alg) in [("secret-key", "A256GCM"), ("private", "RSA-OAEP")] {
        let wrapped = wait(provider.wrap(&typed(kind), &payload(), AAD)).unwrap();
        assert_eq!(wrapped.alg, alg);
        unwrap(&provider, &wrapped).unwrap();
    }
    // By id alone, it is one object.
    let by_id = KeyRef {
        id: Some("pkcs11:id=%02".into()),
        version: None,
    };
    let wrapped = wait(provider.wrap(&by_id, &payload(), AAD)).unwrap();
    assert_eq!((&*wrapped.version, &*wrapped.alg), ("02", "RSA-OAEP"));
    unwrap(&provider, &wrapped).unwrap();

    let token = Token::new();
    token.make(Keys::Aes(32), LABEL, &[], &[]);
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    assert_eq!(told(wrap(&provider), "has no CKA_ID").0, Class::Protocol);

    // Two tokens.
    let mut any = settings(&token, LIBRARY);
    any.token = TokenMatch {
        manufacturer: Some("SoftHSM project".into()),
        ..TokenMatch::default()
    };
    assert_eq!(
        told(wrap(&Pkcs11Provider::new(any.clone())), "add serial="),
        (Class::Protocol, Kind::Usage)
    );
    let token = with_key(Keys::Aes(32));
    any.token.serial = Some(token.serial());
    any.pin = Some(SecretFile::new(token.pin_file()));
    wrap(&Pkcs11Provider::new(any)).unwrap();
}

#[test]
fn a_public_key_that_was_slipped_in_is_not_used() {
    let token = with_key(Keys::Rsa(2048));
    let provider = Pkcs11Provider::new(settings(&token, LIBRARY));
    let public = |session: &cryptoki::session::Session, id: &[u8]| {
        let wanted = [
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::Id(id.into()),
        ];
        session.find_objects(&wanted).unwrap()
    };
    // Another pair, of which the public key takes the place of ours.
    token.make(Keys::Rsa(2048), "other", &[9], &[]);
    token.operate(|session| {
        let slipped_in = [Attribute::Label(LABEL.into()), Attribute::Id(vec![1])];
        let theirs = public(session, &[9])[0];
        session.update_attributes(theirs, &slipped_in).unwrap();
        assert_eq!(public(session, &[1]).len(), 2);
    });
    for _ in 0..4 {
        unwrap(&provider, &wrap(&provider).unwrap()).unwrap();
    }
    // Without the right one, nothing is wrapped.
    let modulus = token.operate(|session| {
        let private = session
            .find_objects(&[
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Id(vec![1]),
            ])
            .unwrap()[0];
        let modulus = [cryptoki::object::AttributeType::Modulus];
        session.get_attributes(private, &modulus).unwrap()
    });
    token.operate(|session| {
        for object in public(session, &[1]) {
            let modulus_too = [cryptoki::object::AttributeType::Modulus];
            if session.get_attributes(object, &modulus_too).unwrap() == modulus {
                session.destroy_object(object).unwrap();
            }
        }
        assert_eq!(public(session, &[1]).len(), 1);
    });
    assert_eq!(
        told(wrap(&provider), "no public key with its CKA_ID").0,
        Class::NotFound
    );
    assert!(!current(&provider).unwrap().enabled);
}
