//! vhost-user messages as bytes on a socket, with nothing checked: a test may
//! send whatever it likes.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::server::DEADLINE;

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

pub const PF_MQ: u64 = 1 << 0;
pub const PF_LOG_SHMFD: u64 = 1 << 1;
pub const PF_REPLY_ACK: u64 = 1 << 3;
pub const PF_BACKEND_REQ: u64 = 1 << 5;
pub const PF_CONFIG: u64 = 1 << 9;
pub const PF_INFLIGHT_SHMFD: u64 = 1 << 12;
pub const PF_RESET_DEVICE: u64 = 1 << 13;
pub const PF_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

pub const VERSION: u32 = 1;
pub const FLAG_REPLY: u32 = 1 << 2;
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// In the argument of SET_VRING_KICK, CALL and ERR: no file is attached.
pub const NO_FD: u64 = 1 << 8;

/// What a server sent.
#[derive(Debug)]
pub struct Reply {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Reply {
    /// The payload as the one number that many replies are.
    pub fn number(&self) -> io::Result<u64> {
        let bytes = self.payload[..]
            .try_into()
            .map_err(|_| io::Error::other(format!("{} bytes instead of 8", self.payload.len())))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The socket, as a front end has it.
pub struct Messages {
    socket: UnixStream,
}

impl Messages {
    pub fn connect(path: &Path) -> io::Result<Messages> {
        let socket = UnixStream::connect(path)?;
        let messages = Messages { socket };
        messages.set_patience(DEADLINE);
        Ok(messages)
    }

    /// How long to wait for the server to say or take something.
    pub fn set_patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        self.socket.set_write_timeout(Some(patience)).unwrap();
    }

    /// Says nothing more, and hears nothing.
    pub fn hang_up(&self) {
        // The server may have done so before.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Whether the server has hung up, or died. Reads nothing.
    pub fn is_over(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.socket, &mut [0u8; 1], flags) {
            Ok((_, bytes)) => bytes == 0,
            Err(errno) => errno != rustix::io::Errno::AGAIN,
        }
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(files)));
        }
        let sent = retry_on_intr(|| {
            sendmsg(
                &self.socket,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
        if sent != bytes.len() {
            return Err(io::Error::other("the socket took a part of a message"));
        }
        Ok(())
    }

    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(12 + payload.len());
        bytes.extend(request.to_le_bytes());
        bytes.extend((flags | VERSION).to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
        self.send_bytes(&bytes, files)
    }

    /// The next message from the server. `UnexpectedEof` when it hung up.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        // With a time-out, a stop of the whole process shows as EINTR.
        let got = retry_on_intr(|| {
            recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut header)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.socket.read_exact(&mut header[got.bytes..])?;
        let files = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(files) => Some(files),
                _ => None,
            })
            .flatten()
            .collect();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload)?;
        Ok(Reply {
            request: word(0),
            flags: word(4),
            payload,
            files,
        })
    }

    /// Sends a request that always has a reply, and returns that.
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> io::Result<Reply> {
        self.send(request, 0, payload, &[])?;
        let reply = self.receive()?;
        if reply.request != request || reply.flags & FLAG_REPLY == 0 {
            return Err(io::Error::other(format!(
                "asked {request}, was answered {} with flags {:#x}",
                reply.request, reply.flags
            )));
        }
        Ok(reply)
    }

    /// Sends a request that changes something, asking for an acknowledgement
    /// (REPLY_ACK must have been negotiated). A refusal is an error.
    pub fn tell(
        &mut self,
        request: u32,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send(request, FLAG_NEED_REPLY, payload, files)?;
        match self.receive()?.number()? {
            0 => Ok(()),
            code => Err(io::Error::other(format!(
                "request {request} was refused with {code}"
            ))),
        }
    }

    /// Sends a request to a server that has no REPLY_ACK yet.
    pub fn tell_unacknowledged(&mut self, request: u32, payload: &[u8]) -> io::Result<()> {
        self.send(request, 0, payload, &[])
    }
}

/// `struct vhost_vring_state`: the argument of the SET_VRING_ messages.
pub fn vring_state(index: u32, number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&index.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The argument of SET_VRING_ADDR: user addresses of the three areas.
pub fn vring_addr(index: u32, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(index.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    for address in [descriptors, used, available, 0] {
        bytes.extend(address.to_le_bytes());
    }
    bytes
}

/// The argument of GET_INFLIGHT_FD and SET_INFLIGHT_FD, padded as QEMU has it.
pub fn inflight(size: u64, offset: u64, queues: u16, entries: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(size.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.extend(queues.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// One region of guest memory as the server is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub guest: u64,
    pub len: u64,
    pub user: u64,
    pub file_offset: u64,
}

impl Region {
    fn words(&self) -> impl Iterator<Item = u8> {
        [self.guest, self.len, self.user, self.file_offset]
            .into_iter()
            .flat_map(u64::to_le_bytes)
    }

    /// The argument of ADD_MEM_REG and REM_MEM_REG.
    pub fn single(&self) -> Vec<u8> {
        [0; 8].into_iter().chain(self.words()).collect()
    }

    /// The argument of SET_MEM_TABLE.
    pub fn table(regions: &[Region]) -> Vec<u8> {
        let count = (regions.len() as u32).to_le_bytes();
        count
            .into_iter()
            .chain([0; 4])
            .chain(regions.iter().flat_map(Region::words))
            .collect()
    }
}

/// The argument of GET_CONFIG and SET_CONFIG.
pub fn config_space(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(offset.to_le_bytes());
    payload.extend((bytes.len() as u32).to_le_bytes());
    payload.extend(flags.to_le_bytes());
    payload.extend(bytes);
    payload
}
