//! A host of which a part is on a file system that writes down what is done to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};
use sealblk::secret::{Dek, Secret};

use crate::recorder::Recorder;
use crate::support::daemon::command;
use crate::support::home::Home;
use crate::support::server::{Server, eventually, succeed};

/// How often something is tried: so many times what the variable says.
pub fn count(least: u64) -> u64 {
    let times = std::env::var("SEALBLK_CUTS").map_or(1, |text| text.parse().unwrap());
    least * times
}

/// Where the numbers of a run begin: what the variable says, or anything.
pub fn seed(what: &str) -> u64 {
    let given = std::env::var("SEALBLK_SEED").ok();
    let seed = given.map_or_else(
        || {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).unwrap();
            u64::from(u32::from_ne_bytes(bytes))
        },
        |seed| seed.parse().unwrap(),
    );
    println!("{what}: SEALBLK_SEED={seed}");
    seed
}

pub struct Lab {
    // It goes first: it is mounted in the directory.
    pub recorder: Recorder,
    pub home: Home,
}

impl Lab {
    /// A host with a platform key, whose disks are on the recorder, in `disk`.
    pub fn new(seed: u64) -> Lab {
        Lab::with(seed, "")
    }

    /// The same with its state and its audit log there, too.
    pub fn with_state(seed: u64) -> Lab {
        Lab::with(seed, "disk/")
    }

    fn with(seed: u64, state: &str) -> Lab {
        let home = Home::new();
        let recorder = Recorder::mount(&home.path("disk"), seed);
        let lab = Lab { recorder, home };
        fs::write(
            lab.home.path("sealblk.toml"),
            lab.config(lab.home.directory(), state),
        )
        .unwrap();
        for store in ["shared", "other"] {
            let store = lab.recorder.path(store);
            fs::create_dir(&store).unwrap();
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&store, fs::Permissions::from_mode(0o700)).unwrap();
        }
        lab
    }

    /// The configuration of a host in that directory.
    fn config(&self, directory: &Path, state: &str) -> String {
        let directory = directory.display();
        let mut text = format!(
            "[daemon]\nsocket = \"{directory}/api.sock\"\nrun_dir = \"{directory}/run\"\n\
             state_dir = \"{directory}/{state}state\"\n\
             [audit]\npath = \"{directory}/{state}log/audit.jsonl\"\n"
        );
        for store in ["shared", "other"] {
            text += &format!(
                "[key_stores.{store}]\nkind = \"directory\"\npath = \"{directory}/disk/{store}\"\n"
            );
        }
        text
    }

    /// Another host, on which everything is that is left in `image`, and the
    /// platform key.
    pub fn another(&self, image: &crate::platters::Image) -> Left {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        image.restore(&place.path().join("disk"));
        let free = place.path().join("free");
        fs::create_dir(&free).unwrap();
        for (number, bytes) in image.free.iter().enumerate() {
            fs::write(free.join(number.to_string()), bytes).unwrap();
        }
        fs::copy(
            self.home.path("platform.key"),
            place.path().join("platform.key"),
        )
        .unwrap();
        let config = self.config(place.path(), "disk/");
        fs::write(place.path().join("sealblk.toml"), config).unwrap();
        Left { place }
    }

    pub fn sealblk(&self, arguments: &[&str]) -> Command {
        let mut command = self.home.sealblk(&["--config", "sealblk.toml"]);
        command.args(arguments);
        command
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        succeed(&mut self.sealblk(arguments))
    }

    /// The key of a volume.
    pub fn dek(&self, volume: &str, header: Option<&str>) -> Vec<u8> {
        export(
            self.sealblk(&[]),
            &self.home.path("exported.dek"),
            volume,
            header,
        )
        .unwrap()
    }

    /// Serves a disk while `work` is done at its socket, then kills who serves it.
    pub fn serve<T>(
        &self,
        volume: &str,
        header: Option<&str>,
        daemon: bool,
        more: &[&str],
        work: impl FnOnce(&Path) -> T,
    ) -> T {
        let socket = self.home.path("guest.sock");
        let what = if daemon { "attach" } else { "serve" };
        let mut arguments = vec![what, volume, "--socket", "guest.sock"];
        arguments.extend(header.into_iter().flat_map(|header| ["--header", header]));
        arguments.extend(more);
        if !daemon {
            let server = Server::beside(
                self.home.directory(),
                socket.clone(),
                self.sealblk(&arguments),
            );
            let result = work(&socket);
            drop(server);
            return result;
        }
        let manager = Manager::start(self);
        let name = manager.name.clone();
        arguments.extend(["--name", &name]);
        self.ok(&arguments);
        work(&socket)
    }
}

