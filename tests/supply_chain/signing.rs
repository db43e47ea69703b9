//! Signing and verifying a release, end to end with the real scripts and keys
//! that are thrown away.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::project;

/// A release of two files, and who may sign it.
struct Release {
    folder: TempDir,
}

impl Release {
    /// Signed with a key that may sign.
    fn signed() -> Release {
        let release = Release {
            folder: tempfile::tempdir().unwrap(),
        };
        let files = release.path("files");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("sealblk-1.2.3"), "a program").unwrap();
        std::fs::write(files.join("sealblk-1.2.3.cdx.json"), "{}").unwrap();
        release.list();
        for key in ["ours", "other"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .arg(release.path(key))
                .status();
            assert!(made.unwrap().success());
        }
        release.trust("signers", "ours", "");
        release.sign("ours");
        release
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the list of files, as a release build does.
    fn list(&self) {
        let done = Command::new("sh")
            .args(["-c", "sha256sum sealblk-* >SHA256SUMS"])
            .current_dir(self.path("files"))
            .status();
        assert!(done.unwrap().success());
    }

    /// A file of signers that names one key, with options such as its time.
    fn trust(&self, file: &str, key: &str, options: &str) {
        let public = std::fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        let line = format!("release@sealblk namespaces=\"sealblk-release\"{options} {public}");
        std::fs::write(self.path(file), line).unwrap();
    }

    fn sign(&self, key: &str) {
        let done = self.run("sign-release", &["--key".into(), self.path(key)]);
        assert!(done.status.success(), "{}", said(&done));
    }

    fn run(&self, script: &str, arguments: &[PathBuf]) -> Output {
        Command::new(project("scripts").join(script))
            .args(arguments)
            .arg(self.path("files"))
            .env_remove("SSH_AUTH_SOCK")
            .output()
            .unwrap()
    }

    fn verify(&self, signers: &str, more: &[&str]) -> Output {
        let mut arguments = vec!["--signers".into(), self.path(signers)];
        arguments.extend(more.iter().map(PathBuf::from));
        self.run("verify-release", &arguments)
    }

    /// It must not be taken for good, for a reason that is told.
    fn refused(&self, signers: &str, more: &[&str], why: &str) {
        let done = self.verify(signers, more);
        assert!(!done.status.success(), "taken for good: {why}");
        assert!(said(&done).contains(why), "{}", said(&done));
        assert!(said(&done).contains("help: "), "{}", said(&done));
        assert!(done.stdout.is_empty(), "names files as verified");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path("files").join(name)
    }
}

fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, before + text).unwrap();
}

const NO_SIGNER: &str = "was not signed by a key in";

#[test]
fn a_release_is_verified_and_names_its_files() {
    let release = Release::signed();
    let done = release.verify("signers", &[]);
    assert!(done.status.success(), "{}", said(&done));
    let files = String::from_utf8(done.stdout).unwrap();
    assert_eq!(files, "sealblk-1.2.3\nsealblk-1.2.3.cdx.json\n");
}

#[test]
fn what_was_changed_after_signing_is_refused() {
    let release = Release::signed();
    append(&release.file("sealblk-1.2.3"), "!");
    release.refused("signers", &[], "is not what SHA256SUMS says");
    // With a list that fits the change, the signature does not fit the list.
    release.list();
    release.refused("signers", &[], "the signature of SHA256SUMS is not good");

    let release = Release::signed();
    std::fs::remove_file(release.file("sealblk-1.2.3")).unwrap();
    release.refused("signers", &[], "is not what SHA256SUMS names");

    let release = Release::signed();
    std::fs::write(release.file("sealblk-1.2.4"), "not listed").unwrap();
    release.refused("signers", &[], "is not what SHA256SUMS names");

    let release = Release::signed();
    let program = release.file("sealblk-1.2.3");
    std::fs::rename(&program, release.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(release.path("elsewhere"), program).unwrap();
    release.refused("signers", &[], "is not what SHA256SUMS names");

    let release = Release::signed();
    std::fs::remove_file(release.file("SHA256SUMS.sig")).unwrap();
    release.refused("signers", &[], "has no SHA256SUMS.sig");
}

#[test]
fn only_keys_that_may_sign_now_are_believed() {
    let release = Release::signed();
    release.trust("others", "other", "");
    release.refused("others", &[], NO_SIGNER);

    // One that ended is believed for a time before that, and only when asked.
    release.trust("ended", "ours", ",valid-before=\"20200101\"");
    release.refused("ended", &[], NO_SIGNER);
    let earlier = release.verify("ended", &["--at", "20190601"]);
    assert!(earlier.status.success(), "{}", said(&earlier));
    release.refused("ended", &["--at", "20210101"], NO_SIGNER);
    release.trust("later", "ours", ",valid-after=\"29990101\"");
    release.refused("later", &[], NO_SIGNER);

    // A revoked one is not, whenever.
    let revoked = release.path("ours.pub");
    let revoked = revoked.to_str().unwrap();
    release.refused("signers", &["--revoked", revoked], "is not good");
    let more = ["--revoked", revoked, "--at", "20190601"];
    release.refused("ended", &more, "is not good");
    let other = release.path("other.pub");
    let others = release.verify("signers", &["--revoked", other.to_str().unwrap()]);
    assert!(others.status.success(), "{}", said(&others));
}

#[test]
fn a_signature_for_something_else_is_no_signature_of_a_release() {
    let release = Release::signed();
    std::fs::remove_file(release.file("SHA256SUMS.sig")).unwrap();
    let done = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-q", "-n", "git", "-f"])
        .arg(release.path("ours"))
        .arg(release.file("SHA256SUMS"))
        .output()
        .unwrap();
    assert!(done.status.success());
    release.refused("signers", &[], "is not");
    // Also where nobody has narrowed what the key may sign.
    let public = std::fs::read_to_string(release.path("ours.pub")).unwrap();
    std::fs::write(release.path("wide"), format!("release@sealblk {public}")).unwrap();
    release.refused("wide", &[], "is not");
}

#[test]
fn names_that_lead_elsewhere_are_not_signed() {
    let release = Release::signed();
    let before = std::fs::read(release.file("SHA256SUMS.sig")).unwrap();
    let sums = release.file("SHA256SUMS");
    append(&sums, &format!("{}  ../ours\n", "0".repeat(64)));
    let key = ["--key".into(), release.path("ours")];
    let done = release.run("sign-release", &key);
    assert!(!done.status.success());
    assert!(
        said(&done).contains("no digest and plain name"),
        "{}",
        said(&done)
    );
    assert_eq!(
        std::fs::read(release.file("SHA256SUMS.sig")).unwrap(),
        before
    );
    // And if somebody's own key did sign it, the name is refused all the same.
    std::fs::remove_file(release.file("SHA256SUMS.sig")).unwrap();
    let done = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-q", "-n", "sealblk-release", "-f"])
        .arg(release.path("ours"))
        .arg(&sums)
        .output()
        .unwrap();
    assert!(done.status.success());
    release.refused("signers", &[], "no digest and plain name");
}
