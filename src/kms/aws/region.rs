//! Regions, the partitions of AWS that they are in, and where KMS and STS are
//! found in them.

use std::fmt;
use std::str::FromStr;

use crate::kms::http::BaseUrl;

/// A partition: how its regions and names begin, and its domains.
#[derive(Debug, PartialEq, Eq)]
struct Partition {
    name: &'static str,
    prefix: &'static str,
    domain: &'static str,
    dualstack: &'static str,
}

/// In an order in which the first prefix that fits is the right one.
const PARTITIONS: [Partition; 8] = [
    Partition {
        name: "aws-cn",
        prefix: "cn-",
        domain: "amazonaws.com.cn",
        dualstack: "api.amazonwebservices.com.cn",
    },
    Partition {
        name: "aws-us-gov",
        prefix: "us-gov-",
        domain: "amazonaws.com",
        dualstack: "api.aws",
    },
    Partition {
        name: "aws-eusc",
        prefix: "eusc-",
        domain: "amazonaws.eu",
        dualstack: "api.amazonwebservices.eu",
    },
    Partition {
        name: "aws-iso",
        prefix: "us-iso-",
        domain: "c2s.ic.gov",
        dualstack: "api.aws.ic.gov",
    },
    Partition {
        name: "aws-iso-b",
        prefix: "us-isob-",
        domain: "sc2s.sgov.gov",
        dualstack: "api.aws.scloud",
    },
    Partition {
        name: "aws-iso-e",
        prefix: "eu-isoe-",
        domain: "cloud.adc-e.uk",
        dualstack: "api.cloud-aws.adc-e.uk",
    },
    Partition {
        name: "aws-iso-f",
        prefix: "us-isof-",
        domain: "csp.hci.ic.gov",
        dualstack: "api.aws.hci.ic.gov",
    },
    Partition {
        name: "aws",
        prefix: "",
        domain: "amazonaws.com",
        dualstack: "api.aws",
    },
];

/// A region, such as `eu-central-1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region(String);

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        // It becomes a part of a host name.
        if text.len() > 32 || text.split('-').count() < 3 || !text.split('-').all(word) {
            return Err(format!(
                "{text:?} is not a region of AWS: write it like \"eu-central-1\""
            ));
        }
        Ok(Region(text.into()))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of the names of a service to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// The one with modules that are validated under FIPS 140.
    pub fips: bool,
    /// The one with IPv6 addresses as well.
    pub dualstack: bool,
}

impl Region {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn table(&self) -> &'static Partition {
        let fits = |partition: &&Partition| self.0.starts_with(partition.prefix);
        // The last one fits all.
        PARTITIONS
            .iter()
            .find(fits)
            .unwrap_or(&PARTITIONS[PARTITIONS.len() - 1])
    }

    /// The partition that it is in, as it stands in ARNs.
    pub fn partition(&self) -> &'static str {
        self.table().name
    }

    /// Where KMS is there.
    ///
    /// # Errors
    /// Never, for what is a region.
    pub fn kms(&self, variant: Variant) -> Result<BaseUrl, String> {
        let name = if variant.fips { "kms-fips" } else { "kms" };
        let partition = self.table();
        let domain = match variant.dualstack {
            true => partition.dualstack,
            false => partition.domain,
        };
        format!("https://{name}.{self}.{domain}").parse()
    }

    /// Where the regional STS is there.
    ///
    /// # Errors
    /// Never, for what is a region.
    pub fn sts(&self) -> Result<BaseUrl, String> {
        format!("https://sts.{self}.{}", self.table().domain).parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_region_is_one() {
        for good in [
            "eu-central-1",
            "us-gov-west-1",
            "cn-north-1",
            "eusc-de-east-1",
        ] {
            assert_eq!(good.parse::<Region>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "eu",
            "eu-central",
            "eu-central-1.evil.example",
            "eu-central-1/",
            "EU-CENTRAL-1",
            "eu--central-1",
            "-eu-central-1",
            "eu-central-1\n",
            &format!("eu-central-{}", "1".repeat(40)),
        ] {
            let error = bad.parse::<Region>().unwrap_err();
            assert!(error.contains("eu-central-1"), "{error}");
        }
    }

    /// More of them are compared with those of the AWS SDK in `tests/kms_aws`.
    #[test]
    fn a_partition_has_its_domains() {
        let at = |region: &str, fips, dualstack| {
            let region: Region = region.parse().unwrap();
            let url = region.kms(Variant { fips, dualstack }).unwrap();
            (region.partition(), url.to_string())
        };
        assert_eq!(
            at("eu-central-1", false, false),
            ("aws", "https://kms.eu-central-1.amazonaws.com".into())
        );
        assert_eq!(
            at("cn-north-1", false, false),
            ("aws-cn", "https://kms.cn-north-1.amazonaws.com.cn".into())
        );
        assert_eq!(
            at("us-gov-west-1", true, false),
            (
                "aws-us-gov",
                "https://kms-fips.us-gov-west-1.amazonaws.com".into()
            )
        );
    }
}
