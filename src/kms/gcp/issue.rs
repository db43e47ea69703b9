//! Getting a token: from the metadata server, for the key of a service
//! account, or for a token of another provider.
//!
//! The key of a service account is changed for a token at the token endpoint,
//! and not shown to Cloud KMS as a JWT that it signed itself, which would work
//! too: the endpoint says why it refuses (the key was deleted, the clock is
//! wrong), where Cloud KMS would say 401; and such a token is good at every
//! endpoint of Cloud KMS, whatever its name.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::credentials::{Credentials, Federated, ServiceAccount, Source, Subject, Trust};
use super::json::{self, Text};
use super::jwt;
use super::refused::{self, Asked};
use super::settings::{Account, Auth};
use crate::kms::Error;
use crate::kms::cluster::Failed;
use crate::kms::envelope::no_memory;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::secret::Secret;
use crate::timestamp::Timestamp;

/// What a token is to be good for: Cloud KMS, and nothing else of Google.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

/// What it has to be good for to be changed for one of a service account.
const SCOPE_OF_IMPERSONATION: &str = "https://www.googleapis.com/auth/iam";

/// A token that was just given out.
pub(super) struct Issued {
    /// `Bearer TOKEN`, as it is shown.
    pub bearer: Secret,
    /// How long it lasts.
    pub lifetime: Duration,
    /// Whose it is, as far as the file tells.
    pub who: Option<String>,
}

/// Which credentials a token was given out for.
pub(super) type Fingerprint = Option<[u8; 32]>;

