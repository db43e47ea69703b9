//! HTTP as providers use it: one request, one bounded answer, and failures in
//! plain words. Redirects are never followed and proxies of the environment
//! never used: both would take a credential to another host.

mod echo;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Url};
use rustls::ClientConfig;
use serde::Serialize;
use zeroize::Zeroizing;

use self::echo::Sent;
use super::cluster::Failed;
use super::tls::{self, Tls};
use super::{Class, Error};
use crate::timestamp::Timestamp;

/// The most that an answer may have. A key with 10,000 versions has a fifth.
pub const BODY_MAX: usize = 1 << 20;

/// The metadata servers of Google and Amazon. They are no link-local addresses,
/// and the clouds keep them to the machine all the same.
#[cfg(feature = "gcp-kms")]
const METADATA_V6: [std::net::Ipv6Addr; 2] = [
    std::net::Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    std::net::Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
];

/// How long connections are used, however busy they are. After that the server
/// has to show its certificate again, and its name is looked up again.
pub(super) const CONNECTIONS_MAX: Duration = Duration::from_secs(600);

/// Where `localhost` is, whatever the name service says: what is sent there may
/// go without TLS (RFC 6761, section 6.3). The port is that of the address.
const LOCALHOST: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
];

/// The base of a service's addresses: `https://HOST[:PORT][/PATH]`, or with
/// `http` where the host is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(Url);

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, IpAddr::is_loopback)
    }
}

