//! What the service says, in terms of the closed set of failures.
//!
//! `error.status` is one of gRPC's codes. What it leaves open is told by the
//! `reason` of its details, and at last by the text.

use std::time::Duration;

use serde::Deserialize;

use super::settings::KeyName;
use super::state::State;
use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Reply};
use crate::kms::{Class, Denied, Error};

/// What was asked, and whom: for messages.
pub(super) struct Question<'q> {
    pub endpoint: &'q BaseUrl,
    pub key: &'q KeyName,
    pub verb: Verb,
}

/// What was to be done with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Encrypt,
    Decrypt,
}

impl Verb {
    /// The part of a sentence.
    fn phrase(self) -> &'static str {
        match self {
            Verb::Get => "look at",
            Verb::Encrypt => "encrypt with",
            Verb::Decrypt => "decrypt with",
        }
    }
}

/// A request that did not succeed.
#[derive(Debug)]
pub(super) enum Fault {
    Failed(Failed),
    /// The token is not taken. Another one may be.
    Unauthenticated(Error),
    /// The state of a version is why, as far as that is told.
    State(Error, Precondition),
}

/// Which version is in which state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Precondition {
    pub version: Option<u64>,
    pub state: Option<State>,
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        Fault::Failed(failed)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Failed(error.into())
    }
}

/// An error body (google.rpc.Status, as JSON has it).
#[derive(Debug, Default)]
pub(super) struct Told {
    status: String,
    pub message: String,
    /// google.rpc.ErrorInfo.
    reason: String,
    permission: String,
    consumer: String,
    /// google.rpc.RetryInfo.
    retry: Option<Duration>,
    /// The types of the violations of google.rpc.PreconditionFailure.
    violations: Vec<String>,
}

#[derive(Deserialize)]
struct Body {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    details: Vec<Detail>,
}

/// Any of the kinds of details.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    reason: String,
    metadata: Metadata,
    retry_delay: String,
    violations: Vec<Violation>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    permission: String,
    consumer: String,
}

#[derive(Deserialize)]
struct Violation {
    #[serde(default, rename = "type")]
    kind: String,
}

impl Told {
    /// What stands in an error body, if it is one.
    pub(super) fn of(body: &[u8]) -> Option<Self> {
        let Body { error } = serde_json::from_slice(body).ok()?;
        let mut told = Told {
            status: error.status,
            message: error.message,
            ..Told::default()
        };
        for detail in error.details {
            let Metadata {
                permission,
                consumer,
            } = detail.metadata;
            for (place, found) in [
                (&mut told.reason, detail.reason),
                (&mut told.permission, permission),
                (&mut told.consumer, consumer),
            ] {
                if place.is_empty() {
                    *place = found;
                }
            }
            told.retry = told.retry.or(seconds(&detail.retry_delay));
            let kinds = detail.violations.into_iter().map(|one| one.kind);
            told.violations.extend(kinds);
        }
        Some(told)
    }

    /// The version that a failed precondition is about, and its state.
    fn precondition(&self, key: &KeyName) -> Precondition {
        let text = self
            .message
            .split_once(" is not enabled, current state is: ");
        let by_text = text.and_then(|(_, state)| State::of(state.trim_end_matches('.')));
        let by_kind = |kind: &String| State::of(kind.strip_prefix("KEY_")?);
        Precondition {
            version: text.and_then(|(name, _)| key.version_of(name)),
            state: by_text.or_else(|| self.violations.iter().find_map(by_kind)),
        }
    }
}

/// A duration as JSON has it (google.protobuf.Duration): `3.5s`.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The answer as a failure.
pub(super) fn refusal(question: &Question<'_>, reply: &Reply) -> Fault {
    let told = Told::of(&reply.body);
    // Who is in between denies nothing.
    let Some(told) = told else {
        return foreign(question, reply).into();
    };
    if reply.status == 401 {
        return Fault::Unauthenticated(unauthenticated(question, &told.message));
    }
    let error = match of_the_project(question, &told) {
        Some(error) => error,
        None if told.status == "FAILED_PRECONDITION" => {
            let found = told.precondition(question.key);
            let error = unusable(question.key, found).with_words(&told.message);
            return Fault::State(error, found);
        }
        None => explain(question, reply, &told),
    };
    error.with_words(&told.message).into()
}

fn unusable(key: &KeyName, found: Precondition) -> Error {
    match found.state {
        // A state that lets it be used is one that has just changed.
        Some(state) if !state.is_usable() => state.refusal(key, found.version, None),
        _ => Error::new(
            Class::Unreachable,
            format!("{key} cannot be used now"),
            "if it was just enabled, wait a moment; if an external key manager holds it, see how that is",
        ),
    }
}

fn unauthenticated(question: &Question<'_>, words: &str) -> Error {
    Error::new(
        Class::Denied(Denied::Forbidden),
        format!(
            "{} does not take the token of this host, nor a new one",
            question.endpoint
        ),
        "see that the service account exists and is enabled, and that the clock of this host is right; `sealblk doctor` shows which identity is used",
    )
    .with_words(words)
}

/// An answer that the service itself did not give.
fn foreign(question: &Question<'_>, reply: &Reply) -> Error {
    let Question { endpoint, .. } = question;
    let status = reply.status;
    match status {
        429 => Error::new(
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{endpoint} is throttling this host"),
            "wait; if it goes on, see what is between this host and the service",
        ),
        500..600 => Error::new(
            Class::Unreachable,
            format!("{endpoint} cannot answer now (status {status})"),
            "see what is between this host and the service, and https://status.cloud.google.com",
        ),
        _ => Error::new(
            Class::Protocol,
            format!("{endpoint} answers with status {status}, and not as Cloud KMS does"),
            "check that the endpoint is one of Cloud KMS, and what is in between",
        ),
    }
}

