//! `qemu-img`, which reads what is not raw.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use serde::Deserialize;

use super::{Error, Image, Sink, nbd};
use crate::volume::Bare;

/// How often it is looked whether it has ended before it came.
const TICK: Duration = Duration::from_millis(100);

/// What `qemu-img info` says of an image, as far as it matters.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: serde_json::Value,
}

impl Info {
    /// Another file that the image at `path` stands on: one below it, one that
    /// has its data, or one of the parts that a descriptor of VMDK lists.
    fn stands_on(&self, path: &Path) -> Option<&str> {
        let data = self.format_specific.as_ref().map(|specific| &specific.data);
        let extern_file = data.and_then(|data| data.get("data-file")?.as_str());
        let parts = data.and_then(|data| data.get("extents")?.as_array());
        let part = parts.and_then(|parts| {
            let names = parts
                .iter()
                .filter_map(|part| part.get("filename")?.as_str());
            // An image of one file is its own part.
            names.into_iter().find(|name| Path::new(name) != path)
        });
        self.backing_filename.as_deref().or(extern_file).or(part)
    }
}

/// The bytes of the disk in an image.
///
/// # Errors
/// When it is no such image, or one that cannot be copied as it is.
pub fn size(path: &Path, format: &str, backing: bool) -> Result<u64, Error> {
    let output = tool(&["info", "--output=json", "-f", format])
        .arg(path)
        .output()
        .map_err(Error::NoTool)?;
    if !output.status.success() {
        return Err(Error::WrongFormat {
            path: path.to_owned(),
            format: format.to_owned(),
            why: told(&output),
        });
    }
    let info: Info = serde_json::from_slice(&output.stdout).map_err(|error| Error::Tool {
        path: path.to_owned(),
        told: format!("what it says of it makes no sense: {error}"),
    })?;
    let unusable = |why: String, next: &str| Error::Unusable {
        path: path.to_owned(),
        why,
        next: next.to_owned(),
    };
    if info.encrypted {
        return Err(unusable(
            "is encrypted".into(),
            "decrypt it with `qemu-img convert`, which takes its secret, and import the result",
        ));
    }
    match info.stands_on(path) {
        Some(other) if !backing => Err(unusable(
            format!("stands on another file, {other}, which would be read too"),
            "if that file is the right one, and no guest could have written its name, add \
             --backing",
        )),
        _ => Ok(info.virtual_size),
    }
}

/// Copies the image.
///
/// # Errors
/// See [`Error`].
pub fn copy(image: &Image, format: &str, sink: &Sink<'_>) -> Result<(), Error> {
    let talk = |what| move |source| Error::Talk { what, source };
    let directory = Private::new().map_err(talk("make a directory for a socket"))?;
    let socket = directory.0.join("nbd");
    let listener = UnixListener::bind(&socket).map_err(talk("make a socket"))?;
    let mut target = OsString::from("driver=nbd,server.type=unix,server.path=");
    // A comma in it would end the option, unless there are two.
    target.push(socket.to_string_lossy().replace(',', ",,"));
    // Nothing is known to be zero there; several requests are under way at once.
    let mut command = tool(&["convert", "-q", "-n", "-W", "-m", "8", "-f", format]);
    command
        .arg("--target-image-opts")
        .arg(image.path())
        .arg(target);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::NoTool)?;
    let mut running = Running(child);
    let accepted = accept(&listener, &mut running).map_err(talk("wait for qemu-img"))?;
    // Whoever is interrupted from here on leaves nothing behind.
    drop(directory);
    let served = match accepted {
        Some(stream) => nbd::serve(&stream, sink),
        None => Ok(None),
    };
    if let Ok(Some(error)) = served {
        return Err(sink.failed(error));
    }
    let said = running.end().map_err(talk("wait for qemu-img"))?;
    match (said, served) {
        (Some(_), _) if Bare::open(image.path())?.in_use()? => Err(Error::Busy {
            path: image.path().to_owned(),
        }),
        (Some(told), _) => Err(Error::Tool {
            path: image.path().to_owned(),
            told,
        }),
        (None, Err(source)) => Err(Error::Talk {
            what: "be a disk to qemu-img",
            source,
        }),
        (None, Ok(_)) => Ok(()),
    }
}

fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new("qemu-img");
    // Its messages are shown: not in any language.
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// What it said on standard error, in one line.
fn told(output: &Output) -> String {
    one_line(&String::from_utf8_lossy(&output.stderr))
}

fn one_line(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let line = lines.join("; ");
    let line = line.strip_prefix("qemu-img: ").unwrap_or(&line);
    match line {
        "" => "it says nothing".into(),
        line => line.chars().take(500).collect(),
    }
}

/// Waits for the connection of the process, and of no other. `None`: it has
/// ended without.
fn accept(listener: &UnixListener, running: &mut Running) -> io::Result<Option<UnixStream>> {
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK.subsec_nanos().into(),
    };
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut fds, Some(&tick))? > 0 {
            let (stream, _) = listener.accept()?;
            let peer = socket_peercred(&stream)?.pid.as_raw_nonzero().get();
            if u32::try_from(peer) == Ok(running.0.id()) {
                return Ok(Some(stream));
            }
        }
        if running.0.try_wait()?.is_some() {
            return Ok(None);
        }
    }
}

/// A process that does not outlive us.
struct Running(Child);

impl Running {
    /// Waits for its end. If it failed: what it said.
    fn end(&mut self) -> io::Result<Option<String>> {
        let mut text = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            stderr.take(64 << 10).read_to_string(&mut text)?;
        }
        let status = self.0.wait()?;
        Ok((!status.success()).then(|| one_line(&text)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that nobody else of another user can look into, while this lives.
struct Private(PathBuf);

impl Private {
    fn new() -> io::Result<Self> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("sealblk-import-{:016x}", u64::from_ne_bytes(random));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Private(path))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
