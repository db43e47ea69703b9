//! Tokens from the authority of a cloud (Entra ID), for applications.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::assertion;
use super::challenge::Challenge;
use super::session::{Granted, Token};
use super::settings::{ClientId, Identity, Tenant};
use crate::kms::cluster::Failed;
use crate::kms::credential::SecretFile;
use crate::kms::envelope;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Denied, Error};
use crate::secret::Secret;

/// Text of an answer that is wiped.
pub(super) struct Text(pub Zeroizing<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Text(Zeroizing::new(text)))
    }
}

/// A number, which some write as text.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Plain(u64),
    Quoted(String),
}

impl Number {
    pub(super) fn get(&self) -> Option<u64> {
        match self {
            Number::Plain(number) => Some(*number),
            Number::Quoted(text) => text.parse().ok(),
        }
    }
}

/// What an authority says in place of a token.
#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    error_codes: Vec<u32>,
}

/// What is asked, of whom.
struct Question<'q> {
    authority: &'q BaseUrl,
    tenant: &'q str,
    client: &'q ClientId,
    identity: &'q Identity,
}

/// A token for an application, of which `identity` is one.
pub(super) async fn token(
    http: &Http,
    identity: &Identity,
    challenge: &Challenge,
) -> Result<Granted, Failed> {
    let (client, tenant) = match identity {
        Identity::Federated { client, tenant, .. }
        | Identity::Secret { client, tenant, .. }
        | Identity::Certificate { client, tenant, .. } => (client, tenant),
        Identity::Managed { .. } => return Err(Failed::Everywhere(unknown_authority())),
    };
    let Some(authority) = &challenge.authority else {
        return Err(Failed::Everywhere(unknown_authority()));
    };
    let tenant = tenant.as_ref().map(Tenant::as_str);
    let Some(tenant) = tenant.or(challenge.tenant.as_deref()) else {
        return Err(Failed::Everywhere(Error::new(
            Class::Protocol,
            "the vault does not name its tenant",
            "name it in the key set, in identity: tenant = \"ID\"",
        )));
    };
    let url = authority.join([tenant, "oauth2", "v2.0", "token"]);
    let (proof, secret) = proof(identity, client, url.as_str())?;
    let scope = format!("{}/.default", challenge.resource);
    let mut fields = vec![
        ("grant_type", "client_credentials"),
        ("client_id", client.as_str()),
        ("scope", &scope),
        (proof, text(identity, &secret)?),
    ];
    if proof == ASSERTION {
        fields.push(("client_assertion_type", JWT_BEARER));
    }
    let request = Request::new(Method::POST, url).form(&fields);
    drop(fields);
    let reply = http.send(authority, request).await?;
    let question = Question {
        authority,
        tenant,
        client,
        identity,
    };
    match reply.status {
        200 => granted(authority, &reply),
        _ => Err(question
            .refused(&reply)
            .without_echo(text(identity, &secret)?)),
    }
}

const ASSERTION: &str = "client_assertion";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What shows that we are the application, and in which field it goes.
fn proof(
    identity: &Identity,
    client: &ClientId,
    audience: &str,
) -> Result<(&'static str, Secret), Failed> {
    let read = |file: &SecretFile| {
        file.read()
            .map_err(|error| Failed::Everywhere(error.into()))
    };
    match identity {
        Identity::Secret { secret, .. } => Ok(("client_secret", read(secret)?)),
        Identity::Federated { token, .. } => Ok((ASSERTION, read(token)?)),
        Identity::Certificate { certificate, .. } => {
            let signed = assertion::signed(certificate, client.as_str(), audience)
                .map_err(Failed::Everywhere)?;
            Ok((ASSERTION, locked(signed.as_bytes())?))
        }
        Identity::Managed { .. } => Err(Failed::Everywhere(unknown_authority())),
    }
}

fn text<'s>(identity: &Identity, secret: &'s Secret) -> Result<&'s str, Failed> {
    std::str::from_utf8(secret).map_err(|_| {
        Failed::Everywhere(Error::new(
            Class::Unreachable,
            format!("{identity}: that is something else than text"),
            "put the secret or the token alone, as text, into its file",
        ))
    })
}

/// A copy in locked memory.
pub(super) fn locked(bytes: &[u8]) -> Result<Secret, Failed> {
    Secret::copy_of(bytes).map_err(|error| Failed::Everywhere(envelope::no_memory(&error)))
}

fn unknown_authority() -> Error {
    Error::new(
        Class::Protocol,
        "the vault is in no cloud that is known here, so nobody is trusted to give out tokens for it",
        "name who does in the key set: authority = \"https://HOST\"",
    )
}

/// The token in the answer of an authority.
fn granted(authority: &BaseUrl, reply: &Reply) -> Result<Granted, Failed> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: Text,
        expires_in: Number,
    }
    // Its error would quote what it stumbles on, which may be the token.
    let strange = || {
        Failed::Here(Error::new(
            Class::Protocol,
            format!("{authority} answers with no token, and does not say why"),
            "check the authority in the configuration, and what is in between",
        ))
    };
    let answer: Answer = serde_json::from_slice(&reply.body).map_err(|_| strange())?;
    let seconds = answer.expires_in.get().ok_or_else(strange)?;
    Ok(Granted {
        token: Token::new(locked(answer.access_token.0.as_bytes())?),
        lifetime: Duration::from_secs(seconds),
    })
}

