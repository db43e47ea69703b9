//! Which implementation stands behind each of the [`services`](super::services).
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::control::Manager;
use super::key_sets::Admin;
use super::model::{Attach, Detach, DiskInfo};
use super::recorder::Recorder;
use super::services::{Disks, Metrics, Services};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::{self, Context, Witness};
use crate::{audit, metrics};

/// The services of the running manager.
///
/// # Errors
/// When one of them cannot be had.
pub async fn services(config: &Config, manager: Arc<Manager>) -> Result<Services, Failure> {
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
    let key_sets = keys::KeySets::new(config.key_sets.clone())
        .with_state(&config.daemon.state_dir)
        .with_witnesses(witnesses);
    let key_sets = Arc::new(key_sets);
    let disks: Arc<dyn Disks> = Arc::new(NoDisks(watch::channel(0).0));
    Ok(Services {
        disks: disks.clone(),
        key_sets: Arc::new(Admin::new(manager.load(), key_sets)),
        metrics: Arc::new(Exposition(metrics)),
        audit: recorder.map(|recorder| recorder as _),
        control: manager,
    })
}

/// A manager without the means to serve disks.
#[derive(Debug)]
struct NoDisks(watch::Sender<u64>);

#[async_trait]
impl Disks for NoDisks {
    async fn attach(&self, _: &Context, _: Attach) -> Result<DiskInfo, Failure> {
        Err(Failure::new(
            Kind::Unsupported,
            "this manager has no workers to serve disks with",
            Some("use `sealblk serve`".into()),
        ))
    }

    async fn detach(&self, _: &Context, name: &str, _: Detach) -> Result<(), Failure> {
        Err(Failure::new(
            Kind::NotFound,
            format!("there is no disk {name:?}"),
            Some("`sealblk list` names those that there are".into()),
        ))
    }

    fn list(&self) -> Vec<DiskInfo> {
        vec![]
    }

    fn get(&self, _: &str) -> Option<DiskInfo> {
        None
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec!["serve".into()]
    }
}

/// The metrics, as the API gives them out.
#[derive(Debug)]
struct Exposition(Arc<metrics::Metrics>);

impl Metrics for Exposition {
    fn render(&self) -> Result<String, Failure> {
        Ok(self.0.render())
    }

    fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        self.0.api_request(method, route, status, took);
    }
}
