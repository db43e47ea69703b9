//! Files with the private key of a host or a broker: PEM with PKCS #8 as
//! RFC 8410 has it for X25519, so that OpenSSL reads and makes them.

use std::io;
use std::path::Path;

use super::seal::PrivateKey;
use crate::durable;
use crate::error::Kind;
use crate::kms::credential::SecretFile;
use crate::kms::{Class, Error};
use crate::secret::private_key::{Algorithm, of_pem, to_pem};

/// Makes a new key, and writes it to `path`, where nothing must be yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or as the system says.
pub fn generate(path: &Path) -> io::Result<PrivateKey> {
    let key = PrivateKey::generate()?;
    let text = to_pem(Algorithm::X25519, &key.bytes()[..])?;
    durable::create(path, &text, 0o600)?;
    Ok(key)
}

/// Reads the key in `file`.
///
/// # Errors
/// [`Class::Unreachable`], as for everything that is a matter of this host.
pub fn read(file: &SecretFile) -> Result<PrivateKey, Error> {
    let text = file.read()?;
    let key = of_pem(Algorithm::X25519, &text);
    match key.and_then(|key| key.map(PrivateKey::new).transpose()) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(Error::new(
            Class::Unreachable,
            format!("{file} is not an X25519 private key in PEM"),
            "make one: sealblk broker keygen --out FILE, or openssl genpkey -algorithm X25519 -out FILE",
        )
        .with_kind(Kind::Usage)),
        Err(error) => Err(Error::new(
            Class::Unreachable,
            format!("{file}: no locked memory for it: {error}"),
            "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
        )
        .with_kind(Kind::Io)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;
    use crate::error::Explain;
    use crate::secret::private_key::KEY_BYTES;

    #[test]
    fn a_key_is_written_for_its_owner_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.key");
        let key = generate(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        let read = read(&SecretFile::new(&path)).unwrap();
        assert_eq!(read.public(), key.public());
        let bytes = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            &read.bytes()[..],
        );
        assert!(!format!("{read:?}").contains(&bytes));
        let again = generate(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    /// The public key as OpenSSL sees it.
    fn openssl_public(path: &Path) -> Vec<u8> {
        let output = Command::new("openssl")
            .args(["pkey", "-pubout", "-outform", "DER", "-in"])
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout[output.stdout.len() - KEY_BYTES..].to_vec()
    }

    #[test]
    fn openssl_reads_what_we_write_and_we_read_what_it_writes() {
        let directory = tempfile::tempdir().unwrap();
        let ours = directory.path().join("ours");
        let key = generate(&ours).unwrap();
        assert_eq!(openssl_public(&ours), key.public().bytes());

        let theirs = directory.path().join("theirs");
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "X25519", "-out"])
            .arg(&theirs)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let read = read(&SecretFile::new(&theirs)).unwrap();
        assert_eq!(openssl_public(&theirs), read.public().bytes());
    }

    #[test]
    fn what_is_no_such_key_is_refused_with_the_way_to_make_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let good = PrivateKey::generate().unwrap();
        let good = to_pem(Algorithm::X25519, good.bytes()).unwrap();
        let good = std::str::from_utf8(&good).unwrap();
        let ed25519 = good.replacen("MC4CAQAwBQYDK2Vu", "MC4CAQAwBQYDK2Vw", 1);
        assert_ne!(ed25519, good);
        let short = good.replacen("MC4C", "", 1);
        for bad in ["hush hush", "-----BEGIN PRIVATE KEY-----", &ed25519, &short] {
            durable::replace(&path, bad.as_bytes(), 0o600).unwrap();
            let error = read(&SecretFile::new(&path)).unwrap_err();
            assert_eq!(error.class(), Class::Unreachable);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(!error.to_string().contains("hush"), "{error}");
            assert!(error.help().unwrap().contains("keygen"));
        }
        durable::replace(&path, good.replace('\n', "\r\n").as_bytes(), 0o600).unwrap();
        assert!(read(&SecretFile::new(&path)).is_ok(), "line ends of others");
    }
}
