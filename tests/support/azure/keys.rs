//! Keys with real cryptography, by OpenSSL.

use openssl::aes::{AesKey, unwrap_key, wrap_key};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::{CipherCtx, CipherCtxFlags};
use openssl::encrypt::{Decrypter, Encrypter};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::{Padding, Rsa};
use serde_json::{Value, json};

use super::{b64, now};

/// What a key is made of.
pub enum Material {
    Rsa(PKey<Private>),
    Aes(Vec<u8>),
    /// A kind that wraps nothing.
    Ec,
}

pub struct Version {
    pub id: String,
    pub kty: String,
    pub material: Material,
    pub ops: Vec<String>,
    pub enabled: bool,
    pub nbf: Option<u64>,
    pub exp: Option<u64>,
    pub created: u64,
}

impl Version {
    /// A key of a kind that the service has, with as many bits.
    pub fn new(kty: &str, bits: u32) -> Option<Self> {
        let material = match kty {
            "RSA" | "RSA-HSM" => {
                Material::Rsa(PKey::from_rsa(Rsa::generate(bits).unwrap()).unwrap())
            }
            "oct-HSM" => {
                let mut key = vec![0; bits as usize / 8];
                openssl::rand::rand_bytes(&mut key).unwrap();
                Material::Aes(key)
            }
            "EC" | "EC-HSM" => Material::Ec,
            _ => return None,
        };
        let mut id = [0; 16];
        openssl::rand::rand_bytes(&mut id).unwrap();
        Some(Version {
            id: hex::encode(id),
            kty: kty.into(),
            ops: default_ops(&material),
            material,
            enabled: true,
            nbf: None,
            exp: None,
            created: now(),
        })
    }

    /// The public part, as the service shows it.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = json!({"kid": kid, "kty": self.kty, "key_ops": self.ops});
        if let Material::Rsa(key) = &self.material {
            let rsa = key.rsa().unwrap();
            jwk["n"] = b64(&rsa.n().to_vec()).into();
            jwk["e"] = b64(&rsa.e().to_vec()).into();
        }
        jwk
    }

    pub fn attributes(&self, recovery: &str) -> Value {
        let mut attributes = json!({
            "enabled": self.enabled,
            "created": self.created,
            "updated": self.created,
            "recoveryLevel": recovery,
            "recoverableDays": 90,
            "exportable": false,
        });
        for (name, time) in [("nbf", self.nbf), ("exp", self.exp)] {
            if let Some(time) = time {
                attributes[name] = time.into();
            }
        }
        attributes
    }

    /// `None` if the key has no such algorithm, or cannot take so much.
    pub fn wrap(&self, alg: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        match (&self.material, alg) {
            (Material::Rsa(key), "RSA-OAEP-256") => {
                let mut encrypter = Encrypter::new(key).unwrap();
                encrypter.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
                encrypter.set_rsa_oaep_md(MessageDigest::sha256()).unwrap();
                encrypter.set_rsa_mgf1_md(MessageDigest::sha256()).unwrap();
                let mut out = vec![0; encrypter.encrypt_len(bytes).ok()?];
                let length = encrypter.encrypt(bytes, &mut out).ok()?;
                out.truncate(length);
                Some(out)
            }
            (Material::Aes(key), "A256KW" | "CKM_AES_KEY_WRAP") if key.len() == 32 => {
                if bytes.len() < 16 || !bytes.len().is_multiple_of(8) {
                    return None;
                }
                let mut out = vec![0; bytes.len() + 8];
                let key = AesKey::new_encrypt(key).unwrap();
                wrap_key(&key, None, &mut out, bytes).ok()?;
                Some(out)
            }
            (Material::Aes(key), "CKM_AES_KEY_WRAP_PAD") if key.len() == 32 => {
                padded(key, bytes, true)
            }
            _ => None,
        }
    }

    /// `None` if it does not open.
    pub fn unwrap(&self, alg: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        match (&self.material, alg) {
            (Material::Rsa(key), "RSA-OAEP-256") => {
                let mut decrypter = Decrypter::new(key).unwrap();
                decrypter.set_rsa_padding(Padding::PKCS1_OAEP).unwrap();
                decrypter.set_rsa_oaep_md(MessageDigest::sha256()).unwrap();
                decrypter.set_rsa_mgf1_md(MessageDigest::sha256()).unwrap();
                let mut out = vec![0; decrypter.decrypt_len(bytes).ok()?];
                let length = decrypter.decrypt(bytes, &mut out).ok()?;
                out.truncate(length);
                Some(out)
            }
            (Material::Aes(key), "A256KW" | "CKM_AES_KEY_WRAP") if key.len() == 32 => {
                if bytes.len() < 24 || !bytes.len().is_multiple_of(8) {
                    return None;
                }
                let mut out = vec![0; bytes.len() - 8];
                let key = AesKey::new_decrypt(key).unwrap();
                unwrap_key(&key, None, &mut out, bytes).ok()?;
                Some(out)
            }
            (Material::Aes(key), "CKM_AES_KEY_WRAP_PAD") if key.len() == 32 => {
                padded(key, bytes, false)
            }
            _ => None,
        }
    }
}

fn default_ops(material: &Material) -> Vec<String> {
    let ops: &[&str] = match material {
        Material::Rsa(_) => &[
            "encrypt",
            "decrypt",
            "sign",
            "verify",
            "wrapKey",
            "unwrapKey",
        ],
        Material::Aes(_) => &["encrypt", "decrypt", "wrapKey", "unwrapKey"],
        Material::Ec => &["sign", "verify"],
    };
    ops.iter().map(|op| (*op).to_owned()).collect()
}

/// AES key wrap with padding (RFC 5649).
fn padded(key: &[u8], bytes: &[u8], wrap: bool) -> Option<Vec<u8>> {
    if !wrap && (bytes.len() < 16 || !bytes.len().is_multiple_of(8)) {
        return None;
    }
    let mut context = CipherCtx::new().unwrap();
    context.set_flags(CipherCtxFlags::FLAG_WRAP_ALLOW);
    let cipher = Cipher::aes_256_wrap_pad();
    match wrap {
        true => context.encrypt_init(Some(cipher), Some(key), None),
        false => context.decrypt_init(Some(cipher), Some(key), None),
    }
    .unwrap();
    let mut out = Vec::new();
    context.cipher_update_vec(bytes, &mut out).ok()?;
    context.cipher_final_vec(&mut out).ok()?;
    Some(out)
}
