//! The `gcp-kms` provider: its service is a faithful fake.

use std::time::Duration;

use sealblk::kms::gcp::GcpProvider;
use sealblk::kms::{Class, Denied, KeyRef, Provider};
use serde_json::json;

use crate::gcp::identity::Identities;
use crate::gcp::{Answer, Gcp};
use crate::lab::{Broken, Lab};

/// A cloud of its own.
pub struct GcpLab(Gcp);

impl GcpLab {
    /// A new key with one version, and a service account that may use it.
    pub fn new() -> Self {
        let gcp = Gcp::start();
        gcp.account_file();
        GcpLab(gcp)
    }

    fn fails(&self, code: u16, status: &'static str, message: &'static str) {
        self.0.intercept(move |asked| {
            let error = json!({"code": code, "status": status, "message": message});
            let kms = asked.path.starts_with("/v1/projects/");
            kms.then(|| Answer::Json(code, json!({ "error": error })))
        });
    }
}

impl Lab for GcpLab {
    fn provider(&self) -> Box<dyn Provider> {
        let mut settings = self.0.settings(self.0.file(self.0.path("account.json")));
        settings.timing.deadline = Duration::from_secs(2);
        Box::new(GcpProvider::new(settings))
    }

    fn key(&self) -> KeyRef {
        Gcp::key("disks")
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        self.0.cloud().keys.make("stranger");
        (self.provider(), Gcp::key("stranger"))
    }

    fn rotate(&self) {
        self.0.cloud().keys.rotate("disks");
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        let state = if enabled { "ENABLED" } else { "DISABLED" };
        self.0.cloud().keys.set_state("disks", version, state);
    }

    fn delete(&self, version: &str) {
        self.0.cloud().keys.set_state("disks", version, "DESTROYED");
    }

    fn no_version(&self) -> String {
        "999".into()
    }

    fn broken(&self, class: Class) -> Broken {
        self.0.leave_alone();
        let set = |state| self.0.cloud().keys.set_state("disks", "1", state);
        {
            let mut cloud = self.0.cloud();
            cloud.keys.denied.clear();
            cloud.keys.restore("disks");
        }
        match class {
            Class::Denied(Denied::Disabled) => set("DISABLED"),
            Class::Denied(Denied::Deleted) => set("DESTROY_SCHEDULED"),
            Class::Denied(Denied::Forbidden) => {
                let all = ["cryptoKeys.get", "cryptoKeyVersions.get"];
                let uses = [
                    "cryptoKeyVersions.useToEncrypt",
                    "cryptoKeyVersions.useToDecrypt",
                ];
                let all = all.into_iter().chain(uses);
                self.0.cloud().keys.denied = all.map(|p| format!("cloudkms.{p}")).collect();
            }
            Class::NotFound => self.0.cloud().keys.keys.clear(),
            Class::Throttled { .. } => {
                self.fails(429, "RESOURCE_EXHAUSTED", "Quota exceeded for quota metric");
            }
            Class::Unreachable => {
                self.fails(503, "UNAVAILABLE", "The service is currently unavailable.")
            }
            Class::Protocol => self.0.intercept(|asked| {
                let kms = asked.path.starts_with("/v1/projects/");
                kms.then(|| Answer::Json(200, json!({"what": "something else"})))
            }),
            Class::Sealed => return Broken::Impossible("nobody has to unseal the service"),
            Class::Denied(Denied::Expired) => return Broken::Impossible("its keys have no end"),
            Class::BadKey => unreachable!("not asked for"),
        }
        Broken::Client(self.provider())
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let cloud = self.0.cloud();
        let tokens = cloud
            .identities
            .tokens()
            .into_iter()
            .map(String::into_bytes);
        // The beginning is the same in all tokens, and no secret.
        let tokens = tokens.map(|token| token[7..].to_vec());
        let mut secrets = cloud.keys.material();
        secrets.extend(tokens);
        secrets.push(Identities::private_key()[100..].to_vec());
        secrets
    }
}
