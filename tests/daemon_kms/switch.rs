//! A key set that becomes one of another service while its disks are served,
//! and when its own service is gone for good.

use serde_json::{Value, json};

use sealblk::kms::kmip::Mode;

use super::faulty_proxy::Fault;
use super::lab::{Lab, server};
use super::pykmip::PyKmip;
use super::rotation::{DATA, Load, QUIET};
use super::support::home::refused;
use super::support::server::{eventually, key_file, succeed};

/// A daemon with a key set `disks` in a file of its own, at OpenBao.
fn lab() -> Lab {
    let lab = Lab::new(1, QUIET);
    let settings = vault(&lab);
    let mut create = vec!["create", "disks"];
    create.extend(settings.iter().map(String::as_str));
    lab.keyset(&create);
    lab
}

/// What makes a key set one of OpenBao.
fn vault(lab: &Lab) -> Vec<String> {
    let port = lab.service.proxies[0].port();
    let given = [
        ("--provider", "vault".to_owned()),
        ("--endpoint", format!("http://127.0.0.1:{port}")),
        ("--key", "disks".into()),
        ("--set", format!("auth={}", lab.service.token_auth())),
        ("--set", format!("mount={}", lab.service.name)),
        ("--set", "poll=1h".into()),
        ("--set", "timeout=5s".into()),
        ("--set", "deadline=5s".into()),
    ];
    given
        .into_iter()
        .flat_map(|(flag, value)| [flag.into(), value])
        .collect()
}

/// What makes it one of the platform key.
fn platform(lab: &Lab) -> Vec<String> {
    let path = key_file(lab.daemon.home.directory());
    let setting = format!("key_file={}", path.display());
    ["--provider", "file", "--set", &setting]
        .map(str::to_owned)
        .into()
}

fn switch(lab: &Lab, settings: &[String], more: &[&str]) -> std::process::Command {
    let mut command = lab.daemon.sealblk(&["keyset", "switch", "disks", "--json"]);
    command.args(settings).args(more);
    command
}

/// Makes volumes of the key set, as a command does.
fn make(lab: &Lab, names: &[&str]) {
    for name in names {
        let create = [
            "volume",
            "create",
            name,
            "--size",
            "1M",
            "--header-area",
            "32K",
        ];
        succeed(lab.daemon.sealblk(&create).args(["--key-set", "disks"]));
    }
}

fn providers(lab: &Lab, names: &[&str]) -> Vec<String> {
    let of = |name: &&str| {
        let wraps = lab.wraps(name);
        assert_eq!(wraps.len(), 1, "{name}");
        wraps[0].provider.clone()
    };
    names.iter().map(of).collect()
}

fn switching(lab: &Lab) -> bool {
    let ledger = lab.daemon.get("/v1/ledger?key_set=disks").json();
    ledger[0]["switching"] == true
}

fn definition(lab: &Lab) -> Value {
    lab.daemon.get("/v1/key-sets/disks").json()["definition"].clone()
}

#[test]
fn a_key_set_goes_from_service_to_service_under_a_guest() {
    let kmip = PyKmip::start();
    let made = sealblk::runtime::block_on(kmip.client(Mode::Get).create_key("disks"));
    made.unwrap().unwrap();
    let lab = lab();
    make(&lab, &["a", "b"]);
    lab.was_here("b");
    assert_eq!(lab.attach("a").status, 201);
    lab.connect("a").write(0, &DATA);
    let load = Load::on(&lab, "a");

    let file = |name: &str, file: &str| format!("{name}={}", kmip.path(file).display());
    let at_kmip: Vec<String> = [
        "--provider".into(),
        "kmip".into(),
        "--endpoint".into(),
        format!("127.0.0.1:{}", kmip.port),
        "--key".into(),
        "disks".into(),
        "--set".into(),
        "mode=get".into(),
        "--set".into(),
        file("ca_file", "ca.pem"),
        "--set".into(),
        file("client_cert", "host.pem"),
        "--set".into(),
        file("client_key", "host.key"),
        "--set".into(),
        "timeout=20s".into(),
    ]
    .into();
    for (settings, provider) in [
        (at_kmip, "kmip"),
        (platform(&lab), "file"),
        (vault(&lab), "vault"),
    ] {
        let done: Value =
            serde_json::from_str(&succeed(&mut switch(&lab, &settings, &[]))).unwrap();
        assert_eq!(
            (&done["provider"], &done["behind"]),
            (&json!(provider), &json!(0)),
            "{done}"
        );
        assert_eq!(providers(&lab, &["a", "b"]), [provider, provider]);
        // What is of no provider stays, and what was before is forgotten.
        eventually("what was before is forgotten", || {
            (!switching(&lab)).then_some(())
        });
        let now = definition(&lab);
        assert_eq!(
            (&now["poll"], &now["provider"]),
            (&json!("1h"), &json!(provider)),
            "{now}"
        );
        assert_eq!(now.get("previous"), None, "{now}");
        assert_eq!(lab.show("a")["provider"], provider);
        // And opens with that alone.
        match provider {
            "kmip" => lab.service.set_all(&Fault::Refuse),
            "file" => lab.service.set_all(&Fault::None),
            _ => std::fs::rename(key_file(lab.daemon.home.directory()), lab.path("gone")).unwrap(),
        }
        lab.was_here("b");
    }
    assert!(load.end() > 0);
    lab.gone_and_detach("a");
    assert_eq!(lab.attach("a").status, 201);
    assert_eq!(lab.connect("a").read(0, 4096), DATA);
    assert_eq!(lab.events("key_set_switched").len(), 3);
    assert_eq!(lab.events("key_set_settled").len(), 3);
}

