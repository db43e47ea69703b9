//! Wraps for break-glass access of volumes, attached or not.
#![forbid(unsafe_code)]

mod plan;

pub use plan::{Meant, Plan, told};

use std::sync::Arc;

use super::disks::{self, Disks};
use super::model::{ChangeWraps, WrapsChanged};
use crate::error::{Failure, Kind};
use crate::keys::ledger::Ledger;
use crate::keys::{Access, Context, KeySets};

/// Gives volumes a wrap, or takes one away. What becomes of each is told: one that
/// fails keeps no other from it.
///
/// # Errors
/// When what is asked for makes no sense.
pub async fn change(
    disks: &Disks,
    keys: &Arc<KeySets>,
    ledger: &Ledger,
    context: &Context,
    asked: ChangeWraps,
) -> Result<WrapsChanged, Failure> {
    let paths = [&asked.volume, &asked.header, &asked.recovery_key_file];
    if paths.into_iter().flatten().any(|path| !path.is_absolute()) {
        return Err(Failure::new(
            Kind::Usage,
            "a path is not absolute",
            Some("begin it with /: the manager has a working directory of its own".into()),
        ));
    }
    let action = asked.action;
    let (known, sets) = (ledger.clone(), keys.clone());
    let plan = disks::blocking(move || Plan::of(&asked, &sets, &known)).await??;
    let mut volumes = Vec::new();
    for meant in &plan.volumes {
        let change = plan.change.clone();
        let disk = disks.attached(meant.uuid, &meant.location);
        let result = match &disk {
            // Its key is in memory, as a rule.
            Some(name) => disks.rewrap(context, name, Access::OwnKeySet, change).await,
            None => {
                disks
                    .rewrap_detached(context, &meant.location, meant.uuid, change)
                    .await
            }
        };
        if let Err(failure) = &result {
            tracing::warn!(volume = %meant.uuid, "its wraps stay as they are: {failure}");
        }
        volumes.push(told(ledger, meant, disk, result));
    }
    Ok(WrapsChanged {
        action,
        key_set: plan.key_set,
        key_id: plan.key_id,
        volumes,
    })
}
