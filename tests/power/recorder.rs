//! A file system (FUSE, in memory) that writes down all that is done to it, for
//! any program: what the power would leave of it is found out afterwards.
//!
//! On request it answers writes and syncs late and in another order than they
//! came in, as disks do: who takes something for done before it was told so is
//! found out.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::events::{Entry, Event, Log, Node, ROOT};
use crate::random::Random;
use crate::support::fuse::{Wire, mount, u32_at, u64_at, unmount};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const FSYNCDIR: u32 = 30;
const CREATE: u32 = 35;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;
const RENAME2: u32 = 45;

const HEADER: usize = 40;
/// What a SETATTR is about.
const MODE: u32 = 1 << 0;
const SIZE: u32 = 1 << 3;
/// The most answers that are kept back.
const MOST_LATE: usize = 12;

enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<String, Node>),
}

struct Held {
    content: Content,
    mode: u32,
}

/// An answer that is not given yet, to what began at that place of the log.
struct Late {
    unique: u64,
    begun: usize,
    reply: Vec<u8>,
}

struct Files {
    nodes: HashMap<Node, Held>,
    next: Node,
    late: Vec<Late>,
    random: Random,
}

struct Shared {
    wire: Wire,
    log: Log,
    files: Mutex<Files>,
    shuffling: AtomicBool,
}

/// The file system, mounted as long as this lives.
pub struct Recorder {
    shared: Arc<Shared>,
    place: PathBuf,
}

