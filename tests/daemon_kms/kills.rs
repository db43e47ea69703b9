//! A rotation of many volumes: what it costs, how long it takes, and a manager
//! that is killed in the middle of it, again and again.
//!
//! `scripts/measure-rotation` gives the figures of `docs/operations/rotation.md`:
//! a thousand volumes, and 50 kills.

use std::time::{Duration, Instant};

use sealblk::config::{Config, Overrides};
use sealblk::keys::{Access, Context};
use sealblk::volume::{Inspection, Location};
use serde_json::Value;

use super::lab::{Lab, Service};
use super::rotation::{DATA, Load, QUIET};
use super::support::daemon::{Daemon, command, configure};
use super::support::home::Home;

/// SplitMix64.
struct SplitMix(u64);

impl SplitMix {
    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// A daemon with so many volumes of key set `prod`, that it knows and that are
/// not attached; every eighth has its wrapped key in a key store.
fn many(volumes: u32) -> (Lab, Vec<String>) {
    let service = Service::new(1);
    let home = Home::new();
    let store = home.path("shared");
    std::fs::create_dir(&store).unwrap();
    std::fs::set_permissions(&store, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let key_sets = service.key_set("prod", &service.token_auth(), QUIET);
    let stores = format!("[key_stores.shared]\nkind = \"directory\"\npath = {store:?}\n");
    let rate = "rewrap_rate = 100000";
    configure(&home, rate, &(key_sets + &stores));
    let command = command(&home);
    let lab = Lab {
        daemon: Daemon::run(home, command),
        service,
    };
    let names: Vec<String> = (0..volumes).map(|n| format!("v{n}")).collect();
    lab.make(&names);
    for name in names.iter().step_by(8) {
        let moved = lab
            .daemon
            .sealblk(&["volume", "move-keys", name, "--to", "shared"])
            .output()
            .unwrap();
        assert!(moved.status.success(), "{moved:?}");
    }
    lab.note(&names);
    (lab, names)
}

/// Waits until no volume needs anything but `version`.
fn until_free(lab: &Lab, version: u32, volumes: u32) {
    let patience = Duration::from_secs(60) + Duration::from_millis(100) * volumes;
    let start = Instant::now();
    loop {
        let ledger = lab.ledger();
        let rotation = &ledger["rotation"];
        let there = rotation["key_version"] == version.to_string();
        let used = |is: &&Value| !is["volumes"].as_array().unwrap().is_empty();
        let needed: Vec<&Value> = ledger["versions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(used)
            .collect();
        if there && !rotation["finished"].is_null() {
            assert_eq!(needed.len(), 1, "{ledger}");
            return;
        }
        assert!(start.elapsed() < patience, "{rotation}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Opens each volume with what is on disk now, in a process that knows nothing
/// yet, and has its service open versions from `least` on alone.
fn all_open(lab: &Lab, names: &[String], least: u32) {
    lab.least_version(least);
    let config = Config::load(Some(&lab.path("sealblk.toml")), Overrides::default()).unwrap();
    let keys = config.key_sets();
    sealblk::runtime::block_on(async {
        for name in names {
            let location = Location {
                data: lab.path(name),
                header: None,
            };
            let inspection = Inspection::of(&location).unwrap();
            assert!(inspection.found().is_whole(), "{name}");
            let description = inspection.description().unwrap();
            let context = Context::local(Some(description.uuid));
            let binding = description.binding().bytes();
            let opened = keys.unwrap(&context, &description.token, &binding, Access::OwnKeySet);
            let opened = opened
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            inspection.verify_dek(&description, &opened.dek).unwrap();
            assert_eq!(opened.wraps.len(), 1);
            assert_eq!(opened.wraps[0].key_version, least.to_string(), "{name}");
        }
    })
    .unwrap();
}

#[test]
fn a_rotation_costs_one_wrap_for_any_number_of_volumes() {
    let volumes = number("SEALBLK_VOLUMES", 60);
    let (lab, names) = many(volumes);
    assert_eq!(lab.attach("v0").status, 201);
    let load = Load::on(&lab, "v0");
    lab.rotate_key();
    lab.asked();
    let start = Instant::now();
    lab.keyset(&["rotate", "prod", "--no-wait"]);
    until_free(&lab, 2, volumes);
    let took = start.elapsed();
    let (wraps, unwraps, reads) = lab.asked();
    assert_eq!((wraps, unwraps), (1, 1));
    let rounds = load.end();
    eprintln!(
        "{volumes} volumes: {wraps} wrap, {unwraps} unwrap that proves it, {reads} reads of the key; \
         version 1 is free after {took:.2?}; {rounds} writes and reads of a guest meanwhile"
    );
    all_open(&lab, &names, 2);
}

#[test]
fn a_rotation_that_is_killed_at_any_time_is_finished_by_the_next_manager() {
    let (volumes, kills) = (number("SEALBLK_VOLUMES", 40), number("SEALBLK_KILLS", 6));
    let seed = std::env::var("SEALBLK_SEED").map_or_else(
        |_| std::process::id().into(),
        |text| text.parse::<u64>().unwrap(),
    );
    eprintln!("SEALBLK_SEED={seed}");
    let mut random = SplitMix(seed);
    let (mut lab, names) = many(volumes);
    assert_eq!(lab.attach("v0").status, 201);
    lab.connect("v0").write(0, &DATA);
    let load = Load::on(&lab, "v0");

    // How long one takes.
    let mut version = 2;
    lab.rotate_key();
    let start = Instant::now();
    lab.keyset(&["rotate", "prod", "--no-wait"]);
    until_free(&lab, version, volumes);
    let whole = start.elapsed();

    let (mut killed, mut unfinished) = (0, 0);
    while killed < kills {
        version += 1;
        lab.rotate_key();
        let mut rotate = lab
            .daemon
            .sealblk(&["keyset", "rotate", "prod", "--no-wait"]);
        let rotate = rotate.stdout(std::process::Stdio::null());
        let mut rotate = rotate.stderr(std::process::Stdio::null()).spawn().unwrap();
        // Several times in the same one.
        for _ in 0..5.min(kills - killed) {
            std::thread::sleep(whole.mul_f64(0.6 * random.part()));
            lab.daemon.restart();
            killed += 1;
            unfinished += u32::from(lab.ledger()["rotation"]["finished"].is_null());
        }
        rotate.wait().unwrap();
        // If it was killed before it was told, nobody asks for an hour.
        lab.keyset(&["rotate", "prod", "--no-wait"]);
        until_free(&lab, version, volumes);
        all_open(&lab, &names, version);
    }
    eprintln!(
        "{volumes} volumes, {killed} kills in rotations of {whole:.2?}: {unfinished} times some \
         volumes had not followed; all open with the last version alone"
    );
    assert!(
        unfinished > 0 || kills < 20,
        "none was killed in the middle"
    );
    assert!(load.end() > 0);
    assert_eq!(lab.connect("v0").read(0, 4096), DATA);
}
