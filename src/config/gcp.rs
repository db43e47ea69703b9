//! A key set with `provider = "gcp-kms"`.
#![forbid(unsafe_code)]

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::gcp::{self, Account, Auth, ENDPOINT, KeyName, METADATA_SERVER, Settings};
use crate::kms::http::BaseUrl;

/// Says where the metadata server is, to all clients of Google's cloud.
const METADATA_VARIABLE: &str = "GCE_METADATA_HOST";

/// The metadata server by name: the address is the same in each network, and
/// the name service need not be trusted for it.
const METADATA_NAME: &str = "metadata.google.internal";

/// All but `auth`, of which there are two kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GcpKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    key: Spanned<String>,
    version: Option<Spanned<String>>,
    endpoints: Option<Spanned<Vec<Parsed<BaseUrl>>>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<service::Wait>>,
    deadline: Option<Spanned<Parsed<service::Wait>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetadataAuth {
    #[serde(rename = "method")]
    _method: String,
    account: Option<Parsed<Account>>,
    server: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAuth {
    #[serde(rename = "method")]
    _method: String,
    credentials: Parsed<SecretPath>,
    #[serde(default)]
    trusted_hosts: Vec<Spanned<String>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    mut value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let auth = match value.get_mut() {
        DeValue::Table(table) => table.remove("auth"),
        _ => None,
    };
    let set: GcpKeySet = reader.table(value)?;
    let auth = match auth {
        Some(auth) => self::auth(reader, auth)?,
        None => Auth::Metadata {
            server: metadata_server(reader, at, None)?,
            account: None,
        },
    };
    let endpoints = match set.endpoints {
        None => vec![ENDPOINT.parse().map_err(|why: String| reader.at(at, why))?],
        Some(endpoints) if endpoints.get_ref().is_empty() => {
            return Err(reader.at(
                endpoints.span().start,
                "name at least one endpoint, or leave endpoints out",
            ));
        }
        Some(endpoints) => {
            let endpoints = endpoints.into_inner().into_iter();
            endpoints.map(|parsed| parsed.0).collect()
        }
    };
    let (key, version) = key(reader, &set.key, set.version.as_ref())?;
    let settings = Settings {
        endpoints,
        auth,
        tls: service::tls(reader, set.ca_file, set.client_cert, set.client_key)?,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    };
    let source = Source::Gcp {
        key,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, version))
}

/// The key, and the version to stay with: either may name that.
fn key(
    reader: &Reader<'_>,
    key: &Spanned<String>,
    version: Option<&Spanned<String>>,
) -> Result<(KeyName, Option<String>), Error> {
    let wrong = |at: &Spanned<String>, why: String| reader.at(at.span().start, why);
    let (name, within) = match key.get_ref().split_once("/cryptoKeyVersions/") {
        Some((name, within)) => (name, Some(within)),
        None => (key.get_ref().as_str(), None),
    };
    let name: KeyName = name.parse().map_err(|why| wrong(key, why))?;
    let beside = version.filter(|version| version.get_ref() != "latest");
    let (at, pinned) = match (within, version, beside) {
        (Some(within), None, _) => (key, within),
        (Some(_), Some(version), _) => {
            let why = "the key names a version already: leave out one of both";
            return Err(wrong(version, why.into()));
        }
        (None, _, Some(version)) => (version, version.get_ref().as_str()),
        (None, _, None) => return Ok((name, None)),
    };
    gcp::version(pinned).map_err(|why| wrong(at, format!("{why}, or \"latest\"")))?;
    Ok((name, Some(pinned.to_owned())))
}

fn auth<'a>(reader: &Reader<'a>, value: Spanned<DeValue<'a>>) -> Result<Auth, Error> {
    let at = value.span().start;
    let method = value
        .get_ref()
        .as_table()
        .and_then(|table| table.get("method"))
        .and_then(|method| method.get_ref().as_str());
    match method {
        Some("metadata") => {
            let auth: MetadataAuth = reader.table(value)?;
            Ok(Auth::Metadata {
                server: metadata_server(reader, at, auth.server)?,
                account: auth.account.map(|parsed| parsed.0),
            })
        }
        Some("file") => {
            let auth: FileAuth = reader.table(value)?;
            let hosts = auth.trusted_hosts.into_iter();
            let hosts: Result<_, Error> = hosts.map(|host| trusted_host(reader, host)).collect();
            Ok(Auth::File {
                credentials: auth.credentials.0.0,
                trusted_hosts: hosts?,
            })
        }
        _ => Err(reader.at(at, "auth is a table with method = \"metadata\" or \"file\"")),
    }
}

/// The metadata server that is configured, or the usual one.
fn metadata_server(
    reader: &Reader<'_>,
    at: usize,
    given: Option<Spanned<String>>,
) -> Result<BaseUrl, Error> {
    let (at, text, whence) = match given {
        Some(given) => (given.span().start, given.into_inner(), ""),
        None => match std::env::var(METADATA_VARIABLE) {
            Ok(text) if !text.is_empty() => (at, text, "GCE_METADATA_HOST: "),
            _ => (at, METADATA_SERVER.to_owned(), ""),
        },
    };
    let address = match text.strip_prefix(METADATA_NAME) {
        Some(port) => format!("{METADATA_SERVER}{port}"),
        None => text,
    };
    BaseUrl::link_local(&address).map_err(|why| reader.at(at, format!("{whence}{why}")))
}

