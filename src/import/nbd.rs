//! A disk that one client writes to, by the NBD protocol: what `qemu-img` needs
//! of it, and no more (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>:
//! fixed newstyle negotiation, simple replies).
//!
//! The client is a program that reads files which a guest may have made. So its
//! numbers are checked here, and what it can do is to write anything to a volume
//! that is being made.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use zeroize::Zeroizing;

use super::Sink;

const GREETING: u64 = 0x4e42_444d_4147_4943;
const HAVE_OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const SENDS_FLUSH: u16 = 1 << 2;
const SENDS_WRITE_ZEROES: u16 = 1 << 6;
const FLAGS: u16 = HAS_FLAGS | SENDS_FLUSH | SENDS_WRITE_ZEROES;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// The most that is read or written at once.
const MOST: u32 = 2 << 20;
/// The most that an option may have to say.
const LONGEST_OPTION: u32 = 8192;
/// More threads than that make no disk faster.
const MOST_THREADS: usize = 16;

/// What was asked for, with what is to be written.
struct Request {
    kind: u16,
    handle: u64,
    at: u64,
    length: u32,
    data: Zeroizing<Vec<u8>>,
}

/// Serves `sink` to the client, until it has disconnected in due form. The first
/// failure of the sink comes back with the result: the client has been told, in
/// fewer words.
///
/// # Errors
/// When the client goes away, or does not keep to the protocol.
pub fn serve(stream: &UnixStream, sink: &Sink<'_>) -> io::Result<Option<io::Error>> {
    if !negotiate(stream, sink)? {
        return Err(io::Error::other("it has given up"));
    }
    let replies = Mutex::new(stream);
    let failed = Mutex::new(None);
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    let (send, receive) = sync_channel::<Request>(threads);
    let receive = Mutex::new(receive);
    let result = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| carry_out(&receive, sink, &replies, &failed));
        }
        // They end when nobody sends any more.
        let send = send;
        while let Some(request) = next(stream)? {
            if send.send(request).is_err() {
                return Err(io::Error::other("all threads have ended"));
            }
        }
        Ok(())
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    // The one is what the other comes from.
    match (result, failed) {
        (_, Some(error)) => Ok(Some(error)),
        (result, None) => result.map(|()| None),
    }
}

