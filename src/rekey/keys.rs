//! The keys of one operation, derived from both states of the data.

use std::io;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce, Tag};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::hmac::{self, HMAC_SHA256};
use uuid::Uuid;

use super::{Error, Facts, Kind, SECTOR};
use crate::secret::{DEK_BYTES, Dek, Secret, SecretBox, scrub_stack, scrubbed};

/// The length of a tag, in bytes.
pub const TAG_BYTES: usize = 16;
/// The length of what authenticates a record, in bytes.
pub const MAC_BYTES: usize = 32;

const PURPOSE: &[u8] = b"sealblk rekey v1";
const PREVIOUS: &[u8] = b"sealblk previous key v1";
const NONCE_BYTES: usize = 12;
const GCM_TAG_BYTES: usize = 16;

/// The length of what [`seal_previous`] makes, in bytes.
pub const PREVIOUS_BYTES: usize = NONCE_BYTES + DEK_BYTES + GCM_TAG_BYTES;

/// A tag of 512 stored bytes at their place.
pub type SectorTag = [u8; TAG_BYTES];

/// What authenticates the records and tells the states of sectors apart, in one
/// operation. Without both DEKs nobody has them.
#[derive(Debug)]
pub struct Keys {
    id: Uuid,
    size: u64,
    records: SecretBox<hmac::Key>,
    tags: SecretBox<hmac::Key>,
}

impl Keys {
    /// The keys of the operation that `facts` are of. `old` and `new` are the
    /// keys of the data before and after; `None` is plain.
    ///
    /// # Errors
    /// When the kind of the operation is not of such keys, or there is no
    /// secret memory.
    pub fn derive(facts: &Facts, old: Option<&Dek>, new: Option<&Dek>) -> Result<Self, Error> {
        let fit = match facts.kind {
            Kind::Rekey => old.is_some() && new.is_some(),
            Kind::Encrypt => old.is_none() && new.is_some(),
            Kind::Decrypt => old.is_some() && new.is_none(),
        };
        if !fit {
            return Err(Error::Unfit("its keys are not those of its kind"));
        }
        let length = |dek: Option<&Dek>| dek.map_or(0, |dek| dek.bytes().len());
        let mut input = secret(8 + length(old) + length(new))?;
        let mut at = 0;
        for dek in [old, new] {
            let bytes = dek.map_or(&[][..], Dek::bytes);
            input[at..at + 4].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
            at += 4;
            input[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        let derived = derive(facts, &input, PURPOSE, 2 * MAC_BYTES)?;
        let (records, tags) = derived.split_at(MAC_BYTES);
        let keys = Keys {
            id: facts.id,
            size: facts.size,
            records: mac_key(records)?,
            tags: mac_key(tags)?,
        };
        scrub_stack();
        Ok(keys)
    }

    /// The operation.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The length of the data, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What proves these bytes of a record.
    pub(super) fn record(&self, bytes: &[u8]) -> hmac::Tag {
        hmac::sign(&self.records, bytes)
    }

    /// Whether `mac` is of these bytes of a record.
    pub(super) fn proves(&self, bytes: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.records, bytes, mac).is_ok()
    }

    /// Tags `stored`, whole sectors of 512 bytes from that byte of the disk on,
    /// into as many tags. Neither allocates nor locks.
    ///
    /// # Panics
    /// When there are not as many tags as sectors.
    pub fn tag(&self, position: u64, stored: &[u8], tags: &mut [SectorTag]) {
        let (sectors, rest) = stored.as_chunks::<SECTOR>();
        assert!(
            rest.is_empty() && sectors.len() == tags.len(),
            "one tag for each sector"
        );
        let first = position / SECTOR as u64;
        for ((number, sector), tag) in (first..).zip(sectors).zip(tags) {
            let mut context = hmac::Context::with_key(&self.tags);
            context.update(&number.to_be_bytes());
            context.update(sector);
            tag.copy_from_slice(&context.sign().as_ref()[..TAG_BYTES]);
        }
    }
}

/// The old DEK, encrypted under a key that is derived from the main one: what
/// the token has as `previous`.
///
/// # Errors
/// When there is no secret memory, or no random bytes.
pub fn seal_previous(facts: &Facts, main: &Dek, old: &Dek) -> Result<Vec<u8>, Error> {
    let key = derive(facts, main.bytes(), PREVIOUS, MAC_BYTES)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| Error::Memory(io::Error::other(error)))?;
    // Encrypted in secret memory: the key is never in ordinary memory.
    let mut buffer = Secret::copy_of(old.bytes()).map_err(Error::Memory)?;
    let (key, info) = (gcm_key(&key)?, info(facts, PREVIOUS));
    let tag = scrubbed(|| {
        let buffer = (&mut buffer[..]).into();
        Aes256Gcm::new(key).encrypt_inout_detached(&nonce.into(), &info, buffer)
    })
    .map_err(|_| Error::Unfit("its previous key cannot be sealed"))?;
    Ok([&nonce[..], &buffer, &tag].concat())
}