/// Its requests wait because its key was destroyed. Another key is the way out,
/// and it is not only for disks whose guests noticed nothing.
#[test]
fn a_disk_that_is_held_follows_a_switch_and_goes_on() {
    for policy in ["pause", "fail"] {
        let lab = lab();
        let held = ["poll=1s", "denied_grace=1s"].map(str::to_owned);
        let held = held.into_iter().chain([format!("on_denied={policy}")]);
        let settings: Vec<String> = held.flat_map(|it| ["--set".into(), it]).collect();
        let mut edit = vec!["edit", "disks"];
        edit.extend(settings.iter().map(String::as_str));
        lab.keyset(&edit);
        make(&lab, &["a"]);
        assert_eq!(lab.attach("a").status, 201);
        let mut front = lab.connect("a");
        front.write(0, &DATA);

        let key = format!("{}/keys/disks", lab.service.name);
        let body = json!({ "deletion_allowed": true });
        server().post(&format!("{key}/config"), body);
        server().delete(&key);
        let state = if policy == "pause" {
            "paused"
        } else {
            "failing"
        };
        lab.until("a", state);
        succeed(&mut switch(&lab, &platform(&lab), &[]));
        assert_eq!(providers(&lab, &["a"]), ["file"]);
        lab.until("a", "running");
        assert_eq!(front.read(0, 4096), DATA);
        eventually("it is settled", || (!switching(&lab)).then_some(()));
    }
}

#[test]
fn a_key_set_whose_service_is_gone_is_switched_from_the_keys_in_memory() {
    let mut lab = lab();
    make(&lab, &["a", "b"]);
    lab.was_here("b");
    assert_eq!(lab.attach("a").status, 201);
    lab.connect("a").write(0, &DATA);
    let load = Load::on(&lab, "a");
    lab.service.set_all(&Fault::Refuse);
    // Also a manager that was started after that.
    lab.daemon.restart();
    lab.until("a", "running");

    let to = platform(&lab);
    let refusal = refused(&mut switch(&lab, &to, &[]));
    let b = lab.path("b");
    refusal.expect(
        6,
        &["lock out", b.to_str().unwrap(), "refuses the connection"],
        "--force",
    );
    assert_eq!(definition(&lab)["provider"], "vault", "nothing has changed");
    assert_eq!(providers(&lab, &["a", "b"]), ["vault", "vault"]);

    let done: Value = serde_json::from_str(&succeed(&mut switch(&lab, &to, &["--force"]))).unwrap();
    assert_eq!(done["behind"], 1, "{done}");
    assert_eq!(providers(&lab, &["a", "b"]), ["file", "vault"]);
    assert!(load.end() > 0);
    lab.gone_and_detach("a");
    assert_eq!(lab.attach("a").status, 201);
    assert_eq!(lab.connect("a").read(0, 4096), DATA);
    // One still needs what was before, however often nothing can be done about it.
    lab.keyset(&["edit", "disks", "--set", "poll=1s"]);
    let polls = || {
        lab.metric(
            "sealblk_kms_calls_total",
            &["\"disks\"", "operation=\"check\""],
        )
    };
    let before = polls();
    eventually("it was looked at again", || {
        (polls() >= before + 3.0).then_some(())
    });
    assert!(switching(&lab));
    // A third one would forget that.
    let other = vec!["--provider=file".into(), "--set=key_file=/nowhere".into()];
    refused(&mut switch(&lab, &other, &[])).expect(5, &["being switched"], "ledger");

    // It was not gone for good.
    assert_ne!(lab.attach("b").status, 201);
    lab.service.set_all(&Fault::None);
    assert_eq!(lab.attach("b").status, 201);
    assert_eq!(lab.connect("b").read(0, 4096), DATA);
    eventually("it has followed", || (!switching(&lab)).then_some(()));
    assert_eq!(providers(&lab, &["a", "b"]), ["file", "file"]);
    lab.service.set_all(&Fault::Refuse);
    lab.gone_and_detach("b");
    assert_eq!(lab.attach("b").status, 201);
}

