//! Ports for servers that are told theirs.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;

/// A port of this host on which nobody listens now. It is none of those that the
/// kernel gives to connections and to whoever leaves the choice to it (from 32768, by
/// `ip_local_port_range`), so that hardly anybody has it a moment later.
pub fn free_port() -> u16 {
    loop {
        let chance = RandomState::new().build_hasher().finish();
        let port = 20_000 + (chance % 12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
