//! Each provider that goes over the network, as a key set of it is configured
//! at a server that means no good, and the credentials that it would send.
//!
//! A site registers with one function below. What is no success at once is
//! asked for at two *stages*: the first request of a call, and the first one
//! after this host has been let in.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::config::KeySetFiles;
use sealblk::kms::{Error, KeyRef, Provider, Wrapped};
use sealblk::secret::Secret;
use serde_json::json;
use tempfile::TempDir;

use super::certificates::Authority;
use super::hostile::{Asked, http};

/// Short, as most of what servers do here is tried again until it is over. A
/// machine that is busy may not come to the point in that: see [`eventually`].
const DEADLINE: &str = "timeout = \"1s\"\ndeadline = \"1s\"";

/// How many calls may come to nothing for want of a CPU.
pub const TRIES: usize = 40;

/// How many calls are under way at a time.
const AT_A_TIME: usize = 32;

/// Tries until something is so.
#[track_caller]
pub fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    assert!((0..TRIES).any(|_| attempt()), "{what}: it never was so");
}

/// Does it with each of `all`, several at a time.
pub fn with_each<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

/// Nobody waits longer, whatever a server does.
const MOST: Duration = Duration::from_secs(60);

/// What a host has in its credentials, each to be found nowhere.
pub const SECRETS: [&str; 6] = [
    "token-in-a-file-0123456789",
    "client-secret-0123456789~",
    "AwsSecretKey0123456789/abcdef+ghijklmnop",
    "aws-session-token-0123456789==",
    "bearer-that-was-given-out-0123456789",
    "header.jwt-of-this-host-0123456789.signature",
];

/// The key that is to be wrapped.
pub fn payload() -> Secret {
    Secret::copy_of(&b"a key that nobody may see, ".repeat(3)[..64]).unwrap()
}

/// What a good server would answer before what is of interest is asked.
pub type Prelude = fn(&Asked, u16) -> Option<Vec<u8>>;

/// A provider and how it logs in.
pub struct Site {
    pub name: &'static str,
    pub provider: &'static str,
    /// Spoken to without HTTP.
    pub is_kmip: bool,
    /// Spoken to without TLS: a service of the machine itself.
    pub is_plain: bool,
    settings: fn(&Host, u16) -> String,
    /// `None` where the first request is all.
    pub prelude: Option<Prelude>,
}

/// The files of a host, and the authority that it trusts.
pub struct Host {
    pub authority: Authority,
    directory: TempDir,
}

impl Host {
    pub fn new() -> Self {
        let host = Host {
            authority: Authority::new("ours"),
            directory: TempDir::new().unwrap(),
        };
        let client = host.authority.client("hv1");
        host.write("ca.pem", &host.authority.certificate_pem());
        host.write("host.pem", &client.certificate_pem());
        host.write("host.key", &client.key_pem());
        host.write("token", SECRETS[0].as_bytes());
        host.write("secret", SECRETS[1].as_bytes());
        host.write("jwt", SECRETS[5].as_bytes());
        let aws = format!(
            "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {}\naws_session_token = {}\n",
            SECRETS[2], SECRETS[3]
        );
        host.write("aws", aws.as_bytes());
        host.write("aws-config", b"");
        #[cfg(feature = "broker")]
        sealblk::kms::broker::keyfile::generate(&host.path("host.x25519")).unwrap();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// The settings of TLS.
    fn tls(&self, certificate: bool) -> String {
        let mut text = format!("ca_file = {:?}\n", self.path("ca.pem"));
        if certificate {
            text += &format!(
                "client_cert = {:?}\nclient_key = {:?}\n",
                self.path("host.pem"),
                self.path("host.key")
            );
        }
        text
    }
}

impl Site {
    /// At which of its requests a call meets an attack.
    pub fn stages(&self) -> impl Iterator<Item = usize> + use<> {
        1..=1 + usize::from(self.prelude.is_some())
    }

    /// A client of the server at `port`.
    pub fn client(&self, host: &Host, port: u16) -> Client {
        let text = format!(
            "provider = {:?}\n{}\n{DEADLINE}\n",
            self.provider,
            (self.settings)(host, port)
        );
        let table: toml::Table = toml::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let files = KeySetFiles::new(host.path("key-sets.d"));
        let definition = files.check(&"prod".parse().unwrap(), &table);
        let definition = definition.unwrap_or_else(|error| panic!("{text}: {error}"));
        Client {
            key: KeyRef {
                id: definition.source.key_id(),
                version: None,
            },
            provider: definition.source.client(),
        }
    }
}

pub struct Client {
    key: KeyRef,
    provider: Arc<dyn Provider>,
}

impl Client {
    pub fn wrap(&self) -> Result<Wrapped, Error> {
        in_time(self.provider.wrap(&self.key, &payload(), b"volume"))
    }

