//! The key service is lost for good, and the volumes have other wraps.

use serde_json::{Value, json};

use super::faulty_proxy::Fault;
use super::lab::{Lab, Service, server};
use super::support::home::{Home, refused};
use super::support::server::{eventually, key_file, succeed};

const DATA: [u8; 4096] = [0x5a; 4096];
const MORE: [u8; 4096] = [0xa5; 4096];

/// A daemon with key sets `prod` at a service and `safe` on this host.
fn lab() -> Lab {
    let service = Service::new(1);
    let limits = "timeout = \"5s\"\ndeadline = \"5s\"\npoll = \"1s\"\nhierarchy = \"direct\"";
    let prod = service.key_set("prod", &service.token_auth(), limits);
    let home = Home::new();
    let safe = format!(
        "[key_sets.safe]\nprovider = \"file\"\nkey_file = {:?}\n",
        key_file(home.directory())
    );
    super::support::daemon::configure(&home, "poll = \"1s\"", &(prod + &safe));
    let command = super::support::daemon::command(&home);
    Lab {
        daemon: super::support::daemon::Daemon::run(home, command),
        service,
    }
}

fn json_of(lab: &Lab, arguments: &[&str]) -> Value {
    let said = succeed(lab.daemon.sealblk(arguments).arg("--json"));
    serde_json::from_str(&said).unwrap()
}

