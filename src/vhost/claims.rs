//! What a session asks whoever knows whether this host has the volume.
#![forbid(unsafe_code)]

use std::io;

/// Knows whether this host has the volume of a disk, and can take it and let it go.
pub trait Claims: Send + Sync {
    /// A ring is about to start. From here on it may read and write.
    ///
    /// # Errors
    /// When somebody else has the volume, or it is not the one any more that this
    /// was made for. No ring starts then.
    fn claim(&self) -> io::Result<()>;

    /// The front end, which is moving its guest to another host, has stopped all
    /// rings: nothing is in flight. When it is answered, it starts the guest there.
    fn let_go(&self);

    /// A front end begins to move its guest to another host, or has ended that, one
    /// way or another.
    fn moving(&self, on: bool);
}

/// The claims of a disk that cannot move.
pub struct Settled;

impl Claims for Settled {
    fn claim(&self) -> io::Result<()> {
        Ok(())
    }

    fn let_go(&self) {}

    fn moving(&self, _on: bool) {}
}
