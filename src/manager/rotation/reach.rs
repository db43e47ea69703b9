//! Volumes as the manager reaches them: those of its disks while they are
//! served, and others where they were seen last.
#![forbid(unsafe_code)]

use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Failure, Kind};
use crate::keys::ledger::Known;
use crate::keys::{Access, Context};
use crate::manager::disks::Disks;
use crate::rewrap::{Change, Rewrapped};
use crate::rotation::Volumes;
use crate::volume::Location;

/// The disks of the manager, and the files of this host.
#[derive(Debug)]
pub struct Reach(pub Arc<Disks>);

fn location(known: &Known) -> Location {
    Location {
        data: known.path.clone(),
        header: known.header.clone(),
    }
}

#[async_trait]
impl Volumes for Reach {
    async fn rewrap(
        &self,
        context: &Context,
        known: &Known,
        change: Arc<dyn Change>,
    ) -> Result<Rewrapped, Failure> {
        let Some(disk) = self.disk(known) else {
            let (location, volume) = (location(known), known.uuid);
            let detached = self.0.rewrap_detached(context, &location, volume, change);
            return detached.await;
        };
        // A disk that is being attached is not to be held up.
        if !self.0.takes_wraps(&disk) {
            return Err(Failure::new(
                Kind::Busy,
                format!("the disk {disk:?} is not served now, or is frozen"),
                Some("it follows when it is".into()),
            ));
        }
        self.0
            .rewrap(context, &disk, Access::OwnKeySet, change)
            .await
    }

    fn disk(&self, known: &Known) -> Option<String> {
        self.0.attached(known.uuid, &location(known))
    }

    async fn has_key(&self, known: &Known) -> bool {
        match self.disk(known) {
            Some(disk) => self.0.has_key(&disk).await,
            None => false,
        }
    }
}
