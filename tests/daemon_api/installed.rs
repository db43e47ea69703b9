//! What is installed beside the program: units, completions, manual pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::home::{Home, refused};
use super::support::server::succeed;

fn sealblk() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sealblk"))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let home = Home::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    for name in [
        "sealblk.service",
        "sealblk.socket",
        "sealblk-broker.service",
    ] {
        let text = fs::read_to_string(units.join(name)).unwrap();
        // The program is not installed here.
        let text = text.replace("/usr/bin/sealblk", env!("CARGO_BIN_EXE_sealblk"));
        fs::write(home.path(name), text).unwrap();
    }
    let verify = || {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--man=no", "sealblk.service", "sealblk.socket"])
            .arg("sealblk-broker.service")
            .current_dir(home.directory());
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        // Units of the host are looked at, too.
        let ours = |line: &&str| line.contains("sealblk");
        let ours: Vec<String> = said.lines().filter(ours).map(str::to_owned).collect();
        (output.status.success(), ours)
    };
    assert_eq!(verify(), (true, vec![]));
    // So that this shows something.
    let text = fs::read_to_string(home.path("sealblk.service")).unwrap();
    let broken = text.replace("ExecStart=", "ExecStart=/nowhere");
    fs::write(
        home.path("sealblk.service"),
        broken + "\nKillMood=process\n",
    )
    .unwrap();
    let (good, said) = verify();
    assert!(
        !good && said.iter().any(|line| line.contains("KillMood")),
        "{said:?}"
    );
}

#[test]
fn the_units_say_what_the_manager_relies_on() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    let service = fs::read_to_string(units.join("sealblk.service")).unwrap();
    for line in [
        "Type=notify",
        "KillMode=process",
        "OOMPolicy=continue",
        "RuntimeDirectoryPreserve=yes",
        "LimitCORE=0",
    ] {
        assert!(service.lines().any(|found| found == line), "{line}");
    }
    let broker = fs::read_to_string(units.join("sealblk-broker.service")).unwrap();
    for line in ["Type=notify", "LimitCORE=0", "LimitMEMLOCK=infinity"] {
        assert!(broker.lines().any(|found| found == line), "{line}");
    }
    let socket = fs::read_to_string(units.join("sealblk.socket")).unwrap();
    let path = sealblk::config::daemon::DEFAULT_SOCKET;
    assert!(socket.contains(&format!("ListenStream={path}\n")));
}

/// What bash offers for a command line that ends in a word that is being typed.
fn completed(script: &Path, words: &[&str]) -> Vec<String> {
    let mut command = Command::new("bash");
    command.args(["--norc", "-c"]).arg(
        "source \"$1\"; shift
         COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))
         complete -p sealblk >/dev/null
         _sealblk sealblk \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
         printf '%s\\n' \"${COMPREPLY[@]}\"",
    );
    command.arg("bash").arg(script).args(words);
    succeed(&mut command).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_flags() {
    let home = Home::new();
    let script = home.path("completion");
    fs::write(&script, succeed(sealblk().args(["completions", "bash"]))).unwrap();
    assert_eq!(completed(&script, &["sealblk", "att"]), ["attach"]);
    assert_eq!(completed(&script, &["sealblk", "det"]), ["detach"]);
    let flags = completed(&script, &["sealblk", "attach", "--so"]);
    assert_eq!(flags, ["--socket", "--socket-mode", "--socket-group"]);
    assert_eq!(
        completed(&script, &["sealblk", "volume", "cre"]),
        ["create"]
    );
    for shell in ["zsh", "fish"] {
        let script = succeed(sealblk().args(["completions", shell]));
        assert!(script.contains("attach"), "{shell}");
    }
    let output = sealblk().args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut pages: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    pages
}

#[test]
fn every_command_has_a_manual_page_that_groff_takes() {
    let home = Home::new();
    succeed(sealblk().arg("man").arg(home.path("man")));
    let pages = pages(&home.path("man"));
    let names: Vec<_> = pages
        .iter()
        .map(|page| page.file_name().unwrap().to_str().unwrap())
        .collect();
    for name in [
        "sealblk.1",
        "sealblk-attach.1",
        "sealblk-daemon.1",
        "sealblk-volume-create.1",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for page in &pages {
        let mut groff = Command::new("groff");
        groff.args(["-k", "-man", "-Tutf8", "-ww", "-z"]).arg(page);
        let output = groff.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && said.is_empty(),
            "{}: {said}",
            page.display()
        );
    }
    let attach = fs::read_to_string(home.path("man/sealblk-attach.1")).unwrap();
    assert!(attach.contains("\\-\\-break\\-glass"), "{attach}");
    fs::write(home.path("file"), "").unwrap();
    let mut nowhere = sealblk();
    nowhere.arg("man").arg(home.path("file/man"));
    refused(&mut nowhere).expect(3, &["file/man"], "directory");
}

#[test]
fn completions_and_pages_need_no_good_configuration() {
    let home = Home::new();
    let config = home.path("broken.toml");
    fs::write(&config, "x").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = sealblk();
        command
            .arg("--config")
            .arg(&config)
            .args(arguments)
            .current_dir(home.directory());
        command
    };
    succeed(&mut run(&["completions", "bash"]));
    succeed(&mut run(&["man", "man"]));
    succeed(&mut run(&["version"]));
    assert_eq!(refused(&mut run(&["status"])).status, 2);
}
