//! Keys in Cloud KMS, at a fake that Google's own clients take for it.

use std::process::Command;

use super::gcp::identity::EMAIL;
use super::gcp::kms::full_name;
use super::gcp::{Answer, Gcp};
use super::lab::{Host, Told};

fn examine_at(gcp: &Gcp, urls: &[String], more: &str) -> Told {
    Host::with(&format!(
        "provider = \"gcp-kms\"\nendpoints = {urls:?}\nkey = {:?}\n\
         auth = {{ method = \"file\", credentials = {:?}, trusted_hosts = [\"127.0.0.1\"] }}\n\
         timeout = \"20s\"\n{more}",
        full_name("disks"),
        gcp.account_file(),
    ))
    .examine()
}

fn examine(gcp: &Gcp) -> Told {
    examine_at(gcp, &[gcp.url()], "")
}

#[test]
fn a_key_that_works_is_said_to_work() {
    let gcp = Gcp::start();
    let second = gcp.another();
    let told = examine_at(&gcp, &[gcp.url(), second.url()], "version = \"1\"");
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.each(
        &[
            "credential",
            "dns",
            "tcp",
            "service",
            "clock",
            "identity",
            "read_key",
            "key",
            "expiry",
            "version",
            "wrap",
            "unwrap",
            "replication",
        ],
        "ok",
    )
    .expect("identity", "ok", &["account.json", EMAIL, "minutes"])
    .expect(
        "wrap",
        "ok",
        &[
            "version 1 of projects/prod-1",
            "GOOGLE_SYMMETRIC_ENCRYPTION",
        ],
    );

    gcp.cloud().keys.rotate("disks");
    let told = examine_at(&gcp, &[gcp.url()], "version = \"1\"");
    told.expect("version", "warn", &["pinned to 1, and 2 is the latest"]);
}

#[test]
fn what_is_wrong_is_said() {
    let gcp = Gcp::start();
    gcp.cloud().keys.set_state("disks", "1", "DISABLED");
    let told = examine(&gcp);
    assert_eq!(told.status, 8);
    told.expect("read_key", "ok", &[])
        .expect("key", "fail", &["is disabled", "versions enable 1"])
        .expect("wrap", "fail", &["is disabled"]);
    gcp.cloud()
        .keys
        .set_state("disks", "1", "DESTROY_SCHEDULED");
    examine(&gcp).expect("expiry", "ok", &["ends at 2031-05-17"]);
    gcp.cloud().keys.set_state("disks", "1", "ENABLED");

    gcp.cloud().keys.denied = ["cloudkms.cryptoKeyVersions.useToEncrypt".to_owned()].into();
    let told = examine(&gcp);
    // A made-up key is refused for what it is: to unwrap is permitted.
    told.only_failure("wrap", 8, &["useToEncrypt"])
        .expect("unwrap", "ok", &["made-up key"]);
    gcp.cloud().keys.denied.clear();

    gcp.cloud().ahead = 7200;
    let told = examine(&gcp);
    told.expect("clock", "warn", &["seconds behind"])
        .only_failure("identity", 8, &["clock of this host", "NTP"]);
    gcp.cloud().ahead = 0;

    gcp.cloud().identities.keys.clear();
    let told = examine(&gcp);
    told.only_failure("identity", 8, &["does not know the key key-1", "keys list"])
        .each(&["read_key", "wrap", "unwrap"], "skip");
    gcp.cloud().identities.keys.insert("key-1".into());

    gcp.intercept(|asked| asked.path.starts_with("/v1/").then(|| Answer::page(404)));
    examine(&gcp)
        .only_failure("service", 11, &["status 404", "not as Cloud KMS does"])
        .each(&["identity", "wrap"], "skip");
}

#[test]
fn a_host_that_is_no_machine_of_the_cloud() {
    let gcp = Gcp::start();
    let nobody = gcp.another();
    let server = nobody.url();
    nobody.stop();
    drop(nobody);
    let told = Host::with(&format!(
        "provider = \"gcp-kms\"\nendpoints = [{:?}]\nkey = {:?}\n\
         auth = {{ method = \"metadata\", server = {:?} }}\ntimeout = \"1s\"",
        gcp.url(),
        full_name("disks"),
        server.strip_prefix("http://").unwrap(),
    ))
    .examine();
    told.only_failure("identity", 9, &["no metadata server", "a credentials file"])
        .expect(
            "configuration",
            "ok",
            &["the service account of this machine"],
        );
}

#[test]
fn the_usual_variable_says_where_the_metadata_server_is() {
    let gcp = Gcp::start();
    let host = Host::with(&format!(
        "provider = \"gcp-kms\"\nendpoints = [{:?}]\nkey = {:?}\ntimeout = \"20s\"",
        gcp.url(),
        full_name("disks"),
    ));
    let doctor = |metadata_server: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(["doctor", "--key-set", "prod", "--config"])
            .arg(host.path("sealblk.toml"))
            .env("GCE_METADATA_HOST", metadata_server)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let url = gcp.url();
    let (status, said) = doctor(url.strip_prefix("http://").unwrap());
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains(EMAIL), "{said}");
    // Credentials of the machine are not asked for across a network.
    let (status, said) = doctor("10.0.0.1");
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("GCE_METADATA_HOST: \"10.0.0.1\""), "{said}");
}
