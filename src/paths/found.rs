//! What a path means, found once.
//!
//! Symbolic links are followed where root or we ourselves have made them: those
//! of others could lead anywhere, and be aimed anew between two looks. The
//! kernel refuses some of them (`fs.protected_symlinks`), where that is switched
//! on, in directories with the sticky bit alone. The path is walked by
//! descriptors, and a link is read from the descriptor that its owner was asked
//! of, so that no exchange of names in between matters.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// The file system in which links are the kernel's, and not always paths.
const PROC: u64 = 0x9fa0;

/// Somebody else has a hand in a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It leads over a symbolic link of theirs.
    #[error("{} is a symbolic link that user {owner} has made", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It may be a name of theirs for what is not theirs.
    #[error("it has {names} names, and others can make names in its directory")]
    Names {
        /// How many hard links there are.
        names: u64,
    },
}

impl Refused {
    /// The one that an error of this module is about, if it is one.
    pub fn of(error: &io::Error) -> Option<&Refused> {
        error.get_ref()?.downcast_ref()
    }

    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Refused::Link { .. } => {
                "name the file itself, if it is the one that is meant; links of root and of the user that runs sealblk are followed"
            }
            Refused::Names { .. } => {
                "find out with `find -inum` what else it is called; move it to a directory that only its owner can write to, or remove the other names"
            }
        }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        io::Error::new(io::ErrorKind::PermissionDenied, refused)
    }
}

/// Something that is there. Not opened: a FIFO does not wait, and a device does
/// nothing.
#[derive(Debug)]
pub struct Found {
    fd: OwnedFd,
    /// Where it was found, unless the kernel led there.
    place: Option<(OwnedFd, OsString)>,
}

impl Found {
    /// What it is.
    ///
    /// # Errors
    /// As the system says.
    pub fn metadata(&self) -> io::Result<Metadata> {
        File::from(self.fd.try_clone()?).metadata()
    }

    /// Opens what was found, whatever its name means by now.
    ///
    /// # Errors
    /// As the system says.
    pub fn open(&self, options: &OpenOptions) -> io::Result<File> {
        options.open(self.own_name())
    }

    /// Opens it to be read. Of a FIFO nobody waits for the other end.
    ///
    /// # Errors
    /// As the system says.
    pub fn open_to_read(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true);
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        self.open(&options)
    }

    /// Fails when somebody else could have given it the name by which it was
    /// found: a file with several, in a directory where others can make some.
    /// With `fs.protected_hardlinks` the kernel keeps them from that, too.
    ///
    /// # Errors
    /// [`Refused::Names`]; as the system says.
    pub fn not_planted(&self) -> io::Result<()> {
        let Some((directory, name)) = &self.place else {
            return Ok(());
        };
        let meta = self.metadata()?;
        let around = rustix::fs::fstat(directory)?;
        let us = rustix::process::geteuid().as_raw();
        let ours = around.st_uid == 0 || around.st_uid == us;
        if ours && around.st_mode & 0o022 == 0 {
            return Ok(());
        }
        // Both at one moment: a name that is taken away again before it is
        // counted is not there to be found.
        let named = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (named.st_dev, named.st_ino) != (meta.dev(), meta.ino()) {
            return Err(io::Error::other(
                "it was replaced while it was being opened",
            ));
        }
        match named.st_nlink {
            0 | 1 => Ok(()),
            #[allow(clippy::useless_conversion, reason = "32 bits on other machines")]
            names => Err(Refused::Names {
                names: names.into(),
            }
            .into()),
        }
    }

    fn own_name(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// Finds out what `path` means.
///
/// # Errors
/// [`Refused::Link`]; as the system says.
pub fn find(path: &Path) -> io::Result<Found> {
    let mut walk = Walk::of(path)?;
    while let Some(step) = walk.left.pop_front() {
        walk.step(step)?;
    }
    Ok(Found {
        fd: walk.at,
        place: walk.place,
    })
}

/// The directory at `path`, to name things in it, to synchronise it or lock it.
///
/// # Errors
/// As [`find`].
pub fn open_directory(path: &Path) -> io::Result<File> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    find(path)?.open(&options)
}

/// Makes a file where nothing is yet, a symbolic link neither.
///
/// # Errors
/// [`Refused::Link`]; as the system says.
pub fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = find(parent)?;
    let file = rustix::fs::openat(&directory.fd, name, flags, Mode::from_raw_mode(mode))?;
    Ok(file.into())
}

/// On the way along a path.
struct Walk {
    at: OwnedFd,
    /// The directory that `at` was found in, and its name there.
    place: Option<(OwnedFd, OsString)>,
    /// What is still to be gone.
    left: VecDeque<OsString>,
    /// Where we are, for messages.
    shown: PathBuf,
    links: usize,
}

