//! Tokens from the platform that this machine runs on: managed identities.
//!
//! These services speak plain HTTP, on this host or next to it. So whatever
//! they say is no denial: it is a matter of this host.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Method, Url};
use rustix::fs::{CWD, Mode, OFlags};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::login::{Number, Text, locked};
use super::session::{Granted, Token};
use super::settings::{Platform, Which};
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Error};
use crate::secret::Secret;

/// What the agent of Arc puts into a file has less.
const ARC_KEY_MAX: u64 = 4096;

#[derive(Deserialize)]
struct Answer {
    access_token: Text,
    #[serde(default)]
    expires_in: Option<Number>,
    #[serde(default)]
    expires_on: Option<Number>,
    #[serde(default)]
    client_id: Option<String>,
    #[serde(default)]
    object_id: Option<String>,
    #[serde(default, alias = "mi_res_id")]
    msi_res_id: Option<String>,
}

#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    message: String,
}

/// A token of this machine for `resource`.
pub(super) async fn token(
    http: &Http,
    platform: &Platform,
    which: &Which,
    resource: &str,
) -> Result<Granted, Failed> {
    match platform {
        Platform::Imds { endpoint } => {
            let url = endpoint.join(["metadata", "identity", "oauth2", "token"]);
            let url = query(url, "2018-02-01", resource, which, "msi_res_id");
            let request = Request::new(Method::GET, url).header("metadata", "true");
            granted(endpoint, which, &http.send(endpoint, request).await?)
        }
        Platform::AppService { endpoint, header } => {
            let url = query(endpoint.url(), "2019-08-01", resource, which, "mi_res_id");
            let secret = header
                .read()
                .map_err(|error| Failed::Everywhere(error.into()))?;
            // Azure Automation, which has the same form, wants both.
            let request = Request::new(Method::GET, url)
                .header("metadata", "true")
                .secret_header("x-identity-header", &secret)
                .ok_or_else(|| not_a_header("the identity header of App Service"))?;
            granted(endpoint, which, &http.send(endpoint, request).await?)
        }
        Platform::Arc { endpoint, keys } => {
            let url = query(endpoint.url(), "2020-06-01", resource, which, "msi_res_id");
            let request = || Request::new(Method::GET, url.clone()).header("metadata", "true");
            let reply = http.send(endpoint, request()).await?;
            if reply.status != 401 {
                return granted(endpoint, which, &reply);
            }
            let named = reply.header("www-authenticate").unwrap_or_default();
            let key = arc_key(named, keys).map_err(Failed::Everywhere)?;
            let basic = Zeroizing::new([b"Basic ", &key[..]].concat());
            let request = request()
                .secret_header("authorization", &basic)
                .ok_or_else(|| not_a_header("what the agent of Arc wrote"))?;
            let reply = http.send(endpoint, request).await?;
            let answer = granted(endpoint, which, &reply)?;
            confirmed(which, &reply)?;
            Ok(answer)
        }
    }
}

fn query(mut url: Url, api: &str, resource: &str, which: &Which, resource_id: &str) -> Url {
    let mut pairs = url.query_pairs_mut();
    pairs.append_pair("api-version", api);
    pairs.append_pair("resource", resource);
    match which {
        Which::System => &mut pairs,
        Which::Client(id) => pairs.append_pair("client_id", id.as_str()),
        Which::Object(id) => pairs.append_pair("object_id", id.as_str()),
        Which::Resource(id) => pairs.append_pair(resource_id, id),
    };
    drop(pairs);
    url
}

fn not_a_header(what: &str) -> Failed {
    Failed::Everywhere(Error::new(
        Class::Unreachable,
        format!("{what} has characters that no header has"),
        "let the platform write it anew",
    ))
}

/// The token in an answer.
fn granted(endpoint: &BaseUrl, which: &Which, reply: &Reply) -> Result<Granted, Failed> {
    if reply.status != 200 {
        return Err(refused(endpoint, which, reply));
    }
    let strange = || {
        Failed::Here(Error::new(
            Class::Protocol,
            format!("{endpoint} answers with no token, and does not say why"),
            "check what this machine runs on, and the address in identity",
        ))
    };
    let answer: Answer = serde_json::from_slice(&reply.body).map_err(|_| strange())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |time| time.as_secs());
    let within = answer.expires_in.as_ref().and_then(Number::get);
    let until = answer.expires_on.as_ref().and_then(Number::get);
    let seconds = within.or_else(|| until.map(|until| until.saturating_sub(now)));
    Ok(Granted {
        token: Token::new(locked(answer.access_token.0.as_bytes())?),
        lifetime: Duration::from_secs(seconds.ok_or_else(strange)?),
    })
}

