//! What AWS KMS can do to the `aws-kms` provider, and where its credentials
//! come from: against moto, made strict. What all providers do is in
//! `kms_conformance`.
#![cfg(feature = "aws-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "kms_aws/credentials.rs"]
mod credentials;
#[path = "kms_aws/errors.rs"]
mod errors;
#[path = "support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
#[path = "kms_aws/interop.rs"]
mod interop;
#[path = "support/moto.rs"]
#[allow(dead_code)]
mod moto;
#[path = "kms_aws/regions.rs"]
mod regions;

use sealblk::error::Explain;
use sealblk::kms::aws::{AwsProvider, Settings};
use sealblk::kms::{Class, Error, KeyRef, Provider, Wrapped};
use sealblk::secret::Secret;

const AAD: &[u8] = b"volume";

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

/// Wraps and unwraps.
fn try_with(provider: &AwsProvider, key: &KeyRef) -> Result<Wrapped, Error> {
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(key, &payload, AAD))?;
    assert_eq!(wait(provider.unwrap(&wrapped, AAD))?, payload);
    Ok(wrapped)
}

fn try_as(settings: Settings, key: &KeyRef) -> Result<Wrapped, Error> {
    try_with(&AwsProvider::new(settings), key)
}

/// Panics unless it failed with this class, all of `words` are in what it
/// says, and `next` is in what to do.
fn expect<T: std::fmt::Debug>(
    result: Result<T, Error>,
    class: Class,
    words: &[&str],
    next: &str,
) -> Error {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.class(), class, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    let help = error.help().unwrap();
    assert!(help.contains(next), "{next:?} is not in {help:?}");
    error
}
