//! The other side of TLS, for who serves hosts that show a certificate.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::ClientCertificate;
use super::files::{self, Unusable};
use crate::kms::Error;
use crate::kms::credential::SecretFile;

/// What is configured of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    /// PEM file with the certificate, and the intermediate ones after it.
    pub certificate: PathBuf,
    /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1; not encrypted).
    pub key: SecretFile,
    /// PEM file with the authorities that issue certificates to clients. No
    /// others are trusted, and no client is served without one.
    pub client_ca_file: PathBuf,
}

/// TLS as configured: HTTP/1.1, and every handshake in full, so that no
/// certificate outlives its end, or its authority, in a session.
///
/// # Errors
/// When a file is missing, is not what it should be, or has expired.
pub fn server(settings: &ServerSettings) -> Result<ServerConfig, Error> {
    Ok(build(settings)?)
}

fn build(settings: &ServerSettings) -> Result<ServerConfig, Unusable> {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let ca_file = &settings.client_ca_file;
    let roots = files::roots(std::slice::from_ref(ca_file))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), ring.clone())
        .build()
        .map_err(|error| Unusable::Malformed {
            path: ca_file.clone(),
            why: error.to_string(),
        })?;
    let chain = files::certificates(&settings.certificate)?;
    files::check_valid_now(&settings.certificate, &chain)?;
    let key = files::private_key(&settings.key)?;
    let mut config = ServerConfig::builder_with_provider(ring)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(Unusable::Rustls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| {
            let ours = ClientCertificate {
                certificate: settings.certificate.clone(),
                key: settings.key.clone(),
            };
            files::unsuitable(&ours, error)
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
