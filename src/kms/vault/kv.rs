//! Secrets of a KV engine of version 2: small JSON objects that the service
//! keeps as they are, with a version for each change.
//!
//! A change is made with check-and-set, so that nobody overwrites what somebody
//! else wrote meanwhile. A secret is destroyed with all its versions: to delete
//! only the last one would leave it there for whoever undeletes it. An engine
//! of version 1 knows neither, answers the same requests, and would keep our
//! writes in another place: it is looked for, and refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::{self, Question};
use super::client::Client;
use super::settings::{KeyName, MountPath, Settings};
use crate::error::Kind;
use crate::kms::cluster::{Cluster, Failed};
use crate::kms::http::Reply;
use crate::kms::{Class, Denied, Error};

/// A folder of secrets, as one identity may use them.
#[derive(Debug)]
pub struct Kv {
    cluster: Cluster<Client>,
    mount: MountPath,
    folder: MountPath,
    /// Whether the mount was found to be what it has to be.
    checked: AtomicBool,
}

/// A secret that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Secret {
    /// What somebody wrote.
    pub data: Value,
    /// Its version, from 1.
    pub version: u64,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is there, with this version.
    Version(u64),
    /// The secret has another version than was expected, and stays as it is.
    Conflict,
}

#[derive(Deserialize)]
struct ReadAnswer {
    data: ReadData,
}

#[derive(Deserialize)]
struct ReadData {
    data: Option<Value>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

#[derive(Deserialize)]
struct WriteAnswer {
    data: Metadata,
}

#[derive(Deserialize)]
struct ListAnswer {
    data: Keys,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct MountAnswer {
    data: Mounted,
}

#[derive(Deserialize)]
struct Mounted {
    #[serde(rename = "type")]
    kind: String,
    /// `null` where the engine has none.
    #[serde(default)]
    options: Option<BTreeMap<String, Value>>,
}

impl Kv {
    /// The secrets in `folder` of the engine that `settings` name as the mount.
    /// Nothing is read or connected to yet.
    pub fn new(settings: Settings, folder: MountPath) -> Self {
        Kv {
            mount: settings.mount.clone(),
            folder,
            checked: AtomicBool::new(false),
            cluster: super::cluster(settings),
        }
    }

    /// Where a secret is, as people name it at the service.
    pub fn path(&self, name: &KeyName) -> String {
        format!("{}/{}/{name}", self.mount, self.folder)
    }

    /// The endpoints, for messages.
    pub fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self.cluster.endpoints().map(Client::to_string).collect();
        endpoints.join(", ")
    }

    /// Reads a secret. `None` if no endpoint has it.
    ///
    /// # Errors
    /// As the service answers. One that somebody deleted, and that could be
    /// undeleted, is [`Denied::Deleted`].
    pub async fn read(&self, name: &KeyName) -> Result<Option<Secret>, Error> {
        let read = self.cluster.call(async |client: &Client| {
            let (question, reply) = self
                .ask(client, Method::GET, "data", Some(name), None)
                .await?;
            match reply.status {
                200..300 => {
                    let answer: Result<ReadAnswer, Failed> = answer::parse(&question, &reply);
                    let Ok(ReadAnswer { data }) = answer else {
                        self.check_mount(client).await?;
                        return Err(not_kv(&question, reply.status).into());
                    };
                    Ok(Secret {
                        version: data.metadata.version,
                        data: data.data.unwrap_or_default(),
                    })
                }
                404 => {
                    // With a body of its own where there were versions.
                    if let Ok(gone) = serde_json::from_slice::<ReadAnswer>(&reply.body) {
                        return Err(self.deleted(name, &gone.data.metadata).into());
                    }
                    self.check_mount(client).await?;
                    // On another endpoint it may be there by now.
                    Err(absent(&question).into())
                }
                status => {
                    if status == 403 {
                        // A mount that is not there is not permitted either.
                        self.check_mount(client).await?;
                    }
                    Err(refusal(&question, &reply).into())
                }
            }
        });
        match read.await {
            Ok(secret) => Ok(Some(secret)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a secret, if its present version is `expected`; `None` if there
    /// must be none.
    ///
    /// A write whose answer was lost may have happened: the next attempt is
    /// then a conflict, and the secret is what was written.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn write(
        &self,
        name: &KeyName,
        data: &Value,
        expected: Option<u64>,
    ) -> Result<Written, Error> {
        #[derive(Serialize)]
        struct Options {
            cas: u64,
        }
        #[derive(Serialize)]
        struct Write<'w> {
            data: &'w Value,
            options: Options,
        }
        let body = Write {
            data,
            options: Options {
                cas: expected.unwrap_or(0),
            },
        };
        let body = serde_json::to_value(body).map_err(|_| unwritable())?;
        self.cluster
            .call(async |client: &Client| {
                self.check_mount(client).await?;
                let (question, reply) = self
                    .ask(client, Method::POST, "data", Some(name), Some(&body))
                    .await?;
                match reply.status {
                    200..300 => match answer::parse::<WriteAnswer>(&question, &reply) {
                        Ok(answer) => Ok(Written::Version(answer.data.version)),
                        Err(_) => Err(not_kv(&question, reply.status).into()),
                    },
                    400 if says(&reply, "check-and-set parameter did not match") => {
                        Ok(Written::Conflict)
                    }
                    _ => Err(refusal(&question, &reply).into()),
                }
            })
            .await
    }

    /// Destroys a secret: all its versions, and that it ever was. None that
    /// was not there is no error.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn destroy(&self, name: &KeyName) -> Result<(), Error> {
        self.cluster
            .call(async |client: &Client| {
                self.check_mount(client).await?;
                let (question, reply) = self
                    .ask(client, Method::DELETE, "metadata", Some(name), None)
                    .await?;
                match reply.status {
                    200..300 | 404 => Ok(()),
                    _ => Err(refusal(&question, &reply).into()),
                }
            })
            .await
    }

