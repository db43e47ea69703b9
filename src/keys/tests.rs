//! Key sets over real key files.

use std::future::Future;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::error::{Explain, Kind};
use crate::kms::file::{self, FileProvider};
use crate::kms::recovery::RecoveryKey;
use crate::kms::{Class, Denied};
use crate::secret::{Dek, Secret};
use crate::volume::token::{Bound, Token, Wrap};

fn wait<F: Future>(future: F) -> F::Output {
    crate::runtime::block_on(future).unwrap()
}

const BINDING: &[u8] = b"volume 1";

fn key_file(directory: &TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    file::create(&path).unwrap();
    path
}

fn define(path: &Path, change: impl FnOnce(&mut Definition)) -> Definition {
    let path = path.to_path_buf();
    let mut definition = Definition::new(Source::File { path }, None);
    change(&mut definition);
    definition
}

fn sets(sets: &[(&str, &Path)]) -> KeySets {
    KeySets::new(
        sets.iter()
            .map(|(name, path)| (name.parse().unwrap(), define(path, |_| {}))),
    )
}

/// The token of a volume that belongs to the key set of the first wrap.
fn token(wraps: Vec<Wrap>) -> Token {
    let key_set = wraps.first().map_or(DEFAULT.into(), |w| w.key_set.clone());
    Token::new(key_set, false, wraps)
}

fn context() -> Context {
    Context::local(None)
}

fn wrap_all(sets: &KeySets, name: &str, dek: &Dek) -> Result<Vec<Wrap>, Error> {
    wait(sets.wrap(&context(), name, dek, BINDING))
}

/// The only wrap by that key set.
fn wrap(sets: &KeySets, name: &str, dek: &Dek) -> Wrap {
    let mut wraps = wrap_all(sets, name, dek).unwrap();
    assert_eq!(wraps.len(), 1);
    wraps.remove(0)
}

fn unwrap_as(
    sets: &KeySets,
    token: &Token,
    binding: &[u8],
    access: Access,
) -> Result<Opened, Error> {
    wait(sets.unwrap(&context(), token, binding, access))
}

fn unwrap(sets: &KeySets, token: &Token) -> Result<Dek, Error> {
    unwrap_as(sets, token, BINDING, Access::OwnKeySet).map(|opened| opened.dek)
}

#[test]
fn a_wrapped_key_comes_back_with_its_binding_only() {
    let directory = TempDir::new().unwrap();
    let sets = sets(&[(DEFAULT, &key_file(&directory, "a"))]);
    let dek = Dek::generate().unwrap();
    let wrap = wrap(&sets, DEFAULT, &dek);
    assert_eq!(
        (wrap.key_set.as_str(), wrap.provider.as_str()),
        (DEFAULT, "file")
    );
    assert_eq!(wrap.bound, Bound::Aad);
    let token = token(vec![wrap]);
    assert_eq!(unwrap(&sets, &token).unwrap(), dek);

    let error = unwrap_as(&sets, &token, b"volume 2", Access::BreakGlass).unwrap_err();
    assert_eq!(error.class(), Some(Class::BadKey));
    assert_eq!(error.kind(), Kind::Key);
    let version = &token.wraps[0].key_version;
    for part in ["\"default\"", "\"file\"", &token.wraps[0].key_id, version] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_break_glass_key_opens_when_it_is_asked_for_and_not_before() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (key_file(&directory, "a"), key_file(&directory, "b"));
    let sets = sets(&[(DEFAULT, &a), ("break-glass", &b)]);
    let dek = Dek::generate().unwrap();
    let wraps = [DEFAULT, "break-glass"].map(|name| wrap(&sets, name, &dek));
    let token = token(wraps.into());

    let version = token.wraps[0].key_version.parse().unwrap();
    assert_eq!(unwrap(&sets, &token).unwrap(), dek);
    file::update(&a, |file| file.set_enabled(version, false)).unwrap();
    let error = unwrap(&sets, &token).unwrap_err();
    assert_eq!(error.class(), Some(Class::Denied(Denied::Disabled)));
    assert!(error.to_string().contains("was not tried"), "{error}");
    // Denied, and not lost: to get around that is another thing to ask for.
    let error = unwrap_as(&sets, &token, BINDING, Access::BreakGlass).unwrap_err();
    assert!(error.to_string().contains("denies its key"), "{error}");
    let opened = unwrap_as(&sets, &token, BINDING, Access::DespiteDenial).unwrap();
    assert_eq!((opened.dek, opened.wrap), (dek, 1));

    std::fs::remove_file(&b).unwrap();
    let error = unwrap_as(&sets, &token, BINDING, Access::DespiteDenial).unwrap_err();
    assert_eq!(error.class(), Some(Class::Denied(Denied::Disabled)));
    assert_eq!(
        error.help(),
        Some(format!(
            "enable it: sealblk key enable {version} --key-file {}",
            a.display()
        )),
        "the help is that of the volume's own key set"
    );
    let text = error.to_string();
    assert!(
        text.contains("none of the volume's 2 wrapped keys opens"),
        "{text}"
    );
    assert!(
        text.contains("is disabled") && text.contains("does not exist"),
        "{text}"
    );
}

