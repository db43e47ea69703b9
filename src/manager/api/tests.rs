//! The API alone, on services in memory.

mod bodies;
mod document;
mod requests;
mod roles;

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use axum::{Extension, Router};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tower::ServiceExt as _;
use uuid::Uuid;

use super::*;
use crate::config::Config;
use crate::config::Limits as RateLimits;
use crate::config::daemon::{self, Principal};
use crate::manager::model::{
    Attach, ChangeWraps, Detach, DiskInfo, DiskState, EraseVolume, ErasedVolume, KeySetCheck,
    KeySetInfo, KeySetRotation, NewSize, Origin, RekeyChange, RekeysStarted, Reloaded, StartRekey,
    StartedRekey, UpgradeDisk, UpgradedDisk, UpgradedManager, Verify, WrapsChanged,
};
use crate::manager::peer::Peer;
use crate::manager::services::{
    Audit, Control, Disks, Facts, KeySets, Metrics, Rotations, Verifications, Verified,
};
use crate::rekey::Direction;
use crate::rotation::KeySetLedger;
use crate::timestamp::Timestamp;
use crate::verify::Cancel;

/// Users by what they may do.
pub const READER: u32 = 101;
pub const OPERATOR: u32 = 102;
pub const KEY_ADMIN: u32 = 103;
pub const NOBODY: u32 = 104;

/// What was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub uid: u32,
    pub role: String,
    pub operation: String,
    pub object: String,
    pub outcome: String,
    pub correlation: Uuid,
}

/// All the services at once, in memory.
#[derive(Debug)]
pub struct World {
    disks: Mutex<Vec<DiskInfo>>,
    sets: Mutex<Vec<KeySetInfo>>,
    revision: watch::Sender<u64>,
    pub records: Mutex<Vec<Recorded>>,
    pub acts: Mutex<Vec<Act>>,
    /// Requests that were counted: method, route, status.
    pub counted: Mutex<Vec<(String, String, u16)>>,
    /// Correlation ids that services were called with.
    pub seen: Mutex<Vec<Uuid>>,
    /// While this is so, attaching waits for `go`.
    pub slow: Mutex<bool>,
    pub go: Notify,
    pub began: Notify,
    pub audit_fails: Mutex<bool>,
}

impl World {
    fn note(&self, context: &Context) {
        self.seen.lock().unwrap().push(context.correlation);
    }

    fn set_state(&self, name: &str, state: DiskState) -> Result<DiskInfo, Failure> {
        let mut disks = self.disks.lock().unwrap();
        let disk = disks.iter_mut().find(|disk| disk.name == name);
        let disk = disk.ok_or_else(|| missing(name))?;
        disk.state = state;
        Ok(disk.clone())
    }

    fn bump(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
}

pub fn missing(name: &str) -> Failure {
    Failure::new(
        Kind::NotFound,
        format!("there is no {name:?}"),
        Some("look".into()),
    )
}

#[async_trait]
impl Disks for World {
    async fn attach(&self, context: &Context, attach: Attach) -> Result<DiskInfo, Failure> {
        self.note(context);
        if *self.slow.lock().unwrap() {
            self.began.notify_one();
            self.go.notified().await;
        }
        let name = attach.name.unwrap_or_else(|| "unnamed".into());
        if self.get(&name).is_some() {
            let help = Some("choose another".into());
            return Err(Failure::new(Kind::Busy, format!("{name} is taken"), help));
        }
        let disk = DiskInfo {
            name,
            uuid: Some(Uuid::from_u128(1)),
            volume: attach.volume,
            header: attach.header,
            socket: attach.socket,
            state: match attach.wait {
                true => DiskState::Waiting,
                false => DiskState::Running,
            },
            key_set: Some("default".into()),
            provider: Some("file".into()),
            key_id: Some("k".into()),
            key_version: Some("1".into()),
            break_glass: None,
            size: Some(1 << 20),
            sector_size: Some(4096),
            read_only: false,
            engine: Some("portable".into()),
            pid: Some(1),
            since: Timestamp::now().to_string(),
            restarts: 0,
            last_error: None,
            front_end: false,
            size_read: None,
            takes_notices: false,
            limits: attach.options.limits,
            ephemeral: attach.ephemeral.is_some(),
            denial: None,
            frozen: None,
            rekey: None,
            version: None,
            trouble: None,
            stuck: None,
            troubles: Default::default(),
        };
        self.disks.lock().unwrap().push(disk.clone());
        self.bump();
        Ok(disk)
    }

