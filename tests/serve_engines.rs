//! A volume may be served with another cipher engine each time: what one has
//! written, every other reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "crypt_case/mod.rs"]
#[allow(dead_code, reason = "only its generator is used")]
mod crypt_case;
mod support;

use crypt_case::SplitMix;
use sealblk::crypt::Engine;
use support::front_end::{FrontEnd, Options};
use support::home::{Home, SIZE};

/// What each engine writes, at a place of its own.
const BYTES: usize = 256 << 10;

fn pattern(index: usize) -> Vec<u8> {
    let mut data = vec![0; BYTES];
    SplitMix(index as u64 + 1).fill(&mut data);
    data
}

fn sector(index: usize) -> u64 {
    (index * BYTES / 512) as u64
}

#[test]
fn what_one_engine_writes_every_other_reads() {
    let engines = Engine::available();
    assert!(engines.len() * BYTES <= SIZE as usize);
    let home = Home::new();
    for sector_size in ["512", "4096"] {
        let volume = format!("{sector_size}.img");
        home.create(&volume, &["--sector-size", sector_size]);
        // Twice, so that the first ones read what the last ones wrote.
        for round in 0..2 {
            for (index, engine) in engines.iter().enumerate() {
                let arguments = ["--engine", engine.name(), &volume];
                let mut server = home.serve(&arguments);
                let mut disk = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
                let written = if round == 0 { index } else { engines.len() };
                for (other, who) in engines.iter().enumerate().take(written) {
                    let found = disk.read(sector(other), BYTES);
                    assert!(
                        found == pattern(other),
                        "{engine} reads otherwise what {who} wrote"
                    );
                }
                // In one piece, and in small ones.
                let data = pattern(index);
                let (large, small) = data.split_at(BYTES / 2);
                disk.write(sector(index), large);
                for (at, piece) in small.chunks(4096).enumerate() {
                    disk.write(
                        sector(index) + ((BYTES / 2 + at * 4096) / 512) as u64,
                        piece,
                    );
                }
                disk.flush();
                assert!(disk.read(sector(index), BYTES) == data);
                drop(disk);
                assert!(server.terminate().success());
            }
        }
    }
}

#[test]
#[cfg(not(any(feature = "aws-lc", feature = "fips")))]
fn a_build_without_aws_lc_says_how_to_get_it() {
    let home = Home::with_volume();
    let mut command = home.serve_command(&["--engine", "aws-lc", "disk.img"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("there is no cipher engine \"aws-lc\""),
        "{words}"
    );
    assert!(words.contains("--features aws-lc"), "{words}");
}
