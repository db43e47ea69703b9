//! What somebody wants to be attached, checked.

use std::path::Path;

use crate::config::{self, Options, Serve};
use crate::error::{Failure, Kind};
use crate::manager::model::{Attach, Ephemeral, is_disk_name};
use crate::manager::state::Record;
use crate::units::SectorSize;
use crate::volume::{self, Layout};

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
    if let Some(wanted) = &request.ephemeral {
        check_ephemeral(request, wanted)?;
    }
    check_incoming(request)?;
    if request.options.pid_file.is_some() {
        return wrong(
            "an attached disk has no pid file".into(),
            "leave it out: `sealblk show` tells the process of a disk",
        );
    }
    Ok(())
}

/// Checks what cannot be of a disk whose guest comes from another host.
fn check_incoming(request: &Attach) -> Result<(), Failure> {
    let wrong = |message: &str, help: &str| {
        let (message, help) = (message.to_owned(), help.to_owned());
        Err(Failure::new(Kind::Usage, message, Some(help)))
    };
    if request.dry_run && !request.incoming {
        return wrong(
            "dry_run finds out whether a guest could come from another host",
            "add incoming, or leave dry_run out",
        );
    }
    if !request.incoming {
        return Ok(());
    }
    if request.ephemeral.is_some() {
        return wrong(
            "an ephemeral disk cannot come from another host: its key is in one process there, \
             and nobody has it",
            "let the guest go on without that disk, and attach a new one here",
        );
    }
    if request.options.read_only == Some(true) {
        return wrong(
            "a disk that is only read is not taken from another host: both may have it",
            "attach it without incoming",
        );
    }
    Ok(())
}

/// Checks what cannot be together with an ephemeral disk, and its size.
fn check_ephemeral(request: &Attach, wanted: &Ephemeral) -> Result<(), Failure> {
    let wrong = |message: String, help: &str| {
        Err(Failure::new(Kind::Usage, message, Some(help.to_owned())))
    };
    let contradictions = [
        (request.header.is_some(), "a header"),
        (request.break_glass, "break-glass access"),
        (request.options.read_only == Some(true), "read_only"),
    ];
    if let Some((_, what)) = contradictions.iter().find(|(is, _)| *is) {
        return wrong(
            format!("an ephemeral disk has no use for {what}"),
            "leave it out: such a disk begins empty, with a key of its own",
        );
    }
    let bytes = u64::from(wanted.sector_size.unwrap_or(4096));
    let Some(unit) = SectorSize::from_bytes(bytes) else {
        return wrong(
            format!("there is no sector size of {bytes} bytes"),
            "use 512 or 4096",
        );
    };
    let layout = Layout {
        data_offset: 0,
        size: wanted.size,
        sector_size: unit,
        iv_tweak: 0,
        zero_units: true,
    };
    Ok(volume::check_size(&layout, wanted.size)?)
}

fn is_recordable(path: &Path) -> bool {
    path.to_str().is_some()
}