/// Where tokens come from.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) auth: Auth,
    pub(super) http: Arc<Http>,
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.auth {
            Auth::Metadata { server, .. } => write!(f, "the metadata server {server}"),
            Auth::File { credentials, .. } => {
                write!(f, "the token service of the credentials in {credentials}")
            }
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Text,
    #[serde(default)]
    token_type: String,
    #[serde(default = "hour", deserialize_with = "seconds")]
    expires_in: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImpersonationAnswer {
    access_token: Text,
    expire_time: String,
}

#[derive(Serialize)]
struct ImpersonationRequest {
    scope: [&'static str; 1],
    lifetime: String,
}

fn hour() -> u64 {
    3600
}

/// A number, or one in quotes: both are seen.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn everywhere(error: impl Into<Error>) -> Failed {
    Failed::Everywhere(error.into())
}

fn bearer(token: &str) -> Result<Secret, Failed> {
    let text = Zeroizing::new(format!("Bearer {token}"));
    Secret::copy_of(text.as_bytes()).map_err(|error| everywhere(no_memory(&error)))
}

impl Issuer {
    /// Which credentials are configured at this moment. `None` where they are
    /// not in a file.
    pub(super) fn fingerprint(&self) -> Result<Fingerprint, Error> {
        match &self.auth {
            Auth::Metadata { .. } => Ok(None),
            Auth::File { credentials, .. } => {
                let text = credentials.read()?;
                Ok(Some(Sha256::digest(&text[..]).into()))
            }
        }
    }

    /// A new token.
    pub(super) async fn issue(&self) -> Result<Issued, Failed> {
        let (file, hosts) = match &self.auth {
            Auth::Metadata { server, account } => {
                return self.of_the_machine(server, account.as_ref()).await;
            }
            Auth::File {
                credentials,
                trusted_hosts,
            } => (credentials, trusted_hosts),
        };
        let text = file.read().map_err(everywhere)?;
        let trust = Trust { file, hosts };
        match Credentials::parse(&text, &trust).map_err(everywhere)? {
            Credentials::ServiceAccount(account) => self.of_account(&account).await,
            Credentials::Federated(federated) => self.of_federated(&federated).await,
        }
    }

    /// What the metadata server says of the account of this machine.
    pub(super) async fn metadata(
        &self,
        server: &BaseUrl,
        account: Option<&Account>,
        what: &str,
    ) -> Result<Reply, Failed> {
        let account = account.map_or("default", Account::as_str);
        let url = server.join([
            "computeMetadata",
            "v1",
            "instance",
            "service-accounts",
            account,
            what,
        ]);
        let request = Request::new(Method::GET, url).header("metadata-flavor", "Google");
        let reply = self.http.send(server, request).await;
        let reply = reply.map_err(|failed| refused::no_metadata_server(server, failed))?;
        if reply.header("metadata-flavor") != Some("Google") {
            return Err(refused::not_the_metadata_server(server, &reply).into());
        }
        match reply.status {
            200 => Ok(reply),
            _ => Err(refused::by_metadata_server(server, account, &reply).into()),
        }
    }

    async fn of_the_machine(
        &self,
        server: &BaseUrl,
        account: Option<&Account>,
    ) -> Result<Issued, Failed> {
        let reply = self.metadata(server, account, "token").await?;
        let mut issued = token(server, &reply)?;
        issued.who = account.map(|account| account.as_str().to_owned());
        Ok(issued)
    }

    async fn of_account(&self, account: &ServiceAccount) -> Result<Issued, Failed> {
        let now = SystemTime::now();
        let assertion = jwt::assertion(account, SCOPE, now).map_err(everywhere)?;
        let fields = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.as_str()),
        ];
        let asked = Asked::Account(account);
        let reply = self
            .post(&account.token_uri, &fields, &asked, &assertion)
            .await?;
        let mut issued = token(&account.token_uri, &reply)?;
        issued.who = Some(account.email.clone());
        Ok(issued)
    }

    async fn of_federated(&self, federated: &Federated) -> Result<Issued, Failed> {
        let subject = self.subject_token(&federated.subject).await?;
        let scope = match federated.impersonation {
            Some(_) => SCOPE_OF_IMPERSONATION,
            None => SCOPE,
        };
        let fields = [
            (
                "grant_type",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ),
            ("audience", &federated.audience),
            ("scope", scope),
            (
                "requested_token_type",
                "urn:ietf:params:oauth:token-type:access_token",
            ),
            ("subject_token", &subject),
            ("subject_token_type", &federated.subject_token_type),
        ];
        let asked = Asked::Federation(federated);
        let reply = self
            .post(&federated.token_url, &fields, &asked, &subject)
            .await?;
        let mut issued = token(&federated.token_url, &reply)?;
        issued.who = Some(federated.audience.clone());
        match &federated.impersonation {
            Some(url) => self.impersonate(url, federated, &issued).await,
            None => Ok(issued),
        }
    }

    async fn subject_token(&self, subject: &Subject) -> Result<Zeroizing<String>, Failed> {
        let text = match &subject.source {
            Source::File(file) => file.read().map_err(everywhere)?,
            Source::Url {
                server,
                url,
                headers,
            } => {
                let mut request = Request::new(Method::GET, url.clone());
                for (name, value) in headers {
                    request = request
                        .foreign_header(name, value)
                        .ok_or_else(|| everywhere(refused::bad_header(name)))?;
                }
                let reply = self.http.send(server, request).await?;
                if reply.status != 200 {
                    return Err(refused::by_subject(server, &reply).into());
                }
                Secret::copy_of(reply.body.trim_ascii())
                    .map_err(|error| everywhere(no_memory(&error)))?
            }
        };
        let token = match &subject.field {
            Some(field) => json::field(&text, field).map(|text| text.0),
            None => std::str::from_utf8(&text)
                .ok()
                .map(|text| Zeroizing::new(text.to_owned())),
        };
        token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| everywhere(refused::no_subject_token(subject)))
    }

    async fn impersonate(
        &self,
        url: &BaseUrl,
        federated: &Federated,
        issued: &Issued,
    ) -> Result<Issued, Failed> {
        let body = ImpersonationRequest {
            scope: [SCOPE],
            lifetime: format!("{}s", federated.lifetime),
        };
        let request = Request::new(Method::POST, url.join([]))
            .secret_header("authorization", &issued.bearer)
            .ok_or_else(|| everywhere(refused::not_a_token(url)))?
            .json(&body)?;
        let reply = self.http.send(url, request).await?;
        if reply.status != 200 {
            return Err(refused::by_token_service(url, &Asked::Impersonation, &reply, "").into());
        }
        let strange = || Failed::Here(refused::not_a_token(url));
        let answer: ImpersonationAnswer =
            serde_json::from_slice(&reply.body).map_err(|_| strange())?;
        let whole = answer.expire_time.split(['.', 'Z']).next();
        let end = whole.and_then(|text| format!("{text}Z").parse::<Timestamp>().ok());
        let left = end.and_then(|end| end.to_system().duration_since(SystemTime::now()).ok());
        let account = url.to_string();
        let account = account.rsplit('/').next().unwrap_or_default();
        Ok(Issued {
            bearer: bearer(&answer.access_token.0)?,
            lifetime: left.ok_or_else(strange)?,
            who: Some(account.trim_end_matches(":generateAccessToken").to_owned()),
        })
    }

    /// Sends a form with a secret in it.
    async fn post(
        &self,
        url: &BaseUrl,
        fields: &[(&str, &str)],
        asked: &Asked<'_>,
        secret: &str,
    ) -> Result<Reply, Failed> {
        let request = Request::new(Method::POST, url.join([])).form(fields);
        let reply = self.http.send(url, request).await?;
        tracing::trace!(endpoint = %url, status = reply.status, "asked for a token");
        match reply.status {
            200 => Ok(reply),
            _ => Err(refused::by_token_service(url, asked, &reply, secret).into()),
        }
    }
}

