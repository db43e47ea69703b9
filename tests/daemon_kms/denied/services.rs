//! What counts as denied, at each kind of service that can be had here.

use std::process::Command;

use sealblk::kms::kmip::Mode;
use serde_json::json;

use super::super::lab::{Lab, Service, server};
use super::super::openbao::OpenBao;
use super::super::pykmip::PyKmip;
use super::super::support::server::{eventually, succeed};
use super::{Load, lab, settings_within, wait_for_polls};

/// What disks need decides, and not what the key set would wrap with.
#[test]
fn a_disabled_version_denies_the_disks_that_need_it() {
    let lab = lab("pause");
    lab.make(&["old"]);
    let key = format!("{}/keys/disks", lab.service.name);
    server().post(&format!("{key}/rotate"), json!({}));
    // Group keys of its own, wrapped by the new version.
    std::fs::remove_dir_all(lab.path("state/groups")).unwrap();
    lab.make(&["new"]);
    // A volume that is only read does not follow its key.
    succeed(&mut lab.attach_command("old", &["--read-only"]));
    assert_eq!(lab.attach("new").status, 201);
    assert_eq!(lab.show("old")["key_version"], "1");
    assert_eq!(lab.show("new")["key_version"], "2");
    let load = Load::start(lab.connect("new"));
    let least = |version: u32| {
        let body = json!({ "min_decryption_version": version });
        server().post(&format!("{key}/config"), body);
    };
    least(2);
    let disk = lab.until("old", "paused");
    let help = disk["last_error"]["help"].as_str().unwrap();
    assert!(help.contains("min_decryption_version"), "{help}");
    wait_for_polls(&lab, 2);
    let new = lab.show("new");
    assert_eq!(new["state"], "running", "{new}");
    assert!(new["denial"].is_null(), "{new}");
    load.wait_for(50);
    least(1);
    lab.until("old", "running");
    load.finish();
}

#[test]
fn a_deleted_key_says_how_it_is_restored() {
    let lab = lab("pause");
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    load.wait_for(20);
    let key = format!("{}/keys/disks", lab.service.name);
    server().delete(&format!("{key}/soft-delete"));
    let disk = lab.until("a", "paused");
    let help = disk["denial"]["problem"]["help"].as_str().unwrap();
    assert!(help.contains("soft-delete-restore"), "{help}");
    let name = lab.disk("a");
    let shown = succeed(&mut lab.daemon.sealblk(&["show", &name]));
    assert!(shown.contains("soft-delete-restore"), "{shown}");
    server().post(&format!("{key}/soft-delete-restore"), json!({}));
    // Whoever says that it works again need not wait for the poll.
    succeed(&mut lab.daemon.sealblk(&["keyset", "check", "prod"]));
    lab.until("a", "running");
    load.finish();
}

#[test]
fn a_sealed_service_denies_nothing() {
    let bao = OpenBao::start();
    bao.mount("transit");
    bao.post("transit/keys/disks", json!({}));
    bao.permit("host", "transit", "disks");
    let token = bao.write("token", &bao.token("host"));
    let key_set = format!(
        "[key_sets.prod]\nprovider = \"vault\"\nkey = \"disks\"\nendpoints = [{:?}]\n\
         auth = {{ method = \"token\", token = {token:?} }}\n{}\n",
        bao.url(),
        settings_within("detach", "2s"),
    );
    let lab = Lab::with(Service::new(0), &key_set);
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    bao.seal();
    let unreachable = ["key_set=\"prod\"", "state=\"unreachable\""];
    eventually("it is noticed", || {
        (lab.metric("sealblk_key_set_state", &unreachable) == 1.0).then_some(())
    });
    wait_for_polls(&lab, 3);
    let disk = lab.show("a");
    assert_eq!(disk["state"], "running", "{disk}");
    assert!(disk["denial"].is_null(), "{disk}");
    load.wait_for(50);
    load.finish();
}

#[test]
fn a_key_that_is_revoked_at_a_kmip_server_pauses_disks() {
    let kmip = PyKmip::start();
    let key = sealblk::runtime::block_on(kmip.client(Mode::Get).create_key("disks"));
    let key = key.unwrap().unwrap();
    let path = |name: &str| kmip.path(name);
    let key_set = format!(
        "[key_sets.prod]\nprovider = \"kmip\"\nkey_name = \"disks\"\n\
         endpoints = [\"127.0.0.1:{}\"]\nca_file = {:?}\nclient_cert = {:?}\nclient_key = {:?}\n\
         poll = \"1s\"\ndenied_grace = \"1s\"\non_denied = \"pause\"\ntimeout = \"20s\"\n",
        kmip.port,
        path("ca.pem"),
        path("host.pem"),
        path("host.key"),
    );
    let lab = Lab::with(Service::new(0), &key_set);
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let load = Load::start(lab.connect("a"));
    load.wait_for(20);
    kmip.revoke(&key, false);
    let disk = lab.until("a", "paused");
    let help = disk["last_error"]["help"].as_str().unwrap();
    assert!(help.contains("activated again"), "{help}");
    kmip.set_state(&key, 2);
    lab.until("a", "running");
    load.wait_for(20);
    load.finish();
}

#[test]
fn the_platform_key_can_be_disabled_and_lost() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("platform.key");
    let key = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.arg("key").args(arguments).arg("--key-file");
        succeed(command.arg(&file))
    };
    key(&["init"]);
    let key_set = |on_denied: &str| {
        format!(
            "[key_sets.prod]\nprovider = \"file\"\nkey_file = {file:?}\npoll = \"1s\"\n\
             denied_grace = \"1s\"\non_denied = {on_denied:?}\n"
        )
    };
    let lab = Lab::with(Service::new(0), &key_set("fail"));
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let mut front = lab.connect("a");
    front.write(0, &[3; 4096]);
    let version = lab.show("a")["key_version"].as_str().unwrap().to_owned();
    key(&["disable", &version]);
    let disk = lab.until("a", "failing");
    let help = disk["last_error"]["help"].as_str().unwrap();
    assert!(help.contains("enable it: sealblk key enable"), "{help}");
    key(&["enable", &version]);
    lab.until("a", "running");
    assert_eq!(front.read(0, 4096), [3; 4096]);

    // Another policy holds as soon as it is read, for what is denied already.
    key(&["disable", &version]);
    lab.until("a", "failing");
    let config = lab.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let set = |on_denied: &str| {
        std::fs::write(&config, text.replace("\"fail\"", &format!("{on_denied:?}"))).unwrap();
        succeed(&mut lab.daemon.sealblk(&["reload"]));
    };
    set("continue");
    lab.until("a", "running");
    assert_eq!(front.read(0, 4096), [3; 4096]);
    key(&["enable", &version]);
    eventually("it is over", || {
        lab.show("a")["denial"].is_null().then_some(())
    });

    // A key that is gone may be gone for good: then nobody could bring back
    // what is wiped.
    set("detach");
    let hidden = keys.path().join("hidden");
    std::fs::rename(&file, &hidden).unwrap();
    let disk = lab.until("a", "paused");
    assert_eq!(disk["denial"]["on_denied"], "detach");
    std::fs::rename(&hidden, &file).unwrap();
    lab.until("a", "running");
    assert_eq!(front.read(0, 4096), [3; 4096]);
}
