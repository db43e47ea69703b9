//! What a plugin says, in terms of the closed set of failures.
//!
//! The API has no errors of its own: there are the codes of gRPC, of which
//! many plugins use but UNKNOWN, and texts. A text is taken for a denial only
//! where it cannot well be about the way to the service behind the plugin.

use tonic::{Code, Status};

use super::socket::Socket;
use crate::kms::{Class, Denied, Error};

/// What the plugin was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Status,
    Encrypt,
    Decrypt,
}

/// Whether a code says nothing, so that the text has to be looked at.
pub(super) fn is_vague(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Internal) && by_text(status.message()).is_none()
}

/// A call that failed.
pub(super) fn error(status: &Status, method: Method, socket: &Socket) -> Error {
    let class = class(status, method);
    let (cause, next) = told(class, method, socket);
    let code = format!("{:?}: {}", status.code(), status.message());
    Error::new(class, cause, next).with_words(&code)
}

/// A plugin that says it is not well.
pub(super) fn unhealthy(healthz: &str, socket: &Socket) -> Error {
    let class = by_text(healthz).unwrap_or(Class::Unreachable);
    let (mut cause, next) = told(class, Method::Status, socket);
    if class == Class::Unreachable {
        cause = format!("the KMS plugin at {socket} says that it cannot work");
    }
    Error::new(class, cause, next).with_words(healthz)
}

/// A plugin that answers what it must not. `what` is the end of a sentence.
pub(super) fn malformed(what: &str, socket: &Socket) -> Error {
    Error::new(
        Class::Protocol,
        format!("the KMS plugin at {socket} gives {what}"),
        "upgrade the plugin: docs/kms/k8s-kms.md has the limits of the API",
    )
}

fn class(status: &Status, method: Method) -> Class {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Class::Denied(Denied::Forbidden),
        Code::FailedPrecondition => {
            by_text(status.message()).unwrap_or(Class::Denied(Denied::Disabled))
        }
        Code::NotFound => Class::NotFound,
        Code::ResourceExhausted => Class::Throttled { retry_after: None },
        Code::InvalidArgument | Code::DataLoss if method == Method::Decrypt => Class::BadKey,
        Code::Unknown | Code::Internal => by_text(status.message()).unwrap_or(Class::Unreachable),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => {
            Class::Unreachable
        }
        _ => Class::Protocol,
    }
}

/// What a text is about, if that is plain.
fn by_text(text: &str) -> Option<Class> {
    let text = text.to_ascii_lowercase();
    let says = |any: &[&str]| any.iter().any(|word| text.contains(word));
    // About the way to a service, whatever else is said.
    if says(&[
        "timeout",
        "timed out",
        "deadline exceeded",
        "connection",
        "dial ",
        "no such host",
        "unreachable",
        "unavailable",
        "tls",
        "certificate",
    ]) {
        return Some(Class::Unreachable);
    }
    if says(&["throttl", "rate limit", "too many requests"]) {
        return Some(Class::Throttled { retry_after: None });
    }
    if says(&["sealed"]) {
        return Some(Class::Sealed);
    }
    if says(&["disabled"]) {
        return Some(Class::Denied(Denied::Disabled));
    }
    if says(&[
        "pending deletion",
        "pendingdeletion",
        "was deleted",
        "been deleted",
        "destroyed",
    ]) {
        return Some(Class::Denied(Denied::Deleted));
    }
    if says(&[
        "permission denied",
        "access denied",
        "accessdenied",
        "forbidden",
        "unauthorized",
        "not authorized",
    ]) {
        return Some(Class::Denied(Denied::Forbidden));
    }
    if says(&[
        "key not found",
        "keynotfound",
        "no such key",
        "notfoundexception",
    ]) {
        return Some(Class::NotFound);
    }
    None
}

