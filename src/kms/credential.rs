//! Secrets that this process shows to a service: tokens, PINs, private keys.
//!
//! They come from a file or from a systemd credential (`LoadCredential=`), are
//! read anew for each use, so that one that was replaced is taken at once, and
//! are never kept longer than that.

use std::fmt;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Class, Error};
use crate::error::{Kind, io_kind};
use crate::paths;
use crate::secret::Secret;

/// More than any token, PIN or private key has.
const SECRET_MAX: usize = 64 << 10;

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    place: Place,
    exposure: Exposure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Credential {
        name: String,
        directory: Option<PathBuf>,
    },
}

/// Who else may be able to read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    /// Its group, at most.
    Group,
    /// Everybody.
    World,
}

/// A secret that could not be had. Always a matter of this host.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Unreadable {
    what: String,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("it does not exist")]
    Missing,
    #[error("this process was not given any systemd credentials")]
    NoCredentials,
    #[error("it is not a regular file")]
    NotRegular,
    #[error("its mode is {0:04o}: others can read or change it")]
    Mode(u32),
    #[error("its owner is user {owner}, and must be user {us} (who runs this) or root")]
    Owner { owner: u32, us: u32 },
    #[error("it is empty")]
    Empty,
    #[error("it is larger than {} KiB", SECRET_MAX / 1024)]
    TooLarge,
    #[error("cannot read it: {0}")]
    Io(io::Error),
    #[error("no locked memory for it: {0}")]
    Memory(io::Error),
}

impl SecretFile {
    /// The secret in the file at `path`. It must not be readable by others
    /// than its owner and its group, nor writable by others than its owner.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SecretFile {
            place: Place::File(path.into()),
            exposure: Exposure::Group,
        }
    }

    /// The systemd credential `name`, in the `directory` that systemd made for
    /// this process, if it did.
    pub fn credential(name: impl Into<String>, directory: Option<PathBuf>) -> Self {
        SecretFile {
            place: Place::Credential {
                name: name.into(),
                directory,
            },
            exposure: Exposure::Group,
        }
    }

    /// The same, and everybody may be able to read it: kubelet gives tokens
    /// mode 0644, in a file system that only the container sees.
    #[must_use]
    pub fn readable_by_all(mut self) -> Self {
        self.exposure = Exposure::World;
        self
    }

    /// The path of the file, unless systemd gave this process none.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.place {
            Place::File(path) => Some(path.clone()),
            Place::Credential { name, directory } => Some(directory.as_ref()?.join(name)),
        }
    }

    /// Reads the secret, without white space at its ends.
    ///
    /// # Errors
    /// When it is not there, empty, or in a file that is not safe.
    pub fn read(&self) -> Result<Secret, Unreadable> {
        let read = || {
            let path = self.path().ok_or(Cause::NoCredentials)?;
            let text = read(&path, self.exposure)?;
            match text.trim_ascii() {
                [] => Err(Cause::Empty),
                trimmed => Secret::copy_of(trimmed).map_err(Cause::Memory),
            }
        };
        read().map_err(|cause| Unreadable {
            what: self.to_string(),
            cause,
        })
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(path) => write!(f, "{}", path.display()),
            Place::Credential { name, .. } => write!(f, "systemd credential {name:?}"),
        }
    }
}

fn read(path: &Path, exposure: Exposure) -> Result<Secret, Cause> {
    use io::ErrorKind as E;
    // Links are followed: kubelet replaces tokens by moving one.
    let found = paths::find(path).map_err(|error| match error.kind() {
        E::NotFound | E::NotADirectory => Cause::Missing,
        _ => Cause::Io(error),
    })?;
    let meta = found.metadata().map_err(Cause::Io)?;
    check(&meta, exposure, rustix::process::geteuid().as_raw())?;
    let mut file = found.open_to_read().map_err(Cause::Io)?;

    let mut text = Secret::zeroed(SECRET_MAX + 1).map_err(Cause::Memory)?;
    let mut filled = 0;
    loop {
        match file.read(&mut text[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Cause::Io(error)),
        }
    }
    if filled > SECRET_MAX {
        return Err(Cause::TooLarge);
    }
    Secret::copy_of(&text[..filled]).map_err(Cause::Memory)
}

