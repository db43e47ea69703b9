//! HTTP/1.1, as far as it takes.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The fields of a form.
    pub fn form(&self) -> BTreeMap<String, String> {
        let text = String::from_utf8(self.body.clone()).unwrap_or_default();
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect()
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' if rest.len() >= 2 => {
                bytes.extend(hex::decode(&rest[..2]).unwrap_or_default());
                rest = &rest[2..];
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// An answer: a status and a body.
#[derive(Clone, Debug)]
pub enum Answer {
    Json(u16, Value),
    /// With headers that are not usual.
    Text(u16, Vec<(&'static str, String)>, String),
    /// None at all, until the client gives up.
    Silence,
    /// The connection is closed.
    Nothing,
}

impl Answer {
    /// A page, as Google's front ends and proxies in between have it.
    pub fn page(status: u16) -> Self {
        let html = "<!DOCTYPE html>\n<html lang=en><title>Error</title><p>That’s an error.";
        Answer::Text(
            status,
            vec![("content-type", "text/html".into())],
            html.into(),
        )
    }
}

/// Serves a connection until it ends.
pub fn serve(stream: TcpStream, mut answer: impl FnMut(Asked) -> (Answer, i64)) {
    let Ok(reading) = stream.try_clone() else {
        return;
    };
    let mut reading = BufReader::new(reading);
    let mut writing = stream;
    while let Some(asked) = read(&mut reading) {
        let (answer, time) = answer(asked);
        let (status, headers, body) = match answer {
            Answer::Json(status, value) => {
                let kind = vec![("content-type", "application/json; charset=UTF-8".into())];
                (status, kind, format!("{value:#}\n"))
            }
            Answer::Text(status, headers, body) => (status, headers, body),
            Answer::Silence => {
                // Until it is shut down.
                let _ = reading.read_to_end(&mut Vec::new());
                return;
            }
            Answer::Nothing => return,
        };
        let mut text = format!("HTTP/1.1 {status} X\r\ndate: {}\r\n", date(time));
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        if writing.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut asked = Asked {
        method,
        path: decoded(&path.replace('+', "%2B")),
        query: query.to_owned(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let name = name.to_ascii_lowercase();
        asked.headers.insert(name, value.trim().to_owned());
    }
    let length: usize = asked.header("content-length").parse().unwrap_or(0);
    asked.body.resize(length, 0);
    stream.read_exact(&mut asked.body).ok()?;
    Some(asked)
}

/// As RFC 9110 has it.
fn date(seconds: i64) -> String {
    use openssl::asn1::Asn1Time;
    // `Nov  6 08:49:37 1994 GMT`
    let text = Asn1Time::from_unix(seconds).unwrap().to_string();
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    let day: u32 = parts[1].parse().unwrap();
    format!("Sun, {day:02} {} {} {} GMT", parts[0], parts[3], parts[2])
}
