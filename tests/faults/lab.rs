//! A disk that is served by this process, on one that fails.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use sealblk::engine::trouble::OnError;

use super::support::faulty_disk::FaultyDisk;
use super::support::in_process::{BYTES, OFFSET, Served};
use super::support::registers::Registers;
use super::support::server::eventually;

/// How much of the disk is used: little, so that requests meet.
pub const USED: u64 = 2 << 20;

pub struct Lab {
    pub served: Served,
    pub disk: FaultyDisk,
}

impl Lab {
    pub fn new(on_error: OnError) -> Lab {
        Lab::with(on_error, Duration::from_secs(30))
    }

    /// One that says after that time that something is stuck.
    pub fn with(on_error: OnError, stuck_after: Duration) -> Lab {
        Lab::on(FaultyDisk::mount, on_error, stuck_after)
    }

    /// One on which writes can be short.
    pub fn sequential(on_error: OnError) -> Lab {
        Lab::on(
            FaultyDisk::mount_sequential,
            on_error,
            Duration::from_secs(30),
        )
    }

    fn on(
        mount: fn(&Path, &Path, u64) -> FaultyDisk,
        on_error: OnError,
        stuck_after: Duration,
    ) -> Lab {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let below = directory.path().join("disk");
        File::create_new(&below)
            .unwrap()
            .set_len(OFFSET + BYTES)
            .unwrap();
        let disk = mount(&below, &directory.path().join("fuse"), 1);
        let file = File::options().read(true).write(true).open(disk.file());
        let served = Served::over(directory, &file.unwrap(), (on_error, stuck_after));
        Lab { served, disk }
    }

    /// A load on a part of the disk.
    pub fn load(&self, seed: u64) -> Registers {
        let mut load = Registers::new(USED, 2, true, seed);
        load.connect(&self.served.path("socket")).unwrap();
        load
    }

    pub fn await_stopped(&self) {
        eventually("the disk is stopped", || {
            let standing = self.served.disk.trouble().standing();
            standing.filter(|standing| standing.stopped).map(|_| ())
        });
    }

    pub fn await_going(&self) {
        eventually("the disk goes on", || {
            self.served
                .disk
                .trouble()
                .standing()
                .is_none()
                .then_some(())
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Else the disk would wait for it to end.
        self.disk.heal();
    }
}
