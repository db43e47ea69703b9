//! A server on this host that does what a test wants to whoever connects: with
//! a certificate and TLS as the test has them, or without.
//!
//! Expects `certificates` beside it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use openssl::ssl::{SslAcceptor, SslAcceptorBuilder, SslMethod};

use super::certificates::Issued;

/// One end of a connection, with TLS or without.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// What is done with a connection whose handshake has succeeded.
pub type Serve = dyn Fn(&mut dyn Stream) + Send + Sync;

/// How long a connection may wait for the other end: as a net, for the end of
/// the test process.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server, until it is dropped.
pub struct Hostile {
    pub port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    acceptor: Option<SslAcceptor>,
    serve: Box<Serve>,
    stop: AtomicBool,
    taken: AtomicUsize,
    served: AtomicUsize,
}

impl Hostile {
    /// With TLS, which is that of a good server but for what `configure` changes.
    pub fn tls(
        identity: &Issued,
        configure: impl FnOnce(&mut SslAcceptorBuilder),
        serve: Box<Serve>,
    ) -> Self {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_certificate(&identity.certificate).unwrap();
        acceptor.set_private_key(&identity.key).unwrap();
        acceptor.set_session_id_context(b"sealblk tests").unwrap();
        configure(&mut acceptor);
        Self::start(Some(acceptor.build()), serve)
    }

    /// Without TLS.
    pub fn plain(serve: Box<Serve>) -> Self {
        Self::start(None, serve)
    }

    fn start(acceptor: Option<SslAcceptor>, serve: Box<Serve>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            acceptor,
            serve,
            stop: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
        });
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (own, stream) = (own.clone(), stream.unwrap());
                own.taken.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || own.connection(stream));
            }
        });
        Hostile {
            port,
            shared,
            thread: Some(thread),
        }
    }

    /// How many connections it has taken.
    pub fn taken(&self) -> usize {
        self.shared.taken.load(Ordering::SeqCst)
    }

    /// How many of them came to an end of their handshake.
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn connection(&self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        match &self.acceptor {
            None => {
                self.served.fetch_add(1, Ordering::SeqCst);
                (self.serve)(&mut stream);
            }
            Some(acceptor) => {
                if let Ok(mut stream) = acceptor.accept(stream) {
                    self.served.fetch_add(1, Ordering::SeqCst);
                    (self.serve)(&mut stream);
                    let _ = stream.shutdown();
                }
            }
        }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An HTTP request.
pub struct Asked {
    /// The request line and the headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Asked {
    /// The next request of a connection; `None` if the other end is gone.
    pub fn read(stream: &mut dyn Stream) -> Option<Self> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut chunk).ok()? {
                0 => return None,
                length => bytes.extend(&chunk[..length]),
            }
        };
        let text = String::from_utf8(bytes[..head].to_vec()).ok()?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse::<usize>().ok())?
        });
        while bytes.len() < head + length.unwrap_or(0) {
            match stream.read(&mut chunk).ok()? {
                0 => return None,
                length => bytes.extend(&chunk[..length]),
            }
        }
        Some(Asked {
            head: text,
            body: bytes[head..].to_vec(),
        })
    }

    /// Whether it is for a path that ends so.
    pub fn is_for(&self, path: &str) -> bool {
        let target = self.head.split(' ').nth(1).unwrap_or_default();
        target.split('?').next().unwrap_or_default().ends_with(path)
    }
}

/// An answer with these headers (each with its end of line) and this body.
pub fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}
