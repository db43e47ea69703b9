//! Why a source of credentials has none, in terms of the closed set of failures.

use std::error::Error as StdError;

use reqsign_core::ErrorKind;

use super::settings::Source;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Denied, Error};

/// The failure of `source`, of which the library says `error`; `file` is what
/// was wrong with a file that it read.
pub(super) fn of_source(
    source: &Source,
    file: Option<Error>,
    error: &reqsign_core::Error,
) -> Failed {
    if let Some(file) = file {
        return Failed::Everywhere(file);
    }
    // Another region has another STS; a metadata service is the same for all.
    let elsewhere = matches!(source, Source::WebIdentity { .. });
    let told = |error| match elsewhere {
        true => Failed::Here(error),
        false => Failed::Everywhere(error),
    };
    let mut inner: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = inner {
        if let Some(own) = cause.downcast_ref::<Error>() {
            let cause = format!("{}: {own}", no_credentials(source));
            return told(own.clone().with_cause(cause));
        }
        inner = cause.source();
    }
    let (class, cause, next, kind) = classify(source, error);
    let made = Error::new(class, format!("{}: {cause}", no_credentials(source)), next);
    let made = match kind {
        Some(kind) => made.with_kind(kind),
        None => made,
    };
    told(made.with_words(words_of(source, &error.to_string())))
}

/// What the library says of it. Behind a colon that quotes the answer, which of a
/// service that gives out credentials may be one.
fn words_of<'e>(source: &Source, error: &'e str) -> &'e str {
    match source {
        Source::Instance { .. } | Source::Container { .. } => {
            error.split_once(':').map_or(error, |(cause, _)| cause)
        }
        _ => error,
    }
}

fn no_credentials(source: &Source) -> String {
    format!("no credentials of source {:?}", source.name())
}

fn classify(
    source: &Source,
    error: &reqsign_core::Error,
) -> (Class, &'static str, &'static str, Option<Kind>) {
    // STS is known by its certificate. A metadata service is not, and what it
    // says is about this host: it denies nothing.
    let sts = matches!(source, Source::WebIdentity { .. });
    match error.kind() {
        ErrorKind::RateLimited => (
            Class::Throttled { retry_after: None },
            "STS is throttling this account",
            "wait, and see who else asks it so often",
            None,
        ),
        ErrorKind::PermissionDenied | ErrorKind::CredentialInvalid if sts => (
            Class::Denied(Denied::Forbidden),
            "STS does not let this host have the role",
            "check the role's trust policy (issuer, audience and subject of the token), and that the token in the file is a current one",
            None,
        ),
        ErrorKind::ConfigInvalid | ErrorKind::RequestInvalid if sts => (
            Class::Denied(Denied::Forbidden),
            "STS does not accept the request for the role",
            "check the ARN of the role, and the token file",
            None,
        ),
        ErrorKind::ConfigInvalid if matches!(source, Source::Profile { .. }) => (
            Class::Unreachable,
            "a file of profiles is not as it should be",
            "correct ~/.aws/credentials or ~/.aws/config, or the files that are configured in their place",
            Some(Kind::Usage),
        ),
        ErrorKind::ConfigInvalid if matches!(source, Source::Instance { .. }) => (
            Class::Unreachable,
            "the metadata service has none",
            "attach a role to the instance (an instance profile), or choose another source in the key set",
            Some(Kind::NotFound),
        ),
        _ => match source {
            Source::Instance { .. } => (
                Class::Unreachable,
                "the metadata service gives out none",
                "check that the instance has a role whose trust policy names ec2.amazonaws.com, and that its metadata service is on",
                None,
            ),
            Source::Container { .. } => (
                Class::Unreachable,
                "the endpoint for containers gives out none",
                "check the role of the task or of the service account, and the token that is shown",
                None,
            ),
            _ => (
                Class::Unreachable,
                "they cannot be had now",
                "see what the service logs, and what is in between",
                None,
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_metadata_service_answers_is_not_quoted() {
        let denied = "IMDS access denied: a-token-of-this-session";
        for source in [
            Source::Instance { endpoint: None },
            Source::Container {
                endpoint: None,
                token: None,
            },
        ] {
            assert_eq!(words_of(&source, denied), "IMDS access denied");
            assert_eq!(words_of(&source, "cannot be reached"), "cannot be reached");
        }
        assert_eq!(words_of(&Source::Environment, "no: key"), "no: key");
    }
}
