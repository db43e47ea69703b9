//! Verification by the manager, for those who may not read the disk.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use sealblk::units::SectorSize;
use serde_json::{Value, json};

use super::lab::{DISK, DISPROVED, Lab, PROVED};
use super::support::daemon::{Daemon, command, configure};
use super::support::home::refused;
use super::support::server::{eventually, succeed};

/// A daemon that knows the disk of a lab, everybody may connect to, and in which
/// user 60001 is a reader.
struct Site {
    daemon: Daemon,
    key: String,
    /// What the disk is called, as no disk of any other test: a daemon that ends
    /// has the workers of its disks killed by their names.
    disk: String,
}

impl Site {
    fn new(lab: Lab, attach: bool, rate: &str) -> Site {
        let key = lab.make_key();
        let home = lab.home;
        let directory = home.directory().file_name().unwrap().to_str().unwrap();
        let disk = format!("{directory}-vm");
        let more = format!(
            "[verify]\nkey = {:?}\nrate = {rate:?}\n[daemon.roles]\nreader = [\"60001\"]\n\
             [key_sets.default]\nprovider = \"file\"\nkey_file = {:?}\n",
            home.path("report.key"),
            home.path("platform.key"),
        );
        configure(&home, "socket_mode = \"0666\"", &more);
        let run = command(&home);
        let daemon = Daemon::run(home, run);
        let site = Site { daemon, key, disk };
        if attach {
            let mut command = site
                .daemon
                .sealblk(&["attach", DISK, "--socket", "disk.sock"]);
            succeed(command.args(["--name", &site.disk]));
        }
        site
    }

    fn ask(&self, body: &Value) -> super::support::daemon::Reply {
        let body = body.to_string();
        self.daemon.ask("POST", "/v1/verifications", Some(&body))
    }

