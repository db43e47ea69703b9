//! A box that terminates TLS between hosts and a broker, as some sites have:
//! with a certificate that hosts take for that of the broker, and one that the
//! broker takes. It passes everything on, and keeps all that it can read.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};

use super::certificates::{Authority, Issued};
use super::tls_server;

/// The name in the certificate of the box.
pub const CERTIFICATE: &str = "box.example";

/// What went through, each way.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Of the request.
    pub head: String,
    pub request: Vec<u8>,
    pub status: u16,
    pub answer: Vec<u8>,
}

impl Passed {
    pub fn is_call(&self) -> bool {
        self.head.starts_with("POST /v1/broker/call ")
    }
}

/// A box before one broker, until the test process ends.
pub struct TlsBox {
    pub port: u16,
    passed: Arc<Mutex<Vec<Passed>>>,
    connector: SslConnector,
}

impl TlsBox {
    /// A box before the broker at `target`.
    pub fn before(authority: &Authority, target: u16) -> Self {
        let Issued { certificate, key } = authority.client(CERTIFICATE);
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_certificate(&certificate).unwrap();
        connector.set_private_key(&key).unwrap();
        // It is the end of trust anyway.
        connector.set_verify(SslVerifyMode::NONE);
        let connector = connector.build();
        let passed: Arc<Mutex<Vec<Passed>>> = Arc::default();
        let (own, onwards) = (passed.clone(), connector.clone());
        let port = tls_server::start(
            authority,
            Box::new(move |stream| {
                let Some((head, request)) = tls_server::read_http(stream) else {
                    return;
                };
                let Some((answer_head, answer)) = ask(&onwards, target, &head, &request) else {
                    return;
                };
                own.lock().unwrap().push(Passed {
                    head,
                    request,
                    status: status(&answer_head),
                    answer: answer.clone(),
                });
                let _ = stream.write_all(answer_head.as_bytes());
                let _ = stream.write_all(&answer);
                let _ = stream.shutdown();
            }),
        );
        TlsBox {
            port,
            passed,
            connector,
        }
    }

    /// All that has gone through since this was asked for the last time.
    pub fn passed(&self) -> Vec<Passed> {
        std::mem::take(&mut self.passed.lock().unwrap())
    }

    /// Sends something that went through once more, to the broker at `target`:
    /// the status and the body of the answer.
    pub fn again(&self, target: u16, passed: &Passed) -> (u16, Vec<u8>) {
        let (head, body) = ask(&self.connector, target, &passed.head, &passed.request).unwrap();
        (status(&head), body)
    }
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Asks the broker at `target` in a connection of its own.
fn ask(
    connector: &SslConnector,
    target: u16,
    head: &str,
    request: &[u8],
) -> Option<(String, Vec<u8>)> {
    let stream = TcpStream::connect(("127.0.0.1", target)).ok()?;
    let mut stream = connector.connect("localhost", stream).ok()?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(request).ok()?;
    tls_server::read_http(&mut stream)
}
