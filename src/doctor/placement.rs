//! Chicken and egg: an endpoint on this host, or a file on a volume that
//! needs the endpoint or the file to be opened.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::check::Check;
use crate::volume::{Inspection, Location};

const NAME: &str = "placement";

/// Endpoints whose address is one of this host.
pub(super) fn of_endpoints<'e>(
    endpoints: impl Iterator<Item = (&'e str, &'e [SocketAddr])>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut elsewhere = 0;
    for (endpoint, addresses) in endpoints {
        match addresses.iter().find(|address| is_ours(address.ip())) {
            Some(address) => checks.push(
                Check::warn(
                    NAME,
                    format!("{} is an address of this host", address.ip()),
                    "if the service, or the guest that it runs in, has a disk that this key set opens, neither starts after an outage: name an endpoint elsewhere too",
                )
                .at(endpoint),
            ),
            None => elsewhere += usize::from(!addresses.is_empty()),
        }
    }
    if checks.is_empty() && elsewhere > 0 {
        checks.push(Check::ok(NAME, "no endpoint is on this host"));
    }
    checks
}

/// Whether a socket can be bound to the address, which takes one of ours.
fn is_ours(address: IpAddr) -> bool {
    let any = ["ipv4", "ipv6"].iter().any(|family| {
        let path = format!("/proc/sys/net/{family}/ip_nonlocal_bind");
        fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
    });
    match any {
        // Then that tells nothing.
        true => address.is_loopback(),
        false => UdpSocket::bind((address, 0)).is_ok(),
    }
}

/// Files that lie on a volume of sealblk.
pub(super) fn of_files(files: &[PathBuf]) -> Vec<Check> {
    let system = System {
        sys: "/sys".into(),
        dev: "/dev".into(),
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
    };
    files
        .iter()
        .filter_map(|file| {
            let volume = system.volume_below(file)?;
            Some(Check::warn(
                NAME,
                format!("{} lies on the volume {}", file.display(), volume.display()),
                "after an outage that volume may need the file to be opened: keep the file on a disk that sealblk does not encrypt",
            ))
        })
        .collect()
}

/// Where block devices are described.
struct System {
    sys: PathBuf,
    dev: PathBuf,
    mounts: String,
}

impl System {
    /// The volume that `file` lies on, through however many layers.
    fn volume_below(&self, file: &Path) -> Option<PathBuf> {
        let device = fs::metadata(file).ok()?.dev();
        let mut seen = BTreeSet::new();
        self.below_number(device, &mut seen)
    }

    fn below_number(&self, device: u64, seen: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let link = self.sys.join(format!("dev/block/{major}:{minor}"));
        let node = match fs::canonicalize(&link) {
            Ok(node) => node,
            // Of a file system over several devices: the mount names one.
            Err(_) => {
                let source = self.mounted_from(&format!("{major}:{minor}"))?;
                let device = fs::metadata(source).ok()?.rdev();
                let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
                fs::canonicalize(self.sys.join(format!("dev/block/{major}:{minor}"))).ok()?
            }
        };
        self.below_node(&node, seen)
    }

    /// The source of the file system with this number (proc_pid_mountinfo(5)).
    fn mounted_from(&self, number: &str) -> Option<PathBuf> {
        self.mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let found = before.split(' ').nth(2)? == number;
            let source = after.split(' ').nth(1)?;
            (found && source.starts_with('/')).then(|| source.into())
        })
    }

    fn below_node(&self, node: &Path, seen: &mut BTreeSet<PathBuf>) -> Option<PathBuf> {
        if !seen.insert(node.to_owned()) {
            return None;
        }
        let device = self.dev.join(node.file_name()?);
        if is_volume(&device) {
            return Some(device);
        }
        // What a mapping (dm-crypt, LVM, RAID) is made of.
        let slaves = fs::read_dir(node.join("slaves")).into_iter().flatten();
        for slave in slaves.flatten() {
            let slave = fs::canonicalize(slave.path()).ok();
            if let Some(found) = slave.and_then(|slave| self.below_node(&slave, seen)) {
                return Some(found);
            }
        }
        if let Ok(backing) = fs::read_to_string(node.join("loop/backing_file")) {
            let file = PathBuf::from(backing.trim_end_matches('\n'));
            if is_volume(&file) {
                return Some(file);
            }
            return self.below_number(fs::metadata(file).ok()?.dev(), seen);
        }
        match node.join("partition").exists() {
            true => self.below_node(node.parent()?, seen),
            false => None,
        }
    }
}

