//! The data of this worker's disk, while it is moved.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::Estate;
use super::news::News;
use super::parcel::{Parcel, Role};
use super::protocol::{Answer, Contents, Fault};
use crate::engine::Disk;
use crate::error::{Failure, Kind};
use crate::plane::Spec;
use crate::plane::moving::{self, Files, Go, Moving, Orders, Phase, Progress, Ready, Task};
use crate::rekey;
use crate::secret::Dek;

/// How often managers are told how far it is.
const PERIOD: Duration = Duration::from_secs(1);

/// Moves the data of the disk, when somebody wants that.
pub struct Mover {
    disk: Arc<Disk>,
    news: Arc<News>,
    moving: Option<Moving>,
    /// What data is moved through, for the mark on it.
    file: Option<File>,
    /// When managers were told last, and what.
    told: Instant,
    last: Option<Progress>,
}

/// Recovers what `task` says, with the key and the files that came with it.
///
/// # Errors
/// When something is missing, or as [`moving::recover`].
pub fn recover(
    spec: &Spec,
    task: &Task,
    main: &Dek,
    parcel: &mut Parcel,
) -> Result<(Ready, File), Failure> {
    let lost = |error: io::Error| {
        let what = format!("what the manager sent cannot be moved: {error}");
        Failure::new(crate::error::io_kind(&error), what, None)
    };
    let old = parcel.take(Role::OldDek).map(Dek::receive).transpose();
    let old = old.map_err(lost)?;
    let files = Files {
        data: parcel.need(Role::Mover).map_err(lost)?.into(),
        journal: parcel.need(Role::Journal).map_err(lost)?.into(),
    };
    let file = files.data.try_clone().map_err(lost)?;
    Ok((
        moving::recover(spec, task, main, old.as_ref(), files)?,
        file,
    ))
}

impl Mover {
    /// For this disk, of which nothing is moved.
    pub fn new(disk: Arc<Disk>, news: Arc<News>) -> Self {
        Mover {
            disk,
            news,
            moving: None,
            file: None,
            told: Instant::now(),
            last: None,
        }
    }