#[test]
fn a_pinned_version_stays() {
    let directory = TempDir::new().unwrap();
    let path = key_file(&directory, "a");
    let first = file::read(&path).unwrap().latest().unwrap().id;
    let latest = sets(&[(DEFAULT, &path)]);
    let pinned = KeySets::new([(
        Name::default(),
        define(&path, |set| set.version = Some(first.to_string())),
    )]);
    let second = file::update(&path, |file| file.add_version()).unwrap();
    let dek = Dek::generate().unwrap();
    for (sets, version) in [(&pinned, first), (&latest, second)] {
        let wrap = wrap(sets, DEFAULT, &dek);
        assert_eq!(wrap.key_version, version.to_string());
        let current = wait(sets.current_version(&context(), DEFAULT)).unwrap();
        assert_eq!(current.id, version.to_string());
        // Whichever version wrapped it, every set of the key opens it.
        for other in [&pinned, &latest] {
            let token = token(vec![wrap.clone()]);
            assert_eq!(unwrap(other, &token).unwrap(), dek);
        }
    }
}

#[test]
fn what_cannot_be_unwrapped_here_says_why() {
    let directory = TempDir::new().unwrap();
    let sets = sets(&[(DEFAULT, &key_file(&directory, "a"))]);
    let dek = Dek::generate().unwrap();
    let good = wrap(&sets, DEFAULT, &dek);
    let refused = |change: &dyn Fn(&mut Wrap)| {
        let mut wrap = good.clone();
        change(&mut wrap);
        let error = unwrap(&sets, &token(vec![wrap])).unwrap_err();
        (error.kind(), error.to_string())
    };

    let (kind, text) = refused(&|wrap| wrap.key_set = "prod\n".into());
    assert_eq!(kind, Kind::NotFound);
    assert!(
        text.contains(r#"key set "prod\n""#) && text.contains("it has default"),
        "{text}"
    );

    let (kind, text) = refused(&|wrap| wrap.provider = "vault".into());
    assert_eq!(kind, Kind::Key);
    assert!(text.contains("uses provider file now"), "{text}");

    let (kind, text) = refused(&|wrap| wrap.bound = Bound::Other("aad:9".into()));
    assert_eq!(kind, Kind::Unsupported);
    assert!(text.contains("aad:9"), "{text}");

    let (kind, text) = refused(&|wrap| wrap.key_version = "00000000".into());
    assert_eq!(kind, Kind::Corrupt);
    assert!(text.contains("says 00000000"), "{text}");

    let error = unwrap(&sets, &token(vec![])).unwrap_err();
    assert_eq!((error.kind(), error.class()), (Kind::Key, None));
    assert!(error.to_string().contains("erased"), "{error}");

    let error = wrap_all(&sets, "prod", &dek).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(
        error.to_string(),
        r#"there is no key set "prod"; there is default"#
    );
}

#[test]
fn what_is_no_key_is_refused_after_unwrapping() {
    let directory = TempDir::new().unwrap();
    let path = key_file(&directory, "a");
    let sets = sets(&[(DEFAULT, &path)]);
    let dek = Dek::generate().unwrap();
    let mut wrap = wrap(&sets, DEFAULT, &dek);
    let short = crate::secret::Secret::random(32).unwrap();
    let provider = FileProvider::new(&path);
    wrap.bytes = wait(provider.wrap(&KeyRef::default(), &short, BINDING))
        .unwrap()
        .bytes;
    let error = unwrap(&sets, &token(vec![wrap])).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("64 bytes, not 32"), "{error}");
}

