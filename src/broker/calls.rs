//! One call: from its ciphertext to that of its answer.
//!
//! Until it is known whose call it is, and that it was never made before,
//! nothing is done for it, and what is said is not sealed ([`Refusal`]). From
//! then on whatever happens is recorded, and the answer is sealed for the host.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::challenge::Rejected;
use super::identity::Identity;
use super::policy::{self, Asked, Decision, Denial, Operation};
use super::recorder::{Noted, noted};
use super::state::Broker;
use super::wrapped;
use crate::audit::{self, Event, KeyEvent, Outcome as Recorded, Record};
use crate::error::{Explain as _, Kind};
use crate::keys::{self, Actor, Context, Host, Name, Why};
use crate::kms::broker::protocol::{
    Answer, Challenge, Failure, Frame, Operation as What, Outcome, ProblemKind, Request, VERSION,
};
use crate::kms::broker::seal::{self, PrivateKey, PublicKey};
use crate::kms::{self, Class, Denied, envelope};
use crate::metrics::CallEnd;
use crate::timestamp::Timestamp;
use crate::volume::binding::volume_in;

/// No host waits for longer.
const PATIENCE: Duration = Duration::from_secs(600);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What its certificate says. `None` where that names nobody.
    pub identity: Option<Arc<Identity>>,
    /// Its address.
    pub peer: String,
}

impl Caller {
    fn certificate(&self) -> &str {
        self.identity
            .as_ref()
            .map_or("", |identity| identity.name())
    }
}

/// A request that is not looked into any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller is told.
    pub problem: ProblemKind,
    /// In one word, for records.
    pub reason: &'static str,
    /// In plain words.
    pub detail: String,
    /// The host that it claims to be.
    pub claimed: String,
}

impl Refusal {
    pub(super) fn new(
        problem: ProblemKind,
        reason: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Refusal {
            problem,
            reason,
            detail: detail.into(),
            claimed: String::new(),
        }
    }

    fn from(mut self, frame: &Frame) -> Self {
        // It may be anything, and long.
        self.claimed = frame.host.chars().take(128).collect();
        self
    }
}

/// A call of a host that is known, and that was never made before.
struct Admitted {
    host: Host,
    key: PublicKey,
    our_key: Arc<PrivateKey>,
    frame: Frame,
    request: Request,
    /// Why it is not done all the same.
    too_many: bool,
}

/// Answers the call in `body`.
///
/// # Errors
/// When it is refused. That is recorded.
pub async fn answer(broker: &Arc<Broker>, caller: &Caller, body: &[u8]) -> Result<Frame, Refusal> {
    let admitted = admit(broker, caller, body).map_err(|refusal| broker.refuse(caller, refusal))?;
    // Waits with its connection, of which a host has so many and no more.
    let place = broker.place(&admitted.host.name).await;
    let broker = broker.clone();
    // To its end, also when the host has gone away: so that nothing that was
    // done is unrecorded.
    let work = tokio::spawn(async move {
        let _place = place;
        finish(&broker, admitted).await
    });
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a call ended early");
        Err(internal("the broker has a defect"))
    })
}

fn internal(detail: impl Into<String>) -> Refusal {
    Refusal::new(ProblemKind::Internal, "internal", detail)
}

impl Broker {
    /// Records a refusal, and gives what the caller is told.
    pub fn refuse(&self, caller: &Caller, refusal: Refusal) -> Refusal {
        self.metrics.refused(refusal.reason);
        tracing::warn!(
            peer = caller.peer,
            certificate = caller.certificate(),
            claimed = refusal.claimed,
            reason = refusal.reason,
            "a call was refused: {}",
            refusal.detail
        );
        let outcome = Recorded::Refused {
            reason: refusal.reason,
            message: refusal.detail.clone(),
        };
        let certificate = caller.certificate();
        match self
            .recorder
            .refused(certificate, &caller.peer, &refusal.claimed, outcome)
        {
            Ok(()) => refusal,
            Err(error) => {
                tracing::error!("a refused call is not in the audit log: {error}");
                internal("what is done here cannot be recorded")
            }
        }
    }

    /// Who the caller can be, before it has said so.
    ///
    /// # Errors
    /// When its certificate is that of no host.
    pub fn known(&self, caller: &Caller) -> Result<(), Refusal> {
        let identity = identity(caller)?;
        let loaded = self.policy();
        let hosts = loaded.policy.hosts.iter();
        let mut patterns = hosts.flat_map(|host| &host.certificates);
        match patterns.any(|pattern| identity.is_like(pattern)) {
            true => Ok(()),
            false => Err(Refusal::new(
                ProblemKind::Unknown,
                "certificate",
                format!(
                    "no host of the policy has the certificate {:?}",
                    identity.name()
                ),
            )),
        }
    }
}

