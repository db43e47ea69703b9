use serde_json::{Value, json};

use super::*;
use crate::error::Explain as _;
use crate::rekey::{self, Geometry, Journal, Keys};
use crate::units::Bytes;
use crate::volume::luks2::{Metadata, copies};
use crate::volume::token::PREVIOUS_BYTES;
use crate::volume::{CreateOptions, Location, Plan};

const AREA: u64 = 64 << 10;
const SIZE: u64 = 1 << 20;
/// Stands in wraps of the old key, and of the new one.
const OLD: &[u8] = b"wrapped by the one who has gone";
const NEW: &[u8] = b"wrapped by the one who has come";

fn wrap(bytes: &[u8]) -> Wrap {
    let json = json!({
        "key_set": "k", "provider": "file", "key_id": "k", "key_version": "v",
        "alg": "A256GCM", "bound": "aad:1", "bytes": "",
    });
    Wrap {
        bytes: bytes.to_vec(),
        ..serde_json::from_value(json).unwrap()
    }
}

struct Case {
    _directory: tempfile::TempDir,
    location: Location,
    old: Dek,
    new: Dek,
}

impl Case {
    fn new(detached: bool) -> Self {
        Self::with_area(detached, AREA)
    }

    fn with_area(detached: bool, area: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let location = Location {
            data: directory.path().join("data"),
            header: detached.then(|| directory.path().join("header")),
        };
        let options = CreateOptions {
            size: Some(Bytes(SIZE)),
            header_area: Bytes(area),
            zero_units: true,
            ..CreateOptions::default()
        };
        let old = Dek::generate().unwrap();
        let plan = Plan::new(&location, options).unwrap();
        plan.write(&old, "k", vec![wrap(OLD)]).unwrap();
        Case {
            _directory: directory,
            location,
            old,
            new: Dek::generate().unwrap(),
        }
    }

    fn open(&self) -> Volume {
        Volume::open(&self.location, Access::ReadWrite).unwrap()
    }

    fn begin(&self) -> Volume {
        let mut volume = self.open();
        let facts = volume.facts_to_begin(Kind::Rekey).unwrap();
        journal(&volume, &facts, [Some(&self.old), Some(&self.new)])
            .create()
            .unwrap();
        let previous = rekey::seal_previous(&facts, &self.new, &self.old).unwrap();
        volume
            .begin_rekey(&facts, &self.new, vec![wrap(NEW)], previous)
            .unwrap();
        volume
    }

    fn header(&self) -> Vec<u8> {
        let path = self.location.header.as_ref().unwrap_or(&self.location.data);
        std::fs::read(path).unwrap()
    }

    /// What is wrapped stands in the JSON as base64.
    fn has(&self, needle: &[u8]) -> bool {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(needle);
        let text = text.as_bytes();
        self.header().windows(text.len()).any(|part| part == text)
    }

    /// Writes both copies of the header with a document that was edited.
    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.location.header.as_ref().unwrap_or(&self.location.data);
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).open(path).unwrap();
        let found = copies::read(&&file).unwrap();
        let mut document = Value::Object(found.header.metadata.document().clone());
        edit(&mut document);
        let mut text = serde_json::to_vec(&document).unwrap();
        text.push(0);
        let mut header = found.header.clone();
        header.metadata = Metadata::parse(&text).unwrap();
        copies::replace(&mut &file, &found, &mut header).unwrap();
    }
}

/// The journal of an operation with these facts, where the header says it is.
fn journal(volume: &Volume, facts: &Facts, deks: [Option<&Dek>; 2]) -> Journal<File> {
    let unit = volume.layout().sector_size;
    let [old, new] = match facts.kind {
        Kind::Rekey => deks,
        Kind::Encrypt => [None, deks[1]],
        Kind::Decrypt => [deks[0], None],
    };
    let keys = Keys::derive(facts, old, new).unwrap();
    let geometry = Geometry::new(facts, unit).unwrap();
    let file = volume.journal_file().try_clone().unwrap();
    Journal::new(file, volume.journal_area().unwrap(), keys, geometry).unwrap()
}

