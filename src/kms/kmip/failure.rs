//! Refusals, in the terms of every provider.

use super::numbers::{Operation, reason};
use super::protocol::Refusal;
use crate::kms::{Class, Denied, Error};

/// What an operation was about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The server.
    pub server: &'a dyn std::fmt::Display,
    /// The operation.
    pub operation: Operation,
    /// The unique identifier of the key; empty if it is about none.
    pub id: &'a str,
}

/// Whether the state of the key may be the reason: to be looked up then, as
/// the server does not say.
pub(super) fn may_be_the_state(refusal: &Refusal) -> bool {
    use reason::*;
    matches!(
        refusal,
        Refusal::Failed {
            reason: PERMISSION_DENIED
                | WRONG_KEY_LIFECYCLE_STATE
                | NOT_AUTHORISED
                | OBJECT_DESTROYED
                | ILLEGAL_OPERATION,
            ..
        }
    )
}

/// The error that `refusal` is.
pub(super) fn error(asked: Asked<'_>, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Failed { reason, message } => failed(asked, reason).with_words(&message),
        Refusal::Malformed(what) => malformed(asked.server, &what),
    }
}

/// The error of an answer that is not understood.
pub(super) fn malformed(server: &dyn std::fmt::Display, what: &str) -> Error {
    Error::new(
        Class::Protocol,
        format!("the answer of the KMIP server {server} is not understood: {what}"),
        "check that a KMIP server listens there, and what it logs",
    )
}

fn with_key(id: &str) -> String {
    match id {
        "" => String::new(),
        id => format!(" with key {id:?}"),
    }
}

fn failed(asked: Asked<'_>, reason: u32) -> Error {
    use reason::*;
    let Asked {
        server,
        operation,
        id,
    } = asked;
    let forbidden = Class::Denied(Denied::Forbidden);
    match reason {
        ITEM_NOT_FOUND | OBJECT_NOT_FOUND => Error::new(
            Class::NotFound,
            format!("the KMIP server {server} has no key {id:?}"),
            "check the key id in the configuration, and that this client may see the key; if the key was destroyed, restore it on the server",
        ),
        OBJECT_DESTROYED => Error::new(
            Class::Denied(Denied::Deleted),
            format!("key {id:?} on the KMIP server {server} has been destroyed"),
            "restore the key from a backup of the server",
        ),
        OBJECT_ARCHIVED => Error::new(
            Class::Denied(Denied::Disabled),
            format!("key {id:?} on the KMIP server {server} has been archived"),
            "recover it from the archive on the server",
        ),
        AUTHENTICATION_NOT_SUCCESSFUL => Error::new(
            forbidden,
            format!("the KMIP server {server} does not know this client"),
            "register the client certificate of this host on the server; it needs the extended key usage clientAuth",
        ),
        PERMISSION_DENIED | NOT_AUTHORISED => Error::new(
            forbidden,
            format!(
                "the KMIP server {server} does not let this client use {operation}{}",
                with_key(id)
            ),
            format!(
                "allow {operation} and Get Attributes for it in the policy of the key, and in its usage mask"
            ),
        ),
        INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK => Error::new(
            forbidden,
            format!(
                "the usage mask of key {id:?} on the KMIP server {server} does not allow {operation}"
            ),
            "use a key whose usage mask has Encrypt and Decrypt",
        ),
        SENSITIVE | NOT_EXTRACTABLE => Error::new(
            forbidden,
            format!("the KMIP server {server} does not give key {id:?} out"),
            "use mode = \"server\", in which the key stays on the server, or wrapping_key",
        ),
        // With the state known to be active, what is left is the data.
        CRYPTOGRAPHIC_FAILURE | GENERAL_FAILURE if operation == Operation::Decrypt => Error::new(
            Class::BadKey,
            format!(
                "key {id:?} on the KMIP server {server} does not open the wrapped key: it was tampered with, or belongs to another volume"
            ),
            "restore the volume's header from a backup, and find out who changed it",
        ),
        OPERATION_NOT_SUPPORTED | FEATURE_NOT_SUPPORTED => Error::new(
            Class::Protocol,
            format!("the KMIP server {server} does not offer {operation} as it is needed"),
            match operation {
                Operation::Encrypt | Operation::Decrypt => {
                    "use mode = \"get\", in which the server need not encrypt"
                }
                _ => "upgrade the server",
            },
        ),
        INTERNAL_SERVER_ERROR => Error::new(
            Class::Unreachable,
            format!("the KMIP server {server} failed to do {operation}"),
            "see what the server logs",
        ),
        reason => Error::new(
            Class::Protocol,
            format!(
                "the KMIP server {server} refuses {operation}{}, for reason {reason:#x}",
                with_key(id)
            ),
            "see what the server logs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_class() {
        use Operation::*;
        use reason::*;
        let forbidden = Class::Denied(Denied::Forbidden);
        for (operation, reason, class) in [
            (Get, ITEM_NOT_FOUND, Class::NotFound),
            (Get, OBJECT_NOT_FOUND, Class::NotFound),
            (Get, OBJECT_DESTROYED, Class::Denied(Denied::Deleted)),
            (Get, OBJECT_ARCHIVED, Class::Denied(Denied::Disabled)),
            (Get, AUTHENTICATION_NOT_SUCCESSFUL, forbidden),
            (Get, PERMISSION_DENIED, forbidden),
            (Get, SENSITIVE, forbidden),
            (Encrypt, NOT_AUTHORISED, forbidden),
            (Encrypt, GENERAL_FAILURE, Class::Protocol),
            (Decrypt, GENERAL_FAILURE, Class::BadKey),
            (Decrypt, CRYPTOGRAPHIC_FAILURE, Class::BadKey),
            (Decrypt, OPERATION_NOT_SUPPORTED, Class::Protocol),
            (Locate, INTERNAL_SERVER_ERROR, Class::Unreachable),
            (Locate, 0x4711, Class::Protocol),
        ] {
            let server = &"kms:5696";
            let message = "its own words".to_string();
            let error = error(
                Asked {
                    server,
                    operation,
                    id: "17",
                },
                Refusal::Failed { reason, message },
            );
            assert_eq!(error.class(), class, "{operation} {reason:#x}");
            assert_eq!(error.words(), Some("its own words"));
            assert!(error.to_string().contains("kms:5696"));
        }
    }
}
