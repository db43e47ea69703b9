//! The authority: who gives out tokens to applications that show a secret, a
//! signature of their certificate, or the token of another issuer.

use std::collections::{BTreeMap, BTreeSet};

use openssl::hash::{MessageDigest, hash};
use openssl::rsa::Padding;
use openssl::sign::Verifier;
use openssl::x509::X509;
use serde_json::{Value, json};

use super::http::{Request, Response};
use super::{CLIENT, OFFICER, State, TENANT, b64, now, unb64, uuid};

pub const SECRET: &str = "Qx8~not-a-real-secret-0123456789abcdef";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// An application.
#[derive(Default)]
pub struct Principal {
    pub secrets: BTreeSet<String>,
    /// Secrets that were good once.
    pub expired: BTreeSet<String>,
    pub certificates: Vec<X509>,
    /// Tokens of another issuer that it trusts.
    pub federated: BTreeSet<String>,
    pub disabled: bool,
    /// Assertions that were shown already.
    shown: BTreeSet<String>,
}

/// What is the matter with the authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    Throttling,
    Failing,
    Garbled,
}

#[derive(Clone)]
pub struct Token {
    pub client: String,
    pub audience: String,
    pub tenant: String,
    pub ends: u64,
}

pub fn principals() -> BTreeMap<String, Principal> {
    let with_secret = || Principal {
        secrets: BTreeSet::from([SECRET.to_owned()]),
        ..Principal::default()
    };
    BTreeMap::from([
        (CLIENT.to_owned(), with_secret()),
        (OFFICER.to_owned(), with_secret()),
    ])
}

impl State {
    /// A new token, of the form that they have.
    pub fn grant(&mut self, client: &str, audience: &str, tenant: &str) -> (String, u64) {
        let ends = now() + self.lifetime;
        let header = json!({"alg": "RS256", "typ": "JWT"});
        let claims = json!({
            "aud": audience,
            "iss": format!("https://sts.windows.net/{tenant}/"),
            "appid": client,
            "oid": client,
            "tid": tenant,
            "exp": ends,
            "uti": uuid(),
        });
        let part = |value: &Value| b64(value.to_string().as_bytes());
        let text = format!(
            "{}.{}.{}",
            part(&header),
            part(&claims),
            b64(uuid().as_bytes())
        );
        let token = Token {
            client: client.into(),
            audience: audience.into(),
            tenant: tenant.into(),
            ends,
        };
        self.tokens.insert(text.clone(), token);
        (text, ends)
    }
}

fn refused(status: u16, error: &str, code: u32, text: &str) -> Response {
    Response::json(
        status,
        &json!({
            "error": error,
            "error_description": format!("AADSTS{code}: {text} Trace ID: {} Correlation ID: {} Timestamp: 2026-01-01 00:00:00Z", uuid(), uuid()),
            "error_codes": [code],
            "timestamp": "2026-01-01 00:00:00Z",
            "trace_id": uuid(),
            "correlation_id": uuid(),
            "error_uri": format!("https://login.microsoftonline.com/error?code={code}"),
        }),
    )
}

pub fn answer(state: &mut State, request: &Request) -> Option<Response> {
    match state.login {
        Mood::Well => {}
        Mood::Throttling => {
            let body = json!({"error": "temporarily_unavailable", "error_description": "too many"});
            return Some(Response::json(429, &body).with("retry-after", "7"));
        }
        Mood::Failing => return Some(Response::json(503, &json!({}))),
        Mood::Garbled => {
            return Some(Response {
                status: 200,
                headers: vec![],
                body: b"<html>".to_vec(),
            });
        }
    }
    let segments: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    let base = &state.login_url;
    Some(match segments[..] {
        [tenant, "v2.0", ".well-known", "openid-configuration"] => Response::json(
            200,
            &json!({
                "issuer": format!("{base}/{tenant}/v2.0"),
                "authorization_endpoint": format!("{base}/{tenant}/oauth2/v2.0/authorize"),
                "token_endpoint": format!("{base}/{tenant}/oauth2/v2.0/token"),
            }),
        ),
        [tenant, "oauth2", "v2.0", "token"] if request.method == "POST" => {
            let tenant = tenant.to_owned();
            token(state, &tenant, request)
        }
        _ => Response::json(404, &json!({"error": "not found"})),
    })
}

