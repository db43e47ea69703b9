//! The credentials file, as `gcloud` makes them: the key of a service account,
//! or the configuration of a workload identity federation.
//!
//! Whoever can replace the file can say where credentials of this host are
//! sent. So they go to Google, and to hosts that the configuration names.

use reqwest::Url;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{self, Encoding};
use crate::error::Kind;
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::{Class, Error};
use crate::secret::Secret;

/// What a credentials file holds.
pub(super) enum Credentials {
    ServiceAccount(ServiceAccount),
    Federated(Box<Federated>),
}

/// The key of a service account.
pub(super) struct ServiceAccount {
    pub email: String,
    pub key_id: Option<String>,
    pub key: Secret,
    pub encoding: Encoding,
    /// Where it is changed for a token.
    pub token_uri: BaseUrl,
    /// For whom that is signed. Google has several addresses for it, and one
    /// name.
    pub audience: String,
}

/// An identity at another provider, whose tokens Google takes.
pub(super) struct Federated {
    pub audience: String,
    pub subject_token_type: String,
    pub subject: Subject,
    /// Where its token is changed for one of Google.
    pub token_url: BaseUrl,
    /// Where that is changed for one of a service account, if it is to be.
    pub impersonation: Option<BaseUrl>,
    /// For how long that is to last, in seconds.
    pub lifetime: u32,
}

/// Where the token of the other provider is.
pub(super) struct Subject {
    pub source: Source,
    /// The field of JSON that it stands in; it is all there is otherwise.
    pub field: Option<String>,
}

pub(super) enum Source {
    File(SecretFile),
    Url {
        server: BaseUrl,
        url: Url,
        headers: Vec<(String, String)>,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default, rename = "type")]
    kind: String,
    client_email: Option<String>,
    private_key_id: Option<String>,
    private_key: Option<IgnoredAny>,
    token_uri: Option<String>,
    audience: Option<String>,
    subject_token_type: Option<String>,
    token_url: Option<String>,
    credential_source: Option<SourceTable>,
    service_account_impersonation_url: Option<String>,
    service_account_impersonation: Option<Impersonation>,
    client_secret: Option<IgnoredAny>,
    workforce_pool_user_project: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct SourceTable {
    file: Option<String>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    format: Option<Format>,
    environment_id: Option<IgnoredAny>,
    executable: Option<IgnoredAny>,
    certificate: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default, rename = "type")]
    kind: String,
    subject_token_field_name: Option<String>,
}

#[derive(Deserialize)]
struct Impersonation {
    token_lifetime_seconds: Option<u32>,
}

const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
const STS: &str = "https://sts.googleapis.com/v1/token";

/// How long a token of a service account lasts by default, in seconds.
const LIFETIME: u32 = 3600;

/// Whom credentials may be sent to.
pub(super) struct Trust<'t> {
    pub file: &'t SecretFile,
    pub hosts: &'t [String],
}

fn is_google(url: &BaseUrl) -> bool {
    let host = url.host();
    url.has_tls() && (host.ends_with(".googleapis.com") || host == "accounts.google.com")
}

impl Trust<'_> {
    /// An address in the file to which a credential would be sent.
    fn check(&self, url: &str) -> Result<BaseUrl, Error> {
        let url: BaseUrl = url.parse().map_err(|why: String| self.unfit(&why))?;
        if !self.knows(&url) {
            return Err(self.stranger(url.host()));
        }
        Ok(url)
    }

    fn knows(&self, url: &BaseUrl) -> bool {
        is_google(url) || self.hosts.iter().any(|known| known == url.host())
    }

    fn stranger(&self, host: &str) -> Error {
        Error::new(
            Class::Unreachable,
            format!(
                "the credentials in {} have this host ask {host:.200} for tokens, which is not Google",
                self.file
            ),
            "find out who changed the file; if that host is meant, name it in auth: trusted_hosts = [\"HOST\"]",
        )
        .with_kind(Kind::Refused)
    }

    fn unfit(&self, why: &str) -> Error {
        unfit(
            self.file,
            why,
            "make the file again: gcloud iam service-accounts keys create, or gcloud iam workload-identity-pools create-cred-config",
        )
    }
}

fn unfit(file: &SecretFile, why: &str, next: &str) -> Error {
    let cause = format!("the credentials in {file} cannot be used: {why}");
    Error::new(Class::Unreachable, cause, next).with_kind(Kind::Usage)
}

impl Credentials {
    /// What stands in `text`, which was read from the file of `trust`.
    pub(super) fn parse(text: &[u8], trust: &Trust<'_>) -> Result<Self, Error> {
        // The error would quote what it stumbles on, which may be the key.
        let file: File = serde_json::from_slice(text).map_err(|error| {
            trust.unfit(&format!(
                "they are not the JSON that gcloud writes (line {}, column {})",
                error.line(),
                error.column()
            ))
        })?;
        match file.kind.as_str() {
            "service_account" => {
                ServiceAccount::of(file, text, trust).map(Credentials::ServiceAccount)
            }
            "external_account" => {
                Federated::of(file, trust).map(|of| Credentials::Federated(Box::new(of)))
            }
            kind => Err(refused_kind(kind, trust)),
        }
    }
}

