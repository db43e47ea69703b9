//! How a failure looks over HTTP: problem details (RFC 9457) with what a
//! command would have printed.
#![forbid(unsafe_code)]

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Explain, Failure, Kind};
use crate::manager::roles::{Refused, Role};

/// What problem details are sent as.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDetails {
    /// Its class as a URN: `urn:sealblk:problem:` and the kind.
    #[serde(rename = "type")]
    #[schema(example = "urn:sealblk:problem:busy")]
    pub type_: String,
    /// What the class means.
    pub title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// Its class, as a word.
    pub kind: Kind,
    /// The cause.
    pub message: String,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// What a command that fails for this exits with.
    #[schema(minimum = 1, maximum = 255)]
    pub exit_status: u8,
    /// The roles of which one would have been enough, where none was there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Role>,
}

/// The status that a kind of failure is answered with.
pub fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Usage => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Permission => StatusCode::FORBIDDEN,
        Kind::Busy | Kind::Refused => StatusCode::CONFLICT,
        // The last two are in no answer: a report has the verdict.
        Kind::Corrupt | Kind::Disproved | Kind::Undecided => StatusCode::UNPROCESSABLE_ENTITY,
        // What this depends on has refused: the key, and not the caller.
        Kind::Key => StatusCode::FAILED_DEPENDENCY,
        Kind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Internal | Kind::Io => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// What a kind means, in a few words.
fn title_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Internal => "a defect of sealblk",
        Kind::Usage => "the request is wrong",
        Kind::NotFound => "what was named does not exist",
        Kind::Permission => "it is not permitted",
        Kind::Busy => "somebody else holds it",
        Kind::Refused => "it would destroy something",
        Kind::Corrupt => "stored bytes are damaged",
        Kind::Key => "the key is wrong or denied",
        Kind::Unreachable => "a service does not answer",
        Kind::Io => "reading or writing failed",
        Kind::Unsupported => "it cannot be done here",
        Kind::Disproved => "it is not so",
        Kind::Undecided => "it could not be found out",
    }
}

fn name_of(kind: Kind) -> String {
    // The name that serde gives it, so that there is only one.
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "internal".into(),
    }
}

/// A failure on its way out.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: Kind,
    message: String,
    help: Option<String>,
    needs: Vec<Role>,
}

impl Problem {
    /// A problem of HTTP itself, with the status that HTTP has for it.
    pub fn http(status: StatusCode, message: impl Into<String>, help: impl Into<String>) -> Self {
        Problem {
            status,
            kind: Kind::Usage,
            message: message.into(),
            help: Some(help.into()),
            needs: vec![],
        }
    }

    /// The request is wrong.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::http(StatusCode::BAD_REQUEST, message, help)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>, help: impl Into<String>) -> Self {
        Failure::new(Kind::NotFound, message, Some(help.into())).into()
    }

    /// Something is not as this program takes for granted.
    pub fn internal(message: impl Into<String>) -> Self {
        Failure::new(Kind::Internal, message, None).into()
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// As it is sent.
    pub fn details(self) -> ProblemDetails {
        ProblemDetails {
            type_: format!("urn:sealblk:problem:{}", name_of(self.kind)),
            title: title_of(self.kind).into(),
            status: self.status.as_u16(),
            kind: self.kind,
            message: self.message,
            help: self.help,
            exit_status: self.kind.exit_status(),
            needs: self.needs,
        }
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        Problem {
            status: status_of(failure.kind()),
            kind: failure.kind(),
            message: failure.to_string(),
            help: failure.help().map(str::to_owned),
            needs: vec![],
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::from(&failure)
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Problem {
            needs: refused.needs.to_vec(),
            ..Self::from(&Failure::from(refused))
        }
    }
}

impl Explain for Refused {
    fn kind(&self) -> Kind {
        Kind::Permission
    }

    fn help(&self) -> Option<String> {
        Some("ask the administrator of this host for the role: [daemon.roles] of the configuration names who has it".into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self.details())).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        response
    }
}

impl From<ProblemDetails> for Failure {
    /// What the command would have said, had it done it itself.
    fn from(details: ProblemDetails) -> Self {
        Failure::new(details.kind, details.message, details.help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_over_http() {
        for kind in Kind::ALL {
            let failure = Failure::new(kind, "cause", Some("next step".into()));
            let details = Problem::from(&failure).details();
            assert_eq!(details.status, status_of(kind).as_u16());
            assert!(details.status >= 400, "{kind:?}");
            assert_eq!(details.exit_status, kind.exit_status());
            let text = serde_json::to_string(&details).unwrap();
            let back: ProblemDetails = serde_json::from_str(&text).unwrap();
            let back = Failure::from(back);
            assert_eq!(back.kind(), kind);
            assert_eq!(back.to_string(), "cause");
            assert_eq!(back.help(), Some("next step"));
        }
    }

    #[test]
    fn the_type_is_the_kind() {
        let details = Problem::not_found("x", "y").details();
        assert_eq!(details.type_, "urn:sealblk:problem:not_found");
        assert_eq!(serde_json::to_value(details.kind).unwrap(), "not_found");
    }
}