#[test]
fn a_switch_that_was_cut_off_goes_on_and_loses_nobody() {
    let names: Vec<String> = (0..6).map(|n| format!("v{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Slowly enough to be cut off in the middle.
    let mut lab = lab();
    let config = lab.path("sealblk.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("[daemon]\n", "[daemon]\nrewrap_rate = 1\n"),
    )
    .unwrap();
    lab.daemon.restart();
    make(&lab, &names);
    for name in &names {
        lab.was_here(name);
    }
    let to = platform(&lab);
    succeed(&mut switch(&lab, &to, &["--no-wait"]));
    let followed = || {
        providers(&lab, &names)
            .iter()
            .filter(|is| *is == "file")
            .count()
    };
    eventually("some have followed", || (followed() > 0).then_some(()));
    lab.daemon.server.kill();
    let followed = providers(&lab, &names);
    assert!(
        followed.iter().any(|is| is == "vault"),
        "it was cut off: {followed:?}"
    );
    assert!(switching_on_disk(&lab));
    lab.daemon.restart();
    // Either kind opens meanwhile; and it goes on by itself.
    for (name, provider) in names.iter().zip(followed) {
        let reply = lab.attach(name);
        assert_eq!(reply.status, 201, "{name}, {provider}: {reply:?}");
        assert_eq!(lab.connect(name).read(0, 4096), DATA);
    }
    eventually("all have followed", || (!switching(&lab)).then_some(()));
    assert_eq!(providers(&lab, &names), ["file"; 6]);
    // The same command once more finds it done.
    let done: Value = serde_json::from_str(&succeed(&mut switch(&lab, &to, &[]))).unwrap();
    assert_eq!(done["behind"], 0);
}

fn switching_on_disk(lab: &Lab) -> bool {
    let file = lab.path("key-sets.d/disks.toml");
    std::fs::read_to_string(file)
        .unwrap()
        .contains("[previous]")
}

#[test]
fn what_cannot_be_switched_is_said() {
    let lab = lab();
    make(&lab, &["a"]);
    // Not by editing.
    let edit = [
        "keyset",
        "edit",
        "disks",
        "--no-check",
        "--unset",
        "mount",
        "--unset",
        "auth",
    ];
    let mut edit = lab.daemon.sealblk(&edit);
    edit.args([
        "--unset",
        "key",
        "--unset",
        "endpoints",
        "--unset",
        "timeout",
    ]);
    edit.args(["--unset", "deadline", "--provider", "file"]);
    refused(&mut edit).expect(6, &["needed by", "\"disks\""], "keyset switch disks");
    // Not to what does not work.
    let nothing = ["--provider=file", "--set=key_file=/nowhere/key"].map(str::to_owned);
    refused(&mut switch(&lab, &nothing, &[])).expect(3, &["/nowhere/key"], "");
    // Not to what cannot be told from it: version 1 of a key of that name.
    let mut elsewhere = vault(&lab);
    elsewhere[3] = format!("http://127.0.0.1:{}", server().port());
    let mut command = switch(&lab, &elsewhere, &["--force"]);
    refused(&mut command).expect(6, &["which of the two"], "keyset edit disks");
    // Not what somebody has written down elsewhere.
    let mut command = lab
        .daemon
        .sealblk(&["keyset", "switch", "prod", "--provider", "file"]);
    refused(&mut command).expect(2, &["is defined in"], "change it in");
    assert_eq!(definition(&lab)["provider"], "vault");
    assert!(!switching_on_disk(&lab));
}
