//! What a token says, in terms of the closed set of failures.

use std::fmt;

use cryptoki::context::Function;
use cryptoki::error::{Error as CallError, RvError};

use crate::kms::{Class, Denied, Error};

/// The function and the code, as manuals of tokens and the standard call them.
pub(super) fn words(error: &CallError) -> String {
    match error {
        CallError::Pkcs11(code, function) => format!("C_{function:?}: {}", Code(*code)),
        CallError::LibraryLoading(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// A code by the name that the standard gives it.
struct Code(RvError);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RvError::VendorDefined(code) => write!(f, "CKR_VENDOR_DEFINED {code:#x}"),
            RvError::UnknownErrorCode(code) => write!(f, "code {code:#x}"),
            known => {
                f.write_str("CKR")?;
                for c in format!("{known:?}").chars() {
                    if c.is_ascii_uppercase() {
                        f.write_str("_")?;
                    }
                    write!(f, "{}", c.to_ascii_uppercase())?;
                }
                Ok(())
            }
        }
    }
}

/// The code, if the library gave one.
pub(super) fn code(error: &CallError) -> Option<RvError> {
    match error {
        CallError::Pkcs11(code, _) => Some(*code),
        _ => None,
    }
}

/// Whether another session might do better: this one is no longer what it was.
pub(super) fn is_stale(error: &CallError) -> bool {
    use RvError::*;
    matches!(
        code(error),
        Some(
            SessionHandleInvalid
                | SessionClosed
                | DeviceRemoved
                | TokenNotPresent
                | UserNotLoggedIn
                | CryptokiNotInitialized
        )
    )
}

/// Whether it says that what is to be decrypted or unwrapped is wrong.
pub(super) fn is_about_the_data(error: &CallError) -> bool {
    use RvError::*;
    /// CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0.
    const AEAD_DECRYPT_FAILED: u64 = 0x35;
    matches!(
        code(error),
        Some(
            EncryptedDataInvalid
                | EncryptedDataLenRange
                | WrappedKeyInvalid
                | WrappedKeyLenRange
                | DataInvalid
                | DataLenRange
                | UnknownErrorCode(AEAD_DECRYPT_FAILED)
        )
    )
}

/// Whether it may say so, or that something is wrong with the token: libraries
/// have no better code at hand for data that do not authenticate.
pub(super) fn may_be_about_the_data(error: &CallError) -> bool {
    use RvError::*;
    matches!(
        code(error),
        Some(GeneralError | FunctionFailed | ArgumentsBad | DeviceError)
    )
}

/// A call that failed. `token` and `key` are how they are called in messages;
/// `key` is empty where none is meant.
pub(super) fn error(error: &CallError, token: &dyn fmt::Display, key: &str) -> Error {
    let (class, cause, next) = classify(error, token, key);
    Error::new(class, cause, next).with_words(&words(error))
}