/// The token in an answer.
fn token(url: &BaseUrl, reply: &Reply) -> Result<Issued, Failed> {
    // The error would quote what it stumbles on, which may be the token.
    let answer: Option<TokenAnswer> = serde_json::from_slice(&reply.body).ok();
    let good = |answer: &TokenAnswer| {
        let kind = &answer.token_type;
        (kind.is_empty() || kind.eq_ignore_ascii_case("bearer"))
            && !answer.access_token.0.is_empty()
            && answer.access_token.0.bytes().all(|c| c.is_ascii_graphic())
    };
    let Some(answer) = answer.filter(good) else {
        return Err(Failed::Here(refused::not_a_token(url)));
    };
    Ok(Issued {
        bearer: bearer(&answer.access_token.0)?,
        lifetime: Duration::from_secs(answer.expires_in),
        who: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::Class;

    #[test]
    fn a_token_is_text_of_one_kind() {
        let url: BaseUrl = "https://x".parse().unwrap();
        let read = |body: &str| {
            let reply = Reply {
                status: 200,
                headers: reqwest::header::HeaderMap::new(),
                retry_after: None,
                location: None,
                date: None,
                body: Zeroizing::new(body.into()),
            };
            match token(&url, &reply) {
                Ok(issued) => Ok((issued.bearer.to_vec(), issued.lifetime.as_secs())),
                Err(Failed::Here(error) | Failed::Everywhere(error)) => Err(error.class()),
            }
        };
        let good = b"Bearer ya29.c".to_vec();
        for (body, seconds) in [
            (
                r#"{"access_token":"ya29.c","expires_in":9,"token_type":"Bearer"}"#,
                9,
            ),
            (
                r#"{"access_token":"ya29.c","expires_in":"9","token_type":"bearer"}"#,
                9,
            ),
            (r#"{"access_token":"ya29.c"}"#, 3600),
        ] {
            assert_eq!(read(body), Ok((good.clone(), seconds)), "{body}");
        }
        for bad in [
            "",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a b"}"#,
            r#"{"access_token":"a\nb"}"#,
            r#"{"access_token":"x","token_type":"mac"}"#,
            r#"{"access_token":"x","expires_in":-1}"#,
            r#"{"error":"x"}"#,
        ] {
            assert_eq!(read(bad), Err(Class::Protocol), "{bad}");
        }
    }
}
