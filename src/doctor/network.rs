//! From the name of an endpoint to a connection that can be trusted.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::check::Check;
use super::ways::Net;
use crate::error::Kind;
use crate::kms::tls::{self, Summary, Tls};

/// An end that is nearer than this is one to be looked at.
const NEAR: Duration = Duration::from_secs(30 * DAY);

const DAY: u64 = 86_400;

/// The addresses of an endpoint.
pub(super) async fn dns(net: &Net, patience: Duration) -> (Check, Vec<SocketAddr>) {
    const NAME: &str = "dns";
    let looking = tokio::net::lookup_host((net.host.as_str(), net.port));
    let help = "check the host name of the endpoint, and the name service of this host";
    let fail = |message: String| {
        (
            Check::fail(NAME, Kind::Unreachable, message, help),
            Vec::new(),
        )
    };
    let found: Vec<SocketAddr> = match timeout(patience, looking).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return fail(format!("{} has no address: {error}", net.host)),
        Err(_) => {
            return fail(format!(
                "the name service did not answer within {patience:?}"
            ));
        }
    };
    if found.is_empty() {
        return fail(format!("{} has no address", net.host));
    }
    let shown: Vec<String> = found
        .iter()
        .map(|address| address.ip().to_string())
        .collect();
    let message = match net.host.parse::<std::net::IpAddr>() {
        Ok(_) => "an address needs no name service".into(),
        Err(_) => format!("{} is {}", net.host, shown.join(", ")),
    };
    (Check::ok(NAME, message), found)
}

/// Connects to each address. The first connection is handed on.
pub(super) async fn tcp(
    addresses: &[SocketAddr],
    patience: Duration,
) -> (Check, Option<TcpStream>) {
    const NAME: &str = "tcp";
    let mut stream = None;
    let mut failed: Vec<(_, (String, _))> = Vec::new();
    for address in addresses {
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(connected)) => {
                stream.get_or_insert(connected);
            }
            Ok(Err(error)) => failed.push((address, plain(&error))),
            Err(_) => failed.push((address, (SILENT.0.into(), SILENT.1))),
        }
    }
    let told: Vec<String> = failed
        .iter()
        .map(|(address, (what, _))| format!("{address} {what}"))
        .collect();
    let help = failed.first().map_or("", |(_, (_, help))| *help);
    let check = match (&stream, told.is_empty()) {
        (Some(_), true) => Check::ok(
            NAME,
            format!("connected to {} of its addresses", addresses.len()),
        ),
        (Some(_), false) => Check::warn(NAME, told.join("; "), help),
        (None, _) => Check::fail(NAME, Kind::Unreachable, told.join("; "), help),
    };
    (check, stream)
}

const SILENT: (&str, &str) = (
    "does not answer",
    "check that no firewall drops the connection, and that the host is up",
);

fn plain(error: &io::Error) -> (String, &'static str) {
    use io::ErrorKind as E;
    let (what, help) = match error.kind() {
        E::ConnectionRefused => (
            "refuses the connection",
            "check that the service runs, and its port",
        ),
        E::HostUnreachable | E::NetworkUnreachable => (
            "cannot be reached: there is no route",
            "check the network of this host, and the address of the endpoint",
        ),
        E::TimedOut => SILENT,
        _ => {
            return (
                format!("cannot be connected to: {error}"),
                "check the network between this host and the service",
            );
        }
    };
    (what.into(), help)
}

/// The certificate of an endpoint, and whether it is trusted.
pub(super) async fn certificate(net: &Net, stream: TcpStream, patience: Duration) -> Check {
    const NAME: &str = "tls";
    let Some(settings) = &net.tls else {
        return Check::skip(NAME, "none is spoken: the endpoint is on this host");
    };
    let tls = Tls::new(settings.clone());
    let looking = tls::inspect(&tls, &net.host, stream);
    let Ok((shown, result)) = timeout(patience, looking).await else {
        return Check::fail(
            NAME,
            Kind::Unreachable,
            format!("the service took the connection, and says nothing within {patience:?}"),
            "check that the port is that of the service; see whether it hangs",
        );
    };
    match (result, shown) {
        (Ok(()), Some(shown)) => {
            let renew = "have the certificate of the service renewed";
            near_end(NAME, describe(&shown), &shown, renew)
        }
        (Ok(()), None) => Check::ok(NAME, "agreed upon"),
        (Err(error), Some(shown)) => {
            let mut check = Check::failed(NAME, &error);
            check.message = format!("{} (it shows {})", check.message, describe(&shown));
            check
        }
        (Err(error), None) => Check::failed(NAME, &error),
    }
}

/// Whose a certificate is, who says so, and how long it lasts.
pub(super) fn describe(certificate: &Summary) -> String {
    let left = certificate
        .not_after
        .to_system()
        .duration_since(SystemTime::now())
        .map_or(0, |left| left.as_secs() / DAY);
    format!(
        "{}, issued by {}, valid until {} ({left} days)",
        certificate.subject, certificate.issuer, certificate.not_after
    )
}

/// Ok, unless the certificate is in the last quarter of its time and ends
/// soon, or has ended.
pub(super) fn near_end(
    name: &'static str,
    message: String,
    certificate: &Summary,
    renew: &str,
) -> Check {
    let end = certificate.not_after.to_system();
    let whole = end
        .duration_since(certificate.not_before.to_system())
        .unwrap_or_default();
    match end.duration_since(SystemTime::now()) {
        Err(_) => Check::fail(name, Kind::Key, format!("{message}: it has ended"), renew),
        Ok(left) if left < NEAR.min(whole / 4) => {
            Check::warn(name, format!("{message}: it ends soon"), renew)
        }
        Ok(_) => Check::ok(name, message),
    }
}