impl Recorder {
    /// Mounts an empty one on the new directory `place`.
    pub fn mount(place: &Path, seed: u64) -> Recorder {
        let root = Held {
            content: Content::Directory(BTreeMap::new()),
            mode: libc::S_IFDIR | 0o755,
        };
        let shared = Arc::new(Shared {
            wire: Wire {
                device: mount(place),
            },
            log: Log::default(),
            files: Mutex::new(Files {
                nodes: HashMap::from([(ROOT, root)]),
                next: ROOT + 1,
                late: Vec::new(),
                random: Random(seed),
            }),
            shuffling: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || serving.serve());
        Recorder {
            shared,
            place: place.to_owned(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Whether answers come late and in any order from now on.
    pub fn shuffle(&self, yes: bool) {
        self.shared.shuffling.store(yes, Ordering::SeqCst);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        unmount(&self.place, libc::MNT_DETACH);
    }
}

/// The name that a message ends with, or the first of two.
fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

impl Files {
    fn directory(&mut self, node: Node) -> Option<&mut BTreeMap<String, Node>> {
        match &mut self.nodes.get_mut(&node)?.content {
            Content::Directory(names) => Some(names),
            Content::File(_) => None,
        }
    }

    fn bytes(&mut self, node: Node) -> Option<&mut Vec<u8>> {
        match &mut self.nodes.get_mut(&node)?.content {
            Content::File(bytes) => Some(bytes),
            Content::Directory(_) => None,
        }
    }

    fn find(&mut self, directory: Node, name: &str) -> Option<Node> {
        self.directory(directory)?.get(name).copied()
    }

    fn attributes(&self, node: Node) -> Option<[u8; 88]> {
        let held = self.nodes.get(&node)?;
        let size = match &held.content {
            Content::File(bytes) => bytes.len() as u64,
            Content::Directory(_) => 0,
        };
        let mut bytes = [0; 88];
        bytes[..8].copy_from_slice(&node.to_le_bytes());
        bytes[8..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..24].copy_from_slice(&size.div_ceil(512).to_le_bytes());
        bytes[60..64].copy_from_slice(&held.mode.to_le_bytes());
        bytes[64..68].copy_from_slice(&1u32.to_le_bytes());
        bytes[80..84].copy_from_slice(&4096u32.to_le_bytes());
        Some(bytes)
    }

    /// What says of a node which it is and what it is like.
    fn entry(&self, node: Node) -> Option<Vec<u8>> {
        let mut entry = [0; 40];
        entry[..8].copy_from_slice(&node.to_le_bytes());
        Some([&entry[..], &self.attributes(node)?].concat())
    }

    fn make(&mut self, log: &Log, parent: Node, name: &str, mode: u32) -> Result<Node, i32> {
        let node = self.next;
        let is_directory = mode & libc::S_IFMT == libc::S_IFDIR;
        let names = self.directory(parent).ok_or(libc::ENOTDIR)?;
        if names.contains_key(name) {
            return Err(libc::EEXIST);
        }
        names.insert(name.to_owned(), node);
        self.next += 1;
        let content = match is_directory {
            true => Content::Directory(BTreeMap::new()),
            false => Content::File(Vec::new()),
        };
        self.nodes.insert(node, Held { content, mode });
        log.add(Event::Make {
            node,
            directory: is_directory,
        });
        log.add(Event::Mode { node, mode });
        log.add(Event::Names(vec![entry(parent, name, Some(node))]));
        Ok(node)
    }

    fn remove(&mut self, log: &Log, parent: Node, name: &str, empty: bool) -> Result<(), i32> {
        let node = self.find(parent, name).ok_or(libc::ENOENT)?;
        if empty && self.directory(node).is_some_and(|names| !names.is_empty()) {
            return Err(libc::ENOTEMPTY);
        }
        if let Some(names) = self.directory(parent) {
            names.remove(name);
        }
        log.add(Event::Names(vec![entry(parent, name, None)]));
        Ok(())
    }

    fn rename(
        &mut self,
        log: &Log,
        (from, old): (Node, &str),
        (to, new): (Node, &str),
        flags: u32,
    ) -> Result<(), i32> {
        let node = self.find(from, old).ok_or(libc::ENOENT)?;
        let there = self.find(to, new);
        if flags & libc::RENAME_NOREPLACE != 0 && there.is_some() {
            return Err(libc::EEXIST);
        }
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(libc::EINVAL);
        }
        if let Some(names) = self.directory(from) {
            names.remove(old);
        }
        let names = self.directory(to).ok_or(libc::ENOTDIR)?;
        names.insert(new.to_owned(), node);
        log.add(Event::Names(vec![
            entry(from, old, None),
            entry(to, new, Some(node)),
        ]));
        Ok(())
    }

    fn list(&mut self, node: Node, from: u64, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let names = self.directory(node).map(|names| names.clone());
        let all = names.into_iter().flatten().zip(1u64..);
        for ((name, node), at) in all.skip(from as usize) {
            let mut entry = Vec::new();
            entry.extend(node.to_le_bytes());
            entry.extend(at.to_le_bytes());
            entry.extend((name.len() as u32).to_le_bytes());
            entry.extend([0; 4]);
            entry.extend(name.as_bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            if bytes.len() + entry.len() > most {
                break;
            }
            bytes.extend(entry);
        }
        bytes
    }
}

fn entry(directory: Node, name: &str, node: Option<Node>) -> Entry {
    Entry {
        directory,
        name: name.to_owned(),
        node,
    }
}

impl Shared {
    /// Answers until the file system is not mounted any more.
    fn serve(&self) {
        let mut buffer = vec![0; (1 << 20) + 4096];
        loop {
            self.let_go();
            match (&self.wire.device).read(&mut buffer) {
                Ok(len) if len >= HEADER => self.handle(&buffer[..len]),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                _ => return,
            }
        }
    }

    /// Gives late answers until there is something else to do.
    fn let_go(&self) {
        loop {
            let mut files = self.files.lock().unwrap();
            let count = files.late.len();
            if count == 0 {
                return;
            }
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 150_000,
            };
            let device: &File = &self.wire.device;
            let mut ready = [PollFd::new(device, PollFlags::IN)];
            let is_ready = poll(&mut ready, Some(&wait)).is_ok_and(|count| count > 0);
            if is_ready && count < MOST_LATE && !files.random.once_in(3) {
                return;
            }
            let which = files.random.below(count as u64) as usize;
            let late = files.late.swap_remove(which);
            drop(files);
            self.end(late.unique, late.begun, &late.reply);
        }
    }

    fn end(&self, unique: u64, begun: usize, reply: &[u8]) {
        self.log.add(Event::Done { begun });
        self.wire.reply(unique, 0, &[reply]);
    }

    /// Something was begun: it is answered now or later.
    fn begin(&self, files: &mut Files, unique: u64, event: Event, reply: Vec<u8>) {
        let begun = self.log.add(event);
        match self.shuffling.load(Ordering::SeqCst) {
            true => files.late.push(Late {
                unique,
                begun,
                reply,
            }),
            false => self.end(unique, begun, &reply),
        }
    }

    fn handle(&self, message: &[u8]) {
        let (opcode, unique) = (u32_at(message, 4), u64_at(message, 8));
        let node = u64_at(message, 16);
        let body = &message[HEADER..];
        let mut files = self.files.lock().unwrap();
        let files = &mut *files;
        let answer = match opcode {
            INIT => return self.wire.init(unique, body, true),
            // They want no answer.
            FORGET | BATCH_FORGET | INTERRUPT => return,
            WRITE | FALLOCATE | FSYNC | FSYNCDIR => {
                match self.change(files, (opcode, unique, node), body) {
                    Ok(()) => return,
                    Err(errno) => Err(errno),
                }
            }
            _ => self.ask(files, opcode, node, body),
        };
        match answer {
            Ok(reply) => self.wire.reply(unique, 0, &[&reply]),
            Err(errno) => self.wire.reply(unique, errno, &[]),
        }
    }

    /// What takes its time.
    fn change(
        &self,
        files: &mut Files,
        (opcode, unique, node): (u32, u64, Node),
        body: &[u8],
    ) -> Result<(), i32> {
        match opcode {
            WRITE => {
                let (offset, len) = (u64_at(body, 8), u32_at(body, 16) as usize);
                let data = body[40..40 + len].to_vec();
                let bytes = files.bytes(node).ok_or(libc::EBADF)?;
                let (from, to) = (offset as usize, offset as usize + len);
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(&data);
                let reply = [&(len as u32).to_le_bytes()[..], &[0; 4]].concat();
                let event = Event::Write { node, offset, data };
                self.begin(files, unique, event, reply);
            }
            FALLOCATE => {
                let (offset, len) = (u64_at(body, 8), u64_at(body, 16));
                let mode = u32_at(body, 24) as i32;
                let keeps = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
                let zeroes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
                let bytes = files.bytes(node).ok_or(libc::EBADF)?;
                let (from, to) = (offset as usize, (offset + len) as usize);
                if !keeps && to > bytes.len() {
                    bytes.resize(to, 0);
                    self.log.add(Event::Size {
                        node,
                        len: to as u64,
                    });
                }
                let to = to.min(bytes.len());
                let from = from.min(to);
                let len = match zeroes {
                    true => {
                        bytes[from..to].fill(0);
                        (to - from) as u64
                    }
                    false => 0,
                };
                let event = Event::Zero { node, offset, len };
                self.begin(files, unique, event, Vec::new());
            }
            _ => self.begin(files, unique, Event::Sync { node }, Vec::new()),
        }
        Ok(())
    }

    /// What is done at once.
    fn ask(&self, files: &mut Files, op: u32, node: Node, body: &[u8]) -> Result<Vec<u8>, i32> {
        let log = &self.log;
        let attributes = |files: &Files, node| {
            let attributes = files.attributes(node).ok_or(libc::ENOENT)?;
            Ok([&[0; 16][..], &attributes].concat())
        };
        let shown = |files: &Files, node| files.entry(node).ok_or(libc::ENOENT);
        match op {
            LOOKUP => {
                let found = files.find(node, &name(body)).ok_or(libc::ENOENT)?;
                shown(files, found)
            }
            GETATTR => attributes(files, node),
            SETATTR => {
                let what = u32_at(body, 0);
                if what & MODE != 0 {
                    let held = files.nodes.get_mut(&node).ok_or(libc::ENOENT)?;
                    held.mode = held.mode & libc::S_IFMT | u32_at(body, 68) & 0o7777;
                    let mode = held.mode;
                    log.add(Event::Mode { node, mode });
                }
                if what & SIZE != 0 {
                    let len = u64_at(body, 16);
                    let bytes = files.bytes(node).ok_or(libc::EISDIR)?;
                    bytes.resize(len as usize, 0);
                    log.add(Event::Size { node, len });
                }
                attributes(files, node)
            }
            MKNOD | MKDIR => {
                let (kind, at) = match op {
                    MKDIR => (libc::S_IFDIR, 8),
                    _ => (libc::S_IFREG, 16),
                };
                let mode = kind | u32_at(body, 0) & 0o7777;
                let made = files.make(log, node, &name(&body[at..]), mode)?;
                shown(files, made)
            }
            CREATE => {
                let mode = libc::S_IFREG | u32_at(body, 4) & 0o7777;
                let made = files.make(log, node, &name(&body[16..]), mode)?;
                Ok([&shown(files, made)?[..], &[0; 16]].concat())
            }
            LINK => {
                let (from, new) = (u64_at(body, 0), name(&body[8..]));
                let names = files.directory(node).ok_or(libc::ENOTDIR)?;
                if names.contains_key(&new) {
                    return Err(libc::EEXIST);
                }
                names.insert(new.clone(), from);
                log.add(Event::Names(vec![entry(node, &new, Some(from))]));
                shown(files, from)
            }
            UNLINK | RMDIR => files
                .remove(log, node, &name(body), op == RMDIR)
                .map(|()| Vec::new()),
            RENAME | RENAME2 => {
                let (to, at) = (u64_at(body, 0), if op == RENAME { 8 } else { 16 });
                let flags = if op == RENAME { 0 } else { u32_at(body, 8) };
                let old = name(&body[at..]);
                let new = name(&body[at + old.len() + 1..]);
                let renamed = files.rename(log, (node, &old), (to, &new), flags);
                renamed.map(|()| Vec::new())
            }
            OPEN | OPENDIR => Ok(vec![0; 16]),
            READ => {
                let (from, len) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                let bytes = files.bytes(node).ok_or(libc::EISDIR)?;
                let from = from.min(bytes.len());
                Ok(bytes[from..bytes.len().min(from + len)].to_vec())
            }
            READDIR => Ok(files.list(node, u64_at(body, 8), u32_at(body, 16) as usize)),
            STATFS => {
                let mut reply = vec![0; 80];
                for (at, value) in [(0, 1u64 << 24), (8, 1 << 23), (16, 1 << 23), (24, 1 << 20)] {
                    reply[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                reply[40..44].copy_from_slice(&4096u32.to_le_bytes());
                reply[44..48].copy_from_slice(&255u32.to_le_bytes());
                reply[48..52].copy_from_slice(&4096u32.to_le_bytes());
                Ok(reply)
            }
            RELEASE | RELEASEDIR => Ok(Vec::new()),
            // Nor does a process that is killed have to wait for its own flush.
            _ => Err(libc::ENOSYS),
        }
    }
}
