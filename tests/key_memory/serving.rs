//! `sealblk serve`, with each engine that this CPU has.

use sealblk::crypt::Engine;

use super::key_needles::Needles;
use super::key_search::{mappings, outside, search};
use super::process_memory::{wait_until_idle, without_secret_memory};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::Home;
use super::support::server::{key_file, succeed};
use super::threads::{Ending, search as search_registers};

/// The key of a volume, as its owner can get it.
pub fn export(home: &Home, volume: &str) -> Vec<u8> {
    let file = home.path(&format!("{volume}.dek"));
    let mut export = home.sealblk(&["volume", "export-dek", volume]);
    export.args(["--i-understand-that-this-key-decrypts-the-disk", "--to"]);
    succeed(export.arg(&file));
    let dek = std::fs::read(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    dek
}

/// The platform key, whose file has its bytes in base64.
pub fn platform_key(home: &Home) -> Vec<u8> {
    use base64::Engine as _;
    let text = std::fs::read_to_string(key_file(home.directory())).unwrap();
    let found = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c)))
        .filter(|word| word.len() == 44)
        .find_map(|word| base64::engine::general_purpose::STANDARD.decode(word).ok());
    found.unwrap_or_else(|| panic!("no key in {text}"))
}

pub fn use_disk(front: &mut FrontEnd) {
    for round in 0..16 {
        let data = vec![round; 8192];
        front.write(u64::from(round) * 64, &data);
        assert_eq!(front.read(u64::from(round) * 64, 8192), data);
    }
    front.flush();
}

#[test]
fn a_server_has_keys_in_secret_memory_alone_and_none_in_a_register() {
    for (engine, sector_size) in Engine::available()
        .into_iter()
        .zip(["512", "4096"].into_iter().cycle())
    {
        served(engine, sector_size);
    }
}

fn served(engine: Engine, sector_size: &str) {
    let home = Home::new();
    home.create("disk.img", &["--sector-size", sector_size]);
    let dek = export(&home, "disk.img");
    let needles = Needles::new()
        .dek("the DEK", &dek)
        .aes("the platform key", &platform_key(&home))
        .bytes("the platform key", &platform_key(&home));
    let mut command = home.serve_command(&["--engine", engine.name(), "disk.img"]);
    without_secret_memory(&mut command);
    let mut server = home.start("disk.sock", command);
    let mut front = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    use_disk(&mut front);
    let pid = server.pid();
    wait_until_idle(pid);

    let hits = search(pid, &needles);
    assert!(outside(&hits).is_empty(), "{engine}: {:?}", outside(&hits));
    // The schedules are there, and this finds them.
    for half in ["data half, round key 7", "tweak half, round key 14"] {
        let there = hits.iter().any(|hit| hit.what.contains(half));
        assert!(there, "{engine}: {half} of {hits:?}");
    }
    let platform = hits.iter().find(|hit| hit.what.contains("platform"));
    assert!(platform.is_none(), "{engine}: {platform:?}");
    assert!(
        mappings(pid)
            .iter()
            .all(|mapping| !mapping.secret || mapping.swapped == 0)
    );

    let registers = search_registers(pid, &needles);
    assert!(registers.is_empty(), "{engine}: {registers:#?}");
    // In the middle of its work as well, between requests.
    use_disk(&mut front);
    let registers = search_registers(pid, &needles);
    assert!(registers.is_empty(), "{engine}: {registers:#?}");

    drop(front);
    let ending = Ending::of(pid);
    server.signal(rustix::process::Signal::TERM);
    let hits = ending.look(|pid| search(pid, &needles));
    assert!(hits.is_empty(), "{engine}, when it ends: {hits:?}");
    assert!(server.wait().success());
}

#[test]
fn what_the_kernel_hides_has_the_key_and_nothing_else_does() {
    if sealblk::secret::try_memfd_secret().is_err() {
        eprintln!("this kernel has no memfd_secret(2)");
        return;
    }
    let home = Home::with_volume();
    let needles = Needles::new().dek("the DEK", &export(&home, "disk.img"));
    let server = home.serve(&["disk.img"]);
    let mut front = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    use_disk(&mut front);
    wait_until_idle(server.pid());
    let hits = search(server.pid(), &needles);
    assert!(hits.is_empty(), "{hits:?}");
    let hidden: Vec<_> = mappings(server.pid())
        .into_iter()
        .filter(|mapping| mapping.unreadable)
        .collect();
    assert!(!hidden.is_empty());
    for mapping in hidden {
        // In no dump, not in swap, not given to children; and not even root reads it.
        assert!(mapping.secret, "{}", mapping.line());
        mapping.assert_hidden(server.pid());
    }
}
