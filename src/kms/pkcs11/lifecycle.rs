//! Whether a key may be used, from what the token tells of it.
//!
//! A token enforces `CKA_ENCRYPT` and its like, and leaves the dates to the
//! application: here they count. They are days, in UTC.

use std::time::SystemTime;

use cryptoki::types::Date as RawDate;

use crate::kms::{Class, Denied, Error};
use crate::timestamp::Timestamp;

/// A day as `CK_DATE` has it: YYYYMMDD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Date([u8; 8]);

impl Date {
    /// `None` for an empty date, and for one that is none.
    pub(super) fn of(raw: &RawDate) -> Option<Self> {
        let mut date = [0; 8];
        date[..4].copy_from_slice(&raw.year);
        date[4..6].copy_from_slice(&raw.month);
        date[6..].copy_from_slice(&raw.day);
        let date = Date(date);
        date.last_second().map(|_| date)
    }

    pub(super) fn today() -> Self {
        let now = Timestamp::now().to_string();
        let mut digits = now.bytes().filter(u8::is_ascii_digit);
        Date(std::array::from_fn(|_| digits.next().unwrap_or(b'0')))
    }

    fn last_second(self) -> Option<SystemTime> {
        let text = std::str::from_utf8(&self.0).ok()?;
        let (year, rest) = text.split_at_checked(4)?;
        let (month, day) = rest.split_at_checked(2)?;
        let end: Timestamp = format!("{year}-{month}-{day}T23:59:59Z").parse().ok()?;
        Some(end.into())
    }
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct May {
    pub(super) encrypt: bool,
    pub(super) decrypt: bool,
    pub(super) wrap: bool,
    pub(super) unwrap: bool,
}

/// What a token tells of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) id: Vec<u8>,
    pub(super) may: May,
    pub(super) start: Option<Date>,
    pub(super) end: Option<Date>,
    /// Why it is of a kind that is not used, if it is.
    pub(super) unfit: Option<&'static str>,
}

/// What a key is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Wrap,
    Unwrap,
}

/// Which attributes permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// `CKA_ENCRYPT` and `CKA_DECRYPT`.
    Encrypt,
    /// `CKA_WRAP` and `CKA_UNWRAP`.
    Wrap,
}

/// Checks that a key may be used, and is of a kind that is.
///
/// # Errors
/// When it may not be used now, or is another kind of key. `key` is how the
/// key is called in the message.
pub(super) fn check(
    key: &str,
    told: &Told,
    permission: Permission,
    purpose: Purpose,
    today: Date,
) -> Result<(), Error> {
    if let Some(why) = told.unfit {
        return Err(Error::new(
            Class::Protocol,
            format!("{key} {why}"),
            "make an AES-256 key, or an RSA key pair with 2048 bits or more",
        ));
    }
    match told.obstacle(permission, purpose, today) {
        None => Ok(()),
        Some((denied, what, next)) => Err(Error::new(
            Class::Denied(denied),
            format!("{key} {what}"),
            next,
        )),
    }
}

