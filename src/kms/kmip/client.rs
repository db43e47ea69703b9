//! The connection: TLS, one request and its answer at a time, and another
//! connection when one that was kept has gone stale. A call that takes too
//! long is dropped by the cluster, and its connection with it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Id};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::endpoint::Endpoint;
use super::failure::{self, Asked};
use super::numbers::{Operation, reason};
use super::protocol::{self, ANSWER_MAX, Refusal, Version};
use super::ttlv::{self, HEAD_BYTES, Item};
use crate::kms::cluster::Failed;
use crate::kms::envelope::no_memory;
use crate::kms::http::CONNECTIONS_MAX;
use crate::kms::tls::{self, Tls};
use crate::kms::{Class, Error, call};
use crate::secret::Secret;

/// A connection that nobody used for longer is closed: servers and firewalls
/// forget them, and its buffers have the last answer in clear, which may be a key.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// One server, and the way to it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    tls: Arc<Tls>,
    /// The version to speak; `None` to agree on one.
    version: Option<Version>,
    /// Whether the server does not understand requests with an id.
    refuses_ids: AtomicBool,
    idle: Arc<Mutex<Option<Idle>>>,
}

/// A connection that waits for its next use.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    /// The runtime that drives it: of no use in another one.
    runtime: Id,
    since: Instant,
}

impl Idle {
    /// Whether it may be used in a call that would make its connection with `tls`.
    fn is_good(&self, tls: &Arc<ClientConfig>) -> bool {
        self.runtime == Handle::current().id()
            && self.since.elapsed() < IDLE_MAX
            && self.connection.made.elapsed() < CONNECTIONS_MAX
            && Arc::ptr_eq(&self.connection.tls, tls)
    }
}

#[derive(Debug)]
struct Connection {
    stream: Box<TlsStream<TcpStream>>,
    version: Version,
    /// What it was made with: of no use once certificates were replaced.
    tls: Arc<ClientConfig>,
    made: Instant,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server answered, and refused.
    Refused(Refusal),
    /// There was no answer that could be read.
    Broken(Failed),
}

impl Client {
    /// Nothing is connected yet.
    pub(super) fn new(endpoint: Endpoint, tls: Arc<Tls>, version: Option<Version>) -> Self {
        Client {
            endpoint,
            tls,
            version,
            refuses_ids: AtomicBool::new(false),
            idle: Arc::default(),
        }
    }

