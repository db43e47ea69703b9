//! One key store: whether entries can be read there, and written if somebody
//! wants that tried. No entry of a volume is touched.

use uuid::Uuid;

use super::check::Check;
use super::placement;
use crate::error::{Explain as _, Kind};
use crate::key_store::{Definition, Entry, Failed, KeyStore};
use crate::kms::cluster::Timing;
use crate::kms::{Class, Denied, Error};
use crate::volume::{Bound, Wrap};

/// All checks of one key store. With `write`, an entry of a volume that does
/// not exist is written, read, and destroyed again.
pub(super) async fn examine(definition: &Definition, write: bool) -> Vec<Check> {
    let mut checks = vec![configuration(definition)];
    for (endpoint, alone) in ways(definition) {
        let check = read(&*alone.client()).await;
        checks.push(match endpoint {
            Some(endpoint) => check.at(&endpoint),
            None => check,
        });
    }
    if checks.iter().any(Check::is_failed) {
        for name in ["list", "write"] {
            checks.push(Check::skip(name, "not tried, since read failed"));
        }
        return checks;
    }
    if let Some(path) = definition.path() {
        checks.extend(placement::of_files(std::slice::from_ref(path)));
    }
    let store = definition.client();
    checks.push(list(&*store).await);
    checks.push(match write {
        true => self::write(&*store).await,
        false => Check::skip("write", "not tried: say --write-key-stores"),
    });
    checks
}

fn configuration(definition: &Definition) -> Check {
    let message = match definition {
        Definition::Directory(settings) => format!("the directory {}", settings.path.display()),
        Definition::VaultKv { folder, settings } => format!(
            "{}/{folder}, at {}",
            settings.mount,
            settings
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    Check::ok("configuration", message)
}

/// The store by way of each of its endpoints alone.
fn ways(definition: &Definition) -> Vec<(Option<String>, Definition)> {
    match definition {
        Definition::Directory(_) => vec![(None, definition.clone())],
        Definition::VaultKv { folder, settings } => {
            let alone = |endpoint: &crate::kms::http::BaseUrl| {
                let mut settings = settings.clone();
                settings.endpoints = vec![endpoint.clone()];
                // What fails now is to be told now.
                settings.timing = Timing {
                    deadline: settings.timing.timeout,
                    ..settings.timing
                };
                let folder = folder.clone();
                let definition = Definition::VaultKv { folder, settings };
                (Some(endpoint.to_string()), definition)
            };
            settings.endpoints.iter().map(alone).collect()
        }
    }
}

async fn read(store: &dyn KeyStore) -> Check {
    const NAME: &str = "read";
    match store.get(Uuid::new_v4()).await {
        Ok(None) => Check::ok(
            NAME,
            "permitted: there is no entry of a volume that does not exist",
        ),
        Ok(Some(_)) => Check::failed(NAME, &invented()),
        Err(failed) => failure(NAME, failed),
    }
}

async fn list(store: &dyn KeyStore) -> Check {
    const NAME: &str = "list";
    match store.list().await {
        Ok(volumes) => Check::ok(NAME, format!("it has entries of {} volumes", volumes.len())),
        Err(Failed::Store(error)) if error.class() == Class::Denied(Denied::Forbidden) => {
            Check::skip(NAME, "not permitted, and not needed")
        }
        Err(failed) => failure(NAME, failed),
    }
}

async fn write(store: &dyn KeyStore) -> Check {
    const NAME: &str = "write";
    let volume = Uuid::new_v4();
    let tried = try_write(store, volume).await;
    // Whatever came of it.
    let purged = store.purge(volume).await;
    if let Err(failed) = tried {
        return failure(NAME, failed);
    }
    if let Err(failed) = purged {
        let mut check = failure(NAME, failed);
        check.message = format!(
            "an entry can be written and not be destroyed: {}; that of {volume}, which is no volume, is left there",
            check.message
        );
        return check;
    }
    match store.get(volume).await {
        Ok(None) => Check::ok(
            NAME,
            "permitted: an entry was written, read and destroyed, and nobody could overwrite it unseen",
        ),
        Ok(Some(_)) => Check::fail(
            NAME,
            Kind::Unsupported,
            "an entry that was destroyed is still there",
            "do not use this store: wrapped keys would stay there for ever",
        ),
        Err(failed) => failure(NAME, failed),
    }
}

async fn try_write(store: &dyn KeyStore, volume: Uuid) -> Result<(), Failed> {
    let wrap = Wrap {
        key_set: "none".into(),
        provider: "none".into(),
        key_id: "none".into(),
        key_version: "none".into(),
        alg: "none".into(),
        bound: Bound::Other("none".into()),
        bytes: b"sealblk doctor".to_vec(),
        group: None,
        extra: Default::default(),
    };
    let entry = Entry::new(volume, "sealblk doctor", vec![wrap]);
    let version = store.put(&entry, None).await?;
    match store.get(volume).await? {
        Some(stored) if stored.entry == entry && stored.version == version => {}
        _ => return Err(invented().into()),
    }
    // Somebody who knows of none there must not replace it.
    match store.put(&entry, None).await {
        Err(Failed::Conflict) => Ok(()),
        Err(failed) => Err(failed),
        Ok(_) => Err(Error::new(
            Class::Protocol,
            "an entry was overwritten by somebody who did not know of it",
            "use a store that has check-and-set",
        )
        .into()),
    }
}

fn invented() -> Error {
    Error::new(
        Class::Protocol,
        "it gives something else than it was given",
        "do not use this store, and find out what answers there",
    )
    .with_kind(Kind::Corrupt)
}

fn failure(name: &'static str, failed: Failed) -> Check {
    match failed {
        Failed::Store(error) => Check::failed(name, &error),
        Failed::Entry(error) => Check::failed(name, &error),
        Failed::Conflict => Check::fail(
            name,
            Kind::Busy,
            "somebody else wrote there at the same time",
            invented().help().unwrap_or_default(),
        ),
    }
}
