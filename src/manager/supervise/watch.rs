//! A disk that is served: what its worker says, and what becomes of it.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::{Fate, Supervisor};
use crate::error::{Failure, Kind};
use crate::manager::disks::Command;
use crate::manager::model::{Detach, DiskState};
use crate::manager::worker_process::Worker;
use crate::worker::protocol::{Fault, Message};

/// How long a process may outlive its end of the connection before the
/// connection alone is taken to be broken.
const DYING: Duration = Duration::from_secs(2);

/// How long a front end may take to go that is about to, when its disk is to
/// be detached.
const LEAVING: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Looks after a worker that serves, until it is gone.
    pub(super) async fn watch(
        &mut self,
        mut worker: Worker,
        commands: &mut Receiver<Command>,
    ) -> Fate {
        // It may have been so for a while, of a worker that was found.
        self.settle_standing().await;
        let since = Instant::now();
        let mut fault = None;
        let broken = tokio::time::sleep(Duration::MAX);
        let patience = tokio::time::sleep(Duration::MAX);
        tokio::pin!(broken, patience);
        let mut linked = true;
        let mut verdicts = self.shared.access.subscribe();
        // What was said before is heard, too.
        verdicts.mark_changed();
        let entry = self.entry.clone();
        // At once, and then as often as what failed for good is tried again.
        let mut look = tokio::time::interval(self.shared.settings.poll);
        // Who wants the disk away once its front end has gone.
        let mut asked: Asked = None;
        loop {
            let used = self.entry.info().front_end;
            if let Some(reply) = asked.take_if(|_| !used) {
                let how = Detach::default();
                return self.stop(worker, how, reply, commands).await;
            }
            tokio::select! {
                message = worker.link.next(), if linked => match message {
                    Ok(Some(message)) => {
                        let has_gone = self.hear(message, &mut fault);
                        self.settle_standing().await;
                        if has_gone {
                            refuse(asked, &self.record.name);
                            return self.part(worker, commands).await;
                        }
                    }
                    // The process ends, as a rule, and that is told next.
                    Ok(None) | Err(_) => {
                        linked = false;
                        broken.as_mut().reset(tokio::time::Instant::now() + DYING);
                    }
                },
                Ok(()) = verdicts.changed(), if linked => {
                    if self.heed(&mut worker).await {
                        refuse(asked, &self.record.name);
                        return self.withdraw(worker, commands).await;
                    }
                }
                () = entry.key_changed.notified(), if linked => verdicts.mark_changed(),
                _ = look.tick(), if linked && self.behind => {
                    self.catch_up_moving(&mut worker).await;
                }
                how = worker.process.ended() => {
                    for message in worker.link.last_words().await {
                        self.hear(message, &mut fault);
                    }
                    self.settle_standing().await;
                    self.give_up_freezing();
                    let fate = self.died(&how, fault, since.elapsed());
                    return match asked {
                        Some(reply) => {
                            let how = Detach::default();
                            self.take_away(how, reply).await
                        }
                        None => fate,
                    };
                }
                () = &mut broken => {
                    tracing::warn!("the connection to the worker is broken: connecting anew");
                    refuse(asked, &self.record.name);
                    self.give_up_freezing();
                    self.maybe_alive = true;
                    self.lost = Some(worker.process);
                    return Fate::Again(Duration::ZERO);
                }
                Some(command) = commands.recv() => {
                    let (how, reply) = match command {
                        Command::Detach { how, reply } => (how, reply),
                        Command::Limit { limits, reply } => {
                            self.limit(Some(&mut worker), *limits, reply).await;
                            continue;
                        }
                        Command::Freeze { timeout, reply } => {
                            self.freeze(&mut worker, timeout, reply).await;
                            continue;
                        }
                        Command::Thaw { reply } => {
                            self.thaw(&mut worker, reply).await;
                            continue;
                        }
                        Command::Resume { give_up, reply } => {
                            self.resume(&mut worker, give_up, reply).await;
                            continue;
                        }
                        Command::Resize { wanted, reply } => {
                            self.resize(Some(&mut worker), wanted, reply).await;
                            continue;
                        }
                        Command::Upgrade { wanted, reply } => {
                            if asked.is_some() || !linked {
                                let busy = "the disk is about to be detached, or restarted";
                                let help = Some("look at `sealblk list`, and try again".into());
                                let _ = reply.send(Err(Failure::new(Kind::Busy, busy, help)));
                                continue;
                            }
                            return self.upgrade(worker, wanted, reply, commands).await;
                        }
                        command => {
                            self.lend_or_learn(Some(&mut worker), command).await;
                            continue;
                        }
                    };
                    if how.force || !used {
                        return self.stop(worker, how, reply, commands).await;
                    }
                    // QEMU may have ended just now.
                    if let Some(other) = asked.replace(reply) {
                        let _ = other.send(Err(in_use(&self.record.name)));
                    }
                    patience.as_mut().reset(tokio::time::Instant::now() + LEAVING);
                }
                () = &mut patience, if asked.is_some() => {
                    if let Some(reply) = asked.take() {
                        let _ = reply.send(Err(in_use(&self.record.name)));
                    }
                }
            }
        }
    }

    /// Takes what the worker says. True when its guest has gone to another host, with
    /// its front end.
    pub(super) fn hear(&mut self, message: Message, fault: &mut Option<Fault>) -> bool {
        match message {
            Message::Changed { status } => {
                self.heed_freeze(&status);
                let has_gone = self.hear_standing(&status);
                match self.standing == self.record.standing {
                    true => self.entry.set_status(status),
                    false => self.unsettled = Some(status),
                }
                return has_gone;
            }
            Message::Kept { fault } => self.hear_problem(fault),
            Message::Answer { id, answer } => self.frozen(id, answer),
            Message::Ended { fault: why } => *fault = why,
            Message::Moving { progress } => self.hear_progress(&progress),
            // Nothing was asked, and nothing else is known.
            Message::Hello(_) | Message::Unknown => {}
        }
        false
    }

    /// The worker is gone, though nobody wanted that.
    pub(super) fn died(&mut self, how: &str, fault: Option<Fault>, lived: Duration) -> Fate {
        if lived >= self.shared.settings.settled {
            self.failures = 0;
        }
        let pause = self.shared.settings.restart.pause(self.failures);
        self.failures += 1;
        let failure = match fault {
            Some(fault) => fault.into(),
            None => Failure::new(
                Kind::Internal,
                format!("the worker process {how}"),
                Some("its last words are in the log of the manager".into()),
            ),
        };
        tracing::error!(again_in = ?pause, "the worker process {how}: {failure}");
        self.free_what_is_not_held();
        self.lose_contents();
        self.entry.fail(DiskState::Restarting, &failure);
        self.entry.update(|info| {
            info.pid = None;
            info.front_end = false;
            info.size_read = None;
            info.takes_notices = false;
            info.trouble = None;
            info.stuck = None;
            info.restarts += 1;
        });
        self.moving_waits();
        Fate::Again(pause)
    }
}

type Asked = Option<oneshot::Sender<Result<(), Failure>>>;

fn refuse(asked: Asked, name: &str) {
    if let Some(reply) = asked {
        // Who asked may not be waiting any more.
        let _ = reply.send(Err(in_use(name)));
    }
}

fn in_use(name: &str) -> Failure {
    Failure::new(
        Kind::Busy,
        format!("a front end is connected to the disk {name:?}: a guest may be using it"),
        Some("end the guest or take the disk out of it, or detach with --force".into()),
    )
}
