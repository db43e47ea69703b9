//! The steps of a rotation.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use uuid::Uuid;

use super::{Error, Follow, Job, News, Problem, Rotation, off};
use crate::error::Kind;
use crate::keys::ledger::{Known, KnownWrap};
use crate::keys::{Context, Current, Definition, Hierarchy, Name, Target};
use crate::kms::KeyVersion;
use crate::timestamp::Timestamp;

/// How many volumes are worked on at once.
const AT_ONCE: usize = 4;

/// How soon a volume is tried again that could not follow, unless somebody asks
/// or attaches it.
const RETRY: Duration = Duration::from_secs(600);

/// What is to be done for a key set.
#[derive(Debug)]
pub struct Work {
    /// The key set.
    pub name: Name,
    /// What wraps now. `None`: nobody had to ask.
    pub current: Option<Current>,
    /// Where it is. `None`: nothing was ever done, and nothing has to be.
    pub job: Option<Job>,
    /// The volumes that have yet to follow.
    pub behind: Vec<Known>,
    /// How many volumes of the key set are known.
    pub known: usize,
}

/// What a wrap has to be, as far as that can be said without asking a service.
struct Expected<'e> {
    definition: &'e Definition,
    version: &'e str,
    key_id: Option<&'e str>,
}

impl Expected<'_> {
    fn fits(&self, by: &Target) -> bool {
        by.provider == self.definition.source.provider()
            && by.key_version == self.version
            && self.key_id.is_none_or(|id| by.key_id == id)
            && by.group.is_some() == is_grouped(self.definition)
    }

    /// Whether a volume has yet to follow, or nobody knows.
    fn is_behind(&self, known: &Known, name: &Name) -> bool {
        known.wraps.is_empty() || known.wrapped_by(name.as_str()).any(|by| !self.fits(by))
    }
}

fn is_grouped(definition: &Definition) -> bool {
    definition.policy.hierarchy == Hierarchy::Group
}

impl Rotation {
    /// Finds out what there is to do, now that the service of a key set says
    /// that `version` wraps, and begins it: the group key is wrapped under that
    /// version, and the job noted. Where nothing has changed, no service is
    /// asked.
    ///
    /// A version that was left behind is not returned to, unless somebody has
    /// `asked`, or has pinned it: an endpoint of the service may lag.
    ///
    /// # Errors
    /// When there is no such key set, its service fails, or the state of the
    /// rotation cannot be read or written.
    pub async fn begin(
        &self,
        context: &Context,
        name: &Name,
        version: &KeyVersion,
        asked: bool,
    ) -> Result<Work, Error> {
        let turns = self.turns(name.as_str());
        let _alone = turns.begin.lock().await;
        let definition = self.keys.definition(name.as_str())?;
        let (job, known) = self.state(name).await?;
        let before = job.filter(|job| job.target.provider == definition.source.provider());
        let same_key = before.as_ref().filter(|job| {
            job.key == definition.source.key_id()
                && job.target.group.is_some() == is_grouped(&definition)
        });
        let mut version = version.clone();
        if !asked
            && definition.version.is_none()
            && let Some(job) = same_key
            && job.left_behind(&version.id)
        {
            tracing::debug!(
                key_set = %name,
                version = version.id,
                "the service names a version that was left behind: it is passed over"
            );
            version.id.clone_from(&job.target.key_version);
        }
        let here = same_key.filter(|job| job.target.key_version == version.id);
        let recorded = self.keys.recorded(name)?;
        let recorded = recorded.filter(|target| target.key_version == version.id);
        let key_id = here.map(|job| &job.target).or(recorded.as_ref());
        let expected = Expected {
            definition: &definition,
            version: &version.id,
            key_id: key_id.map(|target| target.key_id.as_str()),
        };
        let behind = known.iter().filter(|known| expected.is_behind(known, name));
        let behind: Vec<&Known> = behind.collect();
        // Whether the answer says all that one has to know.
        let certain = here.is_some() || key_id.is_some() && !self.has_job(name);
        let idle = known.is_empty() && !self.has_job(name);
        let tried_lately = behind.iter().all(|known| self.was_tried_lately(known.uuid));
        if !asked && (idle || certain && tried_lately) {
            let job = self.finish(context, name, behind.len()).await?;
            return Ok(Work {
                name: name.clone(),
                current: None,
                job,
                behind: Vec::new(),
                known: known.len(),
            });
        }
        if !version.enabled {
            return Err(Error::Disabled {
                key_set: name.to_string(),
                version: version.id,
            });
        }
        let current = self.keys.renew(context, name.as_str(), &version).await?;
        let expected = Expected {
            definition: &definition,
            version: &current.target.key_version,
            key_id: Some(&current.target.key_id),
        };
        let total = known.len();
        let mut behind = known;
        behind.retain(|known| expected.is_behind(known, name));
        let job = self
            .note(context, name, &definition, &current, &behind)
            .await?;
        let job = match behind.len() {
            0 => self.finish(context, name, 0).await?,
            volumes => {
                let key_set = name.as_str();
                self.told.told(context, News::Behind { key_set, volumes });
                Some(job)
            }
        };
        Ok(Work {
            name: name.clone(),
            current: Some(current),
            job,
            behind,
            known: total,
        })
    }

