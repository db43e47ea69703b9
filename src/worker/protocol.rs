//! What manager and worker say to each other: JSON in packets, with
//! descriptors beside it.
//!
//! A worker speaks the version that it was built with, [`PROTOCOL`], and says
//! so in its first message on every connection: workers outlive managers, so a
//! manager has to speak the versions of all workers that it may find. Within a
//! version, requests, answers, events, fields and roles may be added: a worker
//! answers [`Answer::Unsupported`] to a request that it does not know, and
//! everything else that is not known is passed over.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::parcel::Role;
use crate::config::Log;
use crate::engine::hold::Mode;
use crate::engine::throttle::Limits;
use crate::engine::{Stuck, trouble};
use crate::error::{Explain, Failure, Kind};
use crate::one_line;
use crate::plane::Spec;
use crate::plane::moving::{Orders, Progress, Task};
use crate::sandbox::Walls;
use crate::vhost::SocketFile;
use crate::volume::Standing;

/// The version of the protocol that this sealblk speaks.
pub const PROTOCOL: u32 = 1;

/// The version of what one worker hands over to another: what they say to each other,
/// and what is in the session with a front end. They have to have the same.
pub const HAND_OVER: u32 = crate::vhost::HAND_OVER;

/// From the manager to the worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Comes back with the answer.
    pub id: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub request: Request,
    /// What the descriptors of the packet are, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<Role>,
}

/// What a manager can ask of a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Serve the disk whose files come with this. Once, and first.
    Start(Box<Start>),
    /// Tell a new manager everything, and give it all that a next worker of
    /// this disk would need.
    Adopt,
    /// Tell how it goes.
    Status,
    /// Keep the guest to other limits from now on. Answered with the status.
    Limit {
        /// All of them.
        limits: Limits,
    },
    /// Complete the requests in flight, make everything durable, and end.
    Stop,
    /// Hand back the key, if it was to be kept.
    Key,
    /// Keep this for managers that come later, in the place of what came with
    /// the start. Answered with the status.
    Baggage {
        /// What they will want to know. Not looked at here.
        baggage: Value,
    },
    /// The disk has `size` bytes from now on, which it has room for: serve
    /// them, and tell the front end. Answered with the status.
    Resize {
        /// Not less than before.
        size: u64,
    },
    /// Carry out the requests of the guest, let them wait, or fail them, from
    /// now on. Answered with the status.
    Hold {
        /// Which.
        mode: Mode,
    },
    /// Complete the requests in flight, make everything durable, and let all
    /// that come after them wait, until a [`Request::Thaw`] or for so long.
    /// Answered when nothing is written any more ([`Answer::Status`]), or when
    /// that has failed and the disk goes on ([`Answer::Failed`]).
    Freeze {
        /// The longest time, in milliseconds.
        timeout_ms: u64,
    },
    /// Go on. Answered with the status.
    Thaw,
    /// Begin to move the data of the disk, from the state that it is in to
    /// another one. The keys come with it: [`Role::Dek`], and for a rekey
    /// [`Role::OldDek`]; and the files: [`Role::Mover`] and [`Role::Journal`].
    /// Answered with [`Answer::Moving`].
    Move {
        /// What is to be done.
        task: Box<Task>,
    },
    /// Tell how far that is, and have it go on otherwise from now on. Answered
    /// with [`Answer::Moving`].
    Moving {
        /// What changes.
        #[serde(default)]
        orders: Orders,
    },
    /// The header says that all data is in one state: forget the key of the
    /// other one. Answered with the status.
    Moved,
    /// Be what the worker of a disk is that serves it now, as soon as that one hands
    /// it over: at [`Role::Peer`], whose other end goes with a
    /// [`Request::HandOver`]. In the place of [`Request::Start`]. Answered twice: with
    /// [`Answer::Prepared`], and with [`Answer::Started`] or [`Answer::Failed`].
    Succeed(Box<Start>),
    /// Hand the disk over, front end and all, to the process at [`Role::Peer`], which
    /// was told to succeed, and can be ended by [`Role::Cord`]. Answered with
    /// [`Answer::HandedOver`], which is the last message, or with [`Answer::Failed`]:
    /// it goes on then.
    HandOver {
        /// How the other one has it: see [`HAND_OVER`].
        version: u32,
        /// How long requests in flight may take to complete, in milliseconds.
        drain_ms: u64,
    },
    /// Give the key of an ephemeral disk, which nobody else has, for the worker that
    /// is to go on with it. Answered with [`Answer::Key`].
    Bequeath,
    /// Try again at once what waits because the disk below fails; or fail it.
    /// Answered with the status, which is that of before.
    Resume {
        /// Whether to fail it.
        #[serde(default)]
        give_up: bool,
    },
    /// Something that a later version may ask for.
    #[serde(other)]
    Unknown,
}

