//! One io_uring: the disk's operations, and everything else that a queue
//! thread waits for.
//!
//! The memory of the arena is taken when the first block is, and can be given
//! back when there is nothing to do: a queue that rests costs hardly any.
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

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::arena::{Arena, Block};
use super::file::Store;

/// Index of the data file among the registered files.
const DATA: Fixed = Fixed(0);

/// Index of the arena among the registered buffers.
const ARENA: u16 = 0;

/// User data of polls: the high bit, and which descriptor it is.
const POLL: u64 = 1 << 63;

/// User data of the alarm.
const ALARM: u64 = 1 << 62;

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
}

impl Ring {
    /// A ring with room for `operations` at once, on the descriptor of `store`
    /// that belongs to this queue, with an arena of `arena_bytes`. It is used by the thread that makes it, and no other.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or refuses one (limits, seccomp).
    pub fn new(
        store: &Store,
        queue: usize,
        operations: u32,
        arena_bytes: usize,
    ) -> io::Result<Self> {
        // Three more for the polls of kick and control, and the alarm.
        let entries = operations + 3;
        let (uring, deferred) = build(entries)?;
        uring
            .submitter()
            .register_files(&[store.file(queue).as_raw_fd()])?;
        let in_memory = match store.is_in_memory() {
            true => Some(store.file(queue).try_clone()?),
            false => None,
        };
        Ok(Ring {
            uring,
            arena: Arena::without_memory(arena_bytes),
            fixed_buffers: false,
            deferred,
            in_flight: 0,
            called: VecDeque::with_capacity(match in_memory {
                Some(_) => operations as usize,
                None => 0,
            }),
            in_memory,
            entries: 0,
            alarm: Box::default(),
        })
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
            .user_data(ALARM);
        self.push(entry)
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
    /// again and again. An eventfd need not be read for that.
    ///
    /// # Errors
    /// When the ring is full and the kernel takes nothing from it.
    pub fn poll(&mut self, number: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(POLL | u64::from(number));
        self.push(entry)
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
        let entry = self.uring.completion().next()?;
        let data = entry.user_data();
        if data & POLL != 0 {
            let number = data as u32;
            return Some(match entry.result() {
                0.. => Event::Ready {
                    number,
                    more: cqueue::more(entry.flags()),
                },
                _ => Event::Lost(number),
            });
        }
        if data & ALARM != 0 {
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
/// thread alone, when it asks for them (6.1); else an ordinary one.
fn build(entries: u32) -> io::Result<(IoUring, bool)> {
    let best = IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(entries);
    match best {
        Ok(uring) => Ok((uring, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((IoUring::builder().dontfork().build(entries)?, false))
        }
        Err(error) => Err(error),
    }
}
