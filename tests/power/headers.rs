//! The commands that write headers, journals and key stores: wherever the power
//! fails, what is left of a volume opens, or the same command ends what it began;
//! and what a command has said is done is done for good.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::config::{Config, Overrides};
use sealblk::crypt::{Engine, Params, SectorCipher};
use sealblk::keys::{Actor, Context};
use sealblk::prepare::{self, Opening};
use sealblk::units::Sector;
use sealblk::volume::{Access, Layout, Location, Token, Volume};
use sha2::{Digest as _, Sha256};

use crate::lab::{Lab, Left, count, cryptsetup_opens, seed};
use crate::platter::Kept;
use crate::platters::{Image, Loss, Platters};
use crate::random::Random;

pub const IMAGE: &str = "disk/disk.img";
const CREATE: [&str; 7] = [
    "volume",
    "create",
    IMAGE,
    "--size",
    "256K",
    "--header-area",
    "64K",
];

/// What is known of a volume that opens.
pub struct Opened {
    pub dek: Vec<u8>,
    pub token: Token,
    pub layout: Layout,
}

/// Opens a volume as whoever serves it does.
pub fn open(left: &Left, header: Option<&str>, access: Access) -> Result<Opened, String> {
    let location = Location {
        data: left.path(IMAGE),
        header: header.map(|header| left.path(header)),
    };
    let said = |error: &dyn std::error::Error| sealblk::error::chain(error);
    let volume = Volume::open(&location, access).map_err(|error| said(&error))?;
    let overrides = Overrides {
        key_file: Some(left.path("platform.key")),
        ..Overrides::default()
    };
    let config = Config::load(Some(&left.path("sealblk.toml")), overrides).unwrap();
    let context = Context::new(Actor::this_process("test"), None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let (keys, opening) = (config.key_sets(), Opening::default());
    let unwrapping = prepare::unwrap(&keys, &context, &volume, &opening);
    let opened = runtime.unwrap().block_on(unwrapping);
    let dek = opened.map_err(|error| said(&error))?.dek;
    volume.verify_dek(&dek).map_err(|error| said(&error))?;
    Ok(Opened {
        dek: dek.bytes().to_vec(),
        token: volume.token().clone(),
        layout: volume.layout(),
    })
}

/// The disk as a guest would read it.
pub fn plain(left: &Left, opened: &Opened) -> Vec<u8> {
    let Layout {
        sector_size,
        iv_tweak,
        zero_units,
        ..
    } = opened.layout;
    let params = Params {
        sector_size,
        iv_tweak,
        zero_units,
    };
    let dek = crate::lab::dek(&opened.dek);
    let cipher = SectorCipher::new(Engine::Portable, &dek, params).unwrap();
    let mut data = std::fs::read(left.path(IMAGE)).unwrap();
    let mut data = data.split_off(opened.layout.data_offset as usize);
    data.truncate(opened.layout.size as usize);
    cipher.decrypt_in_place(Sector(0), &mut data);
    data
}

/// A host, and what was tried on it.
pub struct Campaign {
    pub lab: Lab,
    random: Random,
    seed: u64,
    known: HashSet<[u8; 32]>,
    cuts: u64,
    images: u64,
    judged: u64,
}

pub type Verdict = Result<(), String>;

impl Campaign {
    fn new(what: &str, round: u64) -> Campaign {
        let seed = seed(what) + round;
        Campaign::on(Lab::new(seed), seed)
    }

    pub fn on(lab: Lab, seed: u64) -> Campaign {
        Campaign {
            lab,
            random: Random(seed),
            seed,
            known: HashSet::new(),
            cuts: 0,
            images: 0,
            judged: 0,
        }
    }

    /// Runs a command, and cuts the power at so many of the times of it, and when
    /// it has said that it is done. The judge is told which of both.
    fn command(&mut self, arguments: &[&str], most: u64, judge: impl Fn(&Left, bool) -> Verdict) {
        let from = self.lab.recorder.log().now();
        self.lab.ok(arguments);
        let to = self.lab.recorder.log().now();
        let what = arguments[..2].join(" ");
        self.cut(&what, from..to, most, |left, at| judge(left, at == to));
    }

    /// Cuts the power at so many of those times, and at the last of them.
    pub fn cut(
        &mut self,
        what: &str,
        times: Range<usize>,
        most: u64,
        judge: impl Fn(&Left, usize) -> Verdict,
    ) {
        let events = self.lab.recorder.log().events();
        let mut platters = Platters::after(&events, times.start);
        let all = (times.end - times.start) as u64;
        // Not all of them, when there are many: one of each part.
        let chosen: HashSet<usize> = if all > most {
            (0..most)
                .map(|part| {
                    let (from, to) = (part * all / most, (part + 1) * all / most);
                    times.start + (from + self.random.below(to - from)) as usize
                })
                .collect()
        } else {
            times.clone().collect()
        };
        for at in times.start..=times.end {
            platters.advance(&events, at);
            let done = at == times.end;
            if !done && !chosen.contains(&at) {
                continue;
            }
            self.cuts += 1;
            let tries = if done { 12 } else { 4 } * count(1);
            for _ in 0..tries {
                let block = if self.random.once_in(2) { 1 } else { 8 };
                let loss = Loss::any(&mut self.random, block);
                let image = platters.lose_power(loss, &mut self.random);
                self.images += 1;
                if !self.known.insert(digest(&image, at == times.end)) {
                    continue;
                }
                self.judged += 1;
                if let Err(why) = judge(&self.lab.another(&image), at) {
                    panic!(
                        "{what}, cut off after {} of {all} events, {loss:?}, SEALBLK_SEED={}: {why}",
                        at - times.start,
                        self.seed
                    );
                }
            }
        }
    }

    pub fn report(&self, what: &str) {
        println!(
            "{what}: {} cuts, {} images, {} of them judged",
            self.cuts, self.images, self.judged
        );
        assert!(self.judged > 5, "{}", self.judged);
    }

    /// The volume as it is, with the power on.
    fn now(&self) -> Left {
        self.lab.another(&self.image())
    }

    /// The files as they are, with the power on.
    pub fn image(&self) -> Image {
        let log = self.lab.recorder.log();
        let loss = Loss {
            data: Kept::Everything,
            names: Kept::Everything,
            block: 1,
        };
        Platters::after(&log.events(), log.now()).lose_power(loss, &mut Random(0))
    }

    /// Fills the disk with something, durably.
    fn fill(&mut self, offset: u64) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let path = self.lab.home.path(IMAGE);
        let len = path.metadata().unwrap().len() - offset;
        let bytes: Vec<u8> = (0..len).map(|_| self.random.next() as u8).collect();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&bytes, offset).unwrap();
        file.sync_all().unwrap();
        bytes
    }
}

