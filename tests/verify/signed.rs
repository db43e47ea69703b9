//! Signed reports: they check with the key of their host and no other, and not
//! if a byte of them was changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::units::SectorSize;
use serde_json::Value;

use super::lab::{DISK, DISPROVED, Lab};
use super::support::home::refused;
use super::support::server::succeed;

impl Lab {
    pub fn make_key(&self) -> String {
        succeed(&mut self.sealblk(&["report", "make-key"]));
        let key = succeed(&mut self.sealblk(&["report", "show-key"]));
        key.trim().to_owned()
    }

    /// A signed report, as it is printed.
    fn signed(&self, arguments: &[&str]) -> String {
        let mut command = self.sealblk(&["verify", DISK, "--sign"]);
        succeed(command.args(arguments))
    }

    fn check(&self, report: &str, key: &str) -> std::process::Command {
        fs::write(self.path("report"), report).unwrap();
        self.sealblk(&["report", "check", "report", "--public-key", key])
    }
}

#[test]
fn a_report_is_signed_and_checked_far_from_its_host() {
    let lab = Lab::filled(&[], SectorSize::B512);
    refused(&mut lab.sealblk(&["verify", DISK, "--sign"])).expect(
        3,
        &["no host key", "report.key"],
        "make-key",
    );
    let key = lab.make_key();
    let mode = lab
        .path("report.key")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    refused(&mut lab.sealblk(&["report", "make-key"])).expect(6, &["there already"], "make-key");
    let report = lab.signed(&["--nonce", "audit of today"]);
    for secret in [
        lab.dek().bytes(),
        &fs::read(lab.path("report.key")).unwrap()[..],
    ] {
        let text = BASE64.encode(secret);
        assert!(
            !report.contains(&text[..text.len() - 4]),
            "a key is in the report"
        );
    }
    // Elsewhere nothing of the host is there but this key.
    let pem = succeed(&mut lab.sealblk(&["report", "show-key", "--pem"]));
    let other = Lab::new();
    fs::write(other.path("host.pub"), &pem).unwrap();
    for named in [&*key, "host.pub"] {
        let text = succeed(&mut other.check(&report, named));
        assert!(text.contains("proved     it is encrypted"), "{text}");
        assert!(text.contains(&key), "{text}");
    }
    let told = succeed(other.check(&report, &key).arg("--json"));
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["verdict"], "proved");
    assert_eq!(told["nonce"], "audit of today");
    succeed(
        other
            .check(&report, &key)
            .args(["--nonce", "audit of today"]),
    );
    refused(
        other
            .check(&report, &key)
            .args(["--nonce", "audit of tomorrow"]),
    )
    .expect(7, &["another occasion"], "--nonce");
    // Written anew by whatever reads JSON, and from standard input.
    let again: Value = serde_json::from_str(&report).unwrap();
    succeed(&mut other.check(&again.to_string(), &key));
    let mut command = other.sealblk(&["report", "check", "-", "--public-key", &key]);
    let file = fs::File::open(other.path("report")).unwrap();
    let output = command.stdin(Stdio::from(file)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_report_that_disproves_is_signed_as_well() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let key = lab.make_key();
    lab.store(512 * 1000, &[b'x'; 512]);
    let output = lab
        .sealblk(&["verify", DISK, "--full", "--sign"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(DISPROVED));
    let report = String::from_utf8(output.stdout).unwrap();
    let text = succeed(&mut lab.check(&report, &key));
    assert!(
        text.contains("DISPROVED") && text.contains("byte 512000"),
        "{text}"
    );
}

#[test]
fn no_byte_of_a_report_can_be_changed_and_no_other_key_does() {
    let lab = Lab::filled(&[], SectorSize::B512);
    let key = lab.make_key();
    let report = lab.signed(&[]);
    let public: sealblk::verify::PublicKey = key.parse().unwrap();
    let open = |bytes: &[u8]| {
        let read = sealblk::verify::Envelope::parse(bytes)?;
        read.open(&public)
    };
    let good = open(report.as_bytes()).unwrap();
    let mut harmless = 0;
    for place in 0..report.len() {
        for change in [1, 0x20] {
            let mut bytes = report.clone().into_bytes();
            bytes[place] ^= change;
            if let Ok(report) = open(&bytes) {
                // White space between the fields of the envelope.
                assert_eq!(report, good, "byte {place}");
                harmless += 1;
            }
        }
    }
    assert!(harmless < 100, "{harmless}");
    // What an attacker would like to change.
    let mut envelope: Value = serde_json::from_str(&report).unwrap();
    let payload = BASE64
        .decode(envelope["payload"].as_str().unwrap())
        .unwrap();
    let text = String::from_utf8(payload).unwrap();
    for (from, to) in [
        ("\"proved\"", "\"disproved\""),
        ("\"full\":false", "\"full\":true"),
    ] {
        assert!(text.contains(from), "{text}");
        envelope["payload"] = BASE64.encode(text.replace(from, to)).into();
        refused(&mut lab.check(&envelope.to_string(), &key)).expect(
            7,
            &["signature is wrong"],
            "nothing of it",
        );
    }
    let other = Lab::new();
    let strange = other.make_key();
    refused(&mut lab.check(&report, &strange)).expect(8, &["another key", &key], "administrator");
    refused(&mut lab.check("{}", &key)).expect(7, &["not a signed report"], "--sign");
    refused(&mut lab.check(&report, "nonsense")).expect(3, &["nonsense"], "");
}
