//! Lines that are made up, each bound to the one before.

use serde::Serialize;

use super::error::Cause;
use super::head::Head;
use super::line::{Hash, LINE_MAX, TornBytes, VERSION, seal};
use super::outcome::Outcome;
use super::record::Body;
use crate::keys::Actor;
use crate::timestamp::Moment;

/// Events of the log itself.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Own {
    /// The first line of all.
    AuditOpened,
    /// The first line of a file that follows another.
    AuditRotated {
        /// The last line in the files that are removed now.
        #[serde(skip_serializing_if = "Option::is_none")]
        removed_through: Option<u64>,
    },
    /// What is before this line is not as it was left.
    Recovered {
        /// What a crash left of a line.
        #[serde(skip_serializing_if = "Option::is_none")]
        torn: Option<TornBytes>,
        /// The number of the last line that was found, where there had been
        /// later ones.
        #[serde(skip_serializing_if = "Option::is_none")]
        lost_after: Option<u64>,
    },
}

/// The lines that are being made up, each bound to the one before.
pub(super) struct Chain {
    pub(super) last: Option<Head>,
    pub(super) text: Vec<u8>,
}

impl Chain {
    pub(super) fn next(&self) -> (u64, Hash) {
        match self.last {
            Some(last) => (last.seq.saturating_add(1), last.hash),
            None => (1, Hash::NONE),
        }
    }

    pub(super) fn push<E: Serialize>(&mut self, body: &Body<'_, E>) -> Result<(), Cause> {
        let seq = body.seq;
        let body = serde_json::to_vec(body)
            .map_err(|error| Cause::io("write")(std::io::Error::other(error)))?;
        if body.len() > LINE_MAX / 2 {
            return Err(Cause::TooLong(body.len()));
        }
        let (line, hash) = seal(body);
        self.text.extend_from_slice(&line);
        self.last = Some(Head { seq, hash });
        Ok(())
    }

    pub(super) fn own(&mut self, event: Own, actor: &Actor) -> Result<(), Cause> {
        let (seq, prev) = self.next();
        self.push(&Body {
            v: VERSION,
            seq,
            time: Moment::now(),
            event: &event,
            actor,
            outcome: &Outcome::Ok,
            correlation: None,
            took_us: None,
            prev,
        })
    }
}