fn digest(image: &Image, done: bool) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update([u8::from(done)]);
    for (path, (bytes, _)) in &image.files {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    for bytes in &image.free {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.finalize().into()
}

pub fn check(right: bool, why: impl Into<String>) -> Verdict {
    if right { Ok(()) } else { Err(why.into()) }
}

/// Whether one of these stands anywhere in the files of a host, and where.
fn find(place: &Path, needles: &[Vec<u8>]) -> Option<String> {
    for entry in std::fs::read_dir(place).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, needles) {
                return Some(found);
            }
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let has = |needle: &Vec<u8>| bytes.windows(needle.len()).any(|window| window == needle);
        if needles.iter().any(has) {
            return Some(path.display().to_string());
        }
    }
    None
}

/// The command that says which volume it is.
fn uuid_of(header: Option<&'static str>) -> Vec<&'static str> {
    let named = header.into_iter().flat_map(|at| ["--header", at]);
    ["volume", "info", "--json", IMAGE]
        .into_iter()
        .chain(named)
        .collect()
}

/// What is looked for where wraps shall not be any more: they are in base64.
fn needles(token: &Token) -> Vec<Vec<u8>> {
    let texts = token.wraps.iter().map(|wrap| BASE64.encode(&wrap.bytes));
    texts.map(|text| text.as_bytes()[..40].to_vec()).collect()
}

#[test]
fn a_volume_is_made_or_is_none() {
    for round in 0..count(1) {
        for more in [&[][..], &["--header", "disk/header"], &["--zero-units"]] {
            let mut campaign = Campaign::new("making volumes", round);
            let header = more.iter().find(|word| **word == "disk/header").copied();
            let arguments = [&CREATE[..], more].concat();
            campaign.command(&arguments, 400, |left, done| {
                match open(left, header, Access::ReadOnly) {
                    Ok(opened) => {
                        let at = left.path(header.unwrap_or(IMAGE));
                        if done {
                            cryptsetup_opens(&std::fs::read(at).unwrap(), &opened.dek);
                        }
                        Ok(())
                    }
                    Err(why) if done => Err(why),
                    // The header is there, and the name of the data is not.
                    Err(_) if !left.path(IMAGE).exists() => Ok(()),
                    // There is no header yet, in no copy.
                    Err(_) => {
                        let found = find(&left.path("disk"), &[b"LUKS\xba\xbe".to_vec()]);
                        check(found.is_none(), format!("half a header in {found:?}"))
                    }
                }
            });
            campaign.report("making volumes");
        }
    }
}

#[test]
fn a_volume_opens_wherever_moving_its_keys_is_cut_off() {
    for round in 0..count(1) {
        let mut campaign = Campaign::new("moving keys", round);
        campaign.lab.ok(&CREATE);
        let opened = open(&campaign.now(), None, Access::ReadOnly).unwrap();
        let wraps = needles(&opened.token);
        for to in ["shared", "other", "header", "shared", "header"] {
            let arguments = ["volume", "move-keys", IMAGE, "--to", to];
            campaign.command(&arguments, 60, |left, done| {
                let now = open(left, None, Access::ReadOnly)?;
                check(now.dek == opened.dek, "another key")?;
                if !done {
                    return Ok(());
                }
                let is_at = now.token.key_store.as_deref().unwrap_or("header");
                check(is_at == to, format!("the keys are in {is_at}"))?;
                let kept = ["shared", "other", "disk.img"];
                let found = find(&left.path("free"), &wraps);
                check(found.is_none(), format!("wraps are left in {found:?}"))?;
                for place in kept.iter().filter(|place| **place != to) {
                    let place = left.path("disk").join(place);
                    let place = if place.is_dir() { place } else { continue };
                    let found = find(&place, &wraps);
                    check(found.is_none(), format!("wraps are still in {found:?}"))?;
                }
                let image = std::fs::read(left.path(IMAGE)).unwrap();
                let in_header = wraps
                    .iter()
                    .any(|wrap| image.windows(wrap.len()).any(|part| part == wrap));
                check(in_header == (to == "header"), "wraps in the header")
            });
        }
        campaign.report("moving keys");
    }
}

#[test]
fn a_volume_has_the_old_or_the_new_size() {
    for round in 0..count(1) {
        let mut campaign = Campaign::new("resizing", round);
        campaign.lab.ok(&CREATE);
        let opened = open(&campaign.now(), None, Access::ReadOnly).unwrap();
        for (from, to, more) in [
            (256u64 << 10, 512u64 << 10, &[][..]),
            (512 << 10, 1 << 20, &["--preallocate"]),
            (1 << 20, 300 << 10, &["--shrink"]),
        ] {
            let size = to.to_string();
            let arguments = [&["volume", "resize", IMAGE, &size][..], more].concat();
            campaign.command(&arguments, 60, |left, done| {
                let now = open(left, None, Access::ReadOnly)?;
                check(now.dek == opened.dek, "another key")?;
                let sizes = if done { vec![to] } else { vec![from, to] };
                check(
                    sizes.contains(&now.layout.size),
                    format!("{:?}", now.layout),
                )?;
                let len = left.path(IMAGE).metadata().unwrap().len();
                let end = now.layout.data_offset + now.layout.size;
                check(
                    len >= end,
                    format!("{len} bytes, and the header says {end}"),
                )
            });
        }
        campaign.report("resizing");
    }
}

#[test]
fn a_backup_is_there_and_comes_back() {
    for round in 0..count(1) {
        let mut campaign = Campaign::new("backups", round);
        campaign.lab.ok(&CREATE);
        let opened = open(&campaign.now(), None, Access::ReadOnly).unwrap();
        let backup = ["volume", "backup-header", IMAGE, "--to", "disk/backup"];
        campaign.command(&backup, 60, |left, done| {
            check(
                open(left, None, Access::ReadOnly)?.dek == opened.dek,
                "another key",
            )?;
            match open(left, Some("disk/backup"), Access::ReadOnly) {
                Err(why) if done => Err(why),
                _ => Ok(()),
            }
        });
        // The header is lost, and comes back.
        use std::os::unix::fs::FileExt;
        let path = campaign.lab.home.path(IMAGE);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&vec![0xff; 32 << 10], 0).unwrap();
        file.sync_all().unwrap();
        let restore = [
            "volume",
            "restore-header",
            IMAGE,
            "--from",
            "disk/backup",
            "--force",
        ];
        campaign.command(&restore, 60, |left, done| {
            if !done {
                left.run(&restore)?;
            }
            check(
                open(left, None, Access::ReadWrite)?.dek == opened.dek,
                "another key",
            )
        });
        campaign.report("backups");
    }
}

