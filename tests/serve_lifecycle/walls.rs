//! The walls of `sealblk serve`, tried from its inside while it serves.

use super::inject::{Answer, Puppet, without_call};
use super::support::front_end::{FrontEnd, Options};
use super::support::home::{Home, refused};
use super::support::server::eventually;

const DATA: [u8; 4096] = [0x5a; 4096];
const CWD: u64 = libc::AT_FDCWD as u64;

fn refused_with(errno: i32) -> Answer {
    Answer::Returned(-i64::from(errno))
}

#[test]
fn an_intruder_in_a_server_finds_walls() {
    let home = Home::with_volume();
    home.create("other.img", &[]);
    let pid_file = home.path("pid");
    let pid_file = pid_file.to_str().unwrap();
    let arguments = ["disk.img", "--require-sandbox", "--pid-file", pid_file];
    let mut server = home.serve(&arguments);
    let mut front_end = FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    front_end.write(8, &DATA);
    let other = home.path("other.img");
    let other = other.to_str().unwrap();
    for thread in threads(server.pid()) {
        let mut puppet = Puppet::take(thread);
        let text = puppet.text("/etc/passwd");
        let beside = puppet.text(other);
        let new = puppet.text(&format!("{other}.new"));
        let create = (libc::O_CREAT | libc::O_RDWR) as u64;
        let eacces = refused_with(libc::EACCES);
        let eperm = refused_with(libc::EPERM);
        let address = puppet.give(&[0; 16]);
        for (number, arguments, answer) in [
            (libc::SYS_openat, vec![CWD, text, 0], eacces),
            (libc::SYS_openat, vec![CWD, beside, 0], eacces),
            (
                libc::SYS_openat,
                vec![CWD, beside, libc::O_RDWR as u64],
                eacces,
            ),
            (libc::SYS_openat, vec![CWD, new, create, 0o600], eacces),
            (libc::SYS_unlinkat, vec![CWD, text, 0], eacces),
            (libc::SYS_renameat2, vec![CWD, beside, CWD, new, 0], eperm),
            (libc::SYS_linkat, vec![CWD, beside, CWD, new, 0], eperm),
            (libc::SYS_fork, vec![], eperm),
            (libc::SYS_kill, vec![1, 0], eperm),
            (libc::SYS_sendto, vec![0, text, 1, 0, address, 16], eperm),
            (libc::SYS_chdir, vec![text], eperm),
        ] {
            assert_eq!(puppet.call(number, &arguments), answer, "{number}");
        }
        drop(puppet);
        assert!(front_end.read(8, DATA.len()) == DATA);
    }
    let field = |field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().trim().to_owned()
    };
    for capabilities in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(
        (field("Seccomp:"), field("NoNewPrivs:")),
        ("2".into(), "1".into())
    );
    // It removes what it made, all the same.
    assert!(server.terminate().success(), "{}", server.messages());
    assert!(!home.path("pid").exists() && !home.path("disk.sock").exists());
}

#[test]
fn a_server_that_runs_programs_or_talks_to_others_ends() {
    let home = Home::with_volume();
    for number in [
        libc::SYS_execve,
        libc::SYS_socket,
        libc::SYS_ptrace,
        libc::SYS_seccomp,
    ] {
        let mut server = home.serve(&["disk.img"]);
        // Nobody is answered before the walls stand.
        FrontEnd::connect(server.socket(), &Options::default()).unwrap();
        let mut puppet = Puppet::take(server.pid());
        let program = puppet.text("/bin/true");
        let answer = puppet.call(number, &[program, 0, 0]);
        assert_eq!(answer, Answer::Killed(libc::SIGSYS), "{number}");
        drop(puppet);
        eventually("it has ended", || (!server.is_running()).then_some(()));
    }
}

#[test]
fn a_kernel_that_lacks_a_wall_is_told_and_refused_if_it_is_required() {
    let home = Home::with_volume();
    let mut command = home.serve_command(&["disk.img"]);
    without_call(&mut command, libc::SYS_landlock_create_ruleset);
    let mut server = home.start("disk.sock", command);
    FrontEnd::connect(server.socket(), &Options::default()).unwrap();
    let messages = server.messages();
    assert!(
        messages.contains("a wall of the sandbox is missing"),
        "{messages}"
    );
    assert!(messages.contains("landlock"), "{messages}");
    assert!(server.terminate().success());

    let mut command = home.serve_command(&["disk.img", "--require-sandbox"]);
    without_call(&mut command, libc::SYS_landlock_create_ruleset);
    refused(&mut command).expect(
        11,
        &["the sandbox is not whole", "landlock"],
        "sealblk doctor",
    );
    assert!(!home.path("disk.sock").exists());
}

fn threads(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    // Threads of the kernel for a ring have no code that could be broken into.
    let own = tasks.filter(|task| {
        let name = std::fs::read_to_string(task.join("comm"));
        name.is_ok_and(|name| !name.starts_with("iou-"))
    });
    let numbers = own.map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap());
    numbers.collect()
}
