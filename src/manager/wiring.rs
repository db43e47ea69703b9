//! Which implementation stands behind each of the [`services`](super::services),
//! and what they tell each other.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::access::Suspicions;
use super::control::Manager;
use super::disks::{self, Settings};
use super::key_sets::Admin;
use super::model::{
    Attach, ChangeWraps, Detach, DiskInfo, EraseVolume, ErasedVolume, NewSize, RekeyChange,
    RekeysStarted, StartRekey, UpgradeDisk, UpgradedDisk, WrapsChanged,
};
use super::poll::Poll;
use super::recorder::Recorder;
use super::rotation::{Keeper, Reach, Teller};
use super::services::{Disks, Metrics, Services};
use super::verifier::Verifier;
use crate::config::{Config, Limits};
use crate::engine::stats::Reader;
use crate::error::Failure;
use crate::key_store::KeyStores;
use crate::keys::ledger::{Known, Ledger};
use crate::keys::{self, Context, Witness};
use crate::metrics::{DiskView, RekeyView, TroubleView};
use crate::rekey::Direction;
use crate::rotation::Rotation;
use crate::sandbox::Walls;
use crate::volume::{Inspection, Location};
use crate::{audit, metrics};

/// The services of the running manager, its recorder, and what polls the key services.
///
/// # Errors
/// When one of them cannot be had.
pub async fn services(
    config: &Config,
    manager: Arc<Manager>,
) -> Result<(Services, Option<Arc<Recorder>>, JoinHandle<()>), Failure> {
    let metrics = Arc::new(metrics::Metrics::new());
    let recorder = match config.audit.of_manager() {
        Some(settings) => {
            let log = audit::Log::open(settings)?;
            Some(Arc::new(Recorder::new(log, metrics.clone())))
        }
        None => None,
    };
    // The record first: a use that it cannot take is no use.
    let mut witnesses: Vec<Arc<dyn Witness>> = Vec::new();
    witnesses.extend(recorder.clone().map(|recorder| recorder as _));
    witnesses.push(metrics.kms().clone());
    let suspicions = Arc::<Suspicions>::default();
    witnesses.push(suspicions.clone());
    let key_sets = keys::KeySets::new(config.key_sets.clone())
        .with_state(&config.daemon.state_dir)
        .with_stores(KeyStores::new(config.key_stores.clone()))
        .with_witnesses(witnesses);
    let key_sets = Arc::new(key_sets);
    let attached = disks::Disks::open(settings(config), key_sets.clone()).await?;
    let teller = Arc::new(Teller {
        recorder: recorder.clone(),
        metrics: metrics.clone(),
    });
    let rotation = Arc::new(Rotation::new(
        key_sets.clone(),
        &config.daemon.state_dir,
        Arc::new(Reach(attached.clone())),
        teller.clone(),
        config.daemon.rewrap_rate,
    ));
    let load = manager.load();
    let admin = Arc::new(Admin::new(load, config.clone(), key_sets.clone(), rotation));
    let keeper = Keeper::new(admin.clone(), teller);
    if let Some(recorder) = &recorder {
        attached.record_to(recorder.clone());
    }
    let poll = Poll {
        key_sets: key_sets.clone(),
        disks: Arc::downgrade(&attached),
        metrics: metrics.clone(),
        suspicions,
        keeper: keeper.clone(),
    };
    let disks = Arc::new(Attached {
        disks: attached,
        keys: key_sets.clone(),
        metrics: metrics.clone(),
        ledger: Ledger::below(&config.daemon.state_dir),
        keeper: keeper.clone(),
    });
    tokio::spawn(tell_metrics(Arc::downgrade(&disks), metrics.clone()));
    let poll = tokio::spawn(poll.run());
    let verifier = Verifier::new(
        disks.clone(),
        Ledger::below(&config.daemon.state_dir),
        key_sets.clone(),
        metrics.clone(),
        config.verify.clone(),
    );
    let services = Services {
        disks,
        verifications: Arc::new(verifier),
        key_sets: admin.clone(),
        rotations: admin,
        metrics: Arc::new(Exposition(metrics)),
        audit: recorder.clone().map(|recorder| recorder as _),
        control: manager,
    };
    Ok((services, recorder, poll))
}