    async fn detach(&self, context: &Context, name: &str, _: Detach) -> Result<(), Failure> {
        self.note(context);
        let mut disks = self.disks.lock().unwrap();
        let index = disks.iter().position(|disk| disk.name == name);
        disks.remove(index.ok_or_else(|| missing(name))?);
        drop(disks);
        self.bump();
        Ok(())
    }

    async fn change_wraps(
        &self,
        context: &Context,
        change: ChangeWraps,
    ) -> Result<WrapsChanged, Failure> {
        self.note(context);
        Ok(WrapsChanged {
            action: change.action,
            key_set: change.key_set.unwrap_or_default(),
            key_id: None,
            volumes: Vec::new(),
        })
    }

    async fn erase(&self, context: &Context, erase: EraseVolume) -> Result<ErasedVolume, Failure> {
        self.note(context);
        // It was on record before.
        let acts = self.acts.lock().unwrap().clone();
        assert!(matches!(acts.last(), Some(Act::Erasing { asked }) if *asked == erase));
        Ok(ErasedVolume {
            uuid: erase.uuid.unwrap_or_default(),
            since: Timestamp::now().to_string(),
            finished: true,
            detached: None,
            wraps: 1,
            purged: Vec::new(),
            left: Vec::new(),
            unasked: Vec::new(),
            discarded: erase.discard,
            not_discarded: None,
            partly_plain: false,
            backups: Vec::new(),
        })
    }

    async fn limit(
        &self,
        context: &Context,
        name: &str,
        limits: RateLimits,
    ) -> Result<DiskInfo, Failure> {
        self.note(context);
        limits.resolve()?;
        let mut disks = self.disks.lock().unwrap();
        let disk = disks.iter_mut().find(|disk| disk.name == name);
        let disk = disk.ok_or_else(|| missing(name))?;
        disk.limits = limits.over(disk.limits.clone());
        Ok(disk.clone())
    }

    async fn resize(
        &self,
        context: &Context,
        name: &str,
        wanted: NewSize,
    ) -> Result<DiskInfo, Failure> {
        self.note(context);
        let mut disks = self.disks.lock().unwrap();
        let disk = disks.iter_mut().find(|disk| disk.name == name);
        let disk = disk.ok_or_else(|| missing(name))?;
        // There is room for so much.
        disk.size = wanted.size.or(Some(4 << 20));
        Ok(disk.clone())
    }

    async fn freeze(
        &self,
        context: &Context,
        name: &str,
        _: Duration,
    ) -> Result<DiskInfo, Failure> {
        self.note(context);
        self.set_state(name, DiskState::Frozen)
    }

    async fn thaw(&self, context: &Context, name: &str) -> Result<DiskInfo, Failure> {
        self.note(context);
        self.set_state(name, DiskState::Running)
    }

    async fn upgrade(
        &self,
        context: &Context,
        name: &str,
        _: UpgradeDisk,
    ) -> Result<UpgradedDisk, Failure> {
        self.note(context);
        Ok(UpgradedDisk {
            disk: self.get(name).ok_or_else(|| missing(name))?,
            before: "1".into(),
            version: "2".into(),
            pause_us: Some(7000),
        })
    }

    async fn resume(&self, context: &Context, name: &str, _: bool) -> Result<DiskInfo, Failure> {
        self.note(context);
        self.set_state(name, DiskState::Running)
    }

