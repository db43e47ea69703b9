//! A guest whose disk gets one key after the other while fio writes and verifies.

use serde_json::Value;

use crate::MIB;
use crate::machine::Guest;
use crate::manager::Manager;
use crate::server::{eventually, succeed};

const SIZE: u64 = 32 * MIB;

#[test]
fn a_guest_verifies_all_it_wrote_while_its_disk_gets_other_keys() {
    let mut manager = Manager::start(vec![]);
    let key = manager.path("test.key").display().to_string();
    manager.succeed(&["key", "init", &format!("--key-file={key}")]);
    let file = format!("key_file={key}");
    let create = ["keyset", "create", "prod", "--provider", "file", "--set"];
    manager.succeed(&[&create[..], &[&file]].concat());
    let size = SIZE.to_string();
    let volume = ["volume", "create", "--key-set", "prod", "--size", &size];
    let more = ["--header-area", "256K", "--zero-units", "disk.img"];
    manager.succeed(&[&volume[..], &more].concat());
    succeed(&mut manager.attach());
    let guest = Guest::new("fio-verify")
        .on(&manager.path("disk.sock"))
        .env("SIZE_MIB", "2");
    let guest = std::thread::spawn(move || guest.succeed());
    let name = manager.name("vm");
    let begin = ["rekey", &name, "--start", "--latency", "100ms"];
    let mut done = 0;
    while !guest.is_finished() {
        manager.succeed(&begin);
        match done % 3 {
            // Half way there, and back.
            1 => {
                eventually("something was moved", || {
                    let rekey = &manager.disk()["rekey"];
                    let some = rekey["boundary"].as_u64().is_none_or(|at| at > 0);
                    some.then_some(())
                });
                // It may have come to its end just now.
                let _ = manager.sealblk(&["rekey", &name, "--back"]).output();
            }
            2 => manager.kill_and_restart(),
            _ => {}
        }
        eventually("it is done", || {
            (manager.disk()["rekey"] == Value::Null).then_some(())
        });
        done += 1;
    }
    guest.join().unwrap();
    println!("{done} times while the guest ran");
    assert!(done >= 3, "only {done} times while the guest ran");
    eventually("QEMU has ended", || {
        (manager.disk()["front_end"] == Value::Bool(false)).then_some(())
    });
    manager.detach();
    manager.succeed(&["volume", "info", "disk.img"]);
    manager.succeed(&["audit", "verify"]);
}
