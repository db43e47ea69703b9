//! What the service says, in terms of the closed set of failures.
//!
//! The status tells little: most of what matters is 403 with an inner code.
//! Where there is none, or another one, the text decides, of which the plain
//! parts have stayed the same over the years; one that is not known is a
//! denial all the same where the status says so, with the service's words.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::name::{KeyName, Version};
use crate::kms::http::{BaseUrl, Reply};
use crate::kms::{Class, Denied, Error};

/// What was asked, and whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'q> {
    pub vault: &'q BaseUrl,
    pub operation: Operation,
    pub name: &'q KeyName,
    pub version: Option<&'q Version>,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// The key and its attributes.
    Get,
    /// The same of one that was deleted.
    GetDeleted,
    /// All versions.
    Versions,
    Wrap,
    Unwrap,
}

impl Operation {
    /// The permission that it takes, by its name in access policies.
    fn permission(self) -> &'static str {
        match self {
            Operation::Get | Operation::GetDeleted => "get",
            Operation::Versions => "list",
            Operation::Wrap => "wrapKey",
            Operation::Unwrap => "unwrapKey",
        }
    }
}

/// An answer that is a failure.
#[derive(Debug)]
pub(super) struct Refusal {
    pub error: Error,
    /// Whether a permission that was just given may be on its way.
    pub may_pass: bool,
}

#[derive(Deserialize, Default)]
struct Body {
    #[serde(default)]
    error: Detail,
}

#[derive(Deserialize, Default)]
struct Detail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    /// Both spellings are in use.
    #[serde(default, alias = "innerError")]
    innererror: Option<Inner>,
}

#[derive(Deserialize, Default)]
struct Inner {
    #[serde(default)]
    code: String,
}

/// The answer in JSON, if it is a success.
pub(super) fn parse<T: DeserializeOwned>(
    question: &Question<'_>,
    reply: &Reply,
) -> Result<T, Error> {
    // The error would quote what it stumbles on, which may be a secret.
    serde_json::from_slice(&reply.body).map_err(|_| strange(question))
}

/// An answer that is not one to `question`.
pub(super) fn strange(question: &Question<'_>) -> Error {
    let Question { vault, name, .. } = question;
    Error::new(
        Class::Protocol,
        format!(
            "{vault} answers {} of key {name} with something else than was asked for",
            question.operation.permission()
        ),
        "check that the address is that of a Key Vault or a Managed HSM, and what is in between",
    )
}

/// The answer as a failure.
pub(super) fn refusal(question: &Question<'_>, reply: &Reply) -> Refusal {
    // Of a proxy in between, it may be a page of HTML.
    let detail = serde_json::from_slice::<Body>(&reply.body)
        .unwrap_or_default()
        .error;
    let inner = detail.innererror.unwrap_or_default().code;
    let code = match inner.is_empty() {
        true => detail.code,
        false => inner,
    };
    let (class, cause, next) = classify(question, reply, &code, &detail.message);
    let words = match (code.is_empty(), detail.message.is_empty()) {
        (true, _) => detail.message.clone(),
        (false, true) => code.clone(),
        (false, false) => format!("{code}: {}", detail.message),
    };
    Refusal {
        error: Error::new(class, cause, next).with_words(&words),
        may_pass: class == Class::Denied(Denied::Forbidden)
            && reply.status == 403
            && !is_network(&code, &detail.message)
            && !is_operation(&code, &detail.message),
    }
}

fn is_network(code: &str, message: &str) -> bool {
    matches!(code, "ForbiddenByFirewall" | "ForbiddenByConnection")
        || message.contains("Client address")
        || message.contains("Public network access is disabled")
}

fn is_operation(code: &str, message: &str) -> bool {
    code == "KeyOperationForbidden" || message.contains("is not permitted on this key")
}

/// The key that was asked for, in a form that `az keyvault key … --id` takes.
fn id(question: &Question<'_>) -> String {
    let Question {
        vault,
        name,
        version,
        ..
    } = question;
    match version {
        Some(version) => format!("{vault}/keys/{name}/{version}"),
        None => format!("{vault}/keys/{name}"),
    }
}

/// The vault as `az` wants it named.
pub(super) fn az_name(vault: &BaseUrl) -> String {
    let name = vault.host().split('.').next().unwrap_or_default();
    match is_hsm(vault) {
        true => format!("--hsm-name {name}"),
        false => format!("--vault-name {name}"),
    }
}

fn is_hsm(vault: &BaseUrl) -> bool {
    vault.host().split('.').nth(1) == Some("managedhsm")
}