fn alerts(lab: &Lab) -> Vec<Value> {
    let log = std::fs::read_to_string(lab.path("audit.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| line["event"] == "break_glass")
        .collect()
}

fn opened(lab: &Lab) -> f64 {
    let labels = ["operation=\"unwrap\"", "outcome=\"ok\""];
    lab.metric("sealblk_break_glass_uses_total", &labels)
}

#[test]
fn volumes_open_with_what_was_added_when_their_service_is_lost_for_good() {
    let mut lab = lab();
    lab.make(&["a", "b"]);
    for volume in ["a", "b"] {
        assert_eq!(lab.attach(volume).status, 201);
    }
    let mut front_end = lab.connect("b");
    front_end.write(0, &DATA);
    front_end.flush();
    drop(front_end);
    let detach = |lab: &Lab, volume: &str| {
        eventually("its front end has gone", || {
            (lab.show(volume)["front_end"] == false).then_some(())
        });
        succeed(&mut lab.daemon.sealblk(&["detach", &lab.disk(volume)]));
    };
    detach(&lab, "b");

    // To a disk that is served, under its guest, and to one that is not.
    let mut served = lab.connect("a");
    served.write(0, &DATA);
    let paper = lab.path("paper");
    let new = ["key", "new-recovery-key", "--to", paper.to_str().unwrap()];
    succeed(&mut lab.daemon.sealblk(&new));
    let safe = [
        "volume",
        "add-wrap",
        "--all-of",
        "prod",
        "--key-set",
        "safe",
    ];
    let by_paper = [
        "volume",
        "add-wrap",
        "--all-of",
        "prod",
        "--recovery-key-file",
        paper.to_str().unwrap(),
    ];
    for add in [&safe[..], &by_paper] {
        let done = json_of(&lab, add);
        let volumes = done["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 2, "{done}");
        assert!(volumes.iter().all(|it| it["changed"] == true), "{done}");
        let disks: Vec<bool> = volumes.iter().map(|it| it["disk"].is_string()).collect();
        assert_eq!(disks, [true, false]);
    }
    assert_eq!(served.read(0, 4096), DATA, "its guest was not disturbed");
    served.write(4096, &MORE);
    served.flush();
    let id = json_of(&lab, &["volume", "info", "a"])["wraps"][2]["key_id"].clone();

    lab.service.set_all(&Fault::Refuse);
    refused(&mut lab.attach_command("b", &[])).expect(9, &["was not tried"], "");
    assert_eq!((alerts(&lab).len(), opened(&lab)), (0, 0.0));
    succeed(&mut lab.attach_command("b", &["--break-glass"]));
    assert_eq!(lab.connect("b").read(0, 4096), DATA);
    assert_eq!((alerts(&lab).len(), opened(&lab)), (1, 1.0));
    let alert = &alerts(&lab)[0];
    assert_eq!(
        (&alert["severity"], &alert["own_key_set"], &alert["key_set"]),
        (&json!("alert"), &json!("prod"), &json!("safe"))
    );
    assert_eq!(alert["actor"]["role"], "operator");
    assert!(!alert["instead_of"].as_str().unwrap().is_empty());
    assert_eq!(lab.show("b")["break_glass"], "safe");
    assert_eq!(lab.show("a")["break_glass"], Value::Null);
    let list = succeed(&mut lab.daemon.sealblk(&["list"]));
    assert!(list.contains("running, break-glass"), "{list}");
    let shown = succeed(&mut lab.daemon.sealblk(&["show", &lab.disk("b")]));
    assert!(shown.contains("opened by safe"), "{shown}");
    // The next manager knows it from the worker.
    lab.daemon.restart();
    lab.until("b", "running");
    assert_eq!(lab.show("b")["break_glass"], "safe");
    assert_eq!(served.read(4096, 4096), MORE);
    detach(&lab, "b");

    // With the key from the safe.
    let with_paper = ["--recovery-key-file", paper.to_str().unwrap()];
    succeed(&mut lab.attach_command("b", &with_paper));
    assert_eq!(lab.connect("b").read(0, 4096), DATA);
    let alert = alerts(&lab).pop().unwrap();
    assert_eq!(
        (&alert["key_set"], &alert["key_id"]),
        (&json!("recovery-key"), &id)
    );
    assert_eq!(lab.show("b")["break_glass"], "recovery-key");
    // The key is not kept: after a power failure somebody has to bring it again.
    detach(&lab, "b");

    // A wrap that was removed opens nothing; the other one still does.
    let remove = ["volume", "remove-wrap", "b", "--key-set", "safe"];
    assert_eq!(json_of(&lab, &remove)["volumes"][0]["changed"], true);
    refused(&mut lab.attach_command("b", &["--break-glass"])).expect(9, &["cannot"], "");
    succeed(&mut lab.attach_command("b", &with_paper));
    let by_id = [
        "volume",
        "remove-wrap",
        "--all-of",
        "prod",
        "--recovery-key",
        id.as_str().unwrap(),
    ];
    let done = json_of(&lab, &by_id);
    assert!(
        done["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it["changed"] == true),
        "{done}"
    );
    detach(&lab, "b");
    refused(&mut lab.attach_command("b", &with_paper)).expect(9, &["cannot"], "");
    // That of the other volume is there still, and it was served all the time.
    assert_eq!(served.read(0, 4096), DATA);
    let left = json_of(&lab, &["volume", "info", "a"]);
    let left: Vec<&Value> = left["wraps"].as_array().unwrap().iter().collect();
    assert_eq!(left.len(), 2);
    assert_eq!(left[1]["key_set"], "safe");
    let log = std::fs::read_to_string(lab.path("audit.jsonl")).unwrap();
    let lines = |event: &str| {
        let event = format!("\"event\":{event:?}");
        log.lines().filter(|line| line.contains(&event)).count()
    };
    assert_eq!(
        (lines("wraps_changed"), lines("break_glass_changed")),
        (7, 4)
    );
}

#[test]
fn a_denied_key_is_got_around_by_who_says_so_and_never_by_itself() {
    let mut lab = lab();
    lab.make(&["a"]);
    assert_eq!(lab.attach("a").status, 201);
    let disk = lab.disk("a");
    succeed(
        &mut lab
            .daemon
            .sealblk(&["volume", "add-wrap", "a", "--key-set", "safe"]),
    );
    succeed(&mut lab.daemon.sealblk(&["detach", &disk]));
    let name = &lab.service.name;
    server().post(
        &format!("sys/policies/acl/{name}"),
        json!({"policy": "path \"nothing\" { capabilities = [\"read\"] }"}),
    );
    refused(&mut lab.attach_command("a", &["--break-glass"])).expect(8, &["denies its key"], "");
    assert!(alerts(&lab).is_empty());
    succeed(&mut lab.attach_command("a", &["--break-glass", "--even-if-denied"]));
    let alert = alerts(&lab).pop().unwrap();
    assert_eq!(alert["denied"], true, "{alert}");
    // A worker that dies comes back: the key is in memory. A host that does
    // not, asks the key's owner again.
    lab.daemon.lose_power();
    lab.daemon.restart();
    let failed = lab.until("a", "denied");
    let message = failed["last_error"]["message"].as_str().unwrap();
    assert!(message.contains("denies its key"), "{message}");
    assert_eq!(alerts(&lab).len(), 1);
    server().permit(name, name, "disks");
    lab.until("a", "running");
    assert_eq!(alerts(&lab).len(), 1);
    assert_eq!(lab.show("a")["break_glass"], Value::Null);
}
