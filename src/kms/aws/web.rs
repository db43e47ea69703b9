//! The requests that the library makes to get credentials: through our own
//! client, so that what holds for it holds for them (certificates, no
//! redirects, no proxies, bounded answers), and to nobody but those meant.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqsign_core::HttpSend;
use reqwest::Url;
use zeroize::Zeroizing;

use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::http::{BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Error};

/// Where metadata services are, on networks that end at this host: EC2 (with
/// IPv6 as well), ECS, and EKS (with IPv6 as well).
const METADATA: [&str; 5] = [
    "169.254.169.254",
    "fd00:ec2::254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::23",
];

/// How long a metadata service may take. Where there is none, nothing answers.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends for a source of credentials.
#[derive(Clone, Debug)]
pub(super) struct Web {
    pub(super) http: Arc<Http>,
    /// Requests to the first are sent to the second.
    pub(super) instead: Option<(BaseUrl, BaseUrl)>,
    /// How long a service may take.
    pub(super) timeout: Duration,
}

/// Whether TLS may be left out: the way to this host does not leave it.
fn is_beside_us(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) => {
            address.is_loopback() || METADATA.iter().any(|text| text.parse() == Ok(address))
        }
        Err(_) => host == "localhost",
    }
}

/// The address, if credentials may be asked for there.
pub(super) fn permitted(text: &str) -> Result<Url, String> {
    let bad = |why: &str| Err(format!("{text:?} gives no credentials: {why}"));
    let Ok(url) = Url::parse(text) else {
        return bad("it is not an address");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return bad("credentials do not belong into an address");
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_beside_us(&url) => Ok(url),
        "http" => bad(
            "without TLS only this host itself and the link-local metadata services of EC2, ECS and EKS are asked",
        ),
        _ => bad("write https://HOST/PATH"),
    }
}

impl Web {
    async fn send(&self, request: http::Request<Bytes>) -> Result<Reply, Error> {
        let (head, body) = request.into_parts();
        let mut url = permitted(&head.uri.to_string()).map_err(|why| {
            Error::new(
                Class::Unreachable,
                why,
                "check what the AWS_… environment variables or the key set say of it",
            )
            .with_kind(Kind::Usage)
        })?;
        if let Some((usual, instead)) = &self.instead
            && url.host_str() == Some(usual.host())
        {
            url = instead.join([]);
        }
        let limit = match url.scheme() {
            "http" => METADATA_TIMEOUT.min(self.timeout),
            _ => self.timeout,
        };
        let mut shown = url.clone();
        // The path may be long, and is not what one has to know.
        shown.set_path("");
        shown.set_query(None);
        let endpoint = BaseUrl::decided_elsewhere(shown);
        let mut request = Request::new(head.method, url).headers(head.headers);
        if !body.is_empty() {
            request = request.body(body);
        }
        match tokio::time::timeout(limit, self.http.send(&endpoint, request)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Failed::Here(error) | Failed::Everywhere(error))) => Err(error),
            Err(_) => Err(Error::new(
                Class::Unreachable,
                format!(
                    "{endpoint} did not answer within {:.1} s",
                    limit.as_secs_f64()
                ),
                "check that this host is where such credentials are to be had, and that no firewall drops the connection",
            )),
        }
    }
}

impl HttpSend for Web {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let reply = self.send(request).await.map_err(|error| {
            reqsign_core::Error::unexpected("there is no answer").with_source(error)
        })?;
        http::Response::builder()
            .status(reply.status)
            .body(Bytes::from_owner(Kept(reply.body)))
            .map_err(reqsign_core::Error::from)
    }
}

/// An answer, wiped when it is not needed any more.
struct Kept(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_nobody_far_away_is_asked() {
        for good in [
            "https://sts.eu-central-1.amazonaws.com/",
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/v2/credentials/x",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::254]/latest",
            "http://[fd00:ec2:0::23]/v1/credentials",
            "http://127.0.0.1:8000/x",
            "http://localhost:8000/x",
        ] {
            assert!(permitted(good).is_ok(), "{good}");
        }
        for bad in [
            "http://169.254.169.253/",
            "http://169.254.169.254.example/",
            "http://10.0.0.1/",
            "http://metadata.example/",
            "http://u:p@169.254.170.2/",
            "ftp://127.0.0.1/",
            "nothing",
        ] {
            let error = permitted(bad).unwrap_err();
            assert!(error.contains("gives no credentials"), "{error}");
        }
    }
}