/// Whether it is a volume of sealblk. What cannot be read is taken for none.
fn is_volume(path: &Path) -> bool {
    let location = Location {
        data: path.to_owned(),
        header: None,
    };
    Inspection::of(&location).is_ok_and(|inspection| inspection.description().is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::secret::Dek;
    use crate::units::Bytes;
    use crate::volume::{CreateOptions, Plan};

    /// A `/sys` and a `/dev` in which the file system of the test lies on
    /// `node`, which a test adds.
    fn system(directory: &Path, node: &str) -> System {
        let device = fs::metadata(directory).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let sys = directory.join("sys");
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::create_dir_all(sys.join(node)).unwrap();
        symlink(
            sys.join(node),
            sys.join(format!("dev/block/{major}:{minor}")),
        )
        .unwrap();
        fs::create_dir(directory.join("dev")).unwrap();
        System {
            sys,
            dev: directory.join("dev"),
            mounts: String::new(),
        }
    }

    fn volume(path: &Path) {
        let location = Location {
            data: path.to_owned(),
            header: None,
        };
        let options = CreateOptions {
            size: Some(Bytes(1 << 20)),
            ..CreateOptions::default()
        };
        let wrap = serde_json::from_value(serde_json::json!({
            "key_set": "set", "provider": "p", "key_id": "k", "key_version": "1",
            "alg": "none", "bound": "aad", "bytes": "AAAA",
        }));
        let plan = Plan::new(&location, options).unwrap();
        let dek = Dek::generate().unwrap();
        plan.write(&dek, "set", vec![wrap.unwrap()]).unwrap();
    }

    #[test]
    fn a_volume_is_found_below_a_mapping_and_a_loop_device() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let system = system(directory.path(), "dm-0");
        fs::write(at("token"), "").unwrap();
        assert_eq!(system.volume_below(&at("token")), None);

        let (dm, looped) = (system.sys.join("dm-0"), system.sys.join("loop0"));
        fs::create_dir_all(dm.join("slaves")).unwrap();
        fs::create_dir_all(looped.join("loop")).unwrap();
        symlink(&looped, dm.join("slaves/loop0")).unwrap();
        let backing = format!("{}\n", at("disk.img").display());
        fs::write(looped.join("loop/backing_file"), backing).unwrap();
        // On the file system that it is below of: that ends as well.
        fs::write(at("disk.img"), "no volume").unwrap();
        assert_eq!(system.volume_below(&at("token")), None);
        fs::remove_file(at("disk.img")).unwrap();
        volume(&at("disk.img"));
        assert_eq!(system.volume_below(&at("token")), Some(at("disk.img")));
    }

    #[test]
    fn a_volume_is_found_below_a_partition() {
        let directory = tempfile::tempdir().unwrap();
        let system = system(directory.path(), "sda/sda1");
        fs::write(system.sys.join("sda/sda1/partition"), "1").unwrap();
        let token = directory.path().join("token");
        fs::write(&token, "").unwrap();
        assert_eq!(system.volume_below(&token), None);
        volume(&system.dev.join("sda"));
        assert_eq!(system.volume_below(&token), Some(system.dev.join("sda")));
    }

    #[test]
    fn the_source_of_a_mount_is_read() {
        let system = System {
            sys: "/nonexistent".into(),
            dev: "/nonexistent".into(),
            mounts: "36 35 0:45 / /srv rw,noatime shared:1 - btrfs /dev/mapper/data rw\n\
                     37 35 0:46 / /tmp rw - tmpfs tmpfs rw\n"
                .into(),
        };
        let of = |number| system.mounted_from(number);
        assert_eq!(of("0:45"), Some("/dev/mapper/data".into()));
        assert_eq!(of("0:46"), None);
        assert_eq!(of("8:1"), None);
    }

    #[test]
    fn our_addresses_are_told_from_others() {
        assert!(is_ours("127.0.0.1".parse().unwrap()));
        // For documentation only (RFC 5737).
        assert!(!is_ours("192.0.2.1".parse().unwrap()));
    }
}
