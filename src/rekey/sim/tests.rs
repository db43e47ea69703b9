//! What the simulator shows.

use std::sync::Mutex;
use std::time::Duration;

use super::case::Case;
use super::guest::Guest;
use super::machine::{Crash, Machine};
use super::random::Random;
use super::world::{Care, Order, Port, Ports, Survived, World, recovered};
use crate::rekey::rules::{Rule, Rules};
use crate::rekey::{Direction, Error, Kind, Mover, Options, Outcome, Pace, Position};

const START: Position = Position {
    direction: Direction::Forward,
    boundary: 0,
};

fn options() -> Options {
    Options {
        region_least: 4096,
        region_most: 8192,
        threads: 1,
        pace: Pace {
            bytes_per_second: None,
            latency: Some(Duration::from_micros(1)),
        },
    }
}

/// A disk in use, with the journal of an operation that has just begun.
fn begun(case: &Case, seed: u64) -> World {
    let mut machine = Machine::new(case.disks());
    let mut random = Random(seed);
    let guest = Guest::new(case, &mut machine.disks[case.data_disk()], &mut random);
    let shared = Mutex::new(machine);
    let port = super::machine::Port {
        machine: &shared,
        disk: 0,
    };
    case.journal(port).create().unwrap();
    let machine = shared.into_inner().unwrap();
    World::new(case, machine, guest, START, random.next())
}

/// Moves data until it is done, or cannot go on. True: it is done.
fn drive(world: World) -> (World, bool) {
    let case = world.case.clone();
    let position = Position {
        direction: world.gate.direction,
        boundary: world.gate.boundary,
    };
    let rules = world.rules;
    let world = Mutex::new(world);
    let port = |disk| Port {
        world: &world,
        disk,
    };
    let mut journal = case.journal(port(0));
    let read = journal.read();
    let done = read.is_ok() && {
        let mut mover = Mover::new(
            journal,
            port(case.data_disk()),
            Ports(&world),
            case.geometry,
            case.transforms.clone(),
            position,
            options(),
        )
        .unwrap();
        mover.data.rules = rules;
        world.lock().unwrap().handle = Some(mover.handle());
        loop {
            match mover.run() {
                Ok(Outcome::Done) => break true,
                Ok(Outcome::Rested | Outcome::Held) => mover.handle().go_on(),
                Err(Error::Io { .. }) if retry(&world) => {}
                Err(_) => break false,
            }
        }
    };
    (world.into_inner().unwrap(), done)
}

/// Whether it was a failure of a device, and not the power.
fn retry(world: &Mutex<World>) -> bool {
    let world = world.lock().unwrap();
    world.wrong.is_none() && !world.machine.blown
}

/// Everything is in its last state, and the guest's, also without any cache.
fn finished(world: &mut World, expected: Direction) -> Result<(), String> {
    let case = world.case.clone();
    let boundary = match expected {
        Direction::Forward => case.geometry.size(),
        Direction::Back => 0,
    };
    if let Some(why) = &world.wrong {
        return Err(why.clone());
    }
    let disk = &world.machine.disks[case.data_disk()];
    world.guest.judge(&case, disk, boundary, false)?;
    let state = world.machine.state(&case)?;
    if state.position.boundary != boundary || state.covered != 0 {
        return Err(format!("done, and recorded {state:?}"));
    }
    let mut machine = world.machine.clone();
    machine.crash(
        Crash::Power(super::disk::Kept::Nothing, super::disk::Kept::Nothing),
        &mut world.random,
    );
    let disk = &machine.disks[case.data_disk()];
    world.guest.judge(&case, disk, boundary, true).map(drop)
}

/// What is ordered meanwhile, by seed.
fn orders(seed: u64) -> (Vec<(u64, Order)>, Direction) {
    use Direction::{Back, Forward};
    match seed % 4 {
        0 => (vec![], Forward),
        1 => (
            vec![(9, Order::Rest), (20, Order::Hold), (31, Order::Hold)],
            Forward,
        ),
        2 => (vec![(23, Order::Turn(Back))], Back),
        _ => (
            vec![
                (14, Order::Turn(Back)),
                (25, Order::Turn(Forward)),
                (36, Order::Rest),
            ],
            Forward,
        ),
    }
}

/// One whole operation that is looked at closely everywhere.
fn examine(case: &Case, seed: u64, care: Care, broken: Option<Rule>) -> Result<u64, String> {
    let mut world = begun(case, seed);
    let (orders, direction) = orders(seed);
    (world.orders, world.care) = (orders, Some(care));
    world.rules = Rules { broken };
    let (mut world, done) = drive(world);
    if done {
        finished(&mut world, direction)?;
    }
    match world.wrong {
        None if done => Ok(world.crashes),
        None => Err("it did not go on".into()),
        Some(why) => Err(why),
    }
}

fn count(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |count| count.parse().unwrap())
}

/// The first seed of a campaign: another one each day that somebody asks for it.
fn first_seed() -> u64 {
    count("SEALBLK_REKEY_SEED", 1)
}

