//! What a provider does, on a token.

use super::key;
use super::lifecycle::Purpose;
use super::mechanism::{self, Choice, Mechanism};
use super::name::{self, Wanted};
use super::sealing::{self, Envelope};
use super::token::Token;
use crate::kms::cluster::Failed;
use crate::kms::{KeyVersion, Wrapped};
use crate::secret::Secret;

/// Wraps with the key that is wanted.
pub(super) fn wrap(
    token: &Token,
    wanted: &Wanted,
    choice: Option<Choice>,
    plaintext: &Secret,
    aad: &[u8],
) -> Result<Wrapped, Failed> {
    let key_id = wanted.name.to_string();
    token.with_session(&key_id, |session| {
        let key = key::resolve(session, token, wanted)?;
        let mut mechanism = Mechanism::chosen(choice, session, token, &key)?;
        key.check(&key_id, token, mechanism.permission(), Purpose::Wrap)?;
        let version = name::version(&key.told.id);
        let seal = |mechanism| {
            let names = (key_id.as_str(), version.as_str());
            sealing::seal(session, token, &key, names, mechanism, plaintext, aad)
        };
        let mut sealed = seal(mechanism);
        if mechanism == Mechanism::OaepSha256 && sealed.as_ref().is_err_and(mechanism::wants_sha1) {
            mechanism = Mechanism::OaepSha1;
            sealed = seal(mechanism);
        }
        let bytes = sealed?;
        Ok(Wrapped {
            key_id: key_id.clone(),
            version,
            alg: mechanism.alg().into(),
            bytes,
        })
    })
}

/// Opens with the key that is wanted, which the envelope names.
pub(super) fn unwrap(
    token: &Token,
    wanted: &Wanted,
    wrapped: &Wrapped,
    aad: &[u8],
) -> Result<Secret, Failed> {
    let key_id = &wrapped.key_id;
    token.with_session(key_id, |session| {
        let envelope = Envelope::of(wrapped)?;
        let mechanism = envelope.mechanism();
        let key = key::resolve(session, token, wanted)?;
        key.check(key_id, token, mechanism.permission(), Purpose::Unwrap)?;
        if key.kind != mechanism.kind() {
            return Err(mechanism::bad_key(key_id, token).into());
        }
        match sealing::open(session, &key, &envelope, aad) {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) => Err(mechanism::bad_key(key_id, token).into()),
            Err(fault) => Err(mechanism::unopened(fault, key_id, token, || {
                sealing::works(session, token, &key, mechanism)
            })),
        }
    })
}

/// The version that would be wrapped with now.
pub(super) fn current(
    token: &Token,
    wanted: &Wanted,
    choice: Option<Choice>,
) -> Result<KeyVersion, Failed> {
    token.with_session(&wanted.name.to_string(), |session| {
        let key = key::resolve(session, token, wanted)?;
        let mechanism = Mechanism::chosen(choice, session, token, &key)?;
        let may = key.told.is_enabled(mechanism.permission());
        Ok(KeyVersion {
            id: name::version(&key.told.id),
            enabled: may && key.wrapper.is_some(),
            expires: key.told.expires(),
        })
    })
}