fn explain(question: &Question<'_>, reply: &Reply, told: &Told) -> Error {
    let Question {
        endpoint,
        key,
        verb,
    } = question;
    let says = |text: &str| told.message.contains(text);
    match told.status.as_str() {
        "PERMISSION_DENIED" => forbidden(question, told),
        "NOT_FOUND" => Error::new(
            Class::NotFound,
            format!("{endpoint} has no {key}, or not that version of it"),
            "check project, location, key ring, key and version in the configuration: gcloud kms keys list --keyring=RING --location=LOCATION --project=PROJECT",
        ),
        "RESOURCE_EXHAUSTED" => Error::new(
            Class::Throttled {
                retry_after: told.retry.or(reply.retry_after),
            },
            format!("{endpoint} is throttling this project"),
            "have the quota of Cloud KMS raised (cryptographic requests per minute), or use hierarchy = \"group\", which needs fewer calls",
        ),
        // Damaged on the way: https://cloud.google.com/kms/docs/data-integrity-guidelines
        "INVALID_ARGUMENT" if says("checksum") || says("crc32c") => Error::new(
            Class::Unreachable,
            format!("what was sent to {endpoint} was changed on the way"),
            "if it happens again, find out what is between this host and the service",
        ),
        "INVALID_ARGUMENT"
            if *verb == Verb::Decrypt && (says("Decryption failed") || says("ciphertext")) =>
        {
            Error::new(
                Class::BadKey,
                format!(
                    "{key} does not open the wrapped key: it was tampered with, or belongs to another volume"
                ),
                "restore the volume's header from a backup, and find out who changed it",
            )
        }
        "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "INTERNAL" | "ABORTED" | "CANCELLED" | "UNKNOWN" => {
            Error::new(
                Class::Unreachable,
                format!("{endpoint} cannot answer now ({})", told.status),
                "wait, and see https://status.cloud.google.com; with an external key manager, see how that is",
            )
        }
        _ if reply.status == 429 || reply.status >= 500 => foreign(question, reply),
        status => Error::new(
            Class::Protocol,
            format!(
                "{endpoint} refuses to {} {key} ({status:.40})",
                verb.phrase()
            ),
            "check that the key has the purpose ENCRYPT_DECRYPT, and that the endpoint is one of Cloud KMS for its location",
        ),
    }
}

/// What is wrong with the project or the network, whatever the key.
fn of_the_project(question: &Question<'_>, told: &Told) -> Option<Error> {
    let Question { endpoint, key, .. } = question;
    let says = |text: &str| told.message.contains(text);
    let [project, ..] = key.parts();
    let violated = told
        .violations
        .iter()
        .any(|kind| kind == "VPC_SERVICE_CONTROLS");
    let (cause, next) = match told.reason.as_str() {
        "SERVICE_DISABLED" => service_disabled(told, project),
        // As older answers say it, with FAILED_PRECONDITION.
        _ if says("has not been used in") && says("or it is disabled") => {
            service_disabled(told, project)
        }
        "BILLING_DISABLED" => (
            format!("billing is disabled for project {project}, so its keys cannot be used"),
            format!("have billing enabled: gcloud billing projects link {project} --billing-account=ACCOUNT"),
        ),
        _ if violated || says("vpcServiceControlsUniqueIdentifier") => (
            format!("a service perimeter (VPC Service Controls) keeps this host from {key}"),
            "have an ingress rule made for this identity and network; the identifier that it said finds the denial in the audit log".into(),
        ),
        "SECURITY_POLICY_VIOLATED" | "ORG_RESTRICTION_VIOLATION" | "LOCATION_POLICY_VIOLATED" => (
            format!("a policy of the organization keeps this host from {key}"),
            "have the policies of the organization checked, with the reason that it said".into(),
        ),
        "ACCESS_TOKEN_SCOPE_INSUFFICIENT" => (
            format!("the token of this host is not for Cloud KMS, so {endpoint} does not look at its rights"),
            "give the machine the access scope cloud-platform: stop it, then gcloud compute instances set-service-account VM --scopes=cloud-platform".into(),
        ),
        _ => return None,
    };
    Some(Error::new(Class::Denied(Denied::Forbidden), cause, next))
}

fn service_disabled(told: &Told, project: &str) -> (String, String) {
    // Where they differ, the API is off in the project of the caller.
    let consumer = told.consumer.strip_prefix("projects/").unwrap_or(project);
    (
        format!("the Cloud KMS API is not enabled in project {consumer:.100}"),
        format!("gcloud services enable cloudkms.googleapis.com --project={consumer:.100}"),
    )
}

/// The text that names the missing permission.
const PERMISSION: &str = "Permission '";

fn forbidden(question: &Question<'_>, told: &Told) -> Error {
    let Question {
        endpoint,
        key,
        verb,
    } = question;
    let quoted = told.message.split_once(PERMISSION);
    let quoted = quoted.and_then(|(_, rest)| Some(rest.split_once('\'')?.0));
    let permission = match quoted {
        Some(quoted) => quoted,
        None if !told.permission.is_empty() => &told.permission,
        None => match verb {
            Verb::Get => "cloudkms.cryptoKeys.get",
            Verb::Encrypt => "cloudkms.cryptoKeyVersions.useToEncrypt",
            Verb::Decrypt => "cloudkms.cryptoKeyVersions.useToDecrypt",
        },
    };
    Error::new(
        Class::Denied(Denied::Forbidden),
        format!(
            "{endpoint} does not let this host {} {key}, or there is no such key",
            verb.phrase()
        ),
        format!(
            "check the name of the key, and have the identity of this host given {permission:.100}: docs/kms/gcp-kms.md lists what it needs"
        ),
    )
}