/// A disk to be served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// What it is called, in logs.
    pub name: String,
    /// The path of its volume, for logs. It is not opened.
    pub volume: PathBuf,
    /// What it is.
    pub spec: Spec,
    /// Whether the files of the queues were opened with O_DIRECT.
    pub direct: bool,
    /// Where its socket is. The manager removes it.
    pub socket: SocketFile,
    /// What to log.
    pub log: Log,
    /// Whether to keep the key for managers that come later.
    pub keep_dek: bool,
    /// What those managers will want to know. Not looked at here.
    pub baggage: Value,
    /// What is on it, and who has its key.
    #[serde(default)]
    pub contents: Contents,
    /// What is done with requests from the start.
    #[serde(default)]
    pub mode: Mode,
    /// For how many milliseconds the disk is frozen, as it was in the worker
    /// before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<u64>,
    /// What is done to its data: see [`Request::Move`], whose keys and files come
    /// with this, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Box<Task>>,
    /// What it is shut in by.
    #[serde(default)]
    pub walls: Walls,
}

/// What is on a disk, and who has its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// That of a volume, whose key comes with the message.
    #[default]
    Volume,
    /// Nothing yet: the worker makes the key, and gives it to nobody.
    Ephemeral,
    /// What an ephemeral disk held whose worker is gone: every request fails.
    Lost,
}

/// From the worker to the manager.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What it says.
    #[serde(flatten)]
    pub message: Message,
    /// What the descriptors of the packet are, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<Role>,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// First on every connection, with a descriptor of the process.
    Hello(Hello),
    /// To a [`Call`].
    Answer {
        /// The call's.
        id: u64,
        /// What it came to.
        answer: Answer,
    },
    /// Something changed that the manager shows.
    Changed {
        /// How it goes now.
        status: Status,
    },
    /// It ends without having been asked to. Its last message.
    Ended {
        /// Why, unless it was told to by a signal and all is well.
        fault: Option<Fault>,
    },
    /// Data is moved, or that rests, has failed, or is done.
    Moving {
        /// How far.
        progress: Box<Progress>,
    },
    /// The volume was not taken as its guest came, or not let go as it went.
    Kept {
        /// Why.
        fault: Fault,
    },
    /// Something that a later version may say.
    #[serde(other)]
    Unknown,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the protocol that it speaks.
    pub protocol: u32,
    /// The version of sealblk that it is.
    #[serde(deserialize_with = "one_line::read")]
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Whether it serves a disk by now.
    pub serving: bool,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It serves the disk.
    Started {
        /// How it goes.
        status: Status,
    },
    /// What it was started with. The files come with it.
    Adopted {
        /// As the earlier manager sent it.
        start: Box<Start>,
        /// How it goes.
        status: Status,
    },
    /// How it goes.
    Status {
        /// How it goes.
        status: Status,
    },
    /// All requests were completed; the process ends. Its last message.
    Stopped {
        /// What is not durable, if something is not.
        fault: Option<Fault>,
    },
    /// It could not be done.
    Failed {
        /// Why.
        fault: Fault,
    },
    /// The request is of a later version.
    Unsupported,
    /// The key comes with this.
    Key,
    /// How far the data of the disk was moved. Nothing: it is not.
    Moving {
        /// How far.
        progress: Option<Box<Progress>>,
    },
    /// All is ready to go on with a disk that another process serves.
    Prepared {
        /// How it is to be handed over: see [`HAND_OVER`].
        version: u32,
    },
    /// Another process serves the disk; this one ends. Its last message.
    HandedOver {
        /// For how many microseconds no request was begun.
        pause_us: u64,
    },
}

