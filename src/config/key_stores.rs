//! The tables `[key_stores.NAME]`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use super::vault;
use crate::key_store::directory::{self, Directory};
use crate::key_store::{Definition, VaultKv};
use crate::kms::http::BaseUrl;
use crate::kms::vault::{MountPath, Settings};

/// Where the KV engine is as a rule.
const MOUNT: &str = "secret";
/// The folder in it.
const FOLDER: &str = "sealblk";
/// How long a file system may be silent.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectoryTable {
    #[serde(rename = "kind")]
    _kind: String,
    path: FilePath,
    timeout: Option<Parsed<Wait>>,
}

/// All but `auth`, of which there are several kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VaultKvTable {
    #[serde(rename = "kind")]
    _kind: String,
    endpoints: Spanned<Vec<Parsed<BaseUrl>>>,
    mount: Option<Parsed<MountPath>>,
    path: Option<Parsed<MountPath>>,
    namespace: Option<Parsed<MountPath>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// The key store that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let kind = value
        .get_ref()
        .as_table()
        .ok_or_else(|| reader.at(at, "a key store is a table: [key_stores.NAME]"))?
        .get("kind");
    let Some(kind) = kind else {
        return Err(reader.at(at, "it names no kind: add kind = \"directory\""));
    };
    match kind.get_ref().as_str() {
        Some(Directory::KIND) => {
            let table: DirectoryTable = reader.table(value)?;
            Ok(Definition::Directory(directory::Settings {
                path: PathBuf::from(table.path),
                timeout: table.timeout.map_or(TIMEOUT, |wait| wait.0.get()),
            }))
        }
        Some(VaultKv::KIND) => vault_kv(reader, value),
        _ => Err(reader.at(
            kind.span().start,
            format!(
                "there is no such kind of key store: there are {:?} and {:?}",
                Directory::KIND,
                VaultKv::KIND
            ),
        )),
    }
}

fn vault_kv<'a>(reader: &Reader<'a>, mut value: Spanned<DeValue<'a>>) -> Result<Definition, Error> {
    let at = value.span().start;
    let auth = vault::take_auth(&mut value);
    let table: VaultKvTable = reader.table(value)?;
    let tls = service::tls(reader, table.ca_file, table.client_cert, table.client_key)?;
    let settings = Settings {
        endpoints: vault::endpoints(reader, table.endpoints)?,
        namespace: table.namespace.map(|parsed| parsed.0),
        mount: vault::mount(reader, at, table.mount, MOUNT)?,
        auth: vault::login(reader, at, auth, &tls)?,
        tls,
        timing: service::timing(reader, table.timeout, table.deadline)?,
    };
    Ok(Definition::VaultKv {
        folder: vault::mount(reader, at, table.path, FOLDER)?,
        settings: Box::new(settings),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::parse;
    use super::*;

    fn read(text: &str) -> Result<Definition, String> {
        let path = Path::new("/etc/sealblk/sealblk.toml");
        let text = format!("[key_stores.one]\n{text}");
        let config = parse(path, &text).map_err(|error| error.to_string())?;
        Ok(config.key_stores.into_values().next().unwrap())
    }

    #[test]
    fn each_kind_has_its_settings() {
        let Definition::Directory(directory) =
            read("kind = \"directory\"\npath = \"/srv/keys\"").unwrap()
        else {
            panic!("it is a directory");
        };
        assert_eq!(directory.path, Path::new("/srv/keys"));
        assert_eq!(directory.timeout, TIMEOUT);

        let text = "kind = \"vault-kv\"\nendpoints = [\"https://a:8200\", \"https://b:8200\"]\n\
                    namespace = \"team\"\ntimeout = \"2s\"\n\
                    auth = { method = \"token\", token = \"/etc/sealblk/token\" }";
        let Definition::VaultKv { folder, settings } = read(text).unwrap() else {
            panic!("it is a KV engine");
        };
        assert_eq!(
            (folder.to_string(), settings.mount.to_string()),
            ("sealblk".into(), "secret".into())
        );
        assert_eq!(settings.endpoints.len(), 2);
        assert_eq!(settings.namespace.unwrap().to_string(), "team");
        assert_eq!(settings.timing.timeout, Duration::from_secs(2));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, told) in [
            ("path = \"/srv/keys\"", "names no kind"),
            (
                "kind = \"floppy\"",
                ":2:8: there is no such kind of key store",
            ),
            ("kind = \"directory\"", "missing field `path`"),
            ("kind = \"directory\"\npath = \"keys\"", ":3:8:"),
            (
                "kind = \"directory\"\npath = \"/k\"\nmode = 7",
                "unknown field `mode`",
            ),
            (
                "kind = \"vault-kv\"\nendpoints = [\"https://a\"]",
                "says not how to log in",
            ),
            (
                "kind = \"vault-kv\"\nendpoints = []\nauth = { method = \"token\", token = \"/t\" }",
                "at least one endpoint",
            ),
            (
                "kind = \"vault-kv\"\nendpoints = [\"https://a\"]\npath = \"../up\"\nauth = { method = \"token\", token = \"/t\" }",
                "is not a path at the service",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{told:?} is not in {error:?}");
        }
        let error =
            parse(Path::new("/x"), "[key_stores.header]\nkind = \"directory\"").unwrap_err();
        assert!(error.to_string().contains("means the header"), "{error}");
    }
}
