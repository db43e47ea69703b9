//! The `pkcs11` provider: its service is a token of SoftHSM.

use std::cell::Cell;
use std::time::Duration;

use cryptoki::object::{Attribute, ObjectClass};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::pkcs11::{Choice, Pkcs11Provider, Settings, TokenMatch};
use sealblk::kms::{Class, Denied, KeyRef, Provider};

use crate::lab::{Broken, Lab};
use crate::softhsm::{self, Keys, LABEL, Token};

/// A token with a key.
pub struct Pkcs11Lab {
    token: Token,
    mechanism: Choice,
    versions: Cell<u8>,
}

impl Pkcs11Lab {
    /// A new token, and a key for this mechanism with one version.
    pub fn new(mechanism: Choice) -> Self {
        let lab = Pkcs11Lab {
            token: Token::new(),
            mechanism,
            versions: Cell::new(0),
        };
        lab.rotate();
        lab
    }

    fn keys(&self) -> Keys {
        match self.mechanism {
            Choice::Gcm | Choice::Kwp => Keys::Aes(32),
            Choice::Oaep => Keys::Rsa(2048),
        }
    }

    fn settings(&self, token: &Token) -> Settings {
        Settings {
            module: softhsm::LIBRARY.into(),
            token: TokenMatch {
                label: Some(token.label.clone()),
                ..TokenMatch::default()
            },
            pin: Some(SecretFile::new(token.pin_file())),
            // RSA keys have one mechanism, and need not be told.
            mechanism: (self.mechanism != Choice::Oaep).then_some(self.mechanism),
            // The machine may be busy with other tests.
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(30),
            },
        }
    }

    fn called(&self, label: &str) -> KeyRef {
        KeyRef {
            id: Some(format!("pkcs11:object={label}")),
            version: None,
        }
    }

    fn allow(&self, id: &[u8], may: bool) {
        let (secret, private, public) = (
            ObjectClass::SECRET_KEY,
            ObjectClass::PRIVATE_KEY,
            ObjectClass::PUBLIC_KEY,
        );
        match self.mechanism {
            Choice::Gcm => {
                let both = [Attribute::Encrypt(may), Attribute::Decrypt(may)];
                self.token.set(secret, id, &both);
            }
            Choice::Kwp => {
                let both = [Attribute::Wrap(may), Attribute::Unwrap(may)];
                self.token.set(secret, id, &both);
            }
            Choice::Oaep => {
                self.token.set(private, id, &[Attribute::Decrypt(may)]);
                self.token.set(public, id, &[Attribute::Encrypt(may)]);
            }
        }
    }
}

fn id(version: &str) -> Vec<u8> {
    hex::decode(version).unwrap()
}

impl Lab for Pkcs11Lab {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(Pkcs11Provider::new(self.settings(&self.token)))
    }

    fn key(&self) -> KeyRef {
        self.called(LABEL)
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        self.token.make(self.keys(), "stranger", &[0x77], &[]);
        (self.provider(), self.called("stranger"))
    }

    fn rotate(&self) {
        self.versions.set(self.versions.get() + 1);
        let id = [self.versions.get()];
        self.token.make(self.keys(), LABEL, &id, &[]);
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        self.allow(&id(version), enabled);
    }

    fn delete(&self, version: &str) {
        self.token.delete(&id(version));
    }

    fn no_version(&self) -> String {
        "4711".into()
    }

    fn broken(&self, class: Class) -> Broken {
        let at =
            |token: &Token| Broken::Client(Box::new(Pkcs11Provider::new(self.settings(token))));
        match class {
            Class::Denied(Denied::Disabled) => {
                self.allow(&[1], false);
                at(&self.token)
            }
            Class::Denied(Denied::Expired) => {
                self.token.delete(&[1]);
                // SoftHSM cannot tell dates of private objects.
                let end = Attribute::EndDate(softhsm::date("2020", "12", "31"));
                let more = [end, Attribute::Private(false)];
                self.token.make(self.keys(), LABEL, &[1], &more);
                at(&self.token)
            }
            Class::Denied(Denied::Forbidden) => {
                let token = Token::new();
                token.make(self.keys(), LABEL, &[1], &[]);
                softhsm::write(&token.pin_file(), "not the right pin");
                at(&token)
            }
            Class::NotFound => at(&Token::new()),
            Class::Unreachable => {
                let mut settings = self.settings(&self.token);
                settings.token.serial = Some("none has this".into());
                settings.timing.deadline = Duration::from_secs(1);
                Broken::Client(Box::new(Pkcs11Provider::new(settings)))
            }
            Class::Protocol => {
                let token = Token::new();
                let weak = match self.keys() {
                    Keys::Aes(_) => Keys::Aes(16),
                    Keys::Rsa(_) => Keys::Rsa(1024),
                };
                token.make(weak, LABEL, &[1], &[]);
                at(&token)
            }
            Class::Denied(Denied::Deleted) => Broken::Impossible("a token forgets what is deleted"),
            Class::Throttled { .. } => Broken::Impossible("PKCS#11 has no such answer"),
            Class::Sealed => Broken::Impossible("PKCS#11 has no such answer"),
            Class::BadKey => unreachable!("not asked for"),
        }
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        self.token.secrets()
    }
}