    /// The same on the runtime of the caller.
    pub async fn wrap_here(&self) -> Result<Wrapped, Error> {
        self.provider.wrap(&self.key, &payload(), b"volume").await
    }
}

/// Every call has an end.
fn in_time<F: Future>(call: F) -> F::Output {
    let timed = async { tokio::time::timeout(MOST, call).await };
    sealblk::runtime::block_on(timed)
        .unwrap()
        .expect("the call does not end")
}

fn token_answer() -> Vec<u8> {
    let body = json!({"access_token": SECRETS[4], "expires_in": 3600, "token_type": "Bearer"});
    http("200 OK", "", body.to_string().as_bytes())
}

fn vault(auth: &str, host: &Host, port: u16) -> String {
    format!(
        "endpoints = [\"https://127.0.0.1:{port}\"]\nkey = \"disks\"\nauth = {auth}\n{}",
        host.tls(false)
    )
}

fn vault_prelude(asked: &Asked, _: u16) -> Option<Vec<u8>> {
    let body = if asked.is_for("lookup-self") {
        json!({"data": {"ttl": 0, "creation_ttl": 0, "renewable": false}})
    } else if asked.is_for("/keys/disks") {
        json!({"data": {"type": "aes256-gcm96", "latest_version": 1}})
    } else {
        return None;
    };
    Some(http("200 OK", "", body.to_string().as_bytes()))
}

fn azure(identity: &str, host: &Host, port: u16) -> String {
    format!(
        "key = \"https://127.0.0.1:{port}/keys/disks\"\nauthority = \"https://127.0.0.1:{port}\"\nresource = \"https://vault.azure.net\"\nretry_forbidden = \"100ms\"\nidentity = {identity}\n{}",
        host.tls(false)
    )
}

fn azure_prelude(asked: &Asked, port: u16) -> Option<Vec<u8>> {
    if asked.is_for("/oauth2/v2.0/token") {
        return Some(token_answer());
    }
    let has_token = asked.head.to_lowercase().contains("\r\nauthorization:");
    (!has_token).then(|| {
        let challenge = format!(
            "WWW-Authenticate: Bearer authorization=\"https://127.0.0.1:{port}/tenant-1\", resource=\"https://vault.azure.net\"\r\n"
        );
        http("401 Unauthorized", &challenge, b"")
    })
}

fn aws(credentials: &str, host: &Host, port: u16) -> String {
    format!(
        "key = \"alias/disks\"\nregion = \"eu-central-1\"\nendpoints = [\"https://127.0.0.1:{port}\"]\ncredentials = {credentials}\n{}",
        host.tls(false)
    )
}

fn gcp(auth: &str, host: &Host, port: u16) -> String {
    format!(
        "key = \"projects/p/locations/global/keyRings/r/cryptoKeys/disks\"\nendpoints = [\"https://127.0.0.1:{port}\"]\nauth = {auth}\n{}",
        host.tls(false)
    )
}

fn gcp_prelude(asked: &Asked, _: u16) -> Option<Vec<u8>> {
    asked.is_for("/token").then(token_answer)
}

fn gcp_account(host: &Host, port: u16) -> PathBuf {
    static KEY: OnceLock<String> = OnceLock::new();
    let key = KEY.get_or_init(|| {
        let key = openssl::rsa::Rsa::generate(2048).unwrap();
        let key = openssl::pkey::PKey::from_rsa(key).unwrap();
        String::from_utf8(key.private_key_to_pem_pkcs8().unwrap()).unwrap()
    });
    let account = json!({
        "type": "service_account",
        "client_email": "host@p.iam.gserviceaccount.com",
        "private_key_id": "k1",
        "private_key": key,
        "token_uri": format!("https://127.0.0.1:{port}/token"),
    });
    host.write(
        &format!("account-{port}.json"),
        account.to_string().as_bytes(),
    )
}

const SITES: &[Site] = &[
    Site {
        name: "vault with a token",
        provider: "vault",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let token = host.path("token");
            vault(
                &format!("{{ method = \"token\", token = {token:?} }}"),
                host,
                port,
            )
        },
        prelude: Some(vault_prelude),
    },
    Site {
        name: "vault with AppRole",
        provider: "vault",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let secret = host.path("secret");
            let auth =
                format!("{{ method = \"approle\", role_id = \"role-1\", secret_id = {secret:?} }}");
            vault(&auth, host, port)
        },
        prelude: None,
    },
    Site {
        name: "vault in Kubernetes",
        provider: "vault",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let jwt = host.path("jwt");
            let auth = format!("{{ method = \"kubernetes\", role = \"role-1\", token = {jwt:?} }}");
            vault(&auth, host, port)
        },
        prelude: None,
    },
    #[cfg(feature = "azure-keyvault")]
    Site {
        name: "azure with a client secret",
        provider: "azure-keyvault",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let secret = host.path("secret");
            let identity = format!(
                "{{ method = \"client-secret\", client_id = \"11111111-2222-3333-4444-555555555555\", tenant = \"tenant-1\", secret = {secret:?} }}"
            );
            azure(&identity, host, port)
        },
        prelude: Some(azure_prelude),
    },
    #[cfg(feature = "aws-kms")]
    Site {
        name: "aws with a profile",
        provider: "aws-kms",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let (file, config) = (host.path("aws"), host.path("aws-config"));
            let credentials = format!(
                "{{ source = \"profile\", profile = \"default\", credentials_file = {file:?}, config_file = {config:?} }}"
            );
            aws(&credentials, host, port)
        },
        prelude: None,
    },
    #[cfg(feature = "aws-kms")]
    Site {
        name: "aws on an instance",
        provider: "aws-kms",
        is_kmip: false,
        is_plain: true,
        settings: |host, port| {
            let credentials =
                format!("{{ source = \"instance\", endpoint = \"http://127.0.0.1:{port}\" }}");
            aws(&credentials, host, port)
        },
        prelude: None,
    },
    #[cfg(feature = "gcp-kms")]
    Site {
        name: "gcp with a service account",
        provider: "gcp-kms",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            let account = gcp_account(host, port);
            let auth = format!(
                "{{ method = \"file\", credentials = {account:?}, trusted_hosts = [\"127.0.0.1\"] }}"
            );
            gcp(&auth, host, port)
        },
        prelude: Some(gcp_prelude),
    },
    #[cfg(feature = "gcp-kms")]
    Site {
        name: "gcp on an instance",
        provider: "gcp-kms",
        is_kmip: false,
        is_plain: true,
        settings: |host, port| {
            let auth = format!("{{ method = \"metadata\", server = \"127.0.0.1:{port}\" }}");
            gcp(&auth, host, port)
        },
        prelude: None,
    },
    #[cfg(feature = "broker")]
    Site {
        name: "broker",
        provider: "broker",
        is_kmip: false,
        is_plain: false,
        settings: |host, port| {
            format!(
                "endpoints = [\"https://127.0.0.1:{port}\"]\nkey_set = \"prod\"\nhost = \"hv1\"\nhost_key = {:?}\nbroker_keys = [\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\"]\n{}",
                host.path("host.x25519"),
                host.tls(true)
            )
        },
        prelude: None,
    },
    Site {
        name: "kmip",
        provider: "kmip",
        is_kmip: true,
        is_plain: false,
        settings: |host, port| {
            format!(
                "endpoints = [\"127.0.0.1:{port}\"]\nkey_name = \"disks\"\n{}",
                host.tls(true)
            )
        },
        prelude: None,
    },
];

