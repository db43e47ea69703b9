//! The `[broker]` table: the settings of `sealblk broker`.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::daemon::check_socket;
use super::error::Error;
use super::file::Reader;
use super::service::{Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::kms::credential::SecretFile;
use crate::kms::tls::ServerSettings;

/// Where the broker keeps its wrapped group keys.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/sealblk-broker";

/// The settings of a broker, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Where hosts connect to.
    pub listen: SocketAddr,
    /// Its certificate, and whose clients it serves.
    pub tls: ServerSettings,
    /// Its X25519 private key, which hosts encrypt to.
    pub key: SecretFile,
    /// Who may do what.
    pub policy: PathBuf,
    /// Where the wrapped group keys are kept.
    pub state_dir: PathBuf,
    /// The socket where it tells its metrics, if it does.
    pub metrics: Option<PathBuf>,
    /// What connections may take.
    pub limits: Limits,
    /// Whether it does nothing without all its walls.
    pub require_sandbox: bool,
    /// The directories below which it may write, besides its own: where the
    /// library of a token keeps what it does.
    pub paths: Vec<PathBuf>,
}

/// What connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of hosts at once.
    pub connections: usize,
    /// Connections of one host at once.
    pub connections_of_host: usize,
    /// Connections at once that have not shown a certificate yet. For one more
    /// the oldest is closed.
    pub handshakes: usize,
    /// How long TLS may take until a certificate was shown.
    pub handshake_timeout: Duration,
    /// How long a request may take to arrive, an answer to be taken, and how
    /// long a connection may be idle.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 2048,
            connections_of_host: 64,
            handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    listen: Parsed<Address>,
    certificate: FilePath,
    certificate_key: Parsed<SecretPath>,
    client_ca_file: FilePath,
    key: Parsed<SecretPath>,
    policy: FilePath,
    state_dir: Option<FilePath>,
    metrics: Option<Parsed<Metrics>>,
    connections: Option<Spanned<usize>>,
    connections_of_host: Option<Spanned<usize>>,
    handshakes: Option<Spanned<usize>>,
    handshake_timeout: Option<Parsed<Wait>>,
    request_timeout: Option<Parsed<Wait>>,
    require_sandbox: Option<bool>,
    paths: Option<Vec<FilePath>>,
}

struct Address(SocketAddr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Address).map_err(|_| {
            format!("{text:?} is no address to listen at: write \"0.0.0.0:8843\", \"[::]:8843\" or one address of this host, with the port")
        })
    }
}

struct Metrics(PathBuf);

impl FromStr for Metrics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").map(PathBuf::from);
        let path = path.filter(|path| path.is_absolute()).ok_or_else(|| {
            format!(
                "{text:?} is no place for metrics: write unix: and the absolute path of a socket"
            )
        })?;
        check_socket(&path)?;
        Ok(Metrics(path))
    }
}

/// The settings that `value` describes.
pub(super) fn settings<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Broker, Error> {
    let table: Table = reader.table(value)?;
    let default = Limits::default();
    let count = |given: Option<Spanned<usize>>, default, what| match given {
        None => Ok(default),
        Some(given) if (1..=65_536).contains(given.get_ref()) => Ok(given.into_inner()),
        Some(given) => Err(reader.at(
            given.span().start,
            format!("{what} is a number from 1 to 65536"),
        )),
    };
    let time = |given: Option<Parsed<Wait>>, default| {
        given.map_or(default, |wait: Parsed<Wait>| wait.0.get())
    };
    Ok(Broker {
        listen: table.listen.0.0,
        tls: ServerSettings {
            certificate: table.certificate.into(),
            key: table.certificate_key.0.0,
            client_ca_file: table.client_ca_file.into(),
        },
        key: table.key.0.0,
        policy: table.policy.into(),
        state_dir: table
            .state_dir
            .map_or_else(|| DEFAULT_STATE_DIR.into(), PathBuf::from),
        metrics: table.metrics.map(|metrics| metrics.0.0),
        limits: Limits {
            connections: count(table.connections, default.connections, "connections")?,
            connections_of_host: count(
                table.connections_of_host,
                default.connections_of_host,
                "connections_of_host",
            )?,
            handshakes: count(table.handshakes, default.handshakes, "handshakes")?,
            handshake_timeout: time(table.handshake_timeout, default.handshake_timeout),
            request_timeout: time(table.request_timeout, default.request_timeout),
        },
        require_sandbox: table.require_sandbox.unwrap_or(false),
        paths: table.paths.map_or(vec![], |paths| {
            paths.into_iter().map(PathBuf::from).collect()
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::parse;

    const LEAST: &str = "[broker]\nlisten = \"[::]:8843\"\ncertificate = \"/b.pem\"\n\
        certificate_key = \"credential:tls\"\nclient_ca_file = \"/ca.pem\"\n\
        key = \"/b.key\"\npolicy = \"/policy.toml\"\n";

    fn broker(text: &str) -> Result<Broker, String> {
        let config = parse(Path::new("c.toml"), text).map_err(|error| error.to_string())?;
        Ok(config.broker.unwrap())
    }

    #[test]
    fn a_broker_has_what_it_needs_and_the_usual_rest() {
        let least = broker(LEAST).unwrap();
        assert_eq!(least.listen.port(), 8843);
        assert_eq!(least.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!((least.metrics, least.limits), (None, Limits::default()));
        let more = format!(
            "{LEAST}state_dir = \"/s\"\nmetrics = \"unix:/run/m.sock\"\nconnections = 7\n\
             connections_of_host = 2\nhandshakes = 3\nhandshake_timeout = \"1s\"\n\
             request_timeout = \"500ms\"\n"
        );
        let more = broker(&more).unwrap();
        assert_eq!(more.metrics, Some("/run/m.sock".into()));
        assert_eq!(
            more.limits,
            Limits {
                connections: 7,
                connections_of_host: 2,
                handshakes: 3,
                handshake_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_millis(500),
            }
        );
    }

    #[test]
    fn each_fault_is_told_with_its_place() {
        for (from, to, told) in [
            (
                "listen = \"[::]:8843\"\n",
                "",
                "c.toml:1:1: missing field `listen`",
            ),
            (
                "[::]:8843",
                "localhost",
                "c.toml:2:10: \"localhost\" is no address",
            ),
            ("/b.key", "hush", "c.toml:6:7: secrets are not written"),
            (
                "/b.pem",
                "b.pem",
                "c.toml:3:15: \"b.pem\" is not an absolute path",
            ),
            ("\nkey =", "\nkeys =", "unknown field `keys`"),
            (
                "policy =",
                "connections = 0\npolicy =",
                "c.toml:7:15: connections is a number",
            ),
            (
                "policy =",
                "metrics = \"/m\"\npolicy =",
                "no place for metrics",
            ),
            (
                "policy =",
                "metrics = \"unix:m\"\npolicy =",
                "no place for metrics",
            ),
        ] {
            let error = broker(&LEAST.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
