//! The session with one front end: what the `vhost` crate calls for each
//! message, in the order in which they come.
//!
//! A failed message ends the connection, since a front end that goes on as if
//! it had succeeded would leave the guest with a disk that never answers.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::OFlags;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::inflight::{self, Inflight};
use super::memory::{MAX_REGIONS, MemoryMap};
use super::notices::Notices;
use super::ring::{Addresses, VirtQueue};
use crate::engine::Disk;
use crate::virtio::config::{CONFIG_BYTES, WRITEBACK_OFFSET, write_cache};

/// The most configuration bytes that a front end may ask for: those of the
/// largest `virtio_blk_config` that there is, and some. What is not defined
/// here reads as zero.
const MAX_CONFIG_BYTES: usize = 256;

/// A descriptor that is signalled never keeps a queue thread waiting, whatever
/// the front end does with it. The flag is one of the open file, which is the
/// front end's too; QEMU's eventfds have it from the start.
fn unblock(fd: Option<File>) -> Result<Option<File>> {
    if let Some(file) = &fd {
        rustix::fs::fcntl_getfl(file)
            .and_then(|flags| rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK))
            .map_err(|errno| Error::ReqHandlerError(errno.into()))?;
    }
    Ok(fd)
}

/// Bytes of the capacity, which the configuration space begins with.
const CAPACITY_BYTES: usize = size_of::<u64>();

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What one front end has negotiated and set up.
pub struct Session {
    disk: Arc<Disk>,
    notices: Arc<Notices>,
    map: MemoryMap,
    queues: Vec<VirtQueue>,
    /// Where the front end keeps what is in flight.
    inflight: Option<Inflight>,
    negotiated: u64,
    /// The `writeback` byte of the configuration space.
    writeback: bool,
}

impl Session {
    /// A session that has not begun.
    pub fn new(disk: Arc<Disk>, notices: Arc<Notices>) -> Self {
        let mut session = Session {
            notices,
            map: MemoryMap::default(),
            queues: Vec::new(),
            inflight: None,
            negotiated: 0,
            writeback: disk.initial_write_cache(),
            disk,
        };
        session.reset();
        session
    }

    /// Waits for the requests in flight, stops all queues, makes durable what
    /// was written, and lets go of the guest's memory.
    pub fn end(&mut self) {
        self.stop_queues();
        // A failure has been logged, and is remembered by the disk.
        let _ = self.disk.sync_now();
        self.map = MemoryMap::default();
    }

    fn stop_queues(&mut self) {
        self.queues.iter_mut().for_each(VirtQueue::stop);
    }

    fn offered(&self) -> u64 {
        self.disk.shape().features() | PROTOCOL_FEATURES
    }

    fn queue(&mut self, index: impl Into<u64>) -> Result<&mut VirtQueue> {
        let index = usize::try_from(index.into()).unwrap_or(usize::MAX);
        self.queues.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Starts every queue that has all it needs.
    fn start_queues(&mut self) -> Result<()> {
        let event_idx = self.negotiated & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for queue in &mut self.queues {
            queue
                .start_if_ready(&self.disk, &self.map, self.inflight.as_ref(), event_idx)
                .map_err(Error::ReqHandlerError)?;
        }
        if self.queues.iter().any(VirtQueue::is_running) {
            self.notices.remind(self.disk.capacity());
        }
        Ok(())
    }

    /// Exchanges the memory while no request is in flight.
    fn set_map(&mut self, map: io::Result<MemoryMap>) -> Result<()> {
        let map = map.map_err(Error::ReqHandlerError)?;
        self.stop_queues();
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
        self.negotiated = 0;
        self.writeback = self.disk.initial_write_cache();
        self.disk.set_write_cache(self.writeback);
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
        self.negotiated = features;
        self.disk
            .set_write_cache(write_cache(features, self.writeback));
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
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.queue(index)?.set_addresses(Addresses {
            descriptors: descriptor,
            available,
            used,
        });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.queue(index)?
            .set_base(base)
            .map_err(Error::ReqHandlerError)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.queue(index)?.take_base();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let Some(kick) = fd else {
            tracing::error!("the front end wants a ring that is polled without kicks");
            return Err(Error::InvalidParam);
        };
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
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        match features & !offered {
            0 => Ok(()),
            _ => Err(Error::FeatureMismatch),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.set_enabled(enable);
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
                self.writeback = *byte == 1;
                self.disk
                    .set_write_cache(write_cache(self.negotiated, self.writeback));
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

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("dirty logging is not offered"))
    }
}