fn settings(config: &Config) -> Settings {
    let daemon = &config.daemon;
    Settings {
        serve: config.serve.clone(),
        log: config.log,
        keep_deks: daemon.keep_deks,
        concurrency: daemon.attach_concurrency,
        rekey_concurrency: daemon.rekey_concurrency,
        poll: daemon.poll,
        walls: Walls {
            uids: daemon.worker_uids,
            required: daemon.require_sandbox,
        },
        ..Settings::new(daemon.state_dir.clone(), daemon.run_dir.clone())
    }
}

/// The disks, as the API has them.
struct Attached {
    disks: Arc<disks::Disks>,
    keys: Arc<keys::KeySets>,
    metrics: Arc<metrics::Metrics>,
    /// Knows the volumes that were attached, for their key sets' sake.
    ledger: Ledger,
    /// Has volumes follow that were away while their key changed.
    keeper: Arc<Keeper>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

impl Attached {
    /// Notes which key sets a volume needs, from its wraps: also those that
    /// are for break-glass access alone. It is attached, and opens again
    /// without the note.
    async fn note(&self, disk: &DiskInfo) {
        let (ledger, name) = (self.ledger.clone(), disk.name.clone());
        let location = Location {
            data: disk.volume.clone(),
            header: disk.header.clone(),
        };
        let facts = self.disks.key_of(&name);
        let noted = disks::blocking(move || -> Result<Known, Failure> {
            let description = Inspection::of(&location)?.description()?;
            let token = &description.token;
            let known = Known::new(
                description.uuid,
                (location.data, location.header),
                &token.key_set,
                &token.wraps,
            );
            // The wraps may be somewhere else.
            let known = match facts {
                Some(facts) if !facts.wraps.is_empty() => known.with_wraps(facts.wraps),
                _ => known,
            };
            ledger
                .note(&known)
                .map_err(disks::system("cannot write the ledger"))?;
            Ok(known)
        });
        match noted.await.and_then(|noted| noted) {
            Ok(known) => self.keeper.attached(&known).await,
            Err(error) => {
                tracing::warn!(disk = name, "the volume is not in the ledger: {error}");
            }
        }
    }
}

#[async_trait]
impl Disks for Attached {
    async fn attach(&self, context: &Context, attach: Attach) -> Result<DiskInfo, Failure> {
        let disk = self.disks.attach(context, attach).await?;
        // Of an ephemeral disk there is nothing that needs a key.
        if !disk.ephemeral {
            self.note(&disk).await;
        }
        Ok(disk)
    }

    async fn detach(&self, context: &Context, name: &str, how: Detach) -> Result<(), Failure> {
        self.disks.detach(context, name, how).await
    }

    async fn limit(
        &self,
        context: &Context,
        name: &str,
        limits: Limits,
    ) -> Result<DiskInfo, Failure> {
        self.disks.limit(context, name, limits).await
    }

    async fn erase(&self, context: &Context, erase: EraseVolume) -> Result<ErasedVolume, Failure> {
        let (disks, keys, ledger) = (&self.disks, &self.keys, &self.ledger);
        let erased = super::erase::erase(disks, keys, ledger, context, erase).await;
        let finished = erased.as_ref().map(|erased| erased.finished).ok();
        self.metrics.volume_erased(finished);
        erased
    }

    async fn change_wraps(
        &self,
        context: &Context,
        change: ChangeWraps,
    ) -> Result<WrapsChanged, Failure> {
        let (disks, keys, ledger) = (&self.disks, &self.keys, &self.ledger);
        super::wraps::change(disks, keys, ledger, context, change).await
    }

    async fn resize(
        &self,
        context: &Context,
        name: &str,
        wanted: NewSize,
    ) -> Result<DiskInfo, Failure> {
        self.disks.resize(context, name, wanted).await
    }

    async fn freeze(
        &self,
        context: &Context,
        name: &str,
        timeout: Duration,
    ) -> Result<DiskInfo, Failure> {
        self.disks.freeze(context, name, timeout).await
    }

    async fn thaw(&self, context: &Context, name: &str) -> Result<DiskInfo, Failure> {
        let disk = self.disks.thaw(context, name).await?;
        // Its key may have changed meanwhile, and its header was not to.
        if !disk.ephemeral {
            self.note(&disk).await;
        }
        Ok(disk)
    }

