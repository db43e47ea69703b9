//! SoftHSM, and what a security officer does with its tokens.
//! `scripts/install-deps test` installs it.
//!
//! The library reads its configuration once in a process, from where a variable
//! of the environment says. So all tests of a process share one directory, and
//! each has tokens of its own in it. They are made through the library: it does
//! not see those that another process makes later.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::{AuthPin, Date};

/// Where Debian and Ubuntu install it.
pub const LIBRARY: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// The label of the keys.
pub const LABEL: &str = "disks";

/// Where this process has its tokens.
struct Place {
    directory: PathBuf,
    library: Pkcs11,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    assert!(
        Path::new(LIBRARY).exists(),
        "{LIBRARY} is missing: run scripts/install-deps test"
    );
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // A static is never dropped, so those before us have left theirs.
    for entry in fs::read_dir(scratch).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        if let Some(pid) = name.strip_prefix("softhsm-")
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let directory = scratch.join(format!("softhsm-{}", std::process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.join("tokens")).unwrap();
    let text = format!(
        "directories.tokendir = {}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n",
        directory.display()
    );
    fs::write(directory.join("softhsm2.conf"), text).unwrap();
    // SAFETY: this happens once in the process. The C library's first change
    // of the environment copies it and leaves the old one as it is, so that
    // whoever reads it at the same time reads valid memory.
    unsafe { std::env::set_var("SOFTHSM2_CONF", directory.join("softhsm2.conf")) };
    let library = Pkcs11::new(LIBRARY).unwrap();
    initialise(&library);
    Place { directory, library }
});

fn initialise(library: &Pkcs11) {
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => panic!("SoftHSM does not start: {error}"),
    }
}

/// The configuration for other processes that are to see the same tokens.
pub fn configuration() -> PathBuf {
    PLACE.directory.join("softhsm2.conf")
}

/// The library, as this process has loaded it.
pub fn library() -> &'static Pkcs11 {
    &PLACE.library
}

/// What kind of keys a token gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// AES, with so many bytes.
    Aes(usize),
    /// RSA, with so many bits.
    Rsa(u64),
}

/// A token of its own.
pub struct Token {
    pub label: String,
    pub pin: String,
    slot: Slot,
}

impl Token {
    /// A token without keys.
    pub fn new() -> Self {
        static MAKING: Mutex<()> = Mutex::new(());
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = &*PLACE;
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = place.library.get_all_slots().unwrap();
        let slot = slots
            .into_iter()
            .find(|slot| {
                let info = place.library.get_token_info(*slot);
                info.is_ok_and(|info| !info.token_initialized())
            })
            .expect("there always is a slot with a new token");
        let token = Token {
            label: format!("sealblk test {number}"),
            pin: format!("pin of user {number:06}"),
            slot,
        };
        let officer = AuthPin::new(format!("pin of officer {number}").into());
        place
            .library
            .init_token(slot, &officer, &token.label)
            .unwrap();
        let session = place.library.open_rw_session(slot).unwrap();
        session.login(UserType::So, Some(&officer)).unwrap();
        session
            .init_pin(&AuthPin::new(token.pin.clone().into()))
            .unwrap();
        session.logout().unwrap();
        let file = token.pin_file();
        write(&file, &token.pin);
        token
    }