fn token(state: &mut State, tenant: &str, request: &Request) -> Response {
    let form = request.form();
    let field = |name: &str| {
        let found = form.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    if tenant != TENANT && tenant != "other.example" {
        let text = format!("Tenant '{tenant}' not found.");
        return refused(400, "invalid_request", 90_002, &text);
    }
    if field("grant_type") != "client_credentials" {
        return refused(400, "unsupported_grant_type", 70_003, "No such grant type.");
    }
    let Some(resource) = field("scope").strip_suffix("/.default") else {
        return refused(400, "invalid_scope", 1_002_012, "The scope is not valid.");
    };
    let client = field("client_id").to_owned();
    let audience = format!("{}{}", state.login_url, request.path);
    let Some(principal) = state.principals.get_mut(&client) else {
        let text = format!(
            "Application with identifier '{client}' was not found in the directory '{tenant}'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."
        );
        return refused(400, "unauthorized_client", 700_016, &text);
    };
    if principal.disabled {
        return refused(
            401,
            "unauthorized_client",
            7_000_112,
            "Application is disabled.",
        );
    }
    let secret = field("client_secret");
    if !secret.is_empty() {
        if principal.expired.contains(secret) {
            let text = format!("The provided client secret keys for app '{client}' are expired.");
            return refused(401, "invalid_client", 7_000_222, &text);
        }
        if !principal.secrets.contains(secret) {
            return refused(
                401,
                "invalid_client",
                7_000_215,
                "Invalid client secret provided.",
            );
        }
    } else if field("client_assertion_type") == JWT_BEARER {
        if let Err(response) = asserted(principal, &client, &audience, field("client_assertion")) {
            return response;
        }
    } else {
        return refused(
            401,
            "invalid_client",
            7_000_218,
            "The request body must contain client_assertion or client_secret.",
        );
    }
    let resource = resource.to_owned();
    let (text, ends) = state.grant(&client, &resource, tenant);
    Response::json(
        200,
        &json!({
            "token_type": "Bearer",
            "expires_in": ends - now(),
            "ext_expires_in": ends - now(),
            "access_token": text,
        }),
    )
}

/// Whether an assertion is one of this application.
fn asserted(
    principal: &mut Principal,
    client: &str,
    audience: &str,
    assertion: &str,
) -> Result<(), Response> {
    if principal.federated.contains(assertion) {
        return Ok(());
    }
    let invalid = |code, text: &str| Err(refused(401, "invalid_client", code, text));
    let parts: Vec<&str> = assertion.split('.').collect();
    let read =
        |place: usize| -> Option<Value> { serde_json::from_slice(&unb64(parts.get(place)?)?).ok() };
    let (Some(header), Some(claims), 3) = (read(0), read(1), parts.len()) else {
        return invalid(50_027, "JWT token is invalid or malformed.");
    };
    if header["x5t"].is_null() && header["x5t#S256"].is_null() {
        return invalid(
            700_213,
            "No matching federated identity record found for presented assertion subject.",
        );
    }
    let is_named = |certificate: &&X509| {
        let der = certificate.to_der().unwrap();
        let print = |digest| b64(&hash(digest, &der).unwrap());
        let (sha1, sha256) = (print(MessageDigest::sha1()), print(MessageDigest::sha256()));
        let agrees = |name: &str, print: &str| {
            header[name].is_null()
                || header[name].as_str().map(|text| text.trim_end_matches('=')) == Some(print)
        };
        agrees("x5t", &sha1) && agrees("x5t#S256", &sha256)
    };
    let Some(certificate) = principal.certificates.iter().find(is_named) else {
        return invalid(
            700_027,
            "Client assertion contains an invalid signature. [Reason - The key was not found.]",
        );
    };
    let key = certificate.public_key().unwrap();
    let mut verifier = Verifier::new(MessageDigest::sha256(), &key).unwrap();
    match header["alg"].as_str() {
        Some("RS256") => {}
        Some("PS256") => verifier.set_rsa_padding(Padding::PKCS1_PSS).unwrap(),
        _ => {
            return invalid(
                5_000_611,
                "Symmetric Key Derivation Function version is invalid.",
            );
        }
    }
    let signature = unb64(parts[2]).unwrap_or_default();
    let said = format!("{}.{}", parts[0], parts[1]);
    if !verifier
        .verify_oneshot(&signature, said.as_bytes())
        .unwrap_or(false)
    {
        return invalid(700_027, "Client assertion contains an invalid signature.");
    }
    if claims["aud"] != audience || claims["iss"] != client || claims["sub"] != client {
        return invalid(
            50_027,
            "JWT token is invalid or malformed: aud, iss or sub.",
        );
    }
    // Whole seconds or not: a NumericDate may have a fraction.
    let time = |name: &str| claims[name].as_f64().unwrap_or_default() as u64;
    if time("exp") <= now() || time("nbf") > now() + 300 || time("exp") > now() + 86_400 {
        return invalid(
            700_024,
            "Client assertion is not within its valid time range.",
        );
    }
    let id = claims["jti"].as_str().unwrap_or_default().to_owned();
    if id.is_empty() || !principal.shown.insert(id) {
        return invalid(50_027, "JWT token is invalid or malformed: jti.");
    }
    Ok(())
}
