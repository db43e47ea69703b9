//! What workers say to their manager, and managers to their workers: packets with
//! JSON and descriptors, mostly as they should be.
//!
//! A worker that somebody has taken over must not hurt the manager: whatever it
//! says, nothing panics, not even where what it said is shown; nothing is waited for
//! without end, and no descriptor is left over. What people get to read of it is
//! one line of bounded length.
#![no_main]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sealblk::manager::link::{Link, pair};
use sealblk::manager::model::{FrozenInfo, RekeyInfo, StuckInfo, TroubleInfo, Troubles};
use sealblk::one_line;
use sealblk::plane::moving::Progress;
use sealblk::secret::Dek;
use sealblk::worker::packet;
use sealblk::worker::parcel::{Parcel, Role};
use sealblk::worker::protocol::{Answer, Call, Fault, Hello, Message, Request, Start, Status};
use sealblk_fuzz::edit::edit;
use sealblk_fuzz::source::Source;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
});

const WORDS: [&str; 40] = [
    "id",
    "message",
    "answer",
    "status",
    "hello",
    "changed",
    "ended",
    "moving",
    "kept",
    "fds",
    "started",
    "adopted",
    "stopped",
    "failed",
    "unsupported",
    "key",
    "prepared",
    "handed_over",
    "fault",
    "help",
    "kind",
    "io",
    "usage",
    "frozen",
    "until",
    "left_ms",
    "complete",
    "trouble",
    "stuck",
    "since",
    "progress",
    "data",
    "header",
    "queue",
    "process",
    "dek",
    "peer",
    "session",
    "request",
    "protocol",
];

fuzz_target!(|bytes: &[u8]| {
    let before = descriptors();
    let mut source = Source::new(bytes);
    match source.below(4) {
        0..=2 => RUNTIME.block_on(talk(&mut source)),
        _ => call(&mut source),
    }
    assert_eq!(descriptors(), before, "descriptors are left over");
});

fn descriptors() -> usize {
    LazyLock::force(&RUNTIME);
    let list = std::fs::read_dir("/proc/self/fd").expect("/proc");
    list.count()
}

/// The manager asks, and the worker says what the input says.
async fn talk(source: &mut Source<'_>) {
    let (ours, theirs) = pair().expect("a connection");
    say(&theirs, &hello(source), source);
    let count = source.below(8);
    let mut said: Vec<Vec<Value>> = Vec::new();
    for id in 0..=count as u64 {
        // To the call of this number, and before it a few others.
        let early = source.mostly(0, |source| source.below(80));
        let mut answers: Vec<Value> = (0..early).map(|_| news(source)).collect();
        answers.push(answer(source, id + 1));
        said.push(answers);
    }
    for answers in &mut said {
        for answer in answers {
            if source.byte() & 1 == 1 {
                edit(answer, source, &WORDS);
            }
            say(&theirs, answer, source);
        }
    }
    // It hangs up, so that nobody waits for what it does not say.
    drop(theirs);
    let Ok((mut link, hello, process)) = Link::open(ours).await else {
        return;
    };
    check_hello(&hello);
    drop(process);
    for _ in 0..=count {
        match link.call(Request::Status, Parcel::default()).await {
            Ok((answer, parcel)) => check_answer(answer, parcel),
            Err(error) => drop(error.to_string()),
        }
        if source.byte() & 3 == 3 {
            link.forget_news();
        }
    }
    for _ in 0..200 {
        match link.next().await {
            Ok(Some(message)) => check_message(message),
            Ok(None) | Err(_) => break,
        }
    }
}

/// Sends a report, with as many descriptors as it names, or rarely others.
fn say(socket: &OwnedFd, report: &Value, source: &mut Source<'_>) {
    let mut bytes = report.to_string().into_bytes();
    if source.rarely() {
        let at = usize::from(source.u16()) % bytes.len();
        match source.below(3) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] = source.byte(),
            _ => bytes.extend(source.take(32)),
        }
    }
    let named = report
        .get("fds")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let count = source.mostly(named, |source| source.below(20));
    let file = File::open("/dev/null").expect("it is there");
    let files: Vec<BorrowedFd<'_>> = (0..count.min(64)).map(|_| file.as_fd()).collect();
    // There may be no room any more: then it is not said.
    let _ = packet::send(socket, &bytes, &files);
}

