//! Where a KMIP server listens.

use std::fmt;
use std::str::FromStr;

/// The port registered for KMIP over TLS.
pub const PORT: u16 = 5696;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').and_then(|(host, port)| {
                let host = host.parse::<std::net::Ipv6Addr>().ok()?.to_string();
                match port {
                    "" => Some((host, PORT)),
                    port => Some((host, port.strip_prefix(':')?.parse().ok()?)),
                }
            }),
            None => {
                let (host, port) = match text.split_once(':') {
                    Some((host, port)) => (host, port.parse().ok()),
                    None => (text, Some(PORT)),
                };
                let good = rustls::pki_types::ServerName::try_from(host).is_ok();
                port.filter(|_| good).map(|port| (host.to_string(), port))
            }
        };
        match parsed {
            Some((host, port)) if port != 0 => Ok(Endpoint { host, port }),
            _ => Err(format!(
                "{text:?} is not a KMIP server: write a host and, where it is not {PORT}, a port, such as \"kms.example\" or \"10.0.0.1:5697\" or \"[fd00::1]:5696\""
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        let parse = |text: &str| text.parse::<Endpoint>().map(|e| (e.host.clone(), e.port));
        for (text, host, port) in [
            ("kms.example", "kms.example", PORT),
            ("kms:15696", "kms", 15696),
            ("10.0.0.1", "10.0.0.1", PORT),
            ("[fd00::1]:7", "fd00::1", 7),
            ("[fd00::1]", "fd00::1", PORT),
        ] {
            assert_eq!(parse(text), Ok((host.into(), port)));
            let written = text.parse::<Endpoint>().unwrap().to_string();
            assert_eq!(parse(&written), Ok((host.into(), port)), "{written}");
        }
        for text in [
            "",
            ":5696",
            "kms:",
            "kms:0",
            "kms:65536",
            "fd00::1",
            "[fd00::1",
            "[kms]:1",
            "https://kms",
            "kms example",
            "[fd00::1]5",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
