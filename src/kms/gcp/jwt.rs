//! The assertion with which the key of a service account is shown: a JWT
//! (RFC 7519, RFC 7523), signed with RS256.
//!
//! `ring` wipes nothing: while it signs, it has the key in memory of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::Serialize;
use zeroize::Zeroizing;

use super::credentials::ServiceAccount;
use super::json::Encoding;
use crate::error::Kind;
use crate::kms::{Class, Error};

/// The longest that the token service takes, in seconds.
const LIFETIME: u64 = 3600;

#[derive(Serialize)]
struct Header<'h> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'h str>,
}

#[derive(Serialize)]
struct Claims<'c> {
    iss: &'c str,
    scope: &'c str,
    aud: &'c str,
    iat: u64,
    exp: u64,
}

/// Says at the token service, for `scope`, that we are `account`.
///
/// # Errors
/// When its key is not an RSA key.
pub(super) fn assertion(
    account: &ServiceAccount,
    scope: &str,
    now: SystemTime,
) -> Result<Zeroizing<String>, Error> {
    let key = match account.encoding {
        Encoding::Pkcs8 => RsaKeyPair::from_pkcs8(&account.key),
        Encoding::Pkcs1 => RsaKeyPair::from_der(&account.key),
    };
    let key = key.map_err(|why| {
        unusable(
            account,
            &format!("is no RSA key of 2048 bits or more ({why})"),
        )
    })?;
    let iat = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let header = Header {
        alg: "RS256",
        typ: "JWT",
        kid: account.key_id.as_deref(),
    };
    let claims = Claims {
        iss: &account.email,
        scope,
        aud: &account.audience,
        iat,
        exp: iat + LIFETIME,
    };
    let broken = || unusable(account, "does not sign");
    let header = serde_json::to_vec(&header).map_err(|_| broken())?;
    let claims = serde_json::to_vec(&claims).map_err(|_| broken())?;
    let mut text = Zeroizing::new(String::with_capacity(4096));
    URL_SAFE_NO_PAD.encode_string(header, &mut text);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut text);
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        text.as_bytes(),
        &mut signature,
    )
    .map_err(|_| broken())?;
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    Ok(text)
}

fn unusable(account: &ServiceAccount, why: &str) -> Error {
    Error::new(
        Class::Unreachable,
        format!("the private key of {} {why}", account.email),
        "make the file again: gcloud iam service-accounts keys create",
    )
    .with_kind(Kind::Usage)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::rsa::Rsa;
    use openssl::sign::Verifier;
    use serde_json::Value;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn another_implementation_takes_the_assertion() {
        let rsa = Rsa::generate(2048).unwrap();
        let public = PKey::public_key_from_der(&rsa.public_key_to_der().unwrap()).unwrap();
        let pkcs1 = rsa.private_key_to_der().unwrap();
        let pkcs8 = PKey::from_rsa(rsa).unwrap().private_key_to_pkcs8().unwrap();
        for (encoding, der) in [(Encoding::Pkcs1, pkcs1), (Encoding::Pkcs8, pkcs8)] {
            let account = ServiceAccount {
                email: "host@p.iam.gserviceaccount.com".into(),
                key_id: Some("abc".into()),
                key: Secret::copy_of(&der).unwrap(),
                encoding,
                token_uri: "https://mtls.googleapis.com/token".parse().unwrap(),
                audience: "https://oauth2.googleapis.com/token".into(),
            };
            let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
            let text = assertion(&account, "scope", now).unwrap();
            let (signed, signature) = text.rsplit_once('.').unwrap();
            let mut verifier = Verifier::new(MessageDigest::sha256(), &public).unwrap();
            verifier.update(signed.as_bytes()).unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            assert!(verifier.verify(&signature).unwrap());
            let (header, claims) = signed.split_once('.').unwrap();
            let read = |part: &str| -> Value {
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
            };
            let header = read(header);
            assert_eq!(
                (&header["alg"], &header["kid"]),
                (&"RS256".into(), &"abc".into())
            );
            let claims = read(claims);
            assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
            assert_eq!(claims["iss"], account.email);
            assert_eq!(claims["scope"], "scope");
            assert_eq!(claims["exp"].as_u64().unwrap(), 1_700_003_600);
        }
    }

    #[test]
    fn another_key_is_told() {
        let account = ServiceAccount {
            email: "a@b".into(),
            key_id: None,
            key: Secret::copy_of(b"no key").unwrap(),
            encoding: Encoding::Pkcs8,
            token_uri: "https://x".parse().unwrap(),
            audience: "https://x".into(),
        };
        let error = assertion(&account, "scope", SystemTime::now()).unwrap_err();
        assert_eq!(error.class(), Class::Unreachable);
        assert!(error.to_string().contains("a@b"), "{error}");
    }
}
