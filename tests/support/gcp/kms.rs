//! Keys, their versions and states, encrypting and decrypting.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use serde_json::{Value, json};

use super::http::{Answer, Asked};
use super::identity::Identities;

/// Where all keys are.
pub const LOCATION: &str = "projects/prod-1/locations/europe-west3/keyRings/hosts";

/// The resource name of a key.
pub fn full_name(name: &str) -> String {
    format!("{LOCATION}/cryptoKeys/{name}")
}

pub struct Version {
    secret: [u8; 32],
    pub state: &'static str,
}

pub struct Key {
    pub versions: Vec<Version>,
    /// The number of the version that encrypts.
    pub primary: usize,
    pub purpose: &'static str,
    pub algorithm: &'static str,
    pub protection: &'static str,
}

impl Key {
    fn version(&self, number: usize) -> Option<&Version> {
        self.versions.get(number.checked_sub(1)?)
    }
}

#[derive(Default)]
pub struct Keys {
    pub keys: BTreeMap<String, Key>,
    /// The permissions that nobody has.
    pub denied: BTreeSet<String>,
}

/// All states, for those who set one by name.
const STATES: [&str; 6] = [
    "ENABLED",
    "DISABLED",
    "DESTROYED",
    "DESTROY_SCHEDULED",
    "PENDING_GENERATION",
    "PENDING_IMPORT",
];

const TIME: &str = "2031-05-17T09:30:00.123456789Z";

/// An error as the API writes it.
pub fn error(code: u16, status: &str, message: &str, details: Value) -> Answer {
    let mut error = json!({"code": code, "message": message, "status": status});
    if details
        .as_array()
        .is_some_and(|details| !details.is_empty())
    {
        error["details"] = details;
    }
    Answer::Json(code, json!({ "error": error }))
}

fn info(reason: &str, metadata: Value) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    })
}

fn invalid(message: &str) -> Answer {
    error(400, "INVALID_ARGUMENT", message, json!([]))
}

/// A call's failure, or what it is for.
type Found<T> = Result<T, Box<Answer>>;

impl Keys {
    /// A new key with one version.
    pub fn make(&mut self, name: &str) {
        let key = Key {
            versions: Vec::new(),
            primary: 0,
            purpose: "ENCRYPT_DECRYPT",
            algorithm: "GOOGLE_SYMMETRIC_ENCRYPTION",
            protection: "SOFTWARE",
        };
        self.keys.insert(full_name(name), key);
        self.rotate(name);
    }

    pub fn key(&mut self, name: &str) -> &mut Key {
        self.keys.get_mut(&full_name(name)).unwrap()
    }

    /// The key with all its versions enabled, or a new one of its name.
    pub fn restore(&mut self, name: &str) {
        match self.keys.get_mut(&full_name(name)) {
            Some(key) => {
                for version in &mut key.versions {
                    version.state = "ENABLED";
                }
            }
            None => self.make(name),
        }
    }

    /// A new version, which is the primary one.
    pub fn rotate(&mut self, name: &str) {
        let key = self.key(name);
        key.versions.push(new_version());
        key.primary = key.versions.len();
    }

    pub fn set_state(&mut self, name: &str, version: &str, state: &'static str) {
        let number: usize = version.parse().unwrap();
        let version = &mut self.key(name).versions[number - 1];
        version.state = state;
        if state == "DESTROYED" {
            version.secret = [0; 32];
        }
    }

    /// All key material, which must never be seen outside.
    pub fn material(&self) -> Vec<Vec<u8>> {
        let versions = self.keys.values().flat_map(|key| &key.versions);
        let living = versions.filter(|version| version.state != "DESTROYED");
        living.map(|version| version.secret.to_vec()).collect()
    }

    pub(super) fn answer(&mut self, asked: &Asked, who: &Identities, now: i64) -> Answer {
        match self.try_answer(asked, who, now) {
            Ok(answer) => answer,
            Err(answer) => *answer,
        }
    }

