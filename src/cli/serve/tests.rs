//! Flags of `serve` over the configuration over the defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::config::{Cache, Direct, Discard, Engine, SocketMode};
use crate::error::{Explain, Kind};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn parse(flags: &str) -> Result<Args, clap::Error> {
    Line::try_parse_from(["serve"].into_iter().chain(flags.split_whitespace()))
        .map(|line| line.args)
}

fn resolve(flags: &str, file: Options) -> Result<Serve, config::Error> {
    let config = Config {
        serve: file,
        ..Config::default()
    };
    parse(flags).unwrap().resolve(&config)
}

/// `flags`, as the file would have them.
fn options(flags: &str) -> Options {
    parse(&format!("/v --socket /s {flags}")).unwrap().options
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let serve = resolve("/v --socket /s", Options::default()).unwrap();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let cores = info.lines().filter(|line| line.starts_with("processor"));
    let expected = Serve {
        break_glass: false,
        even_if_denied: false,
        recovery_key_file: None,
        decrypt: false,
        incoming: false,
        disks: vec![config::Disk {
            volume: "/v".into(),
            header: None,
            socket: "/s".into(),
            serial: None,
        }],
        socket_mode: SocketMode::OWNER,
        socket_group: None,
        queues: u16::try_from(cores.count().min(64)).unwrap(),
        cpus: vec![],
        queue_size: 1024,
        read_only: false,
        discard: Discard::Ignore,
        direct: Direct::Auto,
        cache: Cache::Writeback,
        poll: Duration::from_micros(50),
        engine: Engine::default(),
        limits: Default::default(),
        on_error: Default::default(),
        stuck_after: Duration::from_secs(30),
        pid_file: None,
        require_sandbox: false,
    };
    assert_eq!(serve, expected);
}

#[test]
fn volumes_headers_and_sockets_go_together_in_order() {
    let serve = resolve(
        "/a /b --socket /1 --socket /2 --header /x --header /y",
        Options::default(),
    )
    .unwrap();
    let paths: Vec<_> = serve
        .disks
        .iter()
        .map(|disk| {
            (
                disk.volume.clone(),
                disk.header.clone(),
                disk.socket.clone(),
            )
        })
        .collect();
    let path = PathBuf::from;
    assert_eq!(
        paths,
        [
            (path("/a"), Some(path("/x")), path("/1")),
            (path("/b"), Some(path("/y")), path("/2")),
        ]
    );
}

#[test]
fn relative_paths_are_taken_from_the_working_directory() {
    let serve = resolve("v --socket s --pid-file p", Options::default()).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(serve.disks[0].volume, here.join("v"));
    assert_eq!(serve.disks[0].socket, here.join("s"));
    assert_eq!(serve.pid_file, Some(here.join("p")));
}

#[test]
fn each_flag_wins_over_the_file() {
    let file = "--socket-mode 0640 --queues 2 --queue-size 32 --discard pass --direct never \
        --cache writethrough --poll-us 1 --engine portable --serial file --pid-file /file";
    let flags = "--socket-mode 0600 --queues 4 --queue-size 64 --discard ignore --direct always \
        --cache writeback --poll-us 2 --engine auto --serial flag --pid-file /flag";
    let line = |flags: &str| format!("/v --socket /s {flags}");
    let alone = resolve(&line(flags), Options::default()).unwrap();
    let over = resolve(&line(flags), options(file)).unwrap();
    let below = resolve(&line(""), options(file)).unwrap();
    assert_eq!(over, alone);
    assert_eq!(below, resolve(&line(file), Options::default()).unwrap());
    // So that the above shows something of every field.
    let (a, b) = (format!("{alone:#?}"), format!("{below:#?}"));
    let differing = a.lines().zip(b.lines()).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 10, "{a}\n{b}");
}

