//! Telling the service manager that disks are served, and that they will not be.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;

/// A connection to the service manager, made before the process is shut in: it
/// cannot be made afterwards.
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Connects to where the service manager wants to be told. Without one there
    /// is nobody to tell.
    pub fn connect() -> Self {
        let connected = std::env::var_os("NOTIFY_SOCKET").map(|place| open(&place));
        let connected = connected.transpose().unwrap_or_else(|error| {
            tracing::debug!(%error, "the service manager cannot be told anything");
            None
        });
        Notifier(connected)
    }

    /// Tells it.
    pub fn tell(&self, state: NotifyState<'_>) {
        if let Some(socket) = &self.0 {
            // It does without, as where there is none.
            let _ = socket.send(format!("{state}\n").as_bytes());
        }
    }
}

fn open(place: &OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match place.as_bytes().split_first() {
        // A name that is no file.
        Some((b'@', name)) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(place)?,
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_names_are_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("sealblk-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, place) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            Notifier(Some(open(&place).unwrap())).tell(NotifyState::Ready);
            let mut text = [0; 32];
            let length = listener.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"READY=1\n");
        }
    }
}