    /// A connection to the server: the one that was kept, or a new one.
    pub(super) async fn session(&self) -> Result<Session<'_>, Failed> {
        // Also where a connection is kept: our certificate may have expired.
        let tls = self.tls.config().map_err(Failed::Everywhere)?;
        let idle = self.idle().take();
        let (connection, reused) = match idle {
            Some(idle) if idle.is_good(&tls) => (idle.connection, true),
            _ => (self.connect().await?, false),
        };
        Ok(Session {
            client: self,
            connection,
            reused,
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Connection, Failed> {
        let tls = self.tls.config().map_err(Failed::Everywhere)?;
        let stream = self.handshake(&tls).await?;
        let mut connection = Connection {
            tls,
            made: Instant::now(),
            stream: Box::new(stream),
            version: self.version.unwrap_or(Version::V1_1),
        };
        if self.version.is_none() {
            connection.version = self.agree(&mut connection).await?;
        }
        Ok(connection)
    }

    async fn handshake(&self, tls: &ClientConfig) -> Result<TlsStream<TcpStream>, Failed> {
        let mut config = ClientConfig::clone(tls);
        // Servers that ask for certificates often cannot resume a session
        // (OpenSSL without a session id context breaks it off), and one that
        // does would not see that our certificate was replaced.
        config.resumption = Resumption::disabled();
        let Endpoint { host, port } = &self.endpoint;
        let name = ServerName::try_from(host.clone()).map_err(|error| {
            Error::new(
                Class::Unreachable,
                format!("{host:?} is not the name or address of a server: {error}"),
                "correct the endpoint in the configuration",
            )
        })?;
        let tcp = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|error| self.unreachable(&error))?;
        // One small request waits for one small answer.
        tcp.set_nodelay(true)
            .map_err(|error| self.unreachable(&error))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .map_err(|error| self.unreachable(&error).into())
    }

    /// The highest version that both sides speak (Discover Versions).
    async fn agree(&self, connection: &mut Connection) -> Result<Version, Error> {
        const OPERATION: Operation = Operation::DiscoverVersions;
        let mut refused = None;
        // A server of 2.0 may no longer understand 1.1.
        for version in [Version::V1_1, Version::V2_0] {
            connection.version = version;
            let payload = protocol::discover_versions();
            let sent = self.exchange(connection, OPERATION, payload, None).await;
            let answer = sent.map_err(|broken| broken.into_error(self))?;
            match read(&answer, OPERATION, |payload| {
                Ok(protocol::discovered(payload))
            }) {
                Ok(theirs) => {
                    let mut ours = Version::SPOKEN.into_iter();
                    return ours
                        .find(|version| theirs.contains(version))
                        .ok_or_else(|| self.no_common_version(&theirs));
                }
                Err(refusal) => refused = Some(refusal),
            }
            let another = matches!(
                refused,
                Some(Refusal::Failed {
                    reason: reason::INVALID_MESSAGE | reason::UNSUPPORTED_PROTOCOL_VERSION,
                    ..
                })
            );
            if !another {
                break;
            }
        }
        let refusal = refused.unwrap_or(Refusal::Malformed("there is none".into()));
        Err(failure::error(self.asked(OPERATION, ""), refusal))
    }

    fn no_common_version(&self, theirs: &[Version]) -> Error {
        let theirs: Vec<String> = theirs.iter().map(Version::to_string).collect();
        Error::new(
            Class::Protocol,
            format!(
                "the KMIP server {} speaks none of the versions 1.1 to 2.0 of KMIP, but {}",
                self.endpoint,
                match theirs.as_slice() {
                    [] => "others".into(),
                    theirs => theirs.join(", "),
                }
            ),
            "switch one of these versions on at the server",
        )
    }

    /// What a request was about.
    pub(super) fn asked<'a>(&'a self, operation: Operation, id: &'a str) -> Asked<'a> {
        Asked {
            server: &self.endpoint,
            operation,
            id,
        }
    }

    /// Sends a request, and reads its answer into secret memory.
    async fn exchange(
        &self,
        connection: &mut Connection,
        operation: Operation,
        payload: Vec<Item<'_>>,
        correlation: Option<&str>,
    ) -> Result<Secret, Broken> {
        let request = protocol::request(connection.version, operation, payload, correlation);
        let request = request
            .encode()
            .map_err(|error| Broken::Other(no_memory(&error)))?;
        let stream = &mut connection.stream;
        let exchange = async {
            stream.write_all(&request).await?;
            stream.flush().await?;
            let mut head = [0; HEAD_BYTES];
            stream.read_exact(&mut head).await?;
            let length = ttlv::value_length(head);
            if length > ANSWER_MAX {
                return Err(Broken::Other(failure::malformed(
                    &self.endpoint,
                    &format!("it has {length} bytes, and at most {ANSWER_MAX} are taken"),
                )));
            }
            // Fits: it is at most ANSWER_MAX.
            let length = usize::try_from(length).unwrap_or(0);
            let mut answer =
                Secret::zeroed(HEAD_BYTES + length).map_err(|e| Broken::Other(no_memory(&e)))?;
            answer[..HEAD_BYTES].copy_from_slice(&head);
            stream.read_exact(&mut answer[HEAD_BYTES..]).await?;
            Ok(answer)
        };
        exchange.await
    }

    /// The id for a request: that under which the caller keeps its record.
    fn correlation(&self, version: Version) -> Option<String> {
        let understood = version >= Version::V1_4 && !self.refuses_ids.load(Ordering::Relaxed);
        let id = call::correlation().filter(|_| understood)?;
        Some(id.to_string())
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        if let Some(error) = tls::failure(error, &self.endpoint.to_string()) {
            return error;
        }
        let server = &self.endpoint;
        let (cause, next) = match error.kind() {
            io::ErrorKind::ConnectionRefused => (
                format!("nothing listens at {server}"),
                "start the KMIP server, or correct host and port of the endpoint",
            ),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => (
                format!("the KMIP server {server} closed the connection instead of answering"),
                "see what the server logs: it may not accept the client certificate",
            ),
            _ => (
                format!("the KMIP server {server} cannot be reached"),
                "check the name and the network between this host and the server",
            ),
        };
        Error::new(Class::Unreachable, cause, next).with_words(&error.to_string())
    }
}

/// Why an exchange did not work.
enum Broken {
    /// The connection failed.
    Io(io::Error),
    /// Something else, which another connection would not change.
    Other(Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken::Io(error)
    }
}

impl Broken {
    fn into_error(self, client: &Client) -> Error {
        match self {
            Broken::Io(error) => client.unreachable(&error),
            Broken::Other(error) => error,
        }
    }
}

/// A connection in use by one call.
#[derive(Debug)]
pub(super) struct Session<'c> {
    pub(super) client: &'c Client,
    connection: Connection,
    /// Whether the connection was used before, and may have been closed since.
    reused: bool,
}