fn classify(
    error: &CallError,
    token: &dyn fmt::Display,
    key: &str,
) -> (Class, String, &'static str) {
    use RvError::*;
    let key = if key.is_empty() { "a key" } else { key };
    let (code, function) = match error {
        CallError::Pkcs11(code, function) => (*code, *function),
        CallError::NullFunctionPointer => {
            return (
                Class::Protocol,
                format!("the library of {token} lacks a function that is needed"),
                "choose another mechanism, or upgrade the library",
            );
        }
        _ => {
            return (
                Class::Protocol,
                format!("the library of {token} answers with something that is not understood"),
                "upgrade the library, or sealblk on this host",
            );
        }
    };
    let forbidden = Class::Denied(Denied::Forbidden);
    match code {
        PinIncorrect | PinInvalid | PinLenRange => (
            forbidden,
            format!("{token} refuses the PIN"),
            "put the right PIN into the file; the wrong one is not tried again, so that the token does not lock",
        ),
        PinLocked => (
            forbidden,
            format!("{token} has locked the user PIN after too many wrong ones"),
            "have its security officer set a new PIN, and find out who tried",
        ),
        PinExpired => (
            forbidden,
            format!("the user PIN of {token} has expired"),
            "set a new one with the tools of the token, and put it into the file",
        ),
        UserPinNotInitialized => (
            forbidden,
            format!("{token} has no user PIN yet"),
            "have its security officer set one",
        ),
        UserNotLoggedIn => (
            forbidden,
            format!("{token} wants a login for {key}"),
            "name the file with the PIN in the key set: pin = \"/PATH\"",
        ),
        ActionProhibited | FunctionRejected => (
            forbidden,
            format!("{token} does not permit this with {key}"),
            "see the policy of the token, and what it logs",
        ),
        KeyFunctionNotPermitted => (
            Class::Denied(Denied::Disabled),
            format!("{key} on {token} may not be used so"),
            "have its attributes CKA_ENCRYPT and CKA_DECRYPT (or CKA_WRAP and CKA_UNWRAP) checked",
        ),
        KeyHandleInvalid
        | ObjectHandleInvalid
        | UnwrappingKeyHandleInvalid
        | WrappingKeyHandleInvalid => (
            Class::NotFound,
            format!("{key} has just vanished from {token}"),
            "find out who deletes keys there, or logs this process out",
        ),
        TokenNotPresent | DeviceRemoved | TokenNotRecognized | SlotIdInvalid => (
            Class::Unreachable,
            format!("{token} is not in its slot"),
            "plug the token in, or start the service that its library talks to",
        ),
        SessionCount => (
            Class::Unreachable,
            format!("{token} has no session left for this host"),
            "end other programs that use the token, or raise its limit",
        ),
        SessionHandleInvalid
        | SessionClosed
        | CryptokiNotInitialized
        | DeviceError
        | DeviceMemory
        | HostMemory
        | GeneralError
        | FunctionFailed
        | FunctionCanceled
        | OperationActive
        | OperationNotInitialized
        | Cancel
        | UserAnotherAlreadyLoggedIn
        | UserTooManyTypes
        | SessionReadWriteSoExists => (
            Class::Unreachable,
            format!("{token} failed to do what it was asked for"),
            "see what the token and its library log",
        ),
        DataLenRange | DataInvalid | KeySizeRange if matches!(function, Function::Encrypt) => (
            Class::Protocol,
            format!("{key} on {token} is too short for what is to be wrapped"),
            "use an AES-256 key, or an RSA key with 2048 bits or more",
        ),
        MechanismInvalid
        | MechanismParamInvalid
        | FunctionNotSupported
        | KeyTypeInconsistent
        | KeySizeRange
        | KeyNotWrappable
        | KeyUnextractable
        | WrappingKeySizeRange
        | WrappingKeyTypeInconsistent
        | UnwrappingKeySizeRange
        | UnwrappingKeyTypeInconsistent
        | TemplateInconsistent
        | TemplateIncomplete
        | AttributeValueInvalid
        | AttributeTypeInvalid
        | AttributeReadOnly => (
            Class::Protocol,
            format!("{token} does not offer with {key} what is needed"),
            "choose another mechanism in the key set: \"gcm\", \"kwp\" or \"oaep\"; docs/kms/pkcs11.md has what each one needs",
        ),
        _ => (
            Class::Protocol,
            format!("{token} refuses what it was asked for with {key}"),
            "see what the token and its library log",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Explain;

    #[test]
    fn each_code_has_its_class() {
        use RvError::*;
        let forbidden = Class::Denied(Denied::Forbidden);
        for (code, function, class) in [
            (PinIncorrect, Function::Login, forbidden),
            (PinLocked, Function::Login, forbidden),
            (PinExpired, Function::Login, forbidden),
            (UserPinNotInitialized, Function::Login, forbidden),
            (UserNotLoggedIn, Function::DecryptInit, forbidden),
            (
                KeyFunctionNotPermitted,
                Function::EncryptInit,
                Class::Denied(Denied::Disabled),
            ),
            (
                UnwrappingKeyHandleInvalid,
                Function::UnwrapKey,
                Class::NotFound,
            ),
            (KeyHandleInvalid, Function::DecryptInit, Class::NotFound),
            (TokenNotPresent, Function::OpenSession, Class::Unreachable),
            (DeviceRemoved, Function::Decrypt, Class::Unreachable),
            (SessionHandleInvalid, Function::Decrypt, Class::Unreachable),
            (DeviceError, Function::Decrypt, Class::Unreachable),
            (SessionCount, Function::OpenSession, Class::Unreachable),
            (DataLenRange, Function::Encrypt, Class::Protocol),
            (MechanismInvalid, Function::EncryptInit, Class::Protocol),
            (
                VendorDefined(0x8000_0001),
                Function::Decrypt,
                Class::Protocol,
            ),
        ] {
            let call = CallError::Pkcs11(code, function);
            let error = error(&call, &"the token \"t\"", "key \"k\"");
            assert_eq!(error.class(), class, "{code:?}");
            assert!(error.to_string().contains("the token \"t\""), "{error}");
            assert!(error.help().is_some_and(|help| !help.is_empty()));
        }
    }

    #[test]
    fn codes_are_named_as_in_the_standard() {
        let named = |code| words(&CallError::Pkcs11(code, Function::Login));
        assert_eq!(named(RvError::PinIncorrect), "C_Login: CKR_PIN_INCORRECT");
        assert_eq!(named(RvError::UnknownErrorCode(0x35)), "C_Login: code 0x35");
        assert_eq!(
            named(RvError::VendorDefined(0x8000_0001)),
            "C_Login: CKR_VENDOR_DEFINED 0x80000001"
        );
    }
}