/// The name of a host, as it stands in an address.
fn trusted_host(reader: &Reader<'_>, host: Spanned<String>) -> Result<String, Error> {
    let at = host.span().start;
    let url: Option<BaseUrl> = format!("https://{}", host.get_ref()).parse().ok();
    match url {
        Some(url) if url.host() == host.get_ref() => Ok(host.into_inner()),
        _ => Err(reader.at(
            at,
            format!(
                "{:?} is not the name of a host: write it in lower case, without https:// and port",
                host.get_ref()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file;
    use crate::kms::credential::SecretFile;

    const KEY: &str = "projects/p/locations/global/keyRings/r/cryptoKeys/k";

    fn read(settings: &str) -> Result<Definition, String> {
        let text = format!("[key_sets.prod]\nprovider = \"gcp-kms\"\n{settings}");
        let config = file::parse(Path::new("sealblk.toml"), &text);
        let mut sets = config.map_err(|error| error.to_string())?.key_sets;
        Ok(sets.remove("prod").unwrap())
    }

    fn settings(text: &str) -> (Settings, Option<String>) {
        let definition = read(text).unwrap();
        let Source::Gcp { key, settings } = definition.source else {
            panic!("it is another provider");
        };
        assert_eq!(key.as_str(), KEY);
        (*settings, definition.version)
    }

    #[test]
    fn a_key_alone_is_enough_on_a_machine_of_the_cloud() {
        let (plain, version) = settings(&format!("key = {KEY:?}"));
        assert_eq!(version, None);
        assert_eq!(plain.endpoints[0].to_string(), ENDPOINT);
        let Auth::Metadata { server, account } = plain.auth else {
            panic!("it is another method");
        };
        assert_eq!((server.host(), account), (METADATA_SERVER, None));
    }

    #[test]
    fn all_that_can_be_configured_is_taken() {
        let (full, version) = settings(&format!(
            "key = \"{KEY}/cryptoKeyVersions/3\"\n\
             endpoints = [\"https://cloudkms.europe-west3.rep.googleapis.com\", \"https://kms.psc.example:444\"]\n\
             auth = {{ method = \"file\", credentials = \"/etc/sealblk/gcp.json\", trusted_hosts = [\"sts.example\"] }}\n\
             ca_file = \"/etc/ca.pem\"\ntimeout = \"2s\"\ndeadline = \"9s\""
        ));
        assert_eq!(version.as_deref(), Some("3"));
        assert_eq!(full.endpoints.len(), 2);
        assert_eq!(
            full.auth,
            Auth::File {
                credentials: SecretFile::new("/etc/sealblk/gcp.json"),
                trusted_hosts: vec!["sts.example".into()],
            }
        );
        let account = "host@p.iam.gserviceaccount.com";
        let (named, version) = settings(&format!(
            "key = {KEY:?}\nversion = \"12\"\nauth = {{ method = \"metadata\", account = {account:?}, server = \"metadata.google.internal:80\" }}"
        ));
        assert_eq!(version.as_deref(), Some("12"));
        let Auth::Metadata { server, account } = named.auth else {
            panic!("it is another method");
        };
        assert_eq!(server.host(), METADATA_SERVER);
        assert!(account.is_some());
        let (_, version) = settings(&format!("key = {KEY:?}\nversion = \"latest\""));
        assert_eq!(version, None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let key = format!("key = {KEY:?}\n");
        for (text, place, why) in [
            ("key = \"disks\"".to_owned(), ":3:7", "projects/PROJECT"),
            (
                format!("key = \"{KEY}/cryptoKeyVersions/x\""),
                ":3:7",
                "versions are 1, 2, 3",
            ),
            (
                format!("key = \"{KEY}/cryptoKeyVersions/1\"\nversion = \"1\""),
                ":4:11",
                "already",
            ),
            (format!("{key}version = \"v1\""), ":4:11", "latest"),
            (format!("{key}endpoints = []"), ":4:13", "at least one"),
            (
                format!("{key}endpoints = [\"http://kms.example\"]"),
                ":4:14",
                "write https",
            ),
            (
                format!("{key}auth = {{ method = \"magic\" }}"),
                ":4:8",
                "metadata",
            ),
            (
                format!("{key}auth = {{ method = \"file\" }}"),
                ":4:",
                "credentials",
            ),
            (
                format!("{key}auth = {{ method = \"metadata\", server = \"10.0.0.1\" }}"),
                ":4:40",
                "link-local",
            ),
            (
                format!(
                    "{key}auth = {{ method = \"metadata\", server = \"metadata.google.internal.example\" }}"
                ),
                ":4:40",
                "link-local",
            ),
            (
                format!("{key}auth = {{ method = \"metadata\", account = \"me/..\" }}"),
                ":4:",
                "service account",
            ),
            (
                format!(
                    "{key}auth = {{ method = \"file\", credentials = \"/x\", trusted_hosts = [\"https://x\"] }}"
                ),
                ":4:",
                "name of a host",
            ),
            (format!("{key}surprise = 1"), ":4:", "surprise"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(
                error.contains(why) && error.contains(place),
                "{text}: {error}"
            );
        }
    }
}
