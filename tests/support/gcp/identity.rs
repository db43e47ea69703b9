//! Who may ask: service accounts and their keys, the machine's metadata
//! server, workload identity pools, and the tokens that all of them lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::{Signer, Verifier};
use serde_json::{Value, json};

use super::http::{Answer, Asked};
use super::kms::error;
use super::now;

/// The one service account.
pub const EMAIL: &str = "sealblk-host@prod-1.iam.gserviceaccount.com";

/// The one provider of a workload identity pool.
pub const AUDIENCE: &str = "//iam.googleapis.com/projects/4711/locations/global/workloadIdentityPools/hosts/providers/oidc";

/// The only subject that the provider takes.
pub const SUBJECT: &str = "system:serviceaccount:prod:sealblk";

/// What is good for the IAM credentials API, and for nothing else.
const IAM: &str = "https://www.googleapis.com/auth/iam";
const PLATFORM: &str = "https://www.googleapis.com/auth/cloud-platform";

struct Granted {
    who: String,
    scopes: Vec<String>,
    ends: i64,
}

pub struct Identities {
    tokens: BTreeMap<String, Granted>,
    /// The ids of the keys that the account has.
    pub keys: BTreeSet<String>,
    pub account_exists: bool,
    pub account_enabled: bool,
    pub provider_exists: bool,
    /// Whether the federated identity may take the place of the account.
    pub may_impersonate: bool,
    /// Whether there is a machine with an account.
    pub machine_has_account: bool,
    pub machine_scopes: Vec<String>,
    /// The token that the metadata server keeps.
    cached: Option<String>,
    /// How long tokens last, in seconds.
    pub lifetime: i64,
    /// What the URL for subject tokens gives out.
    pub subject_token: String,
}

impl Default for Identities {
    fn default() -> Self {
        Identities {
            tokens: BTreeMap::new(),
            keys: ["key-1".to_owned()].into(),
            account_exists: true,
            account_enabled: true,
            provider_exists: true,
            may_impersonate: true,
            machine_has_account: true,
            machine_scopes: vec![PLATFORM.into()],
            cached: None,
            lifetime: 3599,
            subject_token: String::new(),
        }
    }
}

/// An RSA key, since making one takes a while.
fn rsa() -> &'static PKey<Private> {
    static KEY: OnceLock<PKey<Private>> = OnceLock::new();
    KEY.get_or_init(|| PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap())
}

/// Signed with the key of the account, and of the other provider.
pub fn signed(header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    let mut signer = Signer::new(MessageDigest::sha256(), rsa()).unwrap();
    signer.update(text.as_bytes()).unwrap();
    let signature = URL_SAFE_NO_PAD.encode(signer.sign_to_vec().unwrap());
    format!("{text}.{signature}")
}

/// The claims of a JWT, if it is signed with the key.
fn verified(token: &str) -> Option<(Value, Value)> {
    let (text, signature) = token.rsplit_once('.')?;
    let mut verifier = Verifier::new(MessageDigest::sha256(), rsa()).unwrap();
    verifier.update(text.as_bytes()).unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    if !verifier.verify(&signature).ok()? {
        return None;
    }
    let (header, claims) = text.split_once('.')?;
    let read = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    Some((read(header)?, read(claims)?))
}

fn oauth(status: u16, error: &str, description: &str) -> Answer {
    Answer::Json(
        status,
        json!({"error": error, "error_description": description}),
    )
}

impl Identities {
    /// The file that `gcloud iam service-accounts keys create` writes.
    pub fn account_json(&self, base: &str) -> Value {
        let pem = rsa().private_key_to_pem_pkcs8().unwrap();
        json!({
            "type": "service_account",
            "project_id": "prod-1",
            "private_key_id": "key-1",
            "private_key": String::from_utf8(pem).unwrap(),
            "client_email": EMAIL,
            "client_id": "104711",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": format!("{base}/token"),
            "universe_domain": "googleapis.com",
        })
    }

    /// The private key of the account, which must never be seen.
    pub fn private_key() -> Vec<u8> {
        rsa().private_key_to_der().unwrap()
    }

    /// A token of the other provider.
    pub fn foreign_token(subject: &str, lasts: i64) -> String {
        let claims = json!({
            "iss": "https://oidc.example",
            "aud": AUDIENCE,
            "sub": subject,
            "iat": now() - 10,
            "exp": now() + lasts,
        });
        signed(&json!({"alg": "RS256", "typ": "JWT"}), &claims)
    }

    /// Takes back all tokens. The metadata server does not know of it.
    pub fn revoke_tokens(&mut self) {
        self.tokens.clear();
    }

    /// All that were given out.
    pub fn tokens(&self) -> Vec<String> {
        self.tokens.keys().cloned().collect()
    }

    /// What a token is good for.
    pub fn granted(&self, token: &str) -> &[String] {
        &self.tokens[token].scopes
    }

