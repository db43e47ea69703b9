//! Why no token was given out, in terms of the closed set of failures.
//!
//! The metadata server is asked without TLS, so nothing that it says is a
//! denial. Neither is what is this host's own matter: its clock, or a subject
//! token that nobody renewed.

use std::time::SystemTime;

use serde::Deserialize;

use super::answer::Told;
use super::credentials::{Federated, ServiceAccount, Source, Subject};
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::echo;
use crate::kms::http::{BaseUrl, Reply};
use crate::kms::{Class, Denied, Error};

/// What was to be had.
pub(super) enum Asked<'a> {
    /// A token for the key of a service account.
    Account(&'a ServiceAccount),
    /// One for a token of another provider.
    Federation(&'a Federated),
    /// One of a service account, for that.
    Impersonation,
}

/// An OAuth error (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct OAuth {
    error: String,
    #[serde(default)]
    error_description: String,
}

const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

/// What a token endpoint, which TLS has shown to be the right one, says.
/// `secret` is what it was sent: its answer is not shown if it quotes that.
pub(super) fn by_token_service(
    url: &BaseUrl,
    asked: &Asked<'_>,
    reply: &Reply,
    secret: &str,
) -> Error {
    let (code, words) = match serde_json::from_slice::<OAuth>(&reply.body) {
        Ok(told) => (told.error, told.error_description),
        Err(_) => (
            String::new(),
            Told::of(&reply.body).map_or(String::new(), |told| told.message),
        ),
    };
    let said = match (code.is_empty(), words.is_empty()) {
        (false, false) => format!("{code}: {words}"),
        (false, true) => code.clone(),
        _ => words.clone(),
    };
    let error = match reply.status {
        429 => Error::new(
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{url} gives this host no token: too many were asked for"),
            "wait; a token is kept for an hour, so see who else asks",
        ),
        500..600 => Error::new(
            Class::Unreachable,
            format!("{url} cannot give tokens now (status {})", reply.status),
            "wait, and see https://status.cloud.google.com",
        ),
        400 | 401 | 403 | 404 if !said.is_empty() => match asked {
            Asked::Account(account) => account_refused(url, account, reply, &said),
            Asked::Federation(federated) => federation_refused(url, federated, &code, &words),
            Asked::Impersonation => Error::new(
                FORBIDDEN,
                format!(
                    "the federated identity of this host may not take the place of the service account of {url}"
                ),
                "see that the service account exists and is enabled, and grant it: gcloud iam service-accounts add-iam-policy-binding ACCOUNT --role=roles/iam.workloadIdentityUser --member=principalSet://…",
            ),
        },
        status => Error::new(
            Class::Protocol,
            format!("{url} answers with status {status}, and not as a token service does"),
            "check the addresses in the credentials file, and what is in between",
        ),
    };
    match echo::quotes(&said, secret) {
        true => error,
        false => error.with_words(&said),
    }
}

fn account_refused(url: &BaseUrl, account: &ServiceAccount, reply: &Reply, said: &str) -> Error {
    let email = &account.email;
    let key = account.key_id.as_deref().unwrap_or("without an id");
    let says = |text: &str| said.contains(text);
    if says("reasonable timeframe") || says("iat") || says("short-lived") {
        return Error::new(
            Class::Unreachable,
            format!("{url} does not take what this host signs: {}", clock(reply)),
            "have the clock of this host set by NTP; then this works by itself",
        )
        .with_kind(Kind::Key);
    }
    let (cause, next) = if says("Invalid JWT Signature") || says("No public key") {
        (
            format!("{url} does not know the key {key} of {email} (any more)"),
            format!(
                "see whether it was deleted: gcloud iam service-accounts keys list --iam-account={email}; if so, have a new one made, and put it into the file"
            ),
        )
    } else if says("disabled") {
        (
            format!("service account {email} is disabled"),
            format!("have it enabled: gcloud iam service-accounts enable {email}"),
        )
    } else if says("account not found") {
        (
            format!("service account {email} does not exist (any more)"),
            "have it restored within 30 days (gcloud iam service-accounts undelete), or use another identity".into(),
        )
    } else {
        (
            format!("{url} gives no token to service account {email}"),
            "see that the account exists and is enabled, and that the key in the file is its key"
                .into(),
        )
    };
    Error::new(FORBIDDEN, cause, next)
}

/// How far apart the clocks are, as far as it can be told.
fn clock(reply: &Reply) -> String {
    let Some(there) = reply.date else {
        return "the clock of this host is wrong".into();
    };
    match SystemTime::now().duration_since(there.to_system()) {
        Ok(ahead) => format!(
            "the clock of this host is {} seconds ahead of its own",
            ahead.as_secs()
        ),
        Err(behind) => format!(
            "the clock of this host is {} seconds behind its own",
            behind.duration().as_secs()
        ),
    }
}

