//! The audit log as a broker keeps it. Its lines are counted, and what a call
//! left there is noted for the call.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::{self, Event, Outcome, Record};
use crate::keys::{Actor, Host, KeyUse, Witness};
use crate::metrics::BrokerMetrics;

/// So many refusals to one certificate are recorded one by one in [`WINDOW`].
/// Whoever has a certificate, and nothing else, does not fill the disk.
const REFUSALS: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);
/// Certificates that are told apart in this. More count as one.
const CERTIFICATES_MAX: usize = 4096;

/// The audit log, and who counts its lines.
#[derive(Debug)]
pub struct Recorder {
    log: Option<audit::Log>,
    metrics: Arc<BrokerMetrics>,
    refusals: Mutex<HashMap<String, Refusals>>,
}

#[derive(Debug)]
struct Refusals {
    since: Instant,
    count: u32,
    unrecorded: u64,
}

/// What a call left in the log by the uses of keys that it caused.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Whether there is a line.
    pub recorded: bool,
    /// What the service called the request that was asked last.
    pub request_id: Option<String>,
}

tokio::task_local! {
    static NOTED: RefCell<Noted>;
}

/// Runs `work`, and tells what it left in the log.
pub async fn noted<F: Future>(work: F) -> (F::Output, Noted) {
    NOTED
        .scope(RefCell::default(), async {
            let output = work.await;
            (output, NOTED.with(|noted| noted.borrow().clone()))
        })
        .await
}

impl Recorder {
    /// Records to `log`, if there is one.
    pub fn new(log: Option<audit::Log>, metrics: Arc<BrokerMetrics>) -> Self {
        Recorder {
            log,
            metrics,
            refusals: Mutex::default(),
        }
    }

    /// Records something.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn append(&self, record: &Record<'_>) -> Result<(), audit::Error> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        // It waits for the disk below.
        let result = tokio::task::block_in_place(|| log.append(record));
        self.metrics.audit_line(result.is_ok());
        result
    }

    /// Records what the broker does of itself.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn of_broker(&self, event: Event<'_>, outcome: Outcome) -> Result<(), audit::Error> {
        self.append(&Record {
            actor: &Actor::this_process("broker"),
            event,
            outcome,
            correlation: None,
            took: None,
        })
    }

    /// Records that a call was refused to who has that certificate.
    ///
    /// # Errors
    /// When it cannot be recorded.
    pub fn refused(
        &self,
        certificate: &str,
        peer: &str,
        claimed: &str,
        outcome: Outcome,
    ) -> Result<(), audit::Error> {
        let Some(unrecorded) = self.one_more(certificate, Instant::now()) else {
            return Ok(());
        };
        let actor = Actor::this_process("broker").for_host(Host {
            name: String::new(),
            certificate: certificate.into(),
        });
        self.append(&Record {
            actor: &actor,
            event: Event::CallRefused {
                peer,
                claimed,
                unrecorded,
            },
            outcome,
            correlation: None,
            took: None,
        })
    }

    /// Whether one more refusal to that certificate is recorded, and how many
    /// were not since the last one.
    fn one_more(&self, certificate: &str, now: Instant) -> Option<u64> {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= CERTIFICATES_MAX {
            refusals.retain(|_, one| now.duration_since(one.since) < WINDOW);
        }
        let known = refusals.len() < CERTIFICATES_MAX || refusals.contains_key(certificate);
        let name = if known { certificate } else { "" };
        let one = refusals.entry(name.into()).or_insert(Refusals {
            since: now,
            count: 0,
            unrecorded: 0,
        });
        if now.duration_since(one.since) >= WINDOW {
            (one.since, one.count) = (now, 0);
        }
        if one.count >= REFUSALS {
            one.unrecorded += 1;
            return None;
        }
        one.count += 1;
        Some(std::mem::take(&mut one.unrecorded))
    }
}

impl Witness for Recorder {
    fn key_used(&self, used: &KeyUse<'_>) -> io::Result<()> {
        if let Some(log) = &self.log {
            let result = tokio::task::block_in_place(|| log.key_used(used));
            self.metrics.audit_line(result.is_ok());
            result?;
        }
        let _ = NOTED.try_with(|noted| {
            let mut noted = noted.borrow_mut();
            noted.recorded = true;
            if used.notes.request_id.is_some() {
                noted.request_id.clone_from(&used.notes.request_id);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_recorded_up_to_a_bound_and_then_counted() {
        let recorder = Recorder::new(None, Arc::new(BrokerMetrics::new()));
        let start = Instant::now();
        for _ in 0..REFUSALS {
            assert_eq!(recorder.one_more("a", start), Some(0));
        }
        for _ in 0..500 {
            assert_eq!(recorder.one_more("a", start), None);
        }
        assert_eq!(recorder.one_more("b", start), Some(0), "another one");
        assert_eq!(recorder.one_more("a", start + WINDOW), Some(500));
        assert_eq!(recorder.one_more("a", start + WINDOW), Some(0));
        for number in 0..2 * CERTIFICATES_MAX {
            recorder.one_more(&format!("x{number}"), start + WINDOW);
        }
        assert!(recorder.refusals.lock().unwrap().len() <= CERTIFICATES_MAX + 1);
    }
}
