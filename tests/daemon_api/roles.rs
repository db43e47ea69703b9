//! Roles, by processes that are really other users.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;

use rustix::process::{Gid, Uid};

use super::support::daemon::{Daemon, read_reply};
use super::support::home::refused;
use super::support::server::{eventually, succeed};

const ROLES: &str = r#"
[daemon.roles]
reader = ["60001", "@60101"]
operator = ["60002", "@60102"]
key-admin = ["60003", "@60103"]
"#;

/// Everything that can be asked for, and who may.
const OPERATIONS: [(&str, &str, Option<&str>, &str); 15] = [
    ("GET", "/v1/status", None, "reader operator key-admin"),
    ("GET", "/v1/disks", None, "reader operator key-admin"),
    ("GET", "/v1/disks/none", None, "reader operator key-admin"),
    ("GET", "/v1/key-sets", None, "reader operator key-admin"),
    (
        "GET",
        "/v1/key-sets/default",
        None,
        "reader operator key-admin",
    ),
    ("GET", "/v1/audit", None, "reader operator key-admin"),
    ("GET", "/metrics", None, "reader operator key-admin"),
    (
        "POST",
        "/v1/verifications",
        Some(r#"{"disk": "none"}"#),
        "reader operator key-admin",
    ),
    ("POST", "/v1/reload", None, "operator key-admin"),
    (
        "POST",
        "/v1/disks",
        Some(r#"{"volume": "/nowhere", "socket": "/nowhere.sock"}"#),
        "operator",
    ),
    ("DELETE", "/v1/disks/none", None, "operator"),
    (
        "POST",
        "/v1/key-sets",
        Some(r#"{"name": "none", "definition": {"provider": "none"}}"#),
        "key-admin",
    ),
    ("PATCH", "/v1/key-sets/none", Some("{}"), "key-admin"),
    ("DELETE", "/v1/key-sets/none", None, "key-admin"),
    ("POST", "/v1/key-sets/none/check", None, "key-admin"),
];

/// A daemon that everybody may connect to.
pub fn open_to_all(roles: &str) -> Daemon {
    let daemon = Daemon::configured("socket_mode = \"0666\"", roles);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(daemon.home.directory(), mode).unwrap();
    daemon
}

/// A command as another user.
fn as_user(identity: &[&str], program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(identity).arg(program);
    command
}

fn user(uid: u32) -> [String; 3] {
    [
        format!("--reuid={uid}"),
        "--regid=60999".into(),
        "--clear-groups".into(),
    ]
}

/// Somebody to be.
#[derive(Clone, Debug)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    fn new(uid: u32, gid: u32, groups: &[u32]) -> Self {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    pub fn user(uid: u32) -> Self {
        Self::new(uid, 60999, &[])
    }

    /// Does something in a thread that is this user: the kernel's credentials
    /// are those of a thread, and what it connects is theirs.
    pub fn does<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        thread::scope(|scope| {
            let become_them = || {
                let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
                set_thread_groups(&groups).unwrap();
                let gid = Gid::from_raw(self.gid);
                set_thread_res_gid(gid, gid, gid).unwrap();
                let uid = Uid::from_raw(self.uid);
                set_thread_res_uid(uid, uid, uid).unwrap();
                what()
            };
            scope.spawn(become_them).join().unwrap()
        })
    }
}

#[test]
#[ignore = "needs root, to become other users"]
fn each_user_and_group_may_do_what_its_role_is_for() {
    let daemon = open_to_all(ROLES);
    let people = [
        (Identity::user(60000), "nobody"),
        (Identity::user(60001), "reader"),
        (Identity::user(60002), "operator"),
        (Identity::user(60003), "key-admin"),
        // By their first group, and by one of the others.
        (Identity::new(60000, 60101, &[]), "reader"),
        (Identity::new(60000, 60999, &[60001, 60102]), "operator"),
        (Identity::new(60000, 60999, &[60103]), "key-admin"),
        // Numbers of groups are no users.
        (Identity::new(60000, 60002, &[60003]), "nobody"),
    ];
    for (identity, role) in &people {
        for (method, path, body, roles) in OPERATIONS {
            let reply = identity.does(|| daemon.ask(method, path, body));
            let may = roles.split(' ').any(|allowed| allowed == *role);
            let what = format!("{method} {path} as {identity:?}, {role}: {reply:?}");
            assert_eq!(reply.status != 403, may, "{what}");
        }
    }
    // And we ourselves may do all.
    for (method, path, body, _) in OPERATIONS {
        assert_ne!(
            daemon.ask(method, path, body).status,
            403,
            "{method} {path}"
        );
    }
}