fn federation_refused(url: &BaseUrl, federated: &Federated, code: &str, words: &str) -> Error {
    let audience = &federated.audience;
    let says = |text: &str| words.contains(text);
    if says("stale") || says("expired") {
        return Error::new(
            Class::Unreachable,
            format!("the token of the other provider that this host shows to {url} is too old"),
            format!(
                "see that whoever renews {} still does",
                place(&federated.subject)
            ),
        )
        .with_kind(Kind::Key);
    }
    let (cause, next) = match code {
        "invalid_target" => (
            format!("there is no workload identity provider {audience}, or it is disabled"),
            "check audience in the credentials file, and the pool: gcloud iam workload-identity-pools providers list",
        ),
        "unauthorized_client" => (
            format!("a condition of the workload identity provider {audience} keeps this host out"),
            "have the attribute condition of the provider checked against the claims of this host's token",
        ),
        _ => (
            format!("{url} does not take this host's token for {audience}"),
            "check issuer, audience and signing keys of the workload identity provider against the claims of this host's token",
        ),
    };
    Error::new(FORBIDDEN, cause, next)
}

fn place(subject: &Subject) -> String {
    match &subject.source {
        Source::File(file) => file.to_string(),
        Source::Url { server, .. } => server.to_string(),
    }
}

pub(super) fn by_subject(server: &BaseUrl, reply: &Reply) -> Error {
    // Nobody vouches for who says so.
    Error::new(
        Class::Unreachable,
        format!(
            "{server} gives this host no token to be changed for one of Google (status {})",
            reply.status
        ),
        "check credential_source in the credentials file, and that this host has an identity there",
    )
}

pub(super) fn no_subject_token(subject: &Subject) -> Error {
    let field = match &subject.field {
        Some(field) => format!(" in a field {field:.60?} of JSON"),
        None => String::new(),
    };
    Error::new(
        Class::Unreachable,
        format!("there is no token{field} at {}", place(subject)),
        "check credential_source in the credentials file: \"format\" says how the token is written",
    )
    .with_kind(Kind::Usage)
}

pub(super) fn bad_header(name: &str) -> Error {
    Error::new(
        Class::Unreachable,
        format!("the credentials file has a header {name:.60?}, which cannot be sent"),
        "correct the headers of credential_source in the credentials file",
    )
    .with_kind(Kind::Usage)
}

pub(super) fn not_a_token(url: &BaseUrl) -> Error {
    Error::new(
        Class::Protocol,
        format!("{url} answers a request for a token with something else"),
        "check the addresses in the credentials file, and what is in between",
    )
}

/// Nobody is at the address of the metadata server.
pub(super) fn no_metadata_server(server: &BaseUrl, failed: Failed) -> Failed {
    match failed {
        Failed::Here(error) => Failed::Here(Error::new(
            Class::Unreachable,
            format!("there is no metadata server: {error}"),
            format!(
                "if this host is not a machine in Google's cloud, give the key set a credentials file: auth = {{ method = \"file\", credentials = \"/PATH\" }}; if it is, see what keeps it from {server}"
            ),
        )),
        other => other,
    }
}

pub(super) fn not_the_metadata_server(server: &BaseUrl, reply: &Reply) -> Error {
    Error::new(
        Class::Unreachable,
        format!(
            "what answers at {server} is not the metadata server of Google (status {}): no token of it is used",
            reply.status
        ),
        "if this host is not a machine in Google's cloud, give the key set a credentials file: auth = { method = \"file\", credentials = \"/PATH\" }",
    )
}

pub(super) fn by_metadata_server(server: &BaseUrl, account: &str, reply: &Reply) -> Error {
    let words = std::str::from_utf8(&reply.body).unwrap_or_default();
    let error = match reply.status {
        404 => Error::new(
            Class::Unreachable,
            format!(
                "this machine has no service account {account:?}, says the metadata server {server}"
            ),
            "have one attached: gcloud compute instances set-service-account VM --service-account=ACCOUNT --scopes=cloud-platform",
        ),
        429 => Error::new(
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("the metadata server {server} is throttling this machine"),
            "see who else on this machine asks it all the time",
        ),
        status => Error::new(
            Class::Unreachable,
            format!("the metadata server {server} gives no token now (status {status})"),
            "see that the service account is enabled and, in a pod, that it is bound to the workload identity; otherwise wait",
        ),
    };
    // A page of a proxy says nothing, and what is no answer to a failure is not shown.
    match words.trim_start().starts_with('<') || words.contains("token\"") {
        true => error,
        false => error.with_words(words),
    }
}
