//! Random bytes that are wrapped and unwrapped.

use super::check::Check;
use super::ways::Client;
use crate::error::Kind;
use crate::kms::{Class, Error, KeyRef, Provider, Wrapped};
use crate::secret::{DEK_BYTES, Secret};

/// Random bytes, and the same wrapped.
pub(super) struct Sample {
    plain: Secret,
    pub(super) wrapped: Wrapped,
}

/// What the bytes are bound to.
const AAD: &[u8] = b"sealblk doctor";

impl Sample {
    /// Whether this provider opens it.
    pub(super) async fn opened_by(&self, provider: &dyn Provider) -> Result<(), Error> {
        let opened = provider.unwrap(&self.wrapped, AAD).await?;
        match opened == self.plain {
            true => Ok(()),
            false => Err(other_bytes()),
        }
    }
}

/// Wraps random bytes with the key.
pub(super) async fn wrap(provider: &dyn Provider, key: &KeyRef) -> Result<Sample, Error> {
    let plain = Secret::random(DEK_BYTES).map_err(|error| {
        Error::new(
            Class::Unreachable,
            format!("no locked memory or random bytes to try it with: {error}"),
            "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
        )
        .with_kind(Kind::Io)
    })?;
    let wrapped = provider.wrap(key, &plain, AAD).await?;
    Ok(Sample { plain, wrapped })
}

/// Unwraps them, as they are and for another volume.
pub(super) async fn unwrap(provider: &dyn Provider, sample: &Sample) -> Check {
    const NAME: &str = "unwrap";
    if let Err(error) = sample.opened_by(provider).await {
        return Check::failed(NAME, &error);
    }
    // A wrap that opens anywhere protects no volume from another one.
    match provider.unwrap(&sample.wrapped, b"another volume").await {
        Ok(_) => Check::fail(
            NAME,
            Kind::Unsupported,
            "permitted, and the service does not look at what a key is bound to",
            "use another service: this one would open the key of one volume for another",
        ),
        Err(error) if error.class() == Class::BadKey => Check::ok(
            NAME,
            "permitted: what was wrapped comes back, and for its own volume only",
        ),
        Err(error) => Check::failed(NAME, &error),
    }
}

/// Whether unwrapping is permitted, where there is nothing to unwrap.
pub(super) async fn try_unwrap(client: &Client, key: &KeyRef, version: &str) -> Check {
    const NAME: &str = "unwrap";
    let Some(unopenable) = client.unopenable(key, version) else {
        return Check::skip(NAME, "there is nothing to unwrap");
    };
    match client.provider().unwrap(&unopenable, AAD).await {
        Err(error) if error.class() == Class::BadKey => {
            Check::ok(NAME, "permitted: a made-up key is refused for what it is")
        }
        Err(error) => Check::failed(NAME, &error),
        Ok(_) => Check::failed(NAME, &other_bytes()),
    }
}

fn other_bytes() -> Error {
    Error::new(
        Class::Protocol,
        "the service unwraps something else than was wrapped",
        "do not use it for volumes, and find out what answers there",
    )
    .with_kind(Kind::Corrupt)
}
