//! A TLS server that says whatever a test wants it to say.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use openssl::ssl::{SslAcceptor, SslMethod, SslStream, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;

use super::certificates::{Authority, Issued};

/// What serves one connection.
pub type Serve = dyn Fn(&mut SslStream<std::net::TcpStream>) + Send + Sync;

/// Serves each connection on a port of this host with `serve`, until the test
/// process ends, and returns the port. Clients need a certificate.
pub fn start(authority: &Authority, serve: Box<Serve>) -> u16 {
    let Issued { certificate, key } = authority.server();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    acceptor.set_private_key(&key).unwrap();
    let mut store = X509StoreBuilder::new().unwrap();
    let trusted = openssl::x509::X509::from_pem(&authority.certificate_pem()).unwrap();
    store.add_cert(trusted).unwrap();
    acceptor.set_verify_cert_store(store.build()).unwrap();
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    // Without one, OpenSSL refuses clients that come again with a session.
    acceptor.set_session_id_context(b"sealblk tests").unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve: Arc<Serve> = serve.into();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            std::thread::spawn(move || {
                if let Ok(mut stream) = acceptor.accept(stream.unwrap()) {
                    serve(&mut stream);
                }
            });
        }
    });
    port
}

/// Answers each KMIP request with what `answer` makes of it, until that is nothing.
pub fn answering(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) -> Box<Serve> {
    Box::new(move |stream| {
        let mut head = [0; 8];
        while stream.read_exact(&mut head).is_ok() {
            let length = u32::from_be_bytes(head[4..].try_into().unwrap());
            let mut request = head.to_vec();
            request.resize(8 + usize::try_from(length).unwrap(), 0);
            if stream.read_exact(&mut request[8..]).is_err() {
                return;
            }
            match answer(&request) {
                Some(answer) if stream.write_all(&answer).is_ok() => {}
                _ => return,
            }
        }
    })
}

/// Reads one HTTP message with a `Content-Length`, or with nothing after its
/// head: the head, and the body. `None` if the other end is gone before.
pub fn read_http(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
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
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().unwrap())
    });
    let length = length.unwrap_or(0);
    while bytes.len() < head + length {
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            length => bytes.extend(&chunk[..length]),
        }
    }
    Some((text, bytes[head..].to_vec()))
}
