//! What the queues of one disk share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::crew::Crew;
use super::fence::{self, Fence};
use super::hold::Hold;
use super::stats::Stats;
use super::throttle::{Limits as RateLimits, Throttle};
use super::trouble::{OnError, Trouble};
use super::watch::Watch;
use crate::crypt::Transform;
use crate::rekey::Position;
use crate::store::Store;
use crate::units::SECTOR_BYTES;
use crate::virtio::{Limits, Shape};

/// Bytes of the serial number that GET_ID returns (VIRTIO 1.3, 5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// What a disk is made of.
pub struct DiskParams {
    /// How the data is stored: mostly a cipher, with the key of this disk.
    pub transform: Transform,
    /// The data area.
    pub store: Store,
    /// Size of the data area in bytes, a multiple of the sector size.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the guest may give space back. Deallocated units must read as
    /// zeroes: the format has to say so (`zero_units`).
    pub discard: bool,
    /// The serial number that the guest sees, padded with zero bytes.
    pub serial: [u8; SERIAL_BYTES],
    /// How many virtqueues are offered.
    pub num_queues: u16,
    /// The CPUs that the threads of the queues run on, in turns. None is any.
    pub cpus: Vec<u16>,
    /// The most entries that a virtqueue may have.
    pub queue_size: u16,
    /// Whether the guest finds the write cache switched on.
    pub write_cache: bool,
    /// The longest time that a queue thread looks for work before it sleeps.
    pub poll: Duration,
    /// How long a queue has nothing to do before it gives back its buffers.
    pub rest_after: Duration,
    /// Where the queues write down what they do: one block for each.
    pub stats: Stats,
    /// What the guest may do per second.
    pub rate_limits: RateLimits,
    /// What is done when the disk below fails.
    pub on_error: OnError,
    /// How long an operation is in flight before it is reported.
    pub stuck_after: Duration,
}

/// Is told that an fdatasync has failed.
type FailureHook = Box<dyn Fn() + Send + Sync>;

/// A disk that can be served. Immutable but for its size, which grows, and the
/// few flags below.
pub struct Disk {
    store: Store,
    /// But for the capacity, as all that follows from it.
    shape: Shape,
    limits: Limits,
    /// In 512-byte sectors. Only ever grows: what was checked stays right.
    capacity: AtomicU64,
    serial: [u8; SERIAL_BYTES],
    cpus: Vec<u16>,
    queue_size: u16,
    initial_write_cache: bool,
    poll: Duration,
    rest_after: Duration,
    stats: Arc<Stats>,
    throttle: Arc<Throttle>,
    hold: Arc<Hold>,
    /// What waits because the disk below fails.
    trouble: Trouble,
    /// What is in flight for too long.
    watch: Watch,
    /// How each unit is stored, and who may touch it now.
    fence: Arc<Fence>,
    /// Held while the size of the disk changes, or begins to be relied on.
    sizing: Mutex<()>,
    /// Whether writes may complete before they are durable.
    write_cache: AtomicBool,
    /// What was on the disk is gone: every request fails.
    lost: bool,
    /// An fdatasync failed: nobody knows what is durable, so that no later
    /// flush may claim it.
    sync_failed: AtomicBool,
    /// Makes sure that this outlives the process, where somebody else will
    /// serve the disk after it.
    on_sync_failure: Option<FailureHook>,
    /// The file system cannot deallocate: zeroes are written instead.
    punch_refused: AtomicBool,
    /// Operations that failed, for the log.
    errors: AtomicU64,
    /// The threads of its queues.
    crew: Arc<Crew>,
}

impl Disk {
    /// A disk of these parts.
    pub fn new(params: DiskParams) -> Self {
        let stored = params.transform.params();
        let sector_size = stored.sector_size;
        let capacity = params.bytes / SECTOR_BYTES;
        let discard = params.discard && stored.zero_units && !params.read_only;
        let throttle = Arc::new(Throttle::new(&params.rate_limits));
        let hold = Arc::new(Hold::new(throttle.wakers().clone()));
        Disk {
            shape: Shape {
                capacity,
                sector_size,
                read_only: params.read_only,
                discard,
                num_queues: params.num_queues,
            },
            limits: Limits {
                capacity,
                sector_size,
                read_only: params.read_only,
                discard,
            },
            capacity: AtomicU64::new(capacity),
            store: params.store,
            serial: params.serial,
            cpus: params.cpus,
            queue_size: params.queue_size,
            initial_write_cache: params.write_cache,
            poll: params.poll,
            rest_after: params.rest_after,
            stats: Arc::new(params.stats),
            trouble: Trouble::new(params.on_error, hold.clone()),
            watch: Watch::new(params.stuck_after),
            fence: Arc::new(Fence::new(hold.clone(), params.transform)),
            hold,
            sizing: Mutex::default(),
            throttle,
            write_cache: AtomicBool::new(params.write_cache),
            lost: false,
            sync_failed: AtomicBool::new(false),
            on_sync_failure: None,
            punch_refused: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            crew: Arc::default(),
        }
    }

