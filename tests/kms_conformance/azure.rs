//! The `azure-keyvault` provider: its service is the fake in `support/azure`.

use sealblk::kms::azure::AzureProvider;
use sealblk::kms::{Class, Denied, KeyRef, Provider};

use crate::azure_fake::keys::Version;
use crate::azure_fake::vault::{Mood, Vault};
use crate::azure_fake::{Azure, CLIENT, KEY, Kind, login, now};
use crate::lab::{Broken, Granularity, Lab};

/// A vault with a key.
pub struct AzureLab {
    azure: Azure,
    kind: Kind,
}

impl AzureLab {
    /// RSA keys of a Key Vault, or symmetric ones of a Managed HSM.
    pub fn new(kind: Kind) -> Self {
        let lab = AzureLab {
            azure: Azure::start(),
            kind,
        };
        // To be told as deleted, which the usual role of an HSM leaves out.
        lab.at(|vault| {
            vault
                .permissions
                .get_mut(CLIENT)
                .unwrap()
                .insert("getDeleted")
        });
        lab
    }

    fn client(&self) -> Box<dyn Provider> {
        let identity = self.azure.with_secret();
        Box::new(AzureProvider::new(self.azure.settings(self.kind, identity)))
    }

    fn at<T>(&self, change: impl FnOnce(&mut Vault) -> T) -> T {
        change(self.azure.state().vault(self.kind))
    }

    fn called(&self, name: &str) -> KeyRef {
        KeyRef {
            id: Some(format!("{}/keys/{name}", self.azure.url(self.kind))),
            version: None,
        }
    }

    fn new_version(&self) -> Version {
        let (kty, bits) = match self.kind {
            Kind::Vault => ("RSA", 2048),
            Kind::Hsm => ("oct-HSM", 256),
        };
        Version::new(kty, bits).unwrap()
    }
}

impl Lab for AzureLab {
    fn provider(&self) -> Box<dyn Provider> {
        self.client()
    }

    fn key(&self) -> KeyRef {
        self.called(KEY)
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        let version = self.new_version();
        self.at(|vault| vault.keys.insert("stranger".into(), vec![version]));
        (self.client(), self.called("stranger"))
    }

    fn rotate(&self) {
        self.at(|vault| vault.rotate(KEY));
    }

    fn granularity(&self) -> Granularity {
        Granularity::DeletedTogether
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        self.at(|vault| vault.version(version).enabled = enabled);
    }

    fn delete(&self, _version: &str) {
        self.at(|vault| vault.delete(KEY));
    }

    fn calls_are_slow(&self) -> bool {
        true
    }

    fn no_version(&self) -> String {
        "0".repeat(32)
    }

    fn broken(&self, class: Class) -> Broken {
        self.at(|vault| match class {
            Class::Denied(Denied::Disabled) => vault.latest(KEY).enabled = false,
            Class::Denied(Denied::Expired) => {
                vault.latest(KEY).enabled = true;
                vault.latest(KEY).exp = Some(now() - 1);
            }
            Class::Denied(Denied::Deleted) => vault.delete(KEY),
            Class::Denied(Denied::Forbidden) => {
                vault.recover(KEY);
                vault.permissions.remove(CLIENT);
            }
            Class::NotFound => {
                let all = ["get", "wrapKey", "unwrapKey"];
                vault.permissions.insert(CLIENT.into(), all.into());
                vault.keys.remove(KEY);
            }
            Class::Throttled { .. } => vault.mood = Mood::Throttling(Some(3)),
            Class::Unreachable => vault.mood = Mood::Gone,
            Class::Protocol => vault.mood = Mood::Garbled,
            Class::Sealed | Class::BadKey => {}
        });
        match class {
            Class::Sealed => Broken::Impossible("no answer of a vault says so"),
            _ => Broken::Client(self.client()),
        }
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let state = self.azure.state();
        let tokens = state.tokens.keys().map(|token| token.clone().into_bytes());
        tokens.chain([login::SECRET.into()]).collect()
    }
}
