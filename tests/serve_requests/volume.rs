//! What holds for sealblk's own disks only: they are encrypted, they outlive
//! the server, and space comes back when that was asked for.

use std::os::unix::fs::MetadataExt;

use super::support::request::{F_DISCARD, Range, Request, S_IOERR, S_OK, S_UNSUPP};
use super::support::server::{Volume, image_in, serve_command};
use super::{CAPACITY, Disk, Numbers};

#[test]
fn plaintext_never_stands_in_the_backing_file() {
    for disk in [Disk::sealblk_512(), Disk::sealblk_4096()] {
        let mut front_end = disk.connect();
        let pattern = b"THIS IS A SECRET OF THE GUEST.. ";
        let data = pattern.repeat(1 << 15);
        front_end.write(0, &data);
        front_end.write_zeroes(&[Range::new(4096, 64)]);
        front_end.flush();
        let stored = std::fs::read(image_in(disk.server.directory())).unwrap();
        assert!(stored.len() as u64 >= CAPACITY);
        // 16 bytes are one cipher block: no two of them are alike.
        let found = stored.windows(16).any(|window| window == &pattern[..16]);
        assert!(!found, "plaintext on disk");
        assert!(front_end.read(0, data.len()) == data);
    }
}

#[test]
fn data_survives_the_server() {
    for (sector_size, kill) in [(512, false), (4096, false), (512, true)] {
        let mut disk = Disk::sealblk(Volume::new(CAPACITY, sector_size));
        let data = Numbers::new(51).bytes(1 << 20);
        let mut front_end = disk.connect();
        let id = front_end.id();
        front_end.write(8, &data);
        front_end.flush();
        if kill {
            disk.server.kill();
        } else {
            let status = disk.server.terminate();
            assert!(status.success(), "{status}: {}", disk.server.messages());
        }
        drop(front_end);
        let command = serve_command(disk.server.directory(), &[]);
        disk.server.restart(command);
        let mut front_end = disk.connect();
        assert!(front_end.read(8, data.len()) == data);
        assert_eq!(front_end.id(), id);
    }
}

#[test]
fn discarded_space_comes_back_and_reads_as_zeroes() {
    let volume = Volume::new(CAPACITY, 512)
        .create_with(&["--zero-units"])
        .serve_with(&["--discard", "pass"]);
    let disk = Disk::sealblk(volume);
    let image = image_in(disk.server.directory());
    let blocks = || std::fs::metadata(&image).unwrap().blocks();
    let mut front_end = disk.connect();
    assert!(
        front_end.read(0, 4096) == [0; 4096],
        "never written: zeroes"
    );
    let mut expected = Numbers::new(52).bytes(4 << 20);
    front_end.write(0, &expected);
    front_end.flush();
    let full = blocks();

    // 1 MiB by DISCARD, 1 MiB by WRITE_ZEROES that may unmap.
    for at in [0u64, 4096] {
        let config = front_end.config().unwrap();
        let limit = config
            .max_discard_sectors
            .min(config.max_write_zeroes_sectors);
        let step = limit.min(2048);
        for sector in (at..at + 2048).step_by(step as usize) {
            let range = Range::new(sector, step);
            if at == 0 {
                front_end.discard(&[range]);
            } else {
                front_end.write_zeroes(&[range.unmap()]);
            }
        }
        expected[at as usize * 512..][..1 << 20].fill(0);
    }
    front_end.flush();
    assert!(front_end.read(0, expected.len()) == expected);
    // 512-byte blocks; not all of 2 MiB, since extents may be shared.
    assert!(blocks() + 3000 < full, "{} of {full} blocks left", blocks());
}

#[test]
fn discards_are_off_unless_asked_for() {
    let disk = Disk::sealblk(Volume::new(CAPACITY, 512));
    let mut front_end = disk.connect();
    let data = Numbers::new(53).bytes(1 << 20);
    front_end.write(0, &data);
    front_end.flush();
    let image = image_in(disk.server.directory());
    let before = std::fs::metadata(&image).unwrap().blocks();
    let offered = front_end.has(F_DISCARD);
    let outcome = front_end.run(0, Request::discard(&[Range::new(0, 2048)]));
    if offered {
        assert_eq!(outcome.status, S_OK);
    } else {
        assert!([S_UNSUPP, S_IOERR].contains(&outcome.status));
    }
    front_end.flush();
    assert!(
        front_end.read(0, data.len()) == data,
        "nothing was discarded"
    );
    assert_eq!(std::fs::metadata(&image).unwrap().blocks(), before);
}