    /// The names of the secrets in the folder.
    ///
    /// # Errors
    /// As the service answers.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        let listed = self.cluster.call(async |client: &Client| {
            self.check_mount(client).await?;
            let method = Method::from_bytes(b"LIST").unwrap_or(Method::GET);
            let (question, reply) = self.ask(client, method, "metadata", None, None).await?;
            match reply.status {
                200..300 => Ok(answer::parse::<ListAnswer>(&question, &reply)?.data.keys),
                404 => Err(absent(&question).into()),
                _ => Err(refusal(&question, &reply).into()),
            }
        });
        match listed.await {
            // An empty folder is none.
            Err(error) if error.class() == Class::NotFound => Ok(Vec::new()),
            result => result,
        }
    }

    async fn ask<'c>(
        &self,
        client: &'c Client,
        method: Method,
        what: &str,
        name: Option<&KeyName>,
        body: Option<&Value>,
    ) -> Result<(Question<'c>, Reply), Failed> {
        let path: Vec<&str> = std::iter::once(what)
            .chain(self.folder.segments())
            .chain(name.map(KeyName::as_str))
            .collect();
        client.call(method, &self.mount, &path, body).await
    }

    /// Fails unless the mount is a KV engine of version 2. Whoever may do
    /// anything below a mount may know what it is.
    async fn check_mount(&self, client: &Client) -> Result<(), Failed> {
        if self.checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mounts: MountPath = "sys/internal/ui/mounts"
            .parse()
            .map_err(|why: String| Error::new(Class::Protocol, why, "report this as a defect"))?;
        let segments: Vec<&str> = self.mount.segments().collect();
        let (question, reply) = client
            .call(Method::GET, &mounts, &segments, None::<&Value>)
            .await?;
        if reply.status == 403 && answer::is_own(&reply) {
            let mount = &self.mount;
            let error = Error::new(
                Class::Denied(Denied::Forbidden),
                format!(
                    "{} permits this identity nothing at {mount}, or nothing is mounted there",
                    question.endpoint
                ),
                "check mount and namespace, and have the policy of this identity checked: docs/key-stores.md lists what it must permit",
            );
            return Err(error.with_words(&words(&reply)).into());
        }
        if !(200..300).contains(&reply.status) {
            return Err(refusal(&question, &reply).into());
        }
        let MountAnswer { data } = answer::parse(&question, &reply)?;
        let version = data.options.as_ref().and_then(|all| all.get("version"));
        let version = version.and_then(Value::as_str).unwrap_or("1");
        let unfit = |what: String, next: String| {
            let error = Error::new(Class::Protocol, what, next).with_kind(Kind::Usage);
            Err(Failed::Everywhere(error))
        };
        match (data.kind.as_str(), version) {
            ("kv", "2") => {
                self.checked.store(true, Ordering::Relaxed);
                Ok(())
            }
            ("kv" | "generic", _) => unfit(
                format!(
                    "{} of {} is a KV engine of version 1, which has no check-and-set",
                    self.mount, question.endpoint
                ),
                format!(
                    "name a KV engine of version 2, or turn it into one: bao kv enable-versioning {}",
                    self.mount
                ),
            ),
            (other, _) => unfit(
                format!(
                    "{} of {} is an engine of type {other:?}, and not KV",
                    self.mount, question.endpoint
                ),
                "name the mount of a KV engine of version 2".into(),
            ),
        }
    }

    fn deleted(&self, name: &KeyName, gone: &Metadata) -> Error {
        let path = self.path(name);
        let version = gone.version;
        if gone.destroyed {
            return Error::new(
                Class::Denied(Denied::Deleted),
                format!("version {version} of {path} was destroyed, and is the last one"),
                "it is gone, unless the service is restored from a backup; then put the header of the volume back from a backup that has the wrapped keys in it",
            );
        }
        Error::new(
            Class::Denied(Denied::Deleted),
            format!(
                "{path} was deleted at {}, and can be restored still",
                gone.deletion_time
            ),
            format!(
                "have it restored: bao kv undelete -mount={} -versions={version} {}/{name}",
                self.mount, self.folder
            ),
        )
    }
}

