//! What KMS says, in terms of the closed set of failures.
//!
//! The name of the failure stands in `__type`, with a namespace before `#` as
//! the case may be; the status tells little: almost all are 400.

use serde::Deserialize;

use super::region::Region;
use crate::kms::http::{BaseUrl, Reply};
use crate::kms::{Class, Denied, Error};
use crate::timestamp::Timestamp;

/// What was asked, and whom: for messages.
#[derive(Clone, Copy)]
pub(super) struct Question<'q> {
    pub endpoint: &'q BaseUrl,
    pub region: &'q Region,
    /// Such as `Encrypt`.
    pub operation: &'static str,
    /// As it was named to the service.
    pub key: &'q str,
}

/// A failure as the service writes it.
#[derive(Debug, Default)]
pub(super) struct Fault {
    /// Without the namespace.
    pub code: String,
    pub message: String,
}

/// The failure in an answer. `None` if it is none of the service's.
pub(super) fn fault(reply: &Reply) -> Option<Fault> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(rename = "__type")]
        kind: Option<String>,
        // Some have the one, and some the other.
        #[serde(alias = "Message")]
        message: Option<String>,
    }
    if (200..300).contains(&reply.status) {
        return None;
    }
    let body: Body = serde_json::from_slice(&reply.body).ok()?;
    let header = reply.headers.get("x-amzn-errortype");
    let header = || header?.to_str().ok().map(str::to_owned);
    let kind = body.kind.or_else(header)?;
    // `com.amazonaws.kms#DisabledException:http://…`: only its middle is the name.
    let name = kind.rsplit_once('#').map_or(&*kind, |(_, name)| name);
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    Some(Fault {
        code: name.into(),
        message: body.message.unwrap_or_default(),
    })
}

/// Whether the service does not take the credentials, so that others may help.
pub(super) fn wants_other_credentials(fault: &Fault) -> bool {
    matches!(
        &*fault.code,
        "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidClientTokenIdException"
    ) || (is_signature(&fault.code) && !is_clock(fault))
}

fn is_signature(code: &str) -> bool {
    matches!(code, "InvalidSignatureException" | "SignatureDoesNotMatch")
}

/// Whether the time of the signature is what is wrong with it.
pub(super) fn is_clock(fault: &Fault) -> bool {
    let says = |text: &str| fault.message.contains(text);
    matches!(&*fault.code, "RequestTimeTooSkewed" | "RequestExpired")
        || (is_signature(&fault.code)
            && (says("Signature expired") || says("Signature not yet current")))
}

/// The answer as a failure.
pub(super) fn refusal(question: &Question<'_>, reply: &Reply) -> Error {
    let Some(fault) = fault(reply) else {
        return of_something_else(question, reply);
    };
    let (class, cause, next) = classify(question, reply, &fault);
    let words = match fault.message.is_empty() {
        true => fault.code,
        false => format!("{}: {}", fault.code, fault.message),
    };
    Error::new(class, cause, next).with_words(&words)
}

/// Not in the service's own form: of what is in between, as a rule.
fn of_something_else(question: &Question<'_>, reply: &Reply) -> Error {
    let Question {
        endpoint,
        operation,
        ..
    } = question;
    let status = reply.status;
    match status {
        429 => Error::new(
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{endpoint} is throttling this host"),
            "wait, or have the request quota of the account raised",
        ),
        300..400 | 500..600 => Error::new(
            Class::Unreachable,
            format!("{endpoint} cannot answer now (status {status})"),
            "see the health dashboard of AWS, and what is between this host and KMS",
        ),
        _ => Error::new(
            Class::Protocol,
            format!("{endpoint} answers {operation} with status {status}, and not as AWS KMS does"),
            "check that the endpoint is that of AWS KMS, and what is in between",
        ),
    }
}

/// The state of a key, as far as an error tells it. DescribeKey tells more.
fn of_state(message: &str) -> (Denied, bool) {
    match message.contains("pending deletion") || message.contains("PendingDeletion") {
        true => (Denied::Deleted, true),
        false => (Denied::Disabled, false),
    }
}

/// How a key is brought back that is to be deleted.
pub(super) fn cancel_deletion(region: &Region, key: &str) -> String {
    format!(
        "if that was a mistake, take it back in time: aws kms cancel-key-deletion --region {region} --key-id {key}, and then aws kms enable-key"
    )
}

