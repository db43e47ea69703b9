//! A manager in a process of its own, which can be killed: this test program
//! once more, told what to do over its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use sealblk::config::{Log, LogLevel};
use sealblk::manager::disks::{Disks, Pace, Settings, Step};
use sealblk::manager::model::{NewSize, PaceChange, RekeyChange};
use sealblk::plane::moving::Go;
use sealblk::rekey::Direction;
use sealblk::sandbox::Walls;

use super::lab::{BY_FORCE, ephemeral, keys, request, run, settings, us};
use super::support::home::SIZE;

const DIRECTORY: &str = "SEALBLK_TEST_MANAGER";
/// Workers of a manager with this have all their walls, or do not serve.
pub const REQUIRE_WALLS: &str = "SEALBLK_TEST_REQUIRE_WALLS";
/// Before each answer, to tell it from what the test harness says.
const MARK: &str = "@ ";

pub struct ManagerProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl ManagerProcess {
    /// Starts a manager, and waits until it has looked for its disks.
    pub fn start(directory: &Path) -> ManagerProcess {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log_of(directory))
            .unwrap();
        Self::start_with(directory, log.into(), |_| {})
    }

    /// The same, after `change` of how its process is started.
    pub fn start_changed(directory: &Path, change: impl FnOnce(&mut Command)) -> ManagerProcess {
        let log = std::fs::File::create(log_of(directory)).unwrap();
        Self::start_with(directory, log.into(), change)
    }

    /// The same, with a log that nobody reads any more.
    pub fn start_unheard(directory: &Path) -> ManagerProcess {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Self::start_with(directory, writer.into(), |_| {})
    }

    fn start_with(
        directory: &Path,
        log: Stdio,
        change: impl FnOnce(&mut Command),
    ) -> ManagerProcess {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "process::manager_process", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut manager = ManagerProcess {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(manager.answer().as_deref(), Some("open"));
        manager
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something. Nothing comes back if that was its end.
    pub fn ask(&mut self, command: &str) -> Option<String> {
        // It may be dead already.
        let _ = writeln!(self.input, "{command}");
        self.answer()
    }

    fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The harness writes "test … " before, on the same line.
            if let Some((_, answer)) = line.split_once(MARK) {
                return Some(answer.trim_end().to_owned());
            }
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// Panics unless it was killed by itself.
    pub fn was_killed(mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for ManagerProcess {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn log_of(directory: &Path) -> PathBuf {
    directory.join("manager.log")
}

/// The step at which the process ends itself.
static DEADLY: Mutex<Option<String>> = Mutex::new(None);

fn on_step(step: Step) {
    if *DEADLY.lock().unwrap() == Some(format!("{step:?}")) {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        std::thread::sleep(Duration::MAX);
    }
}

/// No test, but the process of a [`ManagerProcess`].
#[test]
fn manager_process() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).unwrap();
    let log = Log {
        level: LogLevel::Trace,
        ..Log::default()
    };
    sealblk::logging::init(log);
    let settings = Settings {
        log,
        walls: Walls {
            required: std::env::var_os(REQUIRE_WALLS).is_some(),
            ..settings(&directory).walls
        },
        on_step: Some(on_step),
        restart: Pace {
            first: Duration::from_millis(10),
            most: Duration::from_secs(1),
        },
        ..settings(&directory)
    };
    run(async {
        let disks = Disks::open(settings, keys(&directory)).await;
        let disks = disks.unwrap_or_else(|failure| panic!("{failure}"));
        println!("{MARK}open");
        let mut lines = std::io::stdin().lines();
        while let Some(line) = tokio::task::block_in_place(|| lines.next()) {
            let line = line.unwrap();
            let (command, what) = line.split_once(' ').unwrap();
            let outcome = match command {
                "die" => {
                    *DEADLY.lock().unwrap() = Some(what.to_owned());
                    Ok(())
                }
                "attach" => {
                    let attached = disks.attach(&us(), request(&directory, what)).await;
                    attached.map(drop)
                }
                "scratch" => {
                    let request = ephemeral(&directory, what, SIZE);
                    disks.attach(&us(), request).await.map(drop)
                }
                "grow" => {
                    let (file, size) = what.split_once(' ').unwrap();
                    let name = super::lab::name(&directory, file);
                    let wanted = NewSize {
                        size: Some(size.parse().unwrap()),
                        preallocate: false,
                    };
                    disks.resize(&us(), &name, wanted).await.map(drop)
                }
                "rekey" => {
                    let name = super::lab::name(&directory, what);
                    let wanted = super::rekey::start(&[name]);
                    disks.rekey(&us(), wanted).await.map(drop)
                }
                "slow" => {
                    let name = super::lab::name(&directory, what);
                    let wanted = super::rekey::slow(&[name]);
                    disks.rekey(&us(), wanted).await.map(drop)
                }
                "pause" | "resume" => {
                    let name = super::lab::name(&directory, what);
                    let go = match command {
                        "pause" => Go::Pause,
                        _ => Go::Run,
                    };
                    let pace = PaceChange {
                        limit: Some(0),
                        ..PaceChange::default()
                    };
                    let change = RekeyChange { go: Some(go), pace };
                    disks.change_rekey(&us(), &name, change).await.map(drop)
                }
                "turn" => {
                    let name = super::lab::name(&directory, what);
                    let info = disks.get(&name).and_then(|info| info.rekey);
                    let direction = match info.map(|rekey| rekey.direction) {
                        Some(Direction::Back) => Direction::Forward,
                        _ => Direction::Back,
                    };
                    let turned = disks.turn_rekey(&us(), &name, direction).await;
                    turned.map(drop)
                }
                "is" => {
                    let name = super::lab::name(&directory, what);
                    let info = disks.get(&name).and_then(|info| info.rekey);
                    let state = info.map_or("none", |rekey| rekey.state.as_str());
                    println!("{MARK}{state}");
                    continue;
                }
                "detach" => {
                    let name = super::lab::name(&directory, what);
                    disks.detach(&us(), &name, BY_FORCE).await
                }
                _ => panic!("{line}"),
            };
            match outcome {
                Ok(()) => println!("{MARK}ok"),
                Err(failure) => println!("{MARK}{failure}"),
            }
        }
    });
}
