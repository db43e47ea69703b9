//! The way out without sealblk: the exported key, and cryptsetup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{header_in, image_in, name_volume, sealblk, succeed};

/// A volume's key in a file, for cryptsetup.
pub struct Rescue {
    image: PathBuf,
    dek: PathBuf,
}

impl Rescue {
    /// Exports the key of the volume in that directory.
    pub fn of(directory: &Path) -> Rescue {
        let dek = directory.join("dek");
        let mut export = sealblk(directory);
        export.args(["volume", "export-dek"]);
        name_volume(&mut export, directory);
        export
            .arg("--i-understand-that-this-key-decrypts-the-disk")
            .arg("--to")
            .arg(&dek);
        succeed(&mut export);
        Rescue {
            image: image_in(directory),
            dek,
        }
    }

    /// The file with the 64 bytes of the key.
    pub fn dek(&self) -> &Path {
        &self.dek
    }

    /// Where the data begins in the backing file, from cryptsetup.
    pub fn data_offset(&self) -> u64 {
        let json = cryptsetup(&["luksDump", "--dump-json-metadata"], &[&self.image]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        json["segments"]["0"]["offset"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn cryptsetup_accepts_header_and_key(&self) {
        cryptsetup(&["isLuks", "--type", "luks2"], &[&self.image]);
        let dump = cryptsetup(&["luksDump"], &[&self.image]);
        assert!(dump.contains("aes-xts-plain64"), "{dump}");
        cryptsetup(
            &["open", "--test-passphrase", "--key-size", "512"],
            &[Path::new("--volume-key-file"), &self.dek, &self.image],
        );
    }

    /// All data, as cryptsetup decrypts it from a copy of the backing file (the
    /// header is in it).
    pub fn decrypted_by_cryptsetup(&self, size: u64) -> Vec<u8> {
        assert!(!header_in(self.image.parent().unwrap()).exists());
        let copy = self.image.with_extension("copy");
        let header = self.image.with_extension("new-header");
        let passphrase = self.image.with_extension("passphrase");
        fs::copy(&self.image, &copy).unwrap();
        fs::write(&passphrase, "correct horse battery staple").unwrap();
        cryptsetup(
            &["luksAddKey", "--batch-mode", "--key-size", "512"],
            &[
                Path::new("--pbkdf=pbkdf2"),
                Path::new("--pbkdf-force-iterations=1000"),
                Path::new("--volume-key-file"),
                &self.dek,
                &copy,
                &passphrase,
            ],
        );
        cryptsetup(
            &["reencrypt", "--decrypt", "--force-offline-reencrypt"],
            &[
                Path::new("--batch-mode"),
                Path::new("--header"),
                &header,
                Path::new("--key-file"),
                &passphrase,
                &copy,
            ],
        );
        let mut plain = fs::read(&copy).unwrap();
        // What cryptsetup has moved to the front.
        plain.truncate(usize::try_from(size).unwrap());
        plain
    }
}

/// Runs cryptsetup, which must succeed, and returns what it printed.
fn cryptsetup(arguments: &[&str], rest: &[&Path]) -> String {
    let mut command = Command::new("cryptsetup");
    command
        .args(arguments)
        .args(rest)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
        .stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| {
        panic!("cryptsetup cannot be run ({error}): run scripts/install-deps test")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
