//! Disks in use: served by sealblk, written by a front end that knows nothing
//! of it, while they are verified.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::lab::{DISK, Lab, PROVED, SIZE, contents};
use super::support::front_end::{FrontEnd, Options};
use super::support::request::Range;
use super::volume_support::random;

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_disk_that_is_written_meanwhile_is_proved() {
    for (create, serve) in [
        (&[][..], &[][..]),
        (
            &["--sector-size", "4096", "--zero-units"][..],
            &["--discard", "pass"][..],
        ),
    ] {
        let lab = Lab::with_volume(create);
        let mut command = lab.sealblk(&["serve", DISK, "--socket", "disk.sock"]);
        command.args(serve);
        let server = lab.home.start("disk.sock", command);
        let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        let contents = contents(SIZE);
        const PIECE: usize = 64 << 10;
        for (index, piece) in contents.chunks(PIECE).enumerate() {
            guest.write((index * PIECE / 512) as u64, piece);
        }
        guest.flush();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            // Also when this fails: the scope waits for its threads.
            let ends = Ends(&ended);
            let writing = scope.spawn(|| {
                let mut round = 0_usize;
                while !ended.load(Ordering::Relaxed) {
                    let place = (round * 7919) % (SIZE / 4096);
                    let sector = (place * 8) as u64;
                    match round % 4 {
                        0 => guest.write(sector, &random(4096)),
                        1 if !serve.is_empty() => guest.discard(&[Range::new(sector, 8)]),
                        _ => guest.write(sector, &contents[place * 4096..][..4096]),
                    }
                    round += 1;
                }
                round
            });
            for arguments in [&["--full"][..], &["--sample", "2000"], &["--full"]] {
                let found = lab.verify(arguments).expect(PROVED, &[]);
                assert_eq!(found.report["disk"]["in_use"], true);
            }
            drop(ends);
            assert!(writing.join().unwrap() > 50, "it was in use");
        });
        // And the lock was not taken: it is served still.

        guest.flush();
        drop(guest);
    }
}
