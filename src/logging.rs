//! Structured logs, to standard error.
//!
//! Standard output belongs to what a command was asked for. A log line tells
//! events with their fields; it never holds key material (the types that hold
//! it cannot be formatted). Where nobody reads the log any more, it is lost, and
//! the disks are served all the same.
//!
//! What a guest or its front end can have logged as often as it likes is cut short
//! where one process serves them: see `flood`.
#![forbid(unsafe_code)]

mod flood;

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};
use crate::printable;

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

/// How lines look, for [`last_words`].
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// A line for when nothing can be logged any more, to be written as it is. It is
/// an error, and has no time.
pub fn last_words(message: &str) -> String {
    bare_line("ERROR", message)
}

/// A line without a time.
fn bare_line(level: &str, message: &str) -> String {
    match FORMAT.get() {
        Some(LogFormat::Json) => {
            let line = serde_json::json!({ "level": level, "message": message });
            format!("{line}\n")
        }
        Some(LogFormat::Text) | None => format!("{level} {message}\n"),
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

/// Standard error, for one line at a time: what is logged of names, of services and
/// of guests is no line of its own, and nothing for a terminal to act upon.
struct Lines {
    coloured: bool,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut shown = match self.coloured {
            true => printable::coloured(line),
            false => printable::line(line),
        }
        .into_owned();
        shown.push('\n');
        io::stderr().write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Logs from now on as `log` says. For `main` alone: the first call of a
/// process wins, and later ones change nothing.
pub fn init(log: Log) -> Handle {
    set_up(log, None)
}

/// The same for a process that serves a disk: no kind of line is logged more often
/// than a person could make use of, whatever its guest and front end do.
pub fn init_bounded(log: Log) -> Handle {
    set_up(log, Some(flood::Bound::default()))
}

fn set_up(log: Log, bound: Option<flood::Bound>) -> Handle {
    let _ = FORMAT.set(log.format);
    let (level, handle) = reload::Layer::new(filter(log.level));
    let coloured = log.format == LogFormat::Text && io::stderr().is_terminal();
    let lines = fmt::layer()
        // It would print that to standard error as well, and panic.
        .log_internal_errors(false)
        .with_writer(move || Lines { coloured });
    let registry = tracing_subscriber::registry().with(level).with(bound);
    // A second subscriber is refused, which is what is promised.
    let _ = match log.format {
        LogFormat::Text => registry.with(lines.with_ansi(coloured)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Handle(handle)
}