#[test]
fn names_are_plain() {
    for name in ["default", "a", "prod-eu.1_x", "9"] {
        assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
    }
    for name in ["", "-x", ".x", "a b", "a/b", "ä", &"x".repeat(65)] {
        assert!(name.parse::<Name>().is_err(), "{name:?}");
    }
}

/// Counts what it is told.
#[derive(Debug, Default)]
struct Count {
    asked: std::sync::atomic::AtomicU32,
    used: std::sync::atomic::AtomicU32,
    broken: std::sync::atomic::AtomicBool,
}

impl Count {
    fn asked(&self) -> u32 {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Witness for Count {
    fn key_used(&self, used: &KeyUse<'_>) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        self.asked.fetch_add(used.service_asked.into(), SeqCst);
        self.used.fetch_add(1, SeqCst);
        match self.broken.load(SeqCst) {
            true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            false => Ok(()),
        }
    }
}

/// Key sets with group keys, in a directory of their own.
fn group_sets(state: &Path, key: &Path, poll: std::time::Duration) -> (KeySets, Arc<Count>) {
    let count = Arc::new(Count::default());
    let definition = define(key, |set| {
        set.policy.hierarchy = Hierarchy::Group;
        set.policy.poll = poll;
    });
    let sets = KeySets::new([(Name::default(), definition)])
        .with_state(state)
        .with_witnesses(vec![count.clone()]);
    (sets, count)
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

#[test]
fn many_volumes_of_a_group_key_cost_one_call() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, count) = group_sets(directory.path(), &key, HOUR);
    let deks: Vec<Dek> = (0..20).map(|_| Dek::generate().unwrap()).collect();
    let tokens: Vec<Token> = deks
        .iter()
        .map(|dek| token(vec![wrap(&sets, DEFAULT, dek)]))
        .collect();
    assert_eq!(count.asked(), 2, "the group key was made and opened once");
    assert!(tokens.iter().all(|t| t.wraps[0].bound == Bound::Group));
    let group = tokens[0].wraps[0].group.clone();
    assert!(tokens.iter().all(|t| t.wraps[0].group == group));

    let (sets, count) = group_sets(directory.path(), &key, HOUR);
    for (dek, token) in deks.iter().zip(&tokens) {
        assert_eq!(unwrap(&sets, token).unwrap(), *dek);
        unwrap_as(&sets, token, b"volume 2", Access::BreakGlass).unwrap_err();
    }
    assert_eq!(count.asked(), 1, "the group key was unwrapped");
}

#[test]
fn a_volume_opens_with_the_state_directory_lost() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let state = directory.path().join("state");
    let dek = Dek::generate().unwrap();
    let (sets, _) = group_sets(&state, &key, HOUR);
    let wrapped = wrap(&sets, DEFAULT, &dek);
    std::fs::remove_dir_all(&state).unwrap();
    let (sets, _) = group_sets(&state, &key, HOUR);
    assert_eq!(unwrap(&sets, &token(vec![wrapped.clone()])).unwrap(), dek);
    // New volumes then have a new group key, and both open.
    let second = wrap(&sets, DEFAULT, &dek);
    assert_ne!(second.group.as_ref().unwrap().id, wrapped.group.unwrap().id);
    assert_eq!(unwrap(&sets, &token(vec![second])).unwrap(), dek);
}

