//! A failed TLS handshake, in plain words.

use std::error::Error as StdError;
use std::io;

use rustls::{AlertDescription, CertificateError};

use crate::kms::{Class, Error};

/// Why TLS with `server` failed, if `error` or anything that it came from is
/// an error of TLS. `server` is the name or address that was connected to.
///
/// Not a denial, whatever the server says: what comes before or instead of a
/// handshake can come from anybody on the way.
pub fn failure(error: &(dyn StdError + 'static), server: &str) -> Option<Error> {
    let error = find(error)?;
    let (cause, next) = explain(error, server);
    Some(Error::new(Class::Unreachable, cause, next).with_words(&error.to_string()))
}

/// The TLS error in a chain. An `io::Error` hides what it wraps from `source`.
fn find<'e>(mut error: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    loop {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        error = match wrapped {
            Some(inner) => inner as &(dyn StdError + 'static),
            None => error.source()?,
        };
    }
}

fn explain(error: &rustls::Error, server: &str) -> (String, String) {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(error) => certificate(error, server),
        E::AlertReceived(alert) => told(*alert, server),
        E::PeerIncompatible(_) => (
            format!("{server} has no version or cipher of TLS in common with sealblk"),
            "the service must offer TLS 1.2 or 1.3 with AES-GCM or ChaCha20-Poly1305 and ECDHE"
                .into(),
        ),
        E::InvalidMessage(_) | E::InappropriateMessage { .. } => (
            format!("{server} does not speak TLS"),
            "check the port, and that TLS is switched on at the service".into(),
        ),
        _ => (
            format!("TLS with {server} failed"),
            format!(
                "see what the service logs; `openssl s_client -connect {server}` may tell more"
            ),
        ),
    }
}

fn certificate(error: &CertificateError, server: &str) -> (String, String) {
    use CertificateError as C;
    match error {
        C::UnknownIssuer | C::BadSignature => (
            format!("the certificate of {server} was issued by an authority that is not trusted here"),
            "name the certificate of the authority that issued it with ca_file; if that is done, someone else may be answering".into(),
        ),
        C::NotValidForName | C::NotValidForNameContext { .. } => (
            format!("the certificate of {server} is for another host"),
            "use a name in the endpoint that the certificate holds, or have it issued for this one".into(),
        ),
        C::Expired | C::ExpiredContext { .. } => (
            format!("the certificate of {server} has expired"),
            "have the certificate of the service renewed, and check the clock of this host".into(),
        ),
        C::NotValidYet | C::NotValidYetContext { .. } => (
            format!("the certificate of {server} is not valid yet"),
            "check the clock of this host".into(),
        ),
        C::Revoked => (
            format!("the certificate of {server} has been revoked"),
            "have a new certificate issued for the service".into(),
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => (
            format!("the certificate of {server} is not one for servers"),
            "have it issued with the extended key usage serverAuth".into(),
        ),
        _ => (
            format!("the certificate of {server} is not acceptable"),
            "have a certificate of version 3 issued for the service, by an authority that is named with ca_file".into(),
        ),
    }
}

/// What the other side says of us.
fn told(alert: AlertDescription, server: &str) -> (String, String) {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => (
            format!("{server} wants a client certificate, and none is configured"),
            "configure client_cert and client_key".into(),
        ),
        A::CertificateExpired => (
            format!("{server} says that our client certificate has expired"),
            "have the client certificate renewed, and check the clocks".into(),
        ),
        A::CertificateRevoked => (
            format!("{server} says that our client certificate has been revoked"),
            "have a new client certificate issued for this host".into(),
        ),
        A::UnknownCA
        | A::BadCertificate
        | A::CertificateUnknown
        | A::UnsupportedCertificate
        | A::AccessDenied
        | A::DecryptError => (
            format!("{server} does not accept our client certificate"),
            "use a certificate with the extended key usage clientAuth, issued by an authority that the service trusts for clients".into(),
        ),
        A::ProtocolVersion | A::InsufficientSecurity => (
            format!("{server} has no version or cipher of TLS in common with sealblk"),
            "the service must offer TLS 1.2 or 1.3 with AES-GCM or ChaCha20-Poly1305 and ECDHE".into(),
        ),
        A::UnrecognisedName => (
            format!("{server} serves no host of that name"),
            "check the host name of the endpoint".into(),
        ),
        // What servers that want a certificate answer in TLS 1.2.
        A::HandshakeFailure => (
            format!("{server} broke off the handshake: it may want a client certificate, or share no cipher with sealblk"),
            "configure client_cert and client_key if the service asks for them; otherwise see what it logs".into(),
        ),
        _ => (
            format!("{server} broke off TLS"),
            "see what the service logs".into(),
        ),
    }
}
