//! What somebody wants to be attached, checked.

use std::path::Path;

use crate::config::{self, Options, Serve};
use crate::error::{Failure, Kind};
use crate::manager::model::{Attach, is_disk_name};
use crate::manager::state::Record;

/// What [`Attach`] means here: the disk and how to serve it.
///
/// # Errors
/// When it contradicts itself or cannot be.
pub fn resolve(
    record: &Record,
    defaults: &Options,
) -> Result<(config::Disk, Serve), config::Error> {
    // These are of `sealblk serve` itself, and not of a disk.
    let defaults = Options {
        pid_file: None,
        serial: None,
        ..defaults.clone()
    };
    let mut serve = Serve::resolve(
        vec![record.volume.clone()],
        record.header.iter().cloned().collect(),
        vec![record.socket.clone()],
        record.options.clone(),
        defaults,
    )?;
    // One volume makes one disk.
    let disk = serve.disks.remove(0);
    Ok((disk, serve))
}

/// Checks what can be checked without looking anywhere.
///
/// # Errors
/// [`Kind::Usage`], with what is wrong.
pub fn check(request: &Attach) -> Result<(), Failure> {
    let wrong = |message: String, help: &str| {
        Err(Failure::new(Kind::Usage, message, Some(help.to_owned())))
    };
    let paths = [
        ("volume", Some(&request.volume)),
        ("header", request.header.as_ref()),
        ("socket", Some(&request.socket)),
        ("recovery key file", request.recovery_key_file.as_ref()),
    ];
    for (what, path) in paths {
        let Some(path) = path else { continue };
        if !path.is_absolute() {
            return wrong(
                format!(
                    "the path of the {what}, {}, is not absolute",
                    path.display()
                ),
                "begin it with /",
            );
        }
        if !is_recordable(path) {
            return wrong(
                format!("the path of the {what}, {}, is not UTF-8", path.display()),
                "rename it, or make a link to it: the manager keeps paths as text",
            );
        }
    }
    if let Some(name) = request.name.as_deref().filter(|name| !is_disk_name(name)) {
        return wrong(
            format!("{name:?} is not a name for a disk"),
            "use 1 to 64 letters, digits, '.', '_' and '-'",
        );
    }
    let glass = request.break_glass || request.recovery_key_file.is_some();
    if request.even_if_denied && !glass {
        return wrong(
            "even_if_denied says what for, and not how".into(),
            "add break_glass, or a recovery_key_file",
        );
    }
    if request.options.pid_file.is_some() {
        return wrong(
            "an attached disk has no pid file".into(),
            "leave it out: `sealblk show` tells the process of a disk",
        );
    }
    Ok(())
}

fn is_recordable(path: &Path) -> bool {
    path.to_str().is_some()
}
