//! Wrapped keys in key stores: found and destroyed, or named where they stay.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::key_store_support::{Host, VOLUME};
use super::openbao::OpenBao;
use super::support::home::refused;
use super::support::server::succeed;
use super::{Before, assert_erased, erase, erase_refused};

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0xff; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// An entry that the header names, and one that it does not, as an older
/// header that was restored leaves it.
#[test]
fn entries_in_directories_are_overwritten_and_removed() {
    let host = Host::with_volume();
    host.move_keys("other");
    let orphan = host.entry("other");
    let copy = fs::read(&orphan).unwrap();
    host.move_keys("shared");
    fs::write(&orphan, copy).unwrap();
    host.chmod(&orphan, 0o600);
    let before = Before::of(&host);
    let entry = host.entry("shared");
    // What a crash left of another one.
    let leftover = host
        .store("shared")
        .join(format!(".{}.0123456789abcdef.new", host.description().uuid));
    fs::copy(&entry, &leftover).unwrap();
    let held = [&entry, &orphan, &leftover].map(|path| File::open(path).unwrap());
    let erased = erase(&host, &[]);
    assert_eq!(erased["purged"], json!(["other", "shared"]));
    for file in &held {
        assert!(
            contents(file).iter().all(|&byte| byte == 0),
            "it was not overwritten"
        );
    }
    for store in ["shared", "other"] {
        assert_eq!(host.names(store), [""; 0]);
    }
    before.assert_absent(&host.home.path(VOLUME));
    assert_erased(&host);
    let purged = host.audit("key_store_purge");
    let stores: Vec<&Value> = purged.iter().map(|line| &line["key_store"]).collect();
    assert!(
        stores.ends_with(&[&json!("other"), &json!("shared")]),
        "{stores:?}"
    );
}

/// A copy that a cut move left where the header says so.
#[test]
fn the_copy_of_an_unfinished_move_is_destroyed() {
    let host = Host::with_volume();
    let before = Before::of(&host);
    let mut cut = std::process::Command::new("strace");
    // The third write to the header is the one that takes the wraps out.
    cut.args(["-f", "-qq", "-o", "trace", "-e", "trace=pwrite64"])
        .args(["-e", "inject=pwrite64:signal=KILL:when=3"])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .args([
            "--config",
            "sealblk.toml",
            "volume",
            "move-keys",
            VOLUME,
            "--to",
            "shared",
        ])
        .current_dir(host.home.directory());
    assert!(!cut.output().unwrap().status.success());
    assert_eq!(host.description().token.copy_in.as_deref(), Some("shared"));
    assert_eq!(host.names("shared").len(), 1);
    let erased = erase(&host, &[]);
    assert_eq!(erased["purged"], json!(["shared"]));
    assert_eq!(host.names("shared"), [""; 0]);
    before.assert_absent(&host.home.path(VOLUME));
    assert_erased(&host);
}

#[test]
fn a_store_that_is_away_is_found_out_before_anything_is_destroyed() {
    let host = Host::with_volume();
    host.move_keys("shared");
    let before = Before::of(&host);
    let (here, away) = (host.store("shared"), host.store("away"));
    fs::rename(&here, &away).unwrap();
    erase_refused(&host, &[]).expect(
        9,
        &["in key store \"shared\"", "cannot be destroyed"],
        "nothing was destroyed",
    );
    fs::rename(&away, &here).unwrap();
    assert_eq!(host.dek(), before.dek);
    fs::rename(&here, &away).unwrap();

    // By force as far as it goes, and that is told.
    let force = ["volume", "erase", VOLUME, "--yes", "--force", "--json"];
    let output = host.sealblk(&force).output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["finished"], false);
    assert_eq!(told["left"][0]["key_store"], "shared");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("help: repeat the command"), "{said}");
    let info = host.info();
    assert_eq!(
        (&info["erased"]["finished"], &info["erased"]["key_stores"]),
        (&json!(false), &json!(["shared"]))
    );
    let shown = succeed(&mut host.sealblk(&["volume", "info", VOLUME]));
    assert!(shown.contains("may be in shared"), "{shown}");
    let serve = ["serve", VOLUME, "--socket", "refused.sock"];
    host.refused(&serve)
        .expect(8, &["was not finished"], "sealblk volume erase");
    let line = host.audit("volume_erased").pop().unwrap();
    assert_eq!(
        (&line["left"], &line["force"]),
        (&json!(["shared"]), &json!(true))
    );

    fs::rename(&away, &here).unwrap();
    let erased = erase(&host, &[]);
    assert_eq!(
        (&erased["finished"], &erased["purged"]),
        (&json!(true), &json!(["shared"]))
    );
    assert_eq!(erased["since"], told["since"]);
    assert_eq!(host.names("shared"), [""; 0]);
    assert_erased(&host);
}

fn server() -> &'static OpenBao {
    static SERVER: OnceLock<OpenBao> = OnceLock::new();
    SERVER.get_or_init(OpenBao::start)
}

/// A KV engine keeps versions, of which a plain deletion takes away the last.
#[test]
fn a_secret_is_destroyed_with_all_its_versions() {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = format!("erase-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let policy = |metadata: &str| {
        let text = format!(
            r#"path "secret/data/{folder}/*" {{ capabilities = ["create", "read", "update"] }}
            path "secret/metadata/{folder}/*" {{ capabilities = [{metadata}] }}"#
        );
        server().post(
            &format!("sys/policies/acl/{folder}"),
            json!({"policy": text}),
        );
    };
    policy(r#""delete""#);
    let token = server().write(&format!("{folder}.token"), &server().token(&folder));
    let host = Host::with(&format!(
        "[key_stores.bao]\nkind = \"vault-kv\"\nendpoints = [{:?}]\npath = {folder:?}\n\
         timeout = \"5s\"\ndeadline = \"5s\"\nauth = {{ method = \"token\", token = {token:?} }}\n",
        server().url()
    ));
    host.create(&["--key-store", "bao"]);
    let dek = host.dek();
    let uuid = host.description().uuid;
    let (data, metadata) = (
        format!("secret/data/{folder}/{uuid}"),
        format!("secret/metadata/{folder}/{uuid}"),
    );
    // Two more versions of the same.
    let entry = server().get(&data)["data"]["data"].clone();
    for _ in 0..2 {
        server().post(&data, json!({"data": entry}));
    }
    assert_eq!(
        server().get(&metadata)["data"]["versions"]
            .as_object()
            .unwrap()
            .len(),
        3
    );

    // Who may not destroy it is told so after the header has gone, and the
    // command is repeated by somebody who may.
    policy("");
    let output = host
        .sealblk(&["volume", "erase", VOLUME, "--yes", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!(server().status(&data), 200);
    assert_eq!(host.info()["erased"]["key_stores"], json!(["bao"]));
    policy(r#""delete""#);
    let erased = erase(&host, &[]);
    assert_eq!(erased["purged"], json!(["bao"]));
    assert_eq!(server().status(&metadata), 404);
    for version in 0..=3 {
        assert_eq!(server().status(&format!("{data}?version={version}")), 404);
    }
    assert_erased(&host);
    let image = fs::read(host.home.path(VOLUME)).unwrap();
    assert!(!image.windows(32).any(|part| part == &dek[..32]));
    refused(&mut host.sealblk(&["volume", "move-keys", VOLUME, "--to", "bao"])).expect(
        8,
        &["was erased"],
        "",
    );
}