/// The old DEK out of what [`seal_previous`] made.
///
/// # Errors
/// When it was not made for these facts and this key, or there is no secret memory.
pub fn open_previous(facts: &Facts, main: &Dek, sealed: &[u8]) -> Result<Dek, Error> {
    if sealed.len() != PREVIOUS_BYTES {
        return Err(Error::Previous);
    }
    let (nonce, rest) = sealed.split_at(NONCE_BYTES);
    let (ciphertext, tag) = rest.split_at(DEK_BYTES);
    let (Ok(nonce), Ok(tag)) = (Nonce::try_from(nonce), Tag::try_from(tag)) else {
        return Err(Error::Previous);
    };
    let key = derive(facts, main.bytes(), PREVIOUS, MAC_BYTES)?;
    let mut buffer = Secret::copy_of(ciphertext).map_err(Error::Memory)?;
    let (key, info) = (gcm_key(&key)?, info(facts, PREVIOUS));
    scrubbed(|| {
        let buffer = (&mut buffer[..]).into();
        Aes256Gcm::new(key).decrypt_inout_detached(&nonce, &info, buffer, &tag)
    })
    .map_err(|_| Error::Previous)?;
    Dek::try_from(buffer).map_err(|_| Error::Previous)
}

/// HKDF-SHA-256 (RFC 5869) of `input`, into `length` bytes.
fn derive(facts: &Facts, input: &[u8], purpose: &[u8], length: usize) -> Result<Secret, Error> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut derived = secret(length)?;
    let prk: Prk = Salt::new(HKDF_SHA256, facts.id.as_bytes()).extract(input);
    let info = info(facts, purpose);
    prk.expand(&[&info], Length(length))
        .and_then(|okm| okm.fill(&mut derived))
        .map_err(|_| Error::Unfit("no key of that length is derived"))?;
    scrub_stack();
    Ok(derived)
}

/// What a key is for: `purpose`, and the facts, each field behind its length.
fn info(facts: &Facts, purpose: &[u8]) -> Vec<u8> {
    let kind = match facts.kind {
        Kind::Rekey => 1,
        Kind::Encrypt => 2,
        Kind::Decrypt => 3,
    };
    let fields: [&[u8]; 5] = [
        purpose,
        &facts.binding,
        &[kind],
        &facts.data_offset.to_be_bytes(),
        &facts.size.to_be_bytes(),
    ];
    let mut info = Vec::with_capacity(256);
    for field in fields {
        info.extend_from_slice(&(field.len() as u32).to_be_bytes());
        info.extend_from_slice(field);
    }
    info
}

fn secret(length: usize) -> Result<Secret, Error> {
    Secret::zeroed(length).map_err(Error::Memory)
}

fn mac_key(bytes: &[u8]) -> Result<SecretBox<hmac::Key>, Error> {
    SecretBox::init(|slot| slot.write(hmac::Key::new(HMAC_SHA256, bytes))).map_err(Error::Memory)
}

