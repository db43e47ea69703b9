//! Where a vault says that tokens for it are to be had, and how far that is
//! believed.
//!
//! A vault that is asked without a token answers 401 and names an authority
//! with a tenant, and a resource. Whoever answers could name any: so that a
//! token for another service is never fetched and sent there, the resource has
//! to be that of the vault's own domain; and so that no credential goes to a
//! stranger, the authority has to be that of the vault's own cloud, or the one
//! that is configured.

use reqwest::Url;

use super::cloud;
use crate::kms::http::BaseUrl;
use crate::kms::{Class, Error};

/// What a token is to be for, and who gives it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The resource, such as `https://vault.azure.net`.
    pub resource: String,
    /// Who gives out tokens; `None` if that is not known. A managed identity
    /// needs none.
    pub authority: Option<BaseUrl>,
    /// The tenant of the vault, if it names one.
    pub tenant: Option<String>,
}

/// What the configuration says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trusted<'t> {
    pub vault: &'t BaseUrl,
    pub authority: Option<&'t BaseUrl>,
    pub resource: Option<&'t str>,
}

/// Reads and checks the header `WWW-Authenticate` of a vault.
pub(super) fn read(header: Option<&str>, trusted: Trusted<'_>) -> Result<Challenge, Error> {
    let vault = trusted.vault;
    let Some((resource, authorization)) = header.and_then(fields) else {
        return Err(Error::new(
            Class::Protocol,
            format!("{vault} wants to know who we are, and does not say how"),
            "check that the address is that of a Key Vault or a Managed HSM, and what is in between",
        ));
    };
    let resource = checked_resource(&resource, trusted)?;
    let url = Url::parse(&authorization).ok();
    let tenant = url.as_ref().and_then(tenant_of);
    let authority = match (trusted.authority, cloud::of_vault(vault.host())) {
        (Some(configured), _) => Some(configured.clone()),
        (None, Some((cloud, _))) => {
            let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
            let known = url.as_ref().is_some_and(|url| url.scheme() == "https")
                && cloud.sign_in_hosts.contains(&host);
            if !known {
                return Err(Error::new(
                    Class::Protocol,
                    format!(
                        "{vault} sends us to {host:?} to log in, which is none of {}: it is not followed",
                        cloud.name
                    ),
                    "find out who answers there; if it is meant so, name the authority in the key set: authority = \"https://HOST\"",
                )
                .with_words(&authorization));
            }
            cloud.authority.parse().ok()
        }
        (None, None) => None,
    };
    Ok(Challenge {
        resource,
        authority,
        tenant,
    })
}

fn checked_resource(resource: &str, trusted: Trusted<'_>) -> Result<String, Error> {
    let Trusted {
        vault,
        resource: configured,
        ..
    } = trusted;
    let named = resource.trim_end_matches("/.default").trim_end_matches('/');
    let ours = match configured {
        Some(configured) => configured.trim_end_matches('/') == named,
        None => {
            let url = Url::parse(named).ok().filter(|url| url.scheme() == "https");
            let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
            match cloud::of_vault(vault.host()) {
                Some((_, domain)) => host == domain,
                // A single label would be the domain of everybody.
                None => host.contains('.') && cloud::is_below(vault.host(), host),
            }
        }
    };
    if ours {
        return Ok(named.into());
    }
    Err(Error::new(
        Class::Protocol,
        format!("{vault} wants a token for something that it is not a part of: none is asked for"),
        "find out who answers there; if it is meant so, name what tokens are for in the key set: resource = \"https://DOMAIN\"",
    )
    .with_words(resource))
}

