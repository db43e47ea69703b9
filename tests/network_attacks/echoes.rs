//! A server that sends back all that it was sent, wherever that may be shown:
//! no secret of it is in an error, a record or a log.

use std::sync::{Arc, Mutex, OnceLock};

use sealblk::error::Explain as _;
use sealblk::kms::call;
use serde_json::json;
use uuid::Uuid;

use super::answers::port_of;
use super::hostile::{Asked, Hostile, Stream, http};
use super::sites::{self, Client, Host, Prelude, Site};

/// All that this process logs from the first call on.
fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("sealblk=trace,reqwest=trace,hyper_util=debug,rustls=debug")
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    })
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const STATUSES: [&str; 6] = [
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "429 Too Many Requests",
    "500 Oops",
    "302 Found",
];

/// So many characters are left of a secret that is quoted in pieces.
const PIECE: usize = 24;

/// In the form of each service, so that its words are taken for its own.
fn bodies(said: &str) -> [String; 4] {
    [
        said_as_object(said),
        said_as_text(said),
        said.to_owned(),
        said_as_object(&in_pieces(said)),
    ]
}

/// Where words are broken by whoever shows them.
fn in_pieces(said: &str) -> String {
    let said: Vec<char> = said.chars().collect();
    let pieces = said.chunks(PIECE).map(String::from_iter);
    pieces.collect::<Vec<_>>().join(" … ")
}

fn said_as_object(said: &str) -> String {
    let object = json!({
        "errors": [said],
        "error": {"code": "Forbidden", "status": "PERMISSION_DENIED", "message": said},
        "__type": "AccessDeniedException",
        "message": said,
        "request_id": said,
        "problem": "unknown",
        "detail": said,
    });
    object.to_string()
}

fn said_as_text(said: &str) -> String {
    let text = json!({
        "errors": [said],
        "error": said,
        "error_description": said,
        "error_codes": [50],
    });
    text.to_string()
}

fn server(
    site: &Site,
    host: &Host,
    prelude: Option<Prelude>,
    status: &'static str,
    form: usize,
) -> Hostile {
    let serve = move |stream: &mut dyn Stream| {
        while let Some(asked) = Asked::read(stream) {
            let port = port_of(&asked.head.to_lowercase());
            if let Some(answer) = prelude.and_then(|prelude| prelude(&asked, port)) {
                if stream.write_all(&answer).is_err() {
                    return;
                }
                continue;
            }
            let body = String::from_utf8_lossy(&asked.body).into_owned();
            // The words are cut: what is of interest has to come first.
            let credential = asked.head.lines().filter_map(|line| line.split_once(": "));
            let credential = credential.filter(|(name, _)| {
                let name = name.to_lowercase();
                ["authorization", "x-vault-token", "x-amz-security-token"].contains(&&*name)
            });
            let credential: Vec<&str> = credential.map(|(_, value)| value).collect();
            let said = format!("{} {body}", credential.join(" "));
            let said = bodies(&said)[form].clone();
            let quoted = credential.join(" ");
            let headers = format!(
                "x-ms-request-id: {quoted}\r\nx-amzn-RequestId: {quoted}\r\nLocation: https://{quoted}/\r\nMetadata-Flavor: Google\r\n"
            );
            if stream
                .write_all(&http(status, &headers, said.as_bytes()))
                .is_err()
            {
                return;
            }
        }
    };
    match site.is_plain {
        true => Hostile::plain(Box::new(serve)),
        false => Hostile::tls(&host.authority.server(), |_| (), Box::new(serve)),
    }
}

fn shown(client: &Client) -> String {
    let call = async { client.wrap_here().await };
    let (result, notes) = sealblk::runtime::block_on(call::observed(Uuid::new_v4(), call)).unwrap();
    let error = result.unwrap_err();
    format!("{error} {error:?} {:?} {notes:?}", error.help())
}

#[test]
fn what_a_server_quotes_of_a_request_shows_no_secret() {
    let log = log();
    let needles = sites::needles();
    // What is left of the key when it is quoted in pieces, wherever those begin.
    let key = sites::key_as_sent();
    let pieces: Vec<&str> = (0..=key.len() - PIECE / 2)
        .map(|start| &key[start..start + PIECE / 2])
        .collect();
    let mut all = Vec::new();
    for site in sites::with_http() {
        for stage in site.stages() {
            for status in STATUSES {
                all.extend((0..4).map(|form| (site, stage, status, form)));
            }
        }
    }
    sites::with_each(&all, |&(site, stage, status, form)| {
        let what = format!("{}, stage {stage}: {status}, form {form}", site.name);
        let host = Host::new();
        let prelude = if stage == 1 { None } else { site.prelude };
        let server = server(site, &host, prelude, status, form);
        sites::eventually(&what, || {
            let shown = shown(&site.client(&host, server.port));
            for needle in needles
                .iter()
                .map(String::as_str)
                .chain(pieces.iter().copied())
            {
                assert!(!shown.contains(needle), "{what}: {shown}");
            }
            server.served() > 0
        });
    });
    let logged = log.0.lock().unwrap().clone();
    let logged = String::from_utf8_lossy(&logged);
    assert!(
        logged.contains("a call failed"),
        "it is a log: {}",
        logged.len()
    );
    for needle in needles {
        let at = logged.find(&needle);
        let around = at.map(|at| logged[at.saturating_sub(200)..at].to_owned());
        assert!(at.is_none(), "{needle:?} is logged after {around:?}");
    }
}
