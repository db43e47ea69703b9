//! A guest whose disk grows while it uses it.

use serde_json::{Value, json};

use crate::MIB;
use crate::machine::Guest;
use crate::manager::Manager;
use crate::server::{eventually, succeed};

const SIZE: u64 = 32 * MIB;
const LARGER: u64 = 48 * MIB + 512;

#[test]
fn a_guest_sees_its_disk_grow_while_it_verifies() {
    let manager = Manager::start(vec![]);
    let key = manager.path("test.key").display().to_string();
    manager.succeed(&["key", "init", &format!("--key-file={key}")]);
    let path = format!("key_file={key}");
    manager.succeed(&[
        "keyset",
        "create",
        "prod",
        "--provider",
        "file",
        "--set",
        &path,
    ]);
    let size = SIZE.to_string();
    manager.succeed(&[
        "volume",
        "create",
        "--key-set",
        "prod",
        "--size",
        &size,
        "disk.img",
    ]);
    succeed(&mut manager.attach());
    let mut guest = Guest::new("grows")
        .on(&manager.path("disk.sock"))
        .env("LARGER", &LARGER.to_string())
        .start();
    guest.wait_for_line("fio runs on");
    let before = manager.disk();
    assert_eq!(before["size_read"], json!(SIZE));
    let larger = LARGER.to_string();
    let resize = ["resize", "--json", &manager.name("vm"), &larger];
    let after: Value = serde_json::from_str(&manager.succeed(&resize)).unwrap();
    // QEMU has read it when the command returns.
    assert_eq!(after["size"], json!(LARGER));
    assert_eq!(after["size_read"], json!(LARGER));
    assert_eq!(after["pid"], before["pid"]);
    guest.succeed();
    eventually("QEMU has ended", || {
        (manager.disk()["front_end"] == json!(false)).then_some(())
    });
    manager.detach();
    manager.succeed(&["audit", "verify"]);
}