    /// The same disk, whose queues have these threads, which were there before it.
    #[must_use]
    pub fn served_by(mut self, crew: Arc<Crew>) -> Self {
        self.crew = crew;
        self
    }

    /// The threads of its queues.
    pub fn crew(&self) -> &Crew {
        &self.crew
    }

    /// Makes the threads of all its queues, which are made when they are needed
    /// otherwise.
    ///
    /// # Errors
    /// See [`Crew::muster`].
    pub fn muster(&self) -> io::Result<()> {
        self.crew.muster(self.shape.num_queues, &self.cpus)
    }

    /// The same disk, whose fdatasync `has_failed` in an earlier process or
    /// not, and which calls `hook` once when it fails in this one. The next
    /// process that serves the disk shall know of it: what the guest was told
    /// to be lost must not pass for durable after a restart.
    #[must_use]
    pub fn remembering(mut self, has_failed: bool, hook: FailureHook) -> Self {
        self.sync_failed = AtomicBool::new(has_failed);
        self.on_sync_failure = Some(hook);
        self
    }

    /// The same disk, which calls `hook` whenever what it has of
    /// [trouble](Disk::trouble), or of [what is stuck](Disk::watch), has changed.
    #[must_use]
    pub fn telling_trouble(mut self, hook: FailureHook) -> Self {
        self.trouble = self.trouble.telling(hook);
        self
    }

    /// The same disk without its contents, which are lost for good: the guest
    /// finds it as it was, and has an I/O error for all that it wants to read,
    /// write or flush, so that it does not take an empty disk for its own.
    #[must_use]
    pub fn without_contents(mut self) -> Self {
        self.lost = true;
        self
    }

    /// From now on the data below the boundary of `position` is stored as `new`
    /// says, and the rest as it was until now; somebody will [move](Disk::fence)
    /// the boundary. Requests may be in flight, if the boundary is 0: nothing
    /// changes for any of them. `new` may be shared with who moves the data.
    ///
    /// # Errors
    /// See [`fence::Error`]; nothing has changed then.
    pub fn begin_move(
        &self,
        new: impl Into<Arc<Transform>>,
        position: Position,
    ) -> Result<(), fence::Error> {
        let new = new.into();
        if self.lost {
            return Err(fence::Error::Lost);
        }
        if self.limits.discard && !new.params().zero_units {
            return Err(fence::Error::Discard);
        }
        let _sizing = self.sizing();
        let size = self.capacity() * SECTOR_BYTES;
        self.fence
            .begin(new, position, (size, self.limits.read_only))
    }

    /// All data has been moved, one way or back: the boundary is at an end of
    /// the disk. The way that no unit is stored in any more is forgotten, and
    /// its keys are wiped when this returns, if nobody else shares them: no queue
    /// has them.
    ///
    /// # Errors
    /// When the boundary is elsewhere, or something is closed.
    pub fn end_move(&self) -> Result<(), fence::Error> {
        self.fence.end()
    }

