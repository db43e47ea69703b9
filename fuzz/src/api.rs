//! What the manager's API stands on, as services that do nothing but count: each
//! succeeds where that takes no more than a word, and fails in the same way elsewhere.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sealblk::config::{Config, Limits};
use sealblk::error::{Failure, Kind};
use sealblk::keys::Context;
use sealblk::manager::model::{
    Attach, ChangeWraps, Detach, DiskInfo, EraseVolume, ErasedVolume, KeySetCheck, KeySetInfo,
    KeySetRotation, NewSize, RekeyChange, RekeysStarted, Reloaded, StartRekey, UpgradeDisk,
    UpgradedDisk, UpgradedManager, Verify, WrapsChanged,
};
use sealblk::manager::services::{
    Audit, Control, Disks, Event, Facts, KeySets, Metrics, Outcome, Rotations, Services,
    Verifications, Verified,
};
use sealblk::rekey::Direction;
use sealblk::rotation::KeySetLedger;
use sealblk::timestamp::Timestamp;
use sealblk::verify::Cancel;
use serde_json::{Map, Value};
use tokio::sync::watch;
use uuid::Uuid;

/// What only those with a role may see.
pub const MARK: &str = "what-readers-may-see";

/// What nobody may see: the cause of a failure never has it, nor does an event.
pub const SECRET: &str = "kE3yOfNoBodYsDiSk";

/// All the services at once.
#[derive(Debug)]
pub struct World {
    kind: Kind,
    calls: AtomicUsize,
    changes: AtomicUsize,
}

impl World {
    /// Services that fail in this way.
    pub fn new(kind: Kind) -> Self {
        World {
            kind,
            calls: AtomicUsize::new(0),
            changes: AtomicUsize::new(0),
        }
    }

    pub fn services(self: &Arc<Self>) -> Services {
        Services {
            disks: self.clone(),
            key_sets: self.clone(),
            rotations: self.clone(),
            metrics: self.clone(),
            audit: Some(self.clone()),
            control: self.clone(),
            verifications: self.clone(),
        }
    }

    /// How often a service was asked.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// How often it was asked to change something.
    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::SeqCst)
    }

    pub fn forget_changes(&self) {
        self.changes.store(0, Ordering::SeqCst);
    }

    fn look<T>(&self) -> Result<T, Failure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Err(Failure::new(self.kind, MARK, Some("look again".into())))
    }

    fn change<T>(&self) -> Result<T, Failure> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.look()
    }

    /// What the API has to have checked before anybody acts on it.
    fn check_name(&self, name: &str) {
        assert!(!name.contains('/') || name.len() > 64 || !name.is_empty());
    }
}

#[async_trait]
impl Disks for World {
    async fn attach(&self, _: &Context, attach: Attach) -> Result<DiskInfo, Failure> {
        assert!(attach.volume.is_absolute() && attach.socket.is_absolute());
        assert!(attach.header.as_ref().is_none_or(|path| path.is_absolute()));
        let name = attach.name.as_deref();
        assert!(
            name.is_none_or(sealblk::manager::model::is_disk_name),
            "{name:?}"
        );
        self.change()
    }

    async fn detach(&self, _: &Context, name: &str, _: Detach) -> Result<(), Failure> {
        self.check_name(name);
        self.change::<()>().or(Ok(()))
    }

    async fn limit(&self, _: &Context, name: &str, _: Limits) -> Result<DiskInfo, Failure> {
        self.check_name(name);
        self.change()
    }

    async fn erase(&self, _: &Context, _: EraseVolume) -> Result<ErasedVolume, Failure> {
        self.change()
    }

    async fn change_wraps(&self, _: &Context, _: ChangeWraps) -> Result<WrapsChanged, Failure> {
        self.change()
    }

    async fn resize(&self, _: &Context, _: &str, _: NewSize) -> Result<DiskInfo, Failure> {
        self.change()
    }

    async fn freeze(&self, _: &Context, _: &str, time: Duration) -> Result<DiskInfo, Failure> {
        assert!((1..=3600).contains(&time.as_secs()));
        self.change()
    }

    async fn thaw(&self, _: &Context, _: &str) -> Result<DiskInfo, Failure> {
        self.change()
    }

