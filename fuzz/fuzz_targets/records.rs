//! What else sealblk reads that somebody else may have written: the audit log, the
//! ledger of volumes, header backups, signed reports, what hosts and brokers say to
//! each other inside their envelopes, recovery keys, and the memory in which a worker
//! counts.
//!
//! Reading it never panics and changes nothing; what is accepted is written as the
//! same again, and a log with a single changed byte is no sound one.
#![no_main]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sealblk::audit::{Files, verify};
use sealblk::engine::stats::{self, Reader};
use sealblk::keys::ledger::Ledger;
use sealblk::kms::broker::protocol::{Answer, Frame, Request};
use sealblk::kms::recovery::RecoveryKey;
use sealblk::secret::Secret;
use sealblk::verify::Envelope;
use sealblk::volume::description_of_backup;
use sealblk_fuzz::edit::edit;
use sealblk_fuzz::source::Source;
use serde_json::{Value, json};
use uuid::Uuid;

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    use std::os::unix::fs::DirBuilderExt;
    let path = std::env::temp_dir().join(format!("sealblk-records-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).create(&path).expect("a directory");
    path
});

const WORDS: [&str; 24] = [
    "uuid",
    "volume",
    "key_set",
    "wraps",
    "version",
    "seq",
    "prev",
    "hash",
    "challenge",
    "correlation",
    "operation",
    "wrap",
    "unwrap",
    "current_version",
    "payload",
    "aad",
    "wrapped",
    "patience_ms",
    "outcome",
    "next_challenge",
    "request_id",
    "failed",
    "since",
    "path",
];

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    match source.below(8) {
        0 => audit(source.rest()),
        1 => ledger(&mut source),
        2 => backup(source.rest()),
        3 => report(source.rest()),
        4 => asked(&mut source),
        5 => answered(&mut source),
        6 => recovery(source.rest()),
        _ => counted(&mut source),
    }
});

fn put(name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt;
    let path = DIRECTORY.join(name);
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&path).expect("a file");
    file.write_all_at(bytes, 0).expect("room");
    path
}

fn audit(text: &[u8]) {
    let path = put("audit.jsonl", text);
    let Ok(files) = Files::of(&path) else { return };
    let Ok(report) = verify(&files, None, true) else {
        return;
    };
    assert_eq!(report.ok, report.problem.is_none());
    assert!(report.lines as usize <= text.len());
    assert_eq!(std::fs::read(&path).expect("it is there"), text);
    if !report.ok || report.lines < 2 {
        return;
    }
    // A byte within a line that others follow.
    let line = text.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    for at in [line / 3, line / 2, line - 2] {
        let mut changed = text.to_vec();
        changed[at] ^= 1;
        let path = put("audit.jsonl", &changed);
        let files = Files::of(&path).expect("as before");
        let report = verify(&files, None, true).expect("it can be read");
        assert!(!report.ok, "byte {at} was changed, and nobody sees it");
    }
}

/// What this host knows of a volume.
fn ledger(source: &mut Source<'_>) {
    let id = Uuid::from_u128(7);
    let mut value = json!({
        "uuid": id, "volume": "/v", "key_set": "k", "updated": "2031-02-28T23:59:59Z",
        "path": "/v", "provider": "file", "key_id": "platform", "key_version": "1",
        "wraps": [{"key_set": "k", "provider": "file", "key_id": "p", "key_version": "1"}],
    });
    let text = match source.byte() & 3 {
        3 => source.rest().to_vec(),
        _ => {
            edit(&mut value, source, &WORDS);
            value.to_string().into_bytes()
        }
    };
    let ledger = Ledger::below(&DIRECTORY);
    let place = ledger.path_of_all();
    std::fs::create_dir_all(place).expect("a directory");
    std::fs::write(place.join(format!("{id}.json")), &text).expect("a file");
    let found = ledger.find(id);
    let _ = (ledger.all(), ledger.needing("k"), ledger.backups(id));
    if let Ok(Some(known)) = found {
        // What was read can be written, and read again.
        if ledger.note(&known).is_ok() {
            let again = ledger.find(known.uuid).expect("it was just written");
            assert!(again.is_some());
        }
    }
    let _ = std::fs::remove_dir_all(place);
}

fn backup(bytes: &[u8]) {
    let path = put("backup", bytes);
    if let Ok(description) = description_of_backup(&path) {
        assert!(description.token.to_json().is_ok());
    }
    assert_eq!(std::fs::read(&path).expect("it is there"), bytes);
}

fn report(text: &[u8]) {
    let Ok(envelope) = Envelope::parse(text) else {
        return;
    };
    let json = serde_json::to_vec(&envelope).expect("it came from JSON");
    assert!(Envelope::parse(&json).is_ok());
}

