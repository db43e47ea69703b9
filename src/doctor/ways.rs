//! The ways to the key of a key set: one for each endpoint, by itself.
//!
//! This is all that diagnosis knows of each provider. A new one has its arms
//! here; what has no more to tell than every provider does is a
//! [`Client::Plain`].

use std::path::PathBuf;
use std::time::Duration;

use crate::keys::{Definition, Source};
#[cfg(feature = "aws-kms")]
use crate::kms::aws::{self, AwsProvider};
#[cfg(feature = "azure-keyvault")]
use crate::kms::azure::{self, AzureProvider, Header, Platform};
#[cfg(feature = "broker")]
use crate::kms::broker::{self, BrokerProvider};
use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::file::FileProvider;
#[cfg(feature = "gcp-kms")]
use crate::kms::gcp::{self, GcpProvider};
#[cfg(feature = "k8s-kms")]
use crate::kms::k8s::K8sProvider;
use crate::kms::kmip::{self, KmipProvider};
#[cfg(feature = "pkcs11")]
use crate::kms::pkcs11::Pkcs11Provider;
use crate::kms::vault::{self, Auth, RoleId, VaultProvider};
use crate::kms::{KeyRef, Provider, Wrapped, tls};

/// One way.
pub(super) struct Way {
    /// As it is configured.
    pub(super) endpoint: String,
    /// Where it is on the network, unless it is on this host.
    pub(super) net: Option<Net>,
    /// A client that knows no other endpoint.
    pub(super) client: Client,
    /// How long to wait for an answer.
    pub(super) timeout: Duration,
}

