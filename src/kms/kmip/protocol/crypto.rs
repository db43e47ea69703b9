//! Using keys: Get, Encrypt, Decrypt.

use super::{Refusal, unique_identifier};
use crate::kms::kmip::numbers::{self, tag};
use crate::kms::kmip::ttlv::{Item, Value};

/// Get (section 4.11): the key itself, raw, or wrapped under the key
/// `wrapping` with NIST key wrap.
pub fn get<'a>(id: &'a str, wrapping: Option<&'a str>) -> Vec<Item<'a>> {
    let mut payload = vec![
        unique_identifier(id),
        Item::new(tag::KEY_FORMAT_TYPE, Value::Enumeration(numbers::RAW)),
    ];
    if let Some(wrapping) = wrapping {
        let mode = Value::Enumeration(numbers::NIST_KEY_WRAP);
        payload.push(Item::structure(
            tag::KEY_WRAPPING_SPECIFICATION,
            vec![
                Item::new(
                    tag::WRAPPING_METHOD,
                    Value::Enumeration(numbers::WRAP_ENCRYPT),
                ),
                Item::structure(
                    tag::ENCRYPTION_KEY_INFORMATION,
                    vec![
                        unique_identifier(wrapping),
                        Item::structure(
                            tag::CRYPTOGRAPHIC_PARAMETERS,
                            vec![Item::new(tag::BLOCK_CIPHER_MODE, mode)],
                        ),
                    ],
                ),
                Item::new(
                    tag::ENCODING_OPTION,
                    Value::Enumeration(numbers::NO_ENCODING),
                ),
            ],
        ));
    }
    payload
}

/// The key material of the answer to [`get`], which is wrapped if `wrapped`.
///
/// # Errors
/// When it is not such an answer: another kind of object, another format, a
/// raw key where a wrapped one was asked for, or the other way round.
pub fn got<'b>(payload: &Item<'b>, wrapped: bool) -> Result<&'b [u8], Refusal> {
    let key = payload
        .get(tag::SYMMETRIC_KEY)
        .ok_or_else(|| Refusal::without("symmetric key"))?;
    let block = key
        .get(tag::KEY_BLOCK)
        .ok_or_else(|| Refusal::without("key block"))?;
    if block.enumeration(tag::KEY_FORMAT_TYPE) != Some(numbers::RAW) {
        return Err(Refusal::Malformed("the key in it is not raw".into()));
    }
    match (block.get(tag::KEY_WRAPPING_DATA), wrapped) {
        (Some(_), true) | (None, false) => {}
        (None, true) => {
            return Err(Refusal::Malformed("the key in it is not wrapped".into()));
        }
        (Some(_), false) => {
            return Err(Refusal::Malformed(
                "the key in it is wrapped under another one".into(),
            ));
        }
    }
    block
        .get(tag::KEY_VALUE)
        .and_then(|value| value.bytes(tag::KEY_MATERIAL))
        .ok_or_else(|| Refusal::without("key material"))
}

/// AES-GCM with a tag of 16 bytes (section 3.6).
fn gcm() -> Item<'static> {
    Item::structure(
        tag::CRYPTOGRAPHIC_PARAMETERS,
        vec![
            Item::new(tag::BLOCK_CIPHER_MODE, Value::Enumeration(numbers::GCM)),
            Item::new(
                tag::CRYPTOGRAPHIC_ALGORITHM,
                Value::Enumeration(numbers::AES),
            ),
            Item::new(tag::TAG_LENGTH, Value::Integer(16)),
        ],
    )
}

/// Encrypt (section 4.29), by the server.
pub fn encrypt<'a>(
    id: &'a str,
    nonce: &'a [u8],
    associated: &'a [u8],
    plaintext: &'a [u8],
) -> Vec<Item<'a>> {
    vec![
        unique_identifier(id),
        gcm(),
        Item::new(tag::DATA, Value::Bytes(plaintext)),
        Item::new(tag::IV_COUNTER_NONCE, Value::Bytes(nonce)),
        Item::new(
            tag::AUTHENTICATED_ENCRYPTION_ADDITIONAL_DATA,
            Value::Bytes(associated),
        ),
    ]
}

/// The ciphertext and the tag of the answer to [`encrypt`] with `nonce`, in
/// which `length` bytes were sent.
///
/// # Errors
/// When they are not as long as they must be, or another nonce was used.
pub fn encrypted<'b>(
    payload: &Item<'b>,
    nonce: &[u8],
    length: usize,
) -> Result<(&'b [u8], &'b [u8]), Refusal> {
    if payload
        .bytes(tag::IV_COUNTER_NONCE)
        .is_some_and(|used| used != nonce)
    {
        return Err(Refusal::Malformed(
            "the server encrypted with another nonce than it was given".into(),
        ));
    }
    match (
        payload.bytes(tag::DATA),
        payload.bytes(tag::AUTHENTICATED_ENCRYPTION_TAG),
    ) {
        (Some(data), Some(tag)) if data.len() == length && tag.len() == 16 => Ok((data, tag)),
        _ => Err(Refusal::Malformed(
            "the ciphertext or its tag is missing or has another length than it must have".into(),
        )),
    }
}

/// Decrypt (section 4.30), by the server.
pub fn decrypt<'a>(
    id: &'a str,
    nonce: &'a [u8],
    associated: &'a [u8],
    ciphertext: &'a [u8],
    authentication: &'a [u8],
) -> Vec<Item<'a>> {
    let mut payload = encrypt(id, nonce, associated, ciphertext);
    payload.push(Item::new(
        tag::AUTHENTICATED_ENCRYPTION_TAG,
        Value::Bytes(authentication),
    ));
    payload
}

/// The plaintext of the answer to [`decrypt`], in which `length` bytes were sent.
///
/// # Errors
/// When it has another length.
pub fn decrypted<'b>(payload: &Item<'b>, length: usize) -> Result<&'b [u8], Refusal> {
    match payload.bytes(tag::DATA) {
        Some(data) if data.len() == length => Ok(data),
        _ => Err(Refusal::Malformed(
            "the plaintext is missing or has another length than its ciphertext".into(),
        )),
    }
}