    /// The metadata server forgets the token that it gave out.
    pub fn forget_cached(&mut self) {
        self.cached = None;
    }

    /// Who has a token, by name.
    pub fn holders(&self) -> BTreeSet<&str> {
        self.tokens.values().map(|granted| &*granted.who).collect()
    }

    pub(super) fn scopes(&self, token: &str, now: i64) -> Option<&[String]> {
        let granted = self.tokens.get(token)?;
        (granted.ends > now).then_some(&granted.scopes)
    }

    fn grant(&mut self, who: &str, scopes: &str, lifetime: i64, now: i64) -> String {
        let mut bytes = [0; 48];
        getrandom::fill(&mut bytes).unwrap();
        let token = format!("ya29.c.{}", URL_SAFE_NO_PAD.encode(bytes));
        let granted = Granted {
            who: who.into(),
            scopes: scopes.split([' ', ',']).map(str::to_owned).collect(),
            ends: now + lifetime,
        };
        self.tokens.insert(token.clone(), granted);
        token
    }

    pub(super) fn answer(&mut self, asked: &Asked, base: &str, now: i64) -> Answer {
        match asked.path.as_str() {
            "/token" => self.account_token(asked, base, now),
            "/v1/token" => self.exchange(asked, now),
            "/subject" if asked.header("x-machine") == "yes" => {
                let text = json!({"subject": self.subject_token, "other": 1}).to_string();
                Answer::Text(200, Vec::new(), text)
            }
            path if path.contains(":generateAccessToken") => self.impersonate(asked, now),
            _ => self.metadata(asked, now),
        }
    }

    fn account_token(&mut self, asked: &Asked, base: &str, now: i64) -> Answer {
        let form = asked.form();
        let grant = form.get("grant_type").map(String::as_str);
        if grant != Some("urn:ietf:params:oauth:grant-type:jwt-bearer") {
            return oauth(400, "unsupported_grant_type", "Invalid grant_type");
        }
        let assertion = form
            .get("assertion")
            .map(String::as_str)
            .unwrap_or_default();
        let Some((header, claims)) = verified(assertion) else {
            return oauth(400, "invalid_grant", "Invalid JWT Signature.");
        };
        let number = |name: &str| claims[name].as_i64().unwrap_or_default();
        let (from, to) = (number("iat"), number("exp"));
        let known = self
            .keys
            .contains(header["kid"].as_str().unwrap_or_default());
        if claims["iss"] != EMAIL || !self.account_exists {
            return oauth(400, "invalid_grant", "Invalid grant: account not found");
        }
        if !known || header["alg"] != "RS256" {
            return oauth(400, "invalid_grant", "Invalid JWT Signature.");
        }
        if from > now + 300 || to < now || to - from > 3600 {
            return oauth(
                400,
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim.",
            );
        }
        if !self.account_enabled {
            return oauth(400, "invalid_grant", "Invalid grant: account is disabled");
        }
        // Some clients name the address, others always the same.
        let name = "https://oauth2.googleapis.com/token";
        if claims["aud"] != format!("{base}/token") && claims["aud"] != name {
            return oauth(
                400,
                "invalid_grant",
                "Invalid JWT: Failed audience check. The right audience is https://oauth2.googleapis.com/token",
            );
        }
        let scope = claims["scope"].as_str().unwrap_or_default();
        let lifetime = self.lifetime;
        let token = self.grant(EMAIL, scope, lifetime, now);
        Answer::Json(
            200,
            json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"}),
        )
    }

    fn exchange(&mut self, asked: &Asked, now: i64) -> Answer {
        let form = asked.form();
        let given = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if given("grant_type") != "urn:ietf:params:oauth:grant-type:token-exchange"
            || given("requested_token_type") != "urn:ietf:params:oauth:token-type:access_token"
        {
            return oauth(400, "invalid_request", "Invalid grant type or token type.");
        }
        if !self.provider_exists || given("audience") != AUDIENCE {
            return oauth(
                400,
                "invalid_target",
                "The target service indicated by the \"audience\" parameters is invalid. This might either be because the pool or provider is disabled or deleted or because it doesn't exist.",
            );
        }
        if given("subject_token_type") != "urn:ietf:params:oauth:token-type:jwt" {
            return oauth(400, "invalid_request", "Invalid subject token type.");
        }
        let Some((_, claims)) = verified(given("subject_token")) else {
            return oauth(
                400,
                "invalid_grant",
                "The signature of the subject token does not match any of the keys of the issuer.",
            );
        };
        if claims["exp"].as_i64().unwrap_or_default() < now {
            let text = format!("ID Token issued at {} is stale to sign-in.", claims["iat"]);
            return oauth(400, "invalid_grant", &text);
        }
        if claims["sub"] != SUBJECT {
            return oauth(
                400,
                "unauthorized_client",
                "The given credential is rejected by the attribute condition.",
            );
        }
        let who = format!("principal:{SUBJECT}");
        let lifetime = self.lifetime;
        let token = self.grant(&who, given("scope"), lifetime, now);
        Answer::Json(
            200,
            json!({
                "access_token": token,
                "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "token_type": "Bearer",
                "expires_in": lifetime,
            }),
        )
    }