#[test]
fn a_rekey_begins_and_ends_in_the_header() {
    for detached in [false, true] {
        let case = Case::new(detached);
        let before = case.open().token().clone();
        let volume = case.begin();
        let facts = volume.rekey_facts().unwrap();
        assert_eq!(facts.kind, Kind::Rekey);
        assert_eq!(facts.binding, volume.binding());
        assert_eq!(facts.size, SIZE);
        let files = volume.files().unwrap();
        drop(volume);
        // Those who read it again see the same, also from other descriptors.
        let mut files = Some(files);
        for _ in 0..2 {
            let volume = match files.take() {
                Some(files) => Volume::of_files(files, Access::ReadOnly).unwrap(),
                None => case.open(),
            };
            assert_eq!(volume.rekey_facts().as_ref(), Some(&facts));
            assert_eq!(volume.token().version, 3);
            assert_eq!(volume.token().wraps, [wrap(NEW)]);
            volume.verify_dek(&case.new).unwrap();
            assert!(volume.verify_dek(&case.old).is_err());
            assert_eq!(volume.repaired(), None);
        }
        assert!(case.has(NEW) && !case.has(OLD), "the old wraps are there");

        let mut volume = case.open();
        let area = volume.journal_area().unwrap();
        volume.finish_rekey().unwrap();
        drop(volume);
        let volume = case.open();
        assert_eq!(volume.rekey(), None);
        assert_eq!(volume.token(), &before.with_wraps(vec![wrap(NEW)]));
        volume.verify_dek(&case.new).unwrap();
        let journal = &case.header()[area.start as usize..area.end as usize];
        assert!(journal.iter().all(|&byte| byte == 0), "the journal stays");
        assert!(!String::from_utf8_lossy(&case.header()).contains("requirements"));
    }
}

#[test]
fn a_rekey_that_was_taken_back_leaves_the_old_key() {
    let case = Case::new(false);
    let before = case.open().token().clone();
    let mut volume = case.begin();
    volume.finish_back(&case.old, vec![wrap(OLD)]).unwrap();
    drop(volume);
    let volume = case.open();
    assert_eq!(volume.token(), &before);
    volume.verify_dek(&case.old).unwrap();
    assert!(volume.verify_dek(&case.new).is_err());
    assert!(case.has(OLD) && !case.has(NEW));
}

#[test]
fn a_volume_that_was_decrypted_has_no_key_and_says_so() {
    for detached in [false, true] {
        let case = Case::new(detached);
        let mut volume = case.open();
        let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
        volume.begin_decrypt(&facts).unwrap();
        assert_eq!(volume.rekey_facts(), Some(facts));
        volume.verify_dek(&case.old).unwrap();
        assert!(case.has(OLD));
        volume.finish_decrypt().unwrap();
        drop(volume);
        let volume = case.open();
        let token = volume.token();
        assert!(token.plain.is_some() && token.wraps.is_empty());
        assert_eq!((token.version, &token.rekey), (3, &None));
        assert!(!case.has(OLD));
        assert!(volume.verify_dek(&case.old).is_err());
        let error = volume.check_settled("serve").unwrap_err();
        assert!(error.to_string().contains("plain since"), "{error}");
        let help = error.help().unwrap();
        assert_eq!(help.contains("65536"), !detached, "{help}");
        let error = volume.facts_to_begin(Kind::Rekey).unwrap_err();
        assert!(matches!(error, Error::Plain { .. }), "{error}");
    }
}

#[test]
fn a_decryption_that_was_taken_back_leaves_the_volume_as_it_was() {
    let case = Case::new(true);
    let before = case.open().token().clone();
    let mut volume = case.open();
    let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
    volume.begin_decrypt(&facts).unwrap();
    volume.finish_rekey().unwrap();
    assert_eq!(volume.token(), &before);
    volume.verify_dek(&case.old).unwrap();
}

#[test]
fn operations_end_as_what_they_are() {
    let case = Case::new(false);
    let mut volume = case.open();
    for error in [
        volume.finish_rekey().unwrap_err(),
        volume.finish_decrypt().unwrap_err(),
        volume.finish_back(&case.old, vec![wrap(OLD)]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NothingUnderWay { .. }), "{error}");
    }
    drop(volume);
    let mut volume = case.begin();
    let error = volume.finish_decrypt().unwrap_err();
    assert!(matches!(error, Error::UnderWay { .. }), "{error}");
    let error = volume.facts_to_begin(Kind::Decrypt).unwrap_err();
    assert!(matches!(error, Error::UnderWay { .. }), "{error}");
    assert!(volume.rekey().is_some());
    volume.finish_rekey().unwrap();
    let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
    volume.begin_decrypt(&facts).unwrap();
    let error = volume.finish_back(&case.old, vec![wrap(OLD)]).unwrap_err();
    assert!(matches!(error, Error::UnderWay { .. }), "{error}");
}

