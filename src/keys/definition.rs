//! What a key set is, as it was configured and checked.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use crate::key_store;
#[cfg(feature = "aws-kms")]
use crate::kms::aws::{self, AwsProvider};
#[cfg(feature = "azure-keyvault")]
use crate::kms::azure::{self, AzureProvider};
#[cfg(feature = "broker")]
use crate::kms::broker::{self, BrokerProvider};
use crate::kms::file::FileProvider;
#[cfg(feature = "gcp-kms")]
use crate::kms::gcp::{self, GcpProvider};
#[cfg(feature = "k8s-kms")]
use crate::kms::k8s::{self, K8sProvider};
use crate::kms::kmip::{self, KmipProvider};
#[cfg(feature = "pkcs11")]
use crate::kms::pkcs11::{self, Pkcs11Provider};
use crate::kms::vault::{self, VaultProvider};
use crate::kms::{KeyRef, Provider};

/// A key set: a key, and how it is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Who wraps and unwraps.
    pub source: Source,
    /// The version to wrap with; `None` is the latest one.
    pub version: Option<String>,
    /// How it is used.
    pub policy: Policy,
    /// What it was before, while volumes still have wraps of that: it opens
    /// them, and wraps nothing. Its policy is that of this one.
    pub previous: Option<Box<Definition>>,
}

impl Definition {
    /// A key set with the usual policy for its provider.
    pub fn new(source: Source, version: Option<String>) -> Self {
        let policy = Policy::usual(&source);
        Definition {
            source,
            version,
            policy,
            previous: None,
        }
    }

    /// The key, as its provider is told.
    pub(super) fn key(&self) -> KeyRef {
        KeyRef {
            id: self.source.key_id(),
            version: self.version.clone(),
        }
    }
}

/// How the key of a key set is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the service wraps.
    pub hierarchy: Hierarchy,
    /// How long an answer of the service holds: a group key that it unwrapped
    /// is used for so long without asking it again, and the manager asks it
    /// for the state of the key at this interval.
    pub poll: Duration,
    /// What becomes of running disks when the key is denied.
    pub on_denied: OnDenied,
    /// How long a denial has to last before that.
    pub denied_grace: Duration,
    /// The key set whose wrap is kept beside that of this one.
    pub break_glass: Option<Name>,
    /// The key store that the wraps of new volumes go to. `None`: their headers.
    pub key_store: Option<key_store::Name>,
}

impl Policy {
    /// What holds where nothing else is configured. A group key saves calls
    /// to a service; the platform key is on this host, and costs none. A
    /// broker decides on each volume by itself, if it is asked for each, and
    /// has a group key of its own.
    pub fn usual(source: &Source) -> Self {
        Policy {
            hierarchy: match source {
                Source::File { .. } => Hierarchy::Direct,
                #[cfg(feature = "broker")]
                Source::Broker { .. } => Hierarchy::Direct,
                _ => Hierarchy::Group,
            },
            poll: Duration::from_secs(60),
            on_denied: OnDenied::Continue,
            denied_grace: Duration::from_secs(300),
            break_glass: None,
            key_store: None,
        }
    }
}

/// What the service of a key set wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// The group key of the key set, which wraps the keys of the volumes.
    Group,
    /// The key of each volume.
    Direct,
}

/// What becomes of running disks whose key is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDenied {
    /// They run on.
    Continue,
    /// Their requests wait.
    Pause,
    /// Their requests fail.
    Fail,
    /// They are detached, and their keys wiped.
    Detach,
}

impl OnDenied {
    /// As it is configured and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            OnDenied::Continue => "continue",
            OnDenied::Pause => "pause",
            OnDenied::Fail => "fail",
            OnDenied::Detach => "detach",
        }
    }
}

