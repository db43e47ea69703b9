//! The `vault` provider: its service is OpenBao.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::vault::{Auth, Settings, VaultProvider};
use sealblk::kms::{Class, Denied, KeyRef, Provider, tls};
use serde_json::json;

use crate::lab::{Broken, Granularity, Lab};
use crate::openbao::{OpenBao, ROOT, free_port};

const KEY: &str = "disks";

/// A transit engine of its own on the one server.
pub struct VaultLab {
    mount: String,
    token: String,
}

fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start)
}

/// A server that waits for its operators.
fn sealed() -> &'static OpenBao {
    static SEALED: OnceLock<OpenBao> = OnceLock::new();
    SEALED.get_or_init(|| {
        let server = OpenBao::start();
        server.seal();
        server
    })
}

impl VaultLab {
    /// A new key with one version, and a token that may use it.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = format!("transit-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        server().mount(&mount);
        server().post(&format!("{mount}/keys/{KEY}"), json!({}));
        // Any key of the mount, so that a missing one is told as missing.
        server().permit(&mount, &mount, "*");
        let token = server().token(&mount);
        VaultLab { mount, token }
    }

    /// As a key set of it is configured, but for the key.
    #[cfg(feature = "broker")]
    pub fn configuration(&self) -> String {
        self.configuration_at(server(), &self.token)
    }

    /// The same at a server that is sealed.
    #[cfg(feature = "broker")]
    pub fn sealed_configuration(&self) -> String {
        self.configuration_at(sealed(), ROOT)
    }

    #[cfg(feature = "broker")]
    fn configuration_at(&self, server: &OpenBao, token: &str) -> String {
        let file = server.write(&format!("{}-broker.token", self.mount), token);
        format!(
            "endpoints = [{:?}]\nmount = {:?}\nauth = {{ method = \"token\", token = {file:?} }}\n",
            server.url(),
            self.mount
        )
    }

    fn key_path(&self, rest: &str) -> String {
        format!("{}/keys/{KEY}{rest}", self.mount)
    }

    /// A client that waits for so many seconds, for what fails for good as well.
    fn client_at(
        &self,
        server: &OpenBao,
        url: &str,
        token: &str,
        deadline: u64,
    ) -> Box<dyn Provider> {
        let file = format!("{}-{}.token", self.mount, token.len());
        Box::new(VaultProvider::new(Settings {
            endpoints: vec![url.parse().unwrap()],
            namespace: None,
            mount: self.mount.parse().unwrap(),
            auth: Auth::Token(SecretFile::new(server.write(&file, token))),
            tls: tls::Settings::default(),
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(deadline),
            },
        }))
    }

    fn client(&self) -> Box<dyn Provider> {
        self.client_at(server(), &server().url(), &self.token, 30)
    }
}

impl Lab for VaultLab {
    fn provider(&self) -> Box<dyn Provider> {
        self.client()
    }

    fn key(&self) -> KeyRef {
        KeyRef {
            id: Some(KEY.into()),
            version: None,
        }
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        server().post(&format!("{}/keys/stranger", self.mount), json!({}));
        let key = KeyRef {
            id: Some("stranger".into()),
            version: None,
        };
        (self.client(), key)
    }

    fn rotate(&self) {
        server().post(&self.key_path("/rotate"), json!({}));
    }

    fn granularity(&self) -> Granularity {
        Granularity::OlderVersions
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        let version: u32 = version.parse().unwrap();
        let least = if enabled { version } else { version + 1 };
        server().post(
            &self.key_path("/config"),
            json!({"min_decryption_version": least}),
        );
    }

    fn delete(&self, version: &str) {
        let kept = version.parse::<u32>().unwrap() + 1;
        server().post(
            &self.key_path("/config"),
            json!({"min_encryption_version": kept}),
        );
        server().post(
            &self.key_path("/trim"),
            json!({"min_available_version": kept}),
        );
    }

    fn no_version(&self) -> String {
        "999".into()
    }

    fn broken(&self, class: Class) -> Broken {
        match class {
            Class::Denied(Denied::Deleted) => {
                server().delete(&self.key_path("/soft-delete"));
            }
            Class::Denied(Denied::Forbidden) => {
                let policy = json!({"policy": r#"path "none" { capabilities = ["read"] }"#});
                server().post(&format!("sys/policies/acl/{}", self.mount), policy);
            }
            Class::NotFound => {
                server().permit(&self.mount, &self.mount, "*");
                server().post(&self.key_path("/soft-delete-restore"), json!({}));
                server().post(&self.key_path("/config"), json!({"deletion_allowed": true}));
                server().delete(&self.key_path(""));
            }
            Class::Throttled { .. } => {
                let quota =
                    json!({"path": format!("{}/", self.mount), "rate": 1, "interval": "1h"});
                server().post(&format!("sys/quotas/rate-limit/{}", self.mount), quota);
                // One call is free.
                server().status(&self.key_path(""));
            }
            Class::Unreachable => {
                let nobody = format!("http://127.0.0.1:{}", free_port());
                return Broken::Client(self.client_at(server(), &nobody, &self.token, 2));
            }
            Class::Sealed => {
                let sealed = sealed();
                return Broken::Client(self.client_at(sealed, &sealed.url(), ROOT, 2));
            }
            Class::Protocol => {
                // Answers, but is no transit engine.
                server().delete(&format!("sys/quotas/rate-limit/{}", self.mount));
                server().delete(&format!("sys/mounts/{}", self.mount));
                let kv = json!({"type": "kv"});
                server().post(&format!("sys/mounts/{}", self.mount), kv);
                for path in ["keys", "encrypt", "decrypt"] {
                    let path = format!("{}/{path}/{KEY}", self.mount);
                    server().post(&path, json!({"what": "something else"}));
                }
            }
            Class::Denied(Denied::Disabled) => {
                return Broken::Impossible("the latest version cannot be below the minimum");
            }
            Class::Denied(Denied::Expired) => {
                return Broken::Impossible("transit keys have no end");
            }
            Class::BadKey => unreachable!("not asked for"),
        }
        Broken::Client(self.client_at(server(), &server().url(), &self.token, 2))
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        vec![self.token.clone().into_bytes(), ROOT.into()]
    }
}
