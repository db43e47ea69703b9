//! Erasing a volume through the manager: one that is attached is detached first,
//! so that its key is in no process any more when its wraps go.
#![forbid(unsafe_code)]

use std::sync::Arc;

use tokio::runtime::Handle;

use super::disks::{self, Disks};
use super::model::{Detach, EraseVolume, ErasedVolume};
use crate::erase::{self, How};
use crate::error::{Failure, Kind};
use crate::keys::ledger::Ledger;
use crate::keys::{Context, KeySets};
use crate::volume::{Inspection, Location};

/// Erases what is asked for.
///
/// # Errors
/// When it is attached and nobody says that this does not matter, when somebody
/// else has it open, or as [`erase::at`].
pub async fn erase(
    disks: &Disks,
    keys: &Arc<KeySets>,
    ledger: &Ledger,
    context: &Context,
    asked: EraseVolume,
) -> Result<ErasedVolume, Failure> {
    check(&asked)?;
    let location = Location {
        data: asked.volume.clone(),
        header: asked.header.clone(),
    };
    let how = How {
        force: asked.force,
        discard: asked.discard,
        leave_plain: asked.leave_plain,
    };
    look(&location, how).await?;
    let detached = match disks.disk_of(&location).await? {
        Some(name) if !asked.force => return Err(attached(&name, &asked)),
        Some(name) => {
            detach(disks, context, &name, &asked).await?;
            Some(name)
        }
        None => None,
    };
    let context = Context {
        volume: asked.uuid,
        ..context.clone()
    };
    let (keys, ledger, runtime) = (keys.clone(), ledger.clone(), Handle::current());
    let uid = context.actor.uid;
    // It waits for the storage below, and for key stores in between.
    let erased = disks::blocking(move || -> Result<_, Failure> {
        let work = erase::at(&keys, &ledger, &context, &location, asked.uuid, how);
        let done = runtime.block_on(work)?;
        let backups = erase::backups(&ledger, done.uuid);
        Ok(ErasedVolume::new(done, detached, backups))
    });
    let erased = erased.await??;
    let (volume, finished) = (erased.uuid, erased.finished);
    tracing::warn!(%volume, uid, finished, "the key of the volume was destroyed");
    Ok(erased)
}

/// What its header says against it, before a disk is taken from its guest. What
/// cannot be read is found again, and said, by erasing it.
async fn look(location: &Location, how: How) -> Result<(), Failure> {
    let location = location.clone();
    let looked = move || {
        let description = Inspection::of(&location).and_then(|looked| looked.description());
        match description {
            Ok(description) => erase::check_data(&description.token, &location, how),
            Err(_) => Ok(()),
        }
    };
    Ok(disks::blocking(looked).await??)
}

/// What can be said of it without looking at the volume.
fn check(asked: &EraseVolume) -> Result<(), Failure> {
    let paths = [
        ("volume", Some(&asked.volume)),
        ("header", asked.header.as_ref()),
    ];
    for (what, path) in paths {
        if path.is_some_and(|path| !path.is_absolute()) {
            return Err(Failure::new(
                Kind::Usage,
                format!("{what} is not an absolute path"),
                Some("begin it with /: the manager has a working directory of its own".into()),
            ));
        }
    }
    Ok(())
}

fn attached(name: &str, asked: &EraseVolume) -> Failure {
    Failure::new(
        Kind::Busy,
        format!(
            "{} is attached, as the disk {name:?}",
            asked.volume.display()
        ),
        Some(format!(
            "nothing was destroyed. Detach it first (`sealblk detach {name}`); with --force it is \
             detached, whatever its guest does, and then erased"
        )),
    )
}

/// Takes the disk away, and with it the key out of worker and manager. That
/// what its guest wrote last may be lost does not matter any more.
async fn detach(
    disks: &Disks,
    context: &Context,
    name: &str,
    asked: &EraseVolume,
) -> Result<(), Failure> {
    let disk = disks.get(name).and_then(|disk| disk.uuid);
    if let (Some(wanted), Some(found)) = (asked.uuid, disk)
        && wanted != found
    {
        let path = asked.volume.clone();
        return Err(erase::Error::OtherVolume {
            path,
            found,
            wanted,
        }
        .into());
    }
    match disks.detach(context, name, Detach { force: true }).await {
        Err(failure) if disks.get(name).is_some() => Err(failure),
        Err(failure) => {
            tracing::warn!(disk = name, "detached to be erased: {failure}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
