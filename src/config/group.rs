//! Groups of the system, by name or number.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io;
use std::str::FromStr;

/// A group that exists, or a number that was given as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// As it was written.
    pub name: String,
    /// Its number.
    pub gid: u32,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let gid = if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
            // The highest number means "no change" to chown(2).
            text.parse().ok().filter(|gid| *gid != u32::MAX)
        } else {
            CString::new(text)
                .ok()
                .map(|name| by_name(&name))
                .transpose()
                .map_err(|error| format!("cannot look up group {text:?}: {error}"))?
                .flatten()
        };
        match gid {
            Some(gid) => Ok(Group {
                name: text.into(),
                gid,
            }),
            None => Err(format!(
                "there is no group {text:?}: make it with groupadd, or name another or its number"
            )),
        }
    }
}

/// The number of the group of that name, from wherever the system keeps its groups.
fn by_name(name: &CStr) -> io::Result<Option<u32>> {
    // A group with thousands of members needs a large buffer.
    let mut buffer = vec![0u8; 4096];
    loop {
        let mut group = std::mem::MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: every pointer is to a live, writable object of the right
        // type, and the length is that of the buffer.
        let result = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                group.as_mut_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut found,
            )
        };
        match result {
            libc::ERANGE if buffer.len() < (64 << 20) => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            // Some name services report a missing group as an error.
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: on success and with a non-null `found`, `group` has been
            // filled in. Its number is plain data.
            0 => return Ok(Some(unsafe { group.assume_init() }.gr_gid)),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!("root".parse::<Group>().unwrap().gid, 0);
        assert_eq!("4242".parse::<Group>().unwrap().gid, 4242);
        for text in [
            "",
            "no-such-group-here",
            "4294967295",
            "99999999999",
            "-1",
            "a\0b",
        ] {
            let error = text.parse::<Group>().unwrap_err();
            assert!(error.contains("there is no group"), "{error}");
        }
    }
}
