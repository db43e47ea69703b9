//! Which implementation stands behind each of the [`services`](super::services).
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::configured::Configured;
use super::control::Manager;
use super::model::{Attach, Detach, DiskCounts, DiskInfo, DiskState};
use super::services::{Disks, Metrics, Services};
use crate::config::Config;
use crate::error::{Failure, Kind};
use crate::keys::Context;

/// The services of the running manager.
///
/// # Errors
/// When one of them cannot be had.
pub async fn services(config: &Config, manager: Arc<Manager>) -> Result<Services, Failure> {
    let disks: Arc<dyn Disks> = Arc::new(NoDisks(watch::channel(0).0));
    Ok(Services {
        disks: disks.clone(),
        key_sets: Arc::new(Configured::of(config)),
        metrics: Arc::new(States(disks)),
        audit: None,
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

    async fn close(&self) {}

    fn reconfigure(&self, _: &Config) -> Vec<String> {
        vec!["serve".into()]
    }
}

/// How many disks are in each state.
#[derive(Debug)]
struct States(Arc<dyn Disks>);

impl Metrics for States {
    fn render(&self) -> Result<String, Failure> {
        let counts = DiskCounts::of(&self.0.list());
        let mut text =
            String::from("# HELP sealblk_disks Disks by state.\n# TYPE sealblk_disks gauge\n");
        for state in DiskState::ALL {
            let (name, count) = (state.as_str(), counts.get(state));
            let _ = writeln!(text, "sealblk_disks{{state=\"{name}\"}} {count}");
        }
        text.push_str("# EOF\n");
        Ok(text)
    }

    fn api_request(&self, _: &str, _: &str, _: u16, _: Duration) {}
}