#[test]
fn what_is_no_subject_of_an_operation_is_refused_with_the_way_out() {
    let next = |volume: &Volume, kind| match volume.facts_to_begin(kind).unwrap_err() {
        error @ Error::CannotBegin { .. } => {
            assert_eq!(error.kind(), crate::error::Kind::Refused);
            error.help().unwrap()
        }
        error => panic!("{error}"),
    };
    let case = Case::new(false);
    assert!(next(&case.open(), Kind::Encrypt).contains("volume rekey"));
    let read_only = Volume::open(&case.location, Access::ReadOnly).unwrap();
    let error = read_only.facts_to_begin(Kind::Rekey).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    drop(read_only);

    case.edit(|document| document["keyslots"] = json!({"0": {}}));
    assert!(next(&case.open(), Kind::Rekey).contains("luksKillSlot"));
    case.edit(|document| document["keyslots"] = json!({}));

    let mut volume = case.open();
    let token = volume.token().clone().with_copy_in(Some("s".into()));
    volume.set_token(token).unwrap();
    assert!(next(&volume, Kind::Rekey).contains("move-keys"));
    let token = volume.token().clone().with_copy_in(None);
    volume.set_token(token.in_key_store("s")).unwrap();
    assert!(next(&volume, Kind::Decrypt).contains("move-keys --to header"));

    let small = Case::with_area(true, 32 << 10);
    assert!(next(&small.open(), Kind::Rekey).contains("volume clone"));
    let small = Case::with_area(true, 40 << 10);
    small.open().facts_to_begin(Kind::Rekey).unwrap();
}

#[test]
fn an_operation_that_was_prepared_for_something_else_does_not_begin() {
    let case = Case::new(false);
    let mut volume = case.open();
    let good = volume.facts_to_begin(Kind::Decrypt).unwrap();
    let mut wrong = vec![good.clone(); 4];
    wrong[0].kind = Kind::Rekey;
    wrong[1].size += 512;
    wrong[2].data_offset += 4096;
    wrong[3].binding[40] ^= 1;
    for facts in wrong {
        let error = volume.begin_decrypt(&facts).unwrap_err();
        assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    }
    let rekey = volume.facts_to_begin(Kind::Rekey).unwrap();
    let short = vec![9; PREVIOUS_BYTES - 1];
    let error = volume.begin_rekey(&rekey, &case.new, vec![wrap(NEW)], short);
    assert!(matches!(error, Err(Error::Token { .. })), "{error:?}");
    let error = volume.begin_rekey(&rekey, &case.new, Vec::new(), vec![9; PREVIOUS_BYTES]);
    assert!(matches!(error, Err(Error::Token { .. })), "{error:?}");
    drop(volume);
    assert_eq!(case.open().description().seqid, 1);
}

#[test]
fn nothing_but_begin_and_finish_changes_what_is_under_way() {
    let case = Case::new(false);
    let settled = case.open().token().clone();
    let mut volume = case.begin();
    let under_way = volume.token().clone();
    let mut other = under_way.clone();
    other.rekey.as_mut().unwrap().id = Uuid::new_v4();
    let mut later = under_way.clone();
    later.rekey.as_mut().unwrap().since = "2031-02-28T23:59:59Z".parse().unwrap();
    let gone = under_way.clone().with_rekey(None);
    let stored = under_way.clone().in_key_store("s");
    for token in [settled, other, later, gone, stored] {
        let error = volume.set_token(token.clone()).unwrap_err();
        assert!(
            !matches!(error, Error::Io { .. } | Error::ChangedUnderneath { .. }),
            "{error}"
        );
        assert_eq!(&case.open_beside().token, &under_way, "{token:?}");
    }
    for error in [
        volume.extend(2 * SIZE, false).unwrap_err(),
        volume.set_size(SIZE / 2).unwrap_err(),
        volume.cut_off().unwrap_err(),
    ] {
        assert!(error.to_string().contains("re-encrypted since"), "{error}");
        assert!(error.help().unwrap().contains("--status"));
    }
    // Wraps are another matter.
    let token = under_way
        .clone()
        .with_wraps(vec![wrap(NEW), wrap(b"one more")]);
    volume.set_token(token.clone()).unwrap();
    assert_eq!(&case.open_beside().token, &token);
    assert_eq!(token.version, 3);
}