/// How the permissions are given that sealblk needs.
fn grant(question: &Question<'_>) -> String {
    let Question { vault, name, .. } = question;
    match is_hsm(vault) {
        true => format!(
            "az keyvault role assignment create {} --role \"Managed HSM Crypto Service Encryption User\" --assignee-object-id OBJECT_ID --scope /keys/{name}",
            az_name(vault)
        ),
        false => format!(
            "az role assignment create --role \"Key Vault Crypto Service Encryption User\" --assignee-object-id OBJECT_ID --scope VAULT_RESOURCE_ID/keys/{name}"
        ),
    }
}

fn classify(
    question: &Question<'_>,
    reply: &Reply,
    code: &str,
    message: &str,
) -> (Class, String, String) {
    let Question { vault, name, .. } = question;
    let id = id(question);
    let permission = question.operation.permission();
    let forbidden = Class::Denied(Denied::Forbidden);
    let says = |text: &str| message.contains(text);
    // A vault says in its own form what it denies, and what it does not open.
    let is_vault = !code.is_empty() || !message.is_empty();
    match reply.status {
        400 | 401 | 403 if !is_vault => (
            Class::Protocol,
            format!(
                "{vault} answers {permission} of key {name} with status {}, and not as a vault does",
                reply.status
            ),
            "check that the address is that of a Key Vault or a Managed HSM, and what is in between".into(),
        ),
        429 => (
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{vault} throttles this host"),
            "use hierarchy = \"group\", which needs fewer calls, or spread the keys over more vaults".into(),
        ),
        408 | 500..600 => (
            Class::Unreachable,
            format!("{vault} cannot answer now (status {})", reply.status),
            "see https://status.azure.com, and wait".into(),
        ),
        401 => (
            forbidden,
            match () {
                () if code.contains("AKV10032") || says("AKV10032") => {
                    format!("the token is of another tenant than that of {vault}")
                }
                () if code.contains("AKV10022") || says("AKV10022") => {
                    format!("the token is for something else than {vault}")
                }
                () => format!("{vault} does not accept the token of this host"),
            },
            "check tenant in the key set: the identity has to be in the tenant of the vault (az keyvault show --query properties.tenantId); and the clock of this host".into(),
        ),
        403 if code == "KeyDisabled" || says("disabled key") => (
            Class::Denied(Denied::Disabled),
            format!("{id} is disabled"),
            format!("have it enabled: az keyvault key set-attributes --id {id} --enabled true"),
        ),
        403 if code == "KeyNotYetValid" || says("not yet valid") => (
            Class::Denied(Denied::Expired),
            format!("{id} is not valid yet"),
            format!("wait, or have its beginning moved: az keyvault key set-attributes --id {id} --not-before TIME"),
        ),
        403 if code == "KeyExpired" || says("expired key") || says("key is expired") => (
            Class::Denied(Denied::Expired),
            format!("{id} has expired"),
            format!("have the key rotated (az keyvault key rotate --name {name} {}), or its end moved: az keyvault key set-attributes --id {id} --expires TIME", az_name(vault)),
        ),
        403 if is_network(code, message) => (
            forbidden,
            format!("the firewall of {vault} does not let this host in"),
            format!("have its address permitted (az keyvault network-rule add {} --ip-address ADDRESS), or use a private endpoint", az_name(vault).replace("-vault", "").replace("-hsm", "")),
        ),
        403 if is_operation(code, message) => (
            forbidden,
            format!("{id} may not be used for {permission}, whoever asks"),
            format!("have it permitted: az keyvault key set-attributes --id {id} --ops wrapKey unwrapKey"),
        ),
        403 if code == "ForbiddenByRbac" || says("not authorized to perform action") => (
            forbidden,
            format!("no role of this identity permits {permission} with key {name} of {vault}"),
            format!("{}; a new role takes some minutes", grant(question)),
        ),
        403 if matches!(code, "AccessDenied" | "ForbiddenByPolicy") || says("does not have keys") => (
            forbidden,
            format!("the access policy of {vault} does not permit {permission} to this identity"),
            format!("az keyvault set-policy {} --object-id OBJECT_ID --key-permissions get wrapKey unwrapKey", az_name(vault).replace("-vault", "")),
        ),
        403 => (
            forbidden,
            format!("{vault} does not permit {permission} with key {name}"),
            grant(question),
        ),
        404 if code.contains("NotFound") => (
            Class::NotFound,
            match question.version {
                Some(version) => format!("{vault} has no key {name} with version {version}"),
                None => format!("{vault} has no key {name}"),
            },
            format!(
                "check vault, key and version in the key set; if somebody deleted it, az keyvault key recover --name {name} {} brings it back, unless it was purged: then a backup may (az keyvault key restore)",
                az_name(vault)
            ),
        ),
        409 if code.contains("Deleted") => (
            Class::Denied(Denied::Deleted),
            format!("key {name} of {vault} has been deleted, and can be recovered still"),
            recover(vault, name),
        ),
        409 => (
            Class::Unreachable,
            format!("{vault} is busy with key {name}: it is being deleted, recovered or changed"),
            "wait; then this works by itself".into(),
        ),
        // The version of the API: nothing is said of the bytes.
        400 if says("api-version") || says("specified version") => (
            Class::Protocol,
            format!("{vault} does not know the version of the API that is asked for"),
            "use an algorithm that this cloud has already: for a symmetric key, A256KW".into(),
        ),
        400 if question.operation == Operation::Unwrap => (
            Class::BadKey,
            format!("{id} does not open the wrapped key: it was tampered with, or was wrapped by another key"),
            "restore the volume's header from a backup, and find out who changed it".into(),
        ),
        400 => (
            Class::Protocol,
            format!("{vault} does not take {permission} of key {name}"),
            "check the kind of the key: RSA with 2048 bits or more, or in a Managed HSM oct-HSM with 256".into(),
        ),
        status => (
            Class::Protocol,
            format!("{vault} answers {permission} of key {name} with status {status}"),
            "check that the address is that of a Key Vault or a Managed HSM, and what is in between".into(),
        ),
    }
}