    fn try_answer(&mut self, asked: &Asked, who: &Identities, now: i64) -> Found<Answer> {
        authenticate(asked, who, now)?;
        let path = asked.path.strip_prefix("/v1/").unwrap_or_default();
        let (name, action) = path.split_once(':').unwrap_or((path, ""));
        let (key, version) = match name.split_once("/cryptoKeyVersions/") {
            Some((key, version)) => (key, Some(version)),
            None => (name, None),
        };
        let (key, list) = match key.strip_suffix("/cryptoKeyVersions") {
            Some(key) => (key, true),
            None => (key, false),
        };
        match (asked.method.as_str(), action, version) {
            ("GET", "", None) if !list => {
                self.permit("cloudkms.cryptoKeys.get", name)?;
                Ok(Answer::Json(200, key_json(key, self.found(key)?)))
            }
            ("GET", "", Some(version)) => {
                self.permit("cloudkms.cryptoKeyVersions.get", name)?;
                let number = self.number(key, version)?;
                Ok(Answer::Json(
                    200,
                    version_json(key, self.found(key)?, number),
                ))
            }
            ("POST", "encrypt", _) => {
                self.permit("cloudkms.cryptoKeyVersions.useToEncrypt", name)?;
                self.encrypt(key, version, &asked.json().unwrap_or_default())
            }
            ("POST", "decrypt", None) => {
                self.permit("cloudkms.cryptoKeyVersions.useToDecrypt", name)?;
                self.decrypt(key, &asked.json().unwrap_or_default())
            }
            _ => self.operate(asked, key, version, action),
        }
    }

    /// What operators do.
    fn operate(
        &mut self,
        asked: &Asked,
        key: &str,
        version: Option<&str>,
        action: &str,
    ) -> Found<Answer> {
        let number = match version {
            Some(version) => self.number(key, version)?,
            None => 0,
        };
        self.found(key)?;
        let found = self.keys.get_mut(key).unwrap();
        let body = asked.json().unwrap_or_default();
        let number = match (asked.method.as_str(), action) {
            ("POST", "") if asked.path.ends_with("/cryptoKeyVersions") => {
                found.versions.push(new_version());
                found.versions.len()
            }
            ("POST", "updatePrimaryVersion") => {
                let id = body["cryptoKeyVersionId"].as_str().unwrap_or_default();
                found.primary = id.parse().unwrap_or(0);
                return Ok(Answer::Json(200, key_json(key, found)));
            }
            ("PATCH", "") if number > 0 => {
                let name = &body["state"];
                let known = STATES.iter().find(|state| *name == **state);
                // Clients may write an enum as its number.
                let state = match (known, name.as_u64()) {
                    (Some(state), _) => state,
                    (None, Some(1)) => "ENABLED",
                    (None, Some(2)) => "DISABLED",
                    _ => return Err(invalid("Invalid state.").into()),
                };
                found.versions[number - 1].state = state;
                number
            }
            ("POST", "destroy") => {
                found.versions[number - 1].state = "DESTROY_SCHEDULED";
                number
            }
            ("POST", "restore") => {
                found.versions[number - 1].state = "DISABLED";
                number
            }
            _ => return Ok(Answer::page(404)),
        };
        Ok(Answer::Json(200, version_json(key, found, number)))
    }

    fn permit(&self, permission: &str, resource: &str) -> Found<()> {
        if !self.denied.contains(permission) {
            return Ok(());
        }
        let message = format!(
            "Permission '{permission}' denied on resource '{resource}' (or it may not exist)."
        );
        let details = info(
            "IAM_PERMISSION_DENIED",
            json!({"permission": permission, "resource": resource}),
        );
        Err(error(403, "PERMISSION_DENIED", &message, json!([details])).into())
    }

    fn found(&self, key: &str) -> Found<&Key> {
        self.keys.get(key).ok_or_else(|| {
            let message = format!("CryptoKey {key} not found.");
            error(404, "NOT_FOUND", &message, json!([])).into()
        })
    }