fn identity(caller: &Caller) -> Result<&Identity, Refusal> {
    let refuse = |detail: &str| Refusal::new(ProblemKind::Unknown, "certificate", detail);
    let identity = caller.identity.as_deref();
    let identity = identity.ok_or_else(|| refuse("the certificate names nobody"))?;
    match identity.has_ended(Timestamp::now()) {
        true => Err(refuse("the certificate has ended since it was shown")),
        false => Ok(identity),
    }
}

/// Finds out whose call it is, and that it is a new one.
fn admit(broker: &Broker, caller: &Caller, body: &[u8]) -> Result<Admitted, Refusal> {
    let identity = identity(caller)?;
    let malformed = |detail: String| Refusal::new(ProblemKind::Malformed, "request", detail);
    let frame = Frame::parse(body).map_err(|error| malformed(error.to_string()))?;
    if frame.version != VERSION {
        let detail = format!(
            "the call has version {} of the protocol, and this broker speaks version {VERSION}",
            frame.version
        );
        return Err(Refusal::new(ProblemKind::Version, "request", detail).from(&frame));
    }
    let loaded = broker.policy();
    let host = loaded.policy.host(&frame.host);
    let its_own = |host: &&policy::Host| host.certificates.iter().any(|one| identity.is_like(one));
    let Some(host) = host.filter(its_own) else {
        broker
            .known(caller)
            .map_err(|refusal| refusal.from(&frame))?;
        // Not which of the two: who has another's certificate learns no names.
        let detail = format!(
            "the policy has no host {:?} with the certificate {:?}",
            short(&frame.host),
            identity.name()
        );
        return Err(Refusal::new(ProblemKind::Unknown, "host", detail).from(&frame));
    };
    let Some((our_key, key, message)) = open(broker, &host.keys, &frame)? else {
        let detail = format!(
            "the call was sealed by no key of host {:?}, or for another broker, or was changed on its way",
            host.name
        );
        return Err(Refusal::new(ProblemKind::Unknown, "key", detail).from(&frame));
    };
    let request =
        Request::parse(&message).map_err(|error| malformed(error.to_string()).from(&frame))?;
    let taken = broker
        .challenges
        .accept(&request.challenge.0, &host.name, broker.uptime());
    let too_many = match taken {
        Ok(()) => false,
        // It is known whose call it is, and that it was not made before.
        Err(Rejected::TooMany) => true,
        Err(rejected) => {
            let (reason, detail) = match rejected {
                Rejected::Used => ("replay", "the call was made before"),
                Rejected::Expired => ("challenge", "the challenge of the call is too old"),
                _ => (
                    "challenge",
                    "the challenge of the call is not of this broker",
                ),
            };
            return Err(Refusal::new(ProblemKind::Challenge, reason, detail).from(&frame));
        }
    };
    Ok(Admitted {
        host: Host {
            name: host.name.clone(),
            certificate: identity.name().into(),
        },
        key,
        our_key,
        frame,
        request,
        too_many,
    })
}

type Opened = (Arc<PrivateKey>, PublicKey, crate::secret::Secret);

fn open(broker: &Broker, keys: &[PublicKey], frame: &Frame) -> Result<Option<Opened>, Refusal> {
    for ours in broker.keys() {
        for theirs in keys {
            match seal::open_request(&ours, *theirs, frame) {
                Ok(message) => return Ok(Some((ours, *theirs, message))),
                Err(seal::Error::Memory(error)) => {
                    return Err(internal(format!("no locked memory: {error}")).from(frame));
                }
                Err(_) => {}
            }
        }
    }
    Ok(None)
}