#[test]
fn a_group_key_is_not_used_longer_than_the_service_was_asked_for() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, _) = group_sets(directory.path(), &key, std::time::Duration::ZERO);
    let dek = Dek::generate().unwrap();
    let token = token(vec![wrap(&sets, DEFAULT, &dek)]);
    assert_eq!(unwrap(&sets, &token).unwrap(), dek);
    let version = token.wraps[0].key_version.parse().unwrap();
    file::update(&key, |file| file.set_enabled(version, false)).unwrap();
    let error = unwrap(&sets, &token).unwrap_err();
    assert_eq!(error.class(), Some(Class::Denied(Denied::Disabled)));
    file::update(&key, |file| file.set_enabled(version, true)).unwrap();
    assert_eq!(unwrap(&sets, &token).unwrap(), dek);
}

#[test]
fn new_volumes_get_the_group_key_under_the_current_version() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let dek = Dek::generate().unwrap();
    let sets = || group_sets(directory.path(), &key, HOUR).0;
    let old = wrap(&sets(), DEFAULT, &dek);
    let version = file::update(&key, |file| file.add_version()).unwrap();
    let new = wrap(&sets(), DEFAULT, &dek);
    assert_eq!(new.key_version, version.to_string());
    assert_ne!(old.key_version, new.key_version);
    let id = |wrap: &Wrap| wrap.group.as_ref().unwrap().id;
    assert_eq!(id(&old), id(&new), "it is the same group key");
    let again = wrap(&sets(), DEFAULT, &dek);
    assert_eq!(again.group, new.group, "it is wrapped anew once");
    for wrap in [old, new] {
        assert_eq!(unwrap(&sets(), &token(vec![wrap])).unwrap(), dek);
    }
}

#[test]
fn a_stored_group_key_of_another_service_is_replaced() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (key_file(&directory, "a"), key_file(&directory, "b"));
    let dek = Dek::generate().unwrap();
    let (first, _) = group_sets(directory.path(), &a, HOUR);
    let old = wrap(&first, DEFAULT, &dek);
    let (second, _) = group_sets(directory.path(), &b, HOUR);
    let new = wrap(&second, DEFAULT, &dek);
    assert_ne!(old.group, new.group);
    assert_eq!(unwrap(&second, &token(vec![new])).unwrap(), dek);
    assert_eq!(unwrap(&first, &token(vec![old])).unwrap(), dek);
}

#[test]
fn an_edited_group_wrap_does_not_open() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, _) = group_sets(directory.path(), &key, HOUR);
    let dek = Dek::generate().unwrap();
    let good = wrap(&sets, DEFAULT, &dek);
    // So that the honest group key is in memory.
    assert_eq!(unwrap(&sets, &token(vec![good.clone()])).unwrap(), dek);
    let other_state = TempDir::new().unwrap();
    let (others, _) = group_sets(other_state.path(), &key, HOUR);
    let other = wrap(&others, DEFAULT, &dek);
    #[allow(clippy::type_complexity)]
    let edits: [(&str, &dyn Fn(&mut Wrap)); 8] = [
        ("no group", &|w| w.group = None),
        ("direct", &|w| w.bound = Bound::Aad),
        ("another group id", &|w| {
            w.group.as_mut().unwrap().id = uuid::Uuid::new_v4();
        }),
        ("another group key", &|w| w.group.clone_from(&other.group)),
        ("its bytes under the name of this one", &|w| {
            let bytes = other.group.clone().unwrap().bytes;
            w.group.as_mut().unwrap().bytes = bytes;
        }),
        ("a key of another group", &|w| {
            w.bytes.clone_from(&other.bytes)
        }),
        ("a bit of the group key", &|w| {
            w.group.as_mut().unwrap().bytes[60] ^= 1;
        }),
        ("a bit of the key", &|w| w.bytes[40] ^= 1),
    ];
    for (what, edit) in edits {
        let mut wrap = good.clone();
        edit(&mut wrap);
        let result = unwrap(&sets, &token(vec![wrap]));
        assert!(result.is_err(), "{what}");
    }
    assert_eq!(unwrap(&sets, &token(vec![good])).unwrap(), dek);
}

