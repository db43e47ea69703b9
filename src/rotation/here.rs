//! Volumes as a command reaches them that runs without a manager.
#![forbid(unsafe_code)]

use std::sync::Arc;

use async_trait::async_trait;

use super::Volumes;
use crate::error::{Failure, Kind};
use crate::keys::ledger::Known;
use crate::keys::{Context, KeySets};
use crate::rewrap::{self, Change, KeyFrom, Rewrapped};
use crate::volume::{Access, Location, Volume};

/// Opens each volume where it is known to be.
#[derive(Debug)]
pub struct Here {
    /// The key sets.
    pub keys: Arc<KeySets>,
}

#[async_trait]
impl Volumes for Here {
    async fn rewrap(
        &self,
        context: &Context,
        known: &Known,
        change: Arc<dyn Change>,
    ) -> Result<Rewrapped, Failure> {
        let location = Location {
            data: known.path.clone(),
            header: known.header.clone(),
        };
        let mut volume = Volume::open(&location, Access::ReadWrite)?;
        if volume.uuid() != known.uuid {
            return Err(moved(known));
        }
        let key = KeyFrom::default();
        Ok(rewrap::rewrap(&self.keys, context, &mut volume, key, &*change).await?)
    }

    fn disk(&self, _: &Known) -> Option<String> {
        None
    }

    async fn has_key(&self, _: &Known) -> bool {
        false
    }
}

/// Another volume is where `known` was.
pub fn moved(known: &Known) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!("{} is another volume now", known.path.display()),
        Some("attach the volume once where it is now: it is known there then".into()),
    )
}