#[test]
fn what_was_erased_does_not_come_back() {
    for round in 0..count(1) {
        for (more, header) in [
            (&["--discard"][..], None),
            (&[], Some("disk/header")),
            (&[], None),
        ] {
            let mut campaign = Campaign::new("erasing", round);
            let mut create = CREATE.to_vec();
            create.extend(header.iter().flat_map(|header| ["--header", header]));
            campaign.lab.ok(&create);
            let named: Vec<&str> = header.iter().flat_map(|at| ["--header", at]).collect();
            let opened = open(&campaign.now(), header, Access::ReadOnly).unwrap();
            let wraps = needles(&opened.token);
            // So that some are in a key store, too, where an older header left them.
            for to in ["shared", "header"] {
                campaign
                    .lab
                    .ok(&[&["volume", "move-keys", IMAGE, "--to", to], &named[..]].concat());
            }
            let erase = [&["volume", "erase", IMAGE, "--yes"][..], more, &named].concat();
            campaign.command(&erase, 60, |left, done| {
                if !done {
                    match open(left, header, Access::ReadOnly) {
                        Ok(now) => return check(now.dek == opened.dek, "another key"),
                        Err(_) => left.run(&erase)?,
                    };
                }
                for place in ["disk", "free"] {
                    let found = find(&left.path(place), &wraps);
                    check(found.is_none(), format!("a wrap is still in {found:?}"))?;
                }
                check(open(left, header, Access::ReadOnly).is_err(), "it opens")
            });
            campaign.report("erasing");
        }
    }
}