    fn impersonate(&mut self, asked: &Asked, now: i64) -> Answer {
        let token = asked.header("authorization").strip_prefix("Bearer ");
        let granted = token.and_then(|token| self.tokens.get(token));
        let Some(granted) = granted.filter(|granted| granted.ends > now) else {
            return error(
                401,
                "UNAUTHENTICATED",
                "Request had invalid authentication credentials.",
                json!([]),
            );
        };
        let federated = granted.who.starts_with("principal:");
        if !granted
            .scopes
            .iter()
            .any(|scope| scope == PLATFORM || scope == IAM)
        {
            return error(
                403,
                "PERMISSION_DENIED",
                "Request had insufficient authentication scopes.",
                json!([]),
            );
        }
        let right = format!("/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken");
        if !federated || !self.may_impersonate || asked.path != right {
            return error(
                403,
                "PERMISSION_DENIED",
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
                json!([]),
            );
        }
        let body = asked.json().unwrap_or_default();
        let scopes: Vec<&str> = body["scope"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let lifetime = body["lifetime"].as_str().unwrap_or("3600s");
        let lifetime: i64 = lifetime.trim_end_matches('s').parse().unwrap();
        let token = self.grant(EMAIL, &scopes.join(" "), lifetime, now);
        Answer::Json(
            200,
            json!({"accessToken": token, "expireTime": rfc3339(now + lifetime)}),
        )
    }

    fn metadata(&mut self, asked: &Asked, now: i64) -> Answer {
        let ours = |status, kind: &str, text: String| {
            let headers = vec![
                ("metadata-flavor", "Google".to_owned()),
                ("server", "Metadata Server for VM".to_owned()),
                ("content-type", kind.to_owned()),
            ];
            Answer::Text(status, headers, text)
        };
        if asked.header("metadata-flavor") != "Google" {
            return ours(
                403,
                "text/html",
                "<p>Missing Metadata-Flavor:Google header.".into(),
            );
        }
        let path = asked.path.trim_end_matches('/');
        let Some(path) = path.strip_prefix("/computeMetadata/v1/") else {
            return ours(200, "text/plain", "computeMetadata/\n".into());
        };
        let text = |text: &str| ours(200, "application/text", text.into());
        match path {
            "universe/universe-domain" | "universe/universe_domain" => {
                return text("googleapis.com");
            }
            "project/project-id" => return text("prod-1"),
            _ => {}
        }
        let known = ["default", EMAIL];
        let rest = path.strip_prefix("instance/service-accounts/");
        let account = rest.and_then(|rest| {
            let name = rest.split('/').next()?;
            known
                .contains(&name)
                .then(|| rest[name.len()..].trim_start_matches('/'))
        });
        let Some(what) = account.filter(|_| self.machine_has_account) else {
            return ours(
                404,
                "text/html",
                "<!DOCTYPE html><p>The requested URL was not found on this server.".into(),
            );
        };
        match what {
            "email" => text(EMAIL),
            "token" => {
                let (token, left) = self.cached(now);
                let json =
                    json!({"access_token": token, "expires_in": left, "token_type": "Bearer"});
                ours(200, "application/json", json.to_string())
            }
            _ => {
                let json =
                    json!({"aliases": ["default"], "email": EMAIL, "scopes": self.machine_scopes});
                ours(200, "application/json", json.to_string())
            }
        }
    }

    /// The same token until five minutes are left of it.
    fn cached(&mut self, now: i64) -> (String, i64) {
        let left = |ends: i64| ends - now;
        if let Some(token) = &self.cached
            && let Some(granted) = self.tokens.get(token)
            && left(granted.ends) > 300.min(self.lifetime / 2)
        {
            return (token.clone(), left(granted.ends));
        }
        if let Some(token) = &self.cached
            && !self.tokens.contains_key(token)
        {
            // Revoked, and it does not know.
            return (token.clone(), self.lifetime);
        }
        let scopes = self.machine_scopes.join(" ");
        let lifetime = self.lifetime;
        let token = self.grant(EMAIL, &scopes, lifetime, now);
        self.cached = Some(token.clone());
        (token, lifetime)
    }
}

/// As JSON has it (google.protobuf.Timestamp).
fn rfc3339(seconds: i64) -> String {
    let text = Asn1Time::from_unix(seconds).unwrap().to_string();
    let parts: Vec<&str> = text.split_ascii_whitespace().collect();
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = 1 + MONTHS.iter().position(|name| *name == parts[0]).unwrap();
    let day: u32 = parts[1].parse().unwrap();
    format!("{}-{month:02}-{day:02}T{}Z", parts[3], parts[2])
}
