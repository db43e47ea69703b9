//! The command line: raw arguments in, calls of the library out.
#![forbid(unsafe_code)]

pub mod volume;

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::{Failure, Kind, io_kind};

/// Writes the result of a command to standard output. That the reader has
/// gone away is no error.
///
/// # Errors
/// When it cannot be written, as on a full disk.
pub fn print(result: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write!(out, "{result}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            io_kind(&error),
            format!("cannot write to standard output: {error}"),
            None,
        )),
        _ => Ok(()),
    }
}

/// Writes the result of a command as JSON, for scripts.
///
/// # Errors
/// As [`print`].
pub fn print_json(result: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(result)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string(), None))?;
    print(format_args!("{text}\n"))
}