fn classify(question: &Question<'_>, reply: &Reply, fault: &Fault) -> (Class, String, String) {
    let Question {
        endpoint,
        region,
        operation,
        key,
    } = question;
    let forbidden = Class::Denied(Denied::Forbidden);
    let says = |text: &str| fault.message.contains(text);
    if is_clock(fault) {
        // The host cannot ask; nobody has denied it anything.
        return (
            Class::Unreachable,
            format!(
                "the clock of this host is not that of AWS KMS{}: signatures are good for five minutes",
                apart(reply.date)
            ),
            "set the clock of this host, and keep it right (chrony, systemd-timesyncd)".into(),
        );
    }
    match &*fault.code {
        "NotFoundException" => (
            Class::NotFound,
            format!("AWS KMS has no key {key} in {region}"),
            "check key, region and account in the key set; a multi-Region key has to be replicated to each region".into(),
        ),
        "InvalidArnException" | "InvalidAliasNameException" => (
            Class::NotFound,
            format!("AWS KMS does not take {key} for the name of a key"),
            "check key in the key set".into(),
        ),
        "DisabledException" => (
            Class::Denied(Denied::Disabled),
            format!("key {key} is disabled"),
            format!("have it enabled: aws kms enable-key --region {region} --key-id {key}"),
        ),
        "KMSInvalidStateException" => match of_state(&fault.message) {
            (denied, true) => (
                Class::Denied(denied),
                format!("key {key} is to be deleted"),
                cancel_deletion(region, key),
            ),
            (denied, false) => (
                Class::Denied(denied),
                format!("key {key} is not in a state in which it can be used"),
                format!("see which one: aws kms describe-key --region {region} --key-id {key}"),
            ),
        },
        "AccessDeniedException" | "AccessDenied" => (
            forbidden,
            format!("AWS KMS does not permit this identity kms:{operation} with {key}"),
            if says("explicit deny") {
                "find the policy that denies it (of the key, the identity, the organization, or the VPC endpoint): docs/kms/aws-kms.md lists what has to be allowed, and with which encryption context"
            } else {
                "allow it in the key's policy and that of the identity: docs/kms/aws-kms.md lists what has to be allowed, and with which encryption context"
            }
            .into(),
        ),
        "ExpiredTokenException" | "ExpiredToken" => (
            forbidden,
            "the session of this host's credentials has ended, and the same ones are all that is to be had".into(),
            "renew them where they come from".into(),
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidClientTokenIdException"
        | "NotAuthorizedException"
        | "OptInRequired" => (
            forbidden,
            "AWS does not know the access key of this host, or it is not an active one".into(),
            format!("check the credentials, and that they are of the partition {}: aws sts get-caller-identity", region.partition()),
        ),
        "InvalidSignatureException" | "SignatureDoesNotMatch" => (
            forbidden,
            "the secret access key does not go with the access key".into(),
            "put the secret key there that was given out with the access key, or make a new pair".into(),
        ),
        "IncompleteSignature" | "IncompleteSignatureException" | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken" => (
            Class::Protocol,
            format!("the signature of a request did not reach {endpoint} whole"),
            "check what is between this host and KMS and changes headers".into(),
        ),
        "InvalidCiphertextException" | "IncorrectKeyException" => (
            Class::BadKey,
            format!("key {key} does not open the wrapped key: it was tampered with, or belongs to another volume"),
            "restore the volume's header from a backup, and find out who changed it".into(),
        ),
        "ThrottlingException" | "Throttling" | "LimitExceededException"
        | "RequestLimitExceeded" | "TooManyRequestsException" => (
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("AWS KMS is throttling this account in {region}"),
            "have the request quota raised (Service Quotas), or use hierarchy = \"group\", which needs fewer calls".into(),
        ),
        "KMSInternalException" | "DependencyTimeoutException" | "KeyUnavailableException"
        | "ServiceUnavailableException" | "ServiceUnavailable" | "InternalFailure"
        | "InternalServerError" => (
            Class::Unreachable,
            format!("AWS KMS cannot use key {key} in {region} now"),
            "it may pass by itself; see the health dashboard of AWS, and the key store of the key if it has one of its own".into(),
        ),
        code if code.starts_with("CloudHsmCluster")
            || code.starts_with("CustomKeyStore")
            || code.starts_with("Xks") =>
        (
            Class::Sealed,
            format!("the key store that key {key} is in cannot be used"),
            "see its state, and connect it: aws kms describe-custom-key-stores, aws kms connect-custom-key-store".into(),
        ),
        "InvalidKeyUsageException" | "UnsupportedOperationException" => (
            Class::Protocol,
            format!("key {key} is not one for symmetric encryption"),
            "make one: aws kms create-key --key-spec SYMMETRIC_DEFAULT --key-usage ENCRYPT_DECRYPT".into(),
        ),
        _ if reply.status >= 500 => (
            Class::Unreachable,
            format!("{endpoint} cannot answer now (status {})", reply.status),
            "see the health dashboard of AWS, and what is between this host and KMS".into(),
        ),
        _ => (
            Class::Protocol,
            format!("{endpoint} answers {operation} with status {}", reply.status),
            "check that the endpoint is that of AWS KMS, and what is in between".into(),
        ),
    }
}

/// How far the clocks are apart, if the service told its time.
fn apart(date: Option<Timestamp>) -> String {
    let Some(theirs) = date.map(Timestamp::to_system) else {
        return String::new();
    };
    let ours = std::time::SystemTime::now();
    let (by, side) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead"),
        Err(behind) => (behind.duration(), "behind"),
    };
    format!(" (it is {} s {side})", by.as_secs())
}