impl Told {
    /// When it ends, if that is set.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        self.end?.last_second()
    }

    /// Whether it may wrap now.
    pub(super) fn is_enabled(&self, permission: Permission) -> bool {
        let obstacle = self.obstacle(permission, Purpose::Wrap, Date::today());
        self.unfit.is_none() && obstacle.is_none()
    }

    /// By which the latest of several is told: the highest one is.
    pub(super) fn rank(&self, today: Date) -> impl Ord + use<> {
        let come = self.start.is_none_or(|start| start <= today);
        let zeros = self.id.iter().take_while(|byte| **byte == 0).count();
        let number = self.id[zeros..].to_vec();
        (come, self.start, number.len(), number)
    }

    /// Why it may not be used: the class, the rest of a sentence that begins
    /// with the key, and the next step.
    fn obstacle(
        &self,
        permission: Permission,
        purpose: Purpose,
        today: Date,
    ) -> Option<(Denied, &'static str, &'static str)> {
        const SET: &str = "if it was not cleared to disable the key, have the attribute set, or use another mechanism";
        let (wraps, unwraps, wraps_not, unwraps_not) = match permission {
            Permission::Encrypt => (
                self.may.encrypt,
                self.may.decrypt,
                "may not encrypt (CKA_ENCRYPT)",
                "may not decrypt (CKA_DECRYPT)",
            ),
            Permission::Wrap => (
                self.may.wrap,
                self.may.unwrap,
                "may not wrap (CKA_WRAP)",
                "may not unwrap (CKA_UNWRAP)",
            ),
        };
        // Nor is anything wrapped that could not be unwrapped after.
        if !unwraps {
            return Some((Denied::Disabled, unwraps_not, SET));
        }
        if purpose == Purpose::Wrap && !wraps {
            return Some((Denied::Disabled, wraps_not, SET));
        }
        if self.end.is_some_and(|end| end < today) {
            return Some((
                Denied::Expired,
                "is past its CKA_END_DATE",
                "wrap with a newer key; to open what this one wrapped, have the date changed",
            ));
        }
        if purpose == Purpose::Wrap && self.start.is_some_and(|start| start > today) {
            return Some((
                Denied::Expired,
                "is before its CKA_START_DATE",
                "wait for that day, or have the date changed",
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn date(text: &str) -> Option<Date> {
        let raw = RawDate::new_from_str_slice(&text[..4], &text[4..6], &text[6..]);
        Date::of(&raw.unwrap())
    }

    const FREE: Told = Told {
        id: Vec::new(),
        may: May {
            encrypt: true,
            decrypt: true,
            wrap: true,
            unwrap: true,
        },
        start: None,
        end: None,
        unfit: None,
    };

    #[test]
    fn each_attribute_and_date_has_its_answer() {
        use Permission::*;
        use Purpose::{Unwrap, Wrap as ToWrap};
        let today = date("20310517").unwrap();
        let told = |change: fn(&mut Told)| {
            let mut told = FREE;
            change(&mut told);
            told
        };
        let (disabled, expired) = (Some(Denied::Disabled), Some(Denied::Expired));
        #[rustfmt::skip]
        let table = [
            (told(|_| {}), Encrypt, None, None),
            (told(|k| k.may.encrypt = false), Encrypt, disabled, None),
            (told(|k| k.may.decrypt = false), Encrypt, disabled, disabled),
            (told(|k| k.may.decrypt = false), Wrap, None, None),
            (told(|k| k.may.wrap = false), Wrap, disabled, None),
            (told(|k| k.may.unwrap = false), Wrap, disabled, disabled),
            (told(|k| k.may.unwrap = false), Encrypt, None, None),
            (told(|k| k.end = date("20310517")), Encrypt, None, None),
            (told(|k| k.end = date("20310516")), Encrypt, expired, expired),
            (told(|k| k.start = date("20310517")), Encrypt, None, None),
            (told(|k| k.start = date("20310518")), Encrypt, expired, None),
        ];
        for (told, permission, wrap, unwrap) in table {
            for (purpose, expected) in [(ToWrap, wrap), (Unwrap, unwrap)] {
                let class = check("the key", &told, permission, purpose, today)
                    .err()
                    .map(|error| error.class());
                assert_eq!(class, expected.map(Class::Denied), "{told:?} {purpose:?}");
            }
        }
        let unfit = told(|k| k.unfit = Some("is a potato"));
        let error = check("the key", &unfit, Encrypt, Unwrap, today).unwrap_err();
        assert_eq!(error.class(), Class::Protocol);
        assert!(!unfit.is_enabled(Encrypt));
    }

    #[test]
    fn the_latest_is_told_by_start_date_and_then_by_id() {
        let today = date("20310517").unwrap();
        let key = |id: &[u8], start: &str| Told {
            id: id.into(),
            start: date(start),
            ..FREE
        };
        // From the oldest to the latest.
        let order = [
            key(&[9], "20310519"),
            key(&[1], "20310520"),
            key(&[7], "        "),
            key(&[0, 8], "        "),
            key(&[1, 0], "        "),
            key(&[1], "20310101"),
            key(&[0], "20310517"),
            key(&[0, 0, 1], "20310517"),
        ];
        for (at, pair) in order.windows(2).enumerate() {
            assert!(
                pair[0].rank(today) < pair[1].rank(today),
                "{at}: {:?} is older than {:?}",
                pair[0],
                pair[1]
            );
        }
    }

    #[test]
    fn dates_are_days() {
        for none in ["        ", "20310230", "2031-5-1", "00000000"] {
            assert_eq!(date(none), None, "{none}");
        }
        let told = Told {
            end: date("19700102"),
            ..FREE
        };
        assert_eq!(
            told.expires(),
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2 * 86_400 - 1))
        );
        assert!(Date::today() > date("20200101").unwrap());
        assert!(Date::today().last_second().is_some());
    }
}