    async fn upgrade(
        &self,
        context: &Context,
        name: &str,
        wanted: UpgradeDisk,
    ) -> Result<UpgradedDisk, Failure> {
        let upgraded = self.disks.upgrade(context, name, wanted).await;
        let pause = upgraded.as_ref().map(|upgraded| upgraded.pause_us);
        self.metrics.disk_upgraded(pause.ok());
        upgraded
    }

    async fn resume(&self, context: &Context, name: &str, fail: bool) -> Result<DiskInfo, Failure> {
        self.disks.resume(context, name, fail).await
    }

    async fn rekey(&self, context: &Context, wanted: StartRekey) -> Result<RekeysStarted, Failure> {
        let started = self.disks.rekey(context, wanted).await?;
        // Its wraps are of another key now, made by what wraps now.
        for begun in started.disks.iter().filter(|disk| disk.begun) {
            if let Some(disk) = self.disks.get(&begun.disk) {
                self.note(&disk).await;
            }
        }
        Ok(started)
    }

    async fn change_rekey(
        &self,
        context: &Context,
        name: &str,
        change: RekeyChange,
    ) -> Result<DiskInfo, Failure> {
        self.disks.change_rekey(context, name, change).await
    }

    async fn turn_rekey(
        &self,
        context: &Context,
        name: &str,
        direction: Direction,
    ) -> Result<DiskInfo, Failure> {
        self.disks.turn_rekey(context, name, direction).await
    }

    fn list(&self) -> Vec<DiskInfo> {
        self.disks.list()
    }

    fn get(&self, name: &str) -> Option<DiskInfo> {
        self.disks.get(name)
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.disks.subscribe()
    }

    async fn close(&self) {
        self.disks.close().await;
    }

    fn reconfigure(&self, config: &Config) -> Vec<String> {
        self.disks.set_defaults(config.serve.clone());
        let most = config.daemon.rekey_concurrency;
        self.disks.set_rekey_concurrency(most);
        vec!["serve".into(), "daemon.rekey_concurrency".into()]
    }
}

/// Tells the metrics what the disks are doing, for as long as there are any.
async fn tell_metrics(disks: Weak<Attached>, metrics: Arc<metrics::Metrics>) {
    let Some(mut changes) = disks.upgrade().map(|disks| disks.subscribe()) else {
        return;
    };
    // Which memory the statistics of a disk are in.
    let mut told: BTreeMap<String, Option<u64>> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let Some(disks) = disks.upgrade() else {
            return;
        };
        let list = disks.list();
        told.retain(|name, _| {
            let stays = list.iter().any(|disk| disk.name == *name);
            if !stays {
                metrics.disk_gone(name);
            }
            stays
        });
        for disk in &list {
            metrics.disk_changed(DiskView {
                disk: disk.name.clone(),
                volume: disk.uuid,
                state: disk.state.as_str(),
                front_end: disk.front_end,
                restarts: disk.restarts,
                rekey: disk.rekey.as_ref().map(|rekey| RekeyView {
                    kind: rekey.kind.as_str(),
                    state: rekey.state.as_str(),
                    done: rekey.done,
                    size: rekey.size,
                    rate: rekey.rate,
                }),
                trouble: TroubleView {
                    waiting: disk.trouble.as_ref().map_or(0, |it| it.waiting),
                    stuck: disk.stuck.as_ref().map_or(0, |it| it.count),
                    stops: disk.troubles.stops,
                    waited: disk.troubles.waited,
                    stalls: disk.troubles.stuck,
                },
            });
            let before = told.entry(disk.name.clone()).or_default();
            let Some(memory) = disks.disks.statistics(&disk.name) else {
                continue;
            };
            let inode = rustix::fs::fstat(&memory).ok().map(|stat| stat.st_ino);
            if *before == inode {
                continue;
            }
            match Reader::open(memory.as_fd()) {
                Ok(reader) => metrics.disk_started(&disk.name, reader),
                Err(error) => {
                    tracing::warn!(%error, disk = disk.name, "its statistics cannot be read");
                }
            }
            *before = inode;
        }
        drop(disks);
        if changes.changed().await.is_err() {
            return;
        }
        // A thousand disks change together: they are told together.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The metrics, as the API gives them out.
#[derive(Debug)]
struct Exposition(Arc<metrics::Metrics>);

impl Metrics for Exposition {
    fn render(&self) -> Result<String, Failure> {
        Ok(self.0.render())
    }

    fn api_request(&self, method: &str, route: &str, status: u16, took: Duration) {
        self.0.api_request(method, route, status, took);
    }
}
