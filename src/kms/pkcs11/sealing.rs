//! Envelopes: wrapping into them, and opening them.

use super::key::Key;
use super::mechanism::{self, Mechanism};
use super::token::{Fault, Open, Token};
use crate::kms::cluster::Failed;
use crate::kms::envelope::{self, ALG, bound, check_beside, named};
use crate::kms::{Class, Error, Wrapped};
use crate::secret::Secret;

/// An envelope of this provider, taken apart.
pub(super) enum Envelope<'a> {
    Gcm(named::Envelope<'a>),
    Bound(Mechanism, bound::Envelope<'a>),
}

impl<'a> Envelope<'a> {
    pub(super) fn of(wrapped: &'a Wrapped) -> Result<Self, Error> {
        let envelope = if bound::is_one(&wrapped.bytes) {
            let envelope = bound::parse(Mechanism::NEWEST, &wrapped.bytes)?;
            let Some(mechanism) = Mechanism::numbered(envelope.algorithm) else {
                return Err(envelope::damaged("the wrapped bytes name no mechanism"));
            };
            Envelope::Bound(mechanism, envelope)
        } else {
            Envelope::Gcm(named::parse(&wrapped.bytes)?)
        };
        let (alg, key_id, version) = match &envelope {
            Envelope::Gcm(envelope) => (ALG, envelope.key_id, envelope.version),
            Envelope::Bound(mechanism, envelope) => {
                (mechanism.alg(), envelope.key_id, envelope.version)
            }
        };
        check_beside(&[
            ("key", &wrapped.key_id, key_id),
            ("key version", &wrapped.version, version),
            ("algorithm", &wrapped.alg, alg),
        ])?;
        Ok(envelope)
    }

    pub(super) fn mechanism(&self) -> Mechanism {
        match self {
            Envelope::Gcm(_) => Mechanism::Gcm,
            Envelope::Bound(mechanism, _) => *mechanism,
        }
    }
}

/// Wraps with a key in one mechanism: the whole envelope.
pub(super) fn seal(
    session: &Open,
    token: &Token,
    key: &Key,
    names: (&str, &str),
    mechanism: Mechanism,
    plaintext: &Secret,
    aad: &[u8],
) -> Result<Vec<u8>, Fault> {
    let (key_id, version) = names;
    let Some(wrapper) = key.wrapper else {
        return Err(Error::new(
            Class::NotFound,
            format!("{token} has the private key {key_id}, and no public key with its CKA_ID"),
            "put the public key on the token, too",
        )
        .into());
    };
    let long = || {
        Error::new(
            Class::Protocol,
            format!("label and id of {key_id} on {token} are too long"),
            "give the key a shorter label",
        )
    };
    let no_memory = |error| Fault::Told(Failed::Everywhere(envelope::no_memory(&error)));
    if mechanism == Mechanism::Gcm {
        let header = named::header(key_id, version).ok_or_else(long)?;
        let associated = envelope::associated(&header, aad);
        let sealed = mechanism::gcm_encrypt(session, wrapper, &associated, plaintext)?;
        return Ok([header, sealed].concat());
    }
    let header = bound::header(mechanism.number(), key_id, version)
        .map_err(no_memory)?
        .ok_or_else(long)?;
    let inside = bound::bind(&header, plaintext, aad).map_err(no_memory)?;
    let ciphertext = mechanism::wrap(session, mechanism, wrapper, &inside)?;
    Ok([header, ciphertext].concat())
}

/// Opens an envelope with the key that it names.
pub(super) fn open(
    session: &Open,
    key: &Key,
    envelope: &Envelope<'_>,
    aad: &[u8],
) -> Result<Option<Secret>, Fault> {
    match envelope {
        Envelope::Gcm(named::Envelope { sealed, .. }) => {
            let associated = sealed.associated(aad);
            let bytes = [sealed.nonce, sealed.ciphertext, sealed.tag].concat();
            let opened = mechanism::gcm_decrypt(session, key.handle, &associated, &bytes)?;
            Ok((opened.len() == sealed.ciphertext.len()).then_some(opened))
        }
        Envelope::Bound(mechanism, envelope) => {
            let inside = mechanism::unwrap(session, *mechanism, key.handle, envelope.ciphertext)?;
            let opened = envelope.unbind(&inside, aad);
            opened.map_err(|error| Fault::Told(Failed::Everywhere(envelope::no_memory(&error))))
        }
    }
}

/// Whether a key does now what it is for: with data of our own.
pub(super) fn works(session: &Open, token: &Token, key: &Key, mechanism: Mechanism) -> bool {
    let names = ("pkcs11:object=trial", "00");
    let tried = || {
        let Ok(trial) = Secret::random(32) else {
            return Ok(false);
        };
        if !key.told.is_enabled(mechanism.permission()) || key.wrapper.is_none() {
            // It only unwraps. That the token still answers has to do.
            session.get_session_info()?;
            return Ok(true);
        }
        let sealed = seal(session, token, key, names, mechanism, &trial, b"")?;
        let sealed = Wrapped {
            key_id: names.0.into(),
            version: names.1.into(),
            alg: mechanism.alg().into(),
            bytes: sealed,
        };
        let envelope = Envelope::of(&sealed)?;
        Ok::<_, Fault>(open(session, key, &envelope, b"")? == Some(trial))
    };
    tried().unwrap_or(false)
}
