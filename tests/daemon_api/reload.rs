//! Reading the configuration again.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use super::support::daemon::{Daemon, configure};
use super::support::server::eventually;

#[test]
fn what_can_change_changes_and_the_rest_is_named() {
    let daemon = Daemon::start();
    let reloaded = daemon.ask("POST", "/v1/reload", None).json();
    assert_eq!(reloaded["changed"], json!([]));
    assert_eq!(reloaded["needs_restart"], json!([]));

    let directory = daemon.home.directory().display().to_string();
    let set = format!("[key_sets.new]\nprovider = \"file\"\nkey_file = \"{directory}/k\"");
    let rest = format!(
        "[daemon.roles]\nreader = [\"65533\", \"no-such-user-here\"]\n[log]\nlevel = \"debug\"\n{set}"
    );
    configure(&daemon.home, "keep_deks = false", &rest);
    let text = fs::read_to_string(daemon.home.path("sealblk.toml")).unwrap();
    let text = text.replace("api.sock", "other.sock");
    fs::write(daemon.home.path("sealblk.toml"), text).unwrap();

    let reloaded = daemon.ask("POST", "/v1/reload", None).json();
    let expected = json!(["daemon.roles", "key_sets.new", "log.level"]);
    assert_eq!(reloaded["changed"], expected);
    let needs = reloaded["needs_restart"].as_array().unwrap();
    for setting in ["daemon.keep_deks", "daemon.socket"] {
        assert!(needs.contains(&json!(setting)), "{setting}: {reloaded}");
    }
    let warnings = reloaded["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{reloaded}");
    assert!(warnings[0].as_str().unwrap().contains("no-such-user-here"));

    // It is so, and stays known.
    let sets = daemon.get("/v1/key-sets").json();
    let names: Vec<_> = sets
        .as_array()
        .unwrap()
        .iter()
        .map(|set| &set["name"])
        .collect();
    assert!(names.contains(&&json!("new")), "{sets}");
    assert_eq!(
        daemon.get("/v1/status").json()["needs_restart"],
        reloaded["needs_restart"]
    );
    eventually("debug lines are logged", || {
        daemon.get("/v1/status");
        daemon.server.messages().contains("DEBUG").then_some(())
    });
}

#[test]
fn a_signal_does_the_same() {
    let daemon = Daemon::start();
    let set = "[key_sets.new]\nprovider = \"file\"\n";
    configure(&daemon.home, "", set);
    daemon.server.signal(Signal::HUP);
    eventually("the key set is there", || {
        (daemon.get("/v1/key-sets/new").status == 200).then_some(())
    });
    configure(&daemon.home, "", "");
    daemon.server.signal(Signal::HUP);
    eventually("the key set has gone", || {
        (daemon.get("/v1/key-sets/new").status == 404).then_some(())
    });
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    let mut daemon = Daemon::configured("", "[key_sets.a]\nprovider = \"file\"\n");
    let path = daemon.home.path("sealblk.toml");
    let good = fs::read_to_string(&path).unwrap();
    for (text, status, told) in [
        ("[daemon]\nsokcet = \"/s\"".to_owned(), 400, "sokcet"),
        (
            good.replace("key_sets.a", "key_sets.b") + "x",
            400,
            "sealblk.toml:",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let reply = daemon.ask("POST", "/v1/reload", None);
        assert_eq!(reply.status, status, "{reply:?}");
        let problem = reply.json();
        assert!(
            problem["message"].as_str().unwrap().contains(told),
            "{problem}"
        );
        daemon.server.signal(Signal::HUP);
        eventually("the signal was handled", || {
            let messages = daemon.server.messages();
            messages
                .contains("the configuration stays as it was")
                .then_some(())
        });
        assert_eq!(daemon.get("/v1/key-sets/a").status, 200);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(daemon.ask("POST", "/v1/reload", None).status, 404);
    daemon.server.assert_running("files that are wrong");
}