    async fn rekey(&self, context: &Context, wanted: StartRekey) -> Result<RekeysStarted, Failure> {
        self.note(context);
        let started = wanted.disks.iter().map(|disk| StartedRekey {
            disk: disk.clone(),
            volume: None,
            begun: true,
            problem: None,
        });
        Ok(RekeysStarted {
            disks: started.collect(),
        })
    }

    async fn change_rekey(
        &self,
        context: &Context,
        name: &str,
        _: RekeyChange,
    ) -> Result<DiskInfo, Failure> {
        self.note(context);
        Disks::get(self, name).ok_or_else(|| missing(name))
    }

    async fn turn_rekey(
        &self,
        context: &Context,
        name: &str,
        _: Direction,
    ) -> Result<DiskInfo, Failure> {
        self.note(context);
        Disks::get(self, name).ok_or_else(|| missing(name))
    }

    fn list(&self) -> Vec<DiskInfo> {
        self.disks.lock().unwrap().clone()
    }

    fn get(&self, name: &str) -> Option<DiskInfo> {
        let disks = self.disks.lock().unwrap();
        disks.iter().find(|disk| disk.name == name).cloned()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    async fn close(&self) {}

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec![]
    }
}

#[async_trait]
impl KeySets for World {
    async fn list(&self) -> Result<Vec<KeySetInfo>, Failure> {
        Ok(self.sets.lock().unwrap().clone())
    }

    async fn show(&self, name: &str) -> Result<KeySetInfo, Failure> {
        let sets = self.sets.lock().unwrap();
        let found = sets.iter().find(|set| set.name == name);
        found.cloned().ok_or_else(|| missing(name))
    }

    async fn create(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetInfo, Failure> {
        self.note(context);
        let set = KeySetInfo {
            key: None,
            defined_in: None,
            name: name.into(),
            provider: "file".into(),
            definition,
            origin: Origin::Manager,
            disks: 0,
        };
        self.sets.lock().unwrap().push(set.clone());
        Ok(set)
    }

    async fn edit(
        &self,
        context: &Context,
        name: &str,
        changes: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetInfo, Failure> {
        self.note(context);
        let mut sets = self.sets.lock().unwrap();
        let set = sets.iter_mut().find(|set| set.name == name);
        let set = set.ok_or_else(|| missing(name))?;
        set.definition.extend(changes);
        Ok(set.clone())
    }

    async fn remove(&self, context: &Context, name: &str, _: bool) -> Result<(), Failure> {
        self.note(context);
        self.show(name).await?;
        self.sets.lock().unwrap().retain(|set| set.name != name);
        Ok(())
    }

    async fn check(&self, context: &Context, name: &str) -> Result<KeySetCheck, Failure> {
        self.note(context);
        let set = self.show(name).await?;
        Ok(KeySetCheck {
            name: set.name,
            provider: set.provider,
            key_version: "1".into(),
            enabled: true,
            expires: None,
        })
    }

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec![]
    }
}

#[async_trait]
impl Rotations for World {
    async fn rotate(&self, context: &Context, name: &str) -> Result<KeySetRotation, Failure> {
        self.note(context);
        let set = self.show(name).await?;
        Ok(KeySetRotation {
            name: set.name,
            provider: set.provider,
            key_version: "2".into(),
            volumes: 1,
            behind: 1,
        })
    }

    async fn switch(
        &self,
        context: &Context,
        name: &str,
        definition: Map<String, Value>,
        _: bool,
    ) -> Result<KeySetRotation, Failure> {
        KeySets::edit(self, context, name, definition, true).await?;
        self.rotate(context, name).await
    }

