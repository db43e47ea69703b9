//! A volume whose key is on a KMIP server, from making it to losing the key:
//! with the program, a real server, and an independent front end as its guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;
#[allow(dead_code)]
#[path = "support/pykmip.rs"]
mod pykmip;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use sealblk::kms::kmip::Mode;
use serde_json::Value;
use tempfile::TempDir;

use pykmip::PyKmip;
use support::front_end::{FrontEnd, Options};
use support::server::{Server, image_in, socket_in, succeed};

/// A host that is configured to use the key `name` on `server`.
fn configure(directory: &Path, server: &PyKmip, mode: &str, name: &str) -> PathBuf {
    let path = |name: &str| server.path(name).display().to_string();
    let text = format!(
        "[daemon]\nstate_dir = {:?}\n\
         [key_sets.default]\n\
         provider = \"kmip\"\n\
         endpoints = [\"127.0.0.1:{}\"]\n\
         key_name = \"{name}\"\n\
         mode = \"{mode}\"\n\
         ca_file = \"{}\"\n\
         client_cert = \"{}\"\n\
         client_key = \"{}\"\n\
         timeout = \"20s\"\n",
        directory.join("state"),
        server.port,
        path("ca.pem"),
        path("host.pem"),
        path("host.key"),
    );
    let file = directory.join("sealblk.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn sealblk(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.arg("--config").arg(config).args(arguments);
    command
}

fn serve(config: &Path, directory: &Path) -> Command {
    let mut command = sealblk(config, &["serve"]);
    command
        .arg(image_in(directory))
        .arg("--socket")
        .arg(socket_in(directory));
    command
}

/// Runs what must fail: its exit status, and what it said.
fn fails(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("\nhelp: "),
        "{said}"
    );
    (output.status.code().unwrap(), said)
}

fn lives_and_dies_with_its_key(mode: &str) {
    let kms = PyKmip::shared();
    let name = format!("disks by {mode}");
    let client = kms.client(Mode::Get);
    let key = sealblk::runtime::block_on(client.create_key(&name));
    let key = key.unwrap().unwrap();
    let directory = TempDir::new().unwrap();
    let path = directory.path().to_path_buf();
    let config = configure(&path, &kms, mode, &name);
    let image = image_in(&path).display().to_string();

    succeed(&mut sealblk(
        &config,
        &["volume", "create", "--size", "8M", &image],
    ));
    let info = succeed(&mut sealblk(&config, &["volume", "info", "--json", &image]));
    let info: Value = serde_json::from_str(&info).unwrap();
    let wrap = &info["wraps"][0];
    assert_eq!(wrap["provider"], "kmip");
    assert_eq!(wrap["key_version"], key.as_str());

    let secret = b"a guest's secret, 32 bytes long!".repeat(128);
    let mut server = Server::start(directory, serve(&config, &path));
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    guest.write(8, &secret);
    guest.flush();
    drop(guest);
    assert!(server.terminate().success());
    let stored = std::fs::read(image_in(&path)).unwrap();
    assert!(!stored.windows(32).any(|window| window == &secret[..32]));

    server.restart(serve(&config, &path));
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(8, secret.len()), secret);

    // The key is taken away: what runs goes on, nothing else starts.
    kms.revoke(&key, false);
    guest.write(64, &secret);
    assert_eq!(guest.read(64, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());
    let (status, said) = fails(&mut serve(&config, &path));
    assert_eq!(status, 8, "{said}");
    assert!(said.contains("has been deactivated"), "{said}");
    let other = path.join("other.img").display().to_string();
    let mut create = sealblk(&config, &["volume", "create", "--size", "8M", &other]);
    assert_eq!(fails(&mut create).0, 8);
    assert!(!Path::new(&other).exists());

    // It is given back.
    kms.set_state(&key, 2);
    server.restart(serve(&config, &path));
    let mut guest = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    assert_eq!(guest.read(64, secret.len()), secret);
    drop(guest);
    assert!(server.terminate().success());

    let text = std::fs::read_to_string(&config).unwrap();
    let port = format!("127.0.0.1:{}", kms.port);
    let nobody = format!("127.0.0.1:{}", pykmip::free_port());
    let text = text.replace(&port, &nobody) + "deadline = \"20s\"\n";
    std::fs::write(&config, text.replace("20s", "1s")).unwrap();
    let (status, said) = fails(&mut serve(&config, &path));
    assert_eq!(status, 9, "{said}");
    assert!(
        said.contains(&format!("nothing listens at {nobody}")),
        "{said}"
    );
}

#[test]
fn a_volume_lives_and_dies_with_its_key_on_the_server() {
    lives_and_dies_with_its_key("server");
}

#[test]
fn a_volume_lives_and_dies_with_a_key_that_is_got() {
    lives_and_dies_with_its_key("get");
}