/// How a deleted key is brought back.
pub(super) fn recover(vault: &BaseUrl, name: &KeyName) -> String {
    format!(
        "have it recovered: az keyvault key recover --name {name} {}",
        az_name(vault)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> (Class, bool, String) {
        let (vault, name) = (
            "https://v.vault.azure.net".parse().unwrap(),
            "disks".parse().unwrap(),
        );
        let question = Question {
            vault: &vault,
            operation: Operation::Unwrap,
            name: &name,
            version: None,
        };
        let reply = Reply {
            status,
            retry_after: None,
            location: None,
            date: None,
            headers: reqwest::header::HeaderMap::new(),
            body: zeroize::Zeroizing::new(body.into()),
        };
        let refusal = refusal(&question, &reply);
        (
            refusal.error.class(),
            refusal.may_pass,
            refusal.error.to_string(),
        )
    }

    fn body(code: &str, message: &str, inner: &str) -> String {
        format!(r#"{{"error":{{"code":"{code}","message":"{message}","{inner}":{{"code":"X"}}}}}}"#)
    }

    /// The text decides where the inner code is missing, new, or spelled
    /// otherwise.
    #[test]
    fn the_words_tell_where_the_code_does_not() {
        let forbidden = Class::Denied(Denied::Forbidden);
        for (message, class, may_pass) in [
            (
                "Operation unwrapKey is not allowed on a disabled key.",
                Class::Denied(Denied::Disabled),
                false,
            ),
            (
                "Operation wrapKey is not allowed on an expired key.",
                Class::Denied(Denied::Expired),
                false,
            ),
            (
                "Operation wrapKey is not allowed on a key that is not yet valid.",
                Class::Denied(Denied::Expired),
                false,
            ),
            (
                "Client address is not authorized and caller is not a trusted service.",
                forbidden,
                false,
            ),
            (
                "Caller is not authorized to perform action on resource.",
                forbidden,
                true,
            ),
            (
                "The user does not have keys unwrapKey permission on key vault 'v'.",
                forbidden,
                true,
            ),
            ("something new", forbidden, true),
        ] {
            for inner in ["innererror", "innerError", "other"] {
                let (found, pass, told) = told(403, &body("Forbidden", message, inner));
                assert_eq!((found, pass), (class, may_pass), "{message}");
                assert!(told.contains(message), "{told}");
            }
        }
    }

    #[test]
    fn what_is_no_answer_of_a_vault_denies_nothing() {
        for (status, class) in [
            (400, Class::Protocol),
            (401, Class::Protocol),
            (403, Class::Protocol),
            (404, Class::Protocol),
            (405, Class::Protocol),
            (302, Class::Protocol),
            (408, Class::Unreachable),
            (500, Class::Unreachable),
            (502, Class::Unreachable),
            (503, Class::Unreachable),
        ] {
            for body in ["", "<html>", "[]", "{\"error\":7}"] {
                assert_eq!(told(status, body).0, class, "{status} {body}");
            }
        }
        let version = body(
            "BadParameter",
            "The specified version (9) is not recognized",
            "x",
        );
        assert_eq!(told(400, &version).0, Class::Protocol);
        let deleted = body("ObjectIsDeletedButRecoverable", "…", "x");
        assert_eq!(told(409, &deleted).0, Class::Denied(Denied::Deleted));
        let recovered = body("Conflict", "is being recovered", "innererror");
        assert_eq!(told(409, &recovered).0, Class::Unreachable);
    }
}