#[test]
#[ignore = "needs root, to become other users"]
fn who_one_is_cannot_be_changed_by_what_one_sends() {
    let daemon = open_to_all(ROLES);
    let request = "GET /v1/status HTTP/1.1\r\nHost: root\r\nX-Forwarded-For: 127.0.0.1\r\n\
        Authorization: Basic cm9vdDpyb290\r\nX-Uid: 0\r\nConnection: close\r\n\r\n";
    let reply = Identity::user(60000).does(|| {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        read_reply(&mut stream).unwrap()
    });
    assert_eq!(reply.status, 403);
}

#[test]
#[ignore = "needs root, whose roles are taken away"]
fn root_can_be_kept_to_a_role() {
    let daemon = Daemon::configured("", "[daemon.roles]\nroot = false\noperator = [\"root\"]");
    let you = &daemon.get("/v1/status").json()["you"];
    assert_eq!(you["roles"], serde_json::json!(["operator"]));
    let reply = daemon.ask("DELETE", "/v1/key-sets/none", None);
    assert_eq!(reply.status, 403, "{reply:?}");
    assert_eq!(reply.json()["needs"], serde_json::json!(["key-admin"]));
    assert_ne!(daemon.ask("DELETE", "/v1/disks/none", None).status, 403);
}

#[test]
#[ignore = "needs root, to become other users"]
fn commands_of_others_say_why_they_may_not() {
    let daemon = open_to_all(ROLES);
    let run = |uid: u32, arguments: &[&str]| {
        let identity = user(uid);
        let identity = identity.each_ref().map(String::as_str);
        let mut command = as_user(&identity, env!("CARGO_BIN_EXE_sealblk"));
        command
            .arg("--daemon")
            .arg(daemon.socket())
            .args(arguments)
            .current_dir("/");
        command
    };
    refused(&mut run(60000, &["list"])).expect(4, &["user 60000", "reader"], "daemon.roles");
    refused(&mut run(60001, &["reload"])).expect(4, &["operator or key-admin"], "daemon.roles");
    let attach = ["attach", "/v", "--socket", "/s"];
    refused(&mut run(60003, &attach)).expect(4, &["role operator", "key-admin"], "daemon.roles");
    succeed(&mut run(60001, &["list"]));
    let text = succeed(&mut run(60002, &["status"]));
    assert!(
        text.contains("you            user 60002: operator\n"),
        "{text}"
    );
    // Who may not even connect is told how to.
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    refused(&mut run(60001, &["list"])).expect(4, &["may not connect"], "join the group");
}

#[test]
#[ignore = "needs root, to become other users"]
fn one_user_does_not_keep_the_others_out() {
    let daemon = open_to_all(ROLES);
    let mut held = Identity::user(60001).does(|| {
        let connect = |_| UnixStream::connect(daemon.socket()).unwrap();
        (0..140).map(connect).collect::<Vec<_>>()
    });
    eventually("those that are too many are closed", || {
        held.retain_mut(|stream| {
            stream.set_nonblocking(true).unwrap();
            let ended = matches!(stream.read(&mut [0]), Ok(0));
            stream.set_nonblocking(false).unwrap();
            !ended
        });
        (held.len() <= 128).then_some(())
    });
    assert_eq!(daemon.get("/v1/status").status, 200);
    let request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for stream in &mut held {
        stream.write_all(request).unwrap();
    }
    let replies = held.iter_mut().filter_map(read_reply);
    assert_eq!(replies.filter(|reply| reply.status == 200).count(), 128);
}
