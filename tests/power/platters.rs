//! What is on stable storage at any time of a log, and what may be.
//!
//! - A file's data is on a [`Disk`](crate::platter): sectors of 512 bytes, each by
//!   itself. A sync makes durable what had ended (and was answered) when it began,
//!   as soon as it has ended itself.
//! - A file's size is what it was when it was last made durable, or any that it
//!   had since.
//! - Names are durable with the sync of their directory, and not with that of the
//!   file. One that moves is in one place or the other. A change of a name that is
//!   there stands on those before it of the same name; otherwise they may come in
//!   any order.
//!
//! This is less than what file systems with a journal do, and what POSIX says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::events::{Entry, Event, Node, ROOT};
use crate::platter::{Disk, Kept, SECTOR};
use crate::random::Random;

/// What is left when the power fails.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub data: Kept,
    pub names: Kept,
    /// The disk writes so many sectors whole.
    pub block: usize,
}

impl Loss {
    /// Any, of a disk that writes so many sectors whole.
    pub fn any(random: &mut Random, block: usize) -> Loss {
        let mut kept = || match random.below(6) {
            0 => Kept::Nothing,
            1 => Kept::Everything,
            _ => Kept::Any,
        };
        Loss {
            data: kept(),
            names: kept(),
            block,
        }
    }
}

#[derive(Clone)]
struct File {
    disk: Disk,
    /// The size that is durable, and those after it, by what made them so.
    size: u64,
    sizes: Vec<(u64, u64)>,
}

/// The storage at one time.
#[derive(Clone)]
pub struct Platters {
    at: usize,
    files: BTreeMap<Node, File>,
    modes: HashMap<Node, u32>,
    directories: HashMap<Node, BTreeMap<String, Node>>,
    /// Changes of names that may be lost, by their time.
    names: Vec<(u64, Vec<Entry>)>,
    /// When what began at a time ended.
    ended: HashMap<usize, usize>,
}

/// What has just changed on it.
pub enum Change {
    Nothing,
    /// These sectors of a file may hold something else as well.
    Written(Node, std::ops::Range<usize>),
}

impl Platters {
    pub fn new() -> Platters {
        Platters {
            at: 0,
            files: BTreeMap::new(),
            modes: HashMap::new(),
            directories: HashMap::from([(ROOT, BTreeMap::new())]),
            names: Vec::new(),
            ended: HashMap::new(),
        }
    }

    /// The storage when so many of these events had happened.
    pub fn after(events: &[Event], count: usize) -> Platters {
        let mut platters = Platters::new();
        platters.advance(events, count);
        platters
    }

    /// Goes on to that time.
    pub fn advance(&mut self, events: &[Event], count: usize) {
        while self.at < count {
            self.step(events);
        }
    }

    /// Lets the next event happen.
    pub fn step(&mut self, events: &[Event]) -> Change {
        let at = self.at;
        self.at += 1;
        let id = at as u64;
        match &events[at] {
            Event::Make { node, directory } => {
                if *directory {
                    self.directories.insert(*node, BTreeMap::new());
                } else {
                    let file = File {
                        disk: Disk::new(0),
                        size: 0,
                        sizes: Vec::new(),
                    };
                    self.files.insert(*node, file);
                }
            }
            Event::Mode { node, mode } => drop(self.modes.insert(*node, *mode)),
            Event::Write { node, offset, data } => {
                let file = self.files.get_mut(node).unwrap();
                let end = offset + data.len() as u64;
                if end > file.last_size() {
                    file.sizes.push((id, end));
                }
                let sectors = file.put(id, *offset, data);
                return Change::Written(*node, sectors);
            }
            Event::Zero { node, offset, len } => {
                let file = self.files.get_mut(node).unwrap();
                let sectors = file.put(id, *offset, &vec![0; *len as usize]);
                return Change::Written(*node, sectors);
            }
            Event::Size { node, len } => {
                let file = self.files.get_mut(node).unwrap();
                let last = file.last_size();
                if *len < last {
                    file.put(id, *len, &vec![0; (last - len) as usize]);
                }
                file.sizes.push((id, *len));
            }
            Event::Names(entries) => self.names.push((id, entries.clone())),
            Event::Sync { .. } => {}
            Event::Done { begun } => {
                self.ended.insert(*begun, at);
                if let Event::Sync { node } = &events[*begun] {
                    self.sync(events, *node, *begun);
                }
            }
        }
        Change::Nothing
    }

    fn sync(&mut self, events: &[Event], node: Node, begun: usize) {
        let ended = &self.ended;
        let covered = |id: u64| match &events[id as usize] {
            Event::Size { .. } => (id as usize) < begun,
            _ => ended.get(&(id as usize)).is_some_and(|end| *end < begun),
        };
        if let Some(file) = self.files.get_mut(&node) {
            file.disk.sync_what(covered);
            if let Some(last) = file.sizes.iter().rposition(|(id, _)| covered(*id)) {
                file.size = file.sizes[last].1;
                file.sizes.drain(..=last);
            }
            return;
        }
        // From the newest to the oldest, with all that they stand on.
        let mut keys = BTreeSet::new();
        let mut durable = Vec::new();
        for (id, entries) in std::mem::take(&mut self.names).into_iter().rev() {
            let of = |entry: &Entry| (entry.directory, entry.name.clone());
            let wanted = (id as usize) < begun
                && entries
                    .iter()
                    .any(|entry| entry.directory == node || keys.contains(&of(entry)));
            match wanted {
                true => {
                    keys.extend(entries.iter().map(of));
                    durable.push(entries);
                }
                false => self.names.push((id, entries)),
            }
        }
        self.names.reverse();
        for entries in durable.iter().rev() {
            self.name(entries);
        }
    }