#[test]
fn a_rekey_goes_on_wherever_the_power_failed() {
    for round in 0..count(1) {
        let mut campaign = Campaign::new("a rekey", round);
        campaign.lab.ok(&CREATE);
        campaign.fill(64 << 10);
        let now = campaign.now();
        let opened = open(&now, None, Access::ReadOnly).unwrap();
        let data = plain(&now, &opened);
        let rekey = ["volume", "rekey", IMAGE];
        campaign.command(&rekey, 12, |left, done| {
            let now = open(left, None, Access::ReadOnly)?;
            if now.token.rekey.is_some() {
                check(!done, "it is not done")?;
                left.run(&rekey)?;
            }
            let now = open(left, None, Access::ReadOnly)?;
            check(!done || now.dek != opened.dek, "it has the old key")?;
            check(plain(left, &now) == data, "the data is another one")
        });
        campaign.report("a rekey");
    }
}

#[test]
fn a_disk_becomes_encrypted_and_plain_wherever_the_power_failed() {
    for round in 0..count(1) {
        for header in [Some("disk/header"), None] {
            let mut campaign = Campaign::new("encrypting and decrypting", round);
            let path = campaign.lab.home.path(IMAGE);
            std::fs::write(&path, vec![0; 256 << 10]).unwrap();
            let data = campaign.fill(0);
            std::fs::File::open(path.parent().unwrap())
                .unwrap()
                .sync_all()
                .unwrap();
            let mut encrypt = vec!["volume", "encrypt", IMAGE, "--header-area", "64K"];
            match header {
                Some(header) => encrypt.extend(["--header", header]),
                None => encrypt.extend(["--state", "disk/journal"]),
            }
            campaign.command(&encrypt, 10, |left, done| {
                let is_done = || {
                    open(left, header, Access::ReadOnly).is_ok_and(|now| now.token.rekey.is_none())
                };
                if !is_done() {
                    check(!done, "it is not done")?;
                    left.run(&encrypt)?;
                }
                let now = open(left, header, Access::ReadOnly)?;
                check(plain(left, &now) == data, "the data is another one")
            });
            let now = open(&campaign.now(), header, Access::ReadOnly).unwrap();
            let uuid = campaign.lab.ok(&uuid_of(header));
            let uuid = uuid
                .split('"')
                .skip_while(|word| *word != "uuid")
                .nth(2)
                .unwrap();
            assert!(now.token.rekey.is_none());
            let mut decrypt = vec!["volume", "decrypt", IMAGE, "--confirm", uuid];
            match header {
                Some(header) => decrypt.extend(["--header", header]),
                None => decrypt.extend(["--state", "disk/journal"]),
            }
            campaign.command(&decrypt, 10, |left, done| {
                let is_plain = || {
                    let image = std::fs::read(left.path(IMAGE)).unwrap();
                    image == data
                };
                if !is_plain() {
                    check(!done, "it is not plain")?;
                    left.run(&decrypt)?;
                }
                check(is_plain(), "the data is another one")
            });
            campaign.report("encrypting and decrypting");
        }
    }
}
