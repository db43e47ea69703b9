//! Key services on this host, as far as a client sees them: they wrap by writing
//! down what they were given, and follow the input in how wrong they are.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::edit::edit;
use crate::source::Source;

pub const ARN: &str =
    "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
pub const GOOGLE_KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";

/// Credentials that go either way, none of which may be told.
pub const CREDENTIALS: [&str; 2] = ["s.CrEdEnTiAl0oFtHiShOsT1", "s.ToKeN0OfThEsErViCe1"];

/// Texts that services say what is wrong with.
const WORDS: [&str; 40] = [
    "errors",
    "data",
    "ciphertext",
    "plaintext",
    "latest_version",
    "vault:v1:",
    "lease_duration",
    "auth",
    "client_token",
    "encryption key not found",
    "Vault is sealed",
    "namespace not found",
    "invalid ciphertext",
    "message",
    "__type",
    "DisabledException",
    "KMSInvalidStateException",
    "ThrottlingException",
    "AccessDeniedException",
    "NotFoundException",
    "KeyMetadata",
    "Plaintext",
    "KeyState",
    "Disabled",
    "PendingDeletion",
    "status",
    "code",
    "details",
    "reason",
    "DISABLED",
    "DESTROYED",
    "RESOURCE_EXHAUSTED",
    "error",
    "Forbidden",
    "KeyDisabled",
    "innererror",
    "attributes",
    "enabled",
    "exp",
    "value",
];

const STATUSES: [u16; 16] = [
    200, 204, 301, 307, 400, 401, 403, 404, 409, 412, 429, 472, 500, 503, 100, 999,
];

/// Every way in which a secret could stand in a text.
pub fn secrets_in(key: &[u8]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![hex(key), hex(&key[..16])];
    // The start is the same whatever follows.
    all.push(STANDARD.encode(&key[..24]));
    all.push(URL_SAFE_NO_PAD.encode(&key[..24]));
    all.extend(CREDENTIALS.map(str::to_owned));
    all
}

/// A server of its own, which serves one client at a time.
pub struct Service {
    port: u16,
    input: Arc<Mutex<Vec<u8>>>,
}

struct Asked {
    method: String,
    path: String,
    /// In lower case.
    head: String,
    body: Value,
    text: String,
}

impl Service {
    /// A server that says the usual.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let input = Arc::new(Mutex::new(Vec::new()));
        let shared = input.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Service { port, input }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Follows this input from now on.
    pub fn expect(&self, input: &[u8]) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = input.to_vec();
    }

    pub fn forget(&self) {
        self.expect(&[]);
    }
}

/// One request and its answer; then the connection ends.
fn serve(mut stream: &TcpStream, input: &Mutex<Vec<u8>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let Some(asked) = read(stream) else { return };
    let answer = {
        let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
        let mut source = Source::new(&input);
        let answer = answer(&asked, &mut source);
        let rest = source.rest().to_vec();
        *input = rest;
        answer
    };
    let _ = stream.write_all(&answer);
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? <= 2 {
            break;
        }
        head.push_str(&line.to_ascii_lowercase());
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap_or(0));
    let mut body = vec![0; length.min(1 << 20)];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        method,
        path,
        head,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        text: String::from_utf8_lossy(&body).into_owned(),
    })
}

fn answer(asked: &Asked, source: &mut Source<'_>) -> Vec<u8> {
    let (mut status, mut headers, mut body) = usual(asked);
    let how = source.byte();
    if how & 1 == 1 {
        edit(&mut body, source, &WORDS);
    }
    if how & 0x0e == 0x0e {
        status = source.pick(&STATUSES);
        if source.byte() & 1 == 1 {
            body = refusal(source);
        }
    }
    if how & 0x30 == 0x30 {
        headers.push_str(odd_header(source));
    }
    let mut text = match &body {
        Value::String(text) => text.clone().into_bytes(),
        body => body.to_string().into_bytes(),
    };
    if how & 0xc0 == 0xc0 {
        distort(&mut text, asked, source);
    }
    let length = source.mostly(text.len(), |source| source.odd_number() as usize);
    let head = match source.mostly(0, |source| source.below(3)) {
        0 => format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n"),
        // Until it hangs up.
        1 => format!("HTTP/1.1 {status} X\r\n"),
        _ => String::from_utf8_lossy(source.take(40)).into_owned(),
    };
    let head =
        format!("{head}Content-Type: application/json\r\nConnection: close\r\n{headers}\r\n");
    [head.into_bytes(), text].concat()
}

