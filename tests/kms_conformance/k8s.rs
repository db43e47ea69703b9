//! The `k8s-kms` provider: its service is a plugin in Python.

use sealblk::kms::k8s::K8sProvider;
use sealblk::kms::{Class, Denied, KeyRef, Provider};
use serde_json::json;

use crate::k8s_plugin::Plugin;
use crate::lab::{Broken, Lab};

/// A plugin, and another one for strangers.
pub struct K8sLab {
    plugin: Plugin,
    stranger: std::cell::OnceCell<Plugin>,
}

impl K8sLab {
    /// A plugin with a new key.
    pub fn new() -> Self {
        K8sLab {
            plugin: Plugin::start(),
            stranger: std::cell::OnceCell::new(),
        }
    }

    fn client(&self, plugin: &Plugin) -> Box<dyn Provider> {
        Box::new(K8sProvider::new(plugin.settings()))
    }
}

impl Lab for K8sLab {
    fn provider(&self) -> Box<dyn Provider> {
        self.client(&self.plugin)
    }

    fn key(&self) -> KeyRef {
        KeyRef::default()
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        let stranger = self.stranger.get_or_init(Plugin::start);
        (self.client(stranger), KeyRef::default())
    }

    fn rotate(&self) {
        self.plugin.rotate();
    }

    fn can_pin(&self) -> bool {
        false
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        self.plugin.set_enabled(version, enabled);
    }

    fn delete(&self, version: &str) {
        self.plugin.delete(version);
    }

    fn no_version(&self) -> String {
        "key-4711".into()
    }

    fn broken(&self, class: Class) -> Broken {
        let plugin = &self.plugin;
        plugin.set("code", json!({}));
        let fails = |code: &str, text: &str| {
            let all = ["Status", "Encrypt", "Decrypt"].map(|method| (method, json!([code, text])));
            plugin.set("code", all.into_iter().collect());
        };
        match class {
            Class::Denied(Denied::Disabled) => plugin.set_enabled("key-1", false),
            Class::Denied(Denied::Deleted) => {
                plugin.set_enabled("key-1", true);
                fails("UNKNOWN", "the key is pending deletion");
            }
            Class::Denied(Denied::Forbidden) => fails("PERMISSION_DENIED", "no"),
            Class::NotFound => fails("NOT_FOUND", "no such key"),
            Class::Throttled { .. } => fails("RESOURCE_EXHAUSTED", "slow down"),
            Class::Unreachable => fails("UNKNOWN", "something went wrong"),
            Class::Sealed => fails("UNKNOWN", "Vault is sealed"),
            Class::Protocol => fails("UNIMPLEMENTED", "unknown service"),
            Class::Denied(Denied::Expired) => {
                return Broken::Impossible("no code or text tells this for certain");
            }
            Class::BadKey => unreachable!("not asked for"),
        }
        Broken::Client(self.provider())
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        self.plugin.keys()
    }
}