impl BaseUrl {
    /// The address of a service of the platform that this host runs on, which
    /// gives out identities. These speak plain HTTP, by their nature: that is
    /// taken for this host, and for link-local and private addresses, but for
    /// no name that somebody could make resolve to something else.
    ///
    /// # Errors
    /// When it is neither that nor an `https` one.
    pub fn of_platform(text: &str) -> Result<Self, String> {
        Self::parse(text, |address| match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_private(),
            IpAddr::V6(v6) => {
                v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local()
            }
        })
    }

    /// The address of a service of the machine that this host is, such as the
    /// metadata server of a cloud: `HOST[:PORT]`, spoken to without TLS. So it
    /// has to be an address that no router passes on, and not a name, for which
    /// a name service would have to be trusted.
    ///
    /// # Errors
    /// When it is another address, or none.
    #[cfg(feature = "gcp-kms")]
    pub fn link_local(text: &str) -> Result<Self, String> {
        let url = Self::parse(&format!("http://{text}"), |address| match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => {
                v6.is_loopback() || v6.is_unicast_link_local() || METADATA_V6.contains(v6)
            }
        });
        url.ok().filter(|url| url.0.path() == "/").ok_or_else(|| {
            format!(
                "{text:?} is not the address of a metadata server: write HOST or HOST:PORT with a link-local address such as 169.254.169.254"
            )
        })
    }

    /// `text`, which may be without TLS where `near` says so of its address.
    fn parse(text: &str, near: impl Fn(&IpAddr) -> bool) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("{text:?} is not an endpoint: {why}"));
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => return bad(&format!("{error}; write it like https://kms.example:8200")),
        };
        let Some(host) = url.host_str() else {
            return bad("it names no host; write it like https://kms.example:8200");
        };
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let here = host == "localhost" || address.is_some_and(|address| near(&address));
        match url.scheme() {
            "https" => {}
            "http" if here => {}
            "http" => {
                return bad("without TLS only a service on this host can be used: write https");
            }
            _ => return bad("write https://HOST:PORT"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return bad("credentials do not belong into it");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return bad("nothing may follow the path");
        }
        Ok(BaseUrl(url))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl BaseUrl {
    /// An address of which the caller has decided that it may be asked:
    /// a metadata service, for example, which speaks no TLS.
    #[cfg(feature = "aws-kms")]
    pub(super) fn decided_elsewhere(url: Url) -> Self {
        BaseUrl(url)
    }

    /// The address below this one with these segments, each taken literally.
    pub fn join<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// The address itself, as it was given.
    pub fn url(&self) -> Url {
        self.0.clone()
    }

    /// The name or address of the host, without brackets.
    pub fn host(&self) -> &str {
        let host = self.0.host_str().unwrap_or_default();
        host.trim_matches(['[', ']'])
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or_default()
    }

    /// Whether TLS is spoken there.
    pub fn has_tls(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Host and port, for messages.
    fn server(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port_or_known_default() {
            Some(port) => format!("{host}:{port}"),
            None => host.into(),
        }
    }
}

/// Bytes that are wiped when the last reference to them goes.
struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A request to be sent.
pub struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl fmt::Debug for Request {
    /// Without the body, which may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("url", &self.url.as_str())
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// A request without a body.
    pub fn new(method: Method, url: Url) -> Self {
        Request {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// With a header, unless its value cannot be one.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// With a header that is a credential: not shown, and wiped after.
    /// `None` if it has bytes that no header can have.
    #[must_use]
    pub fn secret_header(mut self, name: &'static str, value: &[u8]) -> Option<Self> {
        let value = Bytes::from_owner(Wiped(Zeroizing::new(value.to_vec())));
        let mut value = HeaderValue::from_maybe_shared(value).ok()?;
        value.set_sensitive(true);
        self.headers.insert(HeaderName::from_static(name), value);
        Some(self)
    }

    /// With a header that somebody else chose, which is not shown. `None` if
    /// it cannot be one.
    #[cfg(feature = "gcp-kms")]
    #[must_use]
    pub fn foreign_header(mut self, name: &str, value: &str) -> Option<Self> {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Some(self)
    }

    /// With a body in JSON, which is wiped after.
    ///
    /// # Errors
    /// When `body` cannot be JSON.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        self.body = Some(json(body)?);
        Ok(self.header("content-type", "application/json"))
    }

    /// With the fields of a form for a body, which is wiped after.
    #[must_use]
    pub fn form(mut self, fields: &[(&str, &str)]) -> Self {
        // Room from the start, as for JSON: a byte becomes three at most.
        let length = |(name, value): &(&str, &str)| 3 * (name.len() + value.len()) + 2;
        let mut text = Zeroizing::new(Vec::with_capacity(fields.iter().map(length).sum()));
        for (name, value) in fields {
            if !text.is_empty() {
                text.push(b'&');
            }
            push_encoded(&mut text, name);
            text.push(b'=');
            push_encoded(&mut text, value);
        }
        self.body = Some(Bytes::from_owner(Wiped(text)));
        self.header("content-type", "application/x-www-form-urlencoded")
    }

    /// With headers that somebody else has made, such as a signature.
    #[cfg(feature = "aws-kms")]
    #[must_use]
    pub(super) fn headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// With a body that somebody else has made.
    #[cfg(feature = "aws-kms")]
    #[must_use]
    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }
}

/// A text in JSON that is wiped when it is not needed any more.
///
/// # Errors
/// When `body` cannot be JSON.
pub(super) fn json(body: &impl Serialize) -> Result<Bytes, Error> {
    // Room from the start, so that no half of it is left behind by growing.
    let mut text = Zeroizing::new(Vec::with_capacity(16 << 10));
    serde_json::to_writer(&mut *text, body).map_err(|_| {
        Error::new(
            Class::Protocol,
            "the request cannot be written as JSON",
            "this is a defect of sealblk: report it",
        )
    })?;
    Ok(Bytes::from_owner(Wiped(text)))
}

/// Percent-encodes all but the characters that no form gives a meaning to.
fn push_encoded(text: &mut Vec<u8>, part: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte);
        } else {
            text.extend([
                b'%',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
    }
}

/// What came back.
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// What the `Retry-After` header asks for, if it gives seconds.
    pub retry_after: Option<Duration>,
    /// Where a redirect points to.
    pub location: Option<String>,
    /// What time it is there, from the `Date` header.
    pub date: Option<Timestamp>,
    /// All headers, of which [`Reply::header`] takes one.
    pub headers: HeaderMap,
    /// At most [`BODY_MAX`] bytes. May hold a secret, and is wiped.
    pub body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// A header, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How long a connection is kept that nobody uses: through the calls of a burst.
/// Its buffers have the last answer in clear, which may be a key, for as long as it
/// is open. They are wiped when it is closed.
const IDLE: Duration = Duration::from_secs(1);

/// The client side of HTTP, with its TLS.
#[derive(Debug)]
pub struct Http {
    tls: Tls,
    client: Mutex<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    runtime: tokio::runtime::Id,
    tls: Arc<ClientConfig>,
    since: Instant,
    client: Client,
}

impl Http {
    /// Nothing is read or connected to yet.
    pub fn new(tls: tls::Settings) -> Self {
        Http {
            tls: Tls::new(tls),
            client: Mutex::new(None),
        }
    }

    /// The client for this runtime and the present certificates.
    fn client(&self) -> Result<Client, Failed> {
        let tls = self.tls.config().map_err(Failed::Everywhere)?;
        // A connection is driven by a task of the runtime that made it, and
        // must not be used from another one, which may outlive that.
        let runtime = tokio::runtime::Handle::current().id();
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && made.runtime == runtime
            && Arc::ptr_eq(&made.tls, &tls)
            && made.since.elapsed() < CONNECTIONS_MAX
        {
            return Ok(made.client.clone());
        }
        let client = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .resolve_to_addrs("localhost", &LOCALHOST)
            .user_agent(concat!("sealblk/", env!("CARGO_PKG_VERSION")))
            .pool_idle_timeout(IDLE)
            .build()
            .map_err(|error| {
                Failed::Everywhere(Error::new(
                    Class::Unreachable,
                    format!("no HTTP client can be made: {error}"),
                    "check the limits of the process (`ulimit -a`)",
                ))
            })?;
        *made = Some(Made {
            runtime,
            tls,
            since: Instant::now(),
            client: client.clone(),
        });
        Ok(client)
    }

    /// Sends a request to `endpoint` and takes in the answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer, or one that is too long.
    pub async fn send(&self, endpoint: &BaseUrl, request: Request) -> Result<Reply, Failed> {
        let client = self.client()?;
        let fail = |error: reqwest::Error| Failed::Here(unreachable(endpoint, &error));
        let sent = Sent::of(&request.headers, request.body.as_deref());
        let mut building = client
            .request(request.method, request.url)
            .headers(request.headers);
        if let Some(body) = request.body {
            building = building.body(body);
        }
        let mut response = building.send().await.map_err(fail)?;
        sent.hide_in_headers(response.headers_mut());
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let mut reply = Reply {
            status: response.status().as_u16(),
            retry_after: header("retry-after")
                .and_then(|text| text.trim().parse().ok())
                .map(Duration::from_secs),
            location: header("location").map(str::to_owned),
            date: header("date").and_then(http_date),
            headers: response.headers().clone(),
            body: Zeroizing::new(Vec::with_capacity(16 << 10)),
        };
        while let Some(chunk) = response.chunk().await.map_err(fail)? {
            if reply.body.len() + chunk.len() > BODY_MAX {
                return Err(Failed::Here(Error::new(
                    Class::Protocol,
                    format!("{endpoint} answers with more than {} KiB", BODY_MAX >> 10),
                    "check that the endpoint is that of the key service",
                )));
            }
            extend_wiping(&mut reply.body, &chunk);
        }
        // What is no success is there to be read by people.
        if !(200..300).contains(&reply.status) {
            sent.hide(&mut reply.body);
        }
        Ok(reply)
    }
}

/// A time in the form that senders must use (RFC 9110, section 5.6.7), such
/// as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_weekday, rest) = text.strip_suffix(" GMT")?.split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, clock] = parts[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    format!("{year}-{month:02}-{day}T{clock}Z").parse().ok()
}

/// Appends without leaving the bytes behind where they were before growing.
fn extend_wiping(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity() - body.len() < chunk.len() {
        let mut larger = Vec::with_capacity((body.len() + chunk.len()) * 2);
        larger.extend_from_slice(body);
        *body = Zeroizing::new(larger);
    }
    body.extend_from_slice(chunk);
}

/// Why there is no answer.
fn unreachable(endpoint: &BaseUrl, error: &reqwest::Error) -> Error {
    if let Some(error) = tls::failure(error, &endpoint.server()) {
        return error;
    }
    let (mut io, mut innermost): (Option<io::ErrorKind>, &dyn StdError) = (None, error);
    let mut dns = false;
    while let Some(source) = innermost.source() {
        innermost = source;
        dns |= innermost.to_string().contains("dns error");
        if let Some(error) = innermost.downcast_ref::<io::Error>() {
            io = Some(error.kind());
        }
    }
    use io::ErrorKind as E;
    let (cause, next) = match io {
        _ if dns => (
            "its name cannot be resolved",
            "check the host name of the endpoint, and the name service of this host",
        ),
        Some(E::ConnectionRefused) => (
            "it refuses the connection",
            "check that the service runs, and its port",
        ),
        Some(E::HostUnreachable | E::NetworkUnreachable | E::NetworkDown) => (
            "there is no route to it",
            "check the network of this host, and the address of the endpoint",
        ),
        Some(E::TimedOut) => (
            "it does not answer",
            "check that no firewall drops the connection",
        ),
        Some(E::ConnectionReset | E::ConnectionAborted | E::UnexpectedEof | E::BrokenPipe) => (
            "it broke the connection off",
            "see what the service logs; check that the port is that of the service, and whether it wants TLS",
        ),
        _ => (
            "there is no proper answer",
            "check that the endpoint is that of the key service",
        ),
    };
    Error::new(Class::Unreachable, format!("{endpoint}: {cause}"), next)
        .with_words(&innermost.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_https_address_and_no_more() {
        for good in [
            "https://kms.example:8200",
            "https://10.0.0.1",
            "https://[2001:db8::1]:8200/prefix",
            "http://127.0.0.1:8200",
            "http://[::1]:8200",
            "http://localhost:1",
        ] {
            let url: BaseUrl = good.parse().unwrap();
            assert_eq!(url.to_string(), good);
        }
        for (bad, why) in [
            ("kms.example:8200", "write it like"),
            ("kms.example", "write it like"),
            ("http://kms.example:8200", "without TLS"),
            ("http://127.0.0.1.example", "without TLS"),
            ("ftp://x", "https://HOST"),
            ("https://u:p@x", "credentials"),
            ("https://x/?a=b", "nothing may follow"),
            ("https://x/#a", "nothing may follow"),
            ("https://", "write it like"),
        ] {
            let error = bad.parse::<BaseUrl>().unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_platform_may_be_without_tls_where_no_name_is_resolved() {
        for good in [
            "http://169.254.169.254",
            "http://[fd00:ec2::254]",
            "http://172.16.1.2:8081/msi/token",
            "http://localhost:40342/metadata/identity/oauth2/token",
            "https://platform.example/token",
        ] {
            assert_eq!(BaseUrl::of_platform(good).unwrap().to_string(), good);
        }
        for bad in [
            "http://platform.example",
            "http://169.254.169.254.example",
            "http://8.8.8.8",
            "http://169.254.169.254?x=y",
        ] {
            assert!(BaseUrl::of_platform(bad).is_err(), "{bad}");
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }

    #[cfg(feature = "gcp-kms")]
    #[test]
    fn a_metadata_server_is_at_an_address_that_no_router_passes_on() {
        for good in [
            "169.254.169.254",
            "169.254.169.252:988",
            "127.0.0.1:80",
            "localhost:8080",
            "[fd20:ce::254]",
            "[fe80::1]:80",
        ] {
            let url = BaseUrl::link_local(good).unwrap();
            assert!(!url.has_tls() && url.port() > 0, "{good}");
        }
        for bad in [
            "",
            "10.0.0.1",
            "metadata.google.internal",
            "169.254.169.254.example",
            "169.254.169.254/path",
            "169.254.169.254@example",
            "example@169.254.169.254",
            "169.254.169.254?a",
            "169.254.169.254#a",
            "[2001:db8::1]",
            "[fd20:ce::255]",
            "http://169.254.169.254",
        ] {
            assert!(BaseUrl::link_local(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_form_says_what_was_meant() {
        let url = "https://x".parse::<BaseUrl>().unwrap().join([]);
        let request = Request::new(Method::POST, url).form(&[("a b", "c&d=é"), ("e", "")]);
        assert_eq!(&request.body.unwrap()[..], b"a%20b=c%26d%3D%C3%A9&e=");
    }

    #[test]
    fn the_time_of_a_server_is_read() {
        let read = |text| http_date(text).map(|time| time.to_string());
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT").as_deref(),
            Some("1994-11-06T08:49:37Z")
        );
        for other in [
            "",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 31 Feb 1994 08:49:37 GMT",
        ] {
            assert_eq!(read(other), None, "{other:?}");
        }
    }

    #[test]
    fn an_endpoint_has_a_host_and_a_port() {
        for (text, host, port, tls) in [
            ("https://kms.example", "kms.example", 443, true),
            ("https://[2001:db8::1]:8200/x", "2001:db8::1", 8200, true),
            ("http://127.0.0.1:1", "127.0.0.1", 1, false),
        ] {
            let url: BaseUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port(), url.has_tls()), (host, port, tls));
        }
    }

    #[test]
    fn segments_cannot_leave_their_place() {
        let base: BaseUrl = "https://x/base/".parse().unwrap();
        let url = base.join(["v1", "a/../b?c#d", "key"]);
        assert_eq!(url.as_str(), "https://x/base/v1/a%2F..%2Fb%3Fc%23d/key");
    }

    #[test]
    fn a_credential_is_not_shown() {
        let url = "https://x".parse::<BaseUrl>().unwrap().join([]);
        let request = Request::new(Method::GET, url);
        let request = request.secret_header("x-token", b"hush").unwrap();
        let request = request.json(&"hush").unwrap();
        let shown = format!("{request:?}");
        assert!(shown.contains("Sensitive"), "{shown}");
        assert!(!shown.contains("hush"), "{shown}");
        let url = "https://x".parse::<BaseUrl>().unwrap().join([]);
        assert!(
            Request::new(Method::GET, url)
                .secret_header("x-token", b"a\nb")
                .is_none()
        );
    }
}