    async fn ledger(&self, name: Option<&str>) -> Result<Vec<KeySetLedger>, Failure> {
        let mut sets = self.sets.lock().unwrap().clone();
        sets.retain(|set| name.is_none_or(|name| set.name == name));
        Ok(sets
            .into_iter()
            .map(|set| KeySetLedger {
                key_set: set.name,
                provider: set.provider,
                pinned: false,
                switching: false,
                rotation: None,
                versions: vec![],
                unknown: vec![],
            })
            .collect())
    }

    async fn forget(&self, _: Uuid) -> Result<(), Failure> {
        Ok(())
    }
}

impl Metrics for World {
    fn render(&self) -> Result<String, Failure> {
        Ok("# EOF\n".into())
    }

    fn api_request(&self, method: &str, route: &str, status: u16, _: Duration) {
        let request = (method.to_owned(), route.to_owned(), status);
        self.counted.lock().unwrap().push(request);
    }
}

#[async_trait]
impl Audit for World {
    async fn record(&self, event: &Event<'_>) -> Result<(), Failure> {
        if *self.audit_fails.lock().unwrap() {
            return Err(Failure::new(Kind::Io, "no space left", None));
        }
        let verified;
        let (operation, object) = match event.act {
            Act::Attach { disk, .. } => (Operation::Attach, disk),
            Act::Detach { disk, .. } => (Operation::Detach, disk),
            Act::Limit { disk, .. } => (Operation::Change, disk),
            Act::ChangeWraps { .. } | Act::WrapChanged { .. } => {
                (Operation::WrapsChange, &String::new())
            }
            Act::Erasing { .. } | Act::Erase { .. } => (Operation::VolumeErase, &String::new()),
            Act::Resize { disk, .. } => (Operation::Change, disk),
            Act::Freeze { disk, .. } => (Operation::Freeze, disk),
            Act::Rekey { .. } => (Operation::Rekey, &String::new()),
            Act::RekeyChange { disk, action, .. } => match *action {
                "back" | "forward" => (Operation::Rekey, disk),
                _ => (Operation::RekeyPace, disk),
            },
            Act::Thaw { disk, .. } => (Operation::Thaw, disk),
            Act::Upgrade { disk, .. } => (Operation::Upgrade, disk),
            Act::UpgradeManager { .. } => (Operation::Upgrade, &String::new()),
            Act::Resume { disk, .. } => (Operation::Resume, disk),
            Act::KeySetCreate { key_set, .. } => (Operation::KeySetCreate, key_set),
            Act::KeySetEdit { key_set, .. } => (Operation::KeySetEdit, key_set),
            Act::KeySetRemove { key_set } => (Operation::KeySetRemove, key_set),
            Act::KeySetCheck { key_set } => (Operation::KeySetCheck, key_set),
            Act::KeySetRotate { key_set, .. } => (Operation::KeySetRotate, key_set),
            Act::KeySetSwitch { key_set, .. } => (Operation::KeySetSwitch, key_set),
            Act::Reload { .. } => (Operation::Reload, &String::new()),
            Act::VolumeForget { .. } => (Operation::VolumeForget, &String::new()),
            Act::Verify { path, .. } => {
                verified = path.display().to_string();
                (Operation::Verify, &verified)
            }
            Act::Refused {
                operation, object, ..
            } => (*operation, object),
        };
        self.acts.lock().unwrap().push(event.act.clone());
        let outcome = match event.outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Refused(_) => "refused".to_owned(),
            Outcome::Failed(failure) => format!("failed: {failure}"),
        };
        let actor = &event.context.actor;
        self.records.lock().unwrap().push(Recorded {
            uid: actor.uid,
            role: Cow::into_owned(actor.role.clone()),
            operation: operation.to_string(),
            object: object.clone(),
            outcome,
            correlation: event.context.correlation,
        });
        Ok(())
    }

