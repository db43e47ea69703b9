//! What is configured.

use std::fmt;
use std::path::PathBuf;

use super::environment::Environment;
use super::region::Region;
use crate::kms::cluster::Timing;
use crate::kms::http::BaseUrl;
use crate::kms::tls;

/// AWS KMS in one or several regions, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is asked, the nearest first.
    pub endpoints: Vec<Endpoint>,
    /// The accounts whose keys may be used. None: those of our own alone.
    pub accounts: Vec<String>,
    /// Who we are.
    pub identity: Identity,
    /// Whom to trust, and the client certificate.
    pub tls: tls::Settings,
    /// How long to wait.
    pub timing: Timing,
}

/// KMS in one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The region.
    pub region: Region,
    /// Its address.
    pub url: BaseUrl,
}

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which of the sources is asked.
    pub source: Source,
    /// The environment variables that they may see.
    pub environment: Environment,
    /// Where STS is, if not where the region has it.
    pub sts_endpoint: Option<BaseUrl>,
}

/// A source of credentials. What is `None` is taken from the environment
/// variables that AWS's own tools have for it, or from their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Each of the others, in their order here: the first that has some.
    Default,
    /// Environment variables.
    Environment,
    /// A web identity token in a file, which STS gives credentials of a role for.
    WebIdentity {
        /// The ARN of the role.
        role: Option<String>,
        /// The token.
        token: Option<PathBuf>,
        /// What the session is called in CloudTrail.
        session: Option<String>,
    },
    /// Keys in the files of AWS's own tools.
    Profile {
        /// The profile.
        name: Option<String>,
        /// In place of `~/.aws/credentials`.
        credentials_file: Option<PathBuf>,
        /// In place of `~/.aws/config`.
        config_file: Option<PathBuf>,
    },
    /// The endpoint that ECS and EKS have for containers.
    Container {
        /// Its address.
        endpoint: Option<String>,
        /// The token to show there.
        token: Option<PathBuf>,
    },
    /// The metadata service of EC2, version 2.
    Instance {
        /// Its address.
        endpoint: Option<String>,
    },
}

impl Source {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Default => "default",
            Source::Environment => "environment",
            Source::WebIdentity { .. } => "web-identity",
            Source::Profile { .. } => "profile",
            Source::Container { .. } => "container",
            Source::Instance { .. } => "instance",
        }
    }

    /// What `default` is made of, in its order.
    pub fn defaults() -> [Source; 5] {
        [
            Source::Environment,
            Source::web_identity(),
            Source::profile(),
            Source::Container {
                endpoint: None,
                token: None,
            },
            Source::Instance { endpoint: None },
        ]
    }

    /// A web identity, all of which the environment tells.
    pub fn web_identity() -> Self {
        Source::WebIdentity {
            role: None,
            token: None,
            session: None,
        }
    }

    /// The profile that the environment names, or the default one.
    pub fn profile() -> Self {
        Source::Profile {
            name: None,
            credentials_file: None,
            config_file: None,
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Identity {
            source: Source::Default,
            environment: Environment::Process,
            sts_endpoint: None,
        }
    }
}

impl Identity {
    /// The file that the credentials are in, or the token that gets them, if
    /// the settings name it.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.source {
            Source::Default | Source::Environment | Source::Instance { .. } => None,
            Source::WebIdentity { token, .. } | Source::Container { token, .. } => token.clone(),
            Source::Profile {
                credentials_file, ..
            } => credentials_file.clone(),
        }
    }
}

impl fmt::Display for Identity {
    /// Who we are, in plain words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Default => f.write_str("the first credentials that AWS's own tools would find"),
            Source::Environment => f.write_str("the access key in the environment variables"),
            Source::WebIdentity {
                role: Some(role), ..
            } => {
                write!(f, "role {role}, by a web identity token")
            }
            Source::WebIdentity { role: None, .. } => {
                f.write_str("the role of a web identity token")
            }
            Source::Profile {
                name: Some(name), ..
            } => write!(f, "profile {name:?}"),
            Source::Profile { name: None, .. } => f.write_str("the profile of AWS's own tools"),
            Source::Container { .. } => f.write_str("the role of the container"),
            Source::Instance { .. } => f.write_str("the role of the instance"),
        }
    }
}
