//! Users of the system, by name or number.

use std::ffi::{CStr, CString};
use std::io;

/// The number of the user of that name, or that is written there.
///
/// # Errors
/// What is wrong, in plain words, when there is no such user or the system
/// cannot tell.
pub fn uid_of(text: &str) -> Result<u32, String> {
    let uid = if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        // The highest number means "no change" to chown(2), and nobody has it.
        text.parse().ok().filter(|uid| *uid != u32::MAX)
    } else {
        CString::new(text)
            .ok()
            .map(|name| by_name(&name))
            .transpose()
            .map_err(|error| format!("cannot look up user {text:?}: {error}"))?
            .flatten()
    };
    uid.ok_or_else(|| format!("there is no user {text:?}"))
}

/// The number of the user of that name, from wherever the system keeps its users.
fn by_name(name: &CStr) -> io::Result<Option<u32>> {
    let mut buffer = vec![0u8; 4096];
    loop {
        let mut user = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: every pointer is to a live, writable object of the right
        // type, and the length is that of the buffer.
        let result = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                user.as_mut_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut found,
            )
        };
        match result {
            libc::ERANGE if buffer.len() < (1 << 20) => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            // Some name services report a missing user as an error.
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: on success and with a non-null `found`, `user` has been
            // filled in. Its number is plain data.
            0 => return Ok(Some(unsafe { user.assume_init() }.pw_uid)),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(uid_of("root"), Ok(0));
        assert_eq!(uid_of("4242"), Ok(4242));
        for text in ["", "no-such-user-here", "4294967295", "-1", "a\0b"] {
            let error = uid_of(text).unwrap_err();
            assert!(error.contains("there is no user"), "{error}");
        }
    }
}
