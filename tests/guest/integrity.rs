//! fio verifies all that it wrote: mixed sizes and depths, on two queues, with
//! flushes, zeroes and discards.

use crate::MIB;
use crate::machine::Guest;
use crate::server::{Volume, serve_with_sealblk};

const SIZE: u64 = 24 * MIB;

#[test]
fn fio_verifies_a_disk_that_passes_discards_on() {
    let volume = Volume::new(SIZE, 512)
        .create_with(&["--zero-units"])
        .serve_with(&["--queues", "2", "--discard", "pass"]);
    let results = verify(&volume, "1");
    assert!(results.contains("verified: after-discard"), "{results}");
}

#[test]
fn fio_verifies_a_disk_of_4096_byte_sectors_without_discards() {
    let volume = Volume::new(SIZE, 4096).serve_with(&["--queues", "2"]);
    let results = verify(&volume, "");
    assert!(results.contains("the disk offers no discard"), "{results}");
}

/// What the job said.
fn verify(volume: &Volume, discard_zeroes: &str) -> String {
    let server = serve_with_sealblk(volume);
    let results = Guest::new("fio-verify")
        .served_by(&server)
        .args(&["--queues", "2"])
        .env("SIZE_MIB", "6")
        .env("DISCARD_ZEROES", discard_zeroes)
        .succeed();
    let output = results.text("output");
    assert!(output.contains("2 queues"), "{output}");
    output
}