fn hello(source: &mut Source<'_>) -> Value {
    let mut hello = json!({
        "message": "hello", "protocol": 1, "version": "1.0", "pid": 1, "serving": true,
        "fds": ["process"],
    });
    if source.rarely() {
        edit(&mut hello, source, &WORDS);
    }
    hello
}

fn fault() -> Value {
    json!({"message": "it broke", "help": "mend it", "kind": "io"})
}

fn status(source: &mut Source<'_>) -> Value {
    let mut status = json!({"front_end": true, "errors": 0, "sync_failed": false});
    let more = source.byte();
    if more & 1 == 1 {
        status["frozen"] = json!({"complete": true, "until": source.odd_number(), "left_ms": 9});
    }
    if more & 2 == 2 {
        status["trouble"] = json!({
            "stopped": true, "since": source.odd_number(), "waiting": 1, "attempts": 3,
            "last": {"operation": "write", "position": 4096, "bytes": 512, "errno": 5},
        });
    }
    if more & 4 == 4 {
        status["stuck"] = json!({
            "operation": "read", "position": 0, "bytes": 1, "since": source.odd_number(), "count": 1,
        });
    }
    if more & 8 == 8 {
        status["size_read"] = source.odd_number().into();
        status["troubles"] = json!({"stops": 1, "waited": 2, "stuck": 3});
        status["mode"] = "pause".into();
    }
    status
}

fn progress(source: &mut Source<'_>) -> Value {
    json!({
        "id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "kind": "rekey", "direction": "forward",
        "phase": "moving", "boundary": source.odd_number(), "size": source.odd_number(),
        "moved": source.odd_number(), "rate": source.odd_number(), "region": 4096,
        "sequence": source.odd_number(), "go": "run", "pace": {}, "fault": "it broke",
    })
}

/// What nobody has asked for.
fn news(source: &mut Source<'_>) -> Value {
    match source.below(5) {
        0 => json!({"message": "changed", "status": status(source)}),
        1 => json!({"message": "ended", "fault": fault()}),
        2 => json!({"message": "moving", "progress": progress(source)}),
        3 => json!({"message": "kept", "fault": fault()}),
        _ => json!({"message": "later", "of": 1}),
    }
}

fn answer(source: &mut Source<'_>, id: u64) -> Value {
    let (answer, roles) = match source.below(9) {
        0 => (
            json!({"answer": "status", "status": status(source)}),
            json!([]),
        ),
        1 => (
            json!({"answer": "started", "status": status(source)}),
            json!([]),
        ),
        2 => (json!({"answer": "stopped", "fault": fault()}), json!([])),
        3 => (json!({"answer": "failed", "fault": fault()}), json!([])),
        4 => (json!({"answer": "key"}), json!(["dek"])),
        5 => (
            json!({"answer": "moving", "progress": progress(source)}),
            json!([]),
        ),
        6 => (json!({"answer": "prepared", "version": 1}), json!([])),
        7 => (
            json!({"answer": "handed_over", "pause_us": source.odd_number()}),
            json!([]),
        ),
        _ => (
            json!({"answer": "adopted", "start": start(), "status": status(source)}),
            json!([
                "data",
                "queue",
                "front_ends",
                "managers",
                "statistics",
                "memo"
            ]),
        ),
    };
    json!({"message": "answer", "id": id, "answer": answer, "fds": roles})
}

/// What a disk is started with.
fn start() -> Value {
    json!({
        "name": "vm-1", "volume": "/vm/1.img", "direct": true, "keep_dek": false,
        "baggage": {"some": "thing"}, "log": {"level": "info", "format": "text"},
        "socket": {"path": "/s", "device": 1, "inode": 2},
        "spec": {
            "uuid": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "data_offset": 0, "size": 1 << 20,
            "sector_size": 4096, "iv_tweak": 3, "zero_units": true, "engine": "portable",
            "direct": "never", "read_only": false, "discard": true, "serial": "a serial",
            "queues": 2, "cpus": [1, 0], "queue_size": 128, "write_cache": true, "poll_us": 50,
            "limits": {}, "on_error": "stop", "stuck_after_ms": 7000,
        },
    })
}

