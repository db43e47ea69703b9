//! Wrapped keys in a KV engine of a real OpenBao: check-and-set, destroying,
//! permissions one by one, and all that can be in the place of the engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/faulty_proxy.rs"]
#[allow(dead_code)]
mod faulty_proxy;
mod key_store_support;
#[path = "support/openbao.rs"]
#[allow(dead_code)]
mod openbao;
mod support;

use std::fs;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use faulty_proxy::{Fault, Proxy};
use key_store_support::{Host, VOLUME};
use openbao::OpenBao;
use sealblk::key_store::{Definition, Entry, Failed, KeyStore, KeyStores, VaultKv};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::vault::{Auth, Settings};
use sealblk::kms::{Class, Denied, tls};
use sealblk::runtime::block_on;
use sealblk::volume::{Bound, Wrap};
use serde_json::{Value, json};
use support::home::{Guard, refused};
use support::server::{eventually, succeed};
use uuid::Uuid;

/// One server for all tests that leave it as it is. It has a KV engine of
/// version 2 at `secret`, as every such server has.
fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start)
}

fn wait<F: Future>(future: F) -> F::Output {
    block_on(future).unwrap()
}

fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The policy of the documentation for hosts that move and make keys, or a
/// part of it.
fn policy(folder: &str, capabilities: [&str; 3]) -> String {
    let [data, metadata, list] = capabilities;
    format!(
        r#"path "secret/data/{folder}/*" {{ capabilities = [{data}] }}
        path "secret/metadata/{folder}/*" {{ capabilities = [{metadata}] }}
        path "secret/metadata/{folder}" {{ capabilities = [{list}] }}"#
    )
}

