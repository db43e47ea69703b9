//! Loop devices: a file may be in use by the kernel without any lock.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Error;
use crate::error::Kind;

/// Fails if a loop device stands on the file at `path`: what is mounted from it
/// must not be changed below it. Where the kernel does not tell, nothing is known.
///
/// # Errors
/// [`Error::Refused`].
pub fn check_no_loop(path: &Path) -> Result<(), Error> {
    let Ok(file) = fs::metadata(path) else {
        return Ok(());
    };
    let Ok(devices) = fs::read_dir("/sys/block") else {
        return Ok(());
    };
    for device in devices.flatten() {
        let Ok(backing) = fs::read_to_string(device.path().join("loop/backing_file")) else {
            continue;
        };
        let same = fs::metadata(backing.trim_end_matches('\n'))
            .is_ok_and(|other| (other.dev(), other.ino()) == (file.dev(), file.ino()));
        if same {
            let name = device.file_name();
            let name = name.to_string_lossy();
            return Err(Error::refused(
                Kind::Busy,
                format!(
                    "{} is in use by the loop device /dev/{name}",
                    path.display()
                ),
                format!("unmount what is on it, then: losetup --detach /dev/{name}"),
            ));
        }
    }
    Ok(())
}
