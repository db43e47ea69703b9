//! A small server of HTTP/1.1, with TLS or without, that answers what it is
//! told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use openssl::ssl::{SslAcceptor, SslMethod};

use crate::certificates::Issued;

/// A request, taken apart.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: Vec<(String, String)>,
    /// With names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    /// The fields of a form in the body.
    pub fn form(&self) -> Vec<(String, String)> {
        pairs(std::str::from_utf8(&self.body).unwrap_or_default())
    }
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Response {
            status,
            headers: vec![("content-type", "application/json; charset=utf-8".into())],
            body: body.to_string().into_bytes(),
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What answers. `None` breaks the connection off.
pub type Answer = dyn Fn(&Request) -> Option<Response> + Send + Sync;

/// Answers on a port of this host until the process ends, and returns the port.
pub fn start(certificate: Option<&Issued>, answer: Arc<Answer>) -> u16 {
    let acceptor = certificate.map(|issued| {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_certificate(&issued.certificate).unwrap();
        acceptor.set_private_key(&issued.key).unwrap();
        acceptor.build()
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            std::thread::spawn(move || match acceptor {
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream) {
                        serve(BufReader::new(stream), &*answer);
                    }
                }
                None => serve(BufReader::new(stream), &*answer),
            });
        }
    });
    port
}

fn serve<S: Read + Write>(mut stream: BufReader<S>, answer: &Answer) {
    while let Some(request) = read(&mut stream) {
        let Some(response) = answer(&request) else {
            return;
        };
        let mut text = format!(
            "HTTP/1.1 {} X\r\ncontent-length: {}\r\ndate: {}\r\n",
            response.status,
            response.body.len(),
            date()
        );
        for (name, value) in &response.headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&response.body);
        if stream.get_mut().write_all(&bytes).is_err() {
            return;
        }
    }
}

fn read<S: Read>(stream: &mut BufReader<S>) -> Option<Request> {
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.into(),
        path: path.into(),
        query: pairs(query),
        ..Request::default()
    };
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let header = (name.to_ascii_lowercase(), value.trim().to_owned());
        request.headers.push(header);
    }
    let length = request.header("content-length").unwrap_or("0");
    request.body = vec![0; length.parse().ok()?];
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let parts = text.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                bytes.extend(hex::decode(digits).unwrap_or_default());
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// The time now as HTTP has it.
fn date() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.unwrap().as_secs().cast_signed();
    let time = openssl::asn1::Asn1Time::from_unix(seconds).unwrap();
    // `Nov  6 08:49:37 2026 GMT`
    let text = time.to_string();
    let parts: Vec<&str> = text.split_whitespace().collect();
    let day: u8 = parts[1].parse().unwrap();
    format!("Sun, {day:02} {} {} {} GMT", parts[0], parts[3], parts[2])
}
