//! The commands that are clients of the daemon.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::daemon::{Daemon, attach_a, command, configure};
use super::support::home::{Guard, Home, refused};
use super::support::server::{eventually, succeed};

#[test]
fn without_a_daemon_it_is_said_how_to_have_one() {
    let home = Home::new();
    let socket = home.path("none.sock");
    let listening = || -> Vec<Vec<&str>> {
        vec![
            vec!["attach", "/v", "--socket", "/s"],
            vec!["detach", "a"],
            vec!["limit", "a", "--iops-total", "9"],
            vec!["resize", "a", "1G"],
            vec!["list"],
            vec!["list", "--watch"],
            vec!["show", "a"],
            vec!["status"],
            vec!["reload"],
        ]
    };
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(["--daemon"]).arg(&socket).args(arguments);
        command
    };
    for arguments in listening() {
        let causes = ["no sealblk daemon", "none.sock"];
        refused(&mut run(&arguments)).expect(9, &causes, "systemctl start sealblk");
    }
    // A socket that a killed daemon left.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused(&mut run(&["status"])).expect(9, &["no sealblk daemon"], "sealblk daemon");
    // Something else.
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "").unwrap();
    refused(&mut run(&["status"])).expect(9, &["no sealblk daemon"], "--daemon");
}

#[test]
fn what_answers_and_is_no_daemon_is_told() {
    use std::io::{Read, Write};
    let home = Home::new();
    let socket = home.path("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\noops",
            "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-x\r\n",
            "",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    for (status, told) in [
        (11, "is not understood"),
        (11, "is not understood: status 500"),
        (11, "is not understood: status 302"),
        (9, "gave no answer"),
        (9, "gave no answer"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.arg("--daemon").arg(&socket).arg("status");
        refused(&mut command).expect(status, &[told], "");
    }
    server.join().unwrap();
}

#[test]
fn commands_show_for_people_and_for_scripts() {
    let daemon = Daemon::start();
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&succeed(&mut daemon.sealblk(arguments))).unwrap()
    };
    assert_eq!(json(&["status", "--json"])["pid"], daemon.server.pid());
    let text = succeed(&mut daemon.sealblk(&["status"]));
    assert!(
        text.contains(&format!("process {}", daemon.server.pid())),
        "{text}"
    );
    assert!(text.contains("disks          none\n"), "{text}");
    assert_eq!(json(&["list", "--json"]), serde_json::json!([]));
    let text = succeed(&mut daemon.sealblk(&["list"]));
    assert_eq!(text, "NAME  STATE  SIZE  KEY SET  SOCKET  VOLUME\n");
    assert_eq!(
        json(&["reload", "--json"])["changed"],
        serde_json::json!([])
    );
    assert_eq!(
        succeed(&mut daemon.sealblk(&["reload"])),
        "nothing has changed\n"
    );
}

