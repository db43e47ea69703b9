//! What has happened to a file system, in the order in which it happened.

use std::sync::Mutex;

/// A file or directory, for as long as the file system is there.
pub type Node = u64;
/// The directory at the top.
pub const ROOT: Node = 1;

/// An entry of a directory: what the name in it now stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub directory: Node,
    pub name: String,
    pub node: Option<Node>,
}

/// One event. Those that are not at once begin here, and end with [`Event::Done`].
#[derive(Clone, Debug)]
pub enum Event {
    /// There is such a node now: nothing, as long as nothing has its name.
    Make { node: Node, directory: bool },
    /// Its permissions, which no power loss changes.
    Mode { node: Node, mode: u32 },
    /// Bytes are written, which ends in its time.
    Write {
        node: Node,
        offset: u64,
        data: Vec<u8>,
    },
    /// Bytes become zeroes, which ends in its time.
    Zero { node: Node, offset: u64, len: u64 },
    /// A file has another size, at once.
    Size { node: Node, len: u64 },
    /// Names are given and taken, all at once.
    Names(Vec<Entry>),
    /// What has ended by now shall be durable, which it is when this has ended.
    Sync { node: Node },
    /// What began at that place of the log has ended: whoever waits is told so
    /// after this.
    Done { begun: usize },
}

/// The log. Its length is the time.
#[derive(Default)]
pub struct Log {
    events: Mutex<Vec<Event>>,
}

impl Log {
    /// Adds an event, and returns its place.
    pub fn add(&self, event: Event) -> usize {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        events.len() - 1
    }

    /// How many events there are. What was seen before one asks is not later.
    pub fn now(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}
