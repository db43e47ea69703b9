//! Keys and credentials that this test knows are shown nowhere: with the log at
//! its most talkative, and when processes die.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::process::Signal;
use sealblk::volume::{Inspection, Location};
use serde_json::{Value, json};

use super::faulty_proxy::Fault;
use super::lab::{Lab, Service, server};
use super::needles::assert_absent;
use super::support::daemon::{Daemon, command, configure, kill};
use super::support::home::Home;
use super::support::server::eventually;
use super::support::tree;

/// What must not be shown, and what it is.
struct Needles(Vec<(&'static str, Vec<u8>)>);

impl Needles {
    fn assert_absent(&self, shown: &[u8], place: &str) {
        for (what, needle) in &self.0 {
            assert_absent(shown, needle, &format!("{place}, looked at for {what},"));
        }
    }
}

/// A role for AppRole: how to log in as it, and its secret id.
fn approle(service: &Service) -> (String, String) {
    let role = format!("auth/approle/role/{}", service.name);
    server().post("sys/auth/approle", json!({"type": "approle"}));
    server().post(
        &role,
        json!({"token_policies": [service.name], "token_ttl": "1h"}),
    );
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let role_id = text(&server().get(&format!("{role}/role-id"))["data"]["role_id"]);
    let secret = server().post(&format!("{role}/secret-id"), json!({}));
    let secret_id = text(&secret["data"]["secret_id"]);
    let file = server().write(&format!("{}-secret-id", service.name), &secret_id);
    let auth = format!("{{ method = \"approle\", role_id = {role_id:?}, secret_id = {file:?} }}");
    (auth, secret_id)
}

/// The group key of a volume, as the operator of the service could get it.
fn group_key(lab: &Lab, volume: &str) -> Vec<u8> {
    let location = Location {
        data: lab.path(volume),
        header: None,
    };
    let description = Inspection::of(&location).unwrap().description().unwrap();
    let group = description.token.wraps[0].group.clone().unwrap();
    let mut binding = Vec::new();
    for field in [&b"sealblk group key wrap v1"[..], group.id.as_bytes()] {
        binding.extend((field.len() as u32).to_be_bytes());
        binding.extend(field);
    }
    let ciphertext = std::str::from_utf8(&group.bytes[1..]).unwrap();
    let answer = server().post(
        &format!("{}/decrypt/disks", lab.service.name),
        json!({"ciphertext": ciphertext, "associated_data": BASE64.encode(binding)}),
    );
    BASE64
        .decode(answer["data"]["plaintext"].as_str().unwrap())
        .unwrap()
}

/// Runs a command; what it said is added to `said`.
fn run(command: &mut Command, said: &mut Vec<u8>) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    said.extend(output.stdout);
    said.extend(output.stderr);
}

/// The daemon, with core dumps permitted as far as this host lets us, in a
/// directory of its own where they would be.
fn start(home: Home, config: &str) -> Daemon {
    configure(&home, "", config);
    std::fs::create_dir(home.path("cores")).unwrap();
    let daemon = command(&home);
    let mut script = Command::new("sh");
    script
        .args([
            "-c",
            "ulimit -c unlimited || ulimit -c \"$(ulimit -H -c)\"; exec \"$0\" \"$@\"",
        ])
        .arg(daemon.get_program())
        .args(daemon.get_args())
        .current_dir(home.path("cores"));
    Daemon::run(home, script)
}

/// What processes that abort leave behind, where there can be something.
fn cores(lab: &Lab) -> Vec<PathBuf> {
    let directories = [lab.path("cores"), PathBuf::from("/")];
    let found = directories.iter().flat_map(|directory| {
        let entries = std::fs::read_dir(directory).unwrap().flatten();
        entries.map(|entry| entry.path())
    });
    found
        .filter(|path| {
            path.is_file() && path.file_name().unwrap().to_string_lossy().contains("core")
        })
        .collect()
}

#[test]
fn no_secret_is_shown_by_whatever_happens() {
    let service = Service::new(1);
    let (auth, secret_id) = approle(&service);
    let config = [
        "[log]\nlevel = \"trace\"\n".to_owned(),
        service.key_set(
            "prod",
            &service.token_auth(),
            "timeout = \"5s\"\ndeadline = \"5s\"",
        ),
        service.key_set(
            "role",
            &auth,
            "hierarchy = \"direct\"\ntimeout = \"5s\"\ndeadline = \"5s\"",
        ),
    ]
    .concat();
    let mut lab = Lab {
        daemon: start(Home::new(), &config),
        service,
    };
    lab.service.proxies[0].seen();
    let mut said = Vec::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut needles = vec![
        ("the token", lab.service.token.clone().into_bytes()),
        ("the secret id", secret_id.into_bytes()),
    ];
    for (volume, key_set) in [("a", "prod"), ("b", "role"), ("c", "role")] {
        let create = [
            "volume",
            "create",
            volume,
            "--size",
            "4M",
            "--key-set",
            key_set,
        ];
        run(&mut lab.daemon.sealblk(&create), &mut said);
        let file = elsewhere.path().join(volume);
        let mut export = lab.daemon.sealblk(&["volume", "export-dek", volume]);
        export.args(["--i-understand-that-this-key-decrypts-the-disk", "--to"]);
        run(export.arg(&file), &mut said);
        needles.push(("a volume's key", std::fs::read(&file).unwrap()));
    }
    needles.push(("the group key", group_key(&lab, "a")));

    // What goes well, and what does not.
    for volume in ["a", "b"] {
        run(&mut lab.attach_command(volume, &["--json"]), &mut said);
        lab.connect(volume).write(0, &[1; 4096]);
    }
    for fault in [
        Fault::Refuse,
        Fault::http("400 Bad Request", "", r#"{"errors": ["no"]}"#),
        Fault::http("200 OK", "", "{"),
        Fault::http("403 Forbidden", "", r#"{"errors": ["permission denied"]}"#),
    ] {
        lab.service.proxies[0].set(fault);
        let output = lab.attach_command("c", &[]).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        said.extend([output.stdout, output.stderr].concat());
    }
    lab.service.proxies[0].set(Fault::None);
    run(&mut lab.attach_command("c", &[]), &mut said);
    for arguments in [
        &["list"][..],
        &["status"],
        &["keyset", "list"],
        &["keyset", "show", "role"],
        &["keyset", "check", "prod"],
        &["volume", "info", "a"],
        &["doctor"],
        &["audit", "tail"],
    ] {
        let output = lab.daemon.sealblk(arguments).output().unwrap();
        assert!(!output.stdout.is_empty(), "{arguments:?}: {output:?}");
        said.extend([output.stdout, output.stderr].concat());
    }
    // The tokens that the role got for its secret id.
    let seen = lab.service.proxies[0].seen();
    let answers = String::from_utf8_lossy(&seen.answers).into_owned();
    let tokens: Vec<&str> = answers
        .split("\"client_token\":\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .filter(|token| !token.is_empty())
        .collect();
    assert!(!tokens.is_empty());
    for token in tokens {
        needles.push(("a token of the role", token.into()));
    }
    let needles = Needles(needles);

    needles.assert_absent(&said, "what commands said");
    let shown = String::from_utf8_lossy(&said);
    assert!(shown.contains("TRACE"), "{shown}");
    for path in [
        "/v1/disks",
        &format!("/v1/disks/{}", lab.disk("a")),
        "/v1/key-sets",
        "/v1/key-sets/prod",
        "/v1/key-sets/role",
        "/v1/status",
        "/v1/audit",
        "/metrics",
    ] {
        let reply = lab.daemon.get(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        needles.assert_absent(format!("{reply:?}").as_bytes(), path);
    }
    let workers = lab.daemon.workers();
    assert_eq!(workers.len(), 3);
    for pid in workers.values().copied().chain([lab.daemon.server.pid()]) {
        for name in ["cmdline", "environ", "maps", "status"] {
            let shown = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
            needles.assert_absent(&shown, name);
        }
    }

    // Aborted, as by a defect. That a core would be made is tried on a program
    // that permits it.
    let control = Command::new("sh")
        .args(["-c", "ulimit -c unlimited && kill -ABRT $$"])
        .current_dir(lab.path("cores"))
        .status()
        .unwrap();
    assert_eq!(control.signal(), Some(libc::SIGABRT));
    let host_makes_cores = control.core_dumped();
    eprintln!("core dumps of other programs on this host: {host_makes_cores}");
    let before = cores(&lab);
    let disk = lab.disk("a");
    kill(workers[&disk], Signal::ABORT);
    eventually("another worker serves", || {
        let now = lab.show("a");
        (now["state"] == "running" && now["pid"] != workers[&disk]).then_some(())
    });
    lab.daemon.server.signal(Signal::ABORT);
    let ended = lab.daemon.server.wait();
    assert_eq!(ended.signal(), Some(libc::SIGABRT));
    assert!(!ended.core_dumped());
    assert_eq!(cores(&lab), before);

    let log = lab.daemon.server.messages();
    assert!(!log.contains("core dumped"), "{log}");
    assert!(log.contains("TRACE"), "{log}");
    needles.assert_absent(log.as_bytes(), "the log");
    let audit = std::fs::read(lab.path("audit.jsonl")).unwrap();
    let files = ["state", "run"]
        .map(|name| tree::files(&lab.path(name)))
        .concat();
    assert!(files.len() >= 4, "{files:?}");
    for (path, bytes) in files {
        needles.assert_absent(&bytes, &path.display().to_string());
    }
    needles.assert_absent(&audit, "the audit log");

    // It would have been found.
    let location = Location {
        data: lab.path("a"),
        header: None,
    };
    let description = Inspection::of(&location).unwrap().description().unwrap();
    let uuid = description.binding().uuid.to_string();
    let found = std::panic::catch_unwind(|| assert_absent(&audit, uuid.as_bytes(), "the log"));
    assert!(found.is_err());
}
