//! One io_uring: the disk's operations, and everything else that a queue
//! thread waits for.
//!
//! The memory of the arena is taken when the first block is, and can be given
//! back when there is nothing to do: a queue that rests costs hardly any.
//!
//! A ring is made once, before the walls of a process are closed (`sandbox`), and is
//! used for one session after the other: what belongs to a session, its file among
//! it, is [attached](Ring::attach) and [detached](Ring::detach).
//!
//! The file and the arena are registered with the ring, so that the kernel
//! looks neither of them up per operation. Kicks and control messages arrive
//! as completions of a poll in the same ring: there is one place to wait.
//!
//! Files in memory are the exception: there the kernel would hand each read and
//! write to a worker thread of the ring, since such file systems do not say that
//! they will not wait, and the switch to it costs several times the copy. They
//! are read and written by calls, at once, and reported with the rest.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::arena::{Arena, Block};
use super::file::Store;

/// Index of the data file among the registered files. What is polled follows.
const DATA: Fixed = Fixed(0);

/// How many descriptors can be polled.
const POLLS: usize = 2;

/// All that a ring ever does, and with registered files alone. `docs/sandbox.md`
/// lists the same.
pub const OPERATIONS: [(&str, u8); 9] = [
    ("IORING_OP_READ", opcode::Read::CODE),
    ("IORING_OP_READ_FIXED", opcode::ReadFixed::CODE),
    ("IORING_OP_WRITE", opcode::Write::CODE),
    ("IORING_OP_WRITE_FIXED", opcode::WriteFixed::CODE),
    ("IORING_OP_FSYNC", opcode::Fsync::CODE),
    ("IORING_OP_FALLOCATE", opcode::Fallocate::CODE),
    ("IORING_OP_POLL_ADD", opcode::PollAdd::CODE),
    ("IORING_OP_TIMEOUT", opcode::Timeout::CODE),
    ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel::CODE),
];

/// What can be registered with a ring that is in use.
pub const REGISTRATIONS: [(&str, u8); 3] = [
    ("IORING_REGISTER_BUFFERS", 0),
    ("IORING_UNREGISTER_BUFFERS", 1),
    ("IORING_REGISTER_FILES_UPDATE", 6),
];

/// Index of the arena among the registered buffers.
const ARENA: u16 = 0;

/// User data of polls: the high bit, and which descriptor it is.
const POLL: u64 = 1 << 63;

/// User data of the alarm.
const ALARM: u64 = 1 << 62;

/// User data of what takes polls and the alarm back.
const CANCEL: u64 = 1 << 61;

/// How long the kernel may take for that, which is no work: so often.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
const CANCEL_TRIES: u32 = 10;

/// No file in its place.
const NONE: i32 = -1;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The operation with this number has ended, with what the kernel
    /// returned: a count, or a negated errno.
    Done(u32, i32),
    /// The polled descriptor of this number is readable. `more` is false
    /// when the poll has to be armed again.
    Ready {
        /// The number given to [`Ring::poll`].
        number: u32,
        /// Whether the poll goes on.
        more: bool,
    },
    /// The descriptor of this number cannot be polled.
    Lost(u32),
    /// The time of [`Ring::alarm`] is over.
    Alarm,
}

/// The ring of one queue thread, with its buffers.
pub struct Ring {
    uring: IoUring,
    arena: Arena,
    fixed_buffers: bool,
    /// Whether completions are delivered when we enter the kernel only.
    deferred: bool,
    in_flight: usize,
    /// The file, if it is in memory.
    in_memory: Option<File>,
    /// What calls have achieved, and was not reported yet.
    called: VecDeque<(u32, i32)>,
    /// How often the kernel was entered.
    entries: u64,
    /// What the kernel reads when it is given an alarm.
    alarm: Box<Timespec>,
    /// How many operations there can be.
    operations: u32,
    /// What of it the kernel has: polls, and the alarm last.
    armed: [bool; POLLS + 1],
    /// How many of those are being taken back.
    cancels: u32,
}

/// Where the alarm is among what is armed.
const ALARM_ARMED: usize = POLLS;

