//! Who we are: credentials of one of the sources, kept until shortly before
//! they end, and loaded anew where the service says that they have ended.
//!
//! Those without an end (environment variables, files) are read for each call,
//! so that what was replaced is taken at once.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider,
};
use reqsign_core::{Context, ProvideCredential};
use tokio::sync::Mutex;
use zeroize::Zeroize;

use super::environment::Files;
use super::refusal;
use super::region::Region;
use super::settings::{Identity, Source};
use super::web::Web;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::http::Http;
use crate::kms::{Class, Error};

/// They are replaced so long before they end, or a third of their time.
const BEFORE_END: Duration = Duration::from_secs(300);
/// How long those that cannot be replaced are used until that is tried again.
const AGAIN: Duration = Duration::from_secs(15);
/// They are not used in their last moments: the way takes time. The library
/// refuses to sign with less.
const LAST: Duration = Duration::from_secs(15);

/// Credentials as they were loaded. Shown without what is secret, and wiped.
pub(super) struct Loaded {
    credential: Credential,
    source: &'static str,
}

impl Loaded {
    pub(super) fn credential(&self) -> &Credential {
        &self.credential
    }

    /// The source that had them.
    pub(super) fn source(&self) -> &'static str {
        self.source
    }

    /// When they end, if they do.
    pub(super) fn ends(&self) -> Option<SystemTime> {
        let ends = self.credential.expires_in?;
        Some(ends.as_system_time())
    }

    fn same_as(&self, other: &Self) -> bool {
        let key = |loaded: &Self| {
            let Credential {
                access_key_id,
                secret_access_key,
                session_token,
                ..
            } = &loaded.credential;
            use sha2::{Digest, Sha256};
            // Compared by digest, which takes the same time whatever they are.
            Sha256::new()
                .chain_update(access_key_id)
                .chain_update([0])
                .chain_update(secret_access_key)
                .chain_update([0])
                .chain_update(session_token.as_deref().unwrap_or_default())
                .finalize()
        };
        key(self) == key(other)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.credential.secret_access_key.zeroize();
        if let Some(token) = &mut self.credential.session_token {
            token.zeroize();
        }
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("source", &self.source)
            .field("ends", &self.ends())
            .finish_non_exhaustive()
    }
}

/// The credentials for one region: STS is asked there, too.
#[derive(Debug)]
pub(super) struct Credentials {
    identity: Identity,
    region: Region,
    http: Arc<Http>,
    timeout: Duration,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    loaded: Arc<Loaded>,
    ends: SystemTime,
    replace_at: SystemTime,
}

impl Credentials {
    pub(super) fn new(
        identity: Identity,
        region: Region,
        http: Arc<Http>,
        timeout: Duration,
    ) -> Self {
        Credentials {
            identity,
            region,
            http,
            timeout,
            held: Mutex::default(),
        }
    }

    /// Credentials that should be good.
    pub(super) async fn get(&self) -> Result<Arc<Loaded>, Failed> {
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        if let Some(current) = &*held
            && now < current.replace_at
        {
            return Ok(current.loaded.clone());
        }
        match self.load().await {
            Ok(loaded) => Ok(keep(&mut held, loaded)),
            Err(failed) => match &mut *held {
                Some(current) if now + LAST < current.ends => {
                    tracing::debug!(region = %self.region, ?failed, "the credentials are not replaced yet");
                    current.replace_at = now + AGAIN;
                    Ok(current.loaded.clone())
                }
                _ => Err(failed),
            },
        }
    }

    /// Others than `refused`, if there are any.
    pub(super) async fn after(&self, refused: &Arc<Loaded>) -> Result<Option<Arc<Loaded>>, Failed> {
        let mut held = self.held.lock().await;
        if let Some(current) = &*held
            && !current.loaded.same_as(refused)
        {
            // Another call has been here before.
            return Ok(Some(current.loaded.clone()));
        }
        *held = None;
        let loaded = keep(&mut held, self.load().await?);
        Ok((!loaded.same_as(refused)).then_some(loaded))
    }

    async fn load(&self) -> Result<Loaded, Failed> {
        let defaults = Source::defaults();
        let sources = match &self.identity.source {
            Source::Default => &defaults[..],
            one => std::slice::from_ref(one),
        };
        for source in sources {
            // One that is set up and fails is not passed over: the next one
            // would be somebody else.
            if let Some(credential) = self.from(source).await? {
                let name = source.name();
                tracing::debug!(region = %self.region, source = name, "loaded credentials");
                return Ok(Loaded {
                    credential,
                    source: name,
                });
            }
        }
        Err(Failed::Everywhere(self.none(sources)))
    }