    /// Has the volumes follow, so many a second. Those that cannot are left
    /// for the next time; when the service itself fails, all are. What is left
    /// to be done after that.
    ///
    /// # Errors
    /// When the state of the rotation cannot be read or written.
    pub async fn follow(self: &Arc<Self>, context: &Context, work: Work) -> Result<usize, Error> {
        let Work { name, behind, .. } = work;
        let turns = self.turns(name.as_str());
        let _follows = turns.follow.lock().await;
        if let Some(current) = work.current {
            let change = Arc::new(Follow { current });
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / self.rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut left = behind.len();
            let mut under_way = JoinSet::new();
            let mut stop = false;
            let mut queue = behind.into_iter();
            loop {
                while !stop && under_way.len() < AT_ONCE {
                    let Some(known) = queue.next() else { break };
                    ticks.tick().await;
                    let (this, context, change) = (self.clone(), context.clone(), change.clone());
                    under_way.spawn(async move { this.one(&context, known, change).await });
                }
                match under_way.join_next().await {
                    Some(Ok(Outcome::Done)) => {
                        left = left.saturating_sub(1);
                        let key_set = name.as_str();
                        let news = News::Behind {
                            key_set,
                            volumes: left,
                        };
                        self.told.told(context, news);
                    }
                    Some(Ok(Outcome::Service)) => stop = true,
                    Some(_) => {}
                    None => break,
                }
            }
        }
        // Somebody may have begun the next one meanwhile.
        let _alone = turns.begin.lock().await;
        let (job, known) = self.state(&name).await?;
        let Some(job) = job else { return Ok(0) };
        let definition = self.keys.definition(name.as_str())?;
        let expected = Expected {
            definition: &definition,
            version: &job.target.key_version,
            key_id: Some(&job.target.key_id),
        };
        let behind = known
            .iter()
            .filter(|known| expected.is_behind(known, &name));
        let behind = behind.count();
        self.finish(context, &name, behind).await?;
        Ok(behind)
    }

    /// Whether a volume has another wrap of a key set than those that have
    /// followed its last rotation.
    pub async fn is_left_behind(&self, known: &Known, name: &Name) -> bool {
        let (jobs, of) = (self.jobs.clone(), name.clone());
        match off(move || jobs.read(&of)).await {
            Ok(Some(job)) => {
                let mut wraps = known.wrapped_by(name.as_str());
                known.wraps.is_empty() || wraps.any(|by| !by.same_version(&job.target))
            }
            // Whoever asks the service next finds out.
            _ => false,
        }
    }

    /// Has one volume follow, and the ledger take note.
    async fn one(self: Arc<Self>, context: &Context, known: Known, change: Arc<Follow>) -> Outcome {
        let (volume, key_set) = (known.uuid, change.current.key_set.clone());
        let to = change.current.target.clone();
        let from = known.wrapped_by(&key_set).next().cloned();
        let context = &Context {
            volume: Some(volume),
            ..context.clone()
        };
        match self.volumes.rewrap(context, &known, change).await {
            Ok(done) => {
                self.problems().remove(&volume);
                let wraps: Vec<KnownWrap> = done.after.iter().map(KnownWrap::from).collect();
                let before = done.before.iter().find(|wrap| wrap.key_set == key_set);
                let ledger = self.ledger.clone();
                let noted = off(move || {
                    // It may have been seen elsewhere meanwhile.
                    let known = ledger.find(volume)?.unwrap_or(known);
                    ledger.note(&known.with_wraps(wraps))
                });
                if let Err(error) = noted.await {
                    tracing::warn!(%volume, %error, "the ledger does not know of its new wraps");
                }
                if done.changed {
                    let from = before.map(Target::of);
                    let (from, key_set) = (from.as_ref(), key_set.as_str());
                    let news = News::Rewrapped {
                        volume,
                        key_set,
                        from,
                        to: &to,
                    };
                    self.told.told(context, news);
                }
                Outcome::Done
            }
            Err(failure) => {
                tracing::debug!(%volume, key_set, ?from, "a volume does not follow: {failure}");
                let problem = Problem {
                    text: failure.to_string(),
                    at: Instant::now(),
                };
                self.problems().insert(volume, problem);
                let (key_set, failure) = (key_set.as_str(), &failure);
                let news = News::Failed {
                    volume,
                    key_set,
                    failure,
                };
                self.told.told(context, news);
                match failure.kind() {
                    Kind::Unreachable => Outcome::Service,
                    _ => Outcome::Volume,
                }
            }
        }
    }