fn examine_all(kind: Kind) {
    let care = Care {
        random: 2,
        again: 2,
        every: false,
    };
    let mut crashes = 0;
    for case in Case::all().into_iter().filter(|case| case.kind == kind) {
        for seed in first_seed()..first_seed() + count("SEALBLK_REKEY_RUNS", 1) * 4 {
            match examine(&case, seed, care, None) {
                Ok(survived) => crashes += survived,
                Err(why) => panic!("{case:?}, seed {seed}: {why}"),
            }
        }
    }
    println!(
        "{kind:?}: {crashes} crashes survived, seeds from {}",
        first_seed()
    );
}

#[test]
fn a_rekey_survives_a_crash_at_every_write_and_sync() {
    examine_all(Kind::Rekey);
}

#[test]
fn encrypting_survives_a_crash_at_every_write_and_sync() {
    examine_all(Kind::Encrypt);
}

#[test]
fn decrypting_survives_a_crash_at_every_write_and_sync() {
    examine_all(Kind::Decrypt);
}

/// A whole operation that crashes again and again, and goes on each time.
fn campaign(case: &Case, seed: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let mut world = begun(case, random.next());
    for crashes in 0.. {
        let count = world.machine.count;
        // In the end it may finish.
        world.machine.fuse = (crashes < 12).then(|| random.below(18));
        if random.once_in(3) {
            world.error_at = Some(count + random.below(30));
        }
        if random.once_in(3) {
            let direction = match random.below(3) {
                0 => Direction::Back,
                _ => Direction::Forward,
            };
            world.orders = vec![(count + random.below(20), Order::Turn(direction))];
        }
        if random.once_in(3) {
            world
                .orders
                .push((count + 20 + random.below(9), Order::Hold));
        }
        let (mut left, done) = drive(world);
        if let Some(why) = left.wrong {
            return Err(why);
        }
        if done {
            // It may have been turned back where it began: nothing was closed then.
            let direction = match left.gate.boundary {
                0 => Direction::Back,
                _ => Direction::Forward,
            };
            finished(&mut left, direction)?;
            return Ok(crashes);
        }
        // After a failed sync, too, all that helps is a new process.
        let crash = Crash::any(&mut random);
        left.machine.crash(crash, &mut random);
        let fuses = (0..random.below(3)).map(|_| random.below(9)).collect();
        let Survived {
            mut machine,
            position,
            found,
            power_lost,
        } = recovered(
            case,
            &left.guest,
            Rules::default(),
            left.machine,
            crash != Crash::Kill,
            fuses,
            &mut random,
        )
        .map_err(|why| format!("crash {crashes}, {crash:?}: {why}"))?;
        let mut guest = left.guest;
        guest.forget_waiting();
        if power_lost {
            let disk = &mut machine.disks[case.data_disk()];
            guest.start_again(case, disk, position.boundary, found);
        }
        world = World::new(case, machine, guest, position, random.next());
    }
    Ok(0)
}

#[test]
fn an_operation_that_crashes_again_and_again_comes_to_its_end() {
    let (mut runs, mut crashes) = (0, 0);
    for seed in first_seed()..first_seed() + count("SEALBLK_REKEY_RUNS", 1) * 8 {
        for case in Case::all() {
            match campaign(&case, seed) {
                Ok(survived) => (runs, crashes) = (runs + 1, crashes + survived),
                Err(why) => panic!("{case:?}, seed {seed}: {why}"),
            }
        }
    }
    println!("{runs} operations came to their end over {crashes} crashes");
}

/// Recovery is cut off at each of its writes and syncs, after a crash at each of
/// the mover's.
#[test]
fn recovery_survives_a_crash_at_every_write_and_sync_of_its_own() {
    let care = Care {
        random: 0,
        again: 0,
        every: true,
    };
    let mut crashes = 0;
    for (index, case) in Case::all().iter().enumerate() {
        // The header here and there, in turn.
        if case.inline != (index / 2).is_multiple_of(2) {
            continue;
        }
        let seeds = count("SEALBLK_REKEY_RUNS", 1);
        for seed in first_seed()..first_seed() + seeds {
            match examine(case, seed * 4 + index as u64 % 4, care, None) {
                Ok(survived) => crashes += survived,
                Err(why) => panic!("{case:?}, seed {seed}: {why}"),
            }
        }
    }
    println!("{crashes} crashes survived, and some ten of each one's recovery");
}

/// The simulator finds what goes wrong when a rule is broken: each of them is needed.
#[test]
fn no_rule_can_be_left_out() {
    let care = Care {
        random: 3,
        again: 3,
        every: false,
    };
    for rule in [
        Rule::SyncFirst,
        Rule::CoverTwo,
        Rule::RecordFirst,
        Rule::RestFirst,
        Rule::RestTwice,
        Rule::SyncBeforeRest,
        Rule::RecordPlain,
        Rule::SecureFirst,
        Rule::ZeroesStay,
    ] {
        let mut tries = 0;
        let found = (1..40).find_map(|seed| {
            Case::all().iter().find_map(|case| {
                tries += 1;
                let why = examine(case, seed, care, Some(rule)).err()?;
                Some(format!("{case:?}, seed {seed}: {why}"))
            })
        });
        let found = found.unwrap_or_else(|| panic!("{rule:?} was broken, and nothing was found"));
        println!("{rule:?} broken: found after {tries} operations: {found}");
    }
}