    /// What one source has. `None` when it is not set up.
    async fn from(&self, source: &Source) -> Result<Option<Credential>, Failed> {
        let environment = &self.identity.environment;
        let files = match source {
            Source::Profile { .. } => Files::with_keys(),
            _ => Files::with_tokens(),
        };
        let usual = self
            .region
            .sts()
            .map_err(|why| Failed::Everywhere(defect(why)))?;
        let web = Web {
            http: self.http.clone(),
            instead: self.identity.sts_endpoint.clone().map(|own| (usual, own)),
            timeout: self.timeout,
        };
        let context = Context::new()
            .with_env(environment.clone())
            .with_file_read(files.clone())
            .with_http_send(web);
        let text = |path: &std::path::PathBuf| path.display().to_string();
        let loaded = match source {
            Source::Default => return Ok(None),
            Source::Environment => {
                EnvCredentialProvider::new()
                    .provide_credential(&context)
                    .await
            }
            Source::WebIdentity {
                role,
                token,
                session,
            } => {
                let mut provider = AssumeRoleWithWebIdentityCredentialProvider::new()
                    .with_region(self.region.to_string())
                    .with_regional_sts_endpoint();
                if let Some(role) = role {
                    provider = provider.with_role_arn(role);
                }
                if let Some(token) = token {
                    provider = provider.with_web_identity_token_file(token);
                }
                let session = session
                    .clone()
                    .or_else(|| environment.get("AWS_ROLE_SESSION_NAME"));
                provider
                    .with_role_session_name(session.unwrap_or_else(|| "sealblk".into()))
                    .provide_credential(&context)
                    .await
            }
            Source::Profile {
                name,
                credentials_file,
                config_file,
            } => {
                let mut provider = ProfileCredentialProvider::new();
                if let Some(name) = name {
                    provider = provider.with_profile(name);
                }
                if let Some(path) = credentials_file {
                    provider = provider.with_credentials_file(text(path));
                }
                if let Some(path) = config_file {
                    provider = provider.with_config_file(text(path));
                }
                provider.provide_credential(&context).await
            }
            Source::Container { endpoint, token } => {
                let mut provider = ECSCredentialProvider::new();
                if let Some(endpoint) = endpoint {
                    provider = provider.with_endpoint(endpoint);
                }
                if let Some(token) = token {
                    provider = provider.with_auth_token_file(text(token));
                }
                provider.provide_credential(&context).await
            }
            Source::Instance { endpoint } => {
                let off = environment.get("AWS_EC2_METADATA_DISABLED");
                if off.is_some_and(|off| off.eq_ignore_ascii_case("true")) {
                    return Ok(None);
                }
                let mut provider = IMDSv2CredentialProvider::new();
                let variable = || environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
                if let Some(endpoint) = endpoint.clone().or_else(variable) {
                    provider = provider.with_endpoint(endpoint.trim_end_matches('/'));
                }
                provider.provide_credential(&context).await
            }
        };
        match loaded {
            // Files that are there and cannot be read are not passed over.
            Ok(None) => match files.failed() {
                Some(error) => Err(Failed::Everywhere(error)),
                None if self.is_named(source) => {
                    Err(Failed::Everywhere(self.none(std::slice::from_ref(source))))
                }
                None => Ok(None),
            },
            Ok(Some(credential)) if is_whole(&credential) => Ok(Some(credential)),
            Ok(Some(_)) => Err(Failed::Everywhere(incomplete(source))),
            Err(error) => Err(refusal::of_source(source, files.failed(), &error)),
        }
    }

    /// Whether somebody asked for just this profile: then it has to be there.
    fn is_named(&self, source: &Source) -> bool {
        match source {
            Source::Profile { name, .. } => {
                name.is_some() || self.identity.environment.get("AWS_PROFILE").is_some()
            }
            _ => false,
        }
    }

    /// There are no credentials in any of these sources.
    fn none(&self, sources: &[Source]) -> Error {
        let environment = &self.identity.environment;
        let (cause, next) = match sources {
            [Source::Environment] => (
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set".to_owned(),
                "set both in the environment of this process, or choose another source in the key set",
            ),
            [Source::WebIdentity { .. }] => (
                "no role or no token file is known for the web identity".to_owned(),
                "set AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE (EKS does), or role and token in the key set",
            ),
            [Source::Profile { name, .. }] => {
                let name = name.clone().or_else(|| environment.get("AWS_PROFILE"));
                (
                    format!(
                        "profile {:?} has no access key in ~/.aws/credentials or ~/.aws/config, or where these are configured to be",
                        name.as_deref().unwrap_or("default")
                    ),
                    "put aws_access_key_id and aws_secret_access_key there; roles, SSO and credential_process of profiles are not followed",
                )
            }
            [Source::Container { .. }] => (
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and AWS_CONTAINER_CREDENTIALS_FULL_URI are not set".to_owned(),
                "run it in a task with a role, or choose another source in the key set",
            ),
            [Source::Instance { .. }] => (
                "the metadata service is turned off by AWS_EC2_METADATA_DISABLED".to_owned(),
                "unset it, or choose another source in the key set",
            ),
            _ => (
                "no credentials for AWS are to be found: not in environment variables, a web identity, a profile, of a container, or of an instance".to_owned(),
                "see docs/kms/aws-kms.md for where they may be, and name that source in the key set: then its own fault is told",
            ),
        };
        Error::new(Class::Unreachable, cause, next).with_kind(Kind::NotFound)
    }
}

fn keep(held: &mut Option<Held>, loaded: Loaded) -> Arc<Loaded> {
    let loaded = Arc::new(loaded);
    let now = SystemTime::now();
    *held = loaded.ends().map(|ends| {
        let rest = ends.duration_since(now).unwrap_or_default();
        Held {
            loaded: loaded.clone(),
            ends,
            replace_at: ends - BEFORE_END.min(rest / 3).max(LAST),
        }
    });
    loaded
}

fn is_whole(credential: &Credential) -> bool {
    !credential.access_key_id.is_empty() && !credential.secret_access_key.is_empty()
}

fn incomplete(source: &Source) -> Error {
    Error::new(
        Class::Unreachable,
        format!(
            "the credentials of source {:?} have an empty key",
            source.name()
        ),
        "see what is written there",
    )
    .with_kind(Kind::Usage)
}

fn defect(why: String) -> Error {
    Error::new(
        Class::Protocol,
        why,
        "this is a defect of sealblk: report it",
    )
    .with_kind(Kind::Internal)
}