    /// What keeps requests from the data that is being moved.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    fn sizing(&self) -> MutexGuard<'_, ()> {
        self.sizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data area.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the guest is told.
    pub fn shape(&self) -> Shape {
        Shape {
            capacity: self.capacity(),
            ..self.shape
        }
    }

    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits {
            // Nothing is within a disk of no size.
            capacity: match self.lost {
                false => self.capacity(),
                true => 0,
            },
            ..self.limits
        }
    }

    /// The size of the disk in 512-byte sectors.
    ///
    /// A plain load: whoever sends a request beyond the old end has been told
    /// of the new one by a message, which was sent after it was stored.
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Makes the disk `bytes` large, from the next request on, while queues are
    /// running. The guest has to be told by somebody else.
    ///
    /// # Errors
    /// When it would be smaller, not a whole number of data units, or larger
    /// than what lies below; and while its data is being moved.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        let refuse = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let capacity = bytes / SECTOR_BYTES;
        if !bytes.is_multiple_of(self.limits.sector_size.bytes() as u64) {
            return refuse("the new size is not a number of sectors");
        }
        if capacity < self.capacity() {
            return refuse("a disk that is served can only grow");
        }
        let _sizing = self.sizing();
        if capacity > self.capacity() && self.fence.position().is_some() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "its data is being moved, and the size is fixed until that is done",
            ));
        }
        // What lies below first: no request may be let through before that.
        self.store.grow(bytes)?;
        self.capacity.store(capacity, Ordering::SeqCst);
        Ok(())
    }

    /// The serial number.
    pub fn serial(&self) -> &[u8; SERIAL_BYTES] {
        &self.serial
    }

    /// The CPU that the thread of a queue shall run on.
    pub fn cpu(&self, queue: usize) -> Option<u16> {
        self.cpus.iter().copied().cycle().nth(queue)
    }

    /// The most entries that a virtqueue may have.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// How every session finds the write cache.
    pub fn initial_write_cache(&self) -> bool {
        self.initial_write_cache
    }

    /// The longest busy-poll.
    pub fn poll(&self) -> Duration {
        self.poll
    }

    /// How long a queue has nothing to do before it gives back its buffers.
    pub fn rest_after(&self) -> Duration {
        self.rest_after
    }

    /// What the queues have done, and do.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// What keeps the guest to its limits.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }

    /// What holds its requests.
    pub fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// What waits because the disk below fails.
    pub fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// What is in flight for too long.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether writes may complete before they are durable.
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Switches the write cache. Switching it off makes durable what has
    /// completed before; requests in flight finish under the mode that they
    /// see when they end.
    pub fn set_write_cache(&self, on: bool) {
        if self.write_cache.swap(on, Ordering::SeqCst) && !on && self.sync_now().is_err() {
            tracing::error!("flushing the write cache failed as it was switched off");
        }
    }

    /// Makes every completed write durable, waiting for it.
    ///
    /// # Errors
    /// When it fails now, or has failed before.
    pub fn sync_now(&self) -> io::Result<()> {
        // There is nothing of a lost disk that could be made durable.
        if self.limits.read_only || self.lost {
            return Ok(());
        }
        if self.sync_has_failed() {
            return Err(io::Error::other("an earlier fdatasync failed"));
        }
        self.store
            .sync()
            .inspect_err(|error| self.note_sync_failure(error))
    }

    /// Whether an fdatasync has failed since the disk was opened.
    pub fn sync_has_failed(&self) -> bool {
        self.lost || self.sync_failed.load(Ordering::SeqCst)
    }

    /// An fdatasync failed in the process that served the disk until now, after
    /// this one was [told](Disk::remembering) of the past.
    pub fn sync_failed_elsewhere(&self) {
        self.sync_failed.store(true, Ordering::SeqCst);
    }

    /// Remembers that an fdatasync failed.
    pub(super) fn note_sync_failure(&self, error: &io::Error) {
        if !self.sync_failed.swap(true, Ordering::SeqCst) {
            if let Some(hook) = &self.on_sync_failure {
                hook();
            }
            tracing::error!(
                %error,
                "fdatasync failed: flushes of this disk fail from now on, since what was \
                 written may be lost; check the disk below, then serve the volume anew"
            );
        }
    }

    /// Whether the file system has refused to deallocate.
    pub(super) fn punch_is_refused(&self) -> bool {
        self.punch_refused.load(Ordering::Relaxed)
    }

    /// Remembers that the file system cannot deallocate.
    pub(super) fn note_punch_refused(&self) {
        if !self.punch_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the file system cannot deallocate: discarded space is overwritten with zeroes"
            );
        }
    }

    /// Counts a failed operation, and logs the first ones and then ever fewer.
    pub(super) fn note_error(&self, what: &str, position: u64, error: &io::Error) {
        let count = self.count_error();
        if count.is_power_of_two() {
            tracing::error!(%error, position, count, "{what} failed: the guest gets an I/O error");
        }
    }

    /// Counts a failed operation: the how manieth it is.
    pub(super) fn count_error(&self) -> u64 {
        self.errors.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How many operations have failed.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{Engine, Params, SectorCipher};
    use crate::secret::Dek;
    use crate::store::DirectMode;
    use crate::units::SectorSize;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    const BYTES: u64 = 1 << 20;

    fn disk(read_only: bool, zero_units: bool) -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        let params = Params {
            zero_units,
            ..Params::default()
        };
        let access = (read_only, DirectMode::Never);
        Disk::new(DiskParams {
            transform: Transform::Cipher(
                SectorCipher::new(Engine::Portable, &Dek::generate().unwrap(), params).unwrap(),
            ),
            store: Store::open(file.as_fd(), (0, BYTES), params.sector_size, access, 1).unwrap(),
            bytes: BYTES,
            read_only,
            discard: true,
            serial: [0; SERIAL_BYTES],
            num_queues: 1,
            cpus: vec![],
            queue_size: 128,
            write_cache: true,
            poll: Duration::ZERO,
            rest_after: Duration::from_secs(1),
            stats: Stats::private(1).unwrap(),
            rate_limits: RateLimits::default(),
            on_error: OnError::Report,
            stuck_after: Duration::from_secs(30),
        })
    }

    #[test]
    fn a_failed_fdatasync_is_never_followed_by_a_flush_that_succeeds() {
        let disk = disk(false, false);
        assert!(disk.sync_now().is_ok());
        disk.note_sync_failure(&io::Error::from_raw_os_error(libc::EIO));
        // The file itself is fine, and its fdatasync would succeed.
        assert!(disk.store().sync().is_ok());
        assert!(disk.sync_now().is_err());
        assert!(disk.sync_has_failed());
    }

    #[test]
    fn a_failed_fdatasync_outlives_the_process_that_saw_it() {
        let calls = Arc::new(AtomicU64::new(0));
        let hook = |calls: &Arc<AtomicU64>| -> FailureHook {
            let calls = calls.clone();
            Box::new(move || {
                calls.fetch_add(1, Ordering::SeqCst);
            })
        };
        let first = disk(false, false).remembering(false, hook(&calls));
        assert!(first.sync_now().is_ok());
        for _ in 0..2 {
            first.note_sync_failure(&io::Error::from_raw_os_error(libc::EIO));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let second = disk(false, false).remembering(true, hook(&calls));
        assert!(second.sync_has_failed());
        assert!(second.sync_now().is_err());
    }

    #[test]
    fn a_lost_disk_keeps_its_looks_and_serves_nothing() {
        let disk = disk(false, false).without_contents();
        assert_eq!(disk.shape().capacity, BYTES / SECTOR_BYTES);
        assert_eq!(disk.limits().capacity, 0);
        // Flushes of the guest fail, and the end of the process is no failure.
        assert!(disk.sync_has_failed());
        assert!(disk.sync_now().is_ok());
    }

    #[test]
    fn a_disk_grows_as_far_as_its_file_does_and_never_shrinks() {
        let disk = disk(false, false);
        let sectors = BYTES / SECTOR_BYTES;
        assert_eq!((disk.capacity(), disk.shape().capacity), (sectors, sectors));
        for wrong in [BYTES - 512, BYTES + 1, 2 * BYTES] {
            assert!(disk.grow(wrong).is_err(), "{wrong}");
            assert_eq!(disk.capacity(), sectors);
        }
        disk.store().files()[0].set_len(2 * BYTES).unwrap();
        disk.grow(2 * BYTES).unwrap();
        assert_eq!(disk.limits().capacity, 2 * sectors);
        assert_eq!(disk.shape().capacity, 2 * sectors);
        assert_eq!(disk.store().position(2 * BYTES - 512), 2 * BYTES - 512);
        disk.grow(2 * BYTES).unwrap();
    }

    #[test]
    fn discards_are_offered_only_where_zero_units_read_as_zeroes() {
        assert!(disk(false, true).limits().discard);
        assert!(!disk(false, false).limits().discard);
        assert!(!disk(true, true).limits().discard);
    }

    #[test]
    fn a_disk_is_given_another_key_only_if_its_guest_sees_no_difference() {
        let position = Position {
            direction: crate::rekey::Direction::Forward,
            boundary: 0,
        };
        let cipher = |sector_size, zero_units| {
            let params = Params {
                sector_size,
                zero_units,
                ..Params::default()
            };
            let dek = Dek::generate().unwrap();
            Transform::Cipher(SectorCipher::new(Engine::Portable, &dek, params).unwrap())
        };
        let unit = Params::default().sector_size;
        let other = match unit {
            SectorSize::B512 => SectorSize::B4096,
            SectorSize::B4096 => SectorSize::B512,
        };
        let discards = disk(false, true);
        assert!(discards.limits().discard);
        let refused = discards.begin_move(cipher(unit, false), position);
        assert_eq!(refused, Err(fence::Error::Discard));
        let refused = discards.begin_move(cipher(other, true), position);
        assert!(matches!(refused, Err(fence::Error::SectorSize { .. })));
        let lost = disk(false, true).without_contents();
        let refused = lost.begin_move(cipher(unit, true), position);
        assert_eq!(refused, Err(fence::Error::Lost));

        // A size is relied on from here on.
        discards.begin_move(cipher(unit, true), position).unwrap();
        let refused = discards.grow(2 * BYTES).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        assert!(discards.grow(BYTES).is_ok(), "it is so large already");
        discards.end_move().unwrap();
        // Now it is the file that is too small.
        let refused = discards.grow(2 * BYTES).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);

        // Both keys are needed to read it, and nothing is moved.
        let read_only = disk(true, true);
        read_only.begin_move(cipher(unit, false), position).unwrap();
        let keeper = read_only.fence().keeper().unwrap();
        assert!(!crate::rekey::Fence::close_for_writing(
            &keeper,
            position.direction,
            4096
        ));
    }
}