    fn verified(&self, body: &Value) -> Value {
        let reply = self.ask(body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    fn records(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.daemon.home.path("audit.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Value| line["event"] == "verified")
            .collect()
    }
}

#[test]
fn a_disk_that_is_served_is_verified_by_name_and_by_path() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let path = lab.path(DISK);
    let site = Site::new(lab, true, "1G");
    for body in [
        json!({"disk": site.disk, "full": true, "sign": true, "nonce": "n"}),
        json!({"volume": path, "sample": 100, "sign": true, "nonce": "n"}),
    ] {
        let answer = site.verified(&body);
        let report = &answer["report"];
        assert_eq!(report["verdict"], "proved", "{answer:#}");
        assert_eq!(report["disk"]["in_use"], true);
        assert_eq!(report["disk"]["path"], path.to_str().unwrap());
        assert_eq!(report["scope"]["full"], body.get("full").is_some());
        let envelope: sealblk::verify::Envelope =
            serde_json::from_value(answer["signed"].clone()).unwrap();
        let signed = envelope.open(&site.key.parse().unwrap()).unwrap();
        assert_eq!(serde_json::to_value(&signed).unwrap(), *report);
        assert_eq!(signed.nonce.as_deref(), Some("n"));
    }
    let records = site.records();
    assert_eq!(records.len(), 2);
    assert_eq!(
        (&records[0]["verdict"], &records[0]["signed"]),
        (&json!("proved"), &json!(true))
    );
    let metrics = site.daemon.get("/metrics").body;
    assert!(
        metrics.contains("sealblk_verifications_total{verdict=\"proved\"} 2"),
        "{metrics}"
    );
}

#[test]
fn only_disks_that_this_host_knows_are_verified() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let path = lab.path(DISK);
    fs::write(lab.path("secret"), "hush").unwrap();
    let secret = lab.path("secret");
    let site = Site::new(lab, false, "1G");
    for body in [
        json!({"volume": secret, "expect": "plain"}),
        json!({"volume": "/etc/shadow", "expect": "plain"}),
        json!({"volume": "/no/such/file"}),
        json!({"volume": path}),
        json!({"disk": site.disk}),
    ] {
        let reply = site.ask(&body);
        assert_eq!(reply.status, 404, "{reply:?}");
        // Whether it is there is not told.
        assert!(
            reply.json()["message"]
                .as_str()
                .unwrap()
                .contains("knows no disk"),
            "{reply:?}"
        );
    }
    for body in [
        json!({}),
        json!({"disk": "x", "full": true, "sample": 3}),
        json!({"disk": "x", "sample": 0}),
        json!({"disk": "x", "nonce": "n".repeat(300)}),
        json!({"disk": "x", "speed": 1}),
    ] {
        assert_eq!(site.ask(&body).status, 400, "{body}");
    }
    // It is known once it was attached, and stays so.
    let attach =
        json!({"volume": path, "socket": site.daemon.home.path("d.sock"), "name": site.disk});
    let body = attach.to_string();
    assert_eq!(
        site.daemon.ask("POST", "/v1/disks", Some(&body)).status,
        201
    );
    assert_eq!(
        site.daemon
            .ask("DELETE", &format!("/v1/disks/{}", site.disk), None)
            .status,
        204
    );
    let answer = site.verified(&json!({"volume": path}));
    assert_eq!(answer["report"]["verdict"], "proved", "{answer:#}");
    assert_eq!(answer.get("signed"), None);
    let bad = site.ask(&json!({"volume": path, "seed": "xyz"}));
    assert_eq!(bad.status, 400, "{bad:?}");
}

#[test]
fn one_is_verified_at_a_time_and_given_up_with_its_client() {
    let lab = Lab::filled(&[], SectorSize::B512);
    // Three seconds for all of it.
    let site = Site::new(lab, true, "1M");
    let body = json!({"disk": site.disk, "full": true, "sign": true}).to_string();
    let request = format!(
        "POST /v1/verifications HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let audit = || fs::read_to_string(site.daemon.home.path("audit.jsonl")).unwrap();
    let before = audit().len();
    let mut client = UnixStream::connect(site.daemon.socket()).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    eventually("it has used the key", || {
        (audit().len() > before).then_some(())
    });
    let small = json!({"disk": site.disk, "sample": 1});
    eventually("another one is refused", || {
        (site.ask(&small).status == 409).then_some(())
    });
    drop(client);
    // It is recorded that nothing was found, and the next one's turn.
    eventually("it was given up", || {
        let records = site.records();
        // The others were to sign nothing.
        let mut signed = records.iter().filter(|record| record["signed"] == true);
        signed
            .next()
            .map(|record| assert_eq!(record["outcome"], "failed", "{record}"))
    });
    let sample = json!({"disk": site.disk, "sample": 1, "no_key": true});
    assert_eq!(site.verified(&sample)["report"]["verdict"], "undecided");
    let metrics = site.daemon.get("/metrics").body;
    assert!(
        metrics.contains("sealblk_verifications_total{verdict=\"failed\"}"),
        "{metrics}"
    );
}

#[test]
fn what_is_wrong_is_found_by_the_manager_too() {
    let lab = Lab::filled(&[], SectorSize::B512);
    lab.store(512 * 1000, &[b'x'; 512]);
    let site = Site::new(lab, true, "1G");
    let answer = site.verified(&json!({"disk": site.disk, "full": true}));
    assert_eq!(answer["report"]["verdict"], "disproved");
    let text = answer.to_string();
    assert!(text.contains("512000"), "{text}");
    // An attached disk is not plain.
    let answer = site.verified(&json!({"disk": site.disk, "expect": "plain"}));
    assert_eq!(answer["report"]["verdict"], "disproved");
}

#[test]
#[ignore = "needs root, to become another user"]
fn a_reader_gets_a_signed_report_of_a_disk_that_they_cannot_read() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let site = Site::new(lab, true, "1G");
    let home = &site.daemon.home;
    fs::set_permissions(home.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(home.path(DISK), fs::Permissions::from_mode(0o600)).unwrap();
    let program = home.path("sealblk");
    fs::copy(env!("CARGO_BIN_EXE_sealblk"), &program).unwrap();
    let reader = |uid: u32, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={uid}"), "--regid=60999", "--clear-groups"])
            .arg(&program)
            .args(["--config", "sealblk.toml"])
            .args(arguments)
            .current_dir(home.directory());
        command
    };
    for disk in [DISK, &site.disk] {
        let report = succeed(&mut reader(60001, &["verify", disk, "--full", "--sign"]));
        fs::write(home.path("report"), &report).unwrap();
        let check = [
            "report",
            "check",
            "report",
            "--json",
            "--public-key",
            &site.key,
        ];
        let found: Value = serde_json::from_str(&succeed(&mut reader(60002, &check))).unwrap();
        assert_eq!(found["verdict"], "proved");
        assert_eq!(found["requester"], json!({"uid": 60001, "role": "reader"}));
    }
    refused(&mut reader(60002, &["verify", DISK])).expect(4, &["role"], "daemon.roles");
    refused(&mut reader(60001, &["verify", "platform.key"])).expect(3, &["knows no disk"], "list");
    let output = reader(60001, &["verify", &site.disk, "--expect", "plain"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(DISPROVED), "{output:?}");
    let output = reader(60001, &["verify", &site.disk]).output().unwrap();
    assert_eq!(output.status.code(), Some(PROVED), "{output:?}");
}