fn told(class: Class, method: Method, socket: &Socket) -> (String, &'static str) {
    let plugin = format!("the KMS plugin at {socket}");
    match class {
        Class::Denied(Denied::Disabled) => (
            format!("{plugin} says that the key is disabled"),
            "have the key enabled at the service behind the plugin",
        ),
        Class::Denied(Denied::Deleted) => (
            format!("{plugin} says that the key was deleted"),
            "have the key restored at the service behind the plugin",
        ),
        Class::Denied(_) => (
            format!("{plugin} may not use the key"),
            "have the permissions of the plugin checked at the service behind it",
        ),
        Class::NotFound => (
            format!("{plugin} does not find the key"),
            "check which key the plugin is configured with; the key may have been deleted",
        ),
        Class::Throttled { .. } => (
            format!("{plugin} is throttled"),
            "have the rate limit of the service behind it raised, or use hierarchy = \"group\", which needs fewer calls",
        ),
        Class::Sealed => (
            format!("{plugin} says that the service behind it is sealed"),
            "have its operators unseal it; then this works by itself",
        ),
        Class::BadKey => (
            format!(
                "{plugin} does not open the wrapped key: it was tampered with, or belongs to another volume"
            ),
            "restore the volume's header from a backup, and find out who changed it",
        ),
        Class::Unreachable => (
            format!("{plugin} failed to do {method:?}"),
            "see what the plugin logs",
        ),
        Class::Protocol => (
            format!("{plugin} does not do {method:?} as it is needed"),
            "check that it is a plugin of the Kubernetes KMS API v2, and see what it logs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_class() {
        use Method::*;
        let forbidden = Class::Denied(Denied::Forbidden);
        let socket = Socket::new("/run/kms.sock".into(), None);
        for (code, text, method, class) in [
            (Code::PermissionDenied, "", Encrypt, forbidden),
            (Code::Unauthenticated, "", Encrypt, forbidden),
            (
                Code::FailedPrecondition,
                "",
                Decrypt,
                Class::Denied(Denied::Disabled),
            ),
            (
                Code::FailedPrecondition,
                "Vault is sealed",
                Decrypt,
                Class::Sealed,
            ),
            (Code::NotFound, "", Decrypt, Class::NotFound),
            (
                Code::ResourceExhausted,
                "",
                Encrypt,
                Class::Throttled { retry_after: None },
            ),
            (Code::InvalidArgument, "", Decrypt, Class::BadKey),
            (Code::InvalidArgument, "", Encrypt, Class::Protocol),
            (Code::DataLoss, "", Decrypt, Class::BadKey),
            (Code::Unavailable, "", Encrypt, Class::Unreachable),
            (Code::DeadlineExceeded, "", Encrypt, Class::Unreachable),
            (Code::Unimplemented, "", Status, Class::Protocol),
            (Code::OutOfRange, "", Encrypt, Class::Protocol),
            (Code::Unknown, "", Decrypt, Class::Unreachable),
            (
                Code::Unknown,
                "something went wrong",
                Decrypt,
                Class::Unreachable,
            ),
            (
                Code::Unknown,
                "KMS: AccessDeniedException: no",
                Decrypt,
                forbidden,
            ),
            (
                Code::Internal,
                "key is disabled",
                Decrypt,
                Class::Denied(Denied::Disabled),
            ),
            (
                Code::Unknown,
                "key is pending deletion",
                Decrypt,
                Class::Denied(Denied::Deleted),
            ),
            (
                Code::Unknown,
                "ThrottlingException",
                Decrypt,
                Class::Throttled { retry_after: None },
            ),
            (Code::Unknown, "Key not found", Decrypt, Class::NotFound),
            (
                Code::Unknown,
                "dial tcp: permission denied",
                Decrypt,
                Class::Unreachable,
            ),
            (
                Code::Unknown,
                "connection to forbidden.example refused",
                Decrypt,
                Class::Unreachable,
            ),
        ] {
            let status = tonic::Status::new(code, text);
            let error = error(&status, method, &socket);
            assert_eq!(error.class(), class, "{code:?} {text:?} {method:?}");
            assert!(error.to_string().contains("/run/kms.sock"), "{error}");
        }
    }
}
