//! All memory of a process: what is in it, and in what kind of mapping.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::key_needles::{LONGEST, Needles};

const PAGE: usize = 4096;

/// So much is read at once.
const CHUNK: usize = 1 << 20;

/// A mapping of a process, as `/proc/PID/smaps` has it.
pub struct Mapping {
    start: u64,
    end: u64,
    /// Its line: range, rights, what is mapped.
    line: String,
    /// Locked, in no dump, and not given to children.
    pub secret: bool,
    /// Of `memfd_secret(2)`: nobody can look into it.
    pub unreadable: bool,
    /// Whether it may have other bytes than the file below it.
    changed: bool,
    /// KiB of it that are in swap.
    pub swapped: u64,
}

impl Mapping {
    pub fn line(&self) -> &str {
        &self.line
    }

    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Panics if anybody can read it from outside of the process.
    pub fn assert_hidden(&self, pid: u32) {
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let read = memory.read_at(&mut [0; 16], self.start);
        assert!(!matches!(read, Ok(1..)), "{read:?} bytes of {}", self.line);
        let mut bytes = [0u8; 16];
        let ours = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let theirs = libc::iovec {
            iov_base: self.start as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: there is room for what is read, in memory of ours.
        let read = unsafe { libc::process_vm_readv(pid as i32, &ours, 1, &theirs, 1, 0) };
        assert!(read < 1, "{read} bytes of {}", self.line);
    }
}

/// A needle in the memory of a process.
pub struct Hit {
    pub what: String,
    /// Whether it is in memory that is made for it.
    pub secret: bool,
    place: String,
}

impl fmt::Debug for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  {} {}", self.what, self.place)
    }
}

/// The mappings of a process.
pub fn mappings(pid: u32) -> Vec<Mapping> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let (first, rest) = line.split_once(' ').unwrap();
        if let Some((start, end)) = first.split_once('-') {
            let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).unwrap());
            found.push(Mapping {
                start,
                end,
                line: line.split_whitespace().collect::<Vec<_>>().join(" "),
                secret: false,
                unreadable: line.contains("/secretmem"),
                // Shared memory is another's as well.
                changed: rest.starts_with("rw") || rest[..4].ends_with('s'),
                swapped: 0,
            });
            continue;
        }
        let mapping = found.last_mut().unwrap();
        let kib = || {
            rest.split_whitespace()
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        match first {
            // Pages of its own, in what is a file otherwise.
            "Anonymous:" => mapping.changed |= kib() > 0,
            "Swap:" => mapping.swapped = kib(),
            "VmFlags:" => {
                let flags: Vec<&str> = rest.split_whitespace().collect();
                mapping.secret = ["lo", "dd", "dc"].iter().all(|flag| flags.contains(flag));
            }
            _ => {}
        }
    }
    assert!(found.len() > 10, "the mappings of {pid}");
    found
}

/// Every needle in the memory of a process. Panics if the memory has parts
/// that could hold one and cannot be read, but for what `memfd_secret` gave.
pub fn search(pid: u32, needles: &Needles) -> Vec<Hit> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("tests run as root");
    let (mut hits, mut read, mut unread) = (Vec::new(), 0, Vec::new());
    for mapping in mappings(pid) {
        // Of the kernel, or exactly what is in a file.
        let kernel = mapping.line.contains("[v");
        if kernel || mapping.unreadable || !mapping.changed {
            continue;
        }
        match search_mapping(&memory, &mapping, needles, &mut hits) {
            0 => unread.push(mapping.line),
            bytes => read += bytes,
        }
    }
    assert!(read > 1 << 20, "{read} bytes of process {pid}");
    // The rings that the kernel shares, of which it shows nobody the pages, have
    // requests and no data; guard pages have nothing.
    unread.retain(|line| !line.contains("[io_uring]") && !line.contains(" ---"));
    assert!(unread.is_empty(), "not looked at: {unread:#?}");
    hits
}

fn search_mapping(
    memory: &File,
    mapping: &Mapping,
    needles: &Needles,
    hits: &mut Vec<Hit>,
) -> usize {
    const ZEROES: [u8; PAGE] = [0; PAGE];
    let mut bytes = vec![0; CHUNK + LONGEST];
    let (mut at, mut total) = (mapping.start, 0);
    while at < mapping.end {
        let whole = usize::try_from(mapping.end - at).unwrap().min(bytes.len());
        let Ok(read @ 1..) = memory.read_at(&mut bytes[..whole], at) else {
            at += PAGE as u64;
            continue;
        };
        let step = read.min(CHUNK);
        for page in (0..step).step_by(PAGE) {
            let end = (page + PAGE).min(step);
            let mut from = page;
            // Most of memory is zeroes, in which no needle begins but at the end.
            if bytes[page..end] == ZEROES[..end - page] {
                from = end.saturating_sub(16).max(page);
            }
            for place in from..end {
                let Some(what) = needles.at(&bytes[..read], place) else {
                    continue;
                };
                hits.push(Hit {
                    what: what.to_owned(),
                    secret: mapping.secret,
                    place: format!("at {:x} of {}", at + place as u64, mapping.line),
                });
            }
        }
        total += step;
        at += step as u64;
    }
    total
}

/// The hits that are not where keys may be.
pub fn outside(hits: &[Hit]) -> Vec<&Hit> {
    hits.iter().filter(|hit| !hit.secret).collect()
}

#[test]
fn a_key_is_found_in_each_kind_of_mapping() {
    let mut key = [0u8; 64];
    getrandom::fill(&mut key).unwrap();
    let needles = Needles::new().dek("key", &key);
    let pid = std::process::id();
    let on_heap = key.to_vec();
    let secret = sealblk::secret::Secret::copy_of(&key).unwrap();
    let hits = search(pid, &needles);
    let stack = format!("{:x}", key.as_ptr() as u64);
    let heap = format!("{:x}", on_heap.as_ptr() as u64);
    for place in [stack, heap] {
        let found = hits
            .iter()
            .find(|hit| hit.place.starts_with(&format!("at {place} ")));
        assert!(found.is_some_and(|hit| !hit.secret), "{place}: {hits:?}");
    }
    // Where the kernel lets somebody look.
    let of_ours = mappings(pid)
        .into_iter()
        .find(|mapping| mapping.contains(secret.as_ptr() as u64));
    let of_ours = of_ours.unwrap();
    assert!(of_ours.secret && of_ours.swapped == 0, "{}", of_ours.line);
    let found = hits.iter().any(|hit| hit.secret);
    assert_eq!(found, !of_ours.unreadable, "{hits:?}");
}