/// A manager and its workers, none of which outlives this.
pub struct Manager {
    server: Server,
    /// What its disk is called: as no other.
    pub name: String,
}

impl Manager {
    pub fn start(lab: &Lab) -> Manager {
        let name = lab.home.directory().file_name().unwrap();
        let name = name.to_str().unwrap().trim_start_matches('.').to_owned();
        let server = lab.home.start("api.sock", command(&lab.home));
        Manager { server, name }
    }

    fn workers(&self) -> Vec<Pid> {
        let wanted = format!("sealblk\0worker\0{}", self.name);
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let found = processes.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            command.starts_with(wanted.as_bytes()).then_some(pid)
        });
        found.filter_map(Pid::from_raw).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // First the one that would start others.
        self.server.kill();
        eventually("its workers have ended", || {
            let workers = self.workers();
            for pid in &workers {
                let _ = kill_process(*pid, Signal::KILL);
            }
            workers.is_empty().then_some(())
        });
    }
}

/// What is left of a host.
pub struct Left {
    place: tempfile::TempDir,
}

impl Left {
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn sealblk(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command
            .args(["--config", "sealblk.toml", "--key-file", "platform.key"])
            .args(["--log-level", "error"])
            .current_dir(self.place.path())
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs a command there: what it printed, or why it failed.
    pub fn run(&self, arguments: &[&str]) -> Result<String, String> {
        said(self.sealblk().args(arguments))
    }
}

fn said(command: &mut Command) -> Result<String, String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    match status.success() {
        true => Ok(String::from_utf8(stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&stderr).into_owned()),
    }
}

fn export(
    mut command: Command,
    to: &Path,
    volume: &str,
    header: Option<&str>,
) -> Result<Vec<u8>, String> {
    let _ = fs::remove_file(to);
    command
        .args(["volume", "export-dek", volume, "--to"])
        .arg(to);
    command.arg("--i-understand-that-this-key-decrypts-the-disk");
    command.args(header.into_iter().flat_map(|header| ["--header", header]));
    said(&mut command)?;
    let dek = fs::read(to).unwrap();
    fs::remove_file(to).unwrap();
    Ok(dek)
}

/// A key from its bytes.
pub fn dek(bytes: &[u8]) -> Dek {
    Dek::try_from(Secret::copy_of(bytes).unwrap()).unwrap()
}

/// cryptsetup reads the header, and takes this for its key.
pub fn cryptsetup_opens(header: &[u8], dek: &[u8]) {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let (at, key) = (place.path().join("header"), place.path().join("dek"));
    fs::write(&at, header).unwrap();
    fs::write(&key, dek).unwrap();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let cryptsetup = |arguments: &[&str]| {
        let mut command = Command::new("cryptsetup");
        succeed(command.args(arguments).arg(&at).env("PATH", path))
    };
    assert!(cryptsetup(&["luksDump"]).contains("sealblk"));
    let key = key.to_str().unwrap();
    cryptsetup(&[
        "open",
        "--test-passphrase",
        "--key-size",
        "512",
        "--volume-key-file",
        key,
    ]);
}
