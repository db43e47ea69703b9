//! The thread of one virtqueue: its loop, and how it is started and stopped.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::Duration;

use virtio_queue::{Queue, QueueT};

use super::dirty::QueueLog;
use super::disk::Disk;
use super::fence;
use super::hold::{self, Gate as Held};
use super::inflight::Recovered;
use super::meter::{Account, Meter, Moment};
use super::poll::Poll;
use super::retry::Retries;
use super::slots::{Op, Slots, Table};
use super::throttle::{self, Gate};
use super::vring::Vring;
use super::wakers::Watch;
use super::watch::Stuck;
use crate::secret::scrub_stack;
use crate::store::{Event, Ring};
use crate::virtio::Memory;

/// Operations that a queue has at the kernel at most.
pub(super) const OPERATIONS: u16 = 256;

/// Requests that are taken before completions and control messages are looked
/// at again.
const MOST_AT_ONCE: usize = 256;

/// Data that is encrypted before the kernel is given it, and decrypted before
/// the guest is told: enough to make a batch, little enough that the disk and
/// the guest do not wait for it.
const BATCH_BYTES: u64 = 128 << 10;

/// The longest look for the disk below. To look for the guest saves it a kick,
/// and us a wake-up; here there is only the wake-up to be saved.
const MOST_POLL_OF_DISK: Duration = Duration::from_micros(20);

/// Polls of the queue's ring.
const KICK: u32 = 0;
const CONTROL: u32 = 1;

/// A virtqueue that is ready to run.
pub struct QueueStart {
    /// Which of the device's queues it is.
    pub index: usize,
    /// The ring, with its addresses and positions.
    pub queue: Queue,
    /// The memory that it lies in.
    pub memory: Arc<Memory>,
    /// The driver signals this when there is work.
    pub kick: File,
    /// We signal this when work is done.
    pub call: Option<File>,
    /// We signal this when the ring cannot go on.
    pub err: Option<File>,
    /// What was found of an earlier process, and where it is written down what is
    /// in flight, if the front end keeps that. A queue that was stopped has none.
    pub inflight: Option<Recovered>,
    /// Where it is marked what is written to the guest's memory, if anywhere.
    pub log: Option<QueueLog>,
}

/// What the session tells a running queue.
enum Control {
    Call(Option<File>),
    Err(Option<File>),
    /// Answered as soon as nothing is marked elsewhere any more.
    Log(Option<QueueLog>, SyncSender<()>),
    Stop,
    Leave,
}

/// A queue thread that is running.
pub struct RunningQueue {
    control: Sender<Control>,
    wake: Arc<OwnedFd>,
    /// What its thread gives back when it has stopped.
    ended: Receiver<QueueStart>,
}

/// What a thread of the [crew](super::Crew) is given to do.
pub(super) struct Job {
    disk: Arc<Disk>,
    start: QueueStart,
    wake: Arc<OwnedFd>,
    control: Receiver<Control>,
    ready: SyncSender<io::Result<()>>,
    ended: SyncSender<QueueStart>,
    /// So that what the thread logs says which disk it is about.
    span: tracing::Span,
}