impl Case {
    /// Another look while the volume is open.
    fn open_beside(&self) -> Description {
        let inspection = crate::volume::Inspection::of(&self.location).unwrap();
        inspection.description().unwrap()
    }
}

#[test]
fn who_read_the_header_before_an_operation_does_not_undo_it() {
    let case = Case::new(false);
    let mut volume = case.open();
    let mut before = Volume::of_files(volume.files().unwrap(), Access::ReadWrite).unwrap();
    let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
    volume.begin_decrypt(&facts).unwrap();
    let mut during = Volume::of_files(volume.files().unwrap(), Access::ReadWrite).unwrap();
    let token = before.token().clone();
    let error = before.set_token(token).unwrap_err();
    assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    let error = before.begin_decrypt(&facts).unwrap_err();
    assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    volume.finish_rekey().unwrap();
    let token = during.token().clone();
    let error = during.set_token(token).unwrap_err();
    assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    assert_eq!(case.open_beside().token.rekey, None);
}

/// The owner of a running operation has read the header days ago.
#[test]
fn an_operation_that_ends_brings_no_older_wraps_back() {
    for kind in [Kind::Rekey, Kind::Decrypt] {
        let case = Case::new(false);
        let mut owner = match kind {
            Kind::Rekey => case.begin(),
            _ => {
                let mut volume = case.open();
                let facts = volume.facts_to_begin(kind).unwrap();
                volume.begin_decrypt(&facts).unwrap();
                volume
            }
        };
        let files = owner.files().unwrap();
        let mut other = Volume::of_files(files, Access::ReadWrite).unwrap();
        let rotated = vec![wrap(b"wrapped by the next version")];
        let token = other.token().clone().with_wraps(rotated.clone());
        other.set_token(token).unwrap();
        owner.finish_rekey().unwrap();
        assert_eq!(owner.token().wraps, rotated);
        assert_eq!(case.open_beside().token.wraps, rotated);
    }
}

#[test]
fn one_who_has_missed_the_end_of_an_operation_does_not_end_the_next() {
    let case = Case::new(true);
    let mut volume = case.open();
    let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
    volume.begin_decrypt(&facts).unwrap();
    let mut late = Volume::of_files(volume.files().unwrap(), Access::ReadWrite).unwrap();
    volume.finish_rekey().unwrap();
    let facts = volume.facts_to_begin(Kind::Decrypt).unwrap();
    volume.begin_decrypt(&facts).unwrap();
    for error in [
        late.finish_decrypt().unwrap_err(),
        late.finish_rekey().unwrap_err(),
    ] {
        assert!(matches!(error, Error::ChangedUnderneath { .. }), "{error}");
    }
    assert_eq!(case.open_beside().rekey_facts(), Some(facts));
    assert!(case.has(OLD));
}

#[test]
fn a_header_file_that_was_cut_off_gets_no_journal() {
    let case = Case::new(true);
    let path = case.location.header.as_ref().unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(40 << 10).unwrap();
    let error = case.open().facts_to_begin(Kind::Rekey).unwrap_err();
    assert!(error.help().unwrap().contains("truncate --size 65536"));
}

