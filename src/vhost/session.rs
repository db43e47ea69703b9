//! The session with one front end: what the `vhost` crate calls for each
//! message, in the order in which they come.
//!
//! A failed message ends the connection, since a front end that goes on as if
//! it had succeeded would leave the guest with a disk that never answers.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::claims::Claims;
use super::events;
use super::inflight::{self, Inflight};
use super::log::{self, LOG_ALL};
use super::memory::{MAX_REGIONS, MemoryMap};
use super::notices::Notices;
use super::ring::{Addresses, VirtQueue};
use crate::engine::Disk;
use crate::engine::dirty::{DirtyLog, TooShort};
use crate::virtio::config::{CONFIG_BYTES, WRITEBACK_OFFSET, write_cache};

/// The most configuration bytes that a front end may ask for: those of the
/// largest `virtio_blk_config` that there is, and some. What is not defined
/// here reads as zero.
const MAX_CONFIG_BYTES: usize = 256;

/// What the queue threads signal, which they never wait for.
fn unblock(fd: Option<File>) -> Result<Option<File>> {
    if let Some(file) = &fd {
        events::unblock(file).map_err(Error::ReqHandlerError)?;
    }
    Ok(fd)
}

/// Bytes of the capacity, which the configuration space begins with.
const CAPACITY_BYTES: usize = size_of::<u64>();

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What one front end has negotiated and set up.
pub struct Session {
    disk: Arc<Disk>,
    pub(super) notices: Arc<Notices>,
    /// Whether this host has the volume.
    claims: Arc<dyn Claims>,
    pub(super) map: MemoryMap,
    pub(super) queues: Vec<VirtQueue>,
    /// Where the front end keeps what is in flight.
    pub(super) inflight: Option<Inflight>,
    /// Where the front end wants to know what was written to memory.
    log: Option<Arc<DirtyLog>>,
    pub(super) negotiated: u64,
    /// The `writeback` byte of the configuration space.
    pub(super) writeback: bool,
    /// The features of the last message that set them, of the device and of the
    /// protocol. What a reset does to them is what the `vhost` crate does: nothing.
    pub(super) features: u64,
    pub(super) protocol_features: u64,
}

impl Session {
    /// A session that has not begun.
    pub fn new(disk: Arc<Disk>, notices: Arc<Notices>, claims: Arc<dyn Claims>) -> Self {
        let mut session = Session {
            notices,
            claims,
            map: MemoryMap::default(),
            queues: Vec::new(),
            inflight: None,
            log: None,
            negotiated: 0,
            writeback: disk.initial_write_cache(),
            features: 0,
            protocol_features: 0,
            disk,
        };
        session.reset();
        session
    }

    /// Waits for the requests in flight, stops all queues, makes durable what
    /// was written, and lets go of the guest's memory.
    ///
    /// What waits for the disk below, which fails, stays in flight in the memory of
    /// the front end, if that keeps it: it is for the next session.
    pub fn end(&mut self) {
        self.leave_queues();
        // A failure has been logged, and is remembered by the disk.
        let _ = self.disk.sync_now();
        self.map = MemoryMap::default();
        self.claims.moving(false);
    }

