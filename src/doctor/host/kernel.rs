//! The kernel's version, and what it offers beyond it.

use std::fs;
use std::io;
use std::ptr;

use crate::doctor::check::Check;

/// The oldest long-term kernel whose io_uring does all that is needed.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn version() -> Check {
    const NAME: &str = "kernel";
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = text.trim();
    match parse(release) {
        Some(version) if version < OLDEST => Check::warn(
            NAME,
            format!("Linux {release} is older than sealblk is tested with"),
            format!("use Linux {}.{} or later", OLDEST.0, OLDEST.1),
        ),
        Some(_) => Check::ok(NAME, format!("Linux {release}")),
        None => Check::skip(NAME, "the kernel does not tell its version"),
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn landlock() -> Check {
    const NAME: &str = "landlock";
    match abi() {
        Ok(abi) => Check::ok(NAME, format!("version {abi}: processes can be shut in")),
        Err(error) => Check::warn(
            NAME,
            format!("the kernel has none ({error}): disks are shut in less tightly"),
            "boot a kernel with CONFIG_SECURITY_LANDLOCK, and with landlock in lsm=",
        ),
    }
}

/// The version of landlock's interface.
fn abi() -> io::Result<i64> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the first two arguments must be null and zero, and
    // nothing is made: a number is returned.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    match abi {
        0.. => Ok(abi),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn huge_pages() -> Check {
    const NAME: &str = "hugepages";
    let read = |what: &str| -> Option<u64> {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{what}_hugepages");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    match (read("nr"), read("free")) {
        (Some(0), _) => Check::ok(
            NAME,
            "none are set aside; guests whose memory is in some (hugetlb=on) do more I/O",
        ),
        (Some(all), Some(free)) => {
            Check::ok(NAME, format!("{free} of {all} pages of 2 MiB are free"))
        }
        _ => Check::skip(NAME, "the kernel has none of 2 MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parse("5.14-rc3"), Some((5, 14)));
        assert_eq!(parse("6.18.44+"), Some((6, 18)));
        assert_eq!(parse(""), None);
        assert!(parse("5.4.0") < Some(OLDEST));
    }

    /// By what the kernel says of itself elsewhere.
    #[test]
    fn landlock_is_there_if_the_kernel_lists_it() {
        let Ok(list) = fs::read_to_string("/sys/kernel/security/lsm") else {
            return;
        };
        assert_eq!(abi().is_ok(), list.contains("landlock"));
    }
}