impl Question<'_> {
    fn refused(&self, reply: &Reply) -> Failed {
        let authority = self.authority;
        let refusal: Refusal = serde_json::from_slice(&reply.body).unwrap_or_default();
        let code = refusal
            .error_codes
            .first()
            .copied()
            .or_else(|| code_in(&refusal.error_description))
            .unwrap_or_default();
        let error = match (reply.status, code) {
            (429, _) => Error::new(
                Class::Throttled {
                    retry_after: reply.retry_after,
                },
                format!("{authority} throttles this host"),
                "wait; a token is asked for once an hour, so something else may be asking, too",
            ),
            (500..600 | 408, _) => Error::new(
                Class::Unreachable,
                format!("{authority} cannot answer now (status {})", reply.status),
                "see https://status.azure.com, and wait",
            ),
            (_, 90_033) => Error::new(
                Class::Unreachable,
                format!("{authority} cannot answer now"),
                "see https://status.azure.com, and wait",
            ),
            (400 | 401 | 403, 1..) => self.told(code),
            (400 | 401 | 403, _) if !refusal.error.is_empty() => self.told(code),
            (status, _) => Error::new(
                Class::Protocol,
                format!("{authority} answers with status {status}, and not as an authority does"),
                "check the authority in the configuration, and what is in between",
            ),
        };
        let words = match refusal.error_description.is_empty() {
            true => &refusal.error,
            false => &refusal.error_description,
        };
        Failed::Here(error.with_words(words))
    }

    /// What a code of Entra ID means.
    fn told(&self, code: u32) -> Error {
        let Question {
            tenant,
            client,
            identity,
            ..
        } = self;
        let (cause, next) = match code {
            7_000_222 => (
                format!("the client secret of application {client} has expired"),
                format!("make a new one, and put it into the file: az ad app credential reset --id {client} --append"),
            ),
            7_000_215 => (
                format!("the client secret is not one of application {client}"),
                "put the value of the secret into the file, and not its id; make a new one with az ad app credential reset --append".into(),
            ),
            700_016 => (
                format!("there is no application {client} in tenant {tenant}: it was deleted, or belongs to another tenant"),
                format!("restore it (az rest --method POST --url https://graph.microsoft.com/v1.0/directory/deletedItems/OBJECT_ID/restore), or correct client_id and tenant; see az ad app show --id {client}"),
            ),
            7_000_229 | 500_011 => (
                format!("there is no service principal in tenant {tenant} for application {client}, or for key vaults"),
                format!("make it: az ad sp create --id {client}"),
            ),
            90_002 | 900_021 | 900_023 => (
                format!("there is no tenant {tenant}"),
                "correct tenant in the key set, or leave it out: the vault names its own".into(),
            ),
            7_000_112 | 7_000_113 => (
                format!("application {client} is disabled"),
                format!("have it enabled: az ad sp update --id {client} --set accountEnabled=true"),
            ),
            700_024 => {
                // Ours, or that of the file: nobody was denied anything.
                return Error::new(
                    Class::Unreachable,
                    format!("what we show of application {client} is outside of its time"),
                    "check the clock of this host, and that the token in the file is still renewed by who made it",
                )
                .with_kind(crate::error::Kind::Key);
            }
            700_027 | 7_000_214 | 5_000_611 => (
                format!("the certificate is not one of application {client}, or not any more"),
                format!("register the one that is configured: az ad app credential reset --id {client} --append --cert @FILE"),
            ),
            70_021 | 700_211 | 700_212 | 700_213 => (
                format!("application {client} does not trust this token: its issuer, subject or audience is another one"),
                format!("compare them with az ad app federated-credential list --id {client}"),
            ),
            53_003 | 530_003 | 53_000..=53_011 => (
                format!("a conditional access policy of tenant {tenant} keeps application {client} out"),
                "have its sign-in log looked at: the policy names the condition, often the address of this host".into(),
            ),
            _ => (
                format!("tenant {tenant} gives no token to {identity}"),
                "look the AADSTS code up at https://login.microsoftonline.com/error, and in the sign-in log of the application".into(),
            ),
        };
        Error::new(Class::Denied(Denied::Forbidden), cause, next)
    }
}

/// The number after `AADSTS`.
fn code_in(description: &str) -> Option<u32> {
    let (_, rest) = description.split_once("AADSTS")?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    rest[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_in_the_text() {
        assert_eq!(code_in("AADSTS7000222: The keys"), Some(7_000_222));
        assert_eq!(code_in("x AADSTS50: y"), Some(50));
        for none in ["", "AADSTS", "AADSTS: 50", "AADSTS99999999999"] {
            assert_eq!(code_in(none), None, "{none:?}");
        }
    }
}
