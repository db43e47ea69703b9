//! Verifies disks for those who may not read them: one at a time, and no
//! faster than is configured, so that nobody's guests suffer for it.
//!
//! Only disks that the manager knows are verified: a reader must not learn of
//! any file of the host whether it is there, and what it is like.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::disks::{blocking, system};
use super::model::Verify;
use super::services::{Disks, Verifications, Verified};
use crate::attest;
use crate::config;
use crate::error::{Failure, Kind};
use crate::keys::ledger::Ledger;
use crate::keys::{Context, KeySets};
use crate::metrics::Metrics;
use crate::verify::{
    self, Cancel, Envelope, Expect, Extent, HostKey, Keys, Means, Requester, Seed, Subject, Wanted,
};
use crate::volume::Location;

/// Threads of a verification: the cores are the guests'.
const THREADS: usize = 2;

/// How many units are looked at unless told otherwise.
const SAMPLE: u64 = 10_000;

/// Verifies disks.
pub struct Verifier {
    disks: Arc<dyn Disks>,
    ledger: Ledger,
    keys: Arc<KeySets>,
    metrics: Arc<Metrics>,
    settings: config::Verify,
    /// One at a time.
    turn: Semaphore,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Verifier");
        shown
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Verifies what is among `disks`, or in the ledger, with `keys`.
    pub fn new(
        disks: Arc<dyn Disks>,
        ledger: Ledger,
        keys: Arc<KeySets>,
        metrics: Arc<Metrics>,
        settings: config::Verify,
    ) -> Self {
        Verifier {
            disks,
            ledger,
            keys,
            metrics,
            settings,
            turn: Semaphore::new(1),
        }
    }

    /// Where the disk is that somebody means.
    async fn find(&self, wanted: &Verify) -> Result<Location, Failure> {
        let disks = self.disks.list();
        let named = disks
            .iter()
            .find(|disk| wanted.disk.as_deref() == Some(&disk.name));
        let at = |path: &Path| wanted.volume.as_deref() == Some(path);
        let found = named.or_else(|| disks.iter().find(|disk| at(&disk.volume)));
        if let Some(disk) = found {
            return Ok(Location {
                data: disk.volume.clone(),
                header: disk.header.clone(),
            });
        }
        let Some(path) = wanted.volume.clone() else {
            return Err(unknown(wanted));
        };
        let ledger = self.ledger.clone();
        let known = blocking(move || ledger.all()).await?;
        let known = known.map_err(system("cannot read the ledger"))?;
        match known.into_iter().find(|known| known.path == path) {
            Some(known) => Ok(Location {
                data: known.path,
                header: known.header,
            }),
            None => Err(unknown(wanted)),
        }
    }

    async fn report(
        &self,
        context: &Context,
        wanted: Verify,
        cancel: Cancel,
    ) -> Result<Verified, Failure> {
        let location = self.find(&wanted).await?;
        let _turn = self.turn.try_acquire().map_err(|_| {
            Failure::new(
                Kind::Busy,
                "another disk is being verified, and one is at a time",
                Some(
                    "try again when that has ended; `sealblk verify` as root does not wait for it"
                        .into(),
                ),
            )
        })?;
        let path = self.settings.key.clone();
        let key = match wanted.sign {
            // Before an hour's work is for nothing.
            true => Some(blocking(move || HostKey::read(&path)).await??),
            false => None,
        };
        let extent = extent(&wanted)?;
        let expect = wanted.expect;
        let subject = blocking(move || Subject::open(&location, expect)).await??;
        let keys = match subject.description() {
            Some(description) if expect == Expect::Encrypted && !wanted.no_key => {
                attest::keys_of(&self.keys, context, description).await
            }
            _ => Keys::NotAsked,
        };
        let rate = self.settings.rate.0;
        let means = Means {
            threads: THREADS,
            rate: Some(wanted.rate.map_or(rate, |wanted| wanted.clamp(1, rate))),
            cancel,
        };
        let wanted = Wanted {
            extent,
            requester: Requester {
                uid: context.actor.uid,
                role: context.actor.role.clone().into_owned(),
            },
            nonce: wanted.nonce,
        };
        blocking(move || -> Result<Verified, Failure> {
            let report = verify::run(&subject, keys, wanted, &means)?;
            let signed = key.map(|key| Envelope::sign(&report, &key)).transpose()?;
            Ok(Verified { report, signed })
        })
        .await?
    }
}

fn extent(wanted: &Verify) -> Result<Extent, Failure> {
    if wanted.full {
        return Ok(Extent::Full);
    }
    let seed = match &wanted.seed {
        Some(text) => text.parse().map_err(|why: String| {
            Failure::new(
                Kind::Usage,
                why,
                Some("leave it out, and one is made".into()),
            )
        })?,
        None => Seed::random().map_err(system("there are no random bytes"))?,
    };
    Ok(Extent::Sample {
        units: wanted.sample.unwrap_or(SAMPLE),
        seed,
    })
}

fn unknown(wanted: &Verify) -> Failure {
    let called = wanted
        .volume
        .clone()
        .or(wanted.disk.clone().map(PathBuf::from));
    Failure::new(
        Kind::NotFound,
        format!(
            "the daemon knows no disk {:?}: it was neither made nor attached here",
            called.unwrap_or_default()
        ),
        Some("`sealblk list` shows those that are attached; whoever may read the file verifies it without the daemon".into()),
    )
}

#[async_trait]
impl Verifications for Verifier {
    async fn verify(
        &self,
        context: &Context,
        wanted: Verify,
        cancel: Cancel,
    ) -> Result<Verified, Failure> {
        let result = self.report(context, wanted, cancel).await;
        let verdict = result.as_ref().map(|done| done.report.verdict.as_str());
        self.metrics.verification(verdict.unwrap_or("failed"));
        if let Ok(done) = &result {
            let report = &done.report;
            let (path, verdict) = (report.disk.path.display(), report.verdict.as_str());
            tracing::info!(%path, verdict, took_ms = report.took_ms, "verified a disk");
        }
        result
    }
}
