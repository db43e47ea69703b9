//! Keys on a token: which one is meant, and whether it may be used.
//!
//! PKCS#11 knows no versions. Here a *key* is what a label names, and its
//! *versions* are the objects that have the label, by `CKA_ID`. The latest is
//! the one whose `CKA_START_DATE` is the newest that has come (none counts as
//! the oldest), and among these the one with the highest `CKA_ID`, as a number.

use cryptoki::error::RvError;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::failure;
use super::lifecycle::{self, Date, Permission, Purpose, Told};
use super::name::{KeyName, Wanted, version};
use super::token::{Fault, Open, Token};
use super::uri::Kind;
use crate::error::Kind as ErrorKind;
use crate::kms::{Class, Error};

/// More versions than anybody keeps.
const VERSIONS_MAX: usize = 1024;

/// The length of the AES keys that are used, in bytes.
const AES_BYTES: usize = 32;

/// The length of the shortest RSA keys that are used, in bytes.
const RSA_BYTES_MIN: usize = 256;

/// A key on the token, as it is now.
#[derive(Debug)]
pub(super) struct Key {
    /// That which unwraps.
    pub(super) handle: ObjectHandle,
    /// That which wraps: the public key of a pair, if it is there.
    pub(super) wrapper: Option<ObjectHandle>,
    pub(super) kind: Kind,
    /// What the token tells of it.
    pub(super) told: Told,
}

impl Key {
    /// Checks that it may be used, and is a key that can be.
    pub(super) fn check(
        &self,
        name: &str,
        token: &Token,
        permission: Permission,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let key = format!("{name} on {token}");
        lifecycle::check(&key, &self.told, permission, purpose, Date::today())
    }
}

/// The key that is meant, whatever its state: the object with this `CKA_ID`,
/// or else the latest version.
pub(super) fn resolve(session: &Open, token: &Token, wanted: &Wanted) -> Result<Key, Fault> {
    let Wanted { name, id } = wanted;
    let id = match (name.id.as_deref(), id.as_deref()) {
        (Some(named), Some(id)) if named != id => return Err(not_found(token, name, Some(id))),
        (named, id) => named.or(id),
    };
    let mut keys = Vec::new();
    for kind in [Kind::Secret, Kind::Private] {
        if name.kind.is_none_or(|wanted| wanted == kind) {
            find(session, token, name, id, kind, &mut keys)?;
        }
    }
    if keys.iter().any(|key| key.kind != keys[0].kind) {
        return Err(ambiguous(
            token,
            name,
            "a secret key and a private key",
            "add type=secret-key or type=private to the URI",
        ));
    }
    let today = Date::today();
    let best = keys.iter().map(|key| key.told.rank(today)).max();
    keys.retain(|key| Some(key.told.rank(today)) == best);
    match (keys.pop(), keys.len()) {
        (None, _) => Err(not_found(token, name, id)),
        (Some(key), 0) => Ok(key),
        (Some(_), _) => Err(ambiguous(
            token,
            name,
            "several keys with the same CKA_ID",
            "give each its own CKA_ID: it is what tells versions apart",
        )),
    }
}

fn not_found(token: &Token, name: &KeyName, id: Option<&[u8]>) -> Fault {
    let which = id.map_or_else(String::new, |id| format!(" with CKA_ID {}", version(id)));
    Error::new(
        Class::NotFound,
        format!("{token} has no key {name}{which}"),
        "check label and id, and that this user may see the key; it may have been deleted",
    )
    .into()
}

fn ambiguous(token: &Token, name: &KeyName, what: &str, next: &str) -> Fault {
    Error::new(
        Class::Protocol,
        format!("{token} has {what} that are called {name}"),
        next,
    )
    .with_kind(ErrorKind::Usage)
    .into()
}

fn find(
    session: &Open,
    token: &Token,
    name: &KeyName,
    id: Option<&[u8]>,
    kind: Kind,
    keys: &mut Vec<Key>,
) -> Result<(), Fault> {
    let class = match kind {
        Kind::Secret => ObjectClass::SECRET_KEY,
        Kind::Private => ObjectClass::PRIVATE_KEY,
    };
    let mut wanted = vec![Attribute::Class(class), Attribute::Token(true)];
    wanted.extend(
        name.label
            .as_ref()
            .map(|label| Attribute::Label(label.as_bytes().into())),
    );
    wanted.extend(id.map(|id| Attribute::Id(id.into())));
    let found = session.find_objects(&wanted)?;
    if found.len() > VERSIONS_MAX {
        return Err(ambiguous(
            token,
            name,
            "more than 1024 keys",
            "delete old keys that nothing needs",
        ));
    }
    for handle in found {
        keys.push(read(session, token, name, kind, handle)?);
    }
    Ok(())
}

