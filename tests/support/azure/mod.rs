//! A Key Vault, a Managed HSM, the authority that gives out tokens for them,
//! and the services of the platform, as far as they are documented, with real
//! cryptography, and tokens that are checked. Azure cannot be installed; the
//! official SDK, which knows nothing of sealblk, runs against the same in
//! `tests/kms_azure_sdk.rs`.
//!
//! - `http`: a server, - `keys`: keys, - `vault`: both kinds of vaults,
//! - `login`: the authority, - `platform`: managed identities.

pub mod http;
pub mod keys;
pub mod login;
pub mod platform;
pub mod vault;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::X509;
use sealblk::kms::azure::{Identity, Settings};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::tls;
use tempfile::TempDir;

use crate::certificates::Authority;
use http::Request;
use login::{Principal, Token};
use vault::Vault;

pub const TENANT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
/// Who may get, wrap and unwrap.
pub const CLIENT: &str = "bbbbbbbb-0000-4000-8000-000000000001";
/// Who may do all.
pub const OFFICER: &str = "bbbbbbbb-0000-4000-8000-000000000002";
pub const KEY: &str = "disks";

/// All services, with one key in the vault and one in the HSM.
pub struct Azure {
    pub state: Arc<Mutex<State>>,
    directory: TempDir,
    pub vault_port: u16,
    pub hsm_port: u16,
    pub login_port: u16,
    pub platform_port: u16,
    pub authority: Authority,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Vault,
    Hsm,
}

/// What all services know.
pub struct State {
    pub vaults: [Vault; 2],
    pub principals: BTreeMap<String, Principal>,
    pub tokens: BTreeMap<String, Token>,
    /// How long a token lasts.
    pub lifetime: u64,
    pub login: login::Mood,
    pub platform: platform::Machine,
    /// What was asked, and where.
    pub seen: Vec<(&'static str, Request)>,
    /// Where the authority is, for challenges.
    pub login_url: String,
}

impl State {
    pub fn vault(&mut self, kind: Kind) -> &mut Vault {
        &mut self.vaults[kind as usize]
    }
}

impl Azure {
    pub fn start() -> Self {
        Self::with_keys(("RSA", 2048), ("oct-HSM", 256))
    }

    pub fn with_keys(in_vault: (&str, u32), in_hsm: (&str, u32)) -> Self {
        let authority = Authority::new("azure test authority");
        let server = authority.server();
        let directory = tempfile::Builder::new()
            .prefix("sealblk-azure-")
            .tempdir()
            .unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.certificate_pem()).unwrap();
        let keys = directory.path().join("tokens");
        std::fs::create_dir(&keys).unwrap();
        let state = Arc::new(Mutex::new(State {
            vaults: [
                Vault::new("https://vault.azure.net", in_vault),
                Vault::new("https://managedhsm.azure.net", in_hsm),
            ],
            principals: login::principals(),
            tokens: BTreeMap::new(),
            lifetime: 3600,
            login: login::Mood::default(),
            platform: platform::Machine::new(keys),
            seen: Vec::new(),
            login_url: String::new(),
        }));
        let serve =
            |name: &'static str, answer: fn(&mut State, &Request) -> Option<http::Response>| {
                let state = state.clone();
                Arc::new(move |request: &Request| {
                    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.seen.push((name, request.clone()));
                    answer(&mut state, request)
                })
            };
        let tls = Some(&server);
        let vault_port = http::start(
            tls,
            serve("vault", |state, request| {
                vault::answer(state, Kind::Vault, request)
            }),
        );
        let hsm_port = http::start(
            tls,
            serve("hsm", |state, request| {
                vault::answer(state, Kind::Hsm, request)
            }),
        );
        let login_port = http::start(tls, serve("login", login::answer));
        let platform_port = http::start(None, serve("platform", platform::answer));
        let azure = Azure {
            state,
            directory,
            vault_port,
            hsm_port,
            login_port,
            platform_port,
            authority,
        };
        let mut state = azure.state();
        state.login_url = azure.login_url();
        for (kind, port) in [(Kind::Vault, vault_port), (Kind::Hsm, hsm_port)] {
            state.vault(kind).url = format!("https://127.0.0.1:{port}");
        }
        drop(state);
        azure.write("client-secret", login::SECRET);
        azure
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn url(&self, kind: Kind) -> String {
        self.state().vault(kind).url.clone()
    }

    pub fn login_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.login_port)
    }

    pub fn platform_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.platform_port)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file that only its owner reads.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    /// A certificate with an RSA key that the application of that name has, in
    /// NAME.pem and NAME.key, and both in NAME.both.
    pub fn certificate(&self, name: &str) -> X509 {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        // Its own authority, as such certificates often are.
        let like = self.authority.client(name).certificate;
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_serial_number(like.serial_number()).unwrap();
        builder.set_subject_name(like.subject_name()).unwrap();
        builder.set_issuer_name(like.subject_name()).unwrap();
        builder.set_not_before(like.not_before()).unwrap();
        builder.set_not_after(like.not_after()).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build();
        let (pem, key) = (
            certificate.to_pem().unwrap(),
            key.private_key_to_pem_pkcs8().unwrap(),
        );
        self.write(&format!("{name}.pem"), &pem);
        self.write(&format!("{name}.key"), &key);
        self.write(&format!("{name}.both"), [key, pem].concat());
        certificate
    }

    /// The application with its secret.
    pub fn with_secret(&self) -> Identity {
        Identity::Secret {
            client: CLIENT.parse().unwrap(),
            tenant: None,
            secret: SecretFile::new(self.path("client-secret")),
        }
    }

    pub fn settings(&self, kind: Kind, identity: Identity) -> Settings {
        let resource = self.state().vault(kind).resource.to_owned();
        Settings {
            vault: self.url(kind).parse().unwrap(),
            identity,
            authority: Some(self.login_url().parse().unwrap()),
            // No name of this host is below that domain.
            resource: Some(resource),
            algorithm: None,
            retry_forbidden: None,
            tls: tls::Settings {
                ca_files: vec![self.ca_file()],
                client: None,
            },
            // The machine may be busy with other tests.
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(4),
            },
        }
    }

    /// How often a service was asked for something below that path.
    pub fn asked(&self, service: &str, path: &str) -> usize {
        let state = self.state();
        let asked = state.seen.iter();
        asked
            .filter(|(name, request)| *name == service && request.path.contains(path))
            .count()
    }
}

pub fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn unb64(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// A random UUID.
pub fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}