    /// Waits for the requests in flight, and stops all queues. What waits for the disk
    /// below is left to whoever starts them again, if the front end keeps that.
    pub(super) fn leave_queues(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::leave);
    }

    /// Waits for the requests in flight, and stops all queues.
    fn stop_queues(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::stop);
    }

    fn offered(&self) -> u64 {
        self.disk.shape().features() | PROTOCOL_FEATURES | LOG_ALL
    }

    fn queue(&mut self, index: impl Into<u64>) -> Result<&mut VirtQueue> {
        let index = usize::try_from(index.into()).unwrap_or(usize::MAX);
        self.queues.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Starts every queue that has all it needs.
    pub(super) fn start_queues(&mut self) -> Result<()> {
        let event_idx = self.negotiated & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.check_log()?;
        if self.queues.iter().any(|queue| queue.is_ready(&self.map)) {
            self.claims.claim().map_err(Error::ReqHandlerError)?;
        }
        let data = self.negotiated & LOG_ALL != 0;
        for queue in &mut self.queues {
            let log = queue.log(self.log.as_ref(), data);
            queue
                .start_if_ready(
                    &self.disk,
                    &self.map,
                    self.inflight.as_ref(),
                    (event_idx, log),
                )
                .map_err(Error::ReqHandlerError)?;
        }
        if self.queues.iter().any(VirtQueue::is_running) {
            self.notices.remind(self.disk.capacity());
        }
        Ok(())
    }

    /// The guest wants a write cache, or none.
    pub(super) fn set_writeback(&mut self, writeback: bool) {
        self.writeback = writeback;
        self.disk
            .set_write_cache(write_cache(self.negotiated, writeback));
    }

    /// Whether the front end has what is written to memory logged, as it does
    /// while it moves its guest to another host.
    pub fn is_logging(&self) -> bool {
        self.log.is_some() && self.negotiated & LOG_ALL != 0
    }

    /// Has all queues that run mark what they write where it is wanted now. When
    /// this returns, they do.
    fn tell_log(&mut self) -> Result<()> {
        self.check_log()?;
        let data = self.negotiated & LOG_ALL != 0;
        for queue in &self.queues {
            queue.tell_log(self.log.as_ref(), data);
        }
        self.claims.moving(self.is_logging());
        Ok(())
    }

    /// The front end has stopped a ring. If it was the last one, and it is moving
    /// its guest, the guest goes on elsewhere, as soon as this is answered.
    fn ring_was_stopped(&self) {
        if self.is_logging() && !self.queues.iter().any(VirtQueue::is_running) {
            self.claims.let_go();
        }
    }

    /// A log that has no bit for some of the memory would lose what is written
    /// there.
    fn check_log(&self) -> Result<()> {
        match &self.log {
            Some(log) if self.is_logging() && !log.covers(self.map.end()) => {
                let end = self.map.end();
                Err(Error::ReqHandlerError(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    TooShort { end },
                )))
            }
            _ => Ok(()),
        }
    }

    /// Exchanges the memory while no request is in flight.
    fn set_map(&mut self, map: io::Result<MemoryMap>) -> Result<()> {
        let map = map.map_err(Error::ReqHandlerError)?;
        // What waits for the disk below is found again by those that start.
        self.leave_queues();
        self.map = map;
        self.start_queues()
    }

    /// As at the start of the session, but for the memory.
    fn reset(&mut self) {
        self.stop_queues();
        let most = self.disk.queue_size();
        self.queues = (0..usize::from(self.disk.shape().num_queues))
            .map(|index| VirtQueue::new(index, most))
            .collect();
        self.inflight = None;
        self.log = None;
        self.negotiated = 0;
        self.writeback = self.disk.initial_write_cache();
        self.disk.set_write_cache(self.writeback);
        self.claims.moving(false);
    }
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::FeatureMismatch);
        }
        (self.negotiated, self.features) = (features, features);
        self.disk
            .set_write_cache(write_cache(features, self.writeback));
        self.tell_log()?;
        // Without protocol features there is no message that enables rings.
        if features & PROTOCOL_FEATURES == 0 {
            self.queues
                .iter_mut()
                .for_each(|queue| queue.set_enabled(true));
        }
        self.start_queues()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.set_map(MemoryMap::of(regions, files)).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.queue(index)?
            .set_size(num)
            .map_err(Error::ReqHandlerError)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let queue = self.queue(index)?;
        queue.set_addresses(Addresses {
            descriptors: descriptor,
            available,
            used,
        });
        queue.set_logged(logged.then_some(log));
        self.tell_log()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.queue(index)?
            .set_base(base)
            .map_err(Error::ReqHandlerError)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.queue(index)?.take_base();
        self.ring_was_stopped();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Some(kick) = fd else {
            tracing::error!("the front end wants a ring that is polled without kicks");
            return Err(Error::InvalidParam);
        };
        events::check(&kick).map_err(Error::ReqHandlerError)?;
        self.queue(index)?.set_kick(kick);
        self.start_queues()
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(index)?.set_call(unblock(fd)?);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(index)?.set_err(unblock(fd)?);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        match features & !offered {
            0 => {
                self.protocol_features = features;
                Ok(())
            }
            _ => Err(Error::FeatureMismatch),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.set_enabled(enable);
        if !enable {
            self.ring_was_stopped();
        }
        self.start_queues()
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let (offset, size) = (offset as usize, size as usize);
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= MAX_CONFIG_BYTES)
            .ok_or(Error::InvalidParam)?;
        let mut space = [0; MAX_CONFIG_BYTES];
        let shape = self.disk.shape();
        space[..CONFIG_BYTES].copy_from_slice(&shape.config(self.writeback));
        if offset == 0 && size >= CAPACITY_BYTES {
            self.notices.capacity_was_read(shape.capacity);
        }
        Ok(space[offset..end].to_vec())
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        match (offset, data) {
            (WRITEBACK_OFFSET, [byte @ (0 | 1)]) => {
                self.set_writeback(*byte == 1);
                Ok(())
            }
            _ => {
                tracing::warn!(
                    offset,
                    len = data.len(),
                    "the guest may write the writeback byte of the configuration, and nothing else"
                );
                Err(Error::InvalidParam)
            }
        }
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not a display"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        inflight::create(asked, self.queues.len()).map_err(Error::ReqHandlerError)
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        let kept = Inflight::map(kept, file, self.queues.len());
        let kept = kept.map_err(Error::ReqHandlerError)?;
        self.stop_queues();
        self.inflight = Some(kept);
        self.start_queues()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        self.set_map(self.map.with(region, fd)).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.set_map(self.map.without(region))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no device state to transfer"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no device state to transfer"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, told: &VhostUserLog, file: File) -> Result<()> {
        let log = log::map(told, file).map_err(Error::ReqHandlerError)?;
        self.log = Some(log);
        self.tell_log()
    }
}