fn read(
    session: &Open,
    token: &Token,
    name: &KeyName,
    kind: Kind,
    handle: ObjectHandle,
) -> Result<Key, Fault> {
    let mut wanted = vec![
        AttributeType::Id,
        AttributeType::KeyType,
        AttributeType::Decrypt,
        AttributeType::Unwrap,
    ];
    wanted.extend(match kind {
        Kind::Secret => &[
            AttributeType::ValueLen,
            AttributeType::Encrypt,
            AttributeType::Wrap,
        ][..],
        Kind::Private => &[AttributeType::Modulus],
    });
    let mut told = Told::default();
    let (mut algorithm, mut bytes, mut modulus) = (None, 0, Vec::new());
    let attributes = [
        session.get_attributes(handle, &wanted)?,
        dates(session, token, name, handle)?,
    ];
    for attribute in attributes.into_iter().flatten() {
        match attribute {
            Attribute::Id(id) => told.id = id,
            Attribute::KeyType(kind) => algorithm = Some(kind),
            Attribute::StartDate(date) => told.start = Date::of(&date),
            Attribute::EndDate(date) => told.end = Date::of(&date),
            Attribute::Encrypt(may) => told.may.encrypt = may,
            Attribute::Decrypt(may) => told.may.decrypt = may,
            Attribute::Wrap(may) => told.may.wrap = may,
            Attribute::Unwrap(may) => told.may.unwrap = may,
            Attribute::ValueLen(length) => bytes = usize::try_from(*length).unwrap_or(0),
            Attribute::Modulus(found) => modulus = found,
            _ => {}
        }
    }
    if told.id.is_empty() {
        return Err(Error::new(
            Class::Protocol,
            format!("a key {name} on {token} has no CKA_ID, which its version would be"),
            "give it one with the tools of the token",
        )
        .into());
    }
    let wrapper = match kind {
        Kind::Secret => {
            if (algorithm, bytes) != (Some(KeyType::AES), AES_BYTES) {
                told.unfit = Some("is not an AES-256 key");
            }
            Some(handle)
        }
        Kind::Private => {
            let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
            if algorithm != Some(KeyType::RSA) || modulus.len() - zeros < RSA_BYTES_MIN {
                told.unfit = Some("is not an RSA key with 2048 bits or more");
            }
            let public = public_of(session, &told.id, &modulus)?;
            // Without one, that is told when it is wanted.
            told.may.encrypt = public.is_none_or(|(_, may)| may);
            public.map(|(public, _)| public)
        }
    };
    Ok(Key {
        handle,
        wrapper,
        kind,
        told,
    })
}

/// From when and up to when the key is to be used. SoftHSM 2.6 cannot tell this
/// of private objects, and a date that is not seen must not be passed over.
fn dates(
    session: &Open,
    token: &Token,
    name: &KeyName,
    handle: ObjectHandle,
) -> Result<Vec<Attribute>, Fault> {
    let wanted = [AttributeType::StartDate, AttributeType::EndDate];
    session.get_attributes(handle, &wanted).map_err(|error| {
        if failure::code(&error) != Some(RvError::GeneralError) {
            return Fault::Call(error);
        }
        let error = Error::new(
            Class::Protocol,
            format!("{token} cannot tell CKA_START_DATE and CKA_END_DATE of {name}"),
            "make the key without these dates, or with CKA_PRIVATE false",
        )
        .with_words(&failure::words(&error));
        error.into()
    })
}

/// The public key that belongs to the private one with this id and modulus,
/// and whether it may encrypt. Public keys can be put on a token by many, so
/// the id alone does not do.
fn public_of(
    session: &Open,
    id: &[u8],
    modulus: &[u8],
) -> Result<Option<(ObjectHandle, bool)>, Fault> {
    let wanted = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        Attribute::Id(id.into()),
    ];
    let told = [AttributeType::Modulus, AttributeType::Encrypt];
    for public in session.find_objects(&wanted)? {
        let told = session.get_attributes(public, &told)?;
        if told.contains(&Attribute::Modulus(modulus.into())) {
            return Ok(Some((public, told.contains(&Attribute::Encrypt(true)))));
        }
    }
    Ok(None)
}
