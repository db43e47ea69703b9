//! What is configured, and the names that may be: nothing that is not a plain
//! name gets into the path of a request.

use std::fmt;
use std::str::FromStr;

use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;

/// A Vault or OpenBao cluster, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its nodes, the nearest first.
    pub endpoints: Vec<BaseUrl>,
    /// The namespace that the engine is in.
    pub namespace: Option<MountPath>,
    /// Where the transit engine is mounted.
    pub mount: MountPath,
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
    /// It is in a file, which somebody else may replace.
    Token(SecretFile),
    /// AppRole: a role, and a secret id in a file.
    AppRole {
        /// Where the method is mounted, `approle` as a rule.
        mount: MountPath,
        /// The role.
        role_id: RoleId,
        /// The secret that goes with it.
        secret_id: SecretFile,
    },
    /// The client certificate of TLS.
    Certificate {
        /// Where the method is mounted, `cert` as a rule.
        mount: MountPath,
        /// The role; without one the service picks one that fits.
        role: Option<String>,
    },
    /// A JWT in a file: of a Kubernetes service account, or of another issuer.
    Jwt {
        /// Where the method is mounted, `kubernetes` or `jwt` as a rule.
        mount: MountPath,
        /// The role.
        role: String,
        /// The token, which somebody else renews.
        token: SecretFile,
    },
}

/// A role id: no secret by itself, but some treat it as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleId {
    /// As it is.
    Plain(String),
    /// In a file.
    File(SecretFile),
}

/// Whether each byte may be in a name. No dots alone, and nothing that a path
/// or a URL gives a meaning to.
fn is_name(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let ends = |c: Option<&u8>| c.is_some_and(|&c| word(c));
    text.len() <= 128
        && text.bytes().all(|c| word(c) || b"-.".contains(&c))
        && ends(text.as_bytes().first())
        && ends(text.as_bytes().last())
}

/// The name of a key of a transit engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(String);

impl KeyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_name(text) {
            Ok(KeyName(text.into()))
        } else {
            Err(format!(
                "{text:?} is not the name of a transit key: letters, digits, '_', and inside of it '-' and '.'"
            ))
        }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path of plain names: of a mount, or of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPath(String);

impl MountPath {
    /// Its names.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for MountPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.trim_matches('/');
        if path.split('/').all(is_name) {
            Ok(MountPath(path.into()))
        } else {
            Err(format!(
                "{text:?} is not a path at the service: names of letters, digits, '_', '-' and '.', with '/' between them"
            ))
        }
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key version as the service counts them, from 1, in its one spelling.
///
/// # Errors
/// When it is not one.
pub fn version(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(version) if version > 0 && version.to_string() == text => Ok(version),
        _ => Err(format!(
            "{text:?} is not a version of a transit key: versions are 1, 2, 3…"
        )),
    }
}
