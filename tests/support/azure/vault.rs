//! Key Vault and Managed HSM: keys, states, permissions, and the documented
//! errors.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::http::{Request, Response};
use super::keys::Version;
use super::{CLIENT, KEY, Kind, OFFICER, State, TENANT, b64, now, unb64, uuid};

pub struct Vault {
    pub url: String,
    /// What tokens for it are for.
    pub resource: &'static str,
    pub keys: BTreeMap<String, Vec<Version>>,
    /// With the time at which it will be purged.
    pub deleted: BTreeMap<String, (u64, Vec<Version>)>,
    /// What applications may do.
    pub permissions: BTreeMap<String, BTreeSet<&'static str>>,
    /// With roles, or with access policies.
    pub rbac: bool,
    pub recovery: &'static str,
    pub mood: Mood,
    /// How many versions are on a page.
    pub page: usize,
    /// What the challenge names, if not the truth.
    pub challenge: Option<String>,
    pub tenant: String,
}

/// What is the matter with a vault.
#[derive(Clone, Debug, Default)]
pub enum Mood {
    #[default]
    Well,
    /// With the seconds of `Retry-After`, if it is said.
    Throttling(Option<u64>),
    Failing(u16),
    Garbled,
    /// It answers another question than was asked.
    Confused,
    Firewall,
    PrivateOnly,
    /// So many more denials, as when a role is on its way.
    Forgetful(u32),
    /// It breaks connections off.
    Gone,
}

impl Vault {
    pub fn new(resource: &'static str, (kty, bits): (&str, u32)) -> Self {
        let all = [
            "get",
            "getDeleted",
            "list",
            "create",
            "update",
            "delete",
            "recover",
            "purge",
            "wrapKey",
            "unwrapKey",
            "rotate",
        ];
        let version = Version::new(kty, bits).unwrap();
        Vault {
            url: String::new(),
            resource,
            keys: BTreeMap::from([(KEY.to_owned(), vec![version])]),
            deleted: BTreeMap::new(),
            permissions: BTreeMap::from([
                (
                    CLIENT.to_owned(),
                    BTreeSet::from(["get", "wrapKey", "unwrapKey"]),
                ),
                (OFFICER.to_owned(), BTreeSet::from(all)),
            ]),
            rbac: true,
            recovery: "Recoverable",
            mood: Mood::Well,
            page: 2,
            challenge: None,
            tenant: TENANT.into(),
        }
    }

    fn is_hsm(&self) -> bool {
        self.resource.contains("managedhsm")
    }

    pub fn versions(&mut self, name: &str) -> &mut Vec<Version> {
        self.keys.get_mut(name).expect("there is such a key")
    }

    pub fn version(&mut self, id: &str) -> &mut Version {
        let mut versions = self.keys.values_mut().flatten();
        versions
            .find(|version| version.id == id)
            .expect("there is such a version")
    }

    /// The newest version.
    pub fn latest(&mut self, name: &str) -> &mut Version {
        self.versions(name).last_mut().expect("it has one")
    }

    pub fn rotate(&mut self, name: &str) {
        let like = self.latest(name);
        let (kty, created) = (like.kty.clone(), like.created);
        let bits = match &like.material {
            super::keys::Material::Rsa(key) => key.bits(),
            super::keys::Material::Aes(key) => key.len() as u32 * 8,
            super::keys::Material::Ec => 256,
        };
        let mut next = Version::new(&kty, bits).unwrap();
        // The service counts seconds, and tests are faster.
        next.created = next.created.max(created + 1);
        self.versions(name).push(next);
    }

    pub fn delete(&mut self, name: &str) {
        let versions = self.keys.remove(name).expect("there is such a key");
        let purge = now() + 90 * 86_400;
        self.deleted.insert(name.into(), (purge, versions));
    }

    pub fn recover(&mut self, name: &str) {
        let (_, versions) = self.deleted.remove(name).expect("it was deleted");
        self.keys.insert(name.into(), versions);
    }

    fn kid(&self, name: &str, version: &str) -> String {
        format!("{}/keys/{name}/{version}", self.url)
    }

    fn bundle(&self, name: &str, version: &Version) -> Value {
        json!({
            "key": version.jwk(&self.kid(name, &version.id)),
            "attributes": version.attributes(self.recovery),
            "tags": {},
        })
    }