fn refused_kind(kind: &str, trust: &Trust<'_>) -> Error {
    let (why, next) = match kind {
        "authorized_user" | "external_account_authorized_user" => (
            "they are those of a person, whose rights end when that person leaves",
            "give the host an identity of its own: the service account of the machine, or a credentials file of type service_account or external_account",
        ),
        "impersonated_service_account" => (
            "they take another's place, with the credentials of a person as a rule",
            "use a file of type external_account, or let the host use the service account itself",
        ),
        _ => {
            return trust.unfit(&format!(
                "their type is {kind:.60?}, and has to be \"service_account\" or \"external_account\""
            ));
        }
    };
    unfit(trust.file, why, next)
}

fn missing(trust: &Trust<'_>, field: &str) -> Error {
    trust.unfit(&format!("they have no {field}"))
}

impl ServiceAccount {
    fn of(file: File, text: &[u8], trust: &Trust<'_>) -> Result<Self, Error> {
        if file.private_key.is_none() {
            return Err(missing(trust, "private_key"));
        }
        let (encoding, key) = json::private_key(text)
            .ok_or_else(|| trust.unfit("their private_key is no private key in PEM"))?;
        let token_uri = trust.check(file.token_uri.as_deref().unwrap_or(TOKEN_URI))?;
        Ok(ServiceAccount {
            email: file
                .client_email
                .ok_or_else(|| missing(trust, "client_email"))?,
            key_id: file.private_key_id,
            key,
            encoding,
            audience: match is_google(&token_uri) {
                true => TOKEN_URI.into(),
                false => token_uri.to_string(),
            },
            token_uri,
        })
    }
}

impl Federated {
    fn of(file: File, trust: &Trust<'_>) -> Result<Self, Error> {
        if file.client_secret.is_some() || file.workforce_pool_user_project.is_some() {
            return Err(unfit(
                trust.file,
                "they are for a workforce pool, which is for people",
                "make a workload identity pool for hosts",
            ));
        }
        let source = file
            .credential_source
            .ok_or_else(|| missing(trust, "credential_source"))?;
        let url = file.service_account_impersonation_url;
        let lifetime = file
            .service_account_impersonation
            .and_then(|settings| settings.token_lifetime_seconds)
            .unwrap_or(LIFETIME);
        Ok(Federated {
            audience: file.audience.ok_or_else(|| missing(trust, "audience"))?,
            subject_token_type: file
                .subject_token_type
                .ok_or_else(|| missing(trust, "subject_token_type"))?,
            subject: Subject::of(source, trust)?,
            token_url: trust.check(file.token_url.as_deref().unwrap_or(STS))?,
            impersonation: url.map(|url| trust.check(&url)).transpose()?,
            lifetime,
        })
    }
}

impl Subject {
    fn of(table: SourceTable, trust: &Trust<'_>) -> Result<Self, Error> {
        let refused = |what: &str, next: &str| {
            let why = format!("their subject token comes from {what}");
            Err(unfit(trust.file, &why, next))
        };
        const TO_A_FILE: &str =
            "have a timer write the token into a file, and use a credential_source with \"file\"";
        if table.environment_id.is_some() {
            return refused("AWS, which is not supported", TO_A_FILE);
        }
        if table.executable.is_some() {
            return refused("a program, and sealblk starts none", TO_A_FILE);
        }
        if table.certificate.is_some() {
            return refused("a certificate, which is not supported", TO_A_FILE);
        }
        let field = match table.format {
            None => None,
            Some(format) => match (format.kind.as_str(), format.subject_token_field_name) {
                ("" | "text", _) => None,
                ("json", Some(field)) => Some(field),
                ("json", None) => return Err(missing(trust, "subject_token_field_name")),
                (other, _) => {
                    return Err(trust.unfit(&format!("a subject token of format {other:.60?}")));
                }
            },
        };
        let source = match (table.file, table.url) {
            (Some(file), None) if file.starts_with('/') => {
                // kubelet gives tokens mode 0644.
                Source::File(SecretFile::new(file).readable_by_all())
            }
            (Some(_), None) => {
                return Err(trust.unfit("the file of the subject token is not an absolute path"));
            }
            (None, Some(url)) => Source::url(&url, table.headers, trust)?,
            _ => {
                return Err(trust.unfit("credential_source has to have either \"file\" or \"url\""));
            }
        };
        Ok(Subject { source, field })
    }
}

impl Source {
    /// Nothing secret of ours is sent there; but what comes back is taken for
    /// who we are. So it is a service of this machine, or one that is trusted.
    fn url(
        text: &str,
        headers: std::collections::BTreeMap<String, String>,
        trust: &Trust<'_>,
    ) -> Result<Self, Error> {
        let url = Url::parse(text)
            .map_err(|error| trust.unfit(&format!("{text:.200?} is not an address: {error}")))?;
        let origin = url.origin().ascii_serialization();
        let near = origin.strip_prefix("http://").map(BaseUrl::link_local);
        let server = match near {
            Some(Ok(near)) => near,
            _ => trust.check(&origin)?,
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(trust.unfit("the address of the subject token has a password in it"));
        }
        Ok(Source::Url {
            server,
            url,
            headers: headers.into_iter().collect(),
        })
    }
}
