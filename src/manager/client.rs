//! The other end of the API: what commands ask the manager with.
#![forbid(unsafe_code)]

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::api::{CORRELATION, ProblemDetails, Turn};
use super::model::{
    Attach, ChangeWraps, DiskChange, DiskInfo, DiskList, EraseVolume, ErasedVolume, Freeze,
    KeySetCheck, KeySetInfo, KeySetRotation, KeySetSwitch, NewKeySet, RekeyChange, RekeysStarted,
    Reloaded, Resume, StartRekey, Status, Verification, Verify, WrapsChanged,
};
use super::model::{UpgradeDisk, UpgradeManager, UpgradedDisk, UpgradedManager};
use crate::error::{Failure, Kind};
use crate::rekey::Direction;
use crate::rotation::KeySetLedger;

/// The most that an answer may have: a thousand disks have a hundredth.
const ANSWER_MAX: usize = 64 << 20;

/// How long a request waits for a change of the disks before it is repeated.
const WATCH: Duration = Duration::from_secs(30);

/// A client of the manager at one socket.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    socket: PathBuf,
}

impl Client {
    /// A client of the manager that listens at `socket`. Nothing is connected
    /// to yet.
    ///
    /// # Errors
    /// When an HTTP client cannot be made.
    pub fn new(socket: &Path) -> Result<Self, Failure> {
        let broken = |error: String| Failure::new(Kind::Internal, error, None);
        // Never used, but there is no client without it.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| broken(error.to_string()))?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(socket)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("sealblk/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| broken(error.to_string()))?;
        let base = Url::parse("http://localhost").map_err(|error| broken(error.to_string()))?;
        Ok(Client {
            http,
            base,
            socket: socket.to_owned(),
        })
    }

    /// What the manager is doing.
    ///
    /// # Errors
    /// When it does not answer, or answers with a problem, as all the others.
    pub async fn status(&self) -> Result<Status, Failure> {
        self.get(&["v1", "status"]).await
    }