/// An answer that is a success and not what was asked for.
pub(super) fn strange(question: &Question<'_>, what: &str) -> Error {
    let Question {
        endpoint,
        operation,
        ..
    } = question;
    Error::new(
        Class::Protocol,
        format!("{endpoint} answers {operation} with {what}"),
        "check that the endpoint is that of AWS KMS, and what is in between",
    )
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderMap;
    use zeroize::Zeroizing;

    use super::*;
    use crate::error::Explain;

    fn reply(status: u16, body: &str) -> Reply {
        Reply {
            status,
            retry_after: None,
            location: None,
            date: "2020-01-01T00:00:00Z".parse().ok(),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.as_bytes().to_vec()),
        }
    }

    fn told(status: u16, body: &str) -> Error {
        let endpoint: BaseUrl = "https://kms.eu-central-1.amazonaws.com".parse().unwrap();
        let question = Question {
            endpoint: &endpoint,
            region: &"eu-central-1".parse().unwrap(),
            operation: "Decrypt",
            key: "alias/disks",
        };
        let error = refusal(&question, &reply(status, body));
        assert!(!error.help().unwrap().is_empty());
        error
    }

    fn of(code: &str, message: &str) -> Error {
        told(
            400,
            &format!(r#"{{"__type":"{code}","message":"{message}"}}"#),
        )
    }

    #[test]
    fn each_failure_has_its_class() {
        let denied = Class::Denied;
        let throttled = Class::Throttled { retry_after: None };
        for (code, class) in [
            ("NotFoundException", Class::NotFound),
            ("com.amazonaws.kms#NotFoundException", Class::NotFound),
            ("DisabledException", denied(Denied::Disabled)),
            ("KMSInvalidStateException", denied(Denied::Disabled)),
            ("AccessDeniedException", denied(Denied::Forbidden)),
            ("ExpiredTokenException", denied(Denied::Forbidden)),
            ("UnrecognizedClientException", denied(Denied::Forbidden)),
            ("InvalidSignatureException", denied(Denied::Forbidden)),
            ("IncompleteSignature", Class::Protocol),
            ("InvalidCiphertextException", Class::BadKey),
            ("IncorrectKeyException", Class::BadKey),
            ("ThrottlingException", throttled),
            ("LimitExceededException", throttled),
            ("KMSInternalException", Class::Unreachable),
            ("DependencyTimeoutException", Class::Unreachable),
            ("KeyUnavailableException", Class::Unreachable),
            ("CustomKeyStoreInvalidStateException", Class::Sealed),
            ("CloudHsmClusterNotActiveException", Class::Sealed),
            ("InvalidKeyUsageException", Class::Protocol),
            ("ValidationException", Class::Protocol),
        ] {
            let error = of(code, "in its own words");
            assert_eq!(error.class(), class, "{code}");
            let words = error.words().unwrap();
            assert!(words.ends_with("in its own words"), "{words}");
        }
        let deleted = of(
            "KMSInvalidStateException",
            "arn:aws:kms:eu-central-1:111122223333:key/1 is pending deletion.",
        );
        assert_eq!(deleted.class(), denied(Denied::Deleted));
        assert!(deleted.help().unwrap().contains("cancel-key-deletion"));
    }

    #[test]
    fn a_wrong_clock_denies_nothing() {
        for message in [
            "Signature expired: 20200101T000000Z is now earlier than 20200101T001000Z",
            "Signature not yet current: 20300101T000000Z is still later than 20200101T000000Z",
        ] {
            let error = of("InvalidSignatureException", message);
            assert_eq!(error.class(), Class::Unreachable);
            let text = error.to_string();
            assert!(
                text.contains("clock") && text.contains(" s ahead"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_of_kms_denies_nothing() {
        for (status, body, class) in [
            (403, "<html>no</html>", Class::Protocol),
            (401, "", Class::Protocol),
            (502, "bad gateway", Class::Unreachable),
            (302, "", Class::Unreachable),
            (500, "{}", Class::Unreachable),
            (503, r#"{"__type":"Whatever"}"#, Class::Unreachable),
            (429, "", Class::Throttled { retry_after: None }),
        ] {
            assert_eq!(told(status, body).class(), class, "{status} {body}");
        }
    }

    #[test]
    fn only_what_new_credentials_may_help_asks_for_them() {
        let wants = |code: &str, message: &str| {
            wants_other_credentials(&Fault {
                code: code.into(),
                message: message.into(),
            })
        };
        assert!(wants("ExpiredTokenException", ""));
        assert!(wants("UnrecognizedClientException", ""));
        assert!(wants("InvalidSignatureException", "The request signature…"));
        assert!(!wants("InvalidSignatureException", "Signature expired: …"));
        assert!(!wants("AccessDeniedException", ""));
    }
}
