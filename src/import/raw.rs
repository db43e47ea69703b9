//! Reading an image that is as the guest reads it.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use zeroize::Zeroizing;

use super::{Error, Image, Sink};
use crate::volume::next_data_of;

/// What is read, encrypted and written at once.
const PIECE: u64 = 1 << 20;

/// More threads than that make no disk faster.
const MOST_THREADS: usize = 16;

/// Copies the image, on all CPUs.
///
/// # Errors
/// [`Error::Read`], [`Error::Write`].
pub fn copy(image: &Image, sink: &Sink<'_>) -> Result<(), Error> {
    let end = image.size().next_multiple_of(sink.unit());
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || -> Result<(), Error> {
        let mut buffer = Zeroizing::new(vec![0; PIECE as usize]);
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(PIECE, Ordering::Relaxed);
            if at >= end {
                return Ok(());
            }
            let length = PIECE.min(end - at);
            piece(image, sink, at, &mut buffer[..length as usize])?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work().inspect_err(|_| failed.store(true, Ordering::Relaxed))))
            .collect();
        let ended = started.into_iter().map(|thread| {
            let panicked = |_| Err(sink.failed(io::Error::other("a thread panicked")));
            thread.join().unwrap_or_else(panicked)
        });
        ended.fold(Ok(()), Result::and)
    })
}

fn piece(image: &Image, sink: &Sink<'_>, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let read = |source| Error::Read {
        path: image.path().to_owned(),
        source,
    };
    let end = at + bytes.len() as u64;
    let data = next_data_of(image.file(), image.is_block(), at).map_err(read)?;
    // Nothing there, or zeroes that were written: which of both makes no difference.
    let empty = match data {
        Some((start, _)) => start >= end,
        None => true,
    };
    if !empty {
        let there = (image.size().min(end) - at) as usize;
        image
            .file()
            .read_exact_at(&mut bytes[..there], at)
            .map_err(read)?;
        bytes[there..].fill(0);
    }
    let done = match empty || bytes.iter().all(|&byte| byte == 0) {
        true => sink.zeroes(at, bytes.len() as u64),
        false => sink.write(at, bytes),
    };
    done.map_err(|error| sink.failed(error))
}