/// What a host asks of a broker, as it is inside the envelope.
fn asked(source: &mut Source<'_>) {
    let text = base64_of(64);
    let mut value = json!({
        "challenge": base64_of(48), "correlation": Uuid::from_u128(1), "key_set": "k",
        "operation": "wrap", "aad": "AAEC", "payload": text,
    });
    match source.below(4) {
        0 => {}
        1 => {
            value["operation"] = "current_version".into();
            value
                .as_object_mut()
                .expect("it is one")
                .retain(|key, _| key != "aad" && key != "payload");
        }
        2 => value["patience_ms"] = 1000.into(),
        _ => {
            value["operation"] = "unwrap".into();
            value.as_object_mut().expect("it is one").remove("payload");
            value["wrapped"] = json!({"key_id": "k", "version": "1", "alg": "a", "bytes": text});
        }
    }
    edit(&mut value, source, &WORDS);
    let json = value.to_string();
    let _ = Frame::parse(json.as_bytes());
    let secret = Secret::copy_of(json.as_bytes()).expect("locked memory");
    if let Ok(request) = Request::parse(&secret) {
        let again = request.to_secret().expect("locked memory");
        let again = Request::parse(&again).expect("it is ours");
        assert_eq!(again.operation.name(), request.operation.name());
        assert_eq!(again.key_set, request.key_set);
    }
}

/// What a broker answers, as it is inside the envelope.
fn answered(source: &mut Source<'_>) {
    let outcomes = [
        json!({"wrapped": {"key_id": "k", "version": "1", "alg": "a", "bytes": base64_of(92)}}),
        json!({"unwrapped": base64_of(64)}),
        json!({"current_version": {"id": "1", "enabled": true, "expires": null}}),
        json!({"failed": {"class": "throttled", "cause": "c", "help": "h", "retry_after": 1}}),
    ];
    let mut value = json!({
        "next_challenge": base64_of(48), "request_id": "r",
        "outcome": outcomes[source.below(outcomes.len())],
    });
    edit(&mut value, source, &WORDS);
    let secret = Secret::copy_of(value.to_string().as_bytes()).expect("locked memory");
    if let Ok(answer) = Answer::parse(&secret) {
        let again = answer.to_secret().expect("locked memory");
        assert!(Answer::parse(&again).is_ok());
    }
}

fn base64_of(count: usize) -> Value {
    use base64::Engine as _;
    let bytes: Vec<u8> = (0..count).map(|at| at as u8).collect();
    base64::engine::general_purpose::STANDARD
        .encode(bytes)
        .into()
}

fn recovery(text: &[u8]) {
    let Ok(secret) = Secret::copy_of(text) else {
        return;
    };
    if let Ok(key) = RecoveryKey::parse(&secret) {
        let written = key.to_text().expect("locked memory");
        let again = RecoveryKey::parse(&written).expect("it is ours");
        assert_eq!(again.id().to_string(), key.id().to_string());
    }
}

/// Memory that a worker has: whatever it says there, it is shown or refused.
fn counted(source: &mut Source<'_>) {
    let queues = 1 + source.below(4) as u16;
    let memory = match source.byte() & 3 {
        3 => {
            // Not made by sealblk at all.
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create("stats", flags).expect("a memfd"));
            file.set_len(source.odd_number() % (1 << 20)).expect("room");
            if source.byte() & 1 == 0 {
                let _ = fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW);
            }
            file.into()
        }
        _ => stats::create(queues).expect("memory"),
    };
    let file = File::from(memory.try_clone().expect("a descriptor"));
    for _ in 0..16 {
        if source.is_empty() {
            break;
        }
        let at = u64::from(source.u16());
        let bytes = match source.byte() & 1 {
            0 => source.odd_number().to_le_bytes().to_vec(),
            _ => source.take(64).to_vec(),
        };
        let len = file.metadata().map_or(0, |meta| meta.len());
        if at + bytes.len() as u64 <= len {
            let _ = file.write_all_at(&bytes, at);
        }
    }
    if let Ok(reader) = Reader::open(memory.as_fd()) {
        let snapshot = reader.snapshot();
        let total = snapshot.total();
        let _ = format!("{total:?}");
        for kind in stats::Kind::ALL {
            let latency = &snapshot.requests(kind).latency;
            // What is longer than all bounds has none.
            let longest = |share| latency.quantile(share).unwrap_or(Duration::MAX);
            assert!(longest(0.5) <= longest(0.999));
            assert!(latency.octaves().count() < 100);
        }
    }
}