    /// The file with the PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.file("pin")
    }

    /// A file that goes with this token.
    pub fn file(&self, name: &str) -> PathBuf {
        let label = self.label.replace(' ', "-");
        PLACE.directory.join(format!("{label}.{name}"))
    }

    /// Its part of a URI.
    pub fn uri(&self) -> String {
        format!("token={}", self.label.replace(' ', "%20"))
    }

    /// The serial number.
    pub fn serial(&self) -> String {
        let info = library().get_token_info(self.slot).unwrap();
        info.serial_number().into()
    }

    /// Does something as the user of the token, who is logged out of all
    /// sessions of this process after.
    pub fn operate<T>(&self, work: impl FnOnce(&Session) -> T) -> T {
        let session = library().open_rw_session(self.slot).unwrap();
        let pin = AuthPin::new(self.pin.clone().into());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => panic!("cannot log in: {error}"),
        }
        let done = work(&session);
        session.logout().unwrap();
        done
    }

    /// Makes a key with this label and id, and what else is given, which for a
    /// pair is of its private key.
    pub fn make(&self, keys: Keys, label: &str, id: &[u8], more: &[Attribute]) {
        let common = [
            Attribute::Token(true),
            Attribute::Label(label.into()),
            Attribute::Id(id.into()),
        ];
        // What is secret can be read here, so that it can be looked for.
        let secret = [
            Attribute::Private(true),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Decrypt(true),
            Attribute::Unwrap(true),
        ];
        let with = |parts: &[&[Attribute]]| {
            let given = |one: &Attribute| {
                let kind = one.attribute_type();
                more.iter().any(|more| more.attribute_type() == kind)
            };
            let mut all = parts.concat();
            all.retain(|one| !given(one));
            [&all[..], more].concat()
        };
        self.operate(|session| match keys {
            Keys::Aes(bytes) => {
                let length = Attribute::ValueLen((bytes as u64).into());
                let wraps = [Attribute::Encrypt(true), Attribute::Wrap(true), length];
                let template = with(&[&common, &secret, &wraps]);
                session
                    .generate_key(&Mechanism::AesKeyGen, &template)
                    .unwrap();
            }
            Keys::Rsa(bits) => {
                let public = [
                    Attribute::Private(false),
                    Attribute::Encrypt(true),
                    Attribute::ModulusBits(bits.into()),
                    Attribute::PublicExponent(vec![1, 0, 1]),
                ];
                let public = [&common[..], &public].concat();
                let private = with(&[&common, &secret]);
                let mechanism = Mechanism::RsaPkcsKeyPairGen;
                session
                    .generate_key_pair(&mechanism, &public, &private)
                    .unwrap();
            }
        });
    }

    /// Sets attributes of what has this id and class.
    pub fn set(&self, class: ObjectClass, id: &[u8], attributes: &[Attribute]) {
        self.operate(|session| {
            for object in found(session, class, Some(id)) {
                session.update_attributes(object, attributes).unwrap();
            }
        });
    }

    /// Deletes all that has this id.
    pub fn delete(&self, id: &[u8]) {
        self.operate(|session| {
            for class in [
                ObjectClass::SECRET_KEY,
                ObjectClass::PUBLIC_KEY,
                ObjectClass::PRIVATE_KEY,
            ] {
                for object in found(session, class, Some(id)) {
                    session.destroy_object(object).unwrap();
                }
            }
        });
    }

    /// What nobody must see: the PIN, and all keys.
    pub fn secrets(&self) -> Vec<Vec<u8>> {
        let mut secrets = vec![self.pin.clone().into_bytes()];
        self.operate(|session| {
            for (class, wanted) in [
                (ObjectClass::SECRET_KEY, AttributeType::Value),
                (ObjectClass::PRIVATE_KEY, AttributeType::PrivateExponent),
            ] {
                for object in found(session, class, None) {
                    for attribute in session.get_attributes(object, &[wanted]).unwrap() {
                        match attribute {
                            Attribute::Value(value) | Attribute::PrivateExponent(value) => {
                                secrets.push(value);
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            }
        });
        secrets
    }
}

fn found(session: &Session, class: ObjectClass, id: Option<&[u8]>) -> Vec<ObjectHandle> {
    let mut wanted = vec![Attribute::Class(class), Attribute::Token(true)];
    wanted.extend(id.map(|id| Attribute::Id(id.into())));
    session.find_objects(&wanted).unwrap()
}

/// A day, as keys have them.
pub fn date(year: &str, month: &str, day: &str) -> Date {
    Date::new_from_str_slice(year, month, day).unwrap()
}

/// Writes a secret to a file.
pub fn write(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
