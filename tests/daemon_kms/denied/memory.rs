//! The policy `detach`: no process has the key any more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::super::lab::{Lab, Service, connect};
use super::super::process_memory::{count, without_secret_memory};
use super::super::support::daemon::{Daemon, command, configure};
use super::super::support::home::{Home, refused};
use super::super::support::server::{eventually, succeed};
use super::{events, settings, wait_for_polls};

#[test]
fn a_withdrawn_disk_has_no_key_in_any_memory_and_comes_back() {
    for hierarchy in ["group", "direct"] {
        withdrawn(hierarchy);
    }
}

fn withdrawn(hierarchy: &str) {
    let service = Service::new(1);
    let more = format!("{}\nhierarchy = {hierarchy:?}", settings("detach"));
    let key_sets = service.key_set("prod", &service.token_auth(), &more);
    let home = Home::new();
    configure(&home, "", &key_sets);
    let mut daemon = command(&home);
    without_secret_memory(&mut daemon);
    let mut lab = Lab {
        daemon: Daemon::run(home, daemon),
        service,
    };
    lab.make(&["a"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dek");
    let mut export = lab.daemon.sealblk(&["volume", "export-dek", "a"]);
    export.args(["--i-understand-that-this-key-decrypts-the-disk", "--to"]);
    succeed(export.arg(&file));
    let dek = std::fs::read(&file).unwrap();
    assert_eq!(dek.len(), 64);
    // As the service gives it out, where it does.
    let encoded = BASE64.encode(&dek);
    let needles = [&dek[..32], &dek[32..], encoded.as_bytes()];
    let in_memory = |pid: u32| needles.map(|needle| count(pid, needle));

    assert_eq!(lab.attach("a").status, 201);
    let mut front = lab.connect("a");
    front.write(0, &[5; 4096]);
    front.flush();
    let worker = u32::try_from(lab.show("a")["pid"].as_u64().unwrap()).unwrap();
    let manager = lab.daemon.server.pid();
    // It may be there, and this finds it.
    for pid in [worker, manager] {
        let [data, tweak, _] = in_memory(pid);
        assert!(data > 0 && tweak > 0, "{hierarchy}: process {pid}");
    }

    lab.service.deny();
    let disk = lab.until("a", "denied");
    assert_eq!(disk["denial"]["on_denied"], "detach");
    assert!(disk["pid"].is_null(), "{disk}");
    assert!(!std::path::Path::new(&format!("/proc/{worker}")).exists());
    assert!(lab.daemon.workers().is_empty());
    assert_eq!(in_memory(manager), [0; 3], "{hierarchy}");
    // QEMU would find nobody there, and try again.
    assert!(!lab.socket("a").exists());
    wait_for_polls(&lab, 2);
    assert_eq!(lab.show("a")["state"], "denied");
    // Its volume is still its own.
    let serve = ["serve", "a", "--socket", "x.sock"];
    assert_eq!(refused(&mut lab.daemon.sealblk(&serve)).status, 5);

    // A manager that is started again finds it on record, and no key.
    lab.daemon.restart();
    let disk = lab.until("a", "denied");
    assert!(disk["last_error"]["help"].is_string(), "{disk}");
    lab.service.permit();
    lab.until("a", "running");
    drop(front);
    let mut front = connect(&lab.socket("a"));
    assert_eq!(front.read(0, 4096), [5; 4096]);
    let held = events(&lab, &["disk_held"]);
    assert_eq!(held.len(), 1);
    assert_eq!(held[0]["action"], "detach");

    // And once more, without a manager that ends in between.
    lab.service.deny();
    lab.until("a", "denied");
    lab.service.permit();
    lab.until("a", "running");
    eventually("its release is on record", || {
        (events(&lab, &["disk_released"]).len() == 1).then_some(())
    });
    assert_eq!(connect(&lab.socket("a")).read(0, 4096), [5; 4096]);
    assert_eq!(json!(lab.daemon.workers().len()), 1);
}
