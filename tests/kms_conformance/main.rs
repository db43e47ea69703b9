//! Every key management provider behaves the same.
//!
//! A provider registers with one line below: a *lab*, which sets up the
//! service and can do at it what its operator could (rotate, disable,
//! delete, break it). The cases are in `suite`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(feature = "aws-kms")]
mod aws;
#[cfg(feature = "azure-keyvault")]
mod azure;
#[cfg(feature = "azure-keyvault")]
#[path = "../support/azure/mod.rs"]
#[allow(dead_code)]
mod azure_fake;
#[cfg(feature = "broker")]
mod broker;
#[cfg(feature = "broker")]
#[path = "../support/broker_site.rs"]
#[allow(dead_code)]
mod broker_site;
#[path = "../support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod file;
#[cfg(feature = "gcp-kms")]
#[path = "../support/gcp/mod.rs"]
#[allow(dead_code)]
mod gcp;
#[cfg(feature = "gcp-kms")]
#[path = "gcp.rs"]
mod gcp_lab;
#[cfg(feature = "k8s-kms")]
mod k8s;
#[cfg(feature = "k8s-kms")]
#[path = "../support/k8s_plugin.rs"]
#[allow(dead_code)]
mod k8s_plugin;
mod kmip;
mod lab;
#[cfg(feature = "aws-kms")]
#[allow(dead_code)]
#[path = "../support/moto.rs"]
mod moto;
#[path = "../support/needles.rs"]
mod needles;
#[path = "../support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[path = "../support/pykmip.rs"]
#[allow(dead_code)]
mod pykmip;
#[cfg(feature = "pkcs11")]
#[path = "../support/softhsm.rs"]
#[allow(dead_code)]
mod softhsm;
mod suite;
#[path = "../support/tls_server.rs"]
#[allow(dead_code)]
mod tls_server;
mod vault;

/// Runs the whole suite on the labs that `$lab` makes, each case on a new one.
macro_rules! conformance {
    ($provider:ident, $lab:expr) => {
        mod $provider {
            use super::suite;
            conformance!(@cases $lab;
                round_trip,
                the_binding_must_match,
                another_key_does_not_open,
                no_bit_of_the_envelope_can_change,
                no_field_beside_the_envelope_can_change,
                old_wraps_open_after_rotation,
                a_pinned_version_stays,
                a_disabled_version_is_denied,
                a_deleted_version_is_gone,
                what_does_not_exist_is_not_found,
                each_class_of_failure_is_told,
                calls_do_not_disturb_each_other,
                too_long_a_payload_is_refused,
                what_was_never_wrapped_is_refused,
            );
        }
    };
    (@cases $lab:expr; $($case:ident,)+) => {
        $(
            #[test]
            fn $case() {
                suite::run(&$lab, suite::$case);
            }
        )+
    };
}

conformance!(file_provider, crate::file::FileLab::new());
conformance!(vault_provider, crate::vault::VaultLab::new());
conformance!(
    kmip_server,
    crate::kmip::KmipLab::new(sealblk::kms::kmip::Mode::Server)
);
conformance!(
    kmip_get,
    crate::kmip::KmipLab::new(sealblk::kms::kmip::Mode::Get)
);
#[cfg(feature = "pkcs11")]
conformance!(
    pkcs11_gcm,
    crate::pkcs11::Pkcs11Lab::new(sealblk::kms::pkcs11::Choice::Gcm)
);
#[cfg(feature = "pkcs11")]
conformance!(
    pkcs11_kwp,
    crate::pkcs11::Pkcs11Lab::new(sealblk::kms::pkcs11::Choice::Kwp)
);
#[cfg(feature = "pkcs11")]
conformance!(
    pkcs11_oaep,
    crate::pkcs11::Pkcs11Lab::new(sealblk::kms::pkcs11::Choice::Oaep)
);
#[cfg(feature = "k8s-kms")]
conformance!(k8s_plugin_provider, crate::k8s::K8sLab::new());
#[cfg(feature = "broker")]
conformance!(broker_direct, crate::broker::BrokerLab::new("direct"));
#[cfg(feature = "broker")]
conformance!(broker_group, crate::broker::BrokerLab::new("group"));
#[cfg(feature = "azure-keyvault")]
conformance!(
    azure_rsa,
    crate::azure::AzureLab::new(crate::azure_fake::Kind::Vault)
);
#[cfg(feature = "azure-keyvault")]
conformance!(
    azure_hsm,
    crate::azure::AzureLab::new(crate::azure_fake::Kind::Hsm)
);
#[cfg(feature = "aws-kms")]
conformance!(
    aws_kms_material,
    crate::aws::AwsLab::new(crate::aws::Rotation::Material)
);
#[cfg(feature = "aws-kms")]
conformance!(
    aws_kms_alias,
    crate::aws::AwsLab::new(crate::aws::Rotation::Alias)
);
#[cfg(feature = "gcp-kms")]
conformance!(gcp_provider, crate::gcp_lab::GcpLab::new());
