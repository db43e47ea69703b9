//! What a host gets to keep: the wrap that a key set of the broker made, with
//! the wrapped group key in it. So any broker with the same key set opens it.
//!
//! ```text
//!  0  4  magic "sbBW"
//!  4  1  version: 1
//!  5 32  SHA-256 of the rest
//! 37  n  the wrap as JSON, as it stands in the token of a volume
//! ```
//!
//! Nothing in it is believed before the key set has opened it, but for the
//! name of the key set, by which the policy decides: so that has to be the one
//! that was asked for. JSON that could be written in another way is refused,
//! so that no bit of it can change unnoticed. The digest authenticates nothing:
//! it tells bytes that were damaged from the name of a key that is gone.
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};

use crate::kms::envelope::{check_beside, damaged};
use crate::kms::{Class, Error, Wrapped};
use crate::volume::token::Wrap;

const MAGIC: [u8; 4] = *b"sbBW";
const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 32;

/// What the algorithm of the key set is called at the host.
fn alg(wrap: &Wrap) -> String {
    format!("broker+{}", wrap.alg)
}

/// What the host gets.
///
/// # Errors
/// When the wrap is none that can be written.
pub fn of(wrap: &Wrap) -> Result<Wrapped, Error> {
    let json = serde_json::to_vec(wrap).map_err(|error| {
        Error::new(
            Class::Protocol,
            format!("the wrapped key cannot be written: {error}"),
            "this is a defect of sealblk: report it",
        )
    })?;
    Ok(Wrapped {
        key_id: wrap.key_set.clone(),
        version: wrap.key_version.clone(),
        alg: alg(wrap),
        bytes: bytes(&json),
    })
}

/// The bytes of a wrap that is `json`.
fn bytes(json: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &[VERSION], &Sha256::digest(json), json].concat()
}

/// What a host brings back, for that key set.
///
/// # Errors
/// When it is not what [`of`] made, or of another key set.
pub fn read(wrapped: &Wrapped, key_set: &str) -> Result<Wrap, Error> {
    let not_ours = |why: &str| {
        damaged(format!(
            "the wrapped bytes were not made by a broker, or are damaged: {why}"
        ))
    };
    let rest = wrapped.bytes.strip_prefix(&MAGIC);
    let rest = rest.ok_or_else(|| not_ours("they do not begin as such bytes do"))?;
    let json = match rest.split_first() {
        Some((&VERSION, json)) => json,
        Some((0, _)) | None => return Err(not_ours("they have no version")),
        Some((newer, _)) => {
            return Err(Error::new(
                Class::Protocol,
                format!("the wrapped bytes have version {newer}, made by a newer broker"),
                "upgrade sealblk on this broker",
            ));
        }
    };
    let (digest, json) = json
        .split_at_checked(DIGEST_BYTES)
        .ok_or_else(|| not_ours("they are too short"))?;
    if digest != &Sha256::digest(json)[..] {
        return Err(not_ours("their digest is another one"));
    }
    let wrap: Wrap = serde_json::from_slice(json).map_err(|_| not_ours("they are no wrap"))?;
    let extra = !wrap.extra.is_empty() || wrap.group.iter().any(|group| !group.extra.is_empty());
    if extra || serde_json::to_vec(&wrap).ok().as_deref() != Some(json) {
        return Err(not_ours("they are not as a broker writes them"));
    }
    check_beside(&[
        ("key set", key_set, &wrap.key_set),
        ("key set", &wrapped.key_id, &wrap.key_set),
        ("version", &wrapped.version, &wrap.key_version),
        ("algorithm", &wrapped.alg, &alg(&wrap)),
    ])?;
    Ok(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::token::{Bound, Group};

    fn sample() -> Wrap {
        Wrap {
            key_set: "prod".into(),
            provider: "vault".into(),
            key_id: "kek".into(),
            key_version: "3".into(),
            alg: "aes256-gcm96".into(),
            bound: Bound::Group,
            bytes: vec![7; 62],
            group: Some(Group {
                id: uuid::Uuid::from_u128(0xabcdef),
                bytes: vec![9; 100],
                extra: Default::default(),
            }),
            extra: Default::default(),
        }
    }

    #[test]
    fn what_a_host_keeps_comes_back_as_it_was() {
        let wrapped = of(&sample()).unwrap();
        assert_eq!(
            (&*wrapped.key_id, &*wrapped.version, &*wrapped.alg),
            ("prod", "3", "broker+aes256-gcm96")
        );
        assert_eq!(read(&wrapped, "prod").unwrap(), sample());
        // Whoever may use another key set does not get to this one.
        let error = read(&wrapped, "test").unwrap_err();
        assert_eq!(error.class(), Class::BadKey);
    }

    #[test]
    fn no_bit_can_change_unnoticed() {
        let wrapped = of(&sample()).unwrap();
        for bit in 0..wrapped.bytes.len() * 8 {
            let mut changed = wrapped.clone();
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            let class = read(&changed, "prod").unwrap_err().class();
            assert!(
                matches!(class, Class::BadKey | Class::Protocol),
                "bit {bit}"
            );
        }
        for change in [
            |w: &mut Wrapped| w.key_id.push('x'),
            |w: &mut Wrapped| w.version.push('x'),
            |w: &mut Wrapped| w.alg.push('x'),
            |w: &mut Wrapped| w.bytes.push(b' '),
            |w: &mut Wrapped| w.bytes.insert(5, b' '),
            |w: &mut Wrapped| w.bytes.truncate(5),
            |w: &mut Wrapped| w.bytes.clear(),
        ] {
            let mut changed = wrapped.clone();
            change(&mut changed);
            assert_eq!(read(&changed, "prod").unwrap_err().class(), Class::BadKey);
        }
    }
}