/// Those that speak TLS.
pub fn with_tls() -> impl Iterator<Item = &'static Site> {
    SITES.iter().filter(|site| !site.is_plain)
}

/// Those that speak HTTP.
pub fn with_http() -> impl Iterator<Item = &'static Site> {
    SITES.iter().filter(|site| !site.is_kmip)
}

/// What no message, record or log may have in it.
pub fn needles() -> Vec<String> {
    let payload = payload();
    let mut needles: Vec<String> = SECRETS.iter().map(|secret| (*secret).to_owned()).collect();
    needles.push(key_as_sent());
    needles.push(String::from_utf8(payload.to_vec()).unwrap());
    needles
}

/// The key that is to be wrapped, as services are sent it.
pub fn key_as_sent() -> String {
    BASE64.encode(&*payload())
}

/// A provider that is added has to be attacked as well.
#[test]
fn every_provider_that_goes_over_the_network_is_attacked() {
    // These have no network: a file, a library, a socket of this host
    // (`kms_k8s` has what its other end can do).
    let local = ["file", "pkcs11", "k8s-kms"];
    for (provider, built) in sealblk::kms::PROVIDERS {
        let attacked = SITES.iter().any(|site| site.provider == provider);
        assert!(
            local.contains(&provider) || attacked || !built,
            "add {provider} to tests/network_attacks/sites.rs"
        );
    }
}