impl Ring {
    /// A ring with room for `operations` at once, with an arena of `arena_bytes`, that
    /// has no file yet. It is used by the thread that makes it, and no other.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or refuses one (limits, seccomp).
    pub fn without_file(operations: u32, arena_bytes: usize) -> io::Result<Self> {
        // Three more for the polls of kick and control, and the alarm.
        let entries = operations + 3;
        let (uring, deferred) = build(entries)?;
        uring.submitter().register_files(&[NONE; 1 + POLLS])?;
        close(&uring)?;
        Ok(Ring {
            uring,
            arena: Arena::without_memory(arena_bytes),
            fixed_buffers: false,
            deferred,
            in_flight: 0,
            called: VecDeque::new(),
            in_memory: None,
            entries: 0,
            alarm: Box::default(),
            operations,
            armed: [false; POLLS + 1],
            cancels: 0,
        })
    }

    /// The same on the descriptor of `store` that belongs to this queue.
    ///
    /// # Errors
    /// As both.
    pub fn new(
        store: &Store,
        queue: usize,
        operations: u32,
        arena_bytes: usize,
    ) -> io::Result<Self> {
        let mut ring = Self::without_file(operations, arena_bytes)?;
        ring.attach(store, queue)?;
        Ok(ring)
    }

    /// Works on the descriptor of `store` that belongs to this queue from now on, and
    /// counts from 0.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn attach(&mut self, store: &Store, queue: usize) -> io::Result<()> {
        let file = store.file(queue);
        self.in_memory = match store.is_in_memory() {
            true => Some(file.try_clone()?),
            false => None,
        };
        if self.in_memory.is_some() {
            self.called.reserve(self.operations as usize);
        }
        let submitter = self.uring.submitter();
        submitter.register_files_update(DATA.0, &[file.as_raw_fd()])?;
        self.entries = 0;
        Ok(())
    }

    /// Waits for the kernel to be done with all that it was given, and keeps nothing of
    /// whoever has used the ring until now: no file, no buffers, no polls. False when
    /// that cannot be: then it is of no use to anybody else.
    #[must_use]
    pub fn detach(&mut self) -> bool {
        self.settle() && self.disarm() && self.clear().is_ok()
    }

    /// Takes back the polls and the alarm.
    fn disarm(&mut self) -> bool {
        for (number, armed) in self.armed.into_iter().enumerate() {
            if !armed {
                continue;
            }
            let data = match number {
                ALARM_ARMED => ALARM,
                poll => POLL | poll as u64,
            };
            let entry = opcode::AsyncCancel::new(data)
                .build()
                // As for the alarm.
                .flags(squeue::Flags::FIXED_FILE)
                .user_data(CANCEL);
            if self.push(entry).is_err() {
                return false;
            }
            self.cancels += 1;
        }
        for _ in 0..CANCEL_TRIES {
            while self.next_event().is_some() {}
            if self.cancels == 0 && self.armed == [false; POLLS + 1] {
                return true;
            }
            if self.wait(Some(CANCEL_PATIENCE)).is_err() {
                return false;
            }
        }
        false
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.fixed_buffers {
            self.uring.submitter().unregister_buffers()?;
            self.fixed_buffers = false;
        }
        self.arena.abandon();
        self.in_memory = None;
        let submitter = self.uring.submitter();
        submitter.register_files_update(DATA.0, &[NONE; 1 + POLLS])?;
        Ok(())
    }

    /// The buffers.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// A block of at least `bytes` (at most [`MAX_BLOCK`](super::arena::MAX_BLOCK)),
    /// if there is room.
    ///
    /// # Errors
    /// When there is no memory for any block.
    #[inline]
    pub fn allocate(&mut self, bytes: usize) -> io::Result<Option<Block>> {
        if !self.arena.is_filled() {
            self.take_memory()?;
        }
        Ok(self.arena.allocate(bytes))
    }

    #[cold]
    fn take_memory(&mut self) -> io::Result<()> {
        self.arena.fill()?;
        let buffers = [self.arena.as_iovec()];
        // SAFETY: the memory stays until it is not registered any more (`rest`),
        // or the ring is dropped, which waits for the kernel to be done with it.
        let registered = unsafe { self.uring.submitter().register_buffers(&buffers) };
        if let Err(error) = &registered {
            tracing::debug!(%error, "buffers are not registered (RLIMIT_MEMLOCK?)");
        }
        self.fixed_buffers = registered.is_ok();
        Ok(())
    }

    /// Whether there is memory for blocks.
    pub fn has_memory(&self) -> bool {
        self.arena.is_filled()
    }

    /// Gives back the memory of all blocks, if none is in use, until the next
    /// one is.
    pub fn rest(&mut self) {
        if self.in_flight > 0 || !self.arena.is_whole() {
            return;
        }
        if self.fixed_buffers && self.uring.submitter().unregister_buffers().is_err() {
            // It stays as it is.
            return;
        }
        self.fixed_buffers = false;
        self.arena.clear();
    }

    /// Reports [`Event::Alarm`] once, after that time.
    ///
    /// # Errors
    /// As [`Ring::poll`].
    pub fn alarm(&mut self, after: Duration) -> io::Result<()> {
        *self.alarm = Timespec::from(after);
        let entry = opcode::Timeout::new(&raw const *self.alarm)
            .build()
            // It has no file; the ring takes nothing without this.
            .flags(squeue::Flags::FIXED_FILE)
            .user_data(ALARM);
        self.push(entry)?;
        self.armed[ALARM_ARMED] = true;
        Ok(())
    }

    /// Whether operations have ended that the kernel was never given.
    pub fn has_called(&self) -> bool {
        !self.called.is_empty()
    }

    /// How many operations have been started and not yet seen to end.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Reads `len` bytes at `position` of the file into the block, from its
    /// byte `skip` on.
    ///
    /// # Errors
    /// As [`Ring::poll`].
    pub fn read(
        &mut self,
        op: u32,
        block: &Block,
        skip: u32,
        len: u32,
        position: u64,
    ) -> io::Result<()> {
        let pointer = self.pointer(block, skip, len);
        if let Some(file) = &self.in_memory {
            // SAFETY: `len` bytes of the block, which nobody else uses.
            let bytes = unsafe { std::slice::from_raw_parts_mut(pointer, len as usize) };
            let result = file.read_at(bytes, position);
            self.call_ended(op, result);
            return Ok(());
        }
        let entry = match self.fixed_buffers {
            true => opcode::ReadFixed::new(DATA, pointer, len, ARENA)
                .offset(position)
                .build(),
            false => opcode::Read::new(DATA, pointer, len)
                .offset(position)
                .build(),
        };
        self.start(op, entry)
    }

    /// Writes `len` bytes of the block, from its byte `skip` on, at `position`
    /// of the file.
    ///
    /// # Errors
    /// As [`Ring::poll`].
    pub fn write(
        &mut self,
        op: u32,
        block: &Block,
        skip: u32,
        len: u32,
        position: u64,
    ) -> io::Result<()> {
        let pointer = self.pointer(block, skip, len).cast_const();
        if let Some(file) = &self.in_memory {
            // SAFETY: `len` bytes of the block, which nobody else uses.
            let bytes = unsafe { std::slice::from_raw_parts(pointer, len as usize) };
            let result = file.write_at(bytes, position);
            self.call_ended(op, result);
            return Ok(());
        }
        let entry = match self.fixed_buffers {
            true => opcode::WriteFixed::new(DATA, pointer, len, ARENA)
                .offset(position)
                .build(),
            false => opcode::Write::new(DATA, pointer, len)
                .offset(position)
                .build(),
        };
        self.start(op, entry)
    }

    /// Makes durable what has been written before (`fdatasync`).
    ///
    /// # Errors
    /// As [`Ring::poll`].
    pub fn sync(&mut self, op: u32) -> io::Result<()> {
        let entry = opcode::Fsync::new(DATA).flags(FsyncFlags::DATASYNC).build();
        self.start(op, entry)
    }

    /// Gives back the space of `len` bytes at `position`, which read as zeroes
    /// afterwards.
    ///
    /// # Errors
    /// As [`Ring::poll`].
    pub fn punch(&mut self, op: u32, position: u64, len: u64) -> io::Result<()> {
        let entry = opcode::Fallocate::new(DATA, len)
            .offset(position)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build();
        self.start(op, entry)
    }

    /// Reports [`Event::Ready`] whenever the descriptor becomes readable,
    /// again and again. An eventfd need not be read for that. There are two
    /// numbers: 0 and 1.
    ///
    /// # Errors
    /// When the ring is full and the kernel takes nothing from it.
    pub fn poll(&mut self, number: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        assert!((number as usize) < POLLS, "two descriptors are polled");
        let place = DATA.0 + 1 + number;
        self.uring
            .submitter()
            .register_files_update(place, &[fd.as_raw_fd()])?;
        let entry = opcode::PollAdd::new(Fixed(place), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(POLL | u64::from(number));
        self.push(entry)?;
        self.armed[number as usize] = true;
        Ok(())
    }

    fn pointer(&self, block: &Block, skip: u32, len: u32) -> *mut u8 {
        assert!(
            skip as usize + len as usize <= block.len(),
            "an operation stays within its block"
        );
        // SAFETY: within the block, by the assertion.
        unsafe { self.arena.pointer(block).as_ptr().add(skip as usize) }
    }

    /// Notes what a call has achieved, as the ring would report it.
    fn call_ended(&mut self, op: u32, result: io::Result<usize>) {
        let result = match result {
            Ok(bytes) => bytes as i32,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        self.called.push_back((op, result));
        self.in_flight += 1;
        self.entries += 1;
    }

    fn start(&mut self, op: u32, entry: squeue::Entry) -> io::Result<()> {
        self.push(entry.user_data(u64::from(op)))?;
        self.in_flight += 1;
        Ok(())
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: buffers are blocks of the arena, which outlive the operation
        // (see `Drop`); the time of an alarm is ours, and lives as long; files are registered, or outlive the poll by the
        // contract of the queue thread, which drops the ring first.
        while unsafe { self.uring.submission().push(&entry) }.is_err() {
            // Full is back-pressure: hand over what is there and go on.
            self.submit()?;
        }
        Ok(())
    }

    /// Hands what has been queued to the kernel, without waiting.
    ///
    /// # Errors
    /// What `io_uring_enter(2)` says, interruptions and a busy completion
    /// queue excepted.
    pub fn submit(&mut self) -> io::Result<()> {
        match self.has_unsubmitted() {
            true => self.enter(0, None),
            false => Ok(()),
        }
    }

    /// Hands over what has been queued, and waits until something happened, or
    /// for so long.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        match self.called.is_empty() {
            true => self.enter(1, at_most),
            false => self.submit(),
        }
    }

    /// How often the kernel was entered, in all.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether something has been queued that the kernel was not given yet.
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Lets the kernel deliver completions that wait for us to come by.
    /// Costs nothing when there are none.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn collect(&mut self) -> io::Result<()> {
        match self.deferred && self.uring.submission().taskrun() {
            true => self.enter(0, None),
            false => Ok(()),
        }
    }

    fn enter(&mut self, want: u32, at_most: Option<Duration>) -> io::Result<()> {
        const GETEVENTS: u32 = 1;
        let queued = self.uring.submission().len() as u32;
        self.entries += 1;
        let submitter = self.uring.submitter();
        let entered = match at_most {
            // SAFETY: no argument is passed, and queued entries are valid (`push`).
            None => unsafe { submitter.enter::<libc::sigset_t>(queued, want, GETEVENTS, None) },
            Some(time) => {
                let time = Timespec::from(time);
                submitter.submit_with_args(want as usize, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Whether something has happened: only a look, for busy polling.
    pub fn has_events(&mut self) -> bool {
        !self.called.is_empty()
            || !self.uring.completion().is_empty()
            || (self.deferred && self.uring.submission().taskrun())
    }

    /// The next thing that happened, if the kernel has reported one.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some((op, result)) = self.called.pop_front() {
            self.in_flight -= 1;
            return Some(Event::Done(op, result));
        }
        let (entry, data) = loop {
            let entry = self.uring.completion().next()?;
            match entry.user_data() {
                // Whether there was something left to be taken back, that says itself.
                CANCEL => self.cancels -= 1,
                data => break (entry, data),
            }
        };
        if data & POLL != 0 {
            let number = data as u32;
            let more = cqueue::more(entry.flags());
            self.armed[number as usize] = more;
            return Some(match entry.result() {
                0.. => Event::Ready { number, more },
                _ => Event::Lost(number),
            });
        }
        if data & ALARM != 0 {
            self.armed[ALARM_ARMED] = false;
            return Some(Event::Alarm);
        }
        self.in_flight -= 1;
        Some(Event::Done(data as u32, entry.result()))
    }
}

impl Ring {
    /// Waits for the kernel to be done with all that it was given. False when
    /// that cannot be learned: it may then write at any time to come.
    pub fn settle(&mut self) -> bool {
        while self.in_flight > 0 {
            if self.wait(None).is_err() {
                return false;
            }
            while self.next_event().is_some() {}
        }
        true
    }
}

impl Drop for Ring {
    /// Waits for the kernel to be done with the buffers before they go.
    fn drop(&mut self) {
        if !self.settle() {
            // The kernel still owns the buffers: leak them rather than reuse them.
            self.arena.forget();
        }
    }
}

/// The best ring that the kernel gives: completions are delivered to this
/// thread alone, when it asks for them (6.1); else an ordinary one. It does nothing
/// before it is [closed](close).
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let best = IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_r_disabled()
        .build(entries);
    match best {
        Ok(uring) => Ok((uring, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let plain = IoUring::builder()
                .dontfork()
                .setup_r_disabled()
                .build(entries)?;
            Ok((plain, false))
        }
        Err(error) => Err(error),
    }
}

/// Has the ring do from now on what it is for, and nothing else, whoever asks: no
/// other operations, on registered files alone, and no others registered than
/// those in their places.
fn close(uring: &IoUring) -> io::Result<()> {
    let operations = OPERATIONS.map(|(_, code)| Restriction::sqe_op(code));
    let registrations = REGISTRATIONS.map(|(_, code)| Restriction::register_op(code));
    let files = Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits());
    let mut all: Vec<Restriction> = operations.into_iter().chain(registrations).collect();
    all.push(files);
    uring.submitter().register_restrictions(&mut all)?;
    uring.submitter().register_enable_rings()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirectMode;
    use crate::units::SectorSize;
    use io_uring::types::Fd;
    use std::os::fd::AsFd;

    fn ring() -> (Ring, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mode = (false, DirectMode::Never);
        let store = Store::open(file.as_fd(), (0, 1 << 20), SectorSize::B512, mode, 1).unwrap();
        (Ring::new(&store, 0, 8, 64 << 10).unwrap(), file)
    }

    fn result(ring: &mut Ring, entry: squeue::Entry) -> i32 {
        ring.push(entry.user_data(1)).unwrap();
        loop {
            if let Some(done) = ring.uring.completion().next() {
                return done.result();
            }
            ring.wait(None).unwrap();
        }
    }

    #[test]
    fn a_ring_does_nothing_but_what_it_is_for() {
        let (mut ring, file) = ring();
        let bytes = [0u8; 512];
        let (path, length) = (c"/etc/passwd".as_ptr(), bytes.len() as u32);
        let fixed = squeue::Flags::FIXED_FILE;
        let here = Fd(libc::AT_FDCWD);
        let refused = -libc::EACCES;
        for entry in [
            opcode::OpenAt::new(here, path).build(),
            opcode::OpenAt::new(here, path).build().flags(fixed),
            opcode::UnlinkAt::new(here, path).build().flags(fixed),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0)
                .build()
                .flags(fixed),
            opcode::Close::new(DATA).build().flags(fixed),
            opcode::Nop::new().build().flags(fixed),
            opcode::Statx::new(here, path, std::ptr::null_mut())
                .build()
                .flags(fixed),
            // What it may do, and with a file that is not registered.
            opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), length).build(),
            opcode::Fsync::new(Fd(file.as_raw_fd())).build(),
        ] {
            assert_eq!(result(&mut ring, entry.clone()), refused, "{entry:?}");
        }
        let written = opcode::Write::new(DATA, bytes.as_ptr(), length).build();
        assert_eq!(result(&mut ring, written), 512);
    }

    /// One session after the other, each with files and descriptors of its own.
    #[test]
    fn a_ring_keeps_nothing_of_whoever_has_used_it() {
        use rustix::event::{EventfdFlags, eventfd};
        let mut ring = Ring::without_file(8, 64 << 10).unwrap();
        let nothing = |ring: &mut Ring| {
            let bytes = [0u8; 512];
            let read = opcode::Read::new(DATA, bytes.as_ptr().cast_mut(), 512).build();
            assert_eq!(result(ring, read), -libc::EBADF);
        };
        nothing(&mut ring);
        for round in 0..20u8 {
            let (first, file) = super::tests::ring();
            drop(first);
            let mode = (false, DirectMode::Never);
            let store = Store::open(file.as_fd(), (0, 1 << 20), SectorSize::B512, mode, 1).unwrap();
            ring.attach(&store, 0).unwrap();
            assert_eq!(ring.entries(), 0);
            let (kick, control) = (
                eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
                eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            );
            ring.poll(0, kick.as_fd()).unwrap();
            ring.poll(1, control.as_fd()).unwrap();
            ring.alarm(Duration::from_secs(3600)).unwrap();
            let block = ring.allocate(4096).unwrap().unwrap();
            // SAFETY: the kernel is given the block after this.
            unsafe { ring.arena().bytes(&block, 4096) }.fill(round);
            ring.write(7, &block, 0, 4096, 4096).unwrap();
            let bytes = 1u64.to_ne_bytes();
            rustix::io::write(&kick, &bytes).unwrap();
            let mut seen = vec![];
            while seen.len() < 2 {
                match ring.next_event() {
                    Some(event) => seen.push(event),
                    None => ring.wait(None).unwrap(),
                }
            }
            assert!(seen.contains(&Event::Done(7, 4096)), "{seen:?}");
            assert!(
                seen.contains(&Event::Ready {
                    number: 0,
                    more: true
                }),
                "{seen:?}"
            );
            // The block is never given back.
            assert!(ring.detach());
            assert!(!ring.has_memory() && ring.next_event().is_none());
            nothing(&mut ring);
            // What is polled no more is heard no more, and is known to nobody else.
            rustix::io::write(&control, &bytes).unwrap();
            ring.wait(Some(Duration::from_millis(1))).unwrap();
            assert_eq!(ring.next_event(), None);
            let mut written = [0; 4096];
            file.read_exact_at(&mut written, 4096).unwrap();
            assert_eq!(written, [round; 4096]);
        }
        // All of it is there for the next one.
        assert!(ring.detach());
        let (_, file) = super::tests::ring();
        let mode = (false, DirectMode::Never);
        let store = Store::open(file.as_fd(), (0, 1 << 20), SectorSize::B512, mode, 1).unwrap();
        ring.attach(&store, 0).unwrap();
        assert!(ring.allocate(64 << 10).unwrap().is_some());
    }

    #[test]
    fn nothing_is_registered_with_a_ring_but_what_it_needs() {
        let (ring, file) = ring();
        let submitter = ring.uring.submitter();
        let refused = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        };
        refused(submitter.register_files(&[file.as_raw_fd()]));
        refused(submitter.unregister_files());
        refused(submitter.register_eventfd(file.as_raw_fd()));
        refused(submitter.register_personality().map(drop));
        // And no restriction is lifted.
        let mut more = [Restriction::sqe_op(opcode::OpenAt::CODE)];
        assert!(submitter.register_restrictions(&mut more).is_err());
    }
}