    fn deleted_bundle(&self, name: &str) -> Option<Value> {
        let (purge, versions) = self.deleted.get(name)?;
        let mut bundle = self.bundle(name, versions.last()?);
        bundle["recoveryId"] = format!("{}/deletedkeys/{name}", self.url).into();
        bundle["deletedDate"] = now().into();
        bundle["scheduledPurgeDate"] = (*purge).into();
        Some(bundle)
    }
}

fn error(status: u16, code: &str, message: &str, inner: Option<&str>) -> Response {
    let mut error = json!({"code": code, "message": message});
    if let Some(inner) = inner {
        error["innererror"] = json!({"code": inner});
    }
    Response::json(status, &json!({"error": error}))
}

fn not_found(name: &str) -> Response {
    let message = format!(
        "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"
    );
    error(404, "KeyNotFound", &message, None)
}

fn bad(message: &str) -> Response {
    error(400, "BadParameter", message, None)
}

pub fn answer(state: &mut State, kind: Kind, request: &Request) -> Option<Response> {
    let response = match state.vault(kind).mood.clone() {
        Mood::Gone => return None,
        Mood::Failing(status) => error(status, "InternalError", "An error has occurred.", None),
        Mood::Garbled => Response {
            status: 200,
            headers: vec![("content-type", "text/html".into())],
            body: b"<html>Welcome to the hotel, please sign in</html>".to_vec(),
        },
        _ => authenticated(state, kind, request),
    };
    Some(
        response
            .with("x-ms-request-id", uuid())
            .with("x-ms-keyvault-region", "westeurope")
            .with("x-ms-keyvault-service-version", "1.9.2000.1"),
    )
}

fn authenticated(state: &mut State, kind: Kind, request: &Request) -> Response {
    let bearer = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "))
        .and_then(|token| state.tokens.get(token))
        .cloned();
    let login = state.login_url.clone();
    let vault = state.vault(kind);
    let challenge = vault.challenge.clone().unwrap_or_else(|| {
        format!(
            "Bearer authorization=\"{login}/{}\", resource=\"{}\"",
            vault.tenant, vault.resource
        )
    });
    let unauthorized = |message: &str| {
        error(401, "Unauthorized", message, None).with("www-authenticate", challenge.clone())
    };
    let token = match bearer {
        None if request.header("authorization").is_none() => {
            return unauthorized("AKV10000: Request is missing a Bearer or PoP token.");
        }
        None => {
            return unauthorized(
                "AKV10046: Unable to resolve the key used for signature validation.",
            );
        }
        Some(token) => token,
    };
    if token.ends <= now() {
        return unauthorized("[TokenExpired] Error validating token: the token is expired.");
    }
    if token.audience != vault.resource {
        return unauthorized(&format!(
            "AKV10022: Invalid audience. Expected {}, found: {}.",
            vault.resource, token.audience
        ));
    }
    if token.tenant != vault.tenant {
        return unauthorized(&format!(
            "AKV10032: Invalid issuer. Expected one of https://sts.windows.net/{}/, found https://sts.windows.net/{}/.",
            vault.tenant, token.tenant
        ));
    }
    match vault.mood {
        Mood::Firewall => error(
            403,
            "Forbidden",
            "Client address is not authorized and caller is not a trusted service.\r\nClient address: 127.0.0.1\r\nVault: disks;location=westeurope",
            Some("ForbiddenByFirewall"),
        ),
        Mood::PrivateOnly => error(
            403,
            "Forbidden",
            "Public network access is disabled and request is not from a trusted service nor via an approved private link.",
            Some("ForbiddenByConnection"),
        ),
        Mood::Throttling(after) => {
            let response = error(
                429,
                "Throttled",
                "Request was not processed because too many requests were received.",
                None,
            );
            match after {
                Some(seconds) => response.with("retry-after", seconds.to_string()),
                None => response,
            }
        }
        Mood::Forgetful(0) => {
            vault.mood = Mood::Well;
            route(vault, &token.client, request)
        }
        Mood::Forgetful(times) => {
            vault.mood = Mood::Forgetful(times - 1);
            denied(vault, &token.client, "get")
        }
        _ => route(vault, &token.client, request),
    }
}

