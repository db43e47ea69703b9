//! The log, as others see it.

use std::sync::{Mutex, PoisonError};

use super::Settings;
use super::error::Error;
use super::event::Event;
use super::outcome::Outcome;
use super::record::Record;
use super::writer::Writer;
use crate::keys::Actor;

/// A log that is appended to. Any thread may do so.
///
/// [`Log::record`] waits for the disk, and for other processes that append:
/// an asynchronous caller has it run where it may block.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    writer: Mutex<Writer>,
}

impl Log {
    /// The log that `settings` describe. Nothing is opened yet: commands that
    /// record nothing do not need it.
    pub fn new(settings: Settings) -> Self {
        Log {
            settings,
            writer: Mutex::default(),
        }
    }

    /// The same, and it can be written now.
    ///
    /// # Errors
    /// When it cannot be, or holds something else.
    pub fn open(settings: Settings) -> Result<Self, Error> {
        let log = Log::new(settings);
        let opened = log.lock_writer().check(&log.settings);
        opened.map_err(|cause| cause.at(&log.settings.path))?;
        Ok(log)
    }

    /// The file that is written.
    pub fn path(&self) -> &std::path::Path {
        &self.settings.path
    }

    /// Records that `actor` did something. It is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be recorded. Whatever was asked for must then not be
    /// given.
    pub fn record(
        &self,
        actor: &Actor,
        event: Event<'_>,
        outcome: impl Into<Outcome>,
    ) -> Result<(), Error> {
        self.append(&Record {
            actor,
            event,
            outcome: outcome.into(),
            correlation: None,
            took: None,
        })
    }

    /// The same with all that may be told of it.
    ///
    /// # Errors
    /// As [`Log::record`].
    pub fn append(&self, record: &Record<'_>) -> Result<(), Error> {
        self.lock_writer()
            .append(&self.settings, record)
            .map_err(|cause| cause.at(&self.settings.path))
    }

    fn lock_writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        // A thread that panicked has at worst left `end` behind, which only
        // makes the file be looked at again.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