fn absent(question: &Question<'_>) -> Error {
    Error::new(
        Class::NotFound,
        format!("{} has no {}", question.endpoint, question.path),
        "check mount, path and namespace in the configuration",
    )
}

fn not_kv(question: &Question<'_>, status: u16) -> Error {
    Error::new(
        Class::Protocol,
        format!(
            "{} answers {} with status {status}, and not as a KV engine of version 2 does",
            question.endpoint, question.path
        ),
        "check that the mount is that of a KV engine of version 2",
    )
}

fn unwritable() -> Error {
    Error::new(
        Class::Protocol,
        "the secret cannot be written as JSON",
        "this is a defect of sealblk: report it",
    )
    .with_kind(Kind::Internal)
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

fn words(reply: &Reply) -> String {
    let errors = serde_json::from_slice::<Errors>(&reply.body);
    errors.map_or(String::new(), |told| told.errors.join("; "))
}

fn says(reply: &Reply, text: &str) -> bool {
    words(reply).contains(text)
}

/// The answer as a failure: what is said of every engine, but for what means
/// something else where no keys are used.
fn refusal(question: &Question<'_>, reply: &Reply) -> Error {
    let Question { endpoint, path } = question;
    let (class, cause, next) = match reply.status {
        403 if !answer::is_own(reply) => return answer::foreign(question, reply),
        403 => (
            Class::Denied(Denied::Forbidden),
            format!("{endpoint} does not permit {path}"),
            "have the policy of this identity checked: docs/key-stores.md lists what it must permit",
        ),
        // While the engine is being turned into one of version 2.
        400 if says(reply, "Upgrading from non-versioned") => (
            Class::Unreachable,
            format!("{endpoint} is upgrading the engine of {path}"),
            "wait until that is finished; then this works by itself",
        ),
        413 => (
            Class::Protocol,
            format!("{endpoint} does not keep as much at {path}"),
            "have the limit for the size of requests raised",
        ),
        // Not "not found", which is said of secrets alone.
        404 => {
            let cause = match says(reply, "namespace not found") {
                true => format!("{endpoint} has no such namespace"),
                false => format!("nothing is mounted at {path} of {endpoint}"),
            };
            let next = "check mount and namespace in the configuration";
            return Error::new(Class::Protocol, cause, next)
                .with_kind(Kind::NotFound)
                .with_words(&words(reply));
        }
        400 | 405 => (
            Class::Protocol,
            format!("{endpoint} answers {path} with status {}", reply.status),
            "check that the endpoint is that of Vault or OpenBao, and the mount that of a KV engine of version 2",
        ),
        _ => return answer::refusal(question, reply),
    };
    Error::new(class, cause, next).with_words(&words(reply))
}
