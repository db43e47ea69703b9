//! What a real provider does is recorded, without any secret.

use std::time::Duration;

use sealblk::audit::Log;
use sealblk::keys::{Actor, Context, KeyUse, Operation, Witness};
use sealblk::kms::call::{self, Notes};
use sealblk::kms::file::{self, FileProvider};
use sealblk::kms::{KeyRef, Provider, Wrapped};
use sealblk::runtime::block_on;
use sealblk::secret::Secret;
use serde_json::Value;
use uuid::Uuid;

use super::lab::Lab;
use super::needles::assert_absent;

fn tell(
    log: &Log,
    operation: Operation,
    wrapped: &Wrapped,
    result: Result<(), &sealblk::kms::Error>,
    notes: &Notes,
) -> Uuid {
    let context = Context::new(Actor::this_process("operator"), Some(Uuid::from_u128(5)));
    log.key_used(&KeyUse {
        context: &context,
        operation,
        key_set: "default",
        provider: "file",
        key_id: &wrapped.key_id,
        key_version: &wrapped.version,
        group: None,
        service_asked: true,
        break_glass: false,
        took: Duration::from_micros(7),
        outcome: result,
        notes,
    })
    .unwrap();
    context.correlation
}

#[test]
fn uses_of_a_real_key_are_recorded_without_it() {
    let lab = Lab::new();
    let key_path = lab.beside("key");
    file::create(&key_path).unwrap();
    let provider = FileProvider::new(&key_path);
    let dek: Vec<u8> = (0..64u8)
        .map(|n| n.wrapping_mul(37).wrapping_add(11))
        .collect();
    let log = lab.log();
    block_on(async {
        let dek = Secret::copy_of(&dek).unwrap();
        let key = KeyRef::default();
        let work = provider.wrap(&key, &dek, b"aad");
        let (wrapped, notes) = call::observed(Uuid::new_v4(), work).await;
        let wrapped = wrapped.unwrap();
        tell(&log, Operation::Wrap, &wrapped, Ok(()), &notes);

        let other = provider.unwrap(&wrapped, b"other aad").await;
        let error = other.map(drop).unwrap_err();
        let id = tell(&log, Operation::Unwrap, &wrapped, Err(&error), &notes);
        // A check uses no key, unless it is refused.
        tell(&log, Operation::Check, &wrapped, Ok(()), &notes);
        tell(&log, Operation::Check, &wrapped, Err(&error), &notes);

        let lines: Vec<Value> = lab
            .lines()
            .iter()
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let events: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["audit_opened", "wrap", "unwrap", "check"]);
        assert_eq!(lines[1]["key_id"], wrapped.key_id.as_str());
        assert_eq!(lines[1]["outcome"], "ok");
        assert_eq!(lines[1]["took_us"], 7);
        assert_eq!(lines[2]["outcome"], "failed");
        assert_eq!(lines[2]["class"], "bad_key");
        assert_eq!(lines[2]["correlation"], id.to_string());
        assert_eq!(lines[2]["volume"], Uuid::from_u128(5).to_string());
        assert_eq!(lines[2]["actor"]["role"], "operator");

        let shown = lab.bytes();
        assert_absent(&shown, &dek, "the audit log");
        assert_absent(&shown, &wrapped.bytes, "the audit log");
        let key_file = std::fs::read_to_string(&key_path).unwrap();
        // The longest word of the key file is the key.
        let key = key_file
            .split(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c))
            .max_by_key(|word| word.len())
            .unwrap();
        assert_absent(&shown, key.as_bytes(), "the audit log");
    })
    .unwrap();
    lab.assert_sound();
}