fn denied(vault: &Vault, client: &str, permission: &str) -> Response {
    if !vault.rbac {
        let message = format!(
            "The user, group or application 'appid={client};oid={client};iss=https://sts.windows.net/{TENANT}/' does not have keys {permission} permission on key vault 'disks;location=westeurope'. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287"
        );
        return error(403, "Forbidden", &message, Some("AccessDenied"));
    }
    let action = match permission {
        "wrapKey" => "wrap/action",
        "unwrapKey" => "unwrap/action",
        "get" | "list" => "read",
        other => other,
    };
    let message = format!(
        "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were changed recently, please observe propagation time.\r\nCaller: appid={client};oid={client};iss=https://sts.windows.net/{TENANT}/\r\nAction: 'Microsoft.KeyVault/vaults/keys/{action}'\r\nAssignment: (not found)\r\nDecisionReason: null\r\nVault: disks;location=westeurope\r\n"
    );
    error(403, "Forbidden", &message, Some("ForbiddenByRbac"))
}

fn route(vault: &mut Vault, client: &str, request: &Request) -> Response {
    let api = request.param("api-version").unwrap_or_default();
    let known = [
        "7.0",
        "7.1",
        "7.2",
        "7.3",
        "7.4",
        "7.5",
        "7.6",
        "2025-07-01",
    ];
    if !known.contains(&api) {
        return bad(&format!(
            "The specified version ({api}) is not recognized. Consider using the latest supported version (2025-07-01)."
        ));
    }
    let segments: Vec<&str> = request
        .path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let permission = match (request.method.as_str(), &segments[..]) {
        ("GET", ["keys", _, "versions"]) => "list",
        // An HSM has a permission of its own for that.
        ("GET", ["deletedkeys", ..]) if vault.is_hsm() => "getDeleted",
        ("GET", ["keys" | "deletedkeys", ..]) => "get",
        ("POST", ["keys", _, "create"]) => "create",
        ("POST", ["keys", _, "rotate"]) => "rotate",
        ("POST", ["keys", _, _, "wrapkey"]) => "wrapKey",
        ("POST", ["keys", _, _, "unwrapkey"]) => "unwrapKey",
        ("PATCH", ["keys", ..]) => "update",
        ("DELETE", ["keys", _]) => "delete",
        ("DELETE", ["deletedkeys", _]) => "purge",
        ("POST", ["deletedkeys", _, "recover"]) => "recover",
        _ => return error(405, "NotSupported", "The method is not allowed.", None),
    };
    let may = vault.permissions.get(client);
    if !may.is_some_and(|may| may.contains(permission)) {
        return denied(vault, client, permission);
    }
    let name = segments.get(1).copied().unwrap_or_default().to_owned();
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    match permission {
        "create" => return create(vault, &name, &body),
        "purge" => {
            return match vault.deleted.remove(&name) {
                Some(_) => Response {
                    status: 204,
                    headers: vec![],
                    body: vec![],
                },
                None => not_found(&name),
            };
        }
        "recover" => {
            if !vault.deleted.contains_key(&name) {
                return not_found(&name);
            }
            vault.recover(&name);
            let latest = vault.keys[&name].last().expect("it has one");
            return Response::json(200, &vault.bundle(&name, latest));
        }
        _ if segments[0] == "deletedkeys" => {
            return match vault.deleted_bundle(&name) {
                Some(bundle) => Response::json(200, &bundle),
                None => not_found(&name),
            };
        }
        _ if !vault.keys.contains_key(&name) => return not_found(&name),
        "list" => return list(vault, &name, request),
        "rotate" => {
            vault.rotate(&name);
            let latest = vault.keys[&name].last().expect("it has one");
            return Response::json(200, &vault.bundle(&name, latest));
        }
        "delete" => {
            vault.delete(&name);
            let bundle = vault.deleted_bundle(&name).expect("it was just deleted");
            return Response::json(200, &bundle);
        }
        _ => {}
    }
    let versions = &vault.keys[&name];
    let found = match segments.get(2) {
        None => versions.len().checked_sub(1),
        Some(id) => versions.iter().position(|version| version.id == **id),
    };
    let Some(place) = found else {
        return not_found(&format!("{name}/{}", segments[2]));
    };
    match permission {
        "update" => {
            let version = &mut vault.versions(&name)[place];
            if let Some(enabled) = body["attributes"]["enabled"].as_bool() {
                version.enabled = enabled;
            }
            version.exp = body["attributes"]["exp"].as_u64().or(version.exp);
            version.nbf = body["attributes"]["nbf"].as_u64().or(version.nbf);
            if let Some(ops) = body["key_ops"].as_array() {
                version.ops = ops
                    .iter()
                    .filter_map(|op| op.as_str().map(str::to_owned))
                    .collect();
            }
            Response::json(200, &vault.bundle(&name, &vault.keys[&name][place]))
        }
        "get" => Response::json(200, &vault.bundle(&name, &versions[place])),
        operation => operate(vault, &name, place, operation, api, &body),
    }
}

