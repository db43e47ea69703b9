//! Plugins of the Kubernetes KMS API v2 in a process of their own, in another
//! language and on another gRPC, and what their operator can do.
//! `scripts/install-deps test` installs what that needs.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sealblk::kms::cluster::Timing;
use sealblk::kms::k8s::Settings;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The process, which serves any number of plugins.
struct Process {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    _scratch: TempDir,
}

impl Process {
    fn start() -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let python = target.join("k8s-kms/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run scripts/install-deps test",
            python.display()
        );
        let support = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
        let scratch = TempDir::new().unwrap();
        let mut child = Command::new(python)
            .arg(support.join("k8s_plugin.py"))
            .arg(support.join("kms_v2.proto"))
            .arg(scratch.path())
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Process {
            commands: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
            _scratch: scratch,
        }
    }

    fn command(&mut self, command: &str, directory: &Path) {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{command} {}", directory.display()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "the plugin's process does not go on");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input. So it does when this process is killed.
        drop(self.commands.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One plugin.
pub struct Plugin {
    process: Arc<Mutex<Process>>,
    directory: TempDir,
    state: Mutex<Value>,
}

impl Plugin {
    /// A plugin with one key, `key-1`.
    pub fn start() -> Self {
        static SHARED: Mutex<Weak<Mutex<Process>>> = Mutex::new(Weak::new());
        let process = {
            let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let process = Arc::new(Mutex::new(Process::start()));
                *shared = Arc::downgrade(&process);
                process
            })
        };
        let state = json!({"keys": {}, "current": "", "version": "v2", "healthz": "ok"});
        let plugin = Plugin {
            process,
            directory: tempfile::Builder::new()
                .prefix("sealblk-")
                .tempdir()
                .unwrap(),
            state: Mutex::new(state),
        };
        plugin.rotate();
        plugin.command("start");
        plugin
    }

    fn command(&self, command: &str) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.command(command, self.directory.path());
    }

    /// Ends it, and removes its socket.
    pub fn stop(&self) {
        self.command("stop");
    }

    /// Starts it again.
    pub fn start_again(&self) {
        self.command("start");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("kms.sock")
    }

    pub fn settings(&self) -> Settings {
        Settings {
            socket: self.socket(),
            plugin_user: None,
            // The machine may be busy with other tests.
            timing: Timing {
                timeout: Duration::from_secs(20),
                deadline: Duration::from_secs(4),
            },
        }
    }

    /// Changes what it does from now on; see `k8s_plugin.py`.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        let new = self.path("new");
        fs::write(&new, state.to_string()).unwrap();
        fs::rename(new, self.path("state.json")).unwrap();
    }

    /// What it does differs in this from now on.
    pub fn set(&self, what: &str, value: Value) {
        self.change(|state| state[what] = value);
    }

    /// A new key, which it encrypts with from now on.
    pub fn rotate(&self) {
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        self.change(|state| {
            let keys = state["keys"].as_object_mut().unwrap();
            let id = format!("key-{}", keys.len() + 1);
            keys.insert(
                id.clone(),
                json!({"key": hex::encode(key), "enabled": true}),
            );
            state["current"] = id.into();
        });
    }

    pub fn set_enabled(&self, id: &str, enabled: bool) {
        self.change(|state| state["keys"][id]["enabled"] = enabled.into());
    }

    pub fn delete(&self, id: &str) {
        self.change(|state| {
            state["keys"].as_object_mut().unwrap().remove(id);
        });
    }

    /// All keys that it has.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = state["keys"].as_object().unwrap().values();
        keys.map(|key| hex::decode(key["key"].as_str().unwrap()).unwrap())
            .collect()
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("requests.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if self.socket().exists() {
            // A process that has died stops no plugin.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.stop()));
        }
    }
}