    fn number(&self, key: &str, version: &str) -> Found<usize> {
        let number: usize = version.parse().unwrap_or(0);
        if self.found(key)?.version(number).is_some() {
            return Ok(number);
        }
        let message = format!("CryptoKeyVersion {key}/cryptoKeyVersions/{version} not found.");
        Err(error(404, "NOT_FOUND", &message, json!([])).into())
    }

    /// A version that may be used.
    fn usable(&self, name: &str, number: usize) -> Found<&Version> {
        let key = self.found(name)?;
        if key.purpose != "ENCRYPT_DECRYPT" {
            let message = format!(
                "The purpose of CryptoKey {name} is {}, which does not support the operation.",
                key.purpose
            );
            return Err(invalid(&message).into());
        }
        let version = key.version(number).unwrap();
        if version.state == "ENABLED" {
            return Ok(version);
        }
        let subject = format!("{name}/cryptoKeyVersions/{number}");
        let message = format!(
            "{subject} is not enabled, current state is: {}.",
            version.state
        );
        let details = json!([{
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": format!("KEY_{}", version.state), "subject": subject}],
        }]);
        Err(error(400, "FAILED_PRECONDITION", &message, details).into())
    }

    fn encrypt(&self, name: &str, version: Option<&str>, body: &Value) -> Found<Answer> {
        let key = self.found(name)?;
        let number = match version {
            Some(version) => self.number(name, version)?,
            None => key.primary,
        };
        let (plaintext, checked) = field(body, "plaintext")?;
        let (aad, aad_checked) = field(body, "additionalAuthenticatedData")?;
        let most = if key.protection == "HSM" {
            8 << 10
        } else {
            64 << 10
        };
        if plaintext.is_empty() || plaintext.len() > most || aad.len() > most {
            return Err(invalid("The plaintext or the additional data is too large.").into());
        }
        let version = self.usable(name, number)?;
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).unwrap();
        let mut tag = [0; 16];
        let cipher = Cipher::aes_256_gcm();
        let sealed = encrypt_aead(
            cipher,
            &version.secret,
            Some(&nonce),
            &aad,
            &plaintext,
            &mut tag,
        );
        let number_bytes = (number as u64).to_be_bytes();
        let ciphertext = [
            &mark(name)[..],
            &number_bytes,
            &nonce,
            &sealed.unwrap(),
            &tag,
        ]
        .concat();
        let mut answer = json!({
            "name": format!("{name}/cryptoKeyVersions/{number}"),
            "ciphertext": BASE64.encode(&ciphertext),
            "ciphertextCrc32c": crc32c::crc32c(&ciphertext).to_string(),
            "protectionLevel": key.protection,
        });
        // What is false is left out.
        if checked {
            answer["verifiedPlaintextCrc32c"] = true.into();
        }
        if aad_checked {
            answer["verifiedAdditionalAuthenticatedDataCrc32c"] = true.into();
        }
        Ok(Answer::Json(200, answer))
    }

    fn decrypt(&self, name: &str, body: &Value) -> Found<Answer> {
        let key = self.found(name)?;
        let (ciphertext, _) = field(body, "ciphertext")?;
        let (aad, _) = field(body, "additionalAuthenticatedData")?;
        let bad = || Box::new(invalid("Decryption failed: the ciphertext is invalid."));
        if ciphertext.len() < 4 + 8 + 12 + 16 {
            return Err(bad());
        }
        let (begin, rest) = ciphertext.split_at(4);
        if begin != mark(name) {
            let other = "Decryption failed: verify that 'name' refers to the correct CryptoKey.";
            return Err(invalid(other).into());
        }
        let (number, rest) = rest.split_at(8);
        let number = u64::from_be_bytes(number.try_into().unwrap());
        let number = usize::try_from(number).unwrap();
        if key.version(number).is_none() {
            return Err(bad());
        }
        let version = self.usable(name, number)?;
        let (nonce, rest) = rest.split_at(12);
        let (sealed, tag) = rest.split_at(rest.len() - 16);
        let cipher = Cipher::aes_256_gcm();
        let opened = decrypt_aead(cipher, &version.secret, Some(nonce), &aad, sealed, tag);
        let plaintext = opened.map_err(|_| bad())?;
        let mut answer = json!({
            "plaintext": BASE64.encode(&plaintext),
            "plaintextCrc32c": crc32c::crc32c(&plaintext).to_string(),
            "protectionLevel": key.protection,
        });
        if number == key.primary {
            answer["usedPrimary"] = true.into();
        }
        Ok(Answer::Json(200, answer))
    }
}

