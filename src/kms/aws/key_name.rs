//! What keys are called: by id, by alias, and by ARN.

use std::fmt;
use std::str::FromStr;

use super::region::Region;

/// A key, as a key set names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName {
    /// Where it is, if the name says so.
    pub place: Option<Place>,
    /// What it is called there.
    pub target: Target,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region.
    pub region: Region,
    /// The account that it belongs to: twelve digits.
    pub account: String,
}

/// What a key is called in its account and region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its own id.
    Id(String),
    /// A name that can be moved to another key, without `alias/`.
    Alias(String),
}

impl FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(alias) = text.strip_prefix("alias/") {
            let may = |c: u8| c.is_ascii_alphanumeric() || b"/_-".contains(&c);
            return match (1..=250).contains(&alias.len()) && alias.bytes().all(may) {
                true => Ok(Target::Alias(alias.into())),
                false => Err(()),
            };
        }
        let digits = text.strip_prefix("mrk-").unwrap_or(text);
        let may = |c: u8| c.is_ascii_hexdigit() || c == b'-';
        match (32..=36).contains(&digits.len()) && digits.bytes().all(may) {
            true => Ok(Target::Id(text.into())),
            false => Err(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Id(id) => f.write_str(id),
            Target::Alias(name) => write!(f, "alias/{name}"),
        }
    }
}

impl Target {
    /// Whether related keys of that name can be in several regions. Of an
    /// alias it is not known.
    pub fn may_be_multi_region(&self) -> bool {
        match self {
            Target::Id(id) => id.starts_with("mrk-"),
            Target::Alias(_) => true,
        }
    }
}

/// Twelve digits.
///
/// # Errors
/// When `text` is something else.
pub fn account(text: &str) -> Result<String, String> {
    match text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit()) {
        true => Ok(text.into()),
        false => Err(format!("{text:?} is not an AWS account: it has 12 digits")),
    }
}

impl FromStr for KeyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a key of AWS KMS: write its id, alias/NAME, or the ARN of either"
            )
        };
        let Some(arn) = text.strip_prefix("arn:") else {
            let target = text.parse().map_err(|()| bad())?;
            return Ok(KeyName {
                place: None,
                target,
            });
        };
        let parts: Vec<&str> = arn.splitn(5, ':').collect();
        let [partition, "kms", region, owner, resource] = parts[..] else {
            return Err(bad());
        };
        let region: Region = region.parse().map_err(|_| bad())?;
        if region.partition() != partition {
            return Err(format!(
                "{text:?} is not a key of AWS KMS: region {region} is in the partition {:?}",
                region.partition()
            ));
        }
        let target = match resource.strip_prefix("key/") {
            Some(id) => id.parse(),
            None => resource.parse(),
        };
        let target = match target {
            Ok(Target::Alias(_)) if resource.starts_with("key/") => return Err(bad()),
            Ok(Target::Id(_)) if !resource.starts_with("key/") => return Err(bad()),
            Ok(target) => target,
            Err(()) => return Err(bad()),
        };
        Ok(KeyName {
            place: Some(Place {
                region,
                account: account(owner).map_err(|_| bad())?,
            }),
            target,
        })
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Place { region, account }) = &self.place else {
            return self.target.fmt(f);
        };
        let key = match &self.target {
            Target::Id(_) => "key/",
            Target::Alias(_) => "",
        };
        let partition = region.partition();
        write!(
            f,
            "arn:{partition}:kms:{region}:{account}:{key}{}",
            self.target
        )
    }
}

impl KeyName {
    /// The key of the same name, and account if it has one, in `region`.
    pub fn within(&self, region: &Region) -> Self {
        KeyName {
            place: self.place.as_ref().map(|place| Place {
                region: region.clone(),
                account: place.account.clone(),
            }),
            target: self.target.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

    #[test]
    fn a_name_has_one_form() {
        for good in [
            ID,
            MRK,
            "alias/disks",
            "alias/team/disks_1",
            &format!("arn:aws:kms:eu-central-1:111122223333:key/{ID}"),
            &format!("arn:aws-cn:kms:cn-north-1:111122223333:key/{MRK}"),
            "arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/disks",
        ] {
            let name: KeyName = good.parse().unwrap();
            assert_eq!(name.to_string(), good);
        }
        for bad in [
            "",
            "disks",
            "alias/",
            "alias/a b",
            "alias/a\n",
            "mrk-",
            "key/1234abcd-12ab-34cd-56ef-1234567890ab",
            &format!("{ID}0"),
            &format!("arn:aws:kms:eu-central-1:111122223333:{ID}"),
            "arn:aws:kms:eu-central-1:111122223333:key/alias/disks",
            &format!("arn:aws:s3:eu-central-1:111122223333:key/{ID}"),
            &format!("arn:aws:kms:eu-central-1:11112222333:key/{ID}"),
            &format!("arn:aws:kms::111122223333:key/{ID}"),
            &format!("arn:aws-cn:kms:eu-central-1:111122223333:key/{ID}"),
            &"x".repeat(70_000),
        ] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_related_key_is_in_another_region() {
        let name: KeyName = format!("arn:aws:kms:eu-central-1:111122223333:key/{MRK}")
            .parse()
            .unwrap();
        let other = "us-east-1".parse().unwrap();
        assert_eq!(
            name.within(&other).to_string(),
            format!("arn:aws:kms:us-east-1:111122223333:key/{MRK}")
        );
        assert!(name.target.may_be_multi_region());
        let name: KeyName = ID.parse().unwrap();
        assert_eq!(name.within(&other), name);
        assert!(!name.target.may_be_multi_region());
    }
}
