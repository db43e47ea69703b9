//! The network as an attacker, and who answers there: every provider meets the
//! same hostile servers, and each time a clear error comes in time, denies
//! nothing, shows no secret, and sends none to anybody else.
//!
//! `docs/network.md` lists the attacks and what comes of each.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
#[path = "../support/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod echoes;
mod files;
mod handshakes;
#[path = "../support/hostile_tls.rs"]
mod hostile;
mod lies;
mod sites;

use sealblk::error::Explain;
use sealblk::kms::{Class, Error};

/// Panics unless an error is one that people can do something with, and that
/// nobody on the way can stop a disk with.
#[track_caller]
fn check(error: &Error, what: &str) {
    let text = format!("{error}");
    let next = error.help().unwrap_or_default();
    assert!(!text.is_empty() && !next.is_empty(), "{what}: {text}");
    for shown in [&text, &next] {
        assert!(!shown.chars().any(char::is_control), "{what}: {shown:?}");
        assert!(shown.len() < 2500, "{what}: {} bytes", shown.len());
        for needle in sites::needles() {
            assert!(!shown.contains(&needle), "{what}: {shown}");
        }
    }
    assert!(
        matches!(
            error.class(),
            Class::Unreachable | Class::Protocol | Class::Throttled { .. } | Class::Sealed
        ),
        "{what}: {}: {text}",
        error.class()
    );
}
