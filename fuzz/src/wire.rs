//! vhost-user messages as bytes, with nothing checked.
#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg,
    sendmsg,
};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

/// The argument of GET_INFLIGHT_FD and SET_INFLIGHT_FD, padded.
pub fn inflight(bytes: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    let mut payload = [bytes, offset].map(u64::to_le_bytes).concat();
    payload.extend([queues, entries, 0, 0].map(u16::to_le_bytes).concat());
    payload
}

/// What a front end of this device sends.
pub const REQUESTS: [u32; 28] = [
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_MEM_TABLE,
    ADD_MEM_REG,
    REM_MEM_REG,
    SET_FEATURES,
    GET_FEATURES,
    SET_PROTOCOL_FEATURES,
    GET_PROTOCOL_FEATURES,
    SET_OWNER,
    RESET_OWNER,
    RESET_DEVICE,
    GET_CONFIG,
    SET_CONFIG,
    GET_QUEUE_NUM,
    GET_MAX_MEM_SLOTS,
    SET_LOG_BASE,
    GET_INFLIGHT_FD,
    SET_INFLIGHT_FD,
    SET_BACKEND_REQ_FD,
    SET_STATUS,
    GET_STATUS,
];

/// The protocol's version, in the flags of each message.
pub const VERSION: u32 = 1;
/// The sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;
/// In the argument of SET_VRING_KICK, CALL and ERR: no file is attached.
pub const NO_FD: u64 = 1 << 8;

/// A region of memory as the server is told of it.
#[derive(Clone, Copy)]
pub struct Region {
    pub guest: u64,
    pub len: u64,
    pub user: u64,
    pub offset: u64,
}

impl Region {
    fn bytes(&self) -> impl Iterator<Item = u8> {
        [self.guest, self.len, self.user, self.offset]
            .into_iter()
            .flat_map(u64::to_le_bytes)
    }

    /// The payload of ADD_MEM_REG and REM_MEM_REG.
    pub fn single(&self) -> Vec<u8> {
        [0; 8].into_iter().chain(self.bytes()).collect()
    }

    /// The payload of SET_MEM_TABLE.
    pub fn table(count: u32, regions: &[Region]) -> Vec<u8> {
        let head = count.to_le_bytes().into_iter().chain([0; 4]);
        head.chain(regions.iter().flat_map(Region::bytes)).collect()
    }
}

/// The payload of the SET_VRING_ messages that have two numbers.
pub fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

/// The payload of SET_VRING_ADDR.
pub fn addresses(index: u32, flags: u32, [descriptors, used, available]: [u64; 3]) -> Vec<u8> {
    let mut bytes = state(index, flags);
    bytes.extend(
        [descriptors, used, available, 0]
            .into_iter()
            .flat_map(u64::to_le_bytes),
    );
    bytes
}

/// The payload of GET_CONFIG and SET_CONFIG.
pub fn config(offset: u32, size: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = state(offset, size);
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

/// A message. `size` is what its header says the payload has.
pub fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [request, flags, size]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    bytes.extend(payload);
    bytes
}

/// The most descriptors that are sent at once.
pub const MAX_FILES: usize = 40;

/// Sends bytes without waiting. False when they were not taken: the server is
/// gone, or takes nothing more for now.
pub fn send(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return false;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) == Ok(bytes.len())
}

/// Takes what the server has sent. True when it has hung up.
pub fn drain(socket: impl AsFd) -> bool {
    let mut bytes = [0; 4096];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&socket, into, &mut control, flags) {
            Ok(got) if got.bytes == 0 => return true,
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}

/// Takes what the server has sent, and adds it to `said`. Files are closed.
pub fn take(socket: impl AsFd, said: &mut Vec<u8>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    if let Ok(got) = recvmsg(&socket, into, &mut control, flags) {
        said.extend_from_slice(&bytes[..got.bytes]);
    }
}

/// Whether an answer to this request is among what the server has sent.
pub fn has_answer(mut said: &[u8], request: u32) -> bool {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes(word.try_into().ok()?))
    };
    while let (Some(kind), Some(size)) = (word(said, 0), word(said, 8)) {
        if kind == request {
            return true;
        }
        said = said.get(12 + size as usize..).unwrap_or_default();
    }
    false
}
