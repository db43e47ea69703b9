//! The tests and scripts that documents name are there: what is said to be held by
//! one that was renamed or removed is held by nothing.

use std::path::PathBuf;

use crate::project;

/// Each document that says which test holds what.
const DOCUMENTS: [&str; 10] = [
    "docs/architecture.md",
    "docs/files.md",
    "docs/key-hygiene.md",
    "docs/limits.md",
    "docs/network.md",
    "docs/proof.md",
    "docs/rekey.md",
    "docs/sandbox.md",
    "docs/supply-chain.md",
    "docs/threat-model.md",
];

/// `a/{b,c}.rs` is two.
fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let (inside, after) = rest.split_once('}').expect("a closing brace");
    let names = inside.split(',');
    names
        .map(|name| format!("{before}{}{after}", name.trim()))
        .collect()
}

/// What stands between backquotes and is a path of this project, with the test in
/// that file, if one is named.
fn named(text: &str) -> Vec<(String, Option<String>)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let ours = quoted.filter(|word| {
        let roots = ["tests/", "scripts/", "src/", "benches/", "fuzz/"];
        roots.iter().any(|root| word.starts_with(root)) && !word.contains(char::is_whitespace)
    });
    ours.flat_map(|word| {
        let (path, test) = match word.split_once("::") {
            Some((path, test)) => (path, Some(test.to_owned())),
            None => (word, None),
        };
        let paths = alternatives(path).into_iter();
        paths
            .map(move |path| (path, test.clone()))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn what_documents_name_is_there() {
    let mut seen = 0;
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(project(document)).unwrap();
        for (path, test) in named(&text) {
            seen += 1;
            let place: PathBuf = project(&path);
            assert!(place.exists(), "{document}: there is no {path}");
            let Some(test) = test.filter(|_| place.is_file()) else {
                continue;
            };
            let code = std::fs::read_to_string(&place).unwrap();
            for test in alternatives(&test) {
                assert!(
                    code.contains(&format!("fn {test}(")),
                    "{document}: there is no {test} in {path}"
                );
            }
        }
    }
    // Each of them names many.
    assert!(seen > 200, "{seen}");
}

#[test]
fn braces_are_alternatives() {
    assert_eq!(alternatives("a/{b, c}.rs"), ["a/b.rs", "a/c.rs"]);
    assert_eq!(
        named("`tests/x.rs::y` and `scripts/z --all` and `word`"),
        [("tests/x.rs".to_owned(), Some("y".to_owned()))]
    );
}
