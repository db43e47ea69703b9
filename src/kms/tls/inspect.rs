//! A look at the certificate of a server, also where it is refused.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::files;
use super::summary::Summary;
use super::{Tls, failure};
use crate::kms::{Class, Error};

/// Shakes hands with `host` over `stream`, with all that is configured. Tells
/// which certificate was shown, if any was, and whether all is well.
pub async fn inspect(
    tls: &Tls,
    host: &str,
    stream: TcpStream,
) -> (Option<Summary>, Result<(), Error>) {
    let verifier = match Noting::new(tls) {
        Ok(verifier) => Arc::new(verifier),
        Err(error) => return (None, Err(error)),
    };
    let result = shake_hands(tls, &verifier, host, stream).await;
    let shown = verifier.shown.lock();
    let shown = shown.unwrap_or_else(PoisonError::into_inner).take();
    (shown, result)
}

async fn shake_hands(
    tls: &Tls,
    verifier: &Arc<Noting>,
    host: &str,
    stream: TcpStream,
) -> Result<(), Error> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| {
        Error::new(
            Class::Unreachable,
            format!("{host:?} is not the name or address of a server: {error}"),
            "correct the endpoint in the configuration",
        )
    })?;
    let mut config = ClientConfig::clone(&*tls.config()?);
    config.resumption = rustls::client::Resumption::disabled();
    // It notes what it sees, and asks the usual one.
    config
        .dangerous()
        .set_certificate_verifier(verifier.clone());
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect(name, stream)
        .await
        .map(drop)
        .map_err(|error| failure(&error, host).unwrap_or_else(|| broken(host, &error)))
}

fn broken(host: &str, error: &io::Error) -> Error {
    Error::new(
        Class::Unreachable,
        format!("{host} broke off before TLS was agreed upon"),
        "check the port, that TLS is switched on at the service, and what it logs",
    )
    .with_words(&error.to_string())
}

/// Verifies as always, and remembers which certificate it was shown.
struct Noting {
    verifier: Arc<WebPkiServerVerifier>,
    shown: Mutex<Option<Summary>>,
}

impl Noting {
    fn new(tls: &Tls) -> Result<Self, Error> {
        let roots = Arc::new(files::roots(&tls.settings().ca_files)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| {
                Error::new(
                    Class::Unreachable,
                    format!("certificates cannot be verified: {error}"),
                    "name the certificate of the authority with ca_file",
                )
            })?;
        Ok(Noting {
            verifier,
            shown: Mutex::new(None),
        })
    }
}

impl fmt::Debug for Noting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noting")
    }
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Summary::of(end_entity);
        self.verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