    /// What data is moved through, if it is.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn file(&self) -> io::Result<Option<File>> {
        self.file.as_ref().map(File::try_clone).transpose()
    }

    /// The same, which begins.
    ///
    /// # Errors
    /// As [`Ready::begin`].
    pub fn with(self, (ready, file): (Ready, File)) -> Result<Self, Failure> {
        let news = self.news.clone();
        let moving = ready.begin(&self.disk, move || news.moved())?;
        Ok(Mover {
            moving: Some(moving),
            file: Some(file),
            ..self
        })
    }

    /// Begins to move the data of a disk that is served.
    pub fn begin(&mut self, estate: &mut Estate, task: Task, mut parcel: Parcel) -> Answer {
        let begun = self.try_begin(estate, task, &mut parcel);
        match begun {
            Ok(()) => self.answer(),
            Err(failure) => {
                tracing::error!("the data of the disk is not moved: {failure}");
                let fault = Fault::from(&failure);
                Answer::Failed { fault }
            }
        }
    }

    fn try_begin(
        &mut self,
        estate: &mut Estate,
        task: Task,
        parcel: &mut Parcel,
    ) -> Result<(), Failure> {
        let known = self.moving.as_ref().map(|moving| moving.progress().id);
        if known == Some(task.facts.id) {
            // A manager that did not hear so.
            return Ok(());
        }
        let refuse = |what: &str| Err(Failure::new(Kind::Refused, what.to_owned(), None));
        if known.is_some() {
            return refuse("the data of the disk is being moved already, for another operation");
        }
        if estate.start.contents != Contents::Volume || estate.start.spec.read_only {
            return refuse("the data of this disk cannot be moved");
        }
        let lost = |error: io::Error| {
            Failure::new(
                crate::error::io_kind(&error),
                format!("what the manager sent cannot be moved: {error}"),
                None,
            )
        };
        let main = parcel
            .need(Role::Dek)
            .and_then(Dek::receive)
            .map_err(lost)?;
        let (ready, file) = recover(&estate.start.spec, &task, &main, parcel)?;
        let news = self.news.clone();
        self.moving = Some(ready.begin_served(&self.disk, move || news.moved())?);
        self.file = Some(file);
        // For the managers that come later.
        estate.dek = estate.start.keep_dek.then_some(main);
        estate.start.moving = Some(Box::new(task));
        Ok(())
    }

    /// How far it is, after `orders` on how to go on.
    pub fn order(&mut self, estate: &mut Estate, orders: Orders) -> Answer {
        if let Some(moving) = &self.moving {
            if let Err(error) = moving.order(orders) {
                let fault = Fault::from(&Failure::from(error));
                return Answer::Failed { fault };
            }
            if let Some(task) = &mut estate.start.moving {
                task.go = orders.go.unwrap_or(task.go);
                task.pace = orders.pace.unwrap_or(task.pace);
                task.direction = orders.direction.or(task.direction);
            }
        }
        self.answer()
    }

    fn answer(&self) -> Answer {
        let progress = self.moving.as_ref().map(Moving::progress);
        Answer::Moving {
            progress: progress.map(Box::new),
        }
    }

    /// The header says that all was moved: the other key is forgotten. What the
    /// key of the disk is from now on comes with that, if it is another one than
    /// was kept.
    ///
    /// # Errors
    /// When not all was moved.
    pub fn end(&mut self, estate: &mut Estate, mut parcel: Parcel) -> Result<(), Fault> {
        let Some(moving) = self.moving.take() else {
            // A manager that did not hear so.
            return Ok(());
        };
        match moving.end() {
            Ok(ended) => {
                let task = estate.start.moving.take();
                let rekey = task.is_some_and(|task| task.facts.kind == rekey::Kind::Rekey);
                if rekey && ended.direction == rekey::Direction::Back {
                    // The one that was kept is of nothing any more.
                    estate.dek = None;
                }
                if let Some(dek) = parcel.take(Role::Dek)
                    && estate.start.keep_dek
                {
                    estate.dek = Dek::receive(dek).ok();
                }
                self.last = None;
                self.file = None;
                tracing::info!("the other key of the disk is forgotten");
                Ok(())
            }
            Err((moving, error)) => {
                self.moving = Some(moving);
                Err(Fault::from(&Failure::from(error)))
            }
        }
    }

    /// The disk below may work again: what has failed there goes on, if it was to.
    pub fn try_again(&mut self, estate: &mut Estate) {
        let progress = self.moving.as_ref().map(Moving::progress);
        if progress.is_some_and(|it| it.phase == Phase::Failed && it.go == Go::Run) {
            let orders = Orders {
                go: Some(Go::Run),
                ..Orders::default()
            };
            self.order(estate, orders);
        }
    }

    /// The worker is to end: nothing more is begun.
    pub fn rest(&self) {
        if let Some(moving) = &self.moving {
            let orders = Orders {
                go: Some(Go::Pause),
                ..Orders::default()
            };
            // It cannot fail without a direction.
            let _ = moving.order(orders);
        }
    }

    /// Another process moves the data from here on: nothing is done any more, not even
    /// to come to rest, where this is already.
    pub fn abandon(&mut self) {
        if let Some(moving) = self.moving.take() {
            // Its thread sleeps until the process ends, which is soon.
            std::mem::forget(moving);
        }
    }

    /// What managers are to be told now, if something: at once when it `changed`,
    /// and every now and then how far it is.
    pub fn news(&mut self, changed: bool) -> Option<Box<Progress>> {
        let moving = self.moving.as_ref()?;
        let known = self.last.is_some();
        if known && !changed && self.told.elapsed() < PERIOD {
            return None;
        }
        self.told = Instant::now();
        let progress = moving.progress();
        if self.last.as_ref() == Some(&progress) {
            return None;
        }
        self.last = Some(progress.clone());
        Some(Box::new(progress))
    }

    /// How long the control loop may sleep.
    pub fn left(&self) -> Option<Duration> {
        let moving = self.moving.as_ref()?;
        if self.last.is_none() {
            return Some(Duration::ZERO);
        }
        let left = PERIOD.saturating_sub(self.told.elapsed());
        (moving.progress().phase == Phase::Moving).then(|| left + Duration::from_millis(1))
    }
}
