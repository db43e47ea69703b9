//! A record, and the line that is made of it.

use std::time::Duration;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::event::Event;
use super::line::{Hash, VERSION};
use super::outcome::Outcome;
use super::text::{empty, text};
use crate::keys::Actor;
use crate::timestamp::Moment;

/// All that is recorded of one event.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Who did it.
    pub actor: &'a Actor,
    /// What.
    pub event: Event<'a>,
    /// How it ended.
    pub outcome: Outcome,
    /// Ties it to other lines, and to the log of a service.
    pub correlation: Option<Uuid>,
    /// How long it took.
    pub took: Option<Duration>,
}

/// A line without its hash, as it is written.
#[derive(Serialize)]
pub(super) struct Body<'a, E> {
    pub(super) v: u32,
    pub(super) seq: u64,
    pub(super) time: Moment,
    #[serde(flatten)]
    pub(super) event: &'a E,
    #[serde(serialize_with = "actor")]
    pub(super) actor: &'a Actor,
    #[serde(flatten)]
    pub(super) outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) correlation: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) took_us: Option<u64>,
    pub(super) prev: Hash,
}

impl<'a> Record<'a> {
    pub(super) fn body(&'a self, seq: u64, prev: Hash) -> Body<'a, Event<'a>> {
        Body {
            v: VERSION,
            seq,
            time: Moment::now(),
            event: &self.event,
            actor: self.actor,
            outcome: &self.outcome,
            correlation: self.correlation,
            took_us: self.took.map(micros),
            prev,
        }
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn actor<S: Serializer>(actor: &Actor, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Written<'a> {
        uid: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        #[serde(serialize_with = "text")]
        role: &'a str,
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        host: &'a str,
        #[serde(skip_serializing_if = "empty", serialize_with = "text")]
        certificate: &'a str,
    }
    let host = actor.host.as_ref();
    let written = Written {
        uid: actor.uid,
        pid: actor.pid,
        role: &actor.role,
        host: host.map_or("", |host| &host.name),
        certificate: host.map_or("", |host| &host.certificate),
    };
    written.serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::LINE_MAX;
    use crate::audit::event::{EndpointAsked, KeyEvent};
    use crate::keys::Host;

    #[test]
    fn a_host_is_named_with_its_certificate() {
        let host = Host {
            name: "hv1".into(),
            certificate: "hv1.example".into(),
        };
        let us = Actor::this_process("broker");
        let of = |actor: &Actor| {
            let record = Record {
                actor,
                event: Event::BrokerStopped,
                outcome: Outcome::Ok,
                correlation: None,
                took: None,
            };
            serde_json::to_value(record.body(1, Hash::NONE)).unwrap()["actor"].clone()
        };
        let plain = of(&us);
        assert_eq!(plain.as_object().unwrap().len(), 3, "{plain}");
        let told = of(&us.for_host(host));
        assert_eq!(
            (&told["host"], &told["certificate"], &told["role"]),
            (&"hv1".into(), &"hv1.example".into(), &"broker".into())
        );
    }

    /// Whatever a volume, a service or a request brings in.
    #[test]
    fn a_record_is_never_too_long_for_a_line() {
        let long = "\u{1}".repeat(100_000);
        let me = Actor {
            uid: u32::MAX,
            pid: Some(u32::MAX),
            role: long.clone().into(),
            host: Some(Host {
                name: long.clone(),
                certificate: long.clone(),
            }),
        };
        let asked = EndpointAsked {
            endpoint: "https://kms.example:8200",
            took_us: u64::MAX,
            failed: Some("unreachable"),
        };
        let record = Record {
            actor: &me,
            event: Event::Unwrap(KeyEvent {
                volume: Some(Uuid::max()),
                key_set: &long,
                provider: &long,
                key_id: &long,
                key_version: &long,
                group: Some(Uuid::max()),
                service_asked: true,
                break_glass: true,
                request_id: &long,
                endpoints: vec![asked; 1000],
            }),
            outcome: Outcome::Denied {
                reason: "forbidden",
                message: long.clone(),
            },
            correlation: Some(Uuid::max()),
            took: Some(Duration::MAX),
        };
        let body = serde_json::to_vec(&record.body(u64::MAX, Hash::NONE)).unwrap();
        assert!(body.len() < LINE_MAX * 3 / 4, "{}", body.len());
        // No control character is left to end a line early.
        assert!(!body.iter().any(u8::is_ascii_control));
    }

    #[test]
    fn events_have_their_names_and_no_empty_members() {
        let me = Actor::this_process("operator");
        let record = Record {
            actor: &me,
            event: Event::Attach {
                disk: "web-1",
                volume: None,
                key_set: "",
                break_glass: false,
                ephemeral: false,
            },
            outcome: Outcome::Ok,
            correlation: None,
            took: None,
        };
        let body = serde_json::to_value(record.body(3, Hash::NONE)).unwrap();
        let object = body.as_object().unwrap();
        let members: Vec<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(
            members,
            [
                "actor", "disk", "event", "outcome", "prev", "seq", "time", "v"
            ]
        );
        assert_eq!(
            (&body["event"], &body["outcome"]),
            (&"attach".into(), &"ok".into())
        );
        assert_eq!(body["actor"]["role"], "operator");
    }
}