    async fn upgrade(&self, _: &Context, _: &str, _: UpgradeDisk) -> Result<UpgradedDisk, Failure> {
        self.change()
    }

    async fn resume(&self, _: &Context, _: &str, _: bool) -> Result<DiskInfo, Failure> {
        self.change()
    }

    async fn rekey(&self, _: &Context, _: StartRekey) -> Result<RekeysStarted, Failure> {
        self.change()
    }

    async fn change_rekey(
        &self,
        _: &Context,
        _: &str,
        _: RekeyChange,
    ) -> Result<DiskInfo, Failure> {
        self.change()
    }

    async fn turn_rekey(&self, _: &Context, _: &str, _: Direction) -> Result<DiskInfo, Failure> {
        self.change()
    }

    fn list(&self) -> Vec<DiskInfo> {
        let _ = self.look::<()>();
        vec![]
    }

    fn get(&self, _: &str) -> Option<DiskInfo> {
        None
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    async fn close(&self) {}

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec![]
    }
}

#[async_trait]
impl KeySets for World {
    async fn list(&self) -> Result<Vec<KeySetInfo>, Failure> {
        self.look()
    }

    async fn show(&self, _: &str) -> Result<KeySetInfo, Failure> {
        self.look()
    }

    async fn create(
        &self,
        _: &Context,
        _: &str,
        _: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetInfo, Failure> {
        self.change()
    }

    async fn edit(
        &self,
        _: &Context,
        _: &str,
        _: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetInfo, Failure> {
        self.change()
    }

    async fn remove(&self, _: &Context, _: &str, _: bool) -> Result<(), Failure> {
        self.change::<()>().or(Ok(()))
    }

    async fn check(&self, _: &Context, _: &str) -> Result<KeySetCheck, Failure> {
        self.look()
    }

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec![]
    }
}

#[async_trait]
impl Rotations for World {
    async fn rotate(&self, _: &Context, _: &str) -> Result<KeySetRotation, Failure> {
        self.change()
    }

    async fn switch(
        &self,
        _: &Context,
        _: &str,
        _: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetRotation, Failure> {
        self.change()
    }

    async fn ledger(&self, _: Option<&str>) -> Result<Vec<KeySetLedger>, Failure> {
        self.look::<()>().ok();
        Ok(vec![])
    }

    async fn forget(&self, _: Uuid) -> Result<(), Failure> {
        self.change()
    }
}

impl Metrics for World {
    fn render(&self) -> Result<String, Failure> {
        self.look::<()>().ok();
        Ok(format!("# {MARK}\n"))
    }

    fn api_request(&self, method: &str, route: &str, status: u16, _: Duration) {
        // Labels of metrics: patterns alone, or their number has no end.
        assert!(method.len() < 16 && route.len() < 64, "{method} {route}");
        assert!((100..600).contains(&status));
    }
}

#[async_trait]
impl Audit for World {
    async fn record(&self, event: &Event<'_>) -> Result<(), Failure> {
        let outcome = match event.outcome {
            Outcome::Done => String::new(),
            Outcome::Refused(why) => why.to_owned(),
            Outcome::Failed(failure) => failure.to_string(),
        };
        assert!(!format!("{:?} {outcome}", event.act).contains(SECRET));
        Ok(())
    }

    async fn tail(&self, lines: usize) -> Result<Vec<Map<String, Value>>, Failure> {
        assert!(lines < 1 << 20, "{lines}");
        self.look::<()>().ok();
        Ok(vec![])
    }
}

#[async_trait]
impl Control for World {
    fn facts(&self) -> Facts {
        let _ = self.look::<()>();
        Facts {
            instance: MARK.into(),
            since: Timestamp::now(),
            config: None,
            socket: "/s".into(),
            state_dir: "/state".into(),
            run_dir: "/run".into(),
            needs_restart: vec![],
        }
    }

    async fn reload(&self) -> Result<Reloaded, Failure> {
        self.change::<()>().ok();
        Ok(Reloaded::default())
    }

    async fn upgrade(&self, _: Option<PathBuf>) -> Result<UpgradedManager, Failure> {
        self.change()
    }
}

#[async_trait]
impl Verifications for World {
    async fn verify(&self, _: &Context, _: Verify, _: Cancel) -> Result<Verified, Failure> {
        self.look()
    }
}
