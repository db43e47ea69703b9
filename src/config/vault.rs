//! A key set with `provider = "vault"`.
#![forbid(unsafe_code)]

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::credential::SecretFile;
use crate::kms::http::BaseUrl;
use crate::kms::tls;
use crate::kms::vault::{self, Auth, KeyName, MountPath, RoleId, Settings};

/// Where kubelet puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// All but `auth`, of which there are several kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VaultKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    endpoints: Spanned<Vec<Parsed<BaseUrl>>>,
    key: Parsed<KeyName>,
    version: Option<Spanned<String>>,
    mount: Option<Parsed<MountPath>>,
    namespace: Option<Parsed<MountPath>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenAuth {
    #[serde(rename = "method")]
    _method: String,
    token: Parsed<SecretPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppRoleAuth {
    #[serde(rename = "method")]
    _method: String,
    mount: Option<Parsed<MountPath>>,
    role_id: Option<String>,
    role_id_file: Option<Parsed<SecretPath>>,
    secret_id: Parsed<SecretPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateAuth {
    #[serde(rename = "method")]
    _method: String,
    mount: Option<Parsed<MountPath>>,
    role: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtAuth {
    #[serde(rename = "method")]
    _method: String,
    mount: Option<Parsed<MountPath>>,
    role: String,
    token: Option<Parsed<SecretPath>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    mut value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let auth = take_auth(&mut value);
    let set: VaultKeySet = reader.table(value)?;
    let tls = service::tls(reader, set.ca_file, set.client_cert, set.client_key)?;
    let auth = login(reader, at, auth, &tls)?;
    let endpoints = endpoints(reader, set.endpoints)?;
    let version = match set.version {
        Some(version) if version.get_ref() != "latest" => {
            vault::version(version.get_ref())
                .map_err(|why| reader.at(version.span().start, format!("{why}, or \"latest\"")))?;
            Some(version.into_inner())
        }
        _ => None,
    };
    let settings = Settings {
        endpoints,
        namespace: set.namespace.map(|parsed| parsed.0),
        mount: mount(reader, at, set.mount, "transit")?,
        auth,
        tls,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    };
    let source = Source::Vault {
        key: set.key.0,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, version))
}

/// Takes the table `auth`, of which there are several kinds, out of `value`.
pub(super) fn take_auth<'a>(value: &mut Spanned<DeValue<'a>>) -> Option<Spanned<DeValue<'a>>> {
    match value.get_mut() {
        DeValue::Table(table) => table.remove("auth"),
        _ => None,
    }
}

/// How to log in, from what [`take_auth`] took out of the table at `at`.
pub(super) fn login<'a>(
    reader: &Reader<'a>,
    at: usize,
    auth: Option<Spanned<DeValue<'a>>>,
    tls: &tls::Settings,
) -> Result<Auth, Error> {
    let Some(auth) = auth else {
        return Err(reader.at(
            at,
            "it says not how to log in: add auth = { method = \"approle\", … }",
        ));
    };
    let auth_at = auth.span().start;
    let auth = self::auth(reader, auth)?;
    if matches!(auth, Auth::Certificate { .. }) && tls.client.is_none() {
        return Err(reader.at(
            auth_at,
            "method \"cert\" needs client_cert and client_key beside it",
        ));
    }
    Ok(auth)
}

/// The endpoints, of which there has to be one.
pub(super) fn endpoints(
    reader: &Reader<'_>,
    endpoints: Spanned<Vec<Parsed<BaseUrl>>>,
) -> Result<Vec<BaseUrl>, Error> {
    let at = endpoints.span().start;
    let endpoints = endpoints.into_inner();
    match endpoints.is_empty() {
        true => Err(reader.at(at, "name at least one endpoint")),
        false => Ok(endpoints.into_iter().map(|parsed| parsed.0).collect()),
    }
}

fn auth<'a>(reader: &Reader<'a>, value: Spanned<DeValue<'a>>) -> Result<Auth, Error> {
    let at = value.span().start;
    let method = value
        .get_ref()
        .as_table()
        .and_then(|table| table.get("method"))
        .and_then(|method| method.get_ref().as_str())
        .map(str::to_owned);
    let own = |given| mount(reader, at, given, method.as_deref().unwrap_or_default());
    match method.as_deref() {
        Some("token") => {
            let auth: TokenAuth = reader.table(value)?;
            Ok(Auth::Token(auth.token.0.0))
        }
        Some("approle") => {
            let auth: AppRoleAuth = reader.table(value)?;
            let role_id = match (auth.role_id, auth.role_id_file) {
                (Some(id), None) => RoleId::Plain(id),
                (None, Some(file)) => RoleId::File(file.0.0),
                _ => {
                    return Err(reader.at(at, "write either role_id or role_id_file"));
                }
            };
            Ok(Auth::AppRole {
                mount: own(auth.mount)?,
                role_id,
                secret_id: auth.secret_id.0.0,
            })
        }
        Some("cert") => {
            let auth: CertificateAuth = reader.table(value)?;
            Ok(Auth::Certificate {
                mount: own(auth.mount)?,
                role: auth.role,
            })
        }
        Some(kind @ ("kubernetes" | "jwt")) => {
            let auth: JwtAuth = reader.table(value)?;
            let token = match (auth.token, kind) {
                (Some(token), _) => token.0.0,
                (None, "kubernetes") => SecretFile::new(SERVICE_ACCOUNT_TOKEN),
                (None, _) => return Err(reader.at(at, "method \"jwt\" needs token, the path of a file")),
            };
            Ok(Auth::Jwt {
                mount: own(auth.mount)?,
                role: auth.role,
                token: token.readable_by_all(),
            })
        }
        _ => Err(reader.at(
            at,
            "auth is a table with method = \"token\", \"approle\", \"cert\", \"kubernetes\" or \"jwt\"",
        )),
    }
}

/// A mount that was given, or the usual one.
pub(super) fn mount(
    reader: &Reader<'_>,
    at: usize,
    given: Option<Parsed<MountPath>>,
    usual: &str,
) -> Result<MountPath, Error> {
    match given {
        Some(mount) => Ok(mount.0),
        None => usual.parse().map_err(|why: String| reader.at(at, why)),
    }
}
