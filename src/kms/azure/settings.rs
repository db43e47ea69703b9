//! What is configured of a vault, and who we are there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::challenge::is_tenant;
use crate::kms::cluster::Timing;
use crate::kms::credential::{SecretFile, Unreadable};
use crate::kms::http::BaseUrl;
use crate::kms::tls;
use crate::secret::Secret;

/// A Key Vault or a Managed HSM, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its address.
    pub vault: BaseUrl,
    /// Who we are.
    pub identity: Identity,
    /// Who gives out tokens, where the vault is not to be believed in that.
    pub authority: Option<BaseUrl>,
    /// What tokens are for, where that is not the domain of the vault.
    pub resource: Option<String>,
    /// How to wrap; by the kind of the key if `None`.
    pub algorithm: Option<Algorithm>,
    /// For how long a call is repeated that is forbidden, since a permission
    /// that was just given may not have arrived yet.
    pub retry_forbidden: Option<Duration>,
    /// Whom to trust.
    pub tls: tls::Settings,
    /// How long to wait.
    pub timing: Timing,
}

/// How a key wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// RSA-OAEP with SHA-256: RSA keys.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// AES key wrap (RFC 3394) with 256 bits: symmetric keys of a Managed HSM.
    A256KW,
    /// The same by its PKCS#11 name.
    #[serde(rename = "CKM_AES_KEY_WRAP")]
    CkmAesKeyWrap,
    /// AES key wrap with padding (RFC 5649).
    #[serde(rename = "CKM_AES_KEY_WRAP_PAD")]
    CkmAesKeyWrapPad,
}

impl Algorithm {
    /// All, by their numbers in envelopes, from 1.
    const ALL: [Self; 4] = [
        Algorithm::RsaOaep256,
        Algorithm::A256KW,
        Algorithm::CkmAesKeyWrap,
        Algorithm::CkmAesKeyWrapPad,
    ];

    /// The highest number.
    pub(super) const NEWEST: u8 = 4;

    /// The name that the service has for it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::RsaOaep256 => "RSA-OAEP-256",
            Algorithm::A256KW => "A256KW",
            Algorithm::CkmAesKeyWrap => "CKM_AES_KEY_WRAP",
            Algorithm::CkmAesKeyWrapPad => "CKM_AES_KEY_WRAP_PAD",
        }
    }

    /// Its number in envelopes.
    pub(super) fn number(self) -> u8 {
        match self {
            Algorithm::RsaOaep256 => 1,
            Algorithm::A256KW => 2,
            Algorithm::CkmAesKeyWrap => 3,
            Algorithm::CkmAesKeyWrapPad => 4,
        }
    }

    /// The one with this number.
    pub(super) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.number() == number)
    }

    /// The version of the API that has it.
    pub(super) fn api(self) -> &'static str {
        match self {
            Algorithm::RsaOaep256 | Algorithm::A256KW => super::API,
            Algorithm::CkmAesKeyWrap | Algorithm::CkmAesKeyWrapPad => "2025-07-01",
        }
    }
}

/// Who we are, and how that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An identity that the platform gives to this machine.
    Managed {
        /// What the machine runs on.
        platform: Platform,
        /// Which of its identities.
        which: Which,
    },
    /// An application that trusts another issuer's tokens, such as Kubernetes'.
    Federated {
        /// The application.
        client: ClientId,
        /// Its tenant; that of the vault if `None`.
        tenant: Option<Tenant>,
        /// The other issuer's token, which somebody else renews.
        token: SecretFile,
    },
    /// An application with a secret.
    Secret {
        /// The application.
        client: ClientId,
        /// Its tenant; that of the vault if `None`.
        tenant: Option<Tenant>,
        /// The secret.
        secret: SecretFile,
    },
    /// An application with a certificate.
    Certificate {
        /// The application.
        client: ClientId,
        /// Its tenant; that of the vault if `None`.
        tenant: Option<Tenant>,
        /// The certificate, with an RSA key.
        certificate: tls::ClientCertificate,
    },
}

/// What gives this machine its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// A virtual machine of Azure: the instance metadata service.
    Imds {
        /// Its address.
        endpoint: BaseUrl,
    },
    /// App Service, Functions, Container Apps.
    AppService {
        /// `IDENTITY_ENDPOINT`.
        endpoint: BaseUrl,
        /// `IDENTITY_HEADER`.
        header: Header,
    },
    /// A machine elsewhere that Azure Arc manages.
    Arc {
        /// The address of its agent, `IDENTITY_ENDPOINT`.
        endpoint: BaseUrl,
        /// Where the agent puts the files that prove who asks.
        keys: PathBuf,
    },
}

impl Platform {
    /// Where the instance metadata service is.
    pub const IMDS: &str = "http://169.254.169.254";
    /// Where the agent of Arc is.
    pub const ARC: &str = "http://127.0.0.1:40342/metadata/identity/oauth2/token";
    /// Where the agent of Arc puts its files on Linux.
    pub const ARC_KEYS: &str = "/var/opt/azcmagent/tokens";
}

/// What has to be shown to App Service's endpoint.
#[derive(Clone, Debug)]
pub enum Header {
    /// In a file.
    File(SecretFile),
    /// As it was found in the environment, where App Service puts it.
    Given(Arc<Secret>),
}

impl Header {
    /// The header's value.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn read(&self) -> Result<Arc<Secret>, Unreadable> {
        match self {
            Header::File(file) => file.read().map(Arc::new),
            Header::Given(secret) => Ok(secret.clone()),
        }
    }
}

impl PartialEq for Header {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Header::File(ours), Header::File(theirs)) => ours == theirs,
            (Header::Given(ours), Header::Given(theirs)) => **ours == **theirs,
            _ => false,
        }
    }
}

impl Eq for Header {}

/// Which of the identities of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that comes and goes with it.
    System,
    /// An assigned one, by its client id.
    Client(ClientId),
    /// An assigned one, by its object id.
    Object(ClientId),
    /// An assigned one, by its resource id.
    Resource(String),
}

/// The id of an application or of a principal: a UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientId(String);

impl ClientId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) => Ok(ClientId(id.hyphenated().to_string())),
            Err(_) => Err(format!(
                "{text:?} is not an id of Azure: write it like 00000000-0000-0000-0000-000000000000"
            )),
        }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant, by its id or a domain name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match is_tenant(text) {
            true => Ok(Tenant(text.into())),
            false => Err(format!(
                "{text:?} is not a tenant: write its id, or a domain name that it has"
            )),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Managed { platform, which } => {
                let machine = match platform {
                    Platform::Imds { .. } => "this virtual machine",
                    Platform::AppService { .. } => "this App Service",
                    Platform::Arc { .. } => "this machine of Azure Arc",
                };
                match which {
                    Which::System => write!(f, "the system-assigned identity of {machine}"),
                    Which::Client(id) => write!(f, "the identity {id} of {machine}"),
                    Which::Object(id) => write!(f, "the identity with object id {id} of {machine}"),
                    Which::Resource(id) => write!(f, "the identity {id} of {machine}"),
                }
            }
            Identity::Federated { client, token, .. } => {
                write!(f, "application {client} with the token in {token}")
            }
            Identity::Secret { client, secret, .. } => {
                write!(f, "application {client} with the secret in {secret}")
            }
            Identity::Certificate {
                client,
                certificate,
                ..
            } => write!(
                f,
                "application {client} with the certificate {}",
                certificate.certificate.display()
            ),
        }
    }
}
