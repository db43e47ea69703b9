//! Paths whose meaning nobody else can change.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// Why others could change what a path means.
#[derive(Debug, thiserror::Error)]
pub enum Loose {
    /// They can write to it, or to a directory on the way.
    #[error("others than root and user {us} can change {}", path.display())]
    Writable {
        /// What they can change.
        path: PathBuf,
        /// Who we are.
        us: u32,
    },
    /// It cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The one path, without links, of what is at `path`; if nobody but root and
/// ourselves can have anything else there, now or later, by that path or this.
///
/// Everything on the way belongs to root or us, and others cannot write to it: a
/// directory with the sticky bit they may, since there they cannot replace what
/// is ours. `path` itself may be a file or a directory.
///
/// # Errors
/// See [`Loose`].
pub fn firm(path: &Path) -> Result<PathBuf, Loose> {
    let us = rustix::process::geteuid().as_raw();
    let fail = |path: &Path, source| Loose::Io {
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(|error| fail(path, error))?;
    let mut at = PathBuf::from("/");
    let mut left = steps(&absolute);
    let mut links = 0;
    // From the top: each is looked at where nobody can exchange it.
    loop {
        let there = at.symlink_metadata().map_err(|error| fail(&at, error))?;
        let ours = there.uid() == 0 || there.uid() == us;
        if there.is_symlink() {
            // Nobody asks for the mode of a link.
            links += 1;
            if !ours || links > LINKS_MAX {
                return Err(Loose::Writable { path: at, us });
            }
            let target = at.read_link().map_err(|error| fail(&at, error))?;
            match target.is_absolute() {
                true => at = PathBuf::from("/"),
                false => drop(at.pop()),
            }
            let mut ahead = steps(&target);
            ahead.append(&mut left);
            left = ahead;
        } else {
            let sticky = there.is_dir() && there.mode() & 0o1000 != 0 && !left.is_empty();
            if !ours || (there.mode() & 0o022 != 0 && !sticky) {
                return Err(Loose::Writable { path: at, us });
            }
        }
        match left.pop_front() {
            None => return Ok(at),
            // What we are at has no links in it.
            Some(name) if name == ".." => drop(at.pop()),
            Some(name) => at.push(name),
        }
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.into()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_path_is_as_firm_as_the_loosest_directory_on_the_way() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let at = |name: &str| home.join(name);
        let mode = |name: &str, mode| {
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(at("above/below")).unwrap();
        fs::create_dir(at("links")).unwrap();
        fs::write(at("above/below/file"), "").unwrap();
        symlink("../above/./below/../below/file", at("links/relative")).unwrap();
        symlink(at("links/relative"), at("links/link")).unwrap();
        symlink("around", at("links/around")).unwrap();
        let link = at("links/link");
        let real = at("above/below/file");
        assert_eq!(firm(&link).unwrap(), real);
        for (name, loose, tight) in [
            ("above", 0o777, 0o755),
            ("above/below", 0o770, 0o700),
            ("above/below/file", 0o620, 0o600),
            // Where the link is, and not what it leads to.
            ("links", 0o775, 0o755),
        ] {
            mode(name, loose);
            let Loose::Writable { path, .. } = firm(&link).unwrap_err() else {
                panic!("{name} was not looked at");
            };
            assert_eq!(path, at(name));
            mode(name, tight);
        }
        for name in ["above", "links"] {
            mode(name, 0o1777);
            assert_eq!(firm(&link).unwrap(), real);
        }
        // Of what is itself such a directory, others can change the contents.
        assert!(matches!(firm(&at("above")), Err(Loose::Writable { .. })));
        assert!(matches!(firm(&at("missing")), Err(Loose::Io { .. })));
        assert!(firm(&at("links/around")).is_err());
        assert_eq!(firm(Path::new("/")).unwrap(), Path::new("/"));
    }
}