fn new_version() -> Version {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).unwrap();
    Version {
        secret,
        state: "ENABLED",
    }
}

/// Tells ciphertexts of different keys apart.
fn mark(name: &str) -> [u8; 4] {
    crc32c::crc32c(name.as_bytes()).to_be_bytes()
}

/// Bytes of a request, and whether a checksum of them was given, which is right.
fn field(body: &Value, name: &str) -> Found<(Vec<u8>, bool)> {
    let bytes = BASE64.decode(body[name].as_str().unwrap_or_default());
    let bytes = bytes.map_err(|_| {
        let message = format!(
            "Invalid value at '{name}' (TYPE_BYTES), Base64 decoding failed for {}",
            body[name]
        );
        Box::new(invalid(&message))
    })?;
    // 64 bits are text in JSON.
    let given = match &body[format!("{name}Crc32c")] {
        Value::Null => return Ok((bytes, false)),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if given != crc32c::crc32c(&bytes).to_string() {
        let message =
            format!("The checksum in field {name}_crc32c did not match the data in field {name}.");
        return Err(invalid(&message).into());
    }
    Ok((bytes, true))
}

fn version_json(name: &str, key: &Key, number: usize) -> Value {
    let state = key.version(number).unwrap().state;
    let mut json = json!({
        "name": format!("{name}/cryptoKeyVersions/{number}"),
        "state": state,
        "protectionLevel": key.protection,
        "algorithm": key.algorithm,
        "createTime": TIME,
        "generateTime": TIME,
    });
    match state {
        "DESTROY_SCHEDULED" => json["destroyTime"] = TIME.into(),
        "DESTROYED" => json["destroyEventTime"] = TIME.into(),
        _ => {}
    }
    json
}

fn key_json(name: &str, key: &Key) -> Value {
    let mut json = json!({
        "name": name,
        "purpose": key.purpose,
        "createTime": TIME,
        "versionTemplate": {"protectionLevel": key.protection, "algorithm": key.algorithm},
        "destroyScheduledDuration": "2592000s",
    });
    if key.purpose == "ENCRYPT_DECRYPT" && key.version(key.primary).is_some() {
        json["primary"] = version_json(name, key, key.primary);
    }
    json
}

fn authenticate(asked: &Asked, who: &Identities, now: i64) -> Found<()> {
    const WRONG: &str = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    const NONE: &str = "Request is missing required authentication credential. Expected OAuth 2 access token, login cookie or other valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.";
    let unauthenticated = |message, reason| {
        let details = info(reason, json!({"service": "cloudkms.googleapis.com"}));
        Err(error(401, "UNAUTHENTICATED", message, json!([details])).into())
    };
    let Some(token) = asked.header("authorization").strip_prefix("Bearer ") else {
        return unauthenticated(NONE, "CREDENTIALS_MISSING");
    };
    match who.scopes(token, now) {
        None => unauthenticated(WRONG, "ACCESS_TOKEN_EXPIRED"),
        Some(scopes)
            if scopes.iter().any(|scope| {
                scope.ends_with("/cloudkms") || scope.ends_with("/cloud-platform")
            }) =>
        {
            Ok(())
        }
        Some(_) => {
            let details = info(
                "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                json!({"service": "cloudkms.googleapis.com"}),
            );
            let message = "Request had insufficient authentication scopes.";
            Err(error(403, "PERMISSION_DENIED", message, json!([details])).into())
        }
    }
}
