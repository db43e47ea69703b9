//! `sealblk doctor` finds what is wrong, and names it, with real servers that
//! are broken in one way each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "azure-keyvault")]
#[path = "../support/azure/mod.rs"]
#[allow(dead_code)]
mod azure_fake;
#[path = "../support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
#[path = "../support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
#[cfg(feature = "gcp-kms")]
#[path = "../support/gcp/mod.rs"]
#[allow(dead_code)]
mod gcp;
#[path = "../support/needles.rs"]
mod needles;
#[path = "../support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[path = "../support/pykmip.rs"]
#[allow(dead_code)]
mod pykmip;

#[cfg(feature = "azure-keyvault")]
mod azure;
mod file;
#[cfg(feature = "gcp-kms")]
#[path = "gcp.rs"]
mod gcp_keys;
mod keys;
mod kmip;
mod lab;
mod network;