    fn name(&mut self, entries: &[Entry]) {
        for entry in entries {
            let names = self.directories.get_mut(&entry.directory).unwrap();
            match entry.node {
                Some(node) => drop(names.insert(entry.name.clone(), node)),
                None => drop(names.remove(&entry.name)),
            }
        }
    }

    /// The file of that name as a running system sees it.
    pub fn find(&self, path: &str) -> Option<Node> {
        let mut now = self.clone();
        now.lose_names(&mut Random(0), Kept::Everything);
        let mut node = ROOT;
        for name in path.split('/') {
            node = *now.directories.get(&node)?.get(name)?;
        }
        Some(node)
    }

    /// What a file's sector may hold.
    pub fn may_hold(&self, node: Node, sector: usize) -> impl Iterator<Item = &[u8; SECTOR]> {
        self.files[&node].disk.may_hold(sector)
    }

    fn lose_names(&mut self, random: &mut Random, kept: Kept) {
        let mut lost = BTreeSet::new();
        // With a journal, what is lost is the end of it.
        let ordered = random.once_in(3);
        let mut is_over = false;
        for (_, entries) in std::mem::take(&mut self.names) {
            let of = |entry: &Entry| (entry.directory, entry.name.clone());
            is_over |= ordered && random.once_in(4);
            let stays = match kept {
                Kept::Nothing => false,
                Kept::Everything => true,
                Kept::Any if ordered => !is_over,
                Kept::Any => random.once_in(2),
            };
            if stays && !entries.iter().any(|entry| lost.contains(&of(entry))) {
                self.name(&entries);
            } else {
                lost.extend(entries.iter().map(of));
            }
        }
    }

    /// What is found when the power has failed now.
    pub fn lose_power(&self, loss: Loss, random: &mut Random) -> Image {
        let mut left = self.clone();
        left.lose_names(random, loss.names);
        let (mut image, mut named) = (Image::default(), BTreeSet::new());
        let mut open = vec![(PathBuf::new(), ROOT)];
        while let Some((path, node)) = open.pop() {
            let mode = left.modes.get(&node).copied().unwrap_or(0o40755) & 0o7777;
            if let Some(names) = left.directories.get(&node) {
                open.extend(names.iter().map(|(name, node)| (path.join(name), *node)));
                image.directories.insert(path, mode);
                continue;
            }
            let file = left.files.get_mut(&node).unwrap();
            let bytes = file.lose_power(loss, random);
            named.insert(node);
            image.files.insert(path, (bytes, mode));
        }
        for (node, file) in &mut left.files {
            if !named.contains(node) {
                image.free.push(file.lose_power(loss, random));
            }
        }
        image
    }
}

impl File {
    /// What is left when the power fails, which it also has from then on.
    fn lose_power(&mut self, loss: Loss, random: &mut Random) -> Vec<u8> {
        self.disk
            .lose_power_of_blocks(random, loss.data, loss.block);
        let choice = match loss.data {
            Kept::Nothing => 0,
            Kept::Everything => self.sizes.len(),
            Kept::Any => random.below(self.sizes.len() as u64 + 1) as usize,
        };
        if let Some(last) = choice.checked_sub(1) {
            self.size = self.sizes[last].1;
        }
        self.sizes.clear();
        let mut bytes = vec![0; self.size as usize];
        let there = bytes.len().min(self.disk.sectors() * SECTOR);
        self.disk.read(&mut bytes[..there], 0);
        bytes
    }

    fn last_size(&self) -> u64 {
        self.sizes.last().map_or(self.size, |(_, size)| *size)
    }

    /// Puts bytes there, and returns the sectors.
    fn put(&mut self, id: u64, offset: u64, data: &[u8]) -> std::ops::Range<usize> {
        let (start, end) = (offset as usize, offset as usize + data.len());
        let sectors = start / SECTOR..end.div_ceil(SECTOR);
        self.disk.grow(sectors.end);
        for number in sectors.clone() {
            let at = number * SECTOR;
            let (from, to) = (start.max(at), end.min(at + SECTOR));
            if from >= to {
                continue;
            }
            let mut bytes = *self.disk.sector(number);
            bytes[from - at..to - at].copy_from_slice(&data[from - start..to - start]);
            self.disk.put_by(id, number, &bytes);
        }
        sectors
    }
}

/// Files as they are found after a power loss.
#[derive(Clone, Default)]
pub struct Image {
    pub directories: BTreeMap<PathBuf, u32>,
    pub files: BTreeMap<PathBuf, (Vec<u8>, u32)>,
    /// What is in blocks that had been of files which have no name any more.
    pub free: Vec<Vec<u8>>,
}

impl Image {
    pub fn bytes(&self, path: &str) -> Option<&[u8]> {
        self.files
            .get(Path::new(path))
            .map(|(bytes, _)| bytes.as_slice())
    }

    /// Puts it into a new directory.
    pub fn restore(&self, place: &Path) {
        use std::os::unix::fs::PermissionsExt;
        for path in self.directories.keys() {
            std::fs::create_dir_all(place.join(path)).unwrap();
        }
        let permit = |path: &Path, mode: u32| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(place.join(path), permissions).unwrap();
        };
        for (path, (bytes, mode)) in &self.files {
            std::fs::write(place.join(path), bytes).unwrap();
            permit(path, *mode);
        }
        for (path, mode) in &self.directories {
            permit(path, *mode);
        }
    }
}
