//! Key sets whose key gets another version, and the volumes that follow.
#![forbid(unsafe_code)]

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Admin, Error, file_error, settings_of, shown};
use crate::error::Failure;
use crate::keys::{Context, Name};
use crate::manager::disks::Marks;
use crate::manager::model::KeySetRotation;
use crate::manager::services::Rotations;
use crate::rotation::{KeySetLedger, Work};

/// Work that somebody has to carry on.
pub type ToDo = mpsc::UnboundedSender<(Context, Work)>;

impl Admin {
    /// Asks the service of a key set which version wraps now, and begins what
    /// follows from that. Who carries it on is the caller.
    ///
    /// # Errors
    /// When there is none of that name, or as the service answers.
    pub async fn rotate(&self, context: &Context, name: &Name) -> Result<Work, Failure> {
        shown(&self.look(), name)?;
        let version = self
            .key_sets
            .current_version(context, name.as_str())
            .await?;
        let rotation = &self.rotation;
        Ok(rotation.begin(context, name, &version, true).await?)
    }

    /// Has the volumes follow, and forgets what the key set was before it was
    /// switched as soon as no volume needs that. How many have yet to follow.
    ///
    /// # Errors
    /// When the state of the rotation cannot be read or written.
    pub async fn carry_on(&self, context: &Context, work: Work) -> Result<usize, Failure> {
        let name = work.name.clone();
        let behind = match work.behind.is_empty() {
            true => 0,
            false => self.rotation.follow(context, work).await?,
        };
        if behind == 0 {
            self.settle(&name).await?;
        }
        Ok(behind)
    }

    /// Forgets a volume that is gone for good.
    ///
    /// # Errors
    /// When it is not known, or attached.
    pub fn forget(&self, volume: Uuid) -> Result<(), Failure> {
        let ledger = self.rotation.ledger();
        let directory = self.look().daemon.state_dir.clone();
        let known = ledger.find(volume).map_err(file_error(directory.clone()))?;
        let Some(known) = known else {
            return Err(Error::NoVolume(volume).into());
        };
        if let Some(disk) = self.rotation.volumes().disk(&known) {
            return Err(Error::Attached { volume, disk }.into());
        }
        let marks = Marks::below(&directory);
        ledger
            .forget(volume)
            .map_err(file_error(directory.clone()))?;
        // Whatever header it comes back with is the one that it has.
        marks.forget(volume).map_err(file_error(directory))?;
        Ok(())
    }

    /// The ledger of one key set, or of all.
    ///
    /// # Errors
    /// When there is none of that name, or the ledger cannot be read.
    pub async fn ledger(&self, name: Option<&Name>) -> Result<Vec<KeySetLedger>, Failure> {
        let config = self.look();
        let names: Vec<Name> = match name {
            Some(name) => vec![shown(&config, name)?.name],
            None => config.key_sets.keys().cloned().collect(),
        };
        let mut all = Vec::new();
        for name in names {
            all.push(self.rotation.report(&name).await?);
        }
        Ok(all)
    }

    /// Where it is, in the words of the API.
    pub fn status(&self, work: &Work) -> KeySetRotation {
        let current = work.current.as_ref().map(|current| &current.target);
        let target = current.or(work.job.as_ref().map(|job| &job.target));
        KeySetRotation {
            name: work.name.to_string(),
            provider: target.map_or(String::new(), |target| target.provider.clone()),
            key_version: target.map_or(String::new(), |target| target.key_version.clone()),
            volumes: work.known as u64,
            behind: work.behind.len() as u64,
        }
    }

    /// Hands work on to whoever carries it on in the background.
    fn hand_on(&self, context: &Context, work: Work) -> KeySetRotation {
        let status = self.status(&work);
        if let Some(to_do) = self.to_do.get() {
            // A manager that ends finds it again when it starts.
            let _ = to_do.send((context.clone(), work));
        }
        status
    }

    /// Who carries on what is begun, in the background.
    pub fn hand_on_to(&self, to_do: ToDo) {
        // The first one stays.
        let _ = self.to_do.set(to_do);
    }
}

#[async_trait]
impl Rotations for Admin {
    async fn rotate(&self, context: &Context, name: &str) -> Result<KeySetRotation, Failure> {
        let work = Admin::rotate(self, context, &super::service::named(name)?).await?;
        Ok(self.hand_on(context, work))
    }

    async fn switch(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        force: bool,
    ) -> Result<KeySetRotation, Failure> {
        let (name, settings) = (super::service::named(name)?, settings_of(definition)?);
        let work = Admin::switch(self, context, &name, settings, force).await?;
        Ok(self.hand_on(context, work))
    }

    async fn ledger(&self, name: Option<&str>) -> Result<Vec<KeySetLedger>, Failure> {
        let name = name.map(super::service::named).transpose()?;
        Admin::ledger(self, name.as_ref()).await
    }

    async fn forget(&self, volume: Uuid) -> Result<(), Failure> {
        Admin::forget(self, volume)
    }
}