#[test]
fn a_key_whose_use_cannot_be_recorded_is_not_handed_out() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, count) = group_sets(directory.path(), &key, HOUR);
    let dek = Dek::generate().unwrap();
    let token = token(vec![wrap(&sets, DEFAULT, &dek)]);
    count
        .broken
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let error = unwrap(&sets, &token).unwrap_err();
    assert!(error.to_string().contains("cannot be recorded"), "{error}");
    assert_eq!(error.kind(), Kind::Io);
    wrap_all(&sets, DEFAULT, &dek).unwrap_err();
}

#[test]
fn a_second_wrap_stands_beside_the_first() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (key_file(&directory, "a"), key_file(&directory, "b"));
    let safe: Name = "safe".parse().unwrap();
    let first = define(&a, |set| set.policy.break_glass = Some(safe.clone()));
    let sets = KeySets::new([(Name::default(), first), (safe, define(&b, |_| {}))]);
    let dek = Dek::generate().unwrap();
    let wraps = wrap_all(&sets, DEFAULT, &dek).unwrap();
    let names: Vec<&str> = wraps.iter().map(|wrap| wrap.key_set.as_str()).collect();
    assert_eq!(names, [DEFAULT, "safe"]);
    std::fs::remove_file(&a).unwrap();
    let token = token(wraps);
    unwrap(&sets, &token).unwrap_err();
    let opened = unwrap_as(&sets, &token, BINDING, Access::BreakGlass).unwrap();
    assert_eq!(opened.dek, dek);
}

/// Keeps what it was told of broken glass.
#[derive(Debug, Default)]
struct Alarm(std::sync::Mutex<Vec<(String, String, bool)>>);

impl Witness for Alarm {
    fn key_used(&self, _: &KeyUse<'_>) -> std::io::Result<()> {
        Ok(())
    }

    fn glass_broken(&self, broken: &GlassBroken<'_>) -> std::io::Result<()> {
        let (own, by) = (broken.own_key_set.to_owned(), broken.key_set.to_owned());
        self.0.lock().unwrap().push((own, by, broken.denied));
        Ok(())
    }
}