fn short(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Does what is asked, if it is permitted, and seals the answer.
async fn finish(broker: &Broker, admitted: Admitted) -> Result<Frame, Refusal> {
    let start = Instant::now();
    let (outcome, noted) = decide_and_do(broker, &admitted, start).await;
    let next = broker
        .challenges
        .issue(broker.uptime())
        .map_err(|error| internal(format!("no random bytes: {error}")))?;
    let answer = Answer {
        next_challenge: Challenge(next),
        request_id: noted.request_id,
        outcome,
    };
    let sealed = answer.to_secret().map_err(seal::Error::Memory);
    let sealed = sealed.and_then(|message| {
        let Admitted {
            our_key,
            key,
            frame,
            ..
        } = &admitted;
        seal::answer(our_key, *key, frame, &message)
    });
    sealed.map_err(|error| {
        tracing::error!("an answer cannot be sealed: {error}");
        internal("the answer cannot be sealed")
    })
}

async fn decide_and_do(broker: &Broker, admitted: &Admitted, start: Instant) -> (Outcome, Noted) {
    let Admitted { host, request, .. } = admitted;
    let (operation, volume) = match &request.operation {
        What::Wrap { aad, .. } => (Operation::Wrap, volume_in(aad)),
        What::Unwrap { aad, .. } => (Operation::Unwrap, volume_in(aad)),
        What::CurrentVersion { .. } => (Operation::Check, None),
    };
    let call = Call {
        broker,
        context: Context {
            correlation: request.correlation,
            ..Context::new(Actor::this_process("broker").for_host(host.clone()), volume)
        },
        operation,
        key_set: &request.key_set,
        start,
    };
    if admitted.too_many {
        return call.refused(too_many());
    }
    if request.key_set.parse::<Name>().is_err() {
        let cause = format!("{:?} is not the name of a key set", short(&request.key_set));
        return call.refused(kms::Error::new(
            Class::NotFound,
            cause,
            "correct key_set in the configuration of the host",
        ));
    }
    let asked = Asked {
        host: &host.name,
        operation,
        key_set: &request.key_set,
        volume,
    };
    match broker.policy().policy.decide(&asked, Timestamp::now()) {
        Decision::Denied(denial) => call.denied(denial),
        Decision::Permitted(rule) => {
            tracing::debug!(rule, "permitted: {asked}");
            let patience = request.patience.unwrap_or(PATIENCE).min(PATIENCE);
            let work = work(&call, &request.operation);
            let until = tokio::time::Instant::now() + patience;
            let (result, noted) = noted(kms::call::within(until, work)).await;
            call.done(result, noted)
        }
    }
}

/// What the host wants of the key set.
async fn work(call: &Call<'_>, operation: &What) -> Result<Outcome, Failed> {
    let (sets, context, key_set) = (&call.broker.key_sets, &call.context, call.key_set);
    match operation {
        What::Wrap {
            version,
            aad,
            payload,
        } => {
            if payload.len() > envelope::PLAINTEXT_MAX {
                return Err(Failed::Kms(envelope::too_long()));
            }
            let wrap = sets
                .wrap_secret(context, key_set, version.as_deref(), payload, aad)
                .await?;
            Ok(Outcome::Wrapped(wrapped::of(&wrap)?))
        }
        What::Unwrap { wrapped, aad } => {
            let wrap = wrapped::read(wrapped, key_set)?;
            Ok(Outcome::Payload(
                sets.unwrap_secret(context, &wrap, aad).await?,
            ))
        }
        What::CurrentVersion { version } => Ok(Outcome::Version(
            sets.version(context, key_set, version.as_deref()).await?,
        )),
    }
}

/// Why a key set did not do it.
enum Failed {
    Keys(keys::Error),
    Why(Why),
    Kms(kms::Error),
}

impl From<keys::Error> for Failed {
    fn from(error: keys::Error) -> Self {
        Failed::Keys(error)
    }
}

impl From<Why> for Failed {
    fn from(why: Why) -> Self {
        Failed::Why(why)
    }
}

impl From<kms::Error> for Failed {
    fn from(error: kms::Error) -> Self {
        Failed::Kms(error)
    }
}

impl Failed {
    /// As the host is told.
    fn into_kms(self) -> kms::Error {
        match self {
            Failed::Kms(error) | Failed::Why(Why::Kms(error)) => error,
            Failed::Keys(keys::Error::Kms { source, .. }) => source,
            Failed::Keys(keys::Error::UnknownKeySet { name, .. }) => kms::Error::new(
                Class::NotFound,
                format!("the broker has no key set {name:?}"),
                "correct key_set in the configuration of the host, or define the key set on the broker",
            ),
            Failed::Why(Why::UnknownKeySet(_)) => kms::Error::new(
                Class::NotFound,
                "the broker has no such key set any more",
                "define the key set on the broker as it was",
            ),
            Failed::Why(
                why @ (Why::OtherProvider(_)
                | Why::BadDek(_)
                | Why::BreakGlass
                | Why::Denied
                | Why::RecoveryKey
                | Why::OtherRecoveryKey(_)),
            ) => {
                let next = why.help().unwrap_or_default();
                kms::Error::new(Class::BadKey, format!("at the broker: {why}"), next)
            }
            Failed::Why(why @ Why::Binding(_)) => kms::Error::new(
                Class::Protocol,
                format!("at the broker: {why}"),
                "upgrade sealblk on the broker",
            ),
            Failed::Keys(error) => {
                let next = error.help().unwrap_or_default();
                kms::Error::new(
                    Class::Unreachable,
                    format!("the broker cannot: {}", crate::error::chain(&error)),
                    format!("on the broker: {next}"),
                )
                .with_kind(Kind::Unreachable)
            }
        }
    }
}

fn too_many() -> kms::Error {
    let retry_after = Some(Duration::from_secs(60));
    kms::Error::new(
        Class::Throttled { retry_after },
        "the host makes more calls than the broker takes of one host",
        "find out what on the host asks so often",
    )
}

/// A call that is to be recorded.
struct Call<'a> {
    broker: &'a Broker,
    context: Context,
    operation: Operation,
    key_set: &'a str,
    start: Instant,
}

