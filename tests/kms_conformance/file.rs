//! The `file` provider: its service is a directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sealblk::kms::file::{self, FileProvider};
use sealblk::kms::{Class, Denied, KeyRef, Provider};
use tempfile::TempDir;

use crate::lab::{Broken, Lab};

/// A key file of its own.
pub struct FileLab {
    directory: TempDir,
}

impl FileLab {
    /// A new key with one version.
    pub fn new() -> Self {
        let lab = FileLab {
            directory: TempDir::new().unwrap(),
        };
        file::create(&lab.path("key")).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A copy of the key file under another name, to be broken.
    fn copy(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::copy(self.path("key"), &path).unwrap();
        path
    }

    fn each_version(&self, path: &Path, change: fn(&mut file::KeyFile, file::VersionId)) {
        for version in file::read(path).unwrap().versions {
            file::update(path, |key_file| {
                change(key_file, version.id);
                Ok(())
            })
            .unwrap();
        }
    }
}

impl Lab for FileLab {
    fn provider(&self) -> Box<dyn Provider> {
        Box::new(FileProvider::new(self.path("key")))
    }

    fn key(&self) -> KeyRef {
        KeyRef::default()
    }

    fn stranger(&self) -> (Box<dyn Provider>, KeyRef) {
        file::create(&self.path("stranger")).unwrap();
        (
            Box::new(FileProvider::new(self.path("stranger"))),
            KeyRef::default(),
        )
    }

    fn rotate(&self) {
        file::update(&self.path("key"), file::KeyFile::add_version).unwrap();
    }

    fn set_enabled(&self, version: &str, enabled: bool) {
        let id = version.parse().unwrap();
        file::update(&self.path("key"), |key_file| {
            key_file.set_enabled(id, enabled)
        })
        .unwrap();
    }

    fn delete(&self, version: &str) {
        let id = version.parse().unwrap();
        file::update(&self.path("key"), |key_file| key_file.remove_version(id)).unwrap();
    }

    fn no_version(&self) -> String {
        "00000000".into()
    }

    fn broken(&self, class: Class) -> Broken {
        let path = match class {
            Class::Denied(Denied::Disabled) => {
                let path = self.copy("disabled");
                self.each_version(&path, |key_file, id| {
                    key_file.set_enabled(id, false).unwrap()
                });
                path
            }
            Class::Denied(Denied::Deleted) => {
                let path = self.copy("deleted");
                self.each_version(&path, |key_file, id| {
                    key_file.set_enabled(id, false).unwrap();
                    key_file.remove_version(id).unwrap();
                });
                path
            }
            Class::Denied(Denied::Forbidden) => {
                let path = self.copy("forbidden");
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
                path
            }
            Class::NotFound => self.path("missing"),
            // A regular file of mode 0600 and of ours, that the kernel lets
            // nobody read at its beginning.
            Class::Unreachable => "/proc/self/mem".into(),
            Class::Protocol => {
                let path = self.copy("damaged");
                let text = std::fs::read(&path).unwrap();
                std::fs::write(&path, &text[..text.len() / 2]).unwrap();
                path
            }
            Class::Denied(Denied::Expired) => {
                return Broken::Impossible("versions of a platform key have no end");
            }
            Class::Throttled { .. } => return Broken::Impossible("a file does not throttle"),
            Class::Sealed => return Broken::Impossible("a file is not unsealed by operators"),
            Class::BadKey => unreachable!("not asked for"),
        };
        Broken::Client(Box::new(FileProvider::new(path)))
    }

    fn secrets(&self) -> Vec<Vec<u8>> {
        let versions = file::read(&self.path("key")).unwrap().versions;
        versions
            .iter()
            .filter_map(|version| version.key())
            .map(|key| key.to_vec())
            .collect()
    }
}