    async fn tail(&self, lines: usize) -> Result<Vec<Map<String, Value>>, Failure> {
        let records = self.records.lock().unwrap();
        let last = records.iter().rev().take(lines).rev();
        Ok(last
            .map(|record| {
                Map::from_iter([("operation".to_owned(), record.operation.clone().into())])
            })
            .collect())
    }
}

#[async_trait]
impl Control for World {
    fn facts(&self) -> Facts {
        Facts {
            instance: "one".into(),
            since: Timestamp::now(),
            config: None,
            socket: "/s".into(),
            state_dir: "/state".into(),
            run_dir: "/run".into(),
            needs_restart: vec![],
        }
    }

    async fn reload(&self) -> Result<Reloaded, Failure> {
        Ok(Reloaded::default())
    }

    async fn upgrade(
        &self,
        binary: Option<std::path::PathBuf>,
    ) -> Result<UpgradedManager, Failure> {
        Ok(UpgradedManager {
            binary: binary.unwrap_or_else(|| "/usr/bin/sealblk".into()),
            before: "1".into(),
            version: "2".into(),
            instance: "one".into(),
        })
    }
}

#[async_trait]
impl Verifications for World {
    async fn verify(
        &self,
        context: &Context,
        wanted: Verify,
        _: Cancel,
    ) -> Result<Verified, Failure> {
        self.note(context);
        Err(missing(&wanted.disk.unwrap_or_default()))
    }
}

/// An API that a test asks.
pub struct Asked {
    pub world: Arc<World>,
    pub api: Api,
    pub router: Router,
    pub stop: watch::Sender<bool>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub kind: String,
    pub correlation: Option<Uuid>,
    pub json: Value,
}

impl Asked {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let world = Arc::new(World {
            disks: Mutex::default(),
            sets: Mutex::default(),
            revision: watch::channel(0).0,
            records: Mutex::default(),
            acts: Mutex::default(),
            counted: Mutex::default(),
            seen: Mutex::default(),
            slow: Mutex::new(false),
            go: Notify::new(),
            began: Notify::new(),
            audit_fails: Mutex::new(false),
        });
        let services = Services {
            disks: world.clone(),
            key_sets: world.clone(),
            rotations: world.clone(),
            metrics: world.clone(),
            audit: Some(world.clone()),
            control: world.clone(),
            verifications: world.clone(),
        };
        let user = |uid: u32| vec![Principal::User(uid.to_string())];
        let config = daemon::Roles {
            root: true,
            reader: user(READER),
            operator: user(OPERATOR),
            key_admin: user(KEY_ADMIN),
        };
        let (roles, _) = Roles::resolve(&config, 0);
        let (stop, stopping) = watch::channel(false);
        let api = Api::new(services, roles, stopping, limits);
        Asked {
            world,
            router: api.router(),
            api,
            stop,
        }
    }

    /// What it answers to a user.
    pub async fn ask(&self, uid: u32, request: Request<Body>) -> Answer {
        let peer = Peer {
            uid,
            gid: uid,
            groups: vec![],
            pid: Some(77),
        };
        let router = self.router.clone().layer(Extension(peer));
        let response = router.oneshot(request).await.unwrap();
        let text = |name| {
            let value: Option<&header::HeaderValue> = response.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let status = response.status();
        let kind = text(header::CONTENT_TYPE).unwrap_or_default();
        let correlation = text(CORRELATION).map(|id| id.parse().unwrap());
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        Answer {
            status,
            kind,
            correlation,
            json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        }
    }

    pub async fn get(&self, uid: u32, path: &str) -> Answer {
        self.ask(uid, request("GET", path, None)).await
    }

    pub async fn post(&self, uid: u32, path: &str, body: Value) -> Answer {
        self.ask(uid, request("POST", path, Some(body))).await
    }
}

pub fn request(method: &str, path: &str, body: Option<Value>) -> Request<Body> {
    let builder = Request::builder().method(method).uri(path);
    match body {
        Some(body) => builder
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => builder.body(Body::empty()),
    }
    .unwrap()
}

/// A good request to attach.
pub fn attach(name: &str) -> Value {
    serde_json::json!({"volume": "/v", "socket": "/s", "name": name})
}