fn create(vault: &mut Vault, name: &str, body: &Value) -> Response {
    if vault.deleted.contains_key(name) {
        let message = format!(
            "Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the key can only be recovered or purged."
        );
        return error(
            409,
            "Conflict",
            &message,
            Some("ObjectIsDeletedButRecoverable"),
        );
    }
    let kty = body["kty"].as_str().unwrap_or_default();
    let bits = body["key_size"].as_u64().unwrap_or(match kty {
        "oct-HSM" => 256,
        _ => 2048,
    });
    let Some(mut version) = Version::new(kty, u32::try_from(bits).unwrap_or_default()) else {
        return bad("Property has invalid value: kty");
    };
    version.exp = body["attributes"]["exp"].as_u64();
    version.nbf = body["attributes"]["nbf"].as_u64();
    version.enabled = body["attributes"]["enabled"].as_bool().unwrap_or(true);
    let versions = vault.keys.entry(name.to_owned()).or_default();
    if let Some(before) = versions.last() {
        version.created = version.created.max(before.created + 1);
    }
    versions.push(version);
    let latest = vault.keys[name].last().expect("it has one");
    Response::json(200, &vault.bundle(name, latest))
}

fn list(vault: &Vault, name: &str, request: &Request) -> Response {
    let versions = &vault.keys[name];
    let asked = request.param("maxresults").and_then(|max| max.parse().ok());
    let page: usize = asked.unwrap_or(vault.page);
    let from: usize = request
        .param("$skiptoken")
        .and_then(|token| token.parse().ok())
        .unwrap_or(0);
    let items: Vec<Value> = versions
        .iter()
        .skip(from)
        .take(page)
        .map(|version| {
            json!({
                "kid": vault.kid(name, &version.id),
                "attributes": version.attributes(vault.recovery),
            })
        })
        .collect();
    let next = (from + page < versions.len()).then(|| {
        format!(
            "{}/keys/{name}/versions?api-version={}&$skiptoken={}",
            vault.url,
            request.param("api-version").unwrap_or_default(),
            from + page
        )
    });
    Response::json(200, &json!({"value": items, "nextLink": next}))
}

fn operate(
    vault: &Vault,
    name: &str,
    place: usize,
    operation: &str,
    api: &str,
    body: &Value,
) -> Response {
    let version = &vault.keys[name][place];
    let not_allowed = |on: &str, inner: &str| {
        let message = format!("Operation {operation} is not allowed on {on} key.");
        error(403, "Forbidden", &message, Some(inner))
    };
    if !version.ops.iter().any(|op| op == operation) {
        let message = format!("Operation {operation} is not permitted on this key.");
        return error(403, "Forbidden", &message, Some("KeyOperationForbidden"));
    }
    // A disabled key wraps, and does not unwrap; one outside of its time
    // unwraps, and does not wrap.
    if operation == "unwrapKey" && !version.enabled {
        return not_allowed("a disabled", "KeyDisabled");
    }
    if operation == "wrapKey" && version.exp.is_some_and(|end| end <= now()) {
        return not_allowed("an expired", "KeyExpired");
    }
    if operation == "wrapKey" && version.nbf.is_some_and(|start| start > now()) {
        return not_allowed("a not yet valid", "KeyNotYetValid");
    }
    let alg = body["alg"].as_str().unwrap_or_default();
    if alg.starts_with("CKM_") && api != "2025-07-01" {
        return bad(&format!("Property has invalid value: alg {alg}"));
    }
    let Some(value) = body["value"].as_str().and_then(unb64) else {
        return bad("Property has invalid value: value");
    };
    let done = match operation {
        "wrapKey" => version.wrap(alg, &value),
        _ => version.unwrap(alg, &value),
    };
    match done {
        Some(done) => {
            let kid = match vault.mood {
                Mood::Confused => vault.kid("another", &version.id),
                _ => vault.kid(name, &version.id),
            };
            Response::json(200, &json!({"kid": kid, "value": b64(&done)}))
        }
        None => bad("The parameter is incorrect."),
    }
}