#[test]
fn read_only_can_be_set_and_taken_back() {
    let read_only = |flags: &str, file: &str| {
        resolve(&format!("/v --socket /s {flags}"), options(file))
            .unwrap()
            .read_only
    };
    assert!(read_only("--read-only", ""));
    assert!(read_only("", "--read-only"));
    assert!(!read_only("--read-only=false", "--read-only"));
    // A host that passes discards on may serve a read-only disk.
    let serve = resolve("/v --socket /s --read-only", options("--discard pass")).unwrap();
    assert_eq!((serve.read_only, serve.discard), (true, Discard::Ignore));
}

#[test]
fn a_socket_group_opens_the_socket_to_it() {
    let mode = |flags: &str| resolve(&format!("/v --socket /s {flags}"), Options::default());
    assert_eq!(mode("--socket-group 7").unwrap().socket_mode.bits(), 0o660);
    let both = mode("--socket-group 7 --socket-mode 0620").unwrap();
    assert_eq!(both.socket_mode.bits(), 0o620);
}

#[test]
fn contradictions_are_refused() {
    let long = format!("/{}", "x".repeat(107));
    let fits = format!("/v --socket /{}", "x".repeat(106));
    assert!(resolve(&fits, Options::default()).is_ok());
    for (flags, told) in [
        ("/a /b --socket /s", "2 volumes and 1 sockets"),
        ("/a --socket /s --socket /t", "1 volumes and 2 sockets"),
        (
            "/a /b --socket /s --socket /t --header /h",
            "2 volumes and 1 headers",
        ),
        (
            "/a /b --socket /s --socket /t --serial x",
            "one serial number for 2 disks",
        ),
        (
            "/a /a --socket /s --socket /t",
            "/a is named for two purposes",
        ),
        (
            "/a /b --socket /s --socket /s",
            "/s is named for two purposes",
        ),
        ("/a --socket /a", "/a is named for two purposes"),
        (
            "/a --socket /s --pid-file /a",
            "/a is named for two purposes",
        ),
        ("/a --socket /s --header /a", "/a is named for two purposes"),
        (
            "/a --socket /s --socket-group 7 --socket-mode 0600",
            "does not let group 7 connect",
        ),
        (
            "/a --socket /s --read-only --discard pass",
            "exclude each other",
        ),
        (
            "/a --socket /s --read-only --cache writeback",
            "exclude each other",
        ),
        (
            &format!("/a --socket {long}"),
            "has 108 bytes, and the system takes 107",
        ),
    ] {
        let error = resolve(flags, Options::default()).expect_err(flags);
        assert!(error.to_string().contains(told), "{flags}: {error}");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.help().is_some_and(|help| !help.is_empty()));
    }
    let error = resolve("/v --socket /s", {
        let mut file = options("--discard pass");
        file.read_only = Some(true);
        file
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("read_only and discard"),
        "{error}"
    );
}

#[test]
fn what_is_no_value_is_refused() {
    for flags in [
        "",
        "/v",
        "--socket /s",
        "/v --socket /s --queues 0",
        "/v --socket /s --queue-size 3",
        "/v --socket /s --socket-mode 0777",
        "/v --socket /s --poll-us 20us",
        "/v --socket /s --engine warp",
        "/v --socket /s --read-only=maybe",
        "/v --socket /s --nonsense",
    ] {
        let error = parse(flags).expect_err(flags);
        assert_eq!(
            error.exit_code(),
            i32::from(Kind::Usage.exit_status()),
            "{flags}"
        );
    }
}

#[test]
fn any_bytes_make_a_path() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let odd = OsStr::from_bytes(b"/v\xff");
    let line = [
        OsStr::new("serve"),
        odd,
        OsStr::new("--socket"),
        OsStr::new("/s"),
    ];
    let serve = Line::try_parse_from(line)
        .unwrap()
        .args
        .resolve(&Config::default())
        .unwrap();
    assert_eq!(serve.disks[0].volume, Path::new(odd));
}