fn refused(endpoint: &BaseUrl, which: &Which, reply: &Reply) -> Failed {
    let refusal: Refusal = serde_json::from_slice(&reply.body).unwrap_or_default();
    let words = [refusal.error_description, refusal.message, refusal.error];
    let words = words.into_iter().find(|words| !words.is_empty());
    let words = words.unwrap_or_default();
    let unreachable = |cause: String, next: &str| Error::new(Class::Unreachable, cause, next);
    let error = match reply.status {
        400 => {
            let which = match which {
                Which::System => "no system-assigned identity",
                _ => "no identity with the id that is configured",
            };
            let error = unreachable(
                format!("this machine has {which}: it was taken away, deleted, or never given to it"),
                "assign it (az vm identity assign --name VM --resource-group GROUP [--identities ID]), or correct identity in the key set",
            )
            .with_kind(Kind::Key);
            // Waiting does not give it one.
            return Failed::Everywhere(error.with_words(&words));
        }
        401 | 403 => unreachable(
            format!("{endpoint} gives this process no token"),
            "check that the process may ask (for Arc: group himds), and that no proxy answers in its place",
        ),
        429 => Error::new(
            Class::Throttled {
                retry_after: reply.retry_after,
            },
            format!("{endpoint} throttles this machine"),
            "wait; something else may be asking for tokens, too",
        ),
        404 | 410 | 500..600 => unreachable(
            format!("{endpoint} cannot answer now (status {})", reply.status),
            "wait: the platform is being updated; if it stays so, check what this machine runs on, and the address in identity",
        ),
        status => Error::new(
            Class::Protocol,
            format!("{endpoint} answers with status {status}, and not as Azure does"),
            "check what this machine runs on, and the address in identity",
        ),
    };
    Failed::Here(error.with_words(&words))
}

/// Old agents of Arc take no notice of the identity that is asked for.
fn confirmed(which: &Which, reply: &Reply) -> Result<(), Failed> {
    let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
    let (asked, told) = match (which, &answer) {
        (Which::System, _) => return Ok(()),
        (_, None) => return Ok(()),
        (Which::Client(id), Some(answer)) => (id.as_str(), &answer.client_id),
        (Which::Object(id), Some(answer)) => (id.as_str(), &answer.object_id),
        (Which::Resource(id), Some(answer)) => (id.as_str(), &answer.msi_res_id),
    };
    match told {
        Some(told) if told.eq_ignore_ascii_case(asked) => Ok(()),
        _ => Err(Failed::Everywhere(Error::new(
            Class::Unreachable,
            format!("the agent of Arc gives out another identity than {asked}"),
            "upgrade the agent, or use the system-assigned identity of this machine",
        ))),
    }
}

/// What the agent of Arc wrote into the file that it names, to see that we
/// are on this machine and may read it. Whoever answers in the agent's place
/// must not get to read any other file.
fn arc_key(challenge: &str, directory: &Path) -> Result<Secret, Error> {
    let bad = |why: String| {
        Error::new(
            Class::Unreachable,
            format!("the agent of Arc does not prove that it is one: {why}"),
            "find out who answers in its place; the agent writes into files that end in .key, and are below that directory",
        )
    };
    let path = challenge
        .trim()
        .split_once("realm=")
        .filter(|(scheme, _)| scheme.trim().eq_ignore_ascii_case("basic"))
        .map(|(_, path)| Path::new(path.trim().trim_matches('"')));
    let Some(path) = path else {
        return Err(bad("it names no file".into()));
    };
    let shown = path.display();
    if path.parent() != Some(directory) || path.extension().is_none_or(|end| end != "key") {
        return Err(bad(format!(
            "it names {shown}, which is no key file in {}",
            directory.display()
        )));
    }
    let unreadable = |why: String| {
        Error::new(
            Class::Unreachable,
            format!("cannot read {shown}, which the agent of Arc wrote: {why}"),
            "run sealblk as root, or put its user into the group himds",
        )
        .with_kind(Kind::Permission)
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| unreadable(error.to_string()))?;
    let file = File::from(file);
    let meta = file
        .metadata()
        .map_err(|error| unreadable(error.to_string()))?;
    if !meta.is_file() || meta.len() > ARC_KEY_MAX {
        return Err(bad(format!(
            "{shown} is no file of {ARC_KEY_MAX} bytes at most"
        )));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(ARC_KEY_MAX as usize + 1));
    file.take(ARC_KEY_MAX)
        .read_to_end(&mut text)
        .map_err(|error| unreadable(error.to_string()))?;
    Secret::copy_of(text.trim_ascii()).map_err(|error| crate::kms::envelope::no_memory(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_key_file_of_the_agent_is_read() {
        let home = tempfile::tempdir().unwrap();
        let keys = home.path().join("tokens");
        std::fs::create_dir_all(keys.join("below")).unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(keys.join(name), bytes).unwrap();
        put("good.key", b"secret\n");
        put("long.key", &[b'x'; 4097]);
        put("other.txt", b"secret");
        put("below/deep.key", b"secret");
        std::fs::write(home.path().join("outside.key"), "secret").unwrap();
        std::os::unix::fs::symlink(home.path().join("outside.key"), keys.join("link.key")).unwrap();
        let read = |challenge: &str| arc_key(challenge, &keys);
        let named = |name: &str| format!("Basic realm={}/{name}", keys.display());
        assert_eq!(&*read(&named("good.key")).unwrap(), b"secret");
        let quoted = format!("basic realm=\"{}/good.key\"", keys.display());
        assert!(read(&quoted).is_ok());
        for bad in [
            &*named("long.key"),
            &named("other.txt"),
            &named("below/deep.key"),
            &named("../outside.key"),
            &named("link.key"),
            &named("missing.key"),
            &named("below"),
            "Basic realm=/etc/shadow",
            "Bearer realm=x",
            "",
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.class(), Class::Unreachable, "{bad}");
        }
    }
}