/// Lets the client choose the one disk that there is. False: it did not.
fn negotiate(mut stream: &UnixStream, sink: &Sink<'_>) -> io::Result<bool> {
    let mut hello = Vec::new();
    hello.extend(GREETING.to_be_bytes());
    hello.extend(HAVE_OPTION.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let client = u32::from_be_bytes(array(stream)?);
    let short = client & u32::from(NO_ZEROES) != 0;
    loop {
        if u64::from_be_bytes(array(stream)?) != HAVE_OPTION {
            return Err(broken("an option without its mark"));
        }
        let option = u32::from_be_bytes(array(stream)?);
        let length = u32::from_be_bytes(array(stream)?);
        if length > LONGEST_OPTION {
            return Err(broken("an endless option"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match option {
            OPTION_EXPORT_NAME => {
                let mut answer = Vec::new();
                answer.extend(sink.size.to_be_bytes());
                answer.extend(FLAGS.to_be_bytes());
                answer.extend(std::iter::repeat_n(0, if short { 0 } else { 124 }));
                stream.write_all(&answer)?;
                return Ok(true);
            }
            OPTION_GO | OPTION_INFO => {
                let mut export = Vec::new();
                export.extend(INFO_EXPORT.to_be_bytes());
                export.extend(sink.size.to_be_bytes());
                export.extend(FLAGS.to_be_bytes());
                answer(stream, option, REPLY_INFO, &export)?;
                let mut sizes = Vec::new();
                sizes.extend(INFO_BLOCK_SIZE.to_be_bytes());
                sizes.extend((sink.unit() as u32).to_be_bytes());
                sizes.extend((64u32 << 10).to_be_bytes());
                sizes.extend(MOST.to_be_bytes());
                answer(stream, option, REPLY_INFO, &sizes)?;
                answer(stream, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                answer(stream, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => answer(stream, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn answer(mut stream: &UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    bytes.extend(OPTION_REPLY.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

/// The next request. `None`: the client has disconnected.
fn next(mut stream: &UnixStream) -> io::Result<Option<Request>> {
    if u32::from_be_bytes(array(stream)?) != REQUEST {
        return Err(broken("a request without its mark"));
    }
    let _flags: [u8; 2] = array(stream)?;
    let kind = u16::from_be_bytes(array(stream)?);
    let handle = u64::from_be_bytes(array(stream)?);
    let at = u64::from_be_bytes(array(stream)?);
    let length = u32::from_be_bytes(array(stream)?);
    if kind == DISCONNECT {
        return Ok(None);
    }
    if kind == WRITE && length > MOST {
        // What follows could not be told from data.
        return Err(broken("more than can be written at once"));
    }
    let mut data = Zeroizing::new(vec![0; if kind == WRITE { length as usize } else { 0 }]);
    stream.read_exact(&mut data)?;
    Ok(Some(Request {
        kind,
        handle,
        at,
        length,
        data,
    }))
}

/// Does what comes, until nothing comes any more.
fn carry_out(
    requests: &Mutex<Receiver<Request>>,
    sink: &Sink<'_>,
    replies: &Mutex<&UnixStream>,
    failed: &Mutex<Option<io::Error>>,
) {
    loop {
        let request = {
            let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.recv()
        };
        let Ok(mut request) = request else { return };
        let (error, data) = match execute(&mut request, sink) {
            Ok(data) => (0, data),
            Err(error) => {
                let number = match error.kind() {
                    io::ErrorKind::InvalidInput => EINVAL,
                    io::ErrorKind::StorageFull => ENOSPC,
                    _ => EIO,
                };
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert(error);
                (number, Zeroizing::default())
            }
        };
        let mut head = Vec::with_capacity(16);
        head.extend(REPLY.to_be_bytes());
        head.extend(error.to_be_bytes());
        head.extend(request.handle.to_be_bytes());
        let mut stream = *replies.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever reads requests finds out as well that the client is gone.
        let _ = stream
            .write_all(&head)
            .and_then(|()| stream.write_all(&data));
    }
}

fn execute(request: &mut Request, sink: &Sink<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
    let length = u64::from(request.length);
    match request.kind {
        READ if request.length <= MOST => return sink.read(request.at, length),
        WRITE => sink.write(request.at, &mut request.data)?,
        WRITE_ZEROES => sink.zeroes(request.at, length)?,
        // All of it is synchronised before there is a header.
        FLUSH => {}
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(Zeroizing::default())
}

fn array<const N: usize>(mut stream: &UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clone::Progress;
    use crate::crypt::{Engine, Params, SectorCipher};
    use crate::secret::Dek;
    use crate::units::SectorSize;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    const SIZE: u64 = 8 << 20;
    const OFFSET: u64 = 4096;

    /// What a client sends, and what is stored and answered then.
    fn talk(options: &[u8], requests: &[u8]) -> (io::Result<Option<io::Error>>, Vec<u8>, Vec<u8>) {
        let params = Params {
            sector_size: SectorSize::B4096,
            iv_tweak: 0,
            zero_units: false,
        };
        let cipher =
            SectorCipher::new(Engine::Portable, &Dek::generate().unwrap(), params).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(OFFSET + SIZE).unwrap();
        let progress = Progress::default();
        let sink = Sink {
            file: &file,
            offset: OFFSET,
            size: SIZE,
            path: Path::new("a volume"),
            cipher: &cipher,
            is_empty: true,
            progress: &progress,
        };
        let (mut client, server) = UnixStream::pair().unwrap();
        let result = thread::scope(|scope| {
            let serving = scope.spawn(|| serve(&server, &sink));
            let mut hello = [0; 18];
            client.read_exact(&mut hello).unwrap();
            // The other side may be gone in the middle of it.
            let _ = client
                .write_all(options)
                .and_then(|()| client.write_all(requests));
            let _ = client.shutdown(std::net::Shutdown::Write);
            serving.join().unwrap()
        });
        drop(server);
        let mut answers = Vec::new();
        // Of what was not read nobody hears: then there is no answer to it.
        let _ = client.read_to_end(&mut answers);
        let mut stored = vec![0; SIZE as usize];
        file.read_exact_at(&mut stored, OFFSET).unwrap();
        cipher.decrypt_in_place(crate::units::Sector(0), &mut stored);
        (result, stored, answers)
    }

    fn option(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = HAVE_OPTION.to_be_bytes().to_vec();
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn go() -> Vec<u8> {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        // Structured replies, which there are none of.
        bytes.extend(option(8, &[]));
        bytes.extend(option(OPTION_GO, &[0; 6]));
        bytes
    }

    fn request(kind: u16, at: u64, length: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(at.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn what_is_written_is_stored_encrypted_and_can_be_read() {
        let data: Vec<u8> = (0..8192u32).map(|i| (i / 7) as u8).collect();
        let mut requests = request(WRITE, 4096, 8192, &data);
        requests.extend(request(WRITE_ZEROES, SIZE - 8192, 8192, &[]));
        requests.extend(request(FLUSH, 0, 0, &[]));
        requests.extend(request(DISCONNECT, 0, 0, &[]));
        let (result, stored, answers) = talk(&go(), &requests);
        assert!(result.unwrap().is_none());
        assert!(stored[4096..12288] == data);
        let end = SIZE as usize - 8192;
        assert!(stored[end..].iter().all(|&byte| byte == 0));
        // A hole of a volume without zero units is noise.
        assert!(stored[..4096].iter().any(|&byte| byte != 0));
        let replies = 3 * 16;
        for reply in answers[answers.len() - replies..].chunks(16) {
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_told() {
        for (kind, at, length) in [
            (WRITE, SIZE, 4096),
            (WRITE, 512, 4096),
            (WRITE, 0, 512),
            (WRITE, u64::MAX - 4095, 4096),
            (WRITE_ZEROES, SIZE - 4096, u32::MAX - 4095),
            (READ, SIZE, 4096),
            (READ, 0, u32::MAX),
            (4, 0, 4096),
        ] {
            let data = vec![1; if kind == WRITE { length as usize } else { 0 }];
            let mut requests = request(kind, at, length, &data);
            requests.extend(request(DISCONNECT, 0, 0, &[]));
            let (result, stored, answers) = talk(&go(), &requests);
            let told = result.unwrap().expect("the sink has refused it");
            assert_eq!(told.kind(), io::ErrorKind::InvalidInput);
            assert_eq!(answers[answers.len() - 12..][..4], EINVAL.to_be_bytes());
            assert!(!stored.windows(64).any(|part| part == [1; 64]));
        }
    }

    #[test]
    fn who_does_not_keep_to_the_protocol_is_left() {
        let whole = request(WRITE, 0, 4096, &[3; 4096]);
        let endless = request(WRITE, 0, MOST + 1, &[]);
        for (options, requests) in [
            (go(), whole[..20].to_vec()),
            (go(), whole[..2000].to_vec()),
            (go(), whole.clone()),
            (go(), endless),
            (go(), vec![0; 28]),
            (vec![0; 40], vec![]),
            (3u32.to_be_bytes().to_vec(), option(OPTION_ABORT, &[])),
        ] {
            let (result, ..) = talk(&options, &requests);
            assert!(result.is_err());
        }
        let mut options = 3u32.to_be_bytes().to_vec();
        options.extend(HAVE_OPTION.to_be_bytes());
        options.extend(OPTION_GO.to_be_bytes());
        options.extend(u32::MAX.to_be_bytes());
        assert!(talk(&options, &[]).0.is_err());
    }
}
