//! The files that TLS is configured with.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::validity::{self, Validity};
use super::{ClientCertificate, Settings};
use crate::error::{Kind, io_kind};
use crate::kms::credential::{SecretFile, Unreadable};
use crate::kms::{Class, Error};
use crate::paths;
use crate::timestamp::Timestamp;

/// A bundle of all public authorities has a quarter of this.
const FILE_MAX: u64 = 1 << 20;

/// What tells that a file was changed or replaced.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot(Vec<Option<[i64; 5]>>);

impl Snapshot {
    pub(super) fn of(settings: &Settings) -> Self {
        let mut paths = settings.ca_files.clone();
        if let Some(client) = &settings.client {
            paths.push(client.certificate.clone());
            paths.extend(client.key.path());
        }
        let state = |path: PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some([
                meta.dev().cast_signed(),
                meta.ino().cast_signed(),
                meta.size().cast_signed(),
                meta.ctime(),
                meta.ctime_nsec(),
            ])
        };
        Snapshot(paths.into_iter().map(state).collect())
    }
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("certificate file {}: cannot read it: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("there is no certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: not a certificate in PEM: {why}", path.display())]
    Malformed { path: PathBuf, why: String },
    #[error("the certificate in {} expired on {}", path.display(), validity.not_after)]
    Expired { path: PathBuf, validity: Validity },
    #[error("the certificate in {} is valid from {} only", path.display(), validity.not_before)]
    NotYet { path: PathBuf, validity: Validity },
    #[error("private key {0}")]
    Key(#[from] Unreadable),
    #[error("there is no usable private key in {0}")]
    NoKey(SecretFile),
    #[error("the private key in {key} does not belong to the certificate in {}", certificate.display())]
    Mismatch {
        certificate: PathBuf,
        key: SecretFile,
    },
    #[error("the certificates that this system trusts cannot be read: {0}")]
    System(String),
    #[error("TLS cannot be set up: {0}")]
    Rustls(rustls::Error),
}

/// The authorities to trust.
pub(super) fn roots(ca_files: &[PathBuf]) -> Result<RootCertStore, Unusable> {
    let mut store = RootCertStore::empty();
    for path in ca_files {
        let bundle = certificates(path)?;
        let (good, bad): (Vec<_>, Vec<_>) = bundle
            .into_iter()
            .partition(|one| check_valid_now(path, std::slice::from_ref(one)).is_ok());
        // One old authority in a bundle is no reason to refuse the others.
        if good.is_empty() {
            check_valid_now(path, &bad)?;
        }
        for certificate in good {
            store
                .add(certificate)
                .map_err(|error| Unusable::Malformed {
                    path: path.clone(),
                    why: error.to_string(),
                })?;
        }
    }
    if ca_files.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = store.add_parsable_certificates(found.certs);
        if added == 0 {
            let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            return Err(Unusable::System(if why.is_empty() {
                "there are none".into()
            } else {
                why.join("; ")
            }));
        }
    }
    Ok(store)
}

/// All certificates of a PEM file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let fail = |source| Unusable::Read {
        path: path.into(),
        source,
    };
    // Whoever can change it decides whom we trust.
    let text = paths::read_own(path, FILE_MAX).map_err(fail)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Unusable::NoCertificate(path.into())),
        Ok(found) => Ok(found),
        Err(error) => Err(Unusable::Malformed {
            path: path.into(),
            why: error.to_string(),
        }),
    }
}

/// Whether the first certificate is within its time, as far as that is known.
pub(super) fn check_valid_now(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(), Unusable> {
    let Some(validity) = chain.first().and_then(|first| validity::of(first)) else {
        return Ok(());
    };
    let (path, now) = (path.to_path_buf(), Timestamp::now());
    if now > validity.not_after {
        return Err(Unusable::Expired { path, validity });
    }
    if now < validity.not_before {
        return Err(Unusable::NotYet { path, validity });
    }
    Ok(())
}

pub(super) fn private_key(file: &SecretFile) -> Result<PrivateKeyDer<'static>, Unusable> {
    let text = file.read()?;
    // Its error could quote the key.
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| Unusable::NoKey(file.clone()))
}

/// What rustls thinks of a certificate and key.
pub(super) fn unsuitable(client: &ClientCertificate, error: rustls::Error) -> Unusable {
    match error {
        rustls::Error::InconsistentKeys(_) => Unusable::Mismatch {
            certificate: client.certificate.clone(),
            key: client.key.clone(),
        },
        rustls::Error::InvalidCertificate(error) => Unusable::Malformed {
            path: client.certificate.clone(),
            why: error.to_string(),
        },
        // "failed to parse private key": the certificate has been parsed.
        rustls::Error::General(_) => Unusable::NoKey(client.key.clone()),
        other => Unusable::Rustls(other),
    }
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        let (kind, next) = match &unusable {
            Unusable::Read { path, source } => (
                io_kind(source),
                match (paths::Unsafe::of(source), paths::Refused::of(source)) {
                    (Some(_), _) => format!(
                        "have {} be a regular file of root's, or of the user that runs sealblk, which others cannot write to",
                        path.display()
                    ),
                    (_, Some(refused)) => refused.next().into(),
                    (None, None) => format!("put the file there and make it readable, or correct the configuration: {}", path.display()),
                },
            ),
            Unusable::NoCertificate(path) | Unusable::Malformed { path, .. } => (
                Kind::Usage,
                format!("{} must hold certificates in PEM, each between BEGIN CERTIFICATE and END CERTIFICATE", path.display()),
            ),
            Unusable::Expired { path, .. } => (
                Kind::Key,
                format!("have the certificate renewed, and put the new one into {}", path.display()),
            ),
            Unusable::NotYet { .. } => (
                Kind::Key,
                "check the clock of this host, or wait until the certificate is valid".into(),
            ),
            Unusable::NoKey(_) => (
                Kind::Usage,
                "it must be in PEM and not encrypted: BEGIN PRIVATE KEY (PKCS#8), RSA PRIVATE KEY or EC PRIVATE KEY".into(),
            ),
            Unusable::Mismatch { .. } => (
                Kind::Usage,
                "configure the key that the certificate was made for; after a renewal both files must be replaced".into(),
            ),
            Unusable::System(_) => (
                Kind::NotFound,
                "install the package ca-certificates, or name the authority of the service with ca_file".into(),
            ),
            Unusable::Rustls(_) => (
                Kind::Usage,
                "check the certificate and key files of the configuration".into(),
            ),
            Unusable::Key(_) => {
                let Unusable::Key(unreadable) = unusable else {
                    unreachable!("it was one just now");
                };
                return unreadable.into();
            }
        };
        Error::new(Class::Unreachable, unusable.to_string(), next).with_kind(kind)
    }
}