#[test]
fn limits_are_set_shown_recorded_and_lifted() {
    let home = Home::new();
    let key = home.path("platform.key");
    let rest = format!(
        "[key_sets.default]\nprovider = \"file\"\nkey_file = {key:?}\n\
         [serve.limits]\niops_total = 500\n"
    );
    configure(&home, "", &rest);
    let command = command(&home);
    let daemon = Daemon::run(home, command);
    let sealblk = |arguments: &[&str]| daemon.sealblk(arguments);
    succeed(&mut sealblk(&["volume", "create", "a.img", "--size", "4M"]));
    let attach = attach_a("limited-1");
    succeed(sealblk(&attach).args(["--bps-write", "10M", "--json"]));
    let limits = |arguments: &[&str]| -> Value {
        let mut command = daemon.sealblk(arguments);
        let disk: Value = serde_json::from_str(&succeed(command.arg("--json"))).unwrap();
        disk["limits"].clone()
    };
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    assert_eq!(
        limits(&["show", "limited-1"]),
        json(r#"{"iops_total": 500, "bps_write": 10485760}"#)
    );
    assert_eq!(
        limits(&[
            "limit",
            "limited-1",
            "--iops-read",
            "9",
            "--iops-read-max",
            "20"
        ]),
        json(
            r#"{"iops_read": 9, "iops_read_max": 20, "iops_read_max_length": 1, "bps_write": 10485760}"#
        )
    );
    assert_eq!(limits(&["limit", "limited-1", "--none"]), json("{}"));
    assert_eq!(limits(&["limit", "limited-1"]), json("{}"));
    let both = [
        "limit",
        "limited-1",
        "--bps-total",
        "1M",
        "--bps-read",
        "1M",
    ];
    refused(&mut daemon.sealblk(&both)).expect(2, &["bps_total and bps_read"], "apart");
    let text = succeed(&mut daemon.sealblk(&["limit", "limited-1", "--bps-total", "1M"]));
    assert!(
        text.contains("limits         bps_total=1048576\n"),
        "{text}"
    );
    let log = std::fs::read_to_string(daemon.home.path("audit.jsonl")).unwrap();
    let lines = log.lines().map(json);
    let recorded: Vec<Value> = lines.filter(|line| line["event"] == "limit").collect();
    assert_eq!(recorded.len(), 3, "{recorded:?}");
    assert_eq!(recorded[0]["limits"], "iops_read=9 iops_read_max=20");
    assert_eq!(recorded[0]["disk"], "limited-1");
    succeed(&mut daemon.sealblk(&["detach", "limited-1", "--force"]));
}

#[test]
fn disks_are_resized_and_attached_without_a_volume_and_that_is_recorded() {
    let home = Home::new();
    let key = home.path("platform.key");
    let rest = format!("[key_sets.default]\nprovider = \"file\"\nkey_file = {key:?}\n");
    configure(&home, "", &rest);
    let command = command(&home);
    let daemon = Daemon::run(home, command);
    let run = |arguments: &[&str]| succeed(&mut daemon.sealblk(arguments));
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    run(&["volume", "create", "a.img", "--size", "4M"]);
    run(&attach_a("resized-1"));
    let said = run(&["resize", "resized-1", "6M"]);
    assert_eq!(
        said,
        "resized-1: 6 MiB (6291456 bytes); no front end is connected: the next one sees it\n"
    );
    let disk = json(&run(&["resize", "a.img", "max", "--preallocate", "--json"]));
    assert_eq!(disk["size"], 6 << 20);
    let refused_to = |size: &str| refused(&mut daemon.sealblk(&["resize", "resized-1", size]));
    refused_to("4M").expect(6, &["can only grow"], "--shrink");
    refused_to("6291457").expect(2, &["not a number of sectors"], "6291968");
    let both = r#"{"size": 8388608, "limits": {"iops_total": 9}}"#;
    let reply = daemon.ask("PATCH", "/v1/disks/resized-1", Some(both));
    assert_eq!(
        (&reply.json()["size"], reply.status),
        (&(8 << 20).into(), 200)
    );
    assert_eq!(reply.json()["limits"]["iops_total"], 9);
    for wrong in [r#"{"size": 512, "fill": true}"#, r#"{"preallocate": true}"#] {
        assert_eq!(
            daemon
                .ask("PATCH", "/v1/disks/resized-1", Some(wrong))
                .status,
            400,
            "{wrong}"
        );
    }
    run(&["detach", "resized-1"]);

    std::fs::create_dir(daemon.home.path("space")).unwrap();
    let attach = [
        "attach",
        "space",
        "--socket",
        "t.sock",
        "--name",
        "resized-2",
        "--ephemeral",
    ];
    let disk = json(&run(&[&attach[..], &["--size", "3M", "--json"]].concat()));
    assert_eq!(
        (&disk["ephemeral"], &disk["key_set"]),
        (&true.into(), &Value::Null)
    );
    assert_eq!(
        (&disk["size"], &disk["sector_size"]),
        (&(3 << 20).into(), &4096.into())
    );
    assert!(run(&["list"]).contains("(ephemeral)"));
    assert!(run(&["show", "resized-2"]).contains("its key is in its worker alone"));
    refused(&mut daemon.sealblk(&["resize", "resized-2", "9M"])).expect(
        2,
        &["ephemeral"],
        "detach",
    );
    let worker = json(&run(&["show", "resized-2", "--json"]))["pid"]
        .as_i64()
        .unwrap();
    let worker = rustix::process::Pid::from_raw(worker as i32).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    eventually("its loss is shown", || {
        let disk = json(&run(&["show", "resized-2", "--json"]));
        (disk["restarts"] == 1 && disk["state"] == "failed").then_some(())
    });
    run(&["detach", "resized-2"]);

    let log = std::fs::read_to_string(daemon.home.path("audit.jsonl")).unwrap();
    let lines: Vec<Value> = log.lines().map(json).collect();
    let of = |event: &str| {
        lines
            .iter()
            .filter(|line| line["event"] == event)
            .collect::<Vec<_>>()
    };
    let resized = of("resize");
    assert_eq!(resized.len(), 6, "{resized:?}");
    let sizes = |line: &Value| (line["before"].clone(), line["size"].clone());
    assert_eq!(sizes(resized[0]), ((4 << 20).into(), (6 << 20).into()));
    assert_eq!(resized[2]["outcome"], "failed");
    let ephemeral = of("attach")[1];
    assert_eq!(
        (&ephemeral["ephemeral"], &ephemeral["disk"]),
        (&true.into(), &"resized-2".into())
    );
    assert!(ephemeral.get("key_set").is_none() && ephemeral.get("volume").is_none());
    let [lost] = of("disk_lost")[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (&lost["disk"], &lost["actor"]["role"]),
        (&"resized-2".into(), &"manager".into())
    );
    // No key of anybody was used for it: what was, when the volume was made (to see
    // that its wrap opens), and when that was attached.
    let uses = lines
        .iter()
        .filter(|line| line["event"] == "unwrap")
        .count();
    assert_eq!(uses, 2);
    run(&["audit", "verify"]);
}

#[test]
fn what_is_not_there_exits_as_the_help_says() {
    let daemon = Daemon::start();
    let run = |arguments: &[&str]| refused(&mut daemon.sealblk(arguments));
    run(&["show", "none"]).expect(3, &["none"], "sealblk list");
    run(&["detach", "/no/volume"]).expect(3, &["/no/volume"], "sealblk list");
    let attach = ["attach", "v", "--socket", "s", "--name"];
    run(&[&attach[..], &["a b"]].concat()).expect(2, &["a b"], "letters");
    run(&["attach", "v", "--socket", "s", "--pid-file", "p"]).expect(2, &["pid_file"], "");
}

#[test]
fn watching_shows_the_disks_and_ends_with_the_daemon() {
    let mut daemon = Daemon::start();
    let mut watch = daemon.sealblk(&["list", "--watch", "--json"]);
    let child = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Guard(child.unwrap());
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(child.0.stdout.take().unwrap()));
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["disks"], serde_json::json!([]));
    daemon.server.terminate();
    assert!(lines.next().is_none());
    assert_eq!(child.0.wait().unwrap().code(), Some(9));
}