/// An error as one of the services writes it.
fn refusal(source: &mut Source<'_>) -> Value {
    let at = usize::from(source.byte());
    let word = WORDS[at % WORDS.len()];
    match source.below(5) {
        0 => json!({"errors": [word, "1 error occurred"]}),
        1 => json!({"__type": word, "message": word}),
        2 => json!({"error": {"code": 400, "message": word, "status": word, "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": word, "metadata": {}},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1e9s"},
        ]}}),
        3 => json!({"error": {"code": word, "message": word, "innererror": {"code": word}}}),
        _ => json!({"error": word, "error_description": word, "error_codes": [7]}),
    }
}

fn odd_header(source: &mut Source<'_>) -> &'static str {
    source.pick(&[
        "Retry-After: 1\r\n",
        "Retry-After: 18446744073709551615\r\n",
        "Retry-After: -1\r\n",
        "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        "Date: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
        "Date: x\r\n",
        "Location: http://127.0.0.1:1/\r\n",
        "Content-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\n",
        "WWW-Authenticate: Bearer authorization=\"https://login.windows.net/t\", resource=\"x\"\r\n",
        "WWW-Authenticate: Bearer authorization=\"\r\n",
        "x-ms-keyvault-service-version: 1\r\n",
    ])
}

/// What is no JSON any more, or no end of it, or what was asked, said back.
fn distort(text: &mut Vec<u8>, asked: &Asked, source: &mut Source<'_>) {
    let at = usize::from(source.u16()) % text.len().max(1);
    match source.below(6) {
        0 => text.truncate(at),
        1 => text.insert(at, source.byte()),
        2 => text.extend(vec![b' '; 2 << 20]),
        3 => *text = source.take(64).to_vec(),
        4 => {
            *text = json!({"errors": [asked.text], "message": asked.text})
                .to_string()
                .into_bytes()
        }
        _ => text.fill(b'['),
    }
}

/// What each service answers when all is well: status, headers, body.
fn usual(asked: &Asked) -> (u16, String, Value) {
    let text = |name: &str| asked.body[name].as_str().unwrap_or_default();
    let has = |part: &str| asked.path.contains(part);
    let said = |header: &str| asked.head.contains(header);
    let token = CREDENTIALS[1];
    let ok = |body: Value| (200, String::new(), body);
    if said("x-amz-target: trentservice.") {
        return ok(amazon(asked));
    }
    if has("/keys/disks") && !has("/v1/") {
        return azure(asked);
    }
    match () {
        () if has("/v1/auth/token/lookup-self") => {
            ok(json!({"data": {"ttl": 3600, "renewable": true, "display_name": "t"}}))
        }
        () if has("/v1/auth/") => ok(json!({"auth": {
            "client_token": token, "lease_duration": 3600, "renewable": true,
        }})),
        () if has("/v1/transit/keys/") => ok(json!({"data": {
            "type": "aes256-gcm96", "latest_version": 1, "min_decryption_version": 1,
            "min_encryption_version": 0, "soft_deleted": false, "derived": false,
        }, "request_id": "r"})),
        () if has("/v1/transit/encrypt/") => {
            ok(json!({"data": {"ciphertext": format!("vault:v1:{}", text("plaintext"))}}))
        }
        () if has("/v1/transit/decrypt/") => {
            let plaintext = text("ciphertext").trim_start_matches("vault:v1:");
            ok(json!({"data": {"plaintext": plaintext}}))
        }
        () if has("/service-accounts/") => (
            200,
            "Metadata-Flavor: Google\r\n".into(),
            match has("/email") {
                true => Value::from("a@p.iam.gserviceaccount.com"),
                false => json!({"access_token": token, "expires_in": 3600, "token_type": "Bearer"}),
            },
        ),
        () if has("cryptoKeys") => ok(google(asked)),
        () if has("/metadata/identity/") => ok(json!({
            "access_token": token, "expires_in": "3600", "token_type": "Bearer",
            "resource": "https://vault.azure.net",
        })),
        () if has("/credentials") || has("/latest/meta-data/iam/security-credentials/r") => {
            ok(json!({
                "AccessKeyId": ACCESS_KEY, "SecretAccessKey": CREDENTIALS[0], "Token": token,
                "Expiration": "2039-01-01T00:00:00Z", "Code": "Success",
            }))
        }
        () if has("/latest/api/token") => ok(Value::from(token)),
        () if has("/latest/meta-data/iam/security-credentials") => ok(Value::from("r")),
        () => (404, String::new(), json!({"errors": []})),
    }
}

fn amazon(asked: &Asked) -> Value {
    let text = |name: &str| asked.body[name].as_str().unwrap_or_default();
    match () {
        () if asked.head.contains("trentservice.encrypt") => json!({
            "CiphertextBlob": text("Plaintext"), "KeyId": ARN,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }),
        () if asked.head.contains("trentservice.decrypt") => json!({
            "Plaintext": text("CiphertextBlob"), "KeyId": ARN,
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }),
        () => json!({"KeyMetadata": {
            "Arn": ARN, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT", "MultiRegion": false,
        }}),
    }
}

fn google(asked: &Asked) -> Value {
    let text = |name: &str| asked.body[name].as_str().unwrap_or_default();
    let version = format!("{GOOGLE_KEY}/cryptoKeyVersions/1");
    let sum = |text: &str| {
        let bytes = STANDARD.decode(text).unwrap_or_default();
        crc32c::crc32c(&bytes).to_string()
    };
    if asked.path.ends_with(":encrypt") {
        let ciphertext = text("plaintext");
        return json!({
            "name": version, "ciphertext": ciphertext, "ciphertextCrc32c": sum(ciphertext),
            "verifiedPlaintextCrc32c": true, "verifiedAdditionalAuthenticatedDataCrc32c": true,
            "protectionLevel": "SOFTWARE",
        });
    }
    if asked.path.ends_with(":decrypt") {
        let plaintext = text("ciphertext");
        return json!({"plaintext": plaintext, "plaintextCrc32c": sum(plaintext), "usedPrimary": true});
    }
    json!({
        "name": GOOGLE_KEY, "purpose": "ENCRYPT_DECRYPT",
        "primary": {"name": version, "state": "ENABLED", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
            "protectionLevel": "SOFTWARE"},
        "versionTemplate": {"algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"},
    })
}

fn azure(asked: &Asked) -> (u16, String, Value) {
    if !asked.head.contains("authorization: bearer") {
        let challenge = "WWW-Authenticate: Bearer authorization=\"https://login.windows.net/t\", \
             resource=\"https://vault.azure.net\"\r\n";
        return (
            401,
            challenge.into(),
            json!({"error": {"code": "Unauthorized", "message": "no"}}),
        );
    }
    let host = asked
        .head
        .lines()
        .find_map(|line| line.strip_prefix("host: "));
    let kid = format!(
        "http://{}/keys/disks/0123456789abcdef0123456789abcdef",
        host.unwrap_or_default().trim()
    );
    let body = match () {
        () if asked.method == "POST" => json!({"kid": kid, "value": asked.body["value"]}),
        () => json!({
            "key": {"kid": kid, "kty": "RSA-HSM", "n": URL_SAFE_NO_PAD.encode([0x81; 512]), "e": "AQAB"},
            "attributes": {"enabled": true, "recoveryLevel": "Recoverable+Purgeable"},
        }),
    };
    (200, String::new(), body)
}
