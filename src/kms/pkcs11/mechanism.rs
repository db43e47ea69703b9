//! The mechanisms: how a key of the token wraps, and what of it is in the envelope.

use cryptoki::context::Function;
use cryptoki::error::{Error as CallError, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism as Call, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use zeroize::{Zeroize, Zeroizing};

use super::failure;
use super::key::Key;
use super::lifecycle::Permission;
use super::token::{Fault, Open, Token};
use super::uri::Kind;
use crate::kms::cluster::Failed;
use crate::kms::envelope::{self, NONCE_BYTES, TAG_BYTES};
use crate::kms::{Class, Error};
use crate::secret::Secret;

/// Which mechanism a key set wraps with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// AES-GCM, with associated data.
    Gcm,
    /// AES key wrap with padding.
    Kwp,
    /// RSA-OAEP: with SHA-256, or with SHA-1 where the token has no better.
    Oaep,
}

/// A mechanism, as an envelope names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    Gcm,
    Kwp,
    OaepSha256,
    OaepSha1,
}

impl Mechanism {
    /// Those whose binding is inside of what they wrap, by their numbers in an
    /// envelope, from 1.
    const BOUND: [Self; 3] = [Self::Kwp, Self::OaepSha256, Self::OaepSha1];

    /// The highest number of them.
    pub(super) const NEWEST: u8 = 3;

    /// The mechanism with this number in an envelope.
    pub(super) fn numbered(number: u8) -> Option<Self> {
        let at = usize::from(number).checked_sub(1)?;
        Self::BOUND.get(at).copied()
    }

    /// Its number in an envelope; 0 for the one that has an envelope of its own.
    pub(super) fn number(self) -> u8 {
        match self {
            Mechanism::Gcm => 0,
            Mechanism::Kwp => 1,
            Mechanism::OaepSha256 => 2,
            Mechanism::OaepSha1 => 3,
        }
    }

    /// Its name in [`crate::kms::Wrapped::alg`]: as JOSE has it, where it has it.
    pub(super) fn alg(self) -> &'static str {
        match self {
            Mechanism::Gcm => envelope::ALG,
            Mechanism::Kwp => "A256KWP",
            Mechanism::OaepSha256 => "RSA-OAEP-256",
            Mechanism::OaepSha1 => "RSA-OAEP",
        }
    }

    /// Which attributes of a key permit it.
    pub(super) fn permission(self) -> Permission {
        match self {
            Mechanism::Kwp => Permission::Wrap,
            _ => Permission::Encrypt,
        }
    }

    /// Which kind of key it takes.
    pub(super) fn kind(self) -> Kind {
        match self {
            Mechanism::Gcm | Mechanism::Kwp => Kind::Secret,
            Mechanism::OaepSha256 | Mechanism::OaepSha1 => Kind::Private,
        }
    }

    /// The one to wrap with.
    pub(super) fn chosen(
        choice: Option<Choice>,
        session: &Open,
        token: &Token,
        key: &Key,
    ) -> Result<Self, Fault> {
        let mechanism = match (choice, key.kind) {
            (Some(Choice::Gcm), _) => Mechanism::Gcm,
            (Some(Choice::Kwp), _) => Mechanism::Kwp,
            (Some(Choice::Oaep), _) | (None, Kind::Private) => Mechanism::OaepSha256,
            (None, Kind::Secret) => {
                let (library, slot) = session.place();
                let offered = library.get_mechanism_list(slot)?;
                if offered.contains(&MechanismType::AES_GCM) {
                    Mechanism::Gcm
                } else {
                    Mechanism::Kwp
                }
            }
        };
        if mechanism.kind() == key.kind {
            return Ok(mechanism);
        }
        let (is, next) = match key.kind {
            Kind::Secret => ("a secret key", "use mechanism = \"gcm\" or \"kwp\""),
            Kind::Private => ("a key pair", "use mechanism = \"oaep\""),
        };
        Err(Error::new(
            Class::Protocol,
            format!("the key on {token} is {is}, which the mechanism of the key set is not for"),
            next,
        )
        .into())
    }
}

/// AES-GCM: the nonce, and then the ciphertext with the tag. A token that
/// chooses its nonces itself writes them into ours.
pub(super) fn gcm_encrypt(
    session: &Open,
    key: ObjectHandle,
    associated: &[u8],
    plaintext: &Secret,
) -> Result<Vec<u8>, Fault> {
    let mut nonce = envelope::nonce().map_err(no_memory)?;
    let params = GcmParams::new(&mut nonce, associated, TAG_BITS.into())?;
    let encrypted = session.encrypt(&Call::AesGcm(params), key, plaintext)?;
    if encrypted.len() != plaintext.len() + TAG_BYTES {
        return Err(Fault::Call(CallError::InvalidValue));
    }
    Ok([&nonce[..], &encrypted].concat())
}

