//! A token: finding it, logging in, and keeping sessions.
//!
//! All in here waits for the library, and runs where that may be done.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki::context::{Function, Pkcs11};
use cryptoki::error::{Error as CallError, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;

use super::failure;
use super::module::Module;
use super::uri::TokenMatch;
use crate::error::Kind;
use crate::kms::cluster::Failed;
use crate::kms::credential::SecretFile;
use crate::kms::{Class, Denied, Error};

/// How many sessions are kept for the next calls. At least one has to be: with
/// the last one the login ends.
const IDLE_MAX: usize = 4;

/// Why something was not done on a token.
#[derive(Debug)]
pub(super) enum Fault {
    /// The library said so.
    Call(CallError),
    /// It has been explained already.
    Told(Failed),
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        Fault::Call(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Told(Failed::Here(error))
    }
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        Fault::Told(failed)
    }
}

/// A token, and the sessions with it that wait for their next use.
#[derive(Debug)]
pub(super) struct Token {
    module: Arc<Module>,
    wanted: TokenMatch,
    pin: Option<SecretFile>,
    idle: Mutex<Vec<Open>>,
}

/// A session with a token, logged in as its user if it wants that.
pub(super) struct Open {
    /// Is closed by [`Open::close`], which does not complain when that has
    /// happened already.
    session: Session,
    library: Pkcs11,
    slot: Slot,
    login: bool,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Open(session {}, slot {})", self.session, self.slot)
    }
}

impl Deref for Open {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Open {
    /// Ends it. Of a token that was removed, it has ended with that.
    fn close(self) {
        let _ = self.session.close();
    }

    /// The library that it is a session of, and the slot that the token is in.
    pub(super) fn place(&self) -> (&Pkcs11, Slot) {
        (&self.library, self.slot)
    }

    fn is_logged_in(&self) -> Result<bool, CallError> {
        let state = self.get_session_info()?.session_state();
        Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
    }

    /// Whether it is still what it was when it was opened.
    fn is_good(&self) -> bool {
        self.is_logged_in()
            .is_ok_and(|logged_in| logged_in || !self.login)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the token {}", self.wanted)
    }
}

impl Token {
    pub(super) fn new(module: Arc<Module>, wanted: TokenMatch, pin: Option<SecretFile>) -> Self {
        Token {
            module,
            wanted,
            pin,
            idle: Mutex::default(),
        }
    }

