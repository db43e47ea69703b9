//! Structured logs, to standard error.
//!
//! Standard output belongs to what a command was asked for. A log line tells
//! events with their fields; it never holds key material (the types that hold
//! it cannot be formatted). Where nobody reads the log any more, it is lost, and
//! the disks are served all the same.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

use crate::config::{Log, LogFormat, LogLevel};

/// Logs from now on as `log` says. For `main` alone: the first call of a
/// process wins, and later ones change nothing.
pub fn init(log: Log) {
    let level = match log.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        // It would print that to standard error as well, and panic.
        .log_internal_errors(false)
        .with_writer(io::stderr);
    // A second subscriber is refused, which is what is promised.
    let _ = match log.format {
        LogFormat::Text => builder
            .with_ansi(io::stderr().is_terminal())
            .try_init()
            .map_err(drop),
        LogFormat::Json => builder.json().flatten_event(true).try_init().map_err(drop),
    };
}