const MOVER: [&str; 3] = [r#""create", "read", "update""#, r#""delete""#, ""];

/// A host with a key store `bao` in a folder of its own.
struct Lab {
    host: Host,
    folder: String,
    token: String,
}

impl Lab {
    fn new() -> Lab {
        Lab::at(server(), "")
    }

    fn at(server: &OpenBao, more: &str) -> Lab {
        let folder = unique("disks");
        let text = policy(&folder, MOVER);
        server.post(
            &format!("sys/policies/acl/{folder}"),
            json!({"policy": text}),
        );
        let token = server.token(&folder);
        let file = server.write(&format!("{folder}.token"), &token);
        let host = Host::with(&format!(
            "[key_stores.bao]\nkind = \"vault-kv\"\nendpoints = [{:?}]\npath = {folder:?}\n\
             timeout = \"5s\"\ndeadline = \"5s\"\n\
             auth = {{ method = \"token\", token = {file:?} }}\n{more}",
            server.url()
        ));
        host.create(&[]);
        Lab {
            host,
            folder,
            token,
        }
    }

    /// Replaces what is permitted.
    fn permit(&self, capabilities: [&str; 3]) {
        let text = policy(&self.folder, capabilities);
        let path = format!("sys/policies/acl/{}", self.folder);
        server().post(&path, json!({"policy": text}));
    }

    fn path(&self, what: &str) -> String {
        let uuid = self.host.description().uuid;
        format!("secret/{what}/{}/{uuid}", self.folder)
    }

    /// The line of the configuration that names the folder.
    fn folder_line(&self) -> String {
        format!("path = {:?}", self.folder)
    }

    fn edit_config(&self, from: &str, to: &str) {
        let path = self.host.home.path("sealblk.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replace(from, to)).unwrap();
    }
}

#[test]
fn keys_are_moved_out_and_in_again_and_no_version_of_them_stays() {
    let lab = Lab::new();
    let host = &lab.host;
    let (dek, wraps) = (host.dek(), host.description().token.wraps);
    host.move_keys("bao");
    host.assert_no_trace(&wraps);
    assert_eq!(host.dek(), dek);
    let secret = server().get(&lab.path("data"))["data"].clone();
    let uuid = host.description().uuid;
    assert_eq!(secret["data"]["volume"], json!(uuid));
    assert_eq!(secret["metadata"]["version"], 1);
    let info = host.info();
    let place = info["key_store"]["place"].as_str().unwrap();
    assert!(
        place.starts_with(&format!("secret/{}/{uuid} at http://", lab.folder)),
        "{place}"
    );

    host.move_keys("shared");
    assert_eq!(server().status(&lab.path("metadata")), 404);
    host.move_keys("bao");
    assert_eq!(host.names("shared"), [] as [&str; 0]);
    host.move_keys("header");
    assert_eq!(server().status(&lab.path("metadata")), 404);
    assert_eq!(host.description().token.wraps, wraps);
    assert_eq!(host.dek(), dek);
    // The service's own id of the request is on record, for its own log.
    let writes = host.audit("key_store_write");
    let of_bao: Vec<&Value> = writes
        .iter()
        .filter(|line| line["kind"] == "vault-kv")
        .collect();
    assert!(of_bao[0]["request_id"].is_string(), "{of_bao:?}");
    assert_eq!(of_bao[0]["endpoints"][0]["endpoint"], server().url());
}

#[test]
fn what_the_policy_leaves_out_is_told_and_nothing_is_lost() {
    let lab = Lab::new();
    let host = &lab.host;
    let wraps = host.description().token.wraps;
    lab.permit([r#""read""#, r#""delete""#, ""]);
    host.move_refused("bao").expect(
        8,
        &["key store \"bao\"", "does not permit secret/data/"],
        "docs/key-stores.md",
    );
    assert_eq!(host.description().token.wraps, wraps);
    host.dek();
    lab.permit([r#""create""#, r#""delete""#, ""]);
    host.move_refused("bao")
        .expect(8, &["does not permit"], "docs/key-stores.md");
    assert_eq!(host.description().token.wraps, wraps);
    // Nothing at all is permitted below the mount.
    let empty = format!("sys/policies/acl/{}", lab.folder);
    server().post(
        &empty,
        json!({"policy": "path \"sys/none\" { capabilities = [\"read\"] }"}),
    );
    host.move_refused("bao").expect(
        8,
        &["permits this identity nothing at secret"],
        "docs/key-stores.md",
    );

    lab.permit(MOVER);
    host.move_keys("bao");
    // A host that attaches needs to read, and nothing else.
    lab.permit([r#""read""#, "", ""]);
    host.dek();
    lab.permit([r#""create", "update""#, r#""delete""#, ""]);
    host.opening_refused()
        .expect(8, &["does not permit secret/data/"], "docs/key-stores.md");

    lab.permit([r#""read""#, "", ""]);
    host.move_refused("header").expect(
        8,
        &[
            "in the header of the volume now, and a copy of them is still in key store \"bao\"",
            "does not permit secret/metadata/",
        ],
        "repeat the command",
    );
    let token = host.description().token;
    assert_eq!(
        (&token.wraps, token.copy_in.as_deref()),
        (&wraps, Some("bao"))
    );
    let shown = succeed(&mut host.sealblk(&["volume", "info", VOLUME]));
    assert!(
        shown.contains("unfinished     key store \"bao\" may have a copy"),
        "{shown}"
    );
    host.dek();
    lab.permit(MOVER);
    let told = host.move_keys("header");
    assert!(told.contains("destroyed a copy"), "{told}");
    assert_eq!(server().status(&lab.path("metadata")), 404);
    assert_eq!(host.description().token.copy_in, None);
}

#[test]
fn what_is_not_a_kv_engine_of_version_2_is_not_written_to() {
    let lab = Lab::new();
    let host = &lab.host;
    let wraps = host.description().token.wraps;
    let (old, transit) = (unique("kv"), unique("transit"));
    server().post(
        &format!("sys/mounts/{old}"),
        json!({"type": "kv", "options": {"version": "1"}}),
    );
    server().mount(&transit);
    let all = format!(
        "path \"{old}/*\" {{ capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"] }}\n\
         path \"{transit}/*\" {{ capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\"] }}"
    );
    server().post(
        &format!("sys/policies/acl/{}", lab.folder),
        json!({"policy": all}),
    );
    let mut mount = lab.folder_line();
    let mut at = |name: &str| {
        let line = format!("mount = {name:?}\n{}", lab.folder_line());
        lab.edit_config(&mount, &line);
        mount = line;
    };
    at(&old);
    host.move_refused("bao").expect(
        2,
        &[&old, "KV engine of version 1"],
        "bao kv enable-versioning",
    );
    assert_eq!(
        server().status(&format!("{old}/data/{}?list=true", lab.folder)),
        404
    );
    at(&transit);
    host.move_refused("bao")
        .expect(2, &[&transit, "type \"transit\""], "version 2");
    at("nowhere");
    host.move_refused("bao").expect(
        8,
        &["permits this identity nothing at nowhere, or nothing is mounted"],
        "check mount",
    );
    assert_eq!(host.description().token.wraps, wraps);
    // The same is told where an entry is looked for.
    at("secret");
    lab.permit(MOVER);
    host.move_keys("bao");
    server().post(
        &format!("sys/policies/acl/{}", lab.folder),
        json!({"policy": all}),
    );
    at(&old);
    host.opening_refused()
        .expect(2, &["KV engine of version 1"], "");
}

#[test]
fn an_entry_that_was_deleted_can_be_brought_back() {
    let lab = Lab::new();
    let host = &lab.host;
    host.move_keys("bao");
    server().delete(&lab.path("data"));
    host.opening_refused().expect(
        8,
        &["was deleted at", "can be restored"],
        "bao kv undelete -mount=secret -versions=1",
    );
    server().post(&lab.path("undelete"), json!({"versions": [1]}));
    host.dek();
    server().post(&lab.path("destroy"), json!({"versions": [1]}));
    host.opening_refused()
        .expect(8, &["was destroyed"], "backup");
    server().delete(&lab.path("metadata"));
    let place = lab.path("data").replace("secret/data/", "secret/");
    host.opening_refused()
        .expect(3, &["has no entry", &place], "restore the entry");
}

#[test]
fn a_sealed_or_absent_service_is_told_as_a_key_service_is() {
    let mut bao = OpenBao::start();
    let lab = Lab::at(&bao, "");
    let host = &lab.host;
    host.move_keys("bao");
    bao.seal();
    host.opening_refused()
        .expect(9, &["key store \"bao\"", "is sealed"], "unseal");
    host.move_refused("header")
        .expect(9, &["is sealed"], "unseal");
    bao.kill();
    host.opening_refused()
        .expect(9, &["key store \"bao\"", "refuses the connection"], "");
    // What does not need it still works.
    assert_eq!(host.info()["key_store"]["name"], "bao");
    succeed(&mut host.sealblk(&["volume", "verify-header", VOLUME]));
}

#[test]
fn a_namespace_is_where_the_entries_are() {
    let bao = OpenBao::start();
    bao.post("sys/namespaces/team", json!({}));
    bao.post(
        "team/sys/mounts/secret",
        json!({"type": "kv", "options": {"version": "2"}}),
    );
    let lab = Lab::at(&bao, "");
    let text = policy(&lab.folder, MOVER);
    bao.post("team/sys/policies/acl/disks", json!({"policy": text}));
    let answer = bao.post(
        "team/auth/token/create-orphan",
        json!({"policies": ["disks"], "ttl": "1h"}),
    );
    let token = answer["auth"]["client_token"].as_str().unwrap();
    bao.write(&format!("{}.token", lab.folder), token);
    let line = lab.folder_line();
    lab.edit_config(&line, &format!("namespace = \"team\"\n{line}"));
    lab.host.move_keys("bao");
    lab.host.dek();
    assert_eq!(bao.status(&format!("team/{}", lab.path("data"))), 200);
    assert_eq!(bao.status(&lab.path("data")), 404);
    lab.edit_config("\"team\"", "\"nobody\"");
    let refusal = lab.host.opening_refused();
    assert!(matches!(refusal.status, 3 | 8), "{refusal:?}");
}

#[test]
fn a_move_that_is_killed_at_any_time_is_finished_by_repeating_it() {
    let lab = Lab::new();
    let host = &lab.host;
    let dek = host.dek();
    let mut cut = 0;
    for round in 0..16u32 {
        let to = ["bao", "header"][round as usize % 2];
        let mut command = host.move_command(to);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut mover = Guard(command.spawn().unwrap());
        let mut random = [0; 1];
        getrandom::fill(&mut random).unwrap();
        std::thread::sleep(Duration::from_micros(400 * u64::from(random[0])));
        let _ = mover.0.kill();
        let status = eventually("it has ended", || mover.0.try_wait().unwrap());
        cut += u32::from(!status.success());
        assert_eq!(host.dek(), dek, "round {round}");
        host.move_keys(to);
        assert_eq!(host.dek(), dek, "round {round}");
        assert_eq!(host.description().token.copy_in, None);
        let there = server().status(&lab.path("metadata"));
        assert_eq!(there, if to == "bao" { 200 } else { 404 });
    }
    assert!(cut > 0);
}

#[test]
fn the_doctor_needs_no_more_than_reading() {
    let lab = Lab::new();
    let checks = |more: &[&str]| -> Vec<(String, String, String)> {
        let output = lab
            .host
            .sealblk(&["doctor", "--json"])
            .args(more)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let stores = report["key_stores"].as_array().unwrap();
        let bao = stores.iter().find(|store| store["name"] == "bao").unwrap();
        let text = |check: &Value, field: &str| check[field].as_str().unwrap().to_owned();
        let checks = bao["checks"].as_array().unwrap();
        checks
            .iter()
            .map(|check| {
                (
                    text(check, "name"),
                    text(check, "status"),
                    text(check, "message"),
                )
            })
            .collect()
    };
    let statuses = |checks: &[(String, String, String)]| -> Vec<String> {
        checks.iter().map(|(_, status, _)| status.clone()).collect()
    };
    lab.permit([r#""read""#, "", ""]);
    assert_eq!(statuses(&checks(&[])), ["ok", "ok", "skip", "skip"]);
    let told = checks(&["--write-key-stores"]);
    assert_eq!(told[3].1, "fail");
    assert!(told[3].2.contains("does not permit"), "{told:?}");
    lab.permit([MOVER[0], r#""delete", "list""#, r#""list""#]);
    assert_eq!(statuses(&checks(&["--write-key-stores"])), ["ok"; 4]);
    let listed = format!("secret/metadata/{}?list=true", lab.folder);
    assert_eq!(server().status(&listed), 404, "the probe is gone");
    let none = [r#""create", "update""#, r#""delete""#, ""];
    lab.permit([none[0], none[1], none[2]]);
    assert_eq!(statuses(&checks(&[])), ["ok", "fail", "skip", "skip"]);
}

fn entry(volume: Uuid, bytes: &[u8]) -> Entry {
    let wrap = Wrap {
        key_set: "set".into(),
        provider: "p".into(),
        key_id: "k".into(),
        key_version: "1".into(),
        alg: "a".into(),
        bound: Bound::Aad,
        bytes: bytes.into(),
        group: None,
        extra: Default::default(),
    };
    Entry::new(volume, "set", vec![wrap])
}

/// A store by these endpoints, in a folder of its own.
fn settings(lab: &Lab, endpoints: &[String]) -> Settings {
    Settings {
        endpoints: endpoints.iter().map(|url| url.parse().unwrap()).collect(),
        namespace: None,
        mount: "secret".parse().unwrap(),
        auth: Auth::Token(SecretFile::new(
            server().write(&unique("token"), &lab.token),
        )),
        tls: tls::Settings {
            ca_files: Vec::new(),
            client: None,
        },
        timing: Timing {
            timeout: Duration::from_secs(1),
            deadline: Duration::from_secs(8),
        },
    }
}

#[test]
fn a_second_writer_is_not_overwritten() {
    let lab = Lab::new();
    let folder: sealblk::kms::vault::MountPath = lab.folder.parse().unwrap();
    // One that says a thing twice meets what it wrote itself.
    let mut patient = settings(&lab, &[server().url()]);
    patient.timing.timeout = Duration::from_secs(20);
    patient.timing.deadline = Duration::from_secs(20);
    let store = VaultKv::new(patient, folder);
    let volume = Uuid::new_v4();
    let first = wait(store.put(&entry(volume, b"one"), None)).unwrap();
    let again = wait(store.put(&entry(volume, b"two"), None));
    assert!(matches!(again, Err(Failed::Conflict)), "{again:?}");
    let second = wait(store.put(&entry(volume, b"two"), Some(&first))).unwrap();
    let late = wait(store.put(&entry(volume, b"three"), Some(&first)));
    assert!(matches!(late, Err(Failed::Conflict)), "{late:?}");
    let there = wait(store.get(volume)).unwrap().unwrap();
    assert_eq!(
        (there.entry, there.version),
        (entry(volume, b"two"), second)
    );
    // Deleted and not destroyed is not the same as never there.
    let path = format!("secret/data/{}/{volume}", lab.folder);
    server().delete(&path);
    let hidden = wait(store.get(volume));
    let Err(Failed::Store(error)) = hidden else {
        panic!("{hidden:?}");
    };
    assert_eq!(error.class(), Class::Denied(Denied::Deleted));
    let over = wait(store.put(&entry(volume, b"four"), None));
    assert!(matches!(over, Err(Failed::Conflict)), "{over:?}");
    wait(store.purge(volume)).unwrap();
    wait(store.purge(volume)).unwrap();
    assert!(wait(store.get(volume)).unwrap().is_none());
    wait(store.put(&entry(volume, b"five"), None)).unwrap();
}

#[test]
fn a_write_whose_answer_is_lost_is_found_to_have_happened() {
    let lab = Lab::new();
    let slow = Proxy::to(server().port());
    let endpoints = [format!("http://127.0.0.1:{}", slow.port()), server().url()];
    let definition = Definition::VaultKv {
        folder: lab.folder.parse().unwrap(),
        settings: Box::new(settings(&lab, &endpoints)),
    };
    let stores = KeyStores::new([("bao".parse().unwrap(), definition)]);
    let volume = Uuid::new_v4();
    block_on(async {
        // So that it has a session, and knows the mount.
        stores
            .put("bao", &entry(Uuid::new_v4(), b"before"), None)
            .await
            .unwrap();
        slow.set(Fault::Slow(Duration::from_secs(3)));
        let version = stores
            .put("bao", &entry(volume, b"one"), None)
            .await
            .unwrap();
        assert_eq!(version.to_string(), "1", "it was written once");
        let other = stores.put("bao", &entry(volume, b"two"), None).await;
        assert!(
            matches!(other, Err(sealblk::key_store::Error::Conflict { .. })),
            "{other:?}"
        );
        slow.set(Fault::Refuse);
        assert_eq!(
            stores.get("bao", volume).await.unwrap().entry,
            entry(volume, b"one")
        );
    })
    .unwrap();
}

#[test]
fn a_volume_is_made_and_its_key_is_in_the_engine_only() {
    let lab = Lab::new();
    fs::remove_file(lab.host.home.path(VOLUME)).unwrap();
    lab.host.create(&["--key-store", "bao"]);
    let secret = server().get(&lab.path("data"))["data"]["data"].clone();
    let wrap: Wrap = serde_json::from_value(secret["wraps"][0].clone()).unwrap();
    lab.host.assert_no_trace(&[wrap]);
    lab.host.dek();
    lab.permit([r#""read""#, "", ""]);
    let create = [
        "volume",
        "create",
        "b.img",
        "--size",
        "1M",
        "--key-store",
        "bao",
    ];
    refused(&mut lab.host.sealblk(&create)).expect(8, &["does not permit"], "docs/key-stores.md");
    assert!(!lab.host.home.path("b.img").exists());
}
