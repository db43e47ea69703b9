//! A key set with `provider = "azure-keyvault"`, and in `identity` who we are.
#![forbid(unsafe_code)]

mod identity;

use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::azure::{Algorithm, KeyName, KeyUri, Settings, Version};
use crate::kms::http::BaseUrl;

/// All but `identity`, of which there are several kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AzureKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    vault: Option<Spanned<Parsed<BaseUrl>>>,
    key: Spanned<Parsed<Named>>,
    version: Option<Spanned<String>>,
    authority: Option<Parsed<BaseUrl>>,
    resource: Option<Parsed<BaseUrl>>,
    algorithm: Option<Algorithm>,
    retry_forbidden: Option<Parsed<Wait>>,
    ca_file: Option<FilePath>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// A key by its name alone, or by its whole identifier.
enum Named {
    Name(KeyName),
    Uri(KeyUri),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains("://") {
            true => text.parse().map(Named::Uri),
            false => text.parse().map(Named::Name),
        }
    }
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    mut value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let identity = match value.get_mut() {
        DeValue::Table(table) => table.remove("identity"),
        _ => None,
    };
    let set: AzureKeySet = reader.table(value)?;
    let Some(identity) = identity else {
        return Err(reader.at(
            at,
            "it says not who we are: add identity = { method = \"managed-identity\" }, or another method",
        ));
    };
    let identity = identity::identity(reader, identity)?;
    let key_at = set.key.span().start;
    let (vault, key, named) = match (set.key.into_inner().0, set.vault) {
        (Named::Name(key), Some(vault)) => (vault.into_inner().0, key, None),
        (Named::Name(_), None) => {
            return Err(reader.at(
                key_at,
                "it names no vault: add vault = \"https://NAME.vault.azure.net\"",
            ));
        }
        (Named::Uri(uri), vault) => {
            if let Some(vault) = vault
                && vault.get_ref().0 != uri.vault
            {
                return Err(reader.at(
                    vault.span().start,
                    "the key is in another vault: leave vault out",
                ));
            }
            (uri.vault, uri.name, uri.version)
        }
    };
    let version = match (set.version, named) {
        (Some(version), Some(_)) => {
            return Err(reader.at(
                version.span().start,
                "the key names its version already: leave version out, or the version in key",
            ));
        }
        (Some(version), None) if version.get_ref() != "latest" => {
            let parsed: Result<Version, String> = version.get_ref().parse();
            parsed
                .map_err(|why| reader.at(version.span().start, format!("{why}, or \"latest\"")))?;
            Some(version.into_inner())
        }
        (_, named) => named.map(|version| version.to_string()),
    };
    let settings = Settings {
        vault,
        identity,
        authority: set.authority.map(|parsed| parsed.0),
        resource: set.resource.map(|parsed| parsed.0.to_string()),
        algorithm: set.algorithm,
        retry_forbidden: set.retry_forbidden.map(|wait| wait.0.get()),
        tls: service::tls(reader, set.ca_file, None, None)?,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    };
    let source = Source::AzureKeyvault {
        key,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, version))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::file;
    use super::*;
    use crate::kms::azure::{Identity, Tenant};

    const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
    const VERSION: &str = "0123456789abcdef0123456789abcdef";
    const MANAGED: &str = "identity = { method = \"managed-identity\", platform = \"vm\" }";

    fn read(settings: &str) -> Result<Definition, String> {
        let text = format!("[key_sets.prod]\nprovider = \"azure-keyvault\"\n{settings}\n");
        file::parse(Path::new("test.toml"), &text)
            .map_err(|error| error.to_string())
            .map(|mut config| config.key_sets.remove("prod").unwrap())
    }

    fn settings(definition: &Definition) -> &Settings {
        match &definition.source {
            Source::AzureKeyvault { settings, .. } => settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_named_by_name_or_by_its_whole_identifier() {
        let by_name = read(&format!(
            "vault = \"https://v.vault.azure.net\"\nkey = \"disks\"\n{MANAGED}"
        ))
        .unwrap();
        assert_eq!(
            by_name.source.key_id().as_deref(),
            Some("https://v.vault.azure.net/keys/disks")
        );
        assert_eq!(by_name.version, None);
        let uri = format!("key = \"https://v.vault.azure.net/keys/disks/{VERSION}\"\n{MANAGED}");
        let pinned = read(&uri).unwrap();
        assert_eq!(pinned.version.as_deref(), Some(VERSION));
        assert_eq!(pinned.source, by_name.source);
        let also = read(&format!(
            "key = \"https://v.vault.azure.net/keys/disks\"\nversion = \"{VERSION}\"\n{MANAGED}"
        ));
        assert_eq!(also.unwrap(), pinned);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let vault = "vault = \"https://v.vault.azure.net\"";
        for (bad, why) in [
            (format!("key = \"disks\"\n{MANAGED}"), "names no vault"),
            (
                format!("{vault}\nkey = \"https://w.vault.azure.net/keys/disks\"\n{MANAGED}"),
                "another vault",
            ),
            (
                format!(
                    "key = \"https://v.vault.azure.net/keys/k/{VERSION}\"\nversion = \"latest\"\n{MANAGED}"
                ),
                "names its version already",
            ),
            (
                format!("{vault}\nkey = \"k\"\nversion = \"7\"\n{MANAGED}"),
                "or \"latest\"",
            ),
            (
                format!("{vault}\nkey = \"a_b\"\n{MANAGED}"),
                "is not the name",
            ),
            (format!("{vault}\nkey = \"k\""), "who we are"),
            (
                format!("{vault}\nkey = \"k\"\nidentity = {{ method = \"password\" }}"),
                "is a table with method",
            ),
            (
                format!("{vault}\nkey = \"k\"\nalgorithm = \"RSA1_5\"\n{MANAGED}"),
                "RSA1_5",
            ),
            (
                format!("vault = \"http://v.vault.azure.net\"\nkey = \"k\"\n{MANAGED}"),
                "without TLS",
            ),
            (
                format!(
                    "{vault}\nkey = \"k\"\nidentity = {{ method = \"client-secret\", client_id = \"{CLIENT}\", secret = \"hunter2\" }}"
                ),
                "absolute path",
            ),
            (
                format!(
                    "{vault}\nkey = \"k\"\nidentity = {{ method = \"client-secret\", client_id = \"me\", secret = \"/s\" }}"
                ),
                "is not an id",
            ),
            (
                format!(
                    "{vault}\nkey = \"k\"\nidentity = {{ method = \"managed-identity\", platform = \"vm\", client_id = \"{CLIENT}\", resource_id = \"/x\" }}"
                ),
                "one of client_id",
            ),
            (
                format!(
                    "{vault}\nkey = \"k\"\nidentity = {{ method = \"managed-identity\", platform = \"vm\", endpoint = \"http://evil.example\" }}"
                ),
                "without TLS",
            ),
        ] {
            let error = read(&bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn each_setting_arrives() {
        let definition = read(&format!(
            r#"
            vault = "https://h.managedhsm.azure.net"
            key = "disks"
            algorithm = "CKM_AES_KEY_WRAP_PAD"
            authority = "https://login.example"
            resource = "https://managedhsm.example"
            retry_forbidden = "60s"
            ca_file = "/ca.pem"
            timeout = "3s"
            identity = {{ method = "client-certificate", client_id = "{CLIENT}", tenant = "contoso.example", certificate = "/c.pem", key = "/c.key" }}
            "#
        ))
        .unwrap();
        let settings = settings(&definition);
        assert_eq!(settings.algorithm, Some(Algorithm::CkmAesKeyWrapPad));
        assert_eq!(
            settings.resource.as_deref(),
            Some("https://managedhsm.example")
        );
        assert_eq!(
            settings.retry_forbidden.map(|time| time.as_secs()),
            Some(60)
        );
        assert_eq!(settings.timing.timeout.as_secs(), 3);
        assert_eq!(settings.tls.ca_files, [PathBuf::from("/ca.pem")]);
        let Identity::Certificate { tenant, .. } = &settings.identity else {
            panic!("{:?}", settings.identity);
        };
        assert_eq!(tenant.as_ref().map(Tenant::as_str), Some("contoso.example"));
    }
}
