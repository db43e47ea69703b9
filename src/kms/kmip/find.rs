//! Which key is meant: by unique identifier, by name, by version.

use super::NAME;
use super::client::Session;
use super::numbers::Operation;
use super::protocol::{self, Attribute, Attributes, LOCATE_MAX, State};
use super::server::Server;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::{Class, Error, KeyRef};

/// A key on the server, as it is now.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) told: Attributes,
}

impl Server {
    pub(super) async fn locate_in(
        &self,
        session: &mut Session<'_>,
        wanted: &[Attribute<'_>],
    ) -> Result<Vec<String>, Failed> {
        let located = session.ask(
            Operation::Locate,
            |version| protocol::locate(version, wanted),
            |payload| Ok(protocol::located(payload)),
        );
        let located = self.told(located.await, Operation::Locate, "")?;
        if located.len() > usize::try_from(LOCATE_MAX).unwrap_or(0) {
            return Err(Error::new(
                Class::Protocol,
                format!(
                    "the KMIP server {} has more than {LOCATE_MAX} keys of that name",
                    self.client.endpoint
                ),
                "destroy or rename old keys that nothing needs, or use the key by its unique identifier",
            )
            .into());
        }
        Ok(located)
    }

    /// The key that `key` means, whatever its state.
    pub(super) async fn resolve(
        &self,
        session: &mut Session<'_>,
        key: &KeyRef,
    ) -> Result<Key, Failed> {
        let Some(called) = &key.id else {
            let error = Error::new(
                Class::NotFound,
                "no key is named",
                "add key_name or key_id to the key set in the configuration",
            );
            return Err(Failed::Everywhere(error.with_kind(Kind::Usage)));
        };
        let id = match (called.strip_prefix(NAME), &key.version) {
            (Some(name), None) => return self.newest(session, name).await,
            (Some(_), Some(version)) => version,
            (None, None) => called,
            (None, Some(version)) if version == called => called,
            (None, Some(version)) => {
                return Err(Error::new(
                    Class::NotFound,
                    format!("a key of KMIP has no versions: {version:?} is not {called:?}"),
                    "leave version out, or name the key with key_name",
                )
                .into());
            }
        };
        let told = self.attributes(session, id).await?;
        let id = id.clone();
        Ok(Key { id, told })
    }

    /// The newest key of that name that has been activated, whether or not it
    /// still is active: no older one is taken silently in its place.
    async fn newest(&self, session: &mut Session<'_>, name: &str) -> Result<Key, Failed> {
        let wanted = [Attribute::Name(name), Attribute::SymmetricKey];
        let mut keys = Vec::new();
        for id in self.locate_in(session, &wanted).await? {
            match self.attributes(session, &id).await {
                Ok(told) => keys.push(Key { id, told }),
                // Destroyed since it was located.
                Err(Failed::Here(error)) if error.class() == Class::NotFound => {}
                Err(failed) => return Err(failed),
            }
        }
        let rank = |key: &Key| match key.told.state {
            State::Active | State::Deactivated | State::Compromised => 2,
            State::PreActive => 1,
            State::Destroyed | State::DestroyedCompromised => 0,
        };
        let best = keys.iter().map(|key| (rank(key), key.told.made)).max();
        keys.retain(|key| Some((rank(key), key.told.made)) == best);
        let server = &self.client.endpoint;
        match (keys.pop(), keys.len()) {
            (None, _) => Err(Error::new(
                Class::NotFound,
                format!("the KMIP server {server} has no key with the name {name:?}"),
                "check the name, and that this client may locate the key; it may have been destroyed",
            )
            .into()),
            (Some(key), 0) => Ok(key),
            // None of them is of use, and each tells why.
            (Some(key), _) if rank(&key) < 2 => Ok(key),
            (Some(_), others) => Err(Error::new(
                Class::Protocol,
                format!(
                    "the KMIP server {server} has {} keys with the name {name:?} that were made in the same second: none is the newest",
                    others + 1
                ),
                "pin one of them with version, or name the key with key_id",
            )
            .with_kind(Kind::Usage)
            .into()),
        }
    }
}