impl Call<'_> {
    fn denied(&self, denial: Denial) -> (Outcome, Noted) {
        let outcome = Recorded::policy_denied(&denial.cause);
        let error = kms::Error::new(Class::Denied(Denied::Forbidden), denial.cause, denial.next);
        tracing::warn!(
            host = self.host(),
            correlation = %self.context.correlation,
            "denied: {error}"
        );
        self.count(CallEnd::Policy);
        (self.recorded(outcome, error), Noted::default())
    }

    fn refused(&self, error: kms::Error) -> (Outcome, Noted) {
        self.count(CallEnd::Failed(error.class()));
        (self.recorded((&error).into(), error), Noted::default())
    }

    fn done(&self, result: Result<Outcome, Failed>, noted: Noted) -> (Outcome, Noted) {
        let error = match result {
            Ok(outcome) => {
                self.count(CallEnd::Ok);
                return (outcome, noted);
            }
            Err(failed) => failed.into_kms(),
        };
        tracing::warn!(
            host = self.host(),
            key_set = self.key_set,
            operation = %self.operation,
            correlation = %self.context.correlation,
            class = %error.class(),
            "a call failed: {error}"
        );
        self.count(CallEnd::Failed(error.class()));
        let outcome = match noted.recorded {
            true => Outcome::Error(Failure::from(&error)),
            // It came to no use of a key.
            false => self.recorded((&error).into(), error),
        };
        (outcome, noted)
    }

    /// Records how it ended, and gives what the host is told of that.
    fn recorded(&self, outcome: Recorded, error: kms::Error) -> Outcome {
        let definitions = self.broker.key_sets.definitions();
        let provider = definitions
            .iter()
            .find(|(name, _)| name.as_str() == self.key_set)
            .map_or("", |(_, definition)| definition.source.provider());
        let key = KeyEvent::wanted(self.context.volume, self.key_set, provider);
        let record = Record {
            actor: &self.context.actor,
            event: match self.operation {
                Operation::Wrap => Event::Wrap(key),
                Operation::Unwrap => Event::Unwrap(key),
                Operation::Check => Event::Check(key),
            },
            outcome,
            correlation: Some(self.context.correlation),
            took: Some(self.start.elapsed()),
        };
        let told = match self.broker.recorder.append(&record) {
            Ok(()) => error,
            Err(why) => unrecorded(&why, self.context.correlation),
        };
        Outcome::Error(Failure::from(&told))
    }

    fn host(&self) -> &str {
        let host = self.context.actor.host.as_ref();
        host.map_or("", |host| &host.name)
    }

    fn count(&self, end: CallEnd) {
        let definitions = self.broker.key_sets.definitions();
        let known = definitions
            .iter()
            .any(|(name, _)| name.as_str() == self.key_set);
        self.broker.metrics.call(
            self.host(),
            if known { self.key_set } else { "" },
            self.operation.as_str(),
            end,
            self.start.elapsed(),
        );
    }
}

fn unrecorded(why: &audit::Error, correlation: Uuid) -> kms::Error {
    tracing::error!(%correlation, "a call is not in the audit log: {why}");
    kms::Error::new(
        Class::Unreachable,
        "what is done on the broker cannot be recorded there, and so nothing is done",
        "see the log of the broker: its audit log cannot be written",
    )
}
