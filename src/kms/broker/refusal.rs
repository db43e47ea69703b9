//! What is not a sealed answer: bare HTTP statuses and garbled bodies.
//!
//! They come from a broker that does not know us, from something between, or
//! from somebody who would like us to believe that we may not. None of them is
//! a denial, or says anything of a key.

use std::time::Duration;

use super::client::Client;
use super::protocol::{Malformed, Problem, ProblemKind, VERSION};
use super::seal;
use crate::kms::http::Reply;
use crate::kms::{Class, Error};

/// The longest that anybody who has not been authenticated can have a broker
/// left alone.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What a bare answer is about, if it says so.
pub(super) fn problem(reply: &Reply) -> Option<Problem> {
    serde_json::from_slice(&reply.body).ok()
}

/// The error of a bare answer.
pub(super) fn bare(client: &Client, path: &str, reply: &Reply) -> Error {
    use ProblemKind as P;
    let (endpoint, host) = (client.endpoint(), &client.settings().host);
    let said = problem(reply);
    let kind = said.as_ref().map(|said| said.problem);
    let (class, cause, next) = match (reply.status, kind) {
        (_, Some(P::Version)) => (
            Class::Protocol,
            format!("{endpoint} does not speak version {VERSION} of the broker protocol"),
            "use releases of sealblk on hosts and brokers that have a version of the protocol in common".into(),
        ),
        (403, _) => (
            Class::Unreachable,
            format!("{endpoint} does not know this host as {host}"),
            format!(
                "have its policy list host {host:?} with the name in client_cert and with the public key of host_key (`sealblk broker pubkey FILE`); its audit log says what did not fit"
            ),
        ),
        (409, _) => (
            Class::Unreachable,
            format!("{endpoint} does not take the challenges that it gives"),
            "name each broker as an endpoint of its own: behind a load balancer, a challenge comes to another broker than the one that made it".into(),
        ),
        (429 | 503, _) => (
            Class::Throttled {
                retry_after: reply.retry_after.map(|time| time.min(WAIT_MAX)),
            },
            format!("{endpoint} has too many calls"),
            "name more brokers in endpoints, or raise the limits of this one".into(),
        ),
        (413, _) => (
            Class::Protocol,
            format!("{endpoint} finds the request too large"),
            "see that nothing in between limits requests to less than 64 KiB".into(),
        ),
        (404 | 405, _) => (
            Class::Protocol,
            format!("{endpoint} has no {path}"),
            "check that the endpoint is that of a sealblk broker, and what is in between".into(),
        ),
        (400, _) => (
            Class::Protocol,
            format!("{endpoint} does not understand the request"),
            "check that the endpoint is that of a sealblk broker, and what is in between".into(),
        ),
        (300..400, _) => (
            Class::Unreachable,
            format!("{endpoint} points elsewhere (status {}), which is not followed", reply.status),
            "name the brokers themselves in endpoints".into(),
        ),
        (200..300, _) => (
            Class::Unreachable,
            format!("{endpoint} answers {path} with status {}, and not as a broker does", reply.status),
            "check that the endpoint is that of a sealblk broker, and what is in between".into(),
        ),
        (status, _) => (
            Class::Unreachable,
            format!("{endpoint} cannot answer now (status {status})"),
            "see what the broker, and what is in between, log".into(),
        ),
    };
    let error = Error::new(class, cause, next);
    match said {
        Some(said) => error.with_words(&said.detail),
        None => error,
    }
}

/// The error of a body that is not what it should be, and that anybody may
/// have made.
pub(super) fn garbled(client: &Client, path: &str, why: &Malformed) -> Error {
    Error::new(
        Class::Unreachable,
        format!(
            "{} answers {path} with something else than a broker does: {why}",
            client.endpoint()
        ),
        "check that the endpoint is that of a sealblk broker, and what is in between",
    )
}

/// The error of an answer that does not open.
pub(super) fn unopened(client: &Client, error: &seal::Error) -> Error {
    let endpoint = client.endpoint();
    match error {
        seal::Error::Memory(error) => crate::kms::envelope::no_memory(error),
        seal::Error::Version(_) => Error::new(
            Class::Protocol,
            format!("the answer of {endpoint} is not understood: {error}"),
            "use releases of sealblk on hosts and brokers that have a version of the protocol in common",
        ),
        seal::Error::Unauthentic | seal::Error::Key(_) => Error::new(
            Class::Unreachable,
            format!(
                "what came from {endpoint} is not the answer of its broker to this request: {error}"
            ),
            "see what stands between this host and the broker: the answer was changed on its way, or is that of another request",
        ),
    }
}

/// The error of a broker that shows a key which we were not told of.
pub(super) fn unknown_key(client: &Client, key: &seal::PublicKey) -> Error {
    Error::new(
        Class::Unreachable,
        format!(
            "{} has the public key {key}, which is not one of broker_keys",
            client.endpoint()
        ),
        "compare it with what `sealblk broker pubkey FILE` prints at the broker, and add it to broker_keys only if it is the same",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zeroize::Zeroizing;

    use super::super::Settings;
    use super::*;
    use crate::error::Explain;
    use crate::kms::credential::SecretFile;
    use crate::kms::http::Http;
    use crate::kms::tls;

    fn client() -> Client {
        let endpoint: crate::kms::http::BaseUrl = "https://broker:8843".parse().unwrap();
        let settings = Settings {
            endpoints: vec![endpoint.clone()],
            host: "hv1".parse().unwrap(),
            host_key: SecretFile::new("/none"),
            broker_keys: Vec::new(),
            tls: tls::Settings::default(),
            timing: Default::default(),
        };
        let http = Arc::new(Http::new(settings.tls.clone()));
        Client::new(endpoint, http, Arc::new(settings))
    }

    #[test]
    fn no_bare_status_denies_anything_or_says_that_a_key_is_gone() {
        let client = client();
        let problems = [
            "malformed",
            "version",
            "unknown",
            "challenge",
            "too-large",
            "busy",
            "internal",
            "new",
        ];
        let bodies = problems
            .map(|problem| format!(r#"{{"problem":"{problem}","detail":"some words"}}"#))
            .into_iter()
            .chain(["".into(), "{}".into(), "<html>".into()]);
        for body in bodies {
            for status in 100..600 {
                let reply = Reply {
                    status,
                    retry_after: Some(Duration::from_secs(86_400)),
                    location: None,
                    date: None,
                    headers: Default::default(),
                    body: Zeroizing::new(body.clone().into_bytes()),
                };
                let error = bare(&client, "v1/broker/call", &reply);
                match error.class() {
                    Class::Unreachable | Class::Protocol => {}
                    Class::Throttled { retry_after } => {
                        assert_eq!(retry_after, Some(WAIT_MAX), "not for a day");
                    }
                    class => panic!("status {status} with {body}: {class}"),
                }
                assert!(!error.help().unwrap().is_empty());
                assert!(error.to_string().contains("https://broker:8843"), "{error}");
                assert_eq!(error.words().is_some(), body.contains("words"));
            }
        }
    }
}
