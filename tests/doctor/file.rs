//! The built-in provider, and the checks of the host.

use std::os::unix::fs::PermissionsExt;

use super::lab::Host;

fn host() -> Host {
    let host = Host::with("");
    let key = host.path("key");
    let settings = format!("[key_sets.prod]\nprovider = \"file\"\nkey_file = {key:?}\n");
    std::fs::write(host.path("sealblk.toml"), settings).unwrap();
    host
}

#[test]
fn a_platform_key_is_examined_without_a_network() {
    let host = host();
    host.examine()
        .only_failure("read_key", 3, &["does not exist", "sealblk key init"])
        .each(&["wrap", "unwrap", "key"], "skip");
    sealblk::kms::file::create(&host.path("key")).unwrap();
    let told = host.examine();
    told.each(
        &[
            "configuration",
            "read_key",
            "key",
            "expiry",
            "version",
            "wrap",
            "unwrap",
        ],
        "ok",
    );
    assert_eq!(told.status, 0);
    for network in ["dns", "tcp", "tls", "service", "identity", "replication"] {
        assert!(told.all_named(network).is_empty(), "{network}");
    }
    let key = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(host.path("key"), key).unwrap();
    host.examine()
        .expect("read_key", "fail", &["0644", "chmod 0600"]);
}

#[test]
fn the_host_is_examined() {
    let host = host();
    sealblk::kms::file::create(&host.path("key")).unwrap();
    let told = host.examine();
    let names: Vec<&str> = told.all["host"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "kernel",
            "io_uring",
            "engine",
            "memfd_secret",
            "memlock",
            "nofile",
            "core_dumps",
            "landlock",
            "hugepages",
            "sandbox_privileges",
            "sandbox_user",
            "sandbox_capabilities",
            "sandbox_namespaces",
            "sandbox_root",
            "sandbox_seccomp"
        ]
    );
    let people = String::from_utf8(host.doctor(&[]).stdout).unwrap();
    assert!(people.contains("key set prod (provider file)"), "{people}");
    assert!(people.contains("0 failed"), "{people}");
}

/// A limit of the process is seen by the process.
#[test]
fn limits_are_those_of_the_process() {
    let host = host();
    sealblk::kms::file::create(&host.path("key")).unwrap();
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -S -c $(ulimit -H -c); ulimit -n 300; exec \"$@\"",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_sealblk"))
        .args(["doctor", "--json", "--config"])
        .arg(host.path("sealblk.toml"))
        .output()
        .unwrap();
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = |name: &str| {
        let host = all["host"].as_array().unwrap();
        host.iter()
            .find(|check| check["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(check("nofile")["status"], "warn");
    // Whatever the limit is: no process of sealblk has any.
    assert_eq!(check("core_dumps")["status"], "ok");
}

/// Volumes of key services need no platform key.
#[test]
fn a_platform_key_that_was_never_made_is_no_failure_beside_others() {
    let host = host();
    sealblk::kms::file::create(&host.path("key")).unwrap();
    let doctor = |only: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"))
            .args(["doctor", "--config"])
            .arg(host.path("sealblk.toml"))
            .arg("--key-file")
            .arg(host.path("never-made"))
            .args(only)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (status, said) = doctor(&[]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("there is no platform key file"), "{said}");
    // Unless it is meant.
    assert_eq!(doctor(&["--key-set", "default"]).0, 3);
}

#[test]
fn a_key_set_that_is_not_there_is_said_so() {
    let host = host();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sealblk"))
        .args(["doctor", "--key-set", "other", "--config"])
        .arg(host.path("sealblk.toml"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("no key set \"other\"") && said.contains("prod"),
        "{said}"
    );
    assert!(output.stdout.is_empty());
}