#[test]
fn a_recovery_key_opens_what_it_wrapped_and_that_is_told() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (key_file(&directory, "a"), key_file(&directory, "b"));
    let alarm = std::sync::Arc::new(Alarm::default());
    let sets = sets(&[(DEFAULT, &a), ("safe", &b)]).with_witnesses(vec![alarm.clone() as _]);
    let dek = Dek::generate().unwrap();
    let (paper, other) = (
        RecoveryKey::generate().unwrap(),
        RecoveryKey::generate().unwrap(),
    );
    let by_paper = sets.recovery_wrap(&context(), &paper, &dek, BINDING);
    let token = token(vec![
        wrap(&sets, DEFAULT, &dek),
        wrap(&sets, "safe", &dek),
        by_paper.unwrap(),
    ]);
    let open = |access, recovery| {
        let means = Means { access, recovery };
        wait(sets.unwrap_with(&context(), &token, BINDING, means))
    };
    // As long as the own key set works, nothing else is looked at.
    let opened = open(Access::DespiteDenial, Some(&paper)).unwrap();
    assert_eq!(opened.wrap, 0);
    assert!(alarm.0.lock().unwrap().is_empty());

    std::fs::rename(&a, directory.path().join("gone")).unwrap();
    let error = open(Access::OwnKeySet, None).unwrap_err();
    assert!(error.to_string().contains("recovery key alone"), "{error}");
    let error = open(Access::OwnKeySet, Some(&other)).unwrap_err();
    assert!(
        error.to_string().contains(&other.id().to_string()),
        "{error}"
    );
    let opened = open(Access::OwnKeySet, Some(&paper)).unwrap();
    assert_eq!((opened.dek, opened.wrap), (dek, 2));
    assert_eq!(open(Access::BreakGlass, Some(&paper)).unwrap().wrap, 1);
    let told = |by: &str, denied| (DEFAULT.to_owned(), by.to_owned(), denied);
    assert_eq!(
        *alarm.0.lock().unwrap(),
        [told("recovery-key", false), told("safe", false)]
    );

    // Neither gets around a key that is denied, unless that is asked for.
    std::fs::rename(directory.path().join("gone"), &a).unwrap();
    let version = token.wraps[0].key_version.parse().unwrap();
    file::update(&a, |file| file.set_enabled(version, false)).unwrap();
    for recovery in [None, Some(&paper)] {
        let error = open(Access::BreakGlass, recovery).unwrap_err();
        assert!(error.to_string().contains("denies its key"), "{error}");
    }
    open(Access::OwnKeySet, Some(&paper)).unwrap_err();
    assert_eq!(alarm.0.lock().unwrap().len(), 2);
    assert_eq!(open(Access::DespiteDenial, None).unwrap().wrap, 1);
    assert_eq!(alarm.0.lock().unwrap()[2], told("safe", true));
}

#[test]
fn a_check_wraps_and_unwraps_and_makes_the_group_key() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, count) = group_sets(directory.path(), &key, HOUR);
    let version = wait(sets.check(&context(), DEFAULT)).unwrap();
    assert!(version.enabled);
    assert_eq!(
        count.asked(),
        5,
        "check, wrap, unwrap; wrap and unwrap of the group key"
    );
    assert!(directory.path().join("groups/default.json").exists());
    let version = version.id.parse().unwrap();
    file::update(&key, |file| file.set_enabled(version, false)).unwrap();
    let error = wait(sets.check(&context(), DEFAULT)).unwrap_err();
    assert_eq!(error.class(), Some(Class::Denied(Denied::Disabled)));
}

#[test]
fn any_secret_is_wrapped_directly_and_by_group_key() {
    let home = TempDir::new().unwrap();
    let path = key_file(&home, "platform.key");
    let version = current_version(&path);
    for hierarchy in [Hierarchy::Direct, Hierarchy::Group] {
        let definition = define(&path, |it| it.policy.hierarchy = hierarchy);
        let sets = KeySets::new([("a".parse().unwrap(), definition)]).with_state(home.path());
        for length in [1, 32, 1024] {
            let secret = Secret::random(length).unwrap();
            let wrap = wait(sets.wrap_secret(&context(), "a", None, &secret, b"anything")).unwrap();
            assert_eq!(wrap.group.is_some(), hierarchy == Hierarchy::Group);
            let open = |wrap: &Wrap, aad: &[u8]| wait(sets.unwrap_secret(&context(), wrap, aad));
            assert_eq!(open(&wrap, b"anything").unwrap(), secret);
            assert!(matches!(
                open(&wrap, b"another").unwrap_err(),
                Why::Kms(error) if error.class() == Class::BadKey
            ));
        }
        let secret = Secret::random(64).unwrap();
        // A version is asked for: the group key has one of its own.
        let pinned =
            wait(sets.wrap_secret(&context(), "a", Some(&version), &secret, b"x")).unwrap();
        assert_eq!(
            (pinned.key_version.as_str(), &pinned.group),
            (version.as_str(), &None)
        );
        assert_eq!(
            wait(sets.unwrap_secret(&context(), &pinned, b"x")).unwrap(),
            secret
        );
        let told = |version: &str| wait(sets.version(&context(), "a", Some(version)));
        assert_eq!(told(&version).unwrap().id, version);
        assert_eq!(
            told("0000000000000000").unwrap_err().class(),
            Some(Class::NotFound)
        );
        let missing =
            wait(sets.wrap_secret(&context(), "a", Some("0000000000000000"), &secret, b"x"));
        assert_eq!(missing.unwrap_err().class(), Some(Class::NotFound));
    }
}

