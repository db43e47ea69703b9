//! What the service says, in terms of the closed set of failures.
//!
//! The status alone does not tell: most of what matters is 400 with a text.
//! The texts are those of Vault 1.x and OpenBao 2.x, which have them in
//! common; one that is not known is [`Class::Protocol`], with its words.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Reply};
use crate::kms::{Class, Denied, Error};

/// What was asked, and whom: for messages.
pub(super) struct Question<'q> {
    /// The endpoint.
    pub endpoint: &'q BaseUrl,
    /// The path below `/v1/`.
    pub path: String,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// The service's own id of the request, as it stands in its audit log.
pub(super) fn request_id(reply: &Reply) -> Option<&str> {
    #[derive(Deserialize)]
    struct Told<'t> {
        // Borrowed, and the rest passed over: it may be secret.
        #[serde(borrow)]
        request_id: Option<&'t str>,
    }
    let told: Told<'_> = serde_json::from_slice(&reply.body).ok()?;
    told.request_id
}

/// The answer in JSON, if it is a success.
pub(super) fn parse<T: DeserializeOwned>(
    question: &Question<'_>,
    reply: &Reply,
) -> Result<T, Failed> {
    if !(200..300).contains(&reply.status) {
        return Err(Failed::Here(refusal(question, reply)));
    }
    // The error would quote what it stumbles on, which may be a secret.
    serde_json::from_slice(&reply.body).map_err(|error| {
        Failed::Here(Error::new(
            Class::Protocol,
            format!(
                "{} answers {} with something else than was asked for (line {}, column {})",
                question.endpoint,
                question.path,
                error.line(),
                error.column()
            ),
            "check that the endpoint is that of Vault or OpenBao, and the mount that of a transit engine",
        ))
    })
}

/// Whether a failure is in the service's own form. What is in between has others.
pub(super) fn is_own(reply: &Reply) -> bool {
    #[derive(Deserialize)]
    struct Own {
        #[serde(rename = "errors")]
        _errors: Vec<IgnoredAny>,
    }
    serde_json::from_slice::<Own>(&reply.body).is_ok()
}

/// A status that means something of the service, from somebody else.
pub(super) fn foreign(question: &Question<'_>, reply: &Reply) -> Error {
    let Question { endpoint, path } = question;
    Error::new(
        Class::Protocol,
        format!(
            "{endpoint} answers {path} with status {}, and not as Vault or OpenBao does",
            reply.status
        ),
        "check that the endpoint is that of Vault or OpenBao, and what is in between",
    )
}

/// The answer as a failure.
pub(super) fn refusal(question: &Question<'_>, reply: &Reply) -> Error {
    let words = match serde_json::from_slice::<Errors>(&reply.body) {
        Ok(errors) => errors.errors.join("; "),
        // Of a proxy in between, for example. It may be a page of HTML.
        Err(_) => String::new(),
    };
    // Nobody else denies anything, nor says what there is.
    if matches!(reply.status, 403 | 404) && !is_own(reply) {
        return foreign(question, reply);
    }
    let (class, cause, next) = classify(question, reply, &words);
    Error::new(class, cause, next).with_words(&words)
}

fn classify(question: &Question<'_>, reply: &Reply, words: &str) -> (Class, String, String) {
    let Question { endpoint, path } = question;
    let says = |text: &str| words.contains(text);
    let forbidden = Class::Denied(Denied::Forbidden);
    match reply.status {
        429 => (
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{endpoint} is throttling this host"),
            "have the rate limit quota raised, or use hierarchy = \"group\", which needs fewer calls".into(),
        ),
        503 if says("sealed") => (
            Class::Sealed,
            format!("{endpoint} is sealed"),
            "have its operators unseal it; then this works by itself".into(),
        ),
        300..400 => (
            Class::Unreachable,
            match &reply.location {
                Some(location) => format!("{endpoint} is on standby and points to {:?}, which is not followed", host_of(location)),
                None => format!("{endpoint} is on standby"),
            },
            "name the active node in endpoints too, or let standby nodes forward requests".into(),
        ),
        472 | 473 => (
            Class::Unreachable,
            format!("{endpoint} is a standby of another cluster"),
            "name a node of the active cluster in endpoints too".into(),
        ),
        // 412: a replica that is behind.
        412 | 500..600 => (
            Class::Unreachable,
            format!("{endpoint} cannot answer now (status {})", reply.status),
            "see what the service and the load balancers before it log".into(),
        ),
        403 => (
            forbidden,
            format!("{endpoint} does not permit {path}"),
            "have the policy of this identity checked: docs/kms/vault.md lists what it must permit".into(),
        ),
        404 if says("namespace not found") => (
            Class::NotFound,
            format!("{endpoint} has no such namespace"),
            "check namespace in the configuration".into(),
        ),
        404 if says("no handler for route") => (
            Class::NotFound,
            format!("nothing is mounted at {path} of {endpoint}"),
            "check mount and namespace in the configuration".into(),
        ),
        404 => (
            Class::NotFound,
            format!("{endpoint} has no {path}"),
            "check the name of the key, the mount and the namespace in the configuration".into(),
        ),
        400 if says("encryption key not found") => (
            Class::NotFound,
            format!("{endpoint} has no key for {path}"),
            "check the name of the key, the mount and the namespace in the configuration".into(),
        ),
        400 if says("soft-deleted key") => (
            Class::Denied(Denied::Deleted),
            format!("the key of {path} has been deleted, and can be restored still"),
            "have it restored: bao write -f MOUNT/keys/KEY/soft-delete-restore".into(),
        ),
        400 if says("disallowed by policy (too old)") => (
            Class::Denied(Denied::Disabled),
            format!("the key version is below the minimum that is set for {path}"),
            "have min_decryption_version lowered, or wrap again with a newer version".into(),
        ),
        400 if says("version is too new") || says("no such key version") => (
            Class::NotFound,
            format!("{endpoint} has no such version of the key of {path}"),
            "if the key was restored from a backup, a newer one is needed".into(),
        ),
        400 if says("message authentication failed") || says("invalid ciphertext") => (
            Class::BadKey,
            format!("the key of {path} does not open the wrapped key: it was tampered with, or belongs to another volume"),
            "restore the volume's header from a backup, and find out who changed it".into(),
        ),
        400 if says("missing 'context'") => (
            Class::Protocol,
            format!("the key of {path} is a derived one, which sealblk does not use"),
            "make a key with derived=false".into(),
        ),
        status => (
            Class::Protocol,
            format!("{endpoint} answers {path} with status {status}"),
            "check that the endpoint is that of Vault or OpenBao, and the mount that of a transit engine".into(),
        ),
    }
}

/// Enough of a redirect's target to find it, and no path.
fn host_of(location: &str) -> &str {
    let rest = location
        .split_once("://")
        .map_or(location, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}