    /// All disks.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn disks(&self) -> Result<DiskList, Failure> {
        self.get(&["v1", "disks"]).await
    }

    /// All disks, as soon as their revision is another one than `after`, or
    /// after half a minute.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn disks_after(&self, after: u64) -> Result<DiskList, Failure> {
        let query = [
            ("after", after.to_string()),
            ("wait", WATCH.as_secs().to_string()),
        ];
        let url = self.url(&["v1", "disks"], &query);
        self.call(Method::GET, url, None::<&()>).await
    }

    /// One disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn disk(&self, name: &str) -> Result<DiskInfo, Failure> {
        self.get(&["v1", "disks", name]).await
    }

    /// Attaches a disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn attach(&self, attach: &Attach) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks"], &[]);
        self.call(Method::POST, url, Some(attach)).await
    }

    /// Detaches a disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn detach(&self, name: &str, force: bool) -> Result<(), Failure> {
        let query = [("force", force.to_string())];
        let url = self.url(&["v1", "disks", name], &query);
        self.done(Method::DELETE, url).await
    }

    /// Changes an attached disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn change_disk(&self, name: &str, change: &DiskChange) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name], &[]);
        self.call(Method::PATCH, url, Some(change)).await
    }

    /// Has all data of disks moved to other keys, or decrypted.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn rekey(&self, wanted: &StartRekey) -> Result<RekeysStarted, Failure> {
        let url = self.url(&["v1", "rekeys"], &[]);
        self.call(Method::POST, url, Some(wanted)).await
    }

    /// Lets that rest or go on, faster or slower.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn change_rekey(&self, name: &str, change: RekeyChange) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name, "rekey"], &[]);
        self.call(Method::PATCH, url, Some(&change)).await
    }

    /// Has it go the other way.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn turn_rekey(&self, name: &str, direction: Direction) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name, "rekey", "turn"], &[]);
        self.call(Method::POST, url, Some(&Turn { direction }))
            .await
    }

    /// Freezes a disk, and returns when it is.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn freeze(&self, name: &str, how: Freeze) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name, "freeze"], &[]);
        self.call(Method::POST, url, Some(&how)).await
    }

    /// Replaces the worker of a disk.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn upgrade_disk(
        &self,
        name: &str,
        how: &UpgradeDisk,
    ) -> Result<UpgradedDisk, Failure> {
        let url = self.url(&["v1", "disks", name, "upgrade"], &[]);
        self.call(Method::POST, url, Some(how)).await
    }

    /// Has the manager replaced by another program.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn upgrade(&self, how: &UpgradeManager) -> Result<UpgradedManager, Failure> {
        let url = self.url(&["v1", "upgrade"], &[]);
        self.call(Method::POST, url, Some(how)).await
    }

    /// Lets a frozen disk go on.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn thaw(&self, name: &str) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name, "thaw"], &[]);
        self.call(Method::POST, url, None::<&()>).await
    }

    /// Tries again what waits because the disk below fails, or fails it.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn resume(&self, name: &str, wanted: Resume) -> Result<DiskInfo, Failure> {
        let url = self.url(&["v1", "disks", name, "resume"], &[]);
        self.call(Method::POST, url, Some(&wanted)).await
    }

    /// All key sets.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn key_sets(&self) -> Result<Vec<KeySetInfo>, Failure> {
        self.get(&["v1", "key-sets"]).await
    }

    /// One key set.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn key_set(&self, name: &str) -> Result<KeySetInfo, Failure> {
        self.get(&["v1", "key-sets", name]).await
    }

    /// Makes a key set.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn create_key_set(
        &self,
        new: &NewKeySet,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let url = self.url(&["v1", "key-sets"], &[("check", check.to_string())]);
        self.call(Method::POST, url, Some(new)).await
    }

    /// Changes settings of a key set, by a merge patch to its definition.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn edit_key_set(
        &self,
        name: &str,
        changes: &Map<String, Value>,
        check: bool,
    ) -> Result<KeySetInfo, Failure> {
        let query = [("check", check.to_string())];
        let url = self.url(&["v1", "key-sets", name], &query);
        self.call(Method::PATCH, url, Some(changes)).await
    }

    /// Removes a key set.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn remove_key_set(&self, name: &str, force: bool) -> Result<(), Failure> {
        let query = [("force", force.to_string())];
        let url = self.url(&["v1", "key-sets", name], &query);
        self.done(Method::DELETE, url).await
    }

    /// Asks the service of a key set for the state of its key.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn check_key_set(&self, name: &str) -> Result<KeySetCheck, Failure> {
        let url = self.url(&["v1", "key-sets", name, "check"], &[]);
        self.call(Method::POST, url, None::<&()>).await
    }

    /// Destroys the key of a volume.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn erase_volume(&self, erase: &EraseVolume) -> Result<ErasedVolume, Failure> {
        let url = self.url(&["v1", "volumes", "erase"], &[]);
        self.call(Method::POST, url, Some(erase)).await
    }

    /// Makes or destroys wraps for break-glass access.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn change_wraps(&self, change: &ChangeWraps) -> Result<WrapsChanged, Failure> {
        let url = self.url(&["v1", "volumes", "wraps"], &[]);
        self.call(Method::POST, url, Some(change)).await
    }

    /// Has the volumes of a key set follow its key.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn rotate_key_set(&self, name: &str) -> Result<KeySetRotation, Failure> {
        let url = self.url(&["v1", "key-sets", name, "rotate"], &[]);
        self.call(Method::POST, url, None::<&()>).await
    }

    /// Makes a key set one of another key or service.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn switch_key_set(
        &self,
        name: &str,
        wanted: &KeySetSwitch,
    ) -> Result<KeySetRotation, Failure> {
        let url = self.url(&["v1", "key-sets", name, "switch"], &[]);
        self.call(Method::POST, url, Some(wanted)).await
    }

    /// Which volumes need which version of the key of each key set, or of one.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn ledger(&self, key_set: Option<&str>) -> Result<Vec<KeySetLedger>, Failure> {
        let query: Vec<_> = key_set
            .map(|name| ("key_set", name.to_owned()))
            .into_iter()
            .collect();
        let url = self.url(&["v1", "ledger"], &query);
        self.call(Method::GET, url, None::<&()>).await
    }

    /// Forgets a volume that is gone for good.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn forget_volume(&self, volume: Uuid) -> Result<(), Failure> {
        let url = self.url(&["v1", "ledger", &volume.to_string()], &[]);
        self.done(Method::DELETE, url).await
    }

    /// Has a disk verified, which takes as long as it takes. Dropping this ends
    /// it.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn verify(&self, wanted: &Verify) -> Result<Verification, Failure> {
        let url = self.url(&["v1", "verifications"], &[]);
        self.call(Method::POST, url, Some(wanted)).await
    }

    /// Lets the manager read its configuration again.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn reload(&self) -> Result<Reloaded, Failure> {
        let url = self.url(&["v1", "reload"], &[]);
        self.call(Method::POST, url, None::<&()>).await
    }

    /// An address below the base, of segments that are taken literally.
    fn url(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, Failure> {
        // A URL takes these two for steps in the path; nothing is called so.
        if segments.iter().any(|segment| [".", ".."].contains(segment)) {
            return Err(Failure::new(
                Kind::NotFound,
                "nothing is called \".\" or \"..\"",
                Some("`sealblk list` names the disks".into()),
            ));
        }
        self.call(Method::GET, self.url(segments, &[]), None::<&()>)
            .await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| {
            Failure::new(
                Kind::Usage,
                format!("it cannot be asked for: {error}"),
                Some("the manager takes paths in UTF-8 alone".into()),
            )
        })?;
        let bytes = self.send(method, url, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_understood(&error.to_string()))
    }

    async fn done(&self, method: Method, url: Url) -> Result<(), Failure> {
        self.send(method, url, None).await.map(drop)
    }

    /// The body of the answer, if it is a good one.
    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request
                .header(reqwest::header::CONTENT_TYPE, "application/json")
                .body(body);
        }
        let mut response = request
            .send()
            .await
            .map_err(|error| self.unreached(&error))?;
        let status = response.status();
        if let Some(id) = response.headers().get(&CORRELATION) {
            tracing::debug!(%status, correlation = ?id, "the manager answered");
        }
        let bytes = self.read(&mut response).await?;
        match status.is_success() {
            true => Ok(bytes),
            false => Err(self.problem(status, &bytes)),
        }
    }

    async fn read(&self, response: &mut Response) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreached(&error))?
        {
            if bytes.len() + chunk.len() > ANSWER_MAX {
                return Err(self.not_understood("it is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn problem(&self, status: StatusCode, bytes: &[u8]) -> Failure {
        match serde_json::from_slice::<ProblemDetails>(bytes) {
            Ok(details) => details.into(),
            Err(_) => self.not_understood(&format!("status {status}")),
        }
    }

    fn not_understood(&self, why: &str) -> Failure {
        Failure::new(
            Kind::Unsupported,
            format!(
                "what answers at {} is not understood: {why}",
                self.socket.display()
            ),
            Some("check that it is a sealblk daemon, of this version: `sealblk version`".into()),
        )
    }

    /// Why there was no answer.
    fn unreached(&self, error: &reqwest::Error) -> Failure {
        let socket = self.socket.display();
        let mut source = error.source();
        let mut io = None;
        let mut words = error.to_string();
        while let Some(inner) = source {
            words = inner.to_string();
            io = inner.downcast_ref::<io::Error>().or(io);
            source = inner.source();
        }
        match io.map(io::Error::kind) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Failure::new(
                Kind::Unreachable,
                format!("no sealblk daemon answers at {socket}"),
                Some("start it with `systemctl start sealblk` or `sealblk daemon`, or name its socket with --daemon; `sealblk serve` serves a volume without a daemon".into()),
            ),
            Some(io::ErrorKind::PermissionDenied) => Failure::new(
                Kind::Permission,
                format!("you may not connect to the sealblk daemon at {socket}"),
                Some(format!("join the group of the socket (`stat -c %G {socket}` names it), or ask the administrator of this host")),
            ),
            _ => Failure::new(
                Kind::Unreachable,
                format!("the sealblk daemon at {socket} gave no answer: {words}"),
                Some("try again; `journalctl -u sealblk` may say more".into()),
            ),
        }
    }
}
