//! A certificate authority for tests, made with OpenSSL.

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
};
use openssl::x509::{X509, X509Builder, X509Name, X509NameRef};

/// A certificate and its private key (ECDSA, P-256).
pub struct Issued {
    pub certificate: X509,
    pub key: PKey<Private>,
}

impl Issued {
    pub fn certificate_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// PKCS#8, not encrypted.
    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

/// An authority that nobody else trusts.
pub struct Authority(Issued);

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::valid(name, (-1, 30))
    }

    /// One that is valid from a day to a day, as counted from today.
    pub fn valid(name: &str, days: (i64, i64)) -> Self {
        let key = new_key();
        let subject = common_name(name);
        let mut builder = begin(&subject, &subject, &key, days);
        let constraints = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(constraints).unwrap();
        let usage = KeyUsage::new().critical().key_cert_sign().build().unwrap();
        builder.append_extension(usage).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Authority(Issued {
            certificate: builder.build(),
            key,
        })
    }

    pub fn certificate_pem(&self) -> Vec<u8> {
        self.0.certificate_pem()
    }

    /// Its own certificate and key, which vouch for themselves.
    pub fn itself(self) -> Issued {
        self.0
    }

    /// For a server at 127.0.0.1 and `localhost`.
    pub fn server(&self) -> Issued {
        self.server_at("127.0.0.1", (-1, 30))
    }

    pub fn server_at(&self, address: &str, days: (i64, i64)) -> Issued {
        self.issue("server", Some(Purpose::Server { address }), days)
    }

    /// For a server with this name, and no address.
    pub fn server_named(&self, name: &str) -> Issued {
        self.issue("server", Some(Purpose::Named { name }), (-1, 30))
    }

    /// For a client; its common name is its identity.
    pub fn client(&self, name: &str) -> Issued {
        self.client_valid(name, (-1, 30))
    }

    pub fn client_valid(&self, name: &str, days: (i64, i64)) -> Issued {
        self.issue(name, Some(Purpose::Client), days)
    }

    /// For neither clients nor servers.
    pub fn client_without_purpose(&self, name: &str) -> Issued {
        self.issue(name, None, (-1, 30))
    }

    fn issue(&self, name: &str, purpose: Option<Purpose<'_>>, days: (i64, i64)) -> Issued {
        let key = new_key();
        let issuer = &self.0.certificate;
        let mut builder = begin(&common_name(name), issuer.subject_name(), &key, days);
        let mut names = SubjectAlternativeName::new();
        let named = match purpose {
            Some(Purpose::Server { address }) => Some(names.ip(address).dns("localhost")),
            Some(Purpose::Named { name }) => Some(names.dns(name)),
            _ => None,
        };
        if let Some(names) = named {
            let names = names.build(&builder.x509v3_context(Some(issuer), None));
            builder.append_extension(names.unwrap()).unwrap();
        }
        let mut extended = ExtendedKeyUsage::new();
        match purpose {
            Some(Purpose::Server { .. } | Purpose::Named { .. }) => extended.server_auth(),
            Some(Purpose::Client) => extended.client_auth(),
            None => &mut extended,
        };
        if purpose.is_some() {
            builder.append_extension(extended.build().unwrap()).unwrap();
        }
        let usage = KeyUsage::new().critical().digital_signature().build();
        builder.append_extension(usage.unwrap()).unwrap();
        builder.sign(&self.0.key, MessageDigest::sha256()).unwrap();
        Issued {
            certificate: builder.build(),
            key,
        }
    }
}

/// What a certificate is for.
enum Purpose<'a> {
    Client,
    Server { address: &'a str },
    Named { name: &'a str },
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn common_name(name: &str) -> X509Name {
    let mut builder = X509Name::builder().unwrap();
    builder.append_entry_by_text("CN", name).unwrap();
    builder.build()
}

fn begin(
    subject: &X509NameRef,
    issuer: &X509NameRef,
    key: &PKey<Private>,
    (from, to): (i64, i64),
) -> X509Builder {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let day = |days: i64| {
        let seconds = now.as_secs().cast_signed() + days * 86_400;
        Asn1Time::from_unix(seconds).unwrap()
    };
    let mut serial = BigNum::new().unwrap();
    serial.rand(120, MsbOption::MAYBE_ZERO, false).unwrap();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder
        .set_serial_number(&serial.to_asn1_integer().unwrap())
        .unwrap();
    builder.set_subject_name(subject).unwrap();
    builder.set_issuer_name(issuer).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(&day(from)).unwrap();
    builder.set_not_after(&day(to)).unwrap();
    builder
}