/// Starts the queue, on its thread.
///
/// # Errors
/// When the thread or its io_uring cannot be made, or is lost.
pub fn start_queue(disk: Arc<Disk>, start: QueueStart) -> Result<RunningQueue, io::Error> {
    let (control, receiver) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let (give_back, ended) = mpsc::sync_channel(1);
    let wake = throttle::wake()?;
    let (index, cpu) = (start.index, disk.cpu(start.index));
    let job = Job {
        disk: disk.clone(),
        start,
        wake: wake.clone(),
        control: receiver,
        ready,
        ended: give_back,
        span: tracing::Span::current(),
    };
    disk.crew().begin(index, cpu, job)?;
    match started.recv() {
        Ok(Ok(())) => Ok(RunningQueue {
            control,
            wake,
            ended,
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the queue thread ended early")),
    }
}

impl RunningQueue {
    /// Exchanges the descriptor by which the driver is told of completions.
    pub fn set_call(&self, call: Option<File>) {
        self.tell(Control::Call(call));
    }

    /// Exchanges the descriptor by which the front end is told of errors.
    pub fn set_err(&self, err: Option<File>) {
        self.tell(Control::Err(err));
    }

    /// Exchanges the log of what is written to the guest's memory. When this
    /// returns, nothing is marked in the one before any more, and everything
    /// that is written from now on is in this one.
    pub fn set_log(&self, log: Option<QueueLog>) {
        let (done, is_done) = mpsc::sync_channel(1);
        self.tell(Control::Log(log, done));
        // A thread that has ended, or has lost its ring, writes nothing any more.
        let _ = is_done.recv();
    }

    /// Takes no more requests, waits until those in flight have completed,
    /// and gives the queue back, with its position. What waits for the disk below
    /// to work again fails: whoever stops a ring may not be kept waiting, and
    /// finds nothing in flight in it.
    pub fn stop(self) -> Option<QueueStart> {
        self.tell(Control::Stop);
        self.ended.recv().ok()
    }

    /// The same; but what waits for the disk below is left as it is to whoever
    /// starts the ring next, if it is written down what is in flight.
    pub fn leave(self) -> Option<QueueStart> {
        self.tell(Control::Leave);
        self.ended.recv().ok()
    }

    fn tell(&self, message: Control) {
        if self.control.send(message).is_ok() {
            // An eventfd takes 2^64 - 2 messages before this fails.
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Runs a queue until it is stopped, and gives the ring back, unless that is lost.
pub(super) fn run(job: Job, mut ring: Ring) -> Option<Ring> {
    let Job {
        disk,
        start,
        wake,
        control,
        ready,
        ended,
        span,
    } = job;
    let _span = span.entered();
    let QueueStart {
        index,
        queue,
        memory,
        kick,
        call,
        err,
        inflight,
        log,
    } = start;
    let slots = queue.size();
    let mut vring = Vring::new(queue, memory, call, err);
    if let Some(found) = inflight {
        vring = vring.tracked(found);
    }
    vring.set_log(log);
    let attached = ring
        .attach(disk.store(), index)
        .and_then(|()| ring.poll(KICK, kick.as_fd()))
        .and_then(|()| ring.poll(CONTROL, wake.as_fd()));
    let left = match attached {
        Ok(()) => {
            let member = disk.hold().join();
            let retries = Retries::new(slots, disk.trouble().orders());
            let mut thread = QueueThread {
                polls: [
                    Poll::new(disk.poll()),
                    Poll::new(disk.poll().min(MOST_POLL_OF_DISK)),
                ],
                meter: Meter::new(disk.stats().clone(), index),
                gate: Gate::new(slots),
                _watch: disk.throttle().wakers().add(wake.clone()),
                fence: fence::Local::new(disk.fence().clone(), &member, wake.clone()),
                member,
                disk,
                vring,
                ring,
                slots: Slots::new(slots),
                ops: Table::new(OPERATIONS),
                waiting: VecDeque::with_capacity(slots.into()),
                parked: VecDeque::with_capacity(slots.into()),
                retries,
                index,
                stuck: None,
                idle_since: None,
                unsubmitted: 0,
                unannounced: 0,
                active: false,
                alarm: false,
                stopping: false,
                leaving: false,
            };
            let _ = ready.send(Ok(()));
            let served = thread.serve(&kick, wake.as_fd(), &control);
            if let Err(error) = &served {
                thread.fail_all();
                thread.vring.break_down(error);
            }
            let left = thread.end();
            vring = left.0;
            if served.is_err() {
                // Without its ring the thread can only wait to be ended. Nobody
                // waits for it meanwhile, and it has no key.
                while !matches!(control.recv(), Ok(Control::Stop | Control::Leave) | Err(_)) {}
            }
            left.1
        }
        Err(error) => {
            drop(disk);
            let kept = ring.detach().then_some(ring);
            let _ = ready.send(Err(error));
            kept
        }
    };
    let (queue, memory, call, err) = vring.into_parts();
    // Whoever does not want it has gone. Nothing of the disk or the guest is left here.
    drop(wake);
    scrub_stack();
    let _ = ended.send(QueueStart {
        index,
        queue,
        memory,
        kick,
        call,
        err,
        inflight: None,
        log: None,
    });
    left
}

/// What the thread owns. `execute` has the life of a request; here is the loop.
pub(super) struct QueueThread {
    pub(super) disk: Arc<Disk>,
    pub(super) vring: Vring,
    pub(super) ring: Ring,
    pub(super) slots: Slots,
    pub(super) ops: Table<Op>,
    /// Requests that wait for a buffer or an operation, oldest first. While
    /// there are any, no new ones are taken.
    pub(super) waiting: VecDeque<u16>,
    /// Requests of which a part is closed, oldest first.
    pub(super) parked: VecDeque<u16>,
    /// Requests that the disk below has failed.
    pub(super) retries: Retries,
    /// Which of the queues it is.
    pub(super) index: usize,
    /// What it has found to be stuck.
    pub(super) stuck: Option<Stuck>,
    /// How each unit is stored, and what is closed.
    pub(super) fence: fence::Local,
    /// Bytes queued for the kernel since it was last entered.
    pub(super) unsubmitted: u64,
    /// Bytes given to the guest since it was last told.
    pub(super) unannounced: u64,
    pub(super) meter: Meter,
    /// Where requests wait that the limits of the disk hold back.
    pub(super) gate: Gate,
    _watch: Watch,
    /// Who waits for the disk to become quiet, or for a region to be clear,
    /// waits for us.
    pub(super) member: hold::Member,
    /// How long it pays to look for the guest, and for the disk below: the two
    /// answer in times of their own.
    polls: [Poll; 2],
    /// Requests were taken since the last alarm.
    active: bool,
    /// An alarm is set, to see whether there is still something to do.
    alarm: bool,
    /// Since when there was nothing to do, as alarms have seen.
    idle_since: Option<Moment>,
    pub(super) stopping: bool,
    /// What waits for the disk below shall be left to the next one.
    pub(super) leaving: bool,
}

impl QueueThread {
    fn serve(
        &mut self,
        kick: &File,
        wake: BorrowedFd<'_>,
        control: &Receiver<Control>,
    ) -> io::Result<()> {
        loop {
            self.reap(kick, wake, control)?;
            self.follow_fence()?;
            if !self.parked.is_empty() {
                self.fail_parked()?;
            }
            if !self.retries.is_empty() {
                self.look_after_retries()?;
            }
            self.resume_waiting()?;
            self.release_throttled()?;
            self.take_requests()?;
            self.notify();
            if self.stopping && (self.slots.all_free() || (self.leaves_behind() && self.is_quiet()))
            {
                return Ok(());
            }
            if self.disk.hold().gate() != Held::Open && self.is_quiet() {
                self.member.quiet();
            }
            self.sleep()?;
            self.meter.entered(self.ring.entries());
        }
    }

    /// The thread has done its last request. Whoever waits for it to be clear of
    /// a region does not any more, and rightly so: the kernel has ended all that
    /// it was given, or no region is moved ever again. What is left is the ring, if it
    /// can be used again.
    fn end(mut self) -> (Vring, Option<Ring>) {
        if !self.ring.settle() {
            self.member.lose();
        }
        self.leave_retries();
        self.end_watch();
        let kept = self.ring.detach().then_some(self.ring);
        if kept.is_none() {
            tracing::error!(queue = self.index, "the io_uring of the queue is lost");
        }
        (self.vring, kept)
    }

    /// Handles everything that the kernel has reported.
    fn reap(
        &mut self,
        kick: &File,
        wake: BorrowedFd<'_>,
        control: &Receiver<Control>,
    ) -> io::Result<()> {
        self.ring.collect()?;
        let mut ended = false;
        while let Some(event) = self.ring.next_event() {
            match event {
                Event::Done(op, result) => {
                    ended = true;
                    self.operation_done(op as u16, result)?;
                    if self.unannounced >= BATCH_BYTES {
                        self.unannounced = 0;
                        self.notify();
                        self.meter.expire();
                    }
                }
                // A kick says only that there is work; the loop looks anyway.
                Event::Ready { number, more } if number == KICK => {
                    self.meter.kicked();
                    if !more {
                        self.ring.poll(KICK, kick.as_fd())?;
                    }
                }
                Event::Ready { more, .. } => {
                    self.obey(control);
                    if !more {
                        self.ring.poll(CONTROL, wake)?;
                    }
                }
                Event::Lost(KICK) => self
                    .vring
                    .break_down(&io::Error::other("the kick descriptor cannot be polled")),
                Event::Alarm => self.alarmed(),
                Event::Lost(_) => return Err(io::Error::other("the session is out of reach")),
            }
        }
        if ended {
            self.meter.expire();
            if self.stuck.is_some() {
                self.look_for_stuck();
            }
        }
        Ok(())
    }

    /// A while has passed: a queue that had nothing to do gives back its buffers.
    /// No alarm is set then, so that a queue that rests is never woken.
    fn alarmed(&mut self) {
        self.alarm = false;
        if !self.ops.is_empty() {
            self.look_for_stuck();
        }
        if std::mem::take(&mut self.active) || !self.slots.all_free() {
            self.idle_since = None;
            return;
        }
        let now = self.meter.now();
        let since = *self.idle_since.get_or_insert(now);
        // It may have been idle for a period when that was seen first; and better
        // now than a moment after the next alarm.
        if since.until(now) + 2 * self.alarm_period() >= self.disk.rest_after() {
            self.idle_since = None;
            self.ring.rest();
        }
    }

    /// How soon to look whether something is stuck, and whether there is still
    /// something to do.
    fn alarm_period(&self) -> Duration {
        self.disk.rest_after().min(self.disk.watch().period())
    }

    /// Tells the driver what has been returned, if it wants to know.
    pub(super) fn notify(&mut self) {
        if self.vring.notify() {
            self.meter.notified();
        }
    }

    fn obey(&mut self, control: &Receiver<Control>) {
        while let Ok(message) = control.try_recv() {
            match message {
                Control::Call(call) => self.vring.set_call(call),
                Control::Err(err) => self.vring.err = err,
                Control::Log(log, done) => {
                    self.vring.set_log(log);
                    // Somebody waits for it, unless that has changed.
                    let _ = done.send(());
                }
                Control::Stop => self.stopping = true,
                Control::Leave => (self.stopping, self.leaving) = (true, true),
            }
        }
    }

    /// Goes on with requests that had to wait, in their order.
    fn resume_waiting(&mut self) -> io::Result<()> {
        while let Some(place) = self.next_waiting() {
            let Some(number) = self.waiting.remove(place) else {
                return Ok(());
            };
            if !self.advance(number)? {
                self.waiting.insert(place.min(self.waiting.len()), number);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Goes on with requests that the limits of the disk held back. A queue that
    /// is to stop, or to be quiet, holds nothing back: whoever wants that waits
    /// for it. They are charged all the same.
    fn release_throttled(&mut self) -> io::Result<()> {
        while !self.gate.is_empty() && !self.is_stopped() {
            let throttle = self.disk.throttle();
            let now = throttle.now();
            let held = self.disk.hold().gate();
            let released = match self.stopping || held != Held::Open {
                true => self.gate.release_any(throttle, now),
                false => self.gate.release(throttle, now),
            };
            let Some(released) = released else {
                return Ok(());
            };
            self.meter.throttled(released.lane, released.waited);
            match held {
                Held::Failing => self.refuse(released.number),
                Held::Open | Held::Shut | Held::Stopped => self.go_on(released.number)?,
            }
        }
        Ok(())
    }

    /// Whether a new request could be started.
    fn can_take(&mut self) -> bool {
        !self.stopping
            && !matches!(self.disk.hold().gate(), Held::Shut | Held::Stopped)
            && self.waiting.is_empty()
            && self.slots.peek_free().is_some()
    }

    /// Takes requests until there are no more, or no room for more; but only
    /// so many at once that a guest which never stops sending (bad requests,
    /// for example, which need no room) keeps us from nothing else.
    fn take_requests(&mut self) -> io::Result<()> {
        for _ in 0..MOST_AT_ONCE {
            if !self.can_take() {
                return Ok(());
            }
            let Some((number, slot)) = self.slots.peek_free() else {
                return Ok(());
            };
            let Some(parsed) = self.vring.pop(&self.disk.limits(), &mut slot.segments) else {
                return Ok(());
            };
            self.active = true;
            let arrived = self.meter.taken();
            match parsed.request {
                Ok(request) => {
                    slot.account = Account::new(&request, arrived);
                    self.slots.take(number, parsed.completion);
                    self.begin(number, request)?;
                }
                Err(reject) => {
                    self.meter.rejected(arrived);
                    self.vring.push(&parsed.completion, Err(reject));
                }
            }
            if self.unsubmitted >= BATCH_BYTES {
                self.unsubmitted = 0;
                self.ring.submit()?;
                // The kernel may have done some of it at once.
                self.meter.expire();
                if self.ring.has_called() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hands over what has been queued, and waits for something to happen:
    /// looking for a short time where that has paid, then asleep.
    fn sleep(&mut self) -> io::Result<()> {
        self.unsubmitted = 0;
        self.unannounced = 0;
        self.meter.expire();
        if self.ring.has_called() {
            return self.ring.submit();
        }
        let takes = self.can_take();
        if !self.alarm && (self.ring.has_memory() || !self.ops.is_empty()) {
            let period = self.alarm_period();
            self.ring.alarm(period)?;
            self.alarm = true;
        }
        let waits_for = usize::from(self.ring.in_flight() > 0);
        let poll = &self.polls[waits_for];
        if poll.is_open() {
            if self.ring.has_unsubmitted() {
                self.ring.submit()?;
            }
            let start = self.meter.read();
            let (ring, vring, meter) = (&mut self.ring, &self.vring, &mut self.meter);
            let found = poll.look(
                || meter.since(start),
                || ring.has_events() || (takes && vring.has_work()),
            );
            self.meter.polled(start);
            if found {
                return Ok(());
            }
        }
        if takes && self.vring.enable_kicks() {
            self.vring.disable_kicks();
            return Ok(());
        }
        if waits_for == 0 {
            // It may be long. Ciphers for which there are not enough registers
            // have had round keys on the stack.
            scrub_stack();
        }
        self.meter.sleeps();
        // Nothing of it is in flight, so that nobody has to wake it in each step.
        let dozes = self.fence.view().is_moving() && self.slots.all_free();
        if dozes {
            self.fence.doze(&self.member);
        }
        let due = self.gate.due().map(|due| {
            let left = due.0.saturating_sub(self.disk.throttle().now().0);
            Duration::from_nanos(left)
        });
        let due = [due, self.retry_due()].into_iter().flatten().min();
        if self.polls[waits_for].is_on() {
            let start = self.meter.now();
            self.ring.wait(due)?;
            let slept = self.meter.since(start);
            self.polls[waits_for].slept(slept);
        } else {
            self.ring.wait(due)?;
            self.meter.expire();
        }
        if dozes {
            self.fence.follow(&self.member, std::iter::empty());
        }
        if takes {
            self.vring.disable_kicks();
        }
        Ok(())
    }
}
