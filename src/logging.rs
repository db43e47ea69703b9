//! Structured logs, to standard error.
//!
//! Standard output belongs to what a command was asked for. A log line tells
//! events with their fields; it never holds key material (the types that hold
//! it cannot be formatted). Where nobody reads the log any more, it is lost, and
//! the disks are served all the same.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct Handle(reload::Handle<Targets, Registry>);

impl Handle {
    /// Logs from now on what is at least as severe as `level`.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only when nothing is logged any more.
        let _ = self.0.reload(filter(level));
    }
}

fn filter(level: LogLevel) -> Targets {
    let level_filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = Targets::new().with_default(level_filter);
    if level == LogLevel::Trace {
        return filter;
    }
    // It calls each mechanism of a token that it has no name for an error.
    filter.with_target("cryptoki", LevelFilter::OFF)
}

/// Logs from now on as `log` says. For `main` alone: the first call of a
/// process wins, and later ones change nothing.
pub fn init(log: Log) -> Handle {
    let (level, handle) = reload::Layer::new(filter(log.level));
    let lines = fmt::layer()
        // It would print that to standard error as well, and panic.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(level);
    // A second subscriber is refused, which is what is promised.
    let _ = match log.format {
        LogFormat::Text => registry
            .with(lines.with_ansi(io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Handle(handle)
}