/// Resource (or scope) and authority of a `Bearer` challenge (RFC 7235).
fn fields(header: &str) -> Option<(String, String)> {
    let (scheme, rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let field = |wanted: &str| {
        rest.split(',').find_map(|part| {
            let (name, value) = part.split_once('=')?;
            let value = value.trim().trim_matches('"');
            (name.trim().eq_ignore_ascii_case(wanted) && !value.is_empty())
                .then(|| value.to_owned())
        })
    };
    let resource = field("resource").or_else(|| field("scope"))?;
    let authority = field("authorization").or_else(|| field("authorization_uri"))?;
    Some((resource, authority))
}

/// The tenant in an authority's address: the first part of its path.
fn tenant_of(authority: &Url) -> Option<String> {
    let tenant = authority.path_segments()?.next()?;
    is_tenant(tenant).then(|| tenant.to_owned())
}

/// Whether that can be the id or the domain name of a tenant.
pub(super) fn is_tenant(text: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"-.".contains(&c);
    (1..=253).contains(&text.len())
        && text.bytes().all(good)
        && text.bytes().any(|c| c.is_ascii_alphanumeric())
        && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "72f988bf-86f1-41af-91ab-2d7cd011db47";

    fn challenge(authority: &str, resource: &str) -> String {
        format!("Bearer authorization=\"{authority}/{TENANT}\", resource=\"{resource}\"")
    }

    fn read_at(vault: &str, header: &str) -> Result<Challenge, Error> {
        let trusted = Trusted {
            vault: &vault.parse().unwrap(),
            authority: None,
            resource: None,
        };
        read(Some(header), trusted)
    }

    #[test]
    fn a_vault_is_followed_within_its_own_cloud() {
        for (vault, login, resource, authority) in [
            (
                "https://v.vault.azure.net",
                "https://login.windows.net",
                "https://vault.azure.net",
                "https://login.microsoftonline.com",
            ),
            (
                "https://h.managedhsm.azure.net",
                "https://login.microsoftonline.com",
                "https://managedhsm.azure.net",
                "https://login.microsoftonline.com",
            ),
            (
                "https://v.vault.azure.cn",
                "https://login.partner.microsoftonline.cn",
                "https://vault.azure.cn",
                "https://login.chinacloudapi.cn",
            ),
        ] {
            let found = read_at(vault, &challenge(login, resource)).unwrap();
            assert_eq!(found.resource, resource);
            assert_eq!(found.tenant.as_deref(), Some(TENANT));
            assert_eq!(found.authority.unwrap().to_string(), authority);
        }
        let scope = format!(
            "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", scope=\"https://vault.azure.net/.default\""
        );
        let found = read_at("https://v.vault.azure.net", &scope).unwrap();
        assert_eq!(found.resource, "https://vault.azure.net");
    }

    #[test]
    fn a_token_for_something_else_is_not_asked_for() {
        const LOGIN: &str = "https://login.microsoftonline.com";
        for (vault, resource) in [
            ("https://v.vault.azure.net", "https://management.azure.com"),
            ("https://v.vault.azure.net", "https://azure.net"),
            ("https://v.vault.azure.net", "https://v.vault.azure.net"),
            ("https://v.vault.azure.net", "https://managedhsm.azure.net"),
            ("https://v.vault.azure.net", "http://vault.azure.net"),
            ("https://v.vault.azure.net", "vault.azure.net"),
            (
                "https://v.vault.azure.net.example",
                "https://vault.azure.net",
            ),
            ("https://evilvault.azure.net", "https://vault.azure.net"),
            ("https://kv.example", "https://example"),
            ("https://127.0.0.1:8443", "https://vault.azure.net"),
        ] {
            let error = read_at(vault, &challenge(LOGIN, resource)).unwrap_err();
            assert_eq!(error.class(), Class::Protocol, "{vault} {resource}");
            assert!(error.to_string().contains("not a part of"), "{error}");
        }
        // A cloud of its own: the domain decides.
        let found = read_at(
            "https://v.vault.stack.example",
            &challenge(LOGIN, "https://vault.stack.example/some-id"),
        )
        .unwrap();
        assert_eq!((found.authority, found.tenant.is_some()), (None, true));
    }

    #[test]
    fn no_credential_goes_to_a_strange_authority() {
        for login in [
            "https://login.microsoftonline.com.evil.example",
            "https://login.microsoftonline.us",
            "http://login.microsoftonline.com",
            "https://evil.example/login.microsoftonline.com",
            "nonsense",
        ] {
            let header = challenge(login, "https://vault.azure.net");
            let error = read_at("https://v.vault.azure.net", &header).unwrap_err();
            assert_eq!(error.class(), Class::Protocol, "{login}");
            assert!(error.to_string().contains("not followed"), "{error}");
        }
    }

    #[test]
    fn what_is_configured_rules() {
        let (vault, authority) = (
            "https://127.0.0.1:8443".parse().unwrap(),
            "https://127.0.0.1:9443".parse().unwrap(),
        );
        let trusted = Trusted {
            vault: &vault,
            authority: Some(&authority),
            resource: Some("https://vault.test/"),
        };
        let header = challenge("https://evil.example", "https://vault.test");
        let found = read(Some(&header), trusted).unwrap();
        assert_eq!(found.authority, Some(authority.clone()));
        let other = challenge("https://evil.example", "https://vault.azure.net");
        assert!(read(Some(&other), trusted).is_err());
    }

    #[test]
    fn what_is_no_challenge_is_told() {
        for header in [
            None,
            Some(""),
            Some("Basic realm=x"),
            Some("Bearer"),
            Some("Bearer resource=\"https://vault.azure.net\""),
            Some("Bearer authorization=\"\", resource=\"\""),
        ] {
            let vault = "https://v.vault.azure.net".parse().unwrap();
            let trusted = Trusted {
                vault: &vault,
                authority: None,
                resource: None,
            };
            let error = read(header, trusted).unwrap_err();
            assert_eq!(error.class(), Class::Protocol, "{header:?}");
        }
        for bad in ["", ".", "a/b", "a b", "..", "é"] {
            assert!(!is_tenant(bad), "{bad:?}");
        }
    }
}