impl Walk {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut walk = Walk {
            at: directory(CWD, OsStr::new("."))?,
            place: None,
            left: VecDeque::new(),
            shown: PathBuf::new(),
            links: 0,
        };
        walk.go(path)?;
        Ok(walk)
    }

    /// Has `path` gone next.
    fn go(&mut self, path: &Path) -> io::Result<()> {
        if path.is_absolute() {
            self.at = directory(CWD, OsStr::new("/"))?;
            self.place = None;
            self.shown = PathBuf::from("/");
        }
        let mut steps: Vec<OsString> = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => steps.push(name.into()),
                Component::ParentDir => steps.push("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        // Who writes a slash at the end means a directory.
        if path.as_os_str().as_bytes().ends_with(b"/") {
            steps.push(".".into());
        }
        for step in steps.into_iter().rev() {
            self.left.push_front(step);
        }
        Ok(())
    }

    fn step(&mut self, name: OsString) -> io::Result<()> {
        // As a directory first, which has the kernel mount what it mounts on use.
        let next = match directory(&self.at, &name) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&self.at, &name, flags, Mode::empty())?
            }
            next => next?,
        };
        let stat = rustix::fs::fstat(&next)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
            return self.follow(&next, stat.st_uid, &name);
        }
        self.shown.push(&name);
        let before = std::mem::replace(&mut self.at, next);
        self.place = Some((before, name));
        Ok(())
    }

    fn follow(&mut self, link: &OwnedFd, owner: u32, name: &OsStr) -> io::Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        if rustix::fs::fstatfs(&self.at)?.f_type.cast_unsigned() == PROC {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            self.at = rustix::fs::openat(&self.at, name, flags, Mode::empty())?;
            self.place = None;
            return Ok(());
        }
        let us = rustix::process::geteuid().as_raw();
        if owner != 0 && owner != us {
            let path = self.shown.join(name);
            return Err(Refused::Link { path, owner }.into());
        }
        let target = rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes();
        self.go(Path::new(&OsString::from_vec(target)))
    }
}

fn directory(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn text(path: &Path) -> io::Result<String> {
        io::read_to_string(find(path)?.open_to_read()?)
    }

    #[test]
    fn a_path_means_what_the_kernel_says_it_means() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), "here").unwrap();
        symlink("a/b", at("relative")).unwrap();
        symlink(at("a"), at("absolute")).unwrap();
        symlink("../relative/./file", at("a/up")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for good in [
            "a/b/file",
            "a//b/./file",
            "a/b/../b/file",
            "relative/file",
            "absolute/b/file",
            "a/up",
        ] {
            assert_eq!(text(&at(good)).unwrap(), "here", "{good}");
        }
        for bad in [
            "missing",
            "a/missing",
            "a/b/file/x",
            "a/b/file/",
            "loop",
            "loop/x",
            "dangling",
            "",
        ] {
            let ours = find(&at(bad)).and_then(|found| found.open_to_read());
            let kernels = std::fs::File::open(at(bad));
            match (bad, kernels) {
                // The directory itself.
                ("", _) => assert!(ours.is_ok()),
                (_, kernels) => assert_eq!(
                    ours.unwrap_err().raw_os_error(),
                    kernels.unwrap_err().raw_os_error(),
                    "{bad}"
                ),
            }
        }
        assert!(find(Path::new("")).is_err());
        // Links that are the kernel's are not paths.
        let open = std::fs::File::open(at("a/b/file")).unwrap();
        std::fs::remove_file(at("a/b/file")).unwrap();
        let own = format!("/proc/self/fd/{}", open.as_raw_fd());
        assert_eq!(text(Path::new(&own)).unwrap(), "here");
        let own = format!("/dev/fd/{}", open.as_raw_fd());
        assert_eq!(text(Path::new(&own)).unwrap(), "here");
        open_directory(&at("relative")).unwrap();
        open_directory(Path::new("")).unwrap();
    }

    #[test]
    fn what_was_found_is_opened_whatever_its_name_means_by_now() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::write(at("one"), "one").unwrap();
        std::fs::write(at("two"), "two").unwrap();
        let found = find(&at("one")).unwrap();
        std::fs::rename(at("two"), at("one")).unwrap();
        assert_eq!(
            io::read_to_string(found.open_to_read().unwrap()).unwrap(),
            "one"
        );
    }

    #[test]
    fn nothing_that_is_there_is_taken_for_new() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        symlink("real", at("link")).unwrap();
        symlink("real/target", at("dangling")).unwrap();
        let file = create_new(&at("link/new"), 0o600).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(at("real/new").exists());
        for there in ["real/new", "dangling", "link"] {
            let error = create_new(&at(there), 0o600).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{there}");
        }
        assert!(!at("real/target").exists());
    }

    #[test]
    fn a_second_name_is_refused_where_others_can_make_names() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let mode = |mode| {
            std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        std::fs::write(at("one"), "").unwrap();
        let check = |name: &str| find(&at(name)).unwrap().not_planted();
        mode(0o1777);
        check("one").unwrap();
        std::fs::hard_link(at("one"), at("two")).unwrap();
        for loose in [0o1777, 0o770, 0o702] {
            mode(loose);
            let error = check("two").unwrap_err();
            assert_eq!(Refused::of(&error), Some(&Refused::Names { names: 2 }));
        }
        for tight in [0o700, 0o755, 0o1711] {
            mode(tight);
            check("two").unwrap();
        }
    }
}
