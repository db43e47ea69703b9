//! TLS to key services: rustls with ring, version 1.2 or later, certificates
//! always verified.
//!
//! - [`Tls`]: from files to a `rustls::ClientConfig`, made again when a file
//!   was replaced,
//! - [`failure()`]: a failed handshake in plain words,
//! - [`inspect()`]: which certificate a server shows, for diagnosis,
//! - [`Holder`]: whose a certificate is, for those who decide by it,
//! - [`server()`]: the other side, for the broker,
//! - `summary`, `validity`: what else stands in one, and when it ends.
//!
//! Nothing that goes wrong here is a denial: who has not been authenticated
//! cannot deny anything, so all of it is [`Class::Unreachable`](super::Class).

mod failure;
mod files;
mod inspect;
mod names;
#[cfg(feature = "broker")]
mod server;
mod summary;
mod validity;

pub use failure::failure;
pub use inspect::inspect;
pub use names::{Holder, HolderName};
#[cfg(feature = "broker")]
pub use server::{ServerSettings, server};
pub use summary::{Summary, in_file};

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
#[cfg(feature = "azure-keyvault")]
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::files::{Snapshot, Unusable};
use super::Error;
use super::credential::SecretFile;

/// What is configured of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// PEM files with the certificates of the authorities to trust, and no
    /// others. When empty, those that the system trusts.
    pub ca_files: Vec<PathBuf>,
    /// What this host shows of itself, where the service asks.
    pub client: Option<ClientCertificate>,
}

/// A client certificate and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file with the certificate, and the intermediate ones after it.
    pub certificate: PathBuf,
    /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1; not encrypted).
    pub key: SecretFile,
}

/// The client side of TLS as configured.
#[derive(Debug)]
pub struct Tls {
    settings: Settings,
    made: Mutex<Option<(Snapshot, Arc<ClientConfig>)>>,
}

impl Tls {
    /// Nothing is read yet.
    pub fn new(settings: Settings) -> Self {
        Tls {
            settings,
            made: Mutex::new(None),
        }
    }

    /// What was configured.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The configuration for a connection. The same one as before while no
    /// file has changed, so that sessions are resumed.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or has expired.
    pub fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        // Before the files are read: what changes after it is seen next time.
        let snapshot = Snapshot::of(&self.settings);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, config)) = &*made
            && *then == snapshot
        {
            // An expired certificate has to be told also when nothing changed.
            check_still_valid(&self.settings)?;
            return Ok(config.clone());
        }
        let config = Arc::new(build(&self.settings)?);
        *made = Some((snapshot, config.clone()));
        Ok(config)
    }
}

/// The certificate of `client`, which is valid now, and its private key: for
/// who signs with it beside TLS.
///
/// # Errors
/// When a file is missing, is not what it should be, or has expired.
#[cfg(feature = "azure-keyvault")]
pub(crate) fn certificate_and_key(
    client: &ClientCertificate,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
    let chain = files::certificates(&client.certificate)?;
    files::check_valid_now(&client.certificate, &chain)?;
    let key = files::private_key(&client.key)?;
    // There is one: a file without any is refused.
    let first = chain.into_iter().next();
    let first = first.ok_or_else(|| Unusable::NoCertificate(client.certificate.clone()))?;
    Ok((first, key))
}

fn check_still_valid(settings: &Settings) -> Result<(), Unusable> {
    match &settings.client {
        Some(client) => files::certificates(&client.certificate)
            .and_then(|chain| files::check_valid_now(&client.certificate, &chain)),
        None => Ok(()),
    }
}

fn build(settings: &Settings) -> Result<ClientConfig, Unusable> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(Unusable::Rustls)?
        .with_root_certificates(files::roots(&settings.ca_files)?);
    let Some(client) = &settings.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = files::certificates(&client.certificate)?;
    files::check_valid_now(&client.certificate, &chain)?;
    let key = files::private_key(&client.key)?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| files::unsuitable(client, error))
}

#[cfg(test)]
mod tests;
