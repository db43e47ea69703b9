//! A guest whose key is in OpenBao, on a host that has no credential for
//! OpenBao: it asks brokers.

use std::fs;

use serde_json::json;

use crate::broker_site::{CERTIFICATE, HOST, Site};
use crate::daemon::{
    ROUNDS, the_file_holds_no_plaintext, the_guest_does_not_miss_the_manager,
    the_guest_finds_its_data,
};
use crate::home::refused;
use crate::machine::Guest;
use crate::manager::Manager;
use crate::openbao::OpenBao;
use crate::server::{eventually, succeed};

#[test]
fn a_guest_lives_on_a_key_that_its_host_cannot_ask_for() {
    let bao = OpenBao::start();
    bao.mount("transit");
    bao.post("transit/keys/disks", json!({}));
    bao.permit("brokers", "transit", "disks");
    let token = bao.token("brokers");
    let file = bao.write("token", &token);
    let site = Site::new(&format!(
        "[key_sets.prod]\nprovider = \"vault\"\nendpoints = [{:?}]\nkey = \"disks\"\n\
         auth = {{ method = \"token\", token = {file:?} }}\n",
        bao.url()
    ));
    let (first, sibling) = (site.start(), site.start());

    let mut manager = Manager::start(vec![]);
    let settings = site.key_set(&[&first, &sibling]);
    let settings: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut create = vec!["keyset", "create", "prod"];
    for setting in &settings {
        create.extend(["--set", setting]);
    }
    // What a broker has said holds for a second only.
    create.extend(["--set", "poll=1s", "--set", "on_denied=continue"]);
    // The guest takes all CPUs that there are, and nobody else shall be asked for that.
    create.extend(["--set", "timeout=20s", "--set", "deadline=60s"]);
    manager.succeed(&create);
    let volume = ["volume", "create", "--key-set", "prod", "--size", "24M"];
    manager.succeed(&[&volume[..], &["disk.img"]].concat());
    succeed(&mut manager.attach());
    the_guest_does_not_miss_the_manager(&mut manager);
    manager.detach();
    the_file_holds_no_plaintext(&manager);
    for entry in fs::read_dir(manager.path("")).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            // What was put in the place of another meanwhile has that one's name.
            let bytes = fs::read(entry.path()).unwrap_or_default();
            let found = bytes.windows(token.len()).any(|at| at == token.as_bytes());
            assert!(!found, "{entry:?} has the token of the key service");
        }
    }

    // The broker that was asked so far has gone.
    let uses = |broker: &crate::broker_site::Broker| {
        let lines = broker.audit();
        let ours = lines
            .iter()
            .filter(|line| line["event"] == "unwrap" && line["actor"]["host"] == HOST);
        ours.count()
    };
    assert!(uses(&first) > 0 && uses(&sibling) == 0);
    first.kill();
    succeed(&mut manager.attach());
    assert!(uses(&sibling) > 0);
    the_guest_finds_its_data(&manager);

    // The permission has gone: the running disk goes on as its policy says,
    // and there is no next attach.
    let mut guest = Guest::new("rounds")
        .on(&manager.path("disk.sock"))
        .env("ROUNDS", &ROUNDS.to_string())
        .start();
    guest.wait_for_line("round 1 begins");
    site.permit_nothing();
    eventually("the sibling denies", || {
        let denied = |line: &serde_json::Value| line["outcome"] == "denied";
        let check = ["keyset", "check", "prod"];
        let _ = manager.sealblk(&check).output().unwrap();
        sibling.audit().iter().any(denied).then_some(())
    });
    guest.succeed();
    assert_eq!(manager.disk()["state"], "running");
    manager.detach();
    refused(&mut manager.attach()).expect(8, &["key set \"prod\"", "no rule"], "");
    assert!(manager.workers().is_empty());

    site.permit(CERTIFICATE);
    eventually("the permission is there again", || {
        let attached = manager.attach().output().unwrap();
        attached.status.success().then_some(())
    });
    the_guest_finds_its_data(&manager);
    manager.detach();
    manager.succeed(&["audit", "verify"]);
}
