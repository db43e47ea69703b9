//! Which version this is, and which commit it was built from.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

/// With a mark before it, by which a program file can be asked for its version.
const STAMP: &str = concat!("sealblk build ", env!("CARGO_PKG_VERSION"));

/// The commit, where `scripts/release-build` said which. It is told rather than
/// looked for, so that the same sources make the same program wherever they lie.
const COMMIT: Option<&str> = option_env!("SEALBLK_COMMIT");

static WITH_COMMIT: LazyLock<String> = LazyLock::new(|| described(version(), COMMIT));

/// The version of sealblk that this is.
pub fn version() -> &'static str {
    STAMP.rsplit(' ').next().unwrap_or(STAMP)
}

/// The version as it is shown to people: with the commit, or that it was built
/// from a working tree, of which nobody can say what was in it.
pub fn with_commit() -> &'static str {
    &WITH_COMMIT
}

fn described(version: &str, commit: Option<&str>) -> String {
    match commit.filter(|commit| !commit.is_empty()) {
        Some(commit) => format!("{version} (commit {commit})"),
        None => format!("{version} (not a release build)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_names_its_commit_and_nothing_else_pretends_to() {
        assert_eq!(described("1.2.3", Some("abc")), "1.2.3 (commit abc)");
        for none in [None, Some("")] {
            assert_eq!(described("1.2.3", none), "1.2.3 (not a release build)");
        }
        assert!(with_commit().starts_with(version()));
        assert_eq!(version(), env!("CARGO_PKG_VERSION"));
    }
}
