//! One endpoint: signed requests, and other credentials where some are refused.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use reqsign_aws_v4::RequestSigner;
use reqsign_core::{Context, SignRequest};
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::answer::{self, Question};
use super::credentials::{Credentials, Loaded};
use super::region::Region;
use super::settings::{Endpoint, Settings};
use crate::kms::cluster::Failed;
use crate::kms::http::{self, BaseUrl, Http, Reply, Request};
use crate::kms::{Class, Error, call};

/// KMS in one region, with credentials of its own: where a region fails, its
/// STS does too.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: Endpoint,
    http: Arc<Http>,
    settings: Arc<Settings>,
    credentials: Credentials,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.url.fmt(f)
    }
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, http: Arc<Http>, settings: Arc<Settings>) -> Self {
        let credentials = Credentials::new(
            settings.identity.clone(),
            endpoint.region.clone(),
            http.clone(),
            settings.timing.timeout,
        );
        Client {
            endpoint,
            http,
            settings,
            credentials,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn region(&self) -> &Region {
        &self.endpoint.region
    }

    pub(super) fn url(&self) -> &BaseUrl {
        &self.endpoint.url
    }

    pub(super) async fn loaded(&self) -> Result<Arc<Loaded>, Failed> {
        self.credentials.get().await
    }

    /// An operation of KMS, and its answer if that is a success.
    ///
    /// A session may end before its time, and a key be replaced where we have
    /// it from; so one more try is made with what is there then.
    pub(super) async fn ask<'q>(
        &'q self,
        operation: &'static str,
        key: &'q str,
        body: &impl Serialize,
    ) -> Result<(Question<'q>, Reply), Failed> {
        let question = Question {
            endpoint: &self.endpoint.url,
            region: &self.endpoint.region,
            operation,
            key,
        };
        let body = http::json(body)?;
        let loaded = self.loaded().await?;
        let mut reply = self.post(operation, body.clone(), &loaded).await?;
        if answer::fault(&reply).is_some_and(|fault| answer::wants_other_credentials(&fault))
            && let Some(other) = self.credentials.after(&loaded).await?
        {
            reply = self.post(operation, body, &other).await?;
        }
        if reply.status == 200 {
            return Ok((question, reply));
        }
        let refusal = answer::refusal(&question, &reply);
        // No endpoint takes what was signed at another time.
        match answer::fault(&reply).is_some_and(|fault| answer::is_clock(&fault)) {
            true => Err(Failed::Everywhere(refusal)),
            false => Err(Failed::Here(refusal)),
        }
    }

    async fn post(
        &self,
        operation: &'static str,
        body: Bytes,
        loaded: &Loaded,
    ) -> Result<Reply, Failed> {
        let url = self.endpoint.url.join([]);
        let target = format!("TrentService.{operation}");
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", &*target),
        ];
        let signed = self.signed("kms", &url, &headers, &body, loaded).await?;
        let request = Request::new(Method::POST, url).headers(signed).body(body);
        self.send(request).await
    }

    async fn send(&self, request: Request) -> Result<Reply, Failed> {
        let reply = self.http.send(&self.endpoint.url, request).await?;
        let id = reply.headers.get("x-amzn-requestid");
        if let Some(id) = id.and_then(|id| id.to_str().ok()) {
            call::note_request_id(id);
        }
        Ok(reply)
    }

    /// An operation that nobody has signed: it is refused, and tells whether
    /// KMS is there, and what time it has.
    pub(super) async fn unsigned(&self) -> Result<Reply, Failed> {
        let request = Request::new(Method::POST, self.endpoint.url.join([]))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "TrentService.DescribeKey")
            .body(Bytes::from_static(b"{}"));
        self.send(request).await
    }

    /// What STS says of the credentials.
    pub(super) async fn caller_identity(&self, loaded: &Loaded) -> Result<Reply, Failed> {
        let own = self.settings.identity.sts_endpoint.clone();
        let sts = match own {
            Some(own) => own,
            None => self.endpoint.region.sts().map_err(unsigned)?,
        };
        let url = sts.join([]);
        let body = Bytes::from_static(b"Action=GetCallerIdentity&Version=2011-06-15");
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let signed = self.signed("sts", &url, &headers, &body, loaded).await?;
        let request = Request::new(Method::POST, url).headers(signed).body(body);
        self.http.send(&sts, request).await
    }

    /// `headers` and those that sign them and `body`.
    async fn signed(
        &self,
        service: &str,
        url: &Url,
        headers: &[(&str, &str)],
        body: &[u8],
        loaded: &Loaded,
    ) -> Result<HeaderMap, Failed> {
        let digest = Sha256::digest(body);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut building = ::http::Request::builder()
            .method(Method::POST)
            .uri(url.as_str())
            // Without it the library signs that the body is not signed.
            .header("x-amz-content-sha256", digest);
        for (name, value) in headers {
            building = building.header(*name, *value);
        }
        let (mut head, ()) = building.body(()).map_err(unsigned)?.into_parts();
        RequestSigner::new(service, self.endpoint.region.as_str())
            .sign_request(&Context::new(), &mut head, Some(loaded.credential()), None)
            .await
            .map_err(unsigned)?;
        // The same again comes with each request.
        head.headers.remove("host");
        Ok(head.headers)
    }
}

fn unsigned(why: impl fmt::Display) -> Failed {
    Failed::Everywhere(
        Error::new(
            Class::Unreachable,
            "the request cannot be signed with these credentials",
            "see that the credentials are whole, and have not ended",
        )
        .with_words(&why.to_string()),
    )
}