fn current_version(path: &Path) -> String {
    let set = sets(&[("a", path)]);
    wait(set.current_version(&context(), "a")).unwrap().id
}

/// `DEFAULT` as it is, and as it was before.
fn switched(new: &Path, old: &Path) -> KeySets {
    let definition = define(new, |definition| {
        definition.previous = Some(Box::new(define(old, |_| {})));
    });
    KeySets::new([(Name::default(), definition)])
}

#[test]
fn what_a_key_set_was_before_opens_and_wraps_nothing() {
    let directory = TempDir::new().unwrap();
    let (new, old) = (key_file(&directory, "new"), key_file(&directory, "old"));
    let dek = Dek::generate().unwrap();
    let sets = KeySets::new([(Name::default(), define(&old, |_| {}))]);
    let before = wrap(&sets, DEFAULT, &dek);
    let sets = switched(&new, &old);
    let after = wrap(&sets, DEFAULT, &dek);
    assert_ne!(before.key_id, after.key_id);
    for wrap in [&before, &after] {
        assert_eq!(unwrap(&sets, &token(vec![wrap.clone()])).unwrap(), dek);
    }
    // Who denies the new key is not got around by the old one.
    let version = after.key_version.parse().unwrap();
    file::update(&new, |file| file.set_enabled(version, false)).unwrap();
    let error = unwrap(&sets, &token(vec![after])).unwrap_err();
    assert_eq!(error.class(), Some(Class::Denied(Denied::Disabled)));
    // And it goes with its definition.
    let alone = KeySets::new([(Name::default(), define(&new, |_| {}))]);
    unwrap(&alone, &token(vec![before])).unwrap_err();
}

#[test]
fn a_group_key_is_wrapped_anew_once_and_wraps_follow_it_without_its_service() {
    let directory = TempDir::new().unwrap();
    let key = key_file(&directory, "a");
    let (sets, count) = group_sets(directory.path(), &key, HOUR);
    let dek = Dek::generate().unwrap();
    let old = wrap(&sets, DEFAULT, &dek);
    file::update(&key, |file| file.add_version()).unwrap();
    let context = Context::local(None);
    let version = wait(sets.current_version(&context, DEFAULT)).unwrap();
    let current = wait(sets.renew(&context, DEFAULT, &version)).unwrap();
    assert!(current.made(&wrap(&sets, DEFAULT, &dek)) && !current.made(&old));
    let asked = count.asked();
    let new = current.follow(&old).unwrap();
    assert!(current.made(&new));
    assert_eq!((&new.bytes, &new.extra), (&old.bytes, &old.extra));
    let opened = wait(sets.open_as(&context, &current, &new, BINDING)).unwrap();
    assert_eq!(&opened, dek.as_secret());
    let again = wait(sets.renew(&context, DEFAULT, &version)).unwrap();
    assert_eq!(again.target, current.target);
    assert_eq!(count.asked(), asked, "no service was asked");
    // Of another group key it does not follow, nor of another key set.
    let other_state = TempDir::new().unwrap();
    let (others, _) = group_sets(other_state.path(), &key, HOUR);
    assert_eq!(current.follow(&wrap(&others, DEFAULT, &dek)), None);
    let mut renamed = old.clone();
    renamed.key_set = "other".into();
    assert_eq!(current.follow(&renamed), None);
    // What was put together wrongly is found out.
    let mut broken = new.clone();
    broken.bytes[40] ^= 1;
    wait(sets.open_as(&context, &current, &broken, BINDING)).unwrap_err();
    assert!(wait(sets.open_as(&context, &current, &new, b"volume 2")).is_err());
}
