//! The descriptors by which a ring is signalled: eventfds, as a rule.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;

use rustix::fs::OFlags;

/// Refuses what can signal nothing: a file or a device is readable all the time,
/// and would keep a queue thread awake, or is written to with every signal.
///
/// # Errors
/// When it is one of these.
pub fn check(file: &File) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    let what = if kind.is_file() || kind.is_dir() {
        "a file"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        return Ok(());
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a ring is to be signalled by {what}, and not by an eventfd"),
    ))
}

/// A descriptor that is signalled never keeps a queue thread waiting, whatever
/// the front end does with it. The flag is one of the open file, which is the
/// front end's too; QEMU's eventfds have it from the start.
///
/// # Errors
/// As [`check`], and when the kernel refuses.
pub fn unblock(file: &File) -> io::Result<()> {
    check(file)?;
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_can_signal_is_taken_and_never_waited_for() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        for fd in [reader, writer, OwnedFd::from(socket), event] {
            let file = File::from(fd);
            check(&file).unwrap();
            unblock(&file).unwrap();
            let flags = rustix::fs::fcntl_getfl(&file).unwrap();
            assert!(flags.contains(OFlags::NONBLOCK));
        }
    }

    #[test]
    fn files_and_devices_are_refused() {
        let memory = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC);
        for file in [
            tempfile::tempfile().unwrap(),
            File::open("/").unwrap(),
            File::open("/dev/zero").unwrap(),
            File::from(memory.unwrap()),
        ] {
            let refused = check(&file).unwrap_err().to_string();
            assert!(refused.contains("eventfd"), "{refused}");
            assert!(unblock(&file).is_err());
        }
    }
}
