//! A key set with `provider = "azure-keyvault"`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::azure::{
    Algorithm, ClientId, Header, Identity, KeyName, KeyUri, Platform, Settings, Tenant, Version,
    Which,
};
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;
use crate::secret::Secret;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManagedIdentity {
    #[serde(rename = "method")]
    _method: String,
    client_id: Option<Parsed<ClientId>>,
    object_id: Option<Parsed<ClientId>>,
    resource_id: Option<String>,
    platform: Option<String>,
    endpoint: Option<Parsed<PlatformUrl>>,
    header: Option<Parsed<SecretPath>>,
}

/// The address of a service of the platform.
struct PlatformUrl(BaseUrl);

impl FromStr for PlatformUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        BaseUrl::of_platform(text).map(PlatformUrl)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Federated {
    #[serde(rename = "method")]
    _method: String,
    client_id: Option<Parsed<ClientId>>,
    tenant: Option<Parsed<Tenant>>,
    token_file: Option<Parsed<SecretPath>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientSecret {
    #[serde(rename = "method")]
    _method: String,
    client_id: Parsed<ClientId>,
    tenant: Option<Parsed<Tenant>>,
    secret: Parsed<SecretPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientCertificate {
    #[serde(rename = "method")]
    _method: String,
    client_id: Parsed<ClientId>,
    tenant: Option<Parsed<Tenant>>,
    certificate: FilePath,
    key: Parsed<SecretPath>,
}

/// What the platform says in the environment of a process.
type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
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
    let identity = self::identity(reader, identity, &environment)?;
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

fn identity<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
    environment: Environment<'_>,
) -> Result<Identity, Error> {
    let at = value.span().start;
    let method = value
        .get_ref()
        .as_table()
        .and_then(|table| table.get("method"))
        .and_then(|method| method.get_ref().as_str())
        .map(str::to_owned);
    let fail = |why: String| reader.at(at, why);
    match method.as_deref() {
        Some("managed-identity") => {
            managed(reader.table(value)?, environment).map_err(fail)
        }
        Some("workload-identity") => {
            federated(reader.table(value)?, environment).map_err(fail)
        }
        Some("client-secret") => {
            let identity: ClientSecret = reader.table(value)?;
            Ok(Identity::Secret {
                client: identity.client_id.0,
                tenant: identity.tenant.map(|tenant| tenant.0),
                secret: identity.secret.0.0,
            })
        }
        Some("client-certificate") => {
            let identity: ClientCertificate = reader.table(value)?;
            Ok(Identity::Certificate {
                client: identity.client_id.0,
                tenant: identity.tenant.map(|tenant| tenant.0),
                certificate: tls::ClientCertificate {
                    certificate: identity.certificate.into(),
                    key: identity.key.0.0,
                },
            })
        }
        _ => Err(reader.at(
            at,
            "identity is a table with method = \"managed-identity\", \"workload-identity\", \"client-secret\" or \"client-certificate\"",
        )),
    }
}

fn managed(identity: ManagedIdentity, environment: Environment<'_>) -> Result<Identity, String> {
    let which = match (identity.client_id, identity.object_id, identity.resource_id) {
        (None, None, None) => Which::System,
        (Some(id), None, None) => Which::Client(id.0),
        (None, Some(id), None) => Which::Object(id.0),
        (None, None, Some(id)) => Which::Resource(id),
        _ => return Err("write one of client_id, object_id and resource_id".into()),
    };
    let told = environment("IDENTITY_ENDPOINT");
    let kind = match identity.platform {
        Some(kind) => kind,
        // As the platform's own libraries tell it.
        None if identity.endpoint.is_some() => "vm".into(),
        None if told.is_none() => "vm".into(),
        None if environment("IDENTITY_SERVER_THUMBPRINT").is_some() => {
            return Err("this is Service Fabric, whose identities sealblk cannot use: use a workload identity or a certificate".into());
        }
        None if environment("IDENTITY_HEADER").is_some() => "app-service".into(),
        None => "arc".into(),
    };
    let endpoint = |usual: Option<String>, missing: &str| match identity.endpoint {
        Some(endpoint) => Ok(endpoint.0.0),
        None => BaseUrl::of_platform(&usual.ok_or(missing)?),
    };
    let platform = match &*kind {
        "vm" => Platform::Imds {
            endpoint: endpoint(Some(Platform::IMDS.into()), "")?,
        },
        "arc" => Platform::Arc {
            endpoint: endpoint(told.or(Some(Platform::ARC.into())), "")?,
            keys: PathBuf::from(Platform::ARC_KEYS),
        },
        "app-service" => Platform::AppService {
            endpoint: endpoint(
                told,
                "there is no IDENTITY_ENDPOINT in the environment: name it as endpoint",
            )?,
            header: match (identity.header, environment("IDENTITY_HEADER")) {
                (Some(file), _) => Header::File(file.0.0),
                (None, Some(value)) => {
                    let secret = Secret::copy_of(value.as_bytes());
                    Header::Given(Arc::new(secret.map_err(|error| {
                        format!("no locked memory for IDENTITY_HEADER: {error}")
                    })?))
                }
                (None, None) => {
                    return Err("there is no IDENTITY_HEADER in the environment: name a file that has it as header".into());
                }
            },
        },
        other => {
            return Err(format!(
                "{other:?} is not a platform: write \"vm\", \"app-service\" or \"arc\""
            ));
        }
    };
    Ok(Identity::Managed { platform, which })
}

fn federated(identity: Federated, environment: Environment<'_>) -> Result<Identity, String> {
    let client = match identity.client_id {
        Some(client) => client.0,
        None => environment("AZURE_CLIENT_ID")
            .ok_or("it needs client_id, or AZURE_CLIENT_ID in the environment")?
            .parse()?,
    };
    let tenant = match (identity.tenant, environment("AZURE_TENANT_ID")) {
        (Some(tenant), _) => Some(tenant.0),
        (None, told) => told.map(|told| told.parse()).transpose()?,
    };
    let token = match (
        identity.token_file,
        environment("AZURE_FEDERATED_TOKEN_FILE"),
    ) {
        (Some(file), _) => file.0.0,
        (None, Some(path)) => SecretFile::new(path),
        (None, None) => {
            return Err(
                "it needs token_file, or AZURE_FEDERATED_TOKEN_FILE in the environment".into(),
            );
        }
    };
    Ok(Identity::Federated {
        client,
        tenant,
        token: token.readable_by_all(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file;
    use super::*;

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

    fn on(told: &[(&str, &str)], given: ManagedIdentity) -> Result<Platform, String> {
        let environment = |name: &str| {
            let found = told.iter().find(|(told, _)| *told == name)?;
            Some(found.1.to_owned())
        };
        match managed(given, &environment)? {
            Identity::Managed { platform, .. } => Ok(platform),
            other => panic!("{other:?}"),
        }
    }

    fn nothing() -> ManagedIdentity {
        ManagedIdentity {
            _method: String::new(),
            client_id: None,
            object_id: None,
            resource_id: None,
            platform: None,
            endpoint: None,
            header: None,
        }
    }

    #[test]
    fn the_platform_is_told_by_the_environment() {
        let endpoint = ("IDENTITY_ENDPOINT", "http://127.0.0.1:41741/msi/token");
        let header = ("IDENTITY_HEADER", "secret");
        assert!(
            matches!(on(&[], nothing()), Ok(Platform::Imds { endpoint }) if endpoint.to_string() == Platform::IMDS)
        );
        assert!(matches!(
            on(&[endpoint, header], nothing()),
            Ok(Platform::AppService { endpoint, header: Header::Given(secret) })
                if endpoint.port() == 41741 && **secret == *b"secret"
        ));
        let imds = ("IMDS_ENDPOINT", "http://127.0.0.1:40342");
        assert!(matches!(
            on(&[endpoint, imds], nothing()),
            Ok(Platform::Arc { .. })
        ));
        let fabric = ("IDENTITY_SERVER_THUMBPRINT", "00");
        assert!(on(&[endpoint, header, fabric], nothing()).is_err());
        // What is configured rules.
        let arc = ManagedIdentity {
            platform: Some("arc".into()),
            ..nothing()
        };
        assert!(matches!(
            on(&[], arc),
            Ok(Platform::Arc { endpoint, keys })
                if endpoint.to_string() == Platform::ARC && keys.ends_with("tokens")
        ));
        let bare = ManagedIdentity {
            platform: Some("app-service".into()),
            ..nothing()
        };
        assert!(on(&[], bare).unwrap_err().contains("IDENTITY_ENDPOINT"));
    }

    #[test]
    fn a_workload_identity_is_told_by_the_environment_too() {
        let told = |name: &str| match name {
            "AZURE_CLIENT_ID" => Some(CLIENT.to_owned()),
            "AZURE_TENANT_ID" => Some("contoso.example".to_owned()),
            "AZURE_FEDERATED_TOKEN_FILE" => Some("/var/run/token".to_owned()),
            _ => None,
        };
        let given = || Federated {
            _method: String::new(),
            client_id: None,
            tenant: None,
            token_file: None,
        };
        let Ok(Identity::Federated {
            client,
            tenant,
            token,
        }) = federated(given(), &told)
        else {
            panic!("it is complete");
        };
        assert_eq!(
            (client.as_str(), token.to_string().as_str()),
            (CLIENT, "/var/run/token")
        );
        assert!(tenant.is_some());
        assert!(
            federated(given(), &|_| None)
                .unwrap_err()
                .contains("client_id")
        );
    }
}