/// Whether a file like this is a safe place for a secret of user `us`.
fn check(meta: &Metadata, exposure: Exposure, us: u32) -> Result<(), Cause> {
    if !meta.is_file() {
        return Err(Cause::NotRegular);
    }
    let mode = meta.mode() & 0o7777;
    let refused = match exposure {
        Exposure::Group => 0o027,
        Exposure::World => 0o022,
    };
    if mode & refused != 0 {
        return Err(Cause::Mode(mode));
    }
    if meta.uid() != us && meta.uid() != 0 {
        return Err(Cause::Owner {
            owner: meta.uid(),
            us,
        });
    }
    Ok(())
}

impl Unreadable {
    pub(crate) fn kind(&self) -> Kind {
        match &self.cause {
            Cause::Missing | Cause::NoCredentials => Kind::NotFound,
            Cause::NotRegular | Cause::Mode(_) | Cause::Owner { .. } => Kind::Permission,
            Cause::Empty | Cause::TooLarge => Kind::Usage,
            Cause::Io(error) => io_kind(error),
            Cause::Memory(_) => Kind::Io,
        }
    }

    fn next(&self) -> String {
        let what = &self.what;
        match &self.cause {
            Cause::Missing => format!("put it there, or correct the configuration: {what}"),
            Cause::NoCredentials => {
                format!(
                    "run it as a systemd unit with LoadCredential= for {what}, or configure the path of a file"
                )
            }
            Cause::NotRegular => "name a regular file in the configuration".into(),
            Cause::Mode(_) => format!("chmod 0600 {what}, and consider who may have read it"),
            Cause::Owner { us, .. } => format!("chown {us} {what}, or run sealblk as its owner"),
            Cause::Empty | Cause::TooLarge => format!("put the secret alone into {what}"),
            Cause::Io(error) => match paths::Refused::of(error) {
                Some(refused) => refused.next().into(),
                None => format!("check who may read {what}, and the file system it is on"),
            },
            Cause::Memory(_) => {
                "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)"
                    .into()
            }
        }
    }
}

impl From<Unreadable> for Error {
    /// No service was asked, so none has denied anything: [`Class::Unreachable`].
    fn from(error: Unreadable) -> Self {
        Error::new(Class::Unreachable, error.to_string(), error.next()).with_kind(error.kind())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::Explain;

    fn written(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (directory, path)
    }

    fn kind(secret: &SecretFile) -> Kind {
        let error = Error::from(secret.read().unwrap_err());
        assert_eq!(error.class(), Class::Unreachable);
        assert!(!error.help().unwrap().is_empty());
        error.kind()
    }

    #[test]
    fn a_secret_is_trimmed_and_read_anew() {
        let (_directory, path) = written(b" s.1 \n", 0o640);
        let secret = SecretFile::new(&path);
        assert_eq!(&*secret.read().unwrap(), b"s.1");
        std::fs::write(&path, "s.2").unwrap();
        assert_eq!(&*secret.read().unwrap(), b"s.2");
    }

    #[test]
    fn what_others_can_read_is_refused_unless_that_is_the_custom() {
        let (_directory, path) = written(b"token", 0o644);
        assert_eq!(kind(&SecretFile::new(&path)), Kind::Permission);
        assert!(SecretFile::new(&path).readable_by_all().read().is_ok());
        for mode in [0o660, 0o602] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let lax = SecretFile::new(&path).readable_by_all();
            assert_eq!(kind(&lax), Kind::Permission, "{mode:o}");
        }
    }

    #[test]
    fn each_fault_has_its_kind() {
        let (directory, path) = written(b"\n \n", 0o600);
        assert_eq!(kind(&SecretFile::new(&path)), Kind::Usage);
        std::fs::write(&path, vec![b'x'; SECRET_MAX + 1]).unwrap();
        assert_eq!(kind(&SecretFile::new(&path)), Kind::Usage);
        let missing = SecretFile::new(directory.path().join("missing"));
        assert_eq!(kind(&missing), Kind::NotFound);
        assert_eq!(kind(&SecretFile::new(directory.path())), Kind::Permission);
        let owner = std::fs::metadata(&path).unwrap();
        assert!(
            matches!(
                check(&owner, Exposure::Group, owner.uid() + 1),
                Err(Cause::Owner { .. }) if owner.uid() != 0
            ) || owner.uid() == 0
        );
    }

    #[test]
    fn a_systemd_credential_is_a_file_in_its_directory() {
        let (directory, _path) = written(b"from systemd\n", 0o400);
        let secret = SecretFile::credential("token", Some(directory.path().into()));
        assert_eq!(&*secret.read().unwrap(), b"from systemd");
        assert_eq!(kind(&SecretFile::credential("token", None)), Kind::NotFound);
    }
}
