//! A host that knows nothing but the protocol: HTTP by hand, over TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use sealblk::kms::broker::protocol::{
    Answer, CALL_PATH, CHALLENGE_PATH, Challenge, ChallengeAnswer, Failure, FailureClass, Frame,
    Operation, Outcome, Problem, Request,
};
use sealblk::kms::broker::seal::{self, PrivateKey, PublicKey};
use sealblk::kms::{KeyVersion, Wrapped};
use sealblk::secret::Secret;
use uuid::Uuid;

use super::broker::{Broker, DEADLINE, Host, Site};
use super::certificates::Issued;

/// A host that asks a broker.
pub struct Client<'a> {
    pub name: String,
    pub key: &'a PrivateKey,
    /// To whom calls are sealed.
    pub to: PublicKey,
    tls: Arc<ClientConfig>,
    port: u16,
}

pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// TLS that trusts the authority of the site, and shows that certificate.
pub fn tls(site: &Site, shown: Option<&Issued>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let pem = site.authority.certificate_pem();
    roots
        .add(CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let ring = rustls::crypto::ring::default_provider();
    let builder = ClientConfig::builder_with_provider(ring.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_slice(&issued.certificate_pem()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(&issued.key_pem()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// An answer over HTTP, or none.
pub type Reply = Option<(u16, Vec<u8>)>;

impl<'a> Client<'a> {
    pub fn new(site: &Site, host: &'a Host, broker: &Broker) -> Self {
        Client::showing(site, host, Some(&host.issued), broker)
    }

    /// The same with another certificate, or none.
    pub fn showing(site: &Site, host: &'a Host, shown: Option<&Issued>, broker: &Broker) -> Self {
        Client {
            name: host.name.clone(),
            key: &host.key,
            to: broker.key(),
            tls: tls(site, shown),
            port: broker.port(),
        }
    }

    /// A connection, on which nothing was said yet.
    pub fn connect(&self) -> Stream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connection = ClientConnection::new(self.tls.clone(), name).unwrap();
        StreamOwned::new(connection, stream)
    }

    /// Asks something, and reads the answer to its end.
    pub fn http(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = self.connect();
        send(&mut stream, method, path, body).ok()?;
        read(&mut stream)
    }

    pub fn challenge(&self) -> Result<ChallengeAnswer, (u16, Problem)> {
        let reply = self.http("POST", CHALLENGE_PATH, b"").expect("no answer");
        parsed(reply)
    }

    /// A call with a fresh challenge, sealed and not sent yet.
    pub fn seal(&self, correlation: Uuid, key_set: &str, operation: Operation) -> Frame {
        let challenge = self.challenge().unwrap().challenge;
        self.seal_with(challenge, correlation, key_set, operation)
    }

    pub fn seal_with(
        &self,
        challenge: Challenge,
        correlation: Uuid,
        key_set: &str,
        operation: Operation,
    ) -> Frame {
        let request = Request {
            challenge,
            correlation,
            key_set: key_set.into(),
            patience: None,
            operation,
        };
        let message = request.to_secret().unwrap();
        seal::request(self.key, &self.name, self.to, &message).unwrap()
    }

    /// Sends a sealed call, and opens the answer.
    pub fn send(&self, frame: &Frame) -> Result<Answer, (u16, Problem)> {
        let body = serde_json::to_vec(frame).unwrap();
        let reply = self.http("POST", CALL_PATH, &body).expect("no answer");
        let answer: Frame = parsed(reply)?;
        let message = seal::open_answer(self.key, self.to, frame, &answer).unwrap();
        Ok(Answer::parse(&message).unwrap())
    }

    /// What a call comes to that is expected to be taken.
    pub fn ask(&self, correlation: Uuid, key_set: &str, operation: Operation) -> Outcome {
        let frame = self.seal(correlation, key_set, operation);
        self.send(&frame).unwrap().outcome
    }

    pub fn wrap(&self, key_set: &str, aad: &[u8], secret: &Secret) -> Result<Wrapped, Failure> {
        let operation = wrap(aad, secret);
        match self.ask(Uuid::new_v4(), key_set, operation) {
            Outcome::Wrapped(wrapped) => Ok(wrapped),
            Outcome::Error(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub fn unwrap(&self, key_set: &str, aad: &[u8], wrapped: &Wrapped) -> Result<Secret, Failure> {
        match self.ask(Uuid::new_v4(), key_set, unwrap(aad, wrapped)) {
            Outcome::Payload(secret) => Ok(secret),
            Outcome::Error(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub fn version(&self, key_set: &str) -> Result<KeyVersion, Failure> {
        let operation = Operation::CurrentVersion { version: None };
        match self.ask(Uuid::new_v4(), key_set, operation) {
            Outcome::Version(version) => Ok(version),
            Outcome::Error(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Whether it serves: a round trip, from beginning to end.
    pub fn round_trip(&self, key_set: &str) {
        let secret = Secret::random(64).unwrap();
        let wrapped = self.wrap(key_set, b"round trip", &secret).unwrap();
        let back = self.unwrap(key_set, b"round trip", &wrapped).unwrap();
        assert_eq!(back, secret);
    }
}

pub fn wrap(aad: &[u8], secret: &Secret) -> Operation {
    Operation::Wrap {
        version: None,
        aad: aad.into(),
        payload: Secret::copy_of(secret).unwrap(),
    }
}

pub fn unwrap(aad: &[u8], wrapped: &Wrapped) -> Operation {
    Operation::Unwrap {
        wrapped: wrapped.clone(),
        aad: aad.into(),
    }
}

pub fn assert_denied<T: std::fmt::Debug>(result: Result<T, Failure>, told: &str) {
    let failure = result.unwrap_err();
    assert_eq!(failure.class, FailureClass::DeniedForbidden, "{failure:?}");
    assert!(failure.cause.contains(told), "{told}: {failure:?}");
    assert!(!failure.next.is_empty());
}

fn parsed<T: serde::de::DeserializeOwned>(
    (status, body): (u16, Vec<u8>),
) -> Result<T, (u16, Problem)> {
    match status {
        200 => Ok(serde_json::from_slice(&body).unwrap()),
        _ => Err((status, serde_json::from_slice(&body).unwrap())),
    }
}

pub fn send(stream: &mut Stream, method: &str, path: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()
}

pub fn read(stream: &mut Stream) -> Reply {
    let mut bytes = Vec::new();
    // That it is not closed well after the answer takes nothing from it. Not by the
    // stream, which reads nothing while it has something left that cannot be sent.
    while matches!(stream.conn.read_tls(&mut stream.sock), Ok(1..))
        && stream.conn.process_new_packets().is_ok()
    {
        let _ = stream.conn.reader().read_to_end(&mut bytes);
    }
    let _ = stream.conn.reader().read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let status = head.split(' ').nth(1)?.parse().unwrap();
    Some((status, bytes[end + 4..].to_vec()))
}
