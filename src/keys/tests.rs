//! Key sets over real key files.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::error::{Explain, Kind};
use crate::kms::file;
use crate::kms::{Class, Denied};

fn wait<F: Future>(future: F) -> F::Output {
    crate::runtime::block_on(future).unwrap()
}

const BINDING: &[u8] = b"volume 1";

fn key_file(directory: &TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    file::create(&path).unwrap();
    path
}

fn sets(sets: &[(&str, &Path)]) -> KeySets {
    KeySets::new(sets.iter().map(|(name, path)| {
        let path = path.to_path_buf();
        let source = Source::File { path };
        let version = None;
        (name.parse().unwrap(), Definition { source, version })
    }))
}

fn token(wraps: Vec<Wrap>) -> Token {
    Token::new(DEFAULT, false, wraps)
}

#[test]
fn a_wrapped_key_comes_back_with_its_binding_only() {
    let directory = TempDir::new().unwrap();
    let sets = sets(&[(DEFAULT, &key_file(&directory, "a"))]);
    let dek = Dek::generate().unwrap();
    let wrap = wait(sets.wrap(DEFAULT, &dek, BINDING)).unwrap();
    assert_eq!(
        (wrap.key_set.as_str(), wrap.provider.as_str()),
        (DEFAULT, "file")
    );
    assert_eq!(wrap.bound, Bound::Aad);
    let token = token(vec![wrap]);
    assert_eq!(wait(sets.unwrap(&token, BINDING)).unwrap(), dek);

    let error = wait(sets.unwrap(&token, b"volume 2")).unwrap_err();
    assert_eq!(error.class(), Some(Class::BadKey));
    assert_eq!(error.kind(), Kind::Key);
    let version = &token.wraps[0].key_version;
    for part in ["\"default\"", "\"file\"", &token.wraps[0].key_id, version] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn wraps_are_tried_in_order_until_one_opens() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (key_file(&directory, "a"), key_file(&directory, "b"));
    let sets = sets(&[(DEFAULT, &a), ("break-glass", &b)]);
    let dek = Dek::generate().unwrap();
    let wraps = [DEFAULT, "break-glass"].map(|name| wait(sets.wrap(name, &dek, BINDING)).unwrap());
    let token = token(wraps.into());

    let version = token.wraps[0].key_version.parse().unwrap();
    file::update(&a, |file| file.set_enabled(version, false)).unwrap();
    assert_eq!(wait(sets.unwrap(&token, BINDING)).unwrap(), dek);

    std::fs::remove_file(&b).unwrap();
    let error = wait(sets.unwrap(&token, BINDING)).unwrap_err();
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
        Definition {
            source: Source::File { path: path.clone() },
            version: Some(first.to_string()),
        },
    )]);
    let second = file::update(&path, |file| file.add_version()).unwrap();
    let dek = Dek::generate().unwrap();
    for (sets, version) in [(&pinned, first), (&latest, second)] {
        let wrap = wait(sets.wrap(DEFAULT, &dek, BINDING)).unwrap();
        assert_eq!(wrap.key_version, version.to_string());
        let current = wait(sets.current_version(DEFAULT)).unwrap();
        assert_eq!(current.id, version.to_string());
        // Whichever version wrapped it, every set of the key opens it.
        for other in [&pinned, &latest] {
            let token = token(vec![wrap.clone()]);
            assert_eq!(wait(other.unwrap(&token, BINDING)).unwrap(), dek);
        }
    }
}

#[test]
fn what_cannot_be_unwrapped_here_says_why() {
    let directory = TempDir::new().unwrap();
    let sets = sets(&[(DEFAULT, &key_file(&directory, "a"))]);
    let dek = Dek::generate().unwrap();
    let good = wait(sets.wrap(DEFAULT, &dek, BINDING)).unwrap();
    let refused = |change: &dyn Fn(&mut Wrap)| {
        let mut wrap = good.clone();
        change(&mut wrap);
        let error = wait(sets.unwrap(&token(vec![wrap]), BINDING)).unwrap_err();
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

    let error = wait(sets.unwrap(&token(vec![]), BINDING)).unwrap_err();
    assert_eq!((error.kind(), error.class()), (Kind::Key, None));
    assert!(error.to_string().contains("erased"), "{error}");

    let error = wait(sets.wrap("prod", &dek, BINDING)).unwrap_err();
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
    let mut wrap = wait(sets.wrap(DEFAULT, &dek, BINDING)).unwrap();
    let short = crate::secret::Secret::random(32).unwrap();
    let provider = FileProvider::new(&path);
    wrap.bytes = wait(provider.wrap(&KeyRef::default(), &short, BINDING))
        .unwrap()
        .bytes;
    let error = wait(sets.unwrap(&token(vec![wrap]), BINDING)).unwrap_err();
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