/// What a manager says, or somebody in its place.
fn call(source: &mut Source<'_>) {
    let requests = [
        json!({"request": "status"}),
        json!({"request": "limit", "limits": {}}),
        json!({"request": "resize", "size": 1 << 20}),
        json!({"request": "hold", "mode": "pause"}),
        json!({"request": "freeze", "timeout_ms": 1000}),
        json!({"request": "moving", "orders": {}}),
        json!({"request": "hand_over", "version": 1, "drain_ms": 1}),
        json!({"request": "resume", "give_up": true}),
        start(),
    ];
    let mut value = requests[source.below(requests.len())].clone();
    if value.get("request").is_none() {
        value["request"] = "start".into();
    }
    value["id"] = 7.into();
    value["fds"] = json!(["data", "queue"]);
    edit(&mut value, source, &WORDS);
    // As text, which does not nest without end.
    let Ok(call) = serde_json::from_str::<Call>(&value.to_string()) else {
        return;
    };
    let fds = call.fds.clone();
    let text = serde_json::to_string(&call);
    // What only a later version knows cannot be said by this one.
    if let Ok(text) = text
        && !matches!(call.request, Request::Unknown)
    {
        let again: Call = serde_json::from_str(&text).expect("it is ours");
        assert_eq!((again.id, again.fds), (call.id, fds));
    }
}

fn check_text(text: &str) {
    assert!(text.chars().count() <= one_line::MAX);
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn check_fault(fault: &Fault) {
    check_text(&fault.message);
    fault.help.as_deref().into_iter().for_each(check_text);
}

fn check_hello(hello: &Hello) {
    check_text(&hello.version);
    drop(serde_json::to_string(hello));
}

/// As the manager shows it.
fn check_status(status: &Status) {
    let shown = (
        status.frozen.map(FrozenInfo::from),
        status.trouble.map(TroubleInfo::from),
        status.stuck.map(StuckInfo::from),
        Troubles::from(status.troubles),
    );
    serde_json::to_string(&shown).expect("it can be shown");
}

fn check_progress(progress: &Progress) {
    let shown = RekeyInfo::from(progress);
    if let Some(problem) = &shown.problem {
        check_text(&problem.message);
    }
    serde_json::to_string(&shown).expect("it can be shown");
}

fn check_start(start: &Start) {
    // Kept for the next worker, which reads it again.
    let text = serde_json::to_string(start).expect("it can be sent on");
    let again: Start = serde_json::from_str(&text).expect("it is ours");
    assert_eq!(again, *start);
}

fn check_answer(answer: Answer, mut parcel: Parcel) {
    match answer {
        Answer::Started { status } | Answer::Status { status } => check_status(&status),
        Answer::Adopted { start, status } => {
            check_status(&status);
            check_start(&start);
        }
        Answer::Stopped { fault } => fault.iter().for_each(check_fault),
        Answer::Failed { fault } => check_fault(&fault),
        Answer::Moving { progress } => {
            progress
                .iter()
                .for_each(|progress| check_progress(progress));
        }
        Answer::Key | Answer::Unsupported | Answer::Prepared { .. } | Answer::HandedOver { .. } => {
        }
    }
    if let Ok(dek) = parcel.need(Role::Dek) {
        // It is none: nobody has passed one.
        assert!(Dek::receive(dek).is_err());
    }
    assert!(parcel.roles().len() <= packet::MAX_FDS);
}

fn check_message(message: Message) {
    match message {
        Message::Hello(hello) => check_hello(&hello),
        Message::Answer { answer, .. } => check_answer(answer, Parcel::default()),
        Message::Changed { status } => check_status(&status),
        Message::Ended { fault } => fault.iter().for_each(check_fault),
        Message::Moving { progress } => check_progress(&progress),
        Message::Kept { fault } => check_fault(&fault),
        Message::Unknown => {}
    }
}