/// A provider and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A key set of a broker.
    #[cfg(feature = "broker")]
    Broker {
        /// What it is called there.
        key_set: broker::PlainName,
        /// The brokers, and who we are there.
        settings: Box<broker::Settings>,
    },
    /// A key of an Azure Key Vault or Managed HSM.
    #[cfg(feature = "azure-keyvault")]
    AzureKeyvault {
        /// The key.
        key: azure::KeyName,
        /// The vault, and who we are there.
        settings: Box<azure::Settings>,
    },
    /// A key of AWS KMS.
    #[cfg(feature = "aws-kms")]
    Aws {
        /// The key.
        key: aws::KeyName,
        /// The service, and who we are there.
        settings: Box<aws::Settings>,
    },
    /// The platform key in a file of this host.
    File {
        /// The key file.
        path: PathBuf,
    },
    /// A key of Google Cloud KMS.
    #[cfg(feature = "gcp-kms")]
    Gcp {
        /// The key.
        key: gcp::KeyName,
        /// The service, and who we are there.
        settings: Box<gcp::Settings>,
    },
    /// The key of a Kubernetes KMS plugin.
    #[cfg(feature = "k8s-kms")]
    K8s(Box<k8s::Settings>),
    /// A key on KMIP servers.
    Kmip {
        /// What [`kmip::by_name`] or [`kmip::by_id`] makes of its name or id.
        key: String,
        /// The servers, and how they are used.
        settings: Box<kmip::Settings>,
    },
    /// A key on a PKCS#11 token.
    #[cfg(feature = "pkcs11")]
    Pkcs11 {
        /// What it is called there.
        key: pkcs11::KeyName,
        /// The token, and how it is reached.
        settings: Box<pkcs11::Settings>,
    },
    /// A key of HashiCorp Vault or OpenBao.
    Vault {
        /// The key.
        key: vault::KeyName,
        /// The service, and who we are there.
        settings: Box<vault::Settings>,
    },
}

impl Source {
    /// The name of the provider.
    pub fn provider(&self) -> &'static str {
        match self {
            #[cfg(feature = "broker")]
            Source::Broker { .. } => BrokerProvider::NAME,
            #[cfg(feature = "azure-keyvault")]
            Source::AzureKeyvault { .. } => AzureProvider::NAME,
            #[cfg(feature = "aws-kms")]
            Source::Aws { .. } => AwsProvider::NAME,
            Source::File { .. } => FileProvider::NAME,
            #[cfg(feature = "gcp-kms")]
            Source::Gcp { .. } => GcpProvider::NAME,
            #[cfg(feature = "k8s-kms")]
            Source::K8s(_) => K8sProvider::NAME,
            Source::Kmip { .. } => KmipProvider::NAME,
            #[cfg(feature = "pkcs11")]
            Source::Pkcs11 { .. } => Pkcs11Provider::NAME,
            Source::Vault { .. } => VaultProvider::NAME,
        }
    }

    /// The key at its service. `None` where the provider is itself one key.
    pub fn key_id(&self) -> Option<String> {
        match self {
            #[cfg(feature = "broker")]
            Source::Broker { key_set, .. } => Some(key_set.to_string()),
            #[cfg(feature = "azure-keyvault")]
            Source::AzureKeyvault { key, settings } => Some(azure::key_id(&settings.vault, key)),
            #[cfg(feature = "aws-kms")]
            Source::Aws { key, .. } => Some(key.to_string()),
            Source::File { .. } => None,
            #[cfg(feature = "gcp-kms")]
            Source::Gcp { key, .. } => Some(key.to_string()),
            #[cfg(feature = "k8s-kms")]
            Source::K8s(_) => None,
            Source::Kmip { key, .. } => Some(key.clone()),
            #[cfg(feature = "pkcs11")]
            Source::Pkcs11 { key, .. } => Some(key.to_string()),
            Source::Vault { key, .. } => Some(key.to_string()),
        }
    }

    /// A client of the service. Nothing is read or connected to yet.
    pub fn client(&self) -> Arc<dyn Provider> {
        match self {
            #[cfg(feature = "broker")]
            Source::Broker { settings, .. } => Arc::new(BrokerProvider::new((**settings).clone())),
            #[cfg(feature = "azure-keyvault")]
            Source::AzureKeyvault { settings, .. } => {
                Arc::new(AzureProvider::new((**settings).clone()))
            }
            #[cfg(feature = "aws-kms")]
            Source::Aws { settings, .. } => Arc::new(AwsProvider::new((**settings).clone())),
            Source::File { path } => Arc::new(FileProvider::new(path)),
            #[cfg(feature = "gcp-kms")]
            Source::Gcp { settings, .. } => Arc::new(GcpProvider::new((**settings).clone())),
            #[cfg(feature = "k8s-kms")]
            Source::K8s(settings) => Arc::new(K8sProvider::new((**settings).clone())),
            Source::Kmip { settings, .. } => Arc::new(KmipProvider::new((**settings).clone())),
            #[cfg(feature = "pkcs11")]
            Source::Pkcs11 { settings, .. } => Arc::new(Pkcs11Provider::new((**settings).clone())),
            Source::Vault { settings, .. } => Arc::new(VaultProvider::new((**settings).clone())),
        }
    }
}