/// The path of a value, and what is put there; `Value::Null` takes it away.
type Edit = (&'static str, Value);

fn put(document: &mut Value, (path, value): &Edit) {
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    let object = parent.as_object_mut().unwrap();
    match value {
        Value::Null => _ = object.remove(name),
        value => _ = object.insert(name.into(), value.clone()),
    }
}

/// What an edit did.
#[derive(Debug, PartialEq)]
enum Effect {
    /// It is not opened.
    Refused,
    /// Other keys are derived: no record of the journal is authentic.
    OtherKeys,
    /// What is encrypted in the token does not open, or the wraps do not.
    NoKey,
    /// Nothing depends on it.
    Nothing,
}

fn effect(case: &Case, edits: &[Edit]) -> Effect {
    let before = case.open_beside();
    case.edit(|document| edits.iter().for_each(|edit| put(document, edit)));
    let inspection = crate::volume::Inspection::of(&case.location).unwrap();
    let after = inspection
        .description()
        .and_then(|after| inspection.check_data(&after).map(|_| after));
    let after = match after {
        Ok(after) => after,
        Err(error) => {
            assert!(error.help().is_some(), "{error}");
            return Effect::Refused;
        }
    };
    let key_of = |of: &Description| {
        let rekey = of.token.rekey.clone();
        (rekey.and_then(|it| it.previous), of.token.wraps.clone())
    };
    if let Some(facts) = after.rekey_facts() {
        // Whatever the header says now: either its journal is authentic, or nobody
        // goes on with it.
        let volume = case.open();
        let deks = [Some(&case.old), Some(&case.new)];
        let read = journal(&volume, &facts, deks).read();
        let same = Some(&facts) == before.rekey_facts().as_ref();
        assert_eq!(read.is_ok(), same, "{read:?} of {facts:?}");
        assert!(
            same || matches!(read, Err(rekey::Error::Unauthentic)),
            "{read:?}"
        );
        if let Some(previous) = after
            .token
            .rekey
            .as_ref()
            .and_then(|it| it.previous.as_ref())
        {
            let opened = rekey::open_previous(&facts, &case.new, previous);
            let same = same && key_of(&after).0 == key_of(&before).0;
            assert_eq!(opened.is_ok(), same, "{opened:?}");
            assert!(opened.is_err() || opened.unwrap() == case.old);
        }
    }
    match () {
        () if after.rekey_facts() != before.rekey_facts() => Effect::OtherKeys,
        () if key_of(&after) != key_of(&before) => Effect::NoKey,
        () if !after.digest.same_key(&before.digest) => Effect::NoKey,
        () => Effect::Nothing,
    }
}

#[test]
fn every_edit_of_what_is_under_way_is_refused_or_harmless() {
    use Effect::{NoKey, Nothing, OtherKeys, Refused};
    const TOKEN: &str = "/tokens/0";
    let id = "00112233-4455-6677-8899-aabbccddeeff";
    let bytes = |length: usize| {
        use base64::Engine as _;
        Value::from(base64::engine::general_purpose::STANDARD.encode(vec![8; length]))
    };
    let edits: Vec<(Vec<Edit>, Effect)> = vec![
        // One of token and requirement without the other.
        (vec![("/config/requirements", Value::Null)], Refused),
        (vec![("/config/requirements/mandatory", json!([]))], Refused),
        (
            vec![("/config/requirements/mandatory", Value::Null)],
            Refused,
        ),
        (vec![("/tokens/0/rekey", Value::Null)], Refused),
        (vec![("/tokens/0/rekey", json!({}))], Refused),
        (
            vec![
                ("/tokens/0/rekey", Value::Null),
                ("/tokens/0/version", 1.into()),
            ],
            Refused,
        ),
        // Other requirements, and this one in another form.
        (
            vec![(
                "/config/requirements/mandatory",
                json!(["sealblk-rekey-v1", "more"]),
            )],
            Refused,
        ),
        (
            vec![(
                "/config/requirements/mandatory",
                json!(["sealblk-rekey-v2"]),
            )],
            Refused,
        ),
        (
            vec![(
                "/config/requirements/mandatory",
                json!(["sealblk-rekey-v1", "sealblk-rekey-v1"]),
            )],
            Refused,
        ),
        (
            vec![("/config/requirements/mandatory", "sealblk-rekey-v1".into())],
            Refused,
        ),
        // The version of the token.
        (vec![("/tokens/0/version", 1.into())], Refused),
        (vec![("/tokens/0/version", 2.into())], Refused),
        (vec![("/tokens/0/version", 4.into())], Refused),
        (vec![("/tokens/0/version", Value::Null)], Refused),
        // The object.
        (vec![("/tokens/0/rekey/id", id.into())], OtherKeys),
        (vec![("/tokens/0/rekey/id", "x".into())], Refused),
        (vec![("/tokens/0/rekey/id", Value::Null)], Refused),
        (vec![("/tokens/0/rekey/kind", "encrypt".into())], Refused),
        (vec![("/tokens/0/rekey/kind", "decrypt".into())], Refused),
        (vec![("/tokens/0/rekey/kind", "Rekey".into())], Refused),
        (vec![("/tokens/0/rekey/kind", Value::Null)], Refused),
        (
            vec![
                ("/tokens/0/rekey/kind", "decrypt".into()),
                ("/tokens/0/rekey/previous", Value::Null),
            ],
            OtherKeys,
        ),
        (
            vec![
                ("/tokens/0/rekey/kind", "encrypt".into()),
                ("/tokens/0/rekey/previous", Value::Null),
            ],
            OtherKeys,
        ),
        (
            vec![("/tokens/0/rekey/previous", bytes(PREVIOUS_BYTES))],
            NoKey,
        ),
        (vec![("/tokens/0/rekey/previous", bytes(64))], Refused),
        (vec![("/tokens/0/rekey/previous", "*".into())], Refused),
        (vec![("/tokens/0/rekey/previous", Value::Null)], Refused),
        (vec![("/tokens/0/rekey/since", "yesterday".into())], Refused),
        (vec![("/tokens/0/rekey/since", Value::Null)], Refused),
        (
            vec![("/tokens/0/rekey/since", "2031-02-28T23:59:59Z".into())],
            Nothing,
        ),
        (vec![("/tokens/0/rekey/boundary", 0.into())], Refused),
        // What else the token may not have now.
        (vec![("/tokens/0/key_store", "s".into())], Refused),
        (vec![("/tokens/0/copy_in", "s".into())], Refused),
        (
            vec![("/tokens/0/plain", json!({"since": "2031-02-28T23:59:59Z"}))],
            Refused,
        ),
        (
            vec![(
                "/tokens/0/erased",
                json!({"since": "2031-02-28T23:59:59Z", "finished": true}),
            )],
            Refused,
        ),
        (vec![("/tokens/0/wraps", json!([]))], Refused),
        (vec![("/tokens/0/wraps", Value::Null)], Refused),
        (vec![("/tokens/0/zero_units", false.into())], OtherKeys),
        (vec![("/tokens/0/later", 1.into())], Nothing),
        (
            vec![(TOKEN, Value::Null), ("/config/requirements", Value::Null)],
            Refused,
        ),
        // The segment.
        (vec![("/segments/0/size", "524288".into())], OtherKeys),
        (vec![("/segments/0/size", "2097152".into())], Refused),
        (vec![("/segments/0/size", "dynamic".into())], Refused),
        (vec![("/segments/0/offset", "69632".into())], Refused),
        (
            vec![
                ("/segments/0/offset", "69632".into()),
                ("/segments/0/size", "1044480".into()),
            ],
            OtherKeys,
        ),
        (vec![("/segments/0/sector_size", 4096.into())], OtherKeys),
        (vec![("/segments/0/iv_tweak", "8".into())], OtherKeys),
        (
            vec![("/segments/0/encryption", "aes-xts-plain".into())],
            Refused,
        ),
        (
            vec![("/segments/0/flags", json!(["in-reencryption"]))],
            Refused,
        ),
        (vec![("/segments/1", json!({"type": "linear"}))], Refused),
        // What would lie where the journal is.
        (vec![("/keyslots/0", json!({"type": "luks2"}))], Refused),
    ];
    for (edits, expected) in edits {
        let case = Case::new(false);
        drop(case.begin());
        assert_eq!(effect(&case, &edits), expected, "{edits:?}");
    }
}

#[test]
fn an_operation_does_not_come_into_a_header_by_an_edit_unnoticed() {
    let requirement = json!({"mandatory": ["sealblk-rekey-v1"]});
    let decrypt = json!({
        "id": "00112233-4455-6677-8899-aabbccddeeff", "kind": "decrypt",
        "since": "2031-02-28T23:59:59Z",
    });
    for edits in [
        vec![("/config/requirements", requirement.clone())],
        vec![("/tokens/0/version", 3.into())],
        vec![("/tokens/0/rekey", decrypt.clone())],
        vec![
            ("/config/requirements", requirement.clone()),
            ("/tokens/0/rekey", decrypt.clone()),
        ],
        vec![
            ("/tokens/0/version", 3.into()),
            ("/tokens/0/rekey", decrypt.clone()),
        ],
    ] {
        let case = Case::new(false);
        assert_eq!(effect(&case, &edits), Effect::Refused, "{edits:?}");
    }
    // All of it: then there is an operation, and no authentic journal of it.
    let case = Case::new(false);
    let edits = [
        ("/config/requirements", requirement),
        ("/tokens/0/version", 3.into()),
        ("/tokens/0/rekey", decrypt),
    ];
    assert_eq!(effect(&case, &edits), Effect::OtherKeys);
    let volume = case.open();
    assert!(matches!(
        volume.check_settled("serve"),
        Err(Error::UnderWay { .. })
    ));
}