    pub(super) fn module(&self) -> &Module {
        &self.module
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Open>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` in a session: one that was kept, or a new one. If it turns
    /// out that the one that was kept has ended, it is done in a new one. `key`
    /// is how the key is called in messages.
    pub(super) fn with_session<T>(
        &self,
        key: &str,
        work: impl Fn(&Open) -> Result<T, Fault>,
    ) -> Result<T, Failed> {
        let kept = self.kept();
        let reused = kept.is_some();
        let mut session = match kept {
            Some(session) => session,
            None => self.open()?,
        };
        let mut done = work(&session);
        if reused && matches!(&done, Err(Fault::Call(error)) if failure::is_stale(error)) {
            session.close();
            self.close_idle();
            session = self.open()?;
            done = work(&session);
        }
        match done {
            Ok(value) => {
                self.keep(session);
                Ok(value)
            }
            Err(Fault::Told(failed)) => {
                self.keep(session);
                Err(failed)
            }
            Err(Fault::Call(error)) => {
                // The next call looks for the token again.
                session.close();
                self.close_idle();
                Err(self.explain(&error, key))
            }
        }
    }

    fn explain(&self, error: &CallError, key: &str) -> Failed {
        if failure::code(error) == Some(RvError::CryptokiNotInitialized) {
            self.module.forget();
        }
        failure::error(error, self, key).into()
    }

    fn kept(&self) -> Option<Open> {
        loop {
            let session = self.idle().pop()?;
            if session.is_good() {
                return Some(session);
            }
            session.close();
        }
    }

    fn keep(&self, session: Open) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(session);
        } else {
            drop(idle);
            session.close();
        }
    }

    fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle());
        idle.into_iter().for_each(Open::close);
    }

    /// A new session, logged in.
    fn open(&self) -> Result<Open, Failed> {
        let library = self.module.library()?;
        let opened = || {
            let (slot, info) = self.find(&library)?;
            let session = Open {
                session: library.open_ro_session_no_drop(slot)?,
                library: library.clone(),
                slot,
                login: info.login_required(),
            };
            match self.log_in(&session, &info) {
                Ok(()) => Ok(session),
                Err(fault) => {
                    session.close();
                    Err(fault)
                }
            }
        };
        opened().map_err(|fault: Fault| match fault {
            Fault::Told(failed) => failed,
            Fault::Call(error) => self.explain(&error, ""),
        })
    }

    /// The slot with the token that is meant.
    fn find(&self, library: &Pkcs11) -> Result<(Slot, TokenInfo), Fault> {
        let mut there = Vec::new();
        let mut found = Vec::new();
        for slot in library.get_slots_with_token()? {
            // One that was just removed, or that is not for us, hides no other.
            let Ok(info) = library.get_token_info(slot) else {
                continue;
            };
            if !info.token_initialized() {
                continue;
            }
            there.push(format!("{:?}", info.label()));
            if self.wanted.is_met_by(slot, &info) {
                found.push((slot, info));
            }
        }
        match (found.pop(), found.len()) {
            (Some(one), 0) => Ok(one),
            (Some(_), others) => Err(Fault::Told(Failed::Everywhere(
                Error::new(
                    Class::Protocol,
                    format!("{} tokens are meant by {}", others + 1, self.wanted),
                    "add serial=… to the URI, which tells them apart",
                )
                .with_kind(Kind::Usage),
            ))),
            (None, _) => Err(Error::new(
                Class::Unreachable,
                format!(
                    "{self} is not there; there is {}",
                    match there.as_slice() {
                        [] => "none".into(),
                        there => there.join(", "),
                    }
                ),
                "plug the token in, start the service that its library talks to, or correct the URI",
            )
            .into()),
        }
    }

    /// Logs this process in at the token, if it wants that and has not been
    /// done yet, with the PIN as it is in its file now.
    fn log_in(&self, session: &Open, info: &TokenInfo) -> Result<(), Fault> {
        // One at a time, so that no wrong PIN is tried twice.
        let mut refusals = self.module.refusals();
        if !session.login || session.is_logged_in()? {
            return Ok(());
        }
        let Some(file) = &self.pin else {
            let error = Error::new(
                Class::Unreachable,
                format!("{self} wants a login, and no PIN is configured"),
                "put the PIN into a file, and name that in the key set: pin = \"/PATH\"",
            );
            return Err(Failed::Everywhere(error.with_kind(Kind::Usage)).into());
        };
        if info.user_pin_locked() {
            return Err(CallError::Pkcs11(RvError::PinLocked, Function::GetTokenInfo).into());
        }
        let pin = file
            .read()
            .map_err(|error| Failed::Everywhere(error.into()))?;
        let serial = info.serial_number();
        if refusals.contains(serial, &pin) {
            return Err(Error::new(
                Class::Denied(Denied::Forbidden),
                format!("{self} has refused the PIN in {file} before"),
                "put the right PIN into the file; if it has become right meanwhile, start sealblk again",
            )
            .into());
        }
        let raw = RawAuthPin::new(Box::new(pin.to_vec()));
        match session.login_with_raw(UserType::User, &raw) {
            Ok(()) | Err(CallError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => {
                use RvError::{PinIncorrect, PinInvalid, PinLenRange};
                if matches!(
                    failure::code(&error),
                    Some(PinIncorrect | PinInvalid | PinLenRange)
                ) {
                    refusals.remember(serial, pin);
                }
                Err(error.into())
            }
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.close_idle();
    }
}

impl TokenMatch {
    fn is_met_by(&self, slot: Slot, info: &TokenInfo) -> bool {
        let met =
            |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|wanted| wanted == has);
        met(&self.label, info.label())
            && met(&self.serial, info.serial_number())
            && met(&self.manufacturer, info.manufacturer_id())
            && met(&self.model, info.model())
            && self.slot.is_none_or(|wanted| wanted == slot.id())
    }
}
