//! Who we are at Azure: from the configuration, and from what a platform says
//! in the environment of its processes.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use crate::config::error::Error;
use crate::config::file::Reader;
use crate::config::service::{Parsed, SecretPath};
use crate::config::values::FilePath;
use crate::kms::azure::{ClientId, Header, Identity, Platform, Tenant, Which};
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;
use crate::secret::Secret;

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

/// The identity that `value` describes.
pub(super) fn identity<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
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
            managed(reader.table(value)?, &environment).map_err(fail)
        }
        Some("workload-identity") => {
            federated(reader.table(value)?, &environment).map_err(fail)
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
    use super::*;

    const CLIENT: &str = "11111111-2222-3333-4444-555555555555";

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