/// A place on the network.
#[derive(Clone)]
pub(super) struct Net {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None` where no TLS is spoken.
    pub(super) tls: Option<tls::Settings>,
}

/// A provider, with what it can tell beyond others.
pub(super) enum Client {
    #[cfg(feature = "azure-keyvault")]
    Azure(Box<AzureProvider>),
    Plain(Box<dyn Provider>),
    #[cfg(feature = "broker")]
    Broker(BrokerProvider),
    #[cfg(feature = "gcp-kms")]
    Gcp(GcpProvider),
    #[cfg(feature = "aws-kms")]
    Aws(AwsProvider),
    Kmip(KmipProvider),
    Vault(VaultProvider),
}

impl Client {
    pub(super) fn provider(&self) -> &dyn Provider {
        match self {
            #[cfg(feature = "azure-keyvault")]
            Client::Azure(provider) => &**provider,
            Client::Plain(provider) => &**provider,
            #[cfg(feature = "broker")]
            Client::Broker(provider) => provider,
            #[cfg(feature = "gcp-kms")]
            Client::Gcp(provider) => provider,
            #[cfg(feature = "aws-kms")]
            Client::Aws(provider) => provider,
            Client::Kmip(provider) => provider,
            Client::Vault(provider) => provider,
        }
    }

    /// Whether its service keeps what was deleted for a while.
    pub(super) fn recovers(&self) -> bool {
        match self {
            #[cfg(feature = "azure-keyvault")]
            Client::Azure(_) => true,
            _ => false,
        }
    }

    /// What no key opens, as if `version` of `key` had wrapped it. It shows
    /// whether unwrapping is permitted where wrapping is not.
    pub(super) fn unopenable(&self, key: &KeyRef, version: &str) -> Option<Wrapped> {
        let id = key.id.as_deref().unwrap_or_default();
        match self {
            #[cfg(feature = "azure-keyvault")]
            Client::Azure(_) => azure::unopenable(id, version),
            Client::Plain(_) => None,
            #[cfg(feature = "broker")]
            Client::Broker(_) => Some(broker::unopenable(id, version)),
            #[cfg(feature = "gcp-kms")]
            Client::Gcp(_) => gcp::unopenable(id, version),
            #[cfg(feature = "aws-kms")]
            Client::Aws(_) => aws::unopenable(id, version),
            Client::Kmip(_) => kmip::unopenable(id, version),
            Client::Vault(_) => Some(vault::unopenable(id, version)),
        }
    }
}

/// The key, as its provider is told.
pub(super) fn key(definition: &Definition) -> KeyRef {
    KeyRef {
        id: definition.source.key_id(),
        version: definition.version.clone(),
    }
}

/// All ways, in their order.
pub(super) fn ways(source: &Source) -> Vec<Way> {
    match source {
        #[cfg(feature = "broker")]
        Source::Broker { settings, .. } => {
            let alone = |endpoint: &crate::kms::http::BaseUrl| Way {
                endpoint: endpoint.to_string(),
                net: Some(Net {
                    host: endpoint.host().into(),
                    port: endpoint.port(),
                    tls: Some(settings.tls.clone()),
                }),
                client: Client::Broker(BrokerProvider::new(broker::Settings {
                    timing: at_once(settings.timing),
                    ..settings.alone(endpoint)
                })),
                timeout: settings.timing.timeout,
            };
            settings.endpoints.iter().map(alone).collect()
        }
        #[cfg(feature = "aws-kms")]
        Source::Aws { settings, .. } => {
            let alone = |endpoint: &aws::Endpoint| Way {
                endpoint: endpoint.url.to_string(),
                net: Some(Net {
                    host: endpoint.url.host().into(),
                    port: endpoint.url.port(),
                    tls: endpoint.url.has_tls().then(|| settings.tls.clone()),
                }),
                client: Client::Aws(AwsProvider::new(aws::Settings {
                    endpoints: vec![endpoint.clone()],
                    timing: at_once(settings.timing),
                    ..(**settings).clone()
                })),
                timeout: settings.timing.timeout,
            };
            settings.endpoints.iter().map(alone).collect()
        }
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { settings, .. } => vec![Way {
            endpoint: settings.vault.to_string(),
            net: Some(Net {
                host: settings.vault.host().into(),
                port: settings.vault.port(),
                tls: settings.vault.has_tls().then(|| settings.tls.clone()),
            }),
            client: Client::Azure(Box::new(AzureProvider::new(azure::Settings {
                timing: at_once(settings.timing),
                retry_forbidden: None,
                ..(**settings).clone()
            }))),
            timeout: settings.timing.timeout,
        }],
        Source::File { path } => vec![Way {
            endpoint: path.display().to_string(),
            net: None,
            client: Client::Plain(Box::new(FileProvider::new(path))),
            timeout: Timing::default().timeout,
        }],
        #[cfg(feature = "gcp-kms")]
        Source::Gcp { settings, .. } => {
            let alone = |endpoint: &crate::kms::http::BaseUrl| Way {
                endpoint: endpoint.to_string(),
                net: Some(Net {
                    host: endpoint.host().into(),
                    port: endpoint.port(),
                    tls: endpoint.has_tls().then(|| settings.tls.clone()),
                }),
                client: Client::Gcp(GcpProvider::new(gcp::Settings {
                    endpoints: vec![endpoint.clone()],
                    timing: at_once(settings.timing),
                    ..(**settings).clone()
                })),
                timeout: settings.timing.timeout,
            };
            settings.endpoints.iter().map(alone).collect()
        }
        Source::Kmip { settings, .. } => {
            let alone = |endpoint: &kmip::Endpoint| Way {
                endpoint: endpoint.to_string(),
                net: Some(Net {
                    host: endpoint.host.clone(),
                    port: endpoint.port,
                    tls: Some(settings.tls.clone()),
                }),
                client: Client::Kmip(KmipProvider::new(kmip::Settings {
                    endpoints: vec![endpoint.clone()],
                    timing: at_once(settings.timing),
                    ..(**settings).clone()
                })),
                timeout: settings.timing.timeout,
            };
            settings.endpoints.iter().map(alone).collect()
        }
        #[cfg(feature = "k8s-kms")]
        Source::K8s(settings) => vec![Way {
            endpoint: settings.socket.display().to_string(),
            net: None,
            client: Client::Plain(Box::new(K8sProvider::new((**settings).clone()))),
            timeout: settings.timing.timeout,
        }],
        #[cfg(feature = "pkcs11")]
        Source::Pkcs11 { settings, .. } => vec![Way {
            endpoint: settings.module.display().to_string(),
            net: None,
            client: Client::Plain(Box::new(Pkcs11Provider::new((**settings).clone()))),
            timeout: settings.timing.timeout,
        }],
        Source::Vault { settings, .. } => {
            let alone = |endpoint: &crate::kms::http::BaseUrl| Way {
                endpoint: endpoint.to_string(),
                net: Some(Net {
                    host: endpoint.host().into(),
                    port: endpoint.port(),
                    tls: endpoint.has_tls().then(|| settings.tls.clone()),
                }),
                client: Client::Vault(VaultProvider::new(vault::Settings {
                    endpoints: vec![endpoint.clone()],
                    timing: at_once(settings.timing),
                    ..(**settings).clone()
                })),
                timeout: settings.timing.timeout,
            };
            settings.endpoints.iter().map(alone).collect()
        }
    }
}

/// No longer than for one endpoint: what fails now is to be told now.
fn at_once(timing: Timing) -> Timing {
    Timing {
        deadline: timing.timeout,
        ..timing
    }
}

/// How this host shows who it is.
pub(super) fn identity(source: &Source) -> String {
    match source {
        #[cfg(feature = "broker")]
        Source::Broker { settings, .. } => format!(
            "host {} with {} and the key in {}",
            settings.host,
            match &settings.tls.client {
                Some(client) => format!("the certificate {}", client.certificate.display()),
                None => "no certificate".into(),
            },
            settings.host_key
        ),
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { settings, .. } => settings.identity.to_string(),
        #[cfg(feature = "aws-kms")]
        Source::Aws { settings, .. } => settings.identity.to_string(),
        Source::File { .. } => "whoever can read the key file".into(),
        #[cfg(feature = "gcp-kms")]
        Source::Gcp { settings, .. } => match &settings.auth {
            gcp::Auth::Metadata {
                account: Some(account),
                ..
            } => format!("{} of this machine", account.as_str()),
            gcp::Auth::Metadata { .. } => "the service account of this machine".into(),
            gcp::Auth::File { credentials, .. } => format!("the credentials in {credentials}"),
        },
        Source::Kmip { settings, .. } => match &settings.tls.client {
            Some(client) => format!("the client certificate {}", client.certificate.display()),
            None => "no client certificate".into(),
        },
        #[cfg(feature = "k8s-kms")]
        Source::K8s(_) => "this process's user, who may open the plugin's socket".into(),
        #[cfg(feature = "pkcs11")]
        Source::Pkcs11 { settings, .. } => match &settings.pin {
            Some(pin) => format!("the user of the token, with the PIN in {pin}"),
            None => "whoever can reach the token: no PIN is given".into(),
        },
        Source::Vault { settings, .. } => match &settings.auth {
            Auth::Token(file) => format!("the token in {file}"),
            Auth::AppRole {
                mount, secret_id, ..
            } => format!("AppRole at {mount} with the secret id in {secret_id}"),
            Auth::Certificate { mount, role } => format!(
                "the client certificate at {mount}{}",
                role.as_ref()
                    .map_or(String::new(), |role| format!(" with role {role}"))
            ),
            Auth::Jwt { mount, role, token } => {
                format!("role {role} at {mount} with the token in {token}")
            }
        },
    }
}

/// Whether the token is one that nobody here renews or asks for anew.
pub(super) fn has_a_given_token(source: &Source) -> bool {
    matches!(source, Source::Vault { settings, .. } if matches!(settings.auth, Auth::Token(_)))
}

/// The secrets that this host shows, with what each is for.
pub(super) fn secrets(source: &Source) -> Vec<(&'static str, &SecretFile)> {
    let mut secrets = Vec::new();
    if let Some(client) = tls_of(source).and_then(|tls| tls.client.as_ref()) {
        secrets.push(("client_key", &client.key));
    }
    match source {
        #[cfg(feature = "broker")]
        Source::Broker { settings, .. } => secrets.push(("host_key", &settings.host_key)),
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { settings, .. } => match &settings.identity {
            azure::Identity::Federated { token, .. } => secrets.push(("token_file", token)),
            azure::Identity::Secret { secret, .. } => secrets.push(("secret", secret)),
            azure::Identity::Certificate { certificate, .. } => {
                secrets.push(("key", &certificate.key));
            }
            azure::Identity::Managed { platform, .. } => {
                if let Platform::AppService {
                    header: Header::File(header),
                    ..
                } = platform
                {
                    secrets.push(("header", header));
                }
            }
        },
        // They are in forms of their own, of which some hold no secret.
        #[cfg(feature = "aws-kms")]
        Source::Aws { .. } => {}
        Source::File { .. } => {}
        #[cfg(feature = "gcp-kms")]
        Source::Gcp { settings, .. } => {
            if let gcp::Auth::File { credentials, .. } = &settings.auth {
                secrets.push(("credentials", credentials));
            }
        }
        #[cfg(feature = "k8s-kms")]
        Source::K8s(_) => {}
        Source::Kmip { settings, .. } => {
            let wrapping = settings.wrapping_key.iter();
            secrets.extend(wrapping.map(|key| ("wrapping_key_file", &key.file)));
        }
        #[cfg(feature = "pkcs11")]
        Source::Pkcs11 { settings, .. } => {
            secrets.extend(settings.pin.iter().map(|pin| ("pin", pin)));
        }
        Source::Vault { settings, .. } => match &settings.auth {
            Auth::Token(file) => secrets.push(("token", file)),
            Auth::AppRole {
                role_id, secret_id, ..
            } => {
                if let RoleId::File(file) = role_id {
                    secrets.push(("role_id", file));
                }
                secrets.push(("secret_id", secret_id));
            }
            Auth::Certificate { .. } => {}
            Auth::Jwt { token, .. } => secrets.push(("token", token)),
        },
    }
    secrets
}

/// The certificates of this host, with what each is for.
pub(super) fn certificates(source: &Source) -> Vec<(&'static str, PathBuf)> {
    let Some(tls) = tls_of(source) else {
        return Vec::new();
    };
    let authorities = tls.ca_files.iter().map(|path| ("ca_file", path.clone()));
    let ours = tls.client.iter();
    let ours = ours.map(|client| ("client_cert", client.certificate.clone()));
    authorities.chain(ours).chain(application(source)).collect()
}

/// The certificate of an application, which is not one of TLS.
fn application(source: &Source) -> Option<(&'static str, PathBuf)> {
    match source {
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { settings, .. } => match &settings.identity {
            azure::Identity::Certificate { certificate, .. } => {
                Some(("certificate", certificate.certificate.clone()))
            }
            _ => None,
        },
        _ => None,
    }
}

fn tls_of(source: &Source) -> Option<&tls::Settings> {
    match source {
        #[cfg(feature = "broker")]
        Source::Broker { settings, .. } => Some(&settings.tls),
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { settings, .. } => Some(&settings.tls),
        #[cfg(feature = "aws-kms")]
        Source::Aws { settings, .. } => Some(&settings.tls),
        Source::File { .. } => None,
        #[cfg(feature = "k8s-kms")]
        Source::K8s(_) => None,
        #[cfg(feature = "pkcs11")]
        Source::Pkcs11 { .. } => None,
        #[cfg(feature = "gcp-kms")]
        Source::Gcp { settings, .. } => Some(&settings.tls),
        Source::Kmip { settings, .. } => Some(&settings.tls),
        Source::Vault { settings, .. } => Some(&settings.tls),
    }
}

/// The files that have to be there before a key can be had.
pub(super) fn files(source: &Source) -> Vec<PathBuf> {
    let own = match source {
        #[cfg(feature = "aws-kms")]
        Source::Aws { settings, .. } => settings.identity.file(),
        Source::File { path } => Some(path.clone()),
        #[cfg(feature = "k8s-kms")]
        Source::K8s(settings) => Some(settings.socket.clone()),
        #[cfg(feature = "pkcs11")]
        Source::Pkcs11 { settings, .. } => Some(settings.module.clone()),
        #[cfg(feature = "broker")]
        Source::Broker { .. } => None,
        #[cfg(feature = "azure-keyvault")]
        Source::AzureKeyvault { .. } => None,
        #[cfg(feature = "gcp-kms")]
        Source::Gcp { .. } => None,
        Source::Kmip { .. } | Source::Vault { .. } => None,
    };
    let secrets = secrets(source)
        .into_iter()
        .filter_map(|(_, file)| file.path());
    let certificates = certificates(source).into_iter().map(|(_, path)| path);
    own.into_iter().chain(secrets).chain(certificates).collect()
}
