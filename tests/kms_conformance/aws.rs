//! The `aws-kms` provider: its service is moto, made strict.

use std::cell::RefCell;
use std::time::Duration;

use sealblk::kms::aws::{AwsProvider, Settings};
use sealblk::kms::{Class, Denied, KeyRef, Provider};
use serde_json::json;

use crate::lab::{Broken, Granularity, Lab};
use crate::moto::{Key, OPERATIONS, User, named, policy, server, unique};
use crate::openbao::free_port;

/// How the security officer rotates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The service gives the key new material.
    Material,
    /// An alias is moved to a new key.
    Alias,
}

/// Keys of its own, and a user who may use them.
pub struct AwsLab {
    user: User,
    rotation: Rotation,
    alias: String,
    /// Each that the alias has been at, with its version.
    keys: RefCell<Vec<(String, Key)>>,
}

impl AwsLab {
    /// An alias of a new key.
    pub fn new(rotation: Rotation) -> Self {
        let lab = AwsLab {
            user: server().user(&policy(&OPERATIONS)),
            rotation,
            alias: unique("disks"),
            keys: RefCell::default(),
        };
        lab.move_alias();
        lab
    }

    fn move_alias(&self) {
        let key = server().key(json!({}));
        key.ask("alias", json!({"alias": self.alias}));
        self.keys.borrow_mut().push((key.material.clone(), key));
    }

    fn settings(&self) -> Settings {
        self.user.settings()
    }

    fn state_of(&self, version: &str, state: &str) {
        let keys = self.keys.borrow();
        let (_, key) = keys.iter().find(|(known, _)| known == version).unwrap();
        key.state(state);
    }

    /// All keys, which is one where the material rotates.
    fn all(&self, state: &str) {
        self.fault(json!(null));
        for (_, key) in self.keys.borrow().iter() {
            key.state(state);
        }
    }

    fn fault(&self, fault: serde_json::Value) {
        match fault.is_null() {
            true => self.user.ask("heal", json!({})),
            false => self.user.ask("fail", fault),
        };
    }
}

impl Lab for AwsLab {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(AwsProvider::new(self.settings()))
    }

    fn key(&self) -> KeyRef {
        named(&format!("alias/{}", self.alias))
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        (self.provider(), server().key(json!({})).by_arn())
    }

    fn rotate(&self) {
        if self.rotation == Rotation::Alias {
            return self.move_alias();
        }
        let key = self.keys.borrow()[0].1.clone();
        let told = key.ask("rotate", json!({}));
        let material = told["material"].as_str().unwrap().to_owned();
        self.keys.borrow_mut().push((material, key));
    }

    fn granularity(&self) -> Granularity {
        match self.rotation {
            Rotation::Material => Granularity::WholeKey,
            Rotation::Alias => Granularity::AnyVersion,
        }
    }

    fn can_pin(&self) -> bool {
        false
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        self.state_of(version, if enabled { "Enabled" } else { "Disabled" });
    }

    fn delete(&self, version: &str) {
        self.state_of(version, "PendingDeletion");
    }

    fn no_version(&self) -> String {
        "0".repeat(64)
    }

    fn broken(&self, class: Class) -> Broken {
        self.all("Enabled");
        match class {
            Class::Denied(Denied::Disabled) => self.all("Disabled"),
            Class::Denied(Denied::Deleted) => self.all("PendingDeletion"),
            Class::Denied(Denied::Expired) => {
                for (_, key) in self.keys.borrow().iter() {
                    key.ask(
                        "state",
                        json!({"state": "PendingImport", "valid_to": 1.5e9}),
                    );
                }
            }
            Class::Denied(Denied::Forbidden) => self.user.allow(&policy(&["ListKeys"])),
            Class::NotFound => {
                self.user.allow(&policy(&OPERATIONS));
                for (_, key) in self.keys.borrow().iter() {
                    key.ask("remove", json!({}));
                }
            }
            Class::Throttled { .. } => {
                self.fault(json!({"code": "ThrottlingException", "retry_after": 3600}));
            }
            Class::Unreachable => {
                let mut settings = self.settings();
                settings.timing.deadline = Duration::from_secs(2);
                let nobody = format!("http://127.0.0.1:{}", free_port());
                settings.endpoints[0].url = nobody.parse().unwrap();
                return Broken::Client(Box::new(AwsProvider::new(settings)));
            }
            // The key store that a key is in has to be connected by its operators.
            Class::Sealed => self.fault(json!({"code": "CustomKeyStoreInvalidStateException"})),
            Class::Protocol => self.fault(json!({"status": 200, "body": "<html>hello</html>"})),
            Class::BadKey => unreachable!("not asked for"),
        }
        let mut settings = self.settings();
        settings.timing.deadline = Duration::from_secs(2);
        Broken::Client(Box::new(AwsProvider::new(settings)))
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        vec![self.user.secret.clone().into_bytes()]
    }
}
