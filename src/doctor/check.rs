//! One check and what came of it.

use std::fmt;

use serde::Serialize;

use crate::error::{Explain, Failure, Kind};

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and may not go on doing so, or not well.
    Warn,
    /// It does not work.
    Fail,
    /// It could not be tried, or there is nothing to try.
    Skip,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name. Part of the interface.
    pub name: &'static str,
    /// The endpoint that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What came of it.
    pub status: Status,
    /// In plain words.
    pub message: String,
    /// The next step, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Where it failed: the exit status that this would be by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<u8>,
    #[serde(skip)]
    kind: Kind,
}

impl Check {
    fn new(name: &'static str, status: Status, message: impl Into<String>) -> Self {
        Check {
            name,
            endpoint: None,
            status,
            message: message.into(),
            help: None,
            exit_status: None,
            kind: Kind::Internal,
        }
    }

    pub(crate) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Check::new(name, Status::Ok, message)
    }

    pub(crate) fn skip(name: &'static str, message: impl Into<String>) -> Self {
        Check::new(name, Status::Skip, message)
    }

    pub(crate) fn warn(
        name: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Check {
            help: Some(help.into()),
            ..Check::new(name, Status::Warn, message)
        }
    }

    pub(crate) fn fail(
        name: &'static str,
        kind: Kind,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Check {
            help: Some(help.into()),
            exit_status: Some(kind.exit_status()),
            kind,
            ..Check::new(name, Status::Fail, message)
        }
    }

    /// Failed for this error.
    pub(crate) fn failed(name: &'static str, error: &impl Explain) -> Self {
        Check {
            help: error.help(),
            exit_status: Some(error.kind().exit_status()),
            kind: error.kind(),
            ..Check::new(name, Status::Fail, error.to_string())
        }
    }

    /// With the endpoint that it is about.
    pub(crate) fn at(mut self, endpoint: &str) -> Self {
        self.endpoint = Some(endpoint.to_owned());
        self
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.status == Status::Fail
    }

    /// What a command fails with, if this failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.is_failed()
            .then(|| Failure::new(self.kind, self.message.clone(), self.help.clone()))
    }
}

impl fmt::Display for Check {
    /// On one line, and another one with the next step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
            Status::Skip => "-",
        };
        write!(f, "  {status:<5}{:<14}", self.name)?;
        writeln!(f, "{}", self.message)?;
        match (&self.help, self.status) {
            (Some(help), Status::Warn | Status::Fail) => {
                writeln!(f, "{:21}next: {help}", "")
            }
            _ => Ok(()),
        }
    }
}
