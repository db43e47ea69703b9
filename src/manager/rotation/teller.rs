//! What is told of rotations: to the audit log, the metrics and the log.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::audit::{self, Event};
use crate::keys::Context;
use crate::manager::recorder::Recorder;
use crate::metrics::Metrics;
use crate::rotation::{News, Told};

/// Tells it all.
#[derive(Debug)]
pub struct Teller {
    /// The audit log, if one is kept.
    pub recorder: Option<Arc<Recorder>>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Teller {
    /// Records something. It has happened whether that works or not.
    pub fn record(&self, context: &Context, event: Event<'_>) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        let record = audit::Record {
            actor: &context.actor,
            event,
            outcome: audit::Outcome::Ok,
            correlation: Some(context.correlation),
            took: None,
        };
        if let Err(error) = recorder.append(&record) {
            tracing::error!("the audit log could not take note of a rotation: {error}");
        }
    }
}

impl Told for Teller {
    fn told(&self, context: &Context, news: News<'_>) {
        self.metrics.rotations().told(&news);
        if let News::Failed {
            volume,
            key_set,
            failure,
        } = news
        {
            tracing::warn!(%volume, key_set, "a volume does not follow its key yet: {failure}");
        }
        let (mut from, mut to) = (String::new(), String::new());
        if let Some(event) = news.event(&mut from, &mut to) {
            self.record(context, event);
        }
    }
}
