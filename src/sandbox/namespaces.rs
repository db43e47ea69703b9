//! Namespaces: a network without a device, and a root directory without a file.

use std::fs;
use std::io;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::report::{Layer, Report};

/// What becomes of the root directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The process opens no path any more.
    Empty,
    /// It does.
    Kept,
}

/// Where the file system without files is mounted, out of sight of everybody
/// else: a directory that every system has.
const SPOT: &str = "/dev";

/// Leaves the namespaces of the host, where that is permitted: to root with
/// CAP_SYS_ADMIN, and to other users where the kernel lets them have a user
/// namespace. Root without that capability would not know the manager any more
/// in one, by whose user it is told from others.
pub fn leave(root: Root, report: &mut Report) {
    if let Err(why) = enter(root) {
        report.missing(Layer::Namespaces, &why);
        let standing = match root {
            Root::Empty => super::report::Standing::Missing(why),
            Root::Kept => kept(),
        };
        report.note(Layer::Root, standing);
        return;
    }
    report.holds(
        Layer::Namespaces,
        "network, IPC, host name and control groups are its own",
    );
    match root {
        Root::Kept => report.note(Layer::Root, kept()),
        Root::Empty => match empty_root() {
            Ok(()) => report.holds(Layer::Root, "an empty directory"),
            Err((step, error)) => {
                report.missing(Layer::Root, format!("{step} is not permitted: {error}"));
            }
        },
    }
}

fn kept() -> super::report::Standing {
    super::report::Standing::None("sockets are removed from where they are".into())
}

fn enter(root: Root) -> Result<(), String> {
    let mut wanted = UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    if root == Root::Empty {
        wanted |= UnshareFlags::NEWNS;
    }
    let own = rustix::thread::capabilities(None).map_err(|error| error.to_string())?;
    if !own.effective.contains(CapabilitySet::SYS_ADMIN) {
        if rustix::process::geteuid().is_root() {
            return Err("root needs CAP_SYS_ADMIN for them".into());
        }
        enter_user_namespace().map_err(|error| format!("a user namespace: {error}"))?;
    }
    unshare(wanted).map_err(|error| error.to_string())
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the table of descriptors is not among what is unshared.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// In which this user is who it was, and nobody else is anybody.
fn enter_user_namespace() -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    unshare(UnshareFlags::NEWUSER)?;
    // The files below are those of root while the process shows nothing of
    // itself. It holds nothing yet.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let written = fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")))
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{user} {user} 1")));
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    written
}

/// Exchanges the root directory for an empty one that cannot be written, and
/// lets go of all that was mounted below it.
fn empty_root() -> Result<(), (&'static str, io::Error)> {
    let at = |step| move |error: rustix::io::Errno| (step, io::Error::from(error));
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(at("mounting for itself"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    let options = c"size=4k,nr_inodes=1,mode=0555";
    rustix::mount::mount("sealblk", SPOT, "tmpfs", flags, options)
        .map_err(at("mounting an empty file system"))?;
    rustix::process::chdir(SPOT).map_err(at("going there"))?;
    // The old root comes to lie on the new one, and is taken off.
    rustix::process::pivot_root(".", ".").map_err(at("changing the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("letting go of the old root"))?;
    rustix::process::chdir("/").map_err(at("going there"))?;
    let gone = rustix::fs::statat(CWD, "/proc", rustix::fs::AtFlags::empty());
    match gone {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(("looking at the new root", error.into())),
        Ok(_) => Err(("changing the root", io::ErrorKind::AlreadyExists.into())),
    }
}
