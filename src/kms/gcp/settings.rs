//! What is configured, and the names that may be: nothing that is not a plain
//! name gets into the path of a request.

use std::fmt;
use std::str::FromStr;

use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;

/// Where the service is for everybody.
pub const ENDPOINT: &str = "https://cloudkms.googleapis.com";

/// The metadata server of each machine in Google's cloud. By its address, and
/// not as `metadata.google.internal`: so no name service has to be trusted.
pub const METADATA_SERVER: &str = "169.254.169.254";

/// Cloud KMS, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The ways to it, the nearest first.
    pub endpoints: Vec<BaseUrl>,
    /// How to get a token.
    pub auth: Auth,
    /// Whom to trust, and the client certificate.
    pub tls: tls::Settings,
    /// How long to wait.
    pub timing: Timing,
}

/// How to get a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Of the machine or pod that this host is.
    Metadata {
        /// The metadata server.
        server: BaseUrl,
        /// Which of the machine's service accounts, by its address; the
        /// default one otherwise.
        account: Option<Account>,
    },
    /// With a credentials file, as `GOOGLE_APPLICATION_CREDENTIALS` names one:
    /// the key of a service account, or of a workload identity federation.
    File {
        /// The file.
        credentials: SecretFile,
        /// Hosts that it may have credentials sent to, beside those of Google.
        trusted_hosts: Vec<String>,
    },
}

/// The address of a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(String);

impl Account {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        let part = |part: &str| !part.is_empty() && part.bytes().all(word);
        match text.split_once('@') {
            Some((name, domain)) if part(name) && part(domain) && text.len() <= 256 => {
                Ok(Account(text.into()))
            }
            _ => Err(format!(
                "{text:?} is not a service account: write its address, NAME@PROJECT.iam.gserviceaccount.com"
            )),
        }
    }
}

/// The resource name of a key:
/// `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

/// What stands before each part of a key's resource name.
const COLLECTIONS: [&str; 4] = ["projects", "locations", "keyRings", "cryptoKeys"];

/// The longest name of a key or key ring.
const NAME_MAX: usize = 63;

impl KeyName {
    /// The resource name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The resource name of one of its versions.
    pub fn version(&self, version: u64) -> String {
        format!("{self}/cryptoKeyVersions/{version}")
    }

    /// The version that a resource name is, if it is one of this key.
    pub(super) fn version_of(&self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix(&self.0)?;
        version(rest.strip_prefix("/cryptoKeyVersions/")?).ok()
    }

    /// Project, location, key ring and key.
    pub(super) fn parts(&self) -> [&str; 4] {
        let mut parts = self.0.split('/').skip(1).step_by(2);
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }

    /// The same as options of `gcloud kms keys versions VERB N`.
    pub(super) fn options(&self) -> String {
        let [project, location, ring, key] = self.parts();
        format!("--key={key} --keyring={ring} --location={location} --project={project}")
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |part: &str| {
            let word = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
            !part.is_empty() && part.len() <= NAME_MAX && part.bytes().all(word)
        };
        // Old projects have a domain before their name: `example.com:name`.
        let project = |part: &str| {
            let (domain, id) = part.split_once(':').unwrap_or(("x", part));
            let label = |label: &str| !label.is_empty() && label.bytes().all(is_lower);
            name(id) && domain.len() <= 253 && domain.split('.').all(label)
        };
        let parts: Vec<&str> = text.split('/').collect();
        let good = parts.len() == 8
            && COLLECTIONS
                .iter()
                .enumerate()
                .all(|(at, collection)| parts[2 * at] == *collection)
            && project(parts[1])
            && parts[3].bytes().all(is_lower)
            && [3, 5, 7].iter().all(|at| name(parts[*at]));
        if good {
            Ok(KeyName(text.into()))
        } else {
            Err(format!(
                "{text:?} is not the resource name of a key: write projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
            ))
        }
    }
}

/// What locations and domains are written with.
fn is_lower(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key version as the service counts them, from 1, in its one spelling.
///
/// # Errors
/// When it is not one.
pub fn version(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(version) if version > 0 && version.to_string() == text => Ok(version),
        _ => Err(format!(
            "{text:?} is not a version of a key: versions are 1, 2, 3…"
        )),
    }
}