impl Session<'_> {
    /// The version of the protocol that is spoken.
    pub(super) fn version(&self) -> Version {
        self.connection.version
    }

    /// Asks the server for something. `payload` is built, and `read` reads the
    /// answer's payload, for the version that is spoken.
    pub(super) async fn ask<'p, T>(
        &mut self,
        operation: Operation,
        payload: impl Fn(Version) -> Vec<Item<'p>>,
        read_payload: impl FnOnce(&Item<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Fault> {
        let client = self.client;
        let id = client.correlation(self.connection.version);
        let about = protocol::object(&payload(self.connection.version)).map(str::to_owned);
        let read_payload = |payload: &Item<'_>| {
            protocol::check_object(payload, about.as_deref())?;
            read_payload(payload)
        };
        let answer = self.exchange(operation, &payload, id.as_deref()).await?;
        match read(&answer, operation, |_| Ok(())) {
            // It did nothing, as it did not understand: some servers know the
            // versions that have ids, and not the ids.
            Err(Refusal::Failed {
                reason: reason::INVALID_MESSAGE,
                ..
            }) if id.is_some() => {
                client.refuses_ids.store(true, Ordering::Relaxed);
                let answer = self.exchange(operation, &payload, None).await?;
                read(&answer, operation, read_payload).map_err(Fault::Refused)
            }
            _ => read(&answer, operation, read_payload).map_err(Fault::Refused),
        }
    }

    /// Sends a request, in another connection if this one was closed meanwhile.
    async fn exchange<'p>(
        &mut self,
        operation: Operation,
        payload: &impl Fn(Version) -> Vec<Item<'p>>,
        id: Option<&str>,
    ) -> Result<Secret, Fault> {
        let client = self.client;
        let connection = &mut self.connection;
        let first = payload(connection.version);
        let answer = match client.exchange(connection, operation, first, id).await {
            // It was closed while it waited. Not so for what would be done
            // twice if only the answer was lost.
            Err(Broken::Io(_)) if self.reused && operation != Operation::Create => {
                self.reused = false;
                self.connection = client.connect().await.map_err(Fault::Broken)?;
                let again = payload(self.connection.version);
                client
                    .exchange(&mut self.connection, operation, again, id)
                    .await
            }
            done => done,
        };
        answer.map_err(|broken| Fault::Broken(broken.into_error(client).into()))
    }

    /// Keeps the connection for the next call. It must not wait for an answer.
    pub(super) fn keep(self) {
        let since = Instant::now();
        let end = End {
            idle: Arc::downgrade(&self.client.idle),
            since,
        };
        *self.client.idle() = Some(Idle {
            connection: self.connection,
            runtime: Handle::current().id(),
            since,
        });
        tokio::spawn(async move {
            tokio::time::sleep(IDLE_MAX).await;
            drop(end);
        });
    }
}

/// Closes the connection that waits since then, if it still does: when its time
/// is over, or with the runtime.
struct End {
    idle: Weak<Mutex<Option<Idle>>>,
    since: Instant,
}

impl Drop for End {
    fn drop(&mut self) {
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.as_ref().is_some_and(|idle| idle.since == self.since) {
            *idle = None;
        }
    }
}

fn read<T>(
    answer: &Secret,
    operation: Operation,
    read_payload: impl FnOnce(&Item<'_>) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let message = ttlv::decode(answer).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(id) = protocol::server_correlation(&message) {
        call::note_request_id(id);
    }
    read_payload(protocol::answer(&message, operation)?)
}
