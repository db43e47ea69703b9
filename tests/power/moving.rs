//! A disk gets another key while its guest writes, and the power fails: its header
//! opens, the operation goes on from there, and each sector has what was flushed
//! last, or something later.

use crate::events::Event;
use crate::guest::{Guest, Habits};
use crate::headers::{IMAGE, open, plain};
use crate::lab::{Lab, Manager, count, seed};
use crate::platter::SECTOR;
use crate::platters::{Loss, Platters};
use crate::random::Random;
use sealblk::volume::Access;

const SIZE: u64 = 4 << 20;
/// In front of the data.
const AREA: u64 = 64 << 10;

fn run(seed: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let lab = Lab::new(random.next());
    let size = SIZE.to_string();
    let create = ["volume", "create", IMAGE, "--size", &size];
    lab.ok(&[&create[..], &["--header-area", "64K", "--zero-units"]].concat());
    let manager = Manager::start(&lab);
    let name = manager.name.clone();
    let attach = ["attach", IMAGE, "--socket", "guest.sock", "--name", &name];
    lab.ok(&[&attach[..], &["--discard", "pass"]].concat());
    lab.recorder.shuffle(true);
    let habits = Habits {
        queues: 2,
        unit: 1,
        discards: true,
        flush: 12,
        write_through: false,
        without: 0,
    };
    let sectors = SIZE / SECTOR as u64;
    let socket = lab.home.path("guest.sock");
    let guest_random = Random(random.next());
    let guest = Guest::start(&socket, sectors, habits, lab.recorder.log(), guest_random);
    let begun = lab.recorder.log().now();
    let limit = ["1M", "4M", "32M"][random.below(3) as usize];
    lab.ok(&["rekey", &name, "--start", "--limit", limit]);
    let history = guest.run(400);
    lab.recorder.shuffle(false);
    drop(manager);

    let events = lab.recorder.log().events();
    // Half of them where the journal or the header was just written.
    let is_journal =
        |at: &usize| matches!(&events[*at], Event::Write { offset, .. } if *offset < AREA);
    let journal: Vec<usize> = (begun..events.len()).filter(is_journal).collect();
    assert!(!journal.is_empty(), "nothing was moved");
    let any = |random: &mut Random, number: u64| match number % 2 {
        0 => begun + random.below((events.len() - begun) as u64 + 1) as usize,
        _ => journal[random.below(journal.len() as u64) as usize] + 1 + random.below(8) as usize,
    };
    let mut cuts: Vec<usize> = (0..16 * count(1))
        .map(|number| any(&mut random, number).min(events.len()))
        .collect();
    cuts.sort_unstable();
    let mut platters = Platters::after(&events, begun);
    let (mut images, mut under_way) = (0, 0);
    for cut in cuts {
        platters.advance(&events, cut);
        let floors = history.floors(cut);
        for _ in 0..2 {
            let loss = Loss::any(&mut random, 1);
            let left = lab.another(&platters.lose_power(loss, &mut random));
            let judge = || -> Result<bool, String> {
                let mut now = open(&left, None, Access::ReadOnly)?;
                let is_under_way = now.token.rekey.is_some();
                if is_under_way {
                    left.run(&["volume", "rekey", IMAGE])?;
                    now = open(&left, None, Access::ReadOnly)?;
                }
                for (sector, bytes) in plain(&left, &now).chunks(SECTOR).enumerate() {
                    history.judge(sector, bytes, floors[sector])?;
                }
                Ok(is_under_way)
            };
            match judge() {
                Ok(is_under_way) => under_way += u64::from(is_under_way),
                Err(why) => {
                    panic!("cut off after {cut} events, {loss:?}, SEALBLK_SEED={seed}: {why}")
                }
            }
            images += 1;
        }
    }
    (images, under_way)
}

#[test]
fn a_guest_s_disk_gets_another_key_wherever_the_power_failed() {
    let first = seed("a rekey under a guest");
    let (mut images, mut under_way) = (0, 0);
    for round in 0..count(1) {
        let seen = run(first + round);
        images += seen.0;
        under_way += seen.1;
    }
    println!("a rekey under a guest: {images} images, {under_way} of them on the way");
    assert!(under_way > 0, "none was on its way: {images}");
}