const TAG_BITS: u64 = 8 * TAG_BYTES as u64;

/// The inverse of [`gcm_encrypt`].
pub(super) fn gcm_decrypt(
    session: &Open,
    key: ObjectHandle,
    associated: &[u8],
    bytes: &[u8],
) -> Result<Secret, Fault> {
    let Some((nonce, sealed)) = bytes.split_first_chunk::<NONCE_BYTES>() else {
        return Err(Fault::Call(CallError::InvalidValue));
    };
    let mut nonce = *nonce;
    let params = GcmParams::new(&mut nonce, associated, TAG_BITS.into())?;
    let decrypted = session.decrypt(&Call::AesGcm(params), key, sealed)?;
    kept(decrypted)
}

/// What the token makes of `bound` in a mechanism without associated data.
pub(super) fn wrap(
    session: &Open,
    mechanism: Mechanism,
    key: ObjectHandle,
    bound: &Secret,
) -> Result<Vec<u8>, Fault> {
    if mechanism != Mechanism::Kwp {
        return Ok(session.encrypt(&oaep(mechanism), key, bound)?);
    }
    // What is wrapped has to be an object of the token first.
    let mut template = template();
    template.push(Attribute::Value(bound.to_vec()));
    let made = session.create_object(&template);
    if let Some(Attribute::Value(value)) = template.last_mut() {
        value.zeroize();
    }
    let object = made?;
    let wrapped = session.wrap_key(&Call::AesKeyWrapPad, key, object);
    session.destroy_object(object)?;
    Ok(wrapped?)
}

/// The inverse of [`wrap`].
pub(super) fn unwrap(
    session: &Open,
    mechanism: Mechanism,
    key: ObjectHandle,
    ciphertext: &[u8],
) -> Result<Secret, Fault> {
    if mechanism != Mechanism::Kwp {
        return kept(session.decrypt(&oaep(mechanism), key, ciphertext)?);
    }
    let object = session.unwrap_key(&Call::AesKeyWrapPad, key, ciphertext, &template())?;
    let told = session.get_attributes(object, &[AttributeType::Value]);
    session.destroy_object(object)?;
    match told?.pop() {
        Some(Attribute::Value(value)) => kept(value),
        _ => Err(Fault::Call(CallError::InvalidValue)),
    }
}

/// An object of this session that can be read: what key wrap takes and gives.
fn template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn oaep(mechanism: Mechanism) -> Call<'static> {
    let (hash, mask) = match mechanism {
        Mechanism::OaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        _ => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Call::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

/// Whether the token does not have OAEP with SHA-256.
pub(super) fn wants_sha1(fault: &Fault) -> bool {
    use RvError::{ArgumentsBad, MechanismInvalid, MechanismParamInvalid};
    match fault {
        Fault::Call(CallError::Pkcs11(code, Function::EncryptInit)) => {
            matches!(
                code,
                ArgumentsBad | MechanismInvalid | MechanismParamInvalid
            )
        }
        _ => false,
    }
}

/// Moves what the library returned to where secrets are, and wipes it.
fn kept(bytes: Vec<u8>) -> Result<Secret, Fault> {
    let bytes = Zeroizing::new(bytes);
    Secret::copy_of(&bytes).map_err(no_memory)
}

fn no_memory(error: std::io::Error) -> Fault {
    Fault::Told(Failed::Everywhere(envelope::no_memory(&error)))
}

/// What a failed decryption or unwrapping means. Libraries say *general error*
/// where the data do not authenticate, and where the token broke: `works` tries
/// the key on other data to tell which.
pub(super) fn unopened(
    fault: Fault,
    name: &str,
    token: &Token,
    works: impl FnOnce() -> bool,
) -> Fault {
    let data = match &fault {
        Fault::Call(error) if failure::is_about_the_data(error) => true,
        Fault::Call(error) if failure::may_be_about_the_data(error) => works(),
        _ => false,
    };
    match fault {
        Fault::Call(error) if data => {
            Fault::from(bad_key(name, token).with_words(&failure::words(&error)))
        }
        fault => fault,
    }
}

/// The wrapped bytes are not what was wrapped, or not for this.
pub(super) fn bad_key(name: &str, token: &Token) -> Error {
    Error::new(
        Class::BadKey,
        format!(
            "{name} on {token} does not open the wrapped key: it was tampered with, or belongs to another volume"
        ),
        "restore the volume's header from a backup, and find out who changed it",
    )
}