/// How a worker fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a front end is connected.
    pub front_end: bool,
    /// How many operations have failed.
    pub errors: u64,
    /// An fdatasync failed, in this process or an earlier one: flushes fail.
    pub sync_failed: bool,
    /// It was told to end, and will.
    #[serde(default)]
    pub stopping: bool,
    /// The size of the disk that the front end has read, in bytes.
    #[serde(default)]
    pub size_read: Option<u64>,
    /// Whether the front end can be told that the size has changed.
    #[serde(default)]
    pub takes_notices: bool,
    /// What is done with requests because of the key.
    #[serde(default)]
    pub mode: Mode,
    /// Requests wait for a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Whether this host has the volume.
    #[serde(default)]
    pub standing: Standing,
    /// Its front end is moving its guest to another host.
    #[serde(default)]
    pub migrating: bool,
    /// Requests wait because the disk below fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<trouble::Standing>,
    /// Operations are in flight for too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Stuck>,
    /// What was counted of both.
    #[serde(default)]
    pub troubles: trouble::Counts,
}

/// A disk whose requests wait for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Nothing is in flight any more, and everything is durable.
    pub complete: bool,
    /// When it ends by itself: seconds since 1970.
    pub until: u64,
    /// How many milliseconds that is from when this was said.
    pub left_ms: u64,
}

/// A [`Failure`] that goes to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What failed, and the causes.
    #[serde(deserialize_with = "one_line::read")]
    pub message: String,
    /// The next step.
    #[serde(deserialize_with = "one_line::read_if_any")]
    pub help: Option<String>,
    /// Its class.
    pub kind: Kind,
}

impl Explain for Fault {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn help(&self) -> Option<String> {
        self.help.clone()
    }
}

impl From<&Failure> for Fault {
    fn from(failure: &Failure) -> Self {
        Fault {
            message: failure.to_string(),
            help: failure.help().map(str::to_owned),
            kind: failure.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_says_is_passed_over() {
        let call: Call = serde_json::from_str(
            r#"{"id": 3, "request": "rest", "until": "dawn", "fds": ["sun"]}"#,
        )
        .unwrap();
        assert!(matches!(call.request, Request::Unknown));
        assert_eq!((call.id, call.fds), (3, vec![Role::Unknown]));
        let report: Report = serde_json::from_str(r#"{"message": "dream", "of": 1}"#).unwrap();
        assert!(matches!(report.message, Message::Unknown));
        let report: Report = serde_json::from_str(
            r#"{"message": "changed", "status": {"front_end": true, "errors": 0, "sync_failed": false, "mood": 9}}"#,
        )
        .unwrap();
        assert!(matches!(report.message, Message::Changed { status } if status.front_end));
    }

    #[test]
    fn what_people_read_is_one_line_of_bounded_length() {
        let long = "x".repeat(one_line::MAX);
        let text = serde_json::json!({
            "message": format!("red: \u{1b}[31m\n{long}"),
            "help": "two\nlines",
            "kind": "io",
        });
        let fault: Fault = serde_json::from_value(text).unwrap();
        assert!(fault.message.starts_with("red:  [31m x"), "{fault}");
        assert_eq!(fault.message.chars().count(), one_line::MAX);
        assert_eq!(fault.help.as_deref(), Some("two lines"));
        let hello = r#"{"protocol": 1, "version": "1\u001b[2J\n2", "pid": 1, "serving": true}"#;
        let hello: Hello = serde_json::from_str(hello).unwrap();
        assert_eq!(hello.version, "1 [2J 2");
    }

    #[test]
    fn a_start_survives_the_way() {
        let start = Start {
            name: "vm-1".into(),
            volume: "/vm/1.img".into(),
            spec: crate::plane::sample_spec(),
            direct: true,
            socket: serde_json::from_str(r#"{"path": "/s", "device": 1, "inode": 2}"#).unwrap(),
            log: Log::default(),
            keep_dek: true,
            baggage: serde_json::json!({"some": "thing"}),
            contents: Contents::Volume,
            mode: Mode::Pause,
            frozen_ms: Some(9),
            moving: None,
            walls: Walls {
                uids: Some("7-9".parse().unwrap()),
                required: true,
            },
        };
        let call = Call {
            id: u64::MAX,
            request: Request::Start(Box::new(start.clone())),
            fds: vec![Role::Data, Role::Queue, Role::Queue],
        };
        let text = serde_json::to_string(&call).unwrap();
        let back: Call = serde_json::from_str(&text).unwrap();
        assert_eq!((back.id, &back.fds), (u64::MAX, &call.fds));
        assert!(matches!(back.request, Request::Start(it) if *it == start));
    }
}