    /// Notes what wraps now, unless that is known.
    async fn note(
        &self,
        context: &Context,
        name: &Name,
        definition: &Definition,
        current: &Current,
        behind: &[Known],
    ) -> Result<Job, Error> {
        let key = definition.source.key_id();
        let (before, _) = self.state(name).await?;
        match before {
            Some(job) if job.target == current.target && job.key == key => Ok(job),
            before => {
                let from = before.as_ref().map(|job| job.target.clone());
                let volumes = behind.len();
                let found = behind.iter();
                let found = found.flat_map(|known| known.wrapped_by(name.as_str()).cloned());
                let first = before.is_none();
                let mut job = Job::new(key, current.target.clone(), before, found);
                if first && volumes == 0 {
                    // Nothing has changed: it is seen for the first time.
                    job.finished = Some(job.since);
                    self.write(name, &job).await?;
                    return Ok(job);
                }
                self.write(name, &job).await?;
                tracing::info!(
                    key_set = %name,
                    version = current.target.key_version,
                    volumes,
                    "the volumes follow their key"
                );
                let news = News::Started {
                    key_set: name.as_str(),
                    from: from.as_ref(),
                    to: &current.target,
                    volumes,
                };
                self.told.told(context, news);
                Ok(job)
            }
        }
    }

    /// Takes note that so many volumes have yet to follow: of none, that the
    /// job is finished.
    async fn finish(
        &self,
        context: &Context,
        name: &Name,
        behind: usize,
    ) -> Result<Option<Job>, Error> {
        let key_set = name.as_str();
        let news = News::Behind {
            key_set,
            volumes: behind,
        };
        self.told.told(context, news);
        let (job, _) = self.state(name).await?;
        match job {
            Some(mut job) if behind == 0 && job.finished.is_none() => {
                job.finished = Some(Timestamp::now());
                self.write(name, &job).await?;
                tracing::info!(
                    key_set,
                    version = job.target.key_version,
                    "all volumes that are known have followed their key"
                );
                let target = &job.target;
                self.told.told(context, News::Finished { key_set, target });
                Ok(Some(job))
            }
            job => Ok(job),
        }
    }

    fn has_job(&self, name: &Name) -> bool {
        self.jobs.path(name).exists()
    }

    /// Whether a volume could not follow a moment ago: who is away for long
    /// must not cost a call to its service each time.
    fn was_tried_lately(&self, volume: Uuid) -> bool {
        let problems = self.problems();
        problems
            .get(&volume)
            .is_some_and(|problem| problem.at.elapsed() < RETRY)
    }

    /// A volume that could not follow may be able to by now.
    pub fn try_again(&self, volume: Uuid) {
        self.problems().remove(&volume);
    }

    async fn state(&self, name: &Name) -> Result<(Option<Job>, Vec<Known>), Error> {
        let (jobs, ledger, of) = (self.jobs.clone(), self.ledger.clone(), name.clone());
        let read = off(move || Ok((jobs.read(&of)?, ledger.needing(of.as_str())?)));
        read.await.map_err(Error::state(name.as_str()))
    }

    async fn write(&self, name: &Name, job: &Job) -> Result<(), Error> {
        let (jobs, of, job) = (self.jobs.clone(), name.clone(), job.clone());
        let written = off(move || jobs.write(&of, &job));
        written.await.map_err(Error::state(name.as_str()))
    }
}

/// What came of one volume.
enum Outcome {
    /// It has followed.
    Done,
    /// It could not be reached.
    Volume,
    /// Its service could not be reached: the others need not be tried.
    Service,
}
