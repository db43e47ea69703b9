//! A statement of who we are, signed with the key of a certificate (RFC 7523):
//! what an application shows in place of a secret.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use uuid::Uuid;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::Kind;
use crate::kms::tls::{self, ClientCertificate};
use crate::kms::{Class, Error};

/// How long it holds, in seconds. It is used at once, and clocks differ.
const LIFETIME: u64 = 600;

/// The assertion for `audience` in the name of the application `client`.
///
/// # Errors
/// When the files are missing, are not what they should be, or have expired.
pub(super) fn signed(
    files: &ClientCertificate,
    client: &str,
    audience: &str,
) -> Result<Zeroizing<String>, Error> {
    let (certificate, mut key) = tls::certificate_and_key(files)?;
    let pair = key_pair(&key);
    key.zeroize();
    let pair =
        pair.ok_or_else(|| {
            Error::new(
            Class::Unreachable,
            format!("the private key in {} is not an RSA key of 2048 bits or more", files.key),
            "have the certificate issued with an RSA key: Azure takes no others for applications",
        )
        .with_kind(Kind::Usage)
        })?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since_1970.map_or(0, |time| time.as_secs());
    sign(&pair, &certificate, client, audience, now)
}

/// The key pair in a private key of PKCS#8 or PKCS#1.
fn key_pair(key: &PrivateKeyDer<'_>) -> Option<RsaKeyPair> {
    match key {
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
        _ => None,
    }
}

fn sign(
    pair: &RsaKeyPair,
    certificate: &CertificateDer<'_>,
    client: &str,
    audience: &str,
    now: u64,
) -> Result<Zeroizing<String>, Error> {
    let thumbprint = |algorithm| BASE64.encode(digest(algorithm, certificate));
    // Both, since not every cloud takes the newer one.
    let header = json!({
        "alg": "RS256",
        "typ": "JWT",
        "x5t": thumbprint(&SHA1_FOR_LEGACY_USE_ONLY),
        "x5t#S256": thumbprint(&SHA256),
    });
    let claims = json!({
        "aud": audience,
        "iss": client,
        "sub": client,
        "jti": Uuid::new_v4(),
        "nbf": now,
        "iat": now,
        "exp": now + LIFETIME,
    });
    let part = |value: &serde_json::Value| BASE64.encode(value.to_string());
    let said = format!("{}.{}", part(&header), part(&claims));
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        said.as_bytes(),
        &mut signature,
    )
    .map_err(|_| {
        Error::new(
            Class::Unreachable,
            "the private key of the certificate does not sign",
            "check the file with `openssl rsa -check -in FILE`",
        )
    })?;
    Ok(Zeroizing::new(format!(
        "{said}.{}",
        BASE64.encode(signature)
    )))
}

#[cfg(test)]
mod tests {
    use openssl::hash::{MessageDigest, hash};
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::sign::Verifier;
    use rustls::pki_types::pem::PemObject;
    use serde_json::Value;

    use super::*;

    #[test]
    fn openssl_verifies_it_with_either_form_of_key() {
        let rsa = Rsa::generate(2048).unwrap();
        let key = PKey::from_rsa(rsa.clone()).unwrap();
        let certificate = CertificateDer::from(b"not looked into".to_vec());
        for pem in [
            key.private_key_to_pem_pkcs8().unwrap(),
            rsa.private_key_to_pem().unwrap(),
        ] {
            let private = PrivateKeyDer::from_pem_slice(&pem).unwrap();
            let pair = key_pair(&private).unwrap();
            let text = sign(&pair, &certificate, "me", "https://there", 1000).unwrap();
            let (said, signature) = text.rsplit_once('.').unwrap();
            let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
            let signature = BASE64.decode(signature).unwrap();
            assert!(
                verifier
                    .verify_oneshot(&signature, said.as_bytes())
                    .unwrap()
            );
            let parts: Vec<Value> = said
                .split('.')
                .map(|part| serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap())
                .collect();
            let print = |digest| BASE64.encode(hash(digest, &certificate).unwrap());
            assert_eq!(parts[0]["x5t#S256"], print(MessageDigest::sha256()));
            assert_eq!(parts[0]["x5t"], print(MessageDigest::sha1()));
            assert_eq!(parts[1]["exp"], 1600);
            assert_eq!(parts[1]["sub"], "me");
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1);
        let ec = openssl::ec::EcKey::generate(&group.unwrap()).unwrap();
        let ec = PKey::from_ec_key(ec).unwrap();
        let short = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
        for key in [ec, short] {
            let pem = key.private_key_to_pem_pkcs8().unwrap();
            let private = PrivateKeyDer::from_pem_slice(&pem).unwrap();
            assert!(key_pair(&private).is_none());
        }
    }
}