fn gcm_key(key: &Secret) -> Result<&Key<Aes256Gcm>, Error> {
    <&Key<Aes256Gcm>>::try_from(&key[..]).map_err(|_| Error::Unfit("its key has another length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openssl::hash::MessageDigest;
    use openssl::pkey::PKey;
    use openssl::sign::Signer;

    fn facts() -> Facts {
        Facts {
            id: Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff),
            kind: Kind::Rekey,
            binding: b"what the wraps are bound to".to_vec(),
            data_offset: 1 << 24,
            size: 1 << 30,
        }
    }

    fn dek(seed: u8) -> Dek {
        let bytes: Vec<u8> = (0..64).map(|i| seed.wrapping_add(i)).collect();
        Dek::try_from(Secret::copy_of(&bytes).unwrap()).unwrap()
    }

    /// HMAC-SHA-256 by OpenSSL.
    fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let key = PKey::hmac(key).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
        for part in parts {
            signer.update(part).unwrap();
        }
        signer.sign_to_vec().unwrap()
    }

    /// Fields as the page has them, each behind its length.
    fn fields(fields: &[&[u8]]) -> Vec<u8> {
        let with_length = |field: &&[u8]| [&(field.len() as u32).to_be_bytes(), *field].concat();
        fields.iter().flat_map(with_length).collect()
    }

    fn info_of(purpose: &[u8]) -> Vec<u8> {
        fields(&[
            purpose,
            b"what the wraps are bound to",
            &[1],
            &[0, 0, 0, 0, 1, 0, 0, 0],
            &[0, 0, 0, 0, 0x40, 0, 0, 0],
        ])
    }

    #[test]
    fn keys_and_tags_are_those_of_the_page() {
        let (old, new) = (dek(1), dek(101));
        let keys = Keys::derive(&facts(), Some(&old), Some(&new)).unwrap();
        // RFC 5869, by hand.
        let input = fields(&[old.bytes(), new.bytes()]);
        let prk = mac(facts().id.as_bytes(), &[&input]);
        let info = info_of(b"sealblk rekey v1");
        let records = mac(&prk, &[&info, &[1]]);
        let tags = mac(&prk, &[&records, &info, &[2]]);
        assert_eq!(keys.record(b"bytes").as_ref(), mac(&records, &[b"bytes"]));
        assert!(keys.proves(b"bytes", &mac(&records, &[b"bytes"])));
        assert!(!keys.proves(b"Bytes", &mac(&records, &[b"bytes"])));
        let stored: Vec<u8> = (0..1536).map(|i| (i / 7) as u8).collect();
        let mut found = [[0; TAG_BYTES]; 3];
        keys.tag(4096, &stored, &mut found);
        for (number, (sector, tag)) in (8u64..).zip(stored.chunks(512).zip(found)) {
            let expected = mac(&tags, &[&number.to_be_bytes(), sector]);
            assert_eq!(tag[..], expected[..TAG_BYTES]);
        }
    }

    #[test]
    fn the_previous_key_opens_with_the_main_one_and_these_facts_alone() {
        let (main, old) = (dek(1), dek(101));
        let sealed = seal_previous(&facts(), &main, &old).unwrap();
        assert_eq!(sealed.len(), PREVIOUS_BYTES);
        assert_ne!(sealed, seal_previous(&facts(), &main, &old).unwrap());
        assert_eq!(open_previous(&facts(), &main, &sealed).unwrap(), old);
        let refused = |facts: &Facts, main: &Dek, sealed: &[u8]| {
            matches!(open_previous(facts, main, sealed), Err(Error::Previous))
        };
        assert!(refused(&facts(), &old, &sealed));
        for bit in 0..8 * sealed.len() {
            let mut edited = sealed.clone();
            edited[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&facts(), &main, &edited), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(refused(&facts(), &main, &sealed[..length]));
        }
        for edited in edited_facts() {
            assert!(refused(&edited, &main, &sealed), "{edited:?}");
        }
    }

    fn edited_facts() -> Vec<Facts> {
        let mut all = vec![facts(); 5];
        all[0].id = Uuid::nil();
        all[1].kind = Kind::Decrypt;
        all[2].binding.push(0);
        all[3].data_offset += 512;
        all[4].size -= 512;
        all
    }

    #[test]
    fn each_fact_and_key_changes_the_keys() {
        let (old, new) = (dek(1), dek(101));
        let derive = |facts: &Facts, old: Option<&Dek>, new: Option<&Dek>| {
            let keys = Keys::derive(facts, old, new).unwrap();
            let mut tag = [[0; TAG_BYTES]];
            keys.tag(0, &[0; 512], &mut tag);
            (keys.record(b"").as_ref().to_vec(), tag)
        };
        let mut all = vec![derive(&facts(), Some(&old), Some(&new))];
        all.push(derive(&facts(), Some(&new), Some(&old)));
        all.push(derive(&facts(), Some(&old), Some(&dek(102))));
        all.push(derive(&facts(), Some(&dek(2)), Some(&new)));
        for edited in edited_facts() {
            let new = Some(&new).filter(|_| edited.kind != Kind::Decrypt);
            all.push(derive(&edited, Some(&old), new));
        }
        let encrypt = Facts {
            kind: Kind::Encrypt,
            ..facts()
        };
        all.push(derive(&encrypt, None, Some(&old)));
        for (index, one) in all.iter().enumerate() {
            for other in &all[..index] {
                assert!(one.0 != other.0 && one.1 != other.1);
            }
        }
        // And a kind has its own keys.
        for (facts, old, new) in [
            (facts(), Some(&old), None),
            (facts(), None, Some(&new)),
            (encrypt.clone(), Some(&old), Some(&new)),
            (encrypt, Some(&old), None),
        ] {
            assert!(matches!(
                Keys::derive(&facts, old, new),
                Err(Error::Unfit(_))
            ));
        }
    }
}
