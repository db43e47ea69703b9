//! The descriptors of a packet, each with what it is for.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The data file of the volume, which holds its lock.
    Data,
    /// Its detached header, which holds a lock as well.
    Header,
    /// The data file once more, for one queue. One after the other.
    Queue,
    /// The socket at which front ends are accepted.
    FrontEnds,
    /// The socket at which managers are accepted.
    Managers,
    /// The memory that I/O is counted in.
    Statistics,
    /// A byte that says whether an fdatasync has failed.
    Memo,
    /// The data encryption key, to be received once.
    Dek,
    /// The process itself.
    Process,
    /// The key that data is moved away from, to be received once.
    OldDek,
    /// The data file once more, for the thread that moves data.
    Mover,
    /// The file of the header, for the journal.
    Journal,
    /// The memo once more, in an open file description of the worker's own: the lock
    /// on it tells who serves the disk.
    Turn,
    /// The connection between the worker that serves and the one that is to go on.
    Peer,
    /// What belongs to a session with a front end, in the order in which that says.
    Session,
    /// What is written down of who has the volume, in a description of the worker's
    /// own.
    Tenure,
    /// What ends a worker that was told to succeed another: see `worker::cord`.
    Cord,
    /// Something of a later version. It is closed.
    #[serde(other)]
    Unknown,
}

/// Descriptors and what they are for.
#[derive(Debug, Default)]
pub struct Parcel(Vec<(Role, OwnedFd)>);

impl Parcel {
    /// What came with a message that names these roles.
    ///
    /// # Errors
    /// When there are more or fewer descriptors than roles.
    pub fn of(roles: &[Role], fds: Vec<OwnedFd>) -> io::Result<Self> {
        if roles.len() != fds.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} descriptors came for {} roles", fds.len(), roles.len()),
            ));
        }
        let known = roles.iter().copied().zip(fds);
        Ok(Parcel(
            known.filter(|(role, _)| *role != Role::Unknown).collect(),
        ))
    }

    /// One more.
    pub fn add(&mut self, role: Role, fd: impl Into<OwnedFd>) {
        self.0.push((role, fd.into()));
    }

    /// A copy of a descriptor that is also needed here.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn share(&mut self, role: Role, fd: impl AsFd) -> io::Result<()> {
        self.add(role, fd.as_fd().try_clone_to_owned()?);
        Ok(())
    }

    /// The first one of this role.
    pub fn take(&mut self, role: Role) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(is, _)| *is == role)?;
        Some(self.0.remove(at).1)
    }

    /// A copy of the first one of this role, which stays.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn copy(&self, role: Role) -> io::Result<Option<OwnedFd>> {
        let found = self.0.iter().find(|(is, _)| *is == role);
        found.map(|(_, fd)| fd.try_clone()).transpose()
    }

    /// The first one of this role, which has to be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn need(&mut self, role: Role) -> io::Result<OwnedFd> {
        self.take(role).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message came without the descriptor {role:?}"),
            )
        })
    }

    /// All of this role, in their order.
    pub fn take_all(&mut self, role: Role) -> Vec<OwnedFd> {
        std::iter::from_fn(|| self.take(role)).collect()
    }

    /// All of them, each with what it is for.
    pub fn into_parts(self) -> Vec<(Role, OwnedFd)> {
        self.0
    }

    /// What they are for.
    pub fn roles(&self) -> Vec<Role> {
        self.0.iter().map(|(role, _)| *role).collect()
    }

    /// The descriptors.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_found_by_what_they_are_for() {
        let fd = || OwnedFd::from(tempfile::tempfile().unwrap());
        let roles = [Role::Queue, Role::Data, Role::Unknown, Role::Queue];
        assert!(Parcel::of(&roles, vec![fd()]).is_err());
        let mut parcel = Parcel::of(&roles, (0..4).map(|_| fd()).collect()).unwrap();
        assert_eq!(parcel.roles(), [Role::Queue, Role::Data, Role::Queue]);
        assert_eq!(parcel.take_all(Role::Queue).len(), 2);
        assert!(parcel.need(Role::Data).is_ok());
        let error = parcel.need(Role::Data).unwrap_err();
        assert!(error.to_string().contains("Data"), "{error}");
    }
}
