//! What this host has: the kernel, the CPU, and the limits of this process.
//! Each is tried as it is used, and not looked up.

mod kernel;
mod limits;
mod ring;
mod walls;

use super::check::Check;
use crate::crypt::Engine;
use crate::secret;

/// All checks of the host.
pub fn examine() -> Vec<Check> {
    let mut checks = vec![
        kernel::version(),
        ring::check(),
        engine(),
        secret_memory(),
        limits::locked_memory(),
        limits::open_files(),
        limits::core_dumps(),
        kernel::landlock(),
        kernel::huge_pages(),
    ];
    checks.extend(walls::checks());
    checks
}

fn engine() -> Check {
    const NAME: &str = "engine";
    let best = Engine::best();
    if let Err(error) = best.self_test() {
        return Check::failed(NAME, &error);
    }
    let others: Vec<&str> = Engine::available()
        .into_iter()
        .filter(|engine| *engine != best)
        .map(Engine::name)
        .collect();
    let message = format!(
        "{best} encrypts, and gives the known answers (this CPU also runs: {})",
        match others.as_slice() {
            [] => "none".into(),
            others => others.join(", "),
        }
    );
    match best {
        Engine::Portable => Check::warn(
            NAME,
            message,
            "use a CPU with AES instructions, and let the hypervisor pass them on: this is many times slower",
        ),
        _ => Check::ok(NAME, message),
    }
}

fn secret_memory() -> Check {
    const NAME: &str = "memfd_secret";
    match secret::try_memfd_secret() {
        Ok(()) => Check::ok(
            NAME,
            "keys are kept in memory that is not even in the kernel's own map",
        ),
        Err(error) => match secret::Secret::zeroed(secret::DEK_BYTES) {
            Ok(_) => Check::warn(
                NAME,
                format!(
                    "the kernel has none ({error}): keys are in locked memory, which it can read"
                ),
                "boot with secretmem.enable=1 on a kernel of 5.14 or later",
            ),
            Err(error) => Check::fail(
                NAME,
                crate::error::Kind::Io,
                format!("there is no memory for keys: {error}"),
                "raise the limit of locked memory (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)",
            ),
        },
    }
}
