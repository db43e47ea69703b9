//! A key set with `provider = "aws-kms"`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::aws::{
    self, Endpoint, Environment, Identity, KeyName, Region, Settings, Target, Variant,
};
use crate::kms::http::BaseUrl;

/// All but `credentials`, of which there are several kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AwsKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    key: Spanned<Parsed<KeyName>>,
    version: Option<Spanned<String>>,
    region: Option<Spanned<Parsed<Region>>>,
    regions: Option<Spanned<Vec<Parsed<Region>>>>,
    endpoints: Option<Spanned<Vec<Parsed<BaseUrl>>>>,
    fips: Option<bool>,
    dualstack: Option<bool>,
    accounts: Option<Vec<Parsed<Account>>>,
    sts_endpoint: Option<Parsed<BaseUrl>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherSource {
    #[serde(rename = "source")]
    _source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WebIdentitySource {
    #[serde(rename = "source")]
    _source: String,
    role: Option<String>,
    token: Option<FilePath>,
    session: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileSource {
    #[serde(rename = "source")]
    _source: String,
    profile: Option<String>,
    credentials_file: Option<FilePath>,
    config_file: Option<FilePath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerSource {
    #[serde(rename = "source")]
    _source: String,
    endpoint: Option<Parsed<Address>>,
    token: Option<FilePath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceSource {
    #[serde(rename = "source")]
    _source: String,
    endpoint: Option<Parsed<Address>>,
}

/// Twelve digits.
struct Account(String);

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        aws::account(text).map(Account)
    }
}

/// Where credentials may be asked for.
struct Address(String);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        aws::credentials_address(text).map(Address)
    }
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    in_environment(reader, value, Environment::Process)
}

fn in_environment<'a>(
    reader: &Reader<'a>,
    mut value: Spanned<DeValue<'a>>,
    environment: Environment,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let credentials = match value.get_mut() {
        DeValue::Table(table) => table.remove("credentials"),
        _ => None,
    };
    let set: AwsKeySet = reader.table(value)?;
    let source = match credentials {
        Some(value) => credentials_source(reader, value)?,
        None => aws::Source::Default,
    };
    if let Some(version) = set.version.filter(|version| version.get_ref() != "latest") {
        return Err(reader.at(
            version.span().start,
            "AWS KMS encrypts with the current material of a key alone: to stay with a key, name it by its id and not by an alias",
        ));
    }
    let key_at = set.key.span().start;
    let key = set.key.into_inner().0;
    let regions = match (set.region, set.regions) {
        (Some(one), None) => vec![one.into_inner().0],
        (None, Some(several)) => {
            let at = several.span().start;
            let several: Vec<Region> = several.into_inner().into_iter().map(|r| r.0).collect();
            if several.is_empty() {
                return Err(reader.at(at, "name at least one region"));
            }
            several
        }
        (Some(region), Some(_)) => {
            return Err(reader.at(region.span().start, "write either region or regions"));
        }
        (None, None) => vec![usual_region(reader, at, &key, &source, &environment)?],
    };
    check_regions(&key, &regions).map_err(|why| reader.at(key_at, why))?;
    let variant = Variant {
        fips: set.fips.unwrap_or(false),
        dualstack: set.dualstack.unwrap_or(false),
    };
    let endpoints = match set.endpoints {
        Some(given) if variant != Variant::default() => {
            return Err(reader.at(
                given.span().start,
                "fips and dualstack choose the endpoints: write either them or endpoints",
            ));
        }
        Some(given) => {
            let at = given.span().start;
            let given = given.into_inner().into_iter().map(|url| url.0).collect();
            paired(regions, given).map_err(|why| reader.at(at, why))?
        }
        None => {
            let usual = regions.into_iter().map(|region| {
                let url = region.kms(variant)?;
                Ok(Endpoint { region, url })
            });
            let usual: Result<Vec<Endpoint>, String> = usual.collect();
            usual.map_err(|why| reader.at(at, why))?
        }
    };
    let own = key.place.iter().map(|place| place.account.clone());
    let more = set.accounts.unwrap_or_default().into_iter().map(|a| a.0.0);
    let mut accounts: Vec<String> = own.chain(more).collect();
    accounts.dedup();
    let settings = Settings {
        endpoints,
        accounts,
        identity: Identity {
            source,
            environment,
            sts_endpoint: set.sts_endpoint.map(|url| url.0),
        },
        tls: service::tls(reader, set.ca_file, set.client_cert, set.client_key)?,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    };
    let source = Source::Aws {
        key,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, None))
}

/// An address for each region, or any number of them for the only region.
fn paired(regions: Vec<Region>, addresses: Vec<BaseUrl>) -> Result<Vec<Endpoint>, String> {
    if addresses.is_empty() {
        return Err("name at least one endpoint, or leave endpoints out".into());
    }
    let regions = match regions.as_slice() {
        [only] => vec![only.clone(); addresses.len()],
        several if several.len() == addresses.len() => regions,
        several => {
            return Err(format!(
                "there are {} regions and {} endpoints: write one for each region, in their order",
                several.len(),
                addresses.len()
            ));
        }
    };
    let pairs = regions.into_iter().zip(addresses);
    Ok(pairs
        .map(|(region, url)| Endpoint { region, url })
        .collect())
}

/// Whether the key can be in all of the regions.
fn check_regions(key: &KeyName, regions: &[Region]) -> Result<(), String> {
    if let Some(other) = regions
        .iter()
        .find(|region| region.partition() != regions[0].partition())
    {
        return Err(format!(
            "{} and {other} are in different partitions, which share no keys",
            regions[0]
        ));
    }
    let several = regions.iter().any(|region| *region != regions[0]);
    if several && !key.target.may_be_multi_region() {
        return Err(format!(
            "key {key} is in one region alone: only multi-Region keys (mrk-…) are in several"
        ));
    }
    if let Some(place) = &key.place
        && !regions.contains(&place.region)
        && !(matches!(key.target, Target::Id(_)) && key.target.may_be_multi_region())
    {
        return Err(format!(
            "key {key} is not in {}: correct region",
            regions[0]
        ));
    }
    Ok(())
}

/// The region where the key set names none: that of the key's ARN, or the one
/// that AWS's own tools would take.
fn usual_region(
    reader: &Reader<'_>,
    at: usize,
    key: &KeyName,
    source: &aws::Source,
    environment: &Environment,
) -> Result<Region, Error> {
    if let Some(place) = &key.place {
        return Ok(place.region.clone());
    }
    let named = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let found = named
        .iter()
        .find_map(|name| Some((environment.get(name)?, (*name).to_owned())))
        .or_else(|| region_of_profile(source, environment));
    match found {
        Some((text, place)) => text
            .parse()
            .map_err(|why: String| reader.at(at, format!("{place}: {why}"))),
        None => Err(reader.at(
            at,
            "no region is known: add region = \"eu-central-1\" or the like; the key's ARN, AWS_REGION, AWS_DEFAULT_REGION, and the profile in ~/.aws/config name none either",
        )),
    }
}

/// The region of the profile in the configuration of AWS's own tools, and the
/// name of that file.
fn region_of_profile(source: &aws::Source, environment: &Environment) -> Option<(String, String)> {
    let (profile, file) = match source {
        aws::Source::Profile {
            name, config_file, ..
        } => (name.clone(), config_file.clone()),
        _ => (None, None),
    };
    let profile = profile
        .or_else(|| environment.get("AWS_PROFILE"))
        .unwrap_or_else(|| "default".into());
    let file = file
        .or_else(|| environment.get("AWS_CONFIG_FILE").map(PathBuf::from))
        .or_else(|| Some(environment.home()?.join(".aws/config")))?;
    let text = super::file::text_of(&file).ok()?;
    let header = match &*profile {
        "default" => "[default]".to_owned(),
        name => format!("[profile {name}]"),
    };
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| *line == header)?;
    let region = lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == "region")?;
    Some((region.1.trim().to_owned(), file.display().to_string()))
}

fn credentials_source<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<aws::Source, Error> {
    let at = value.span().start;
    let path = |path: Option<FilePath>| path.map(PathBuf::from);
    let (name, table) = match value.get_ref() {
        DeValue::String(name) => (Some(name.clone().into_owned()), false),
        DeValue::Table(table) => {
            let name = table.get("source").and_then(|name| name.get_ref().as_str());
            (name.map(str::to_owned), true)
        }
        _ => (None, false),
    };
    Ok(match (name.as_deref(), table) {
        (Some(plain @ ("default" | "environment")), table) => {
            if table {
                let _: OtherSource = reader.table(value)?;
            }
            match plain {
                "default" => aws::Source::Default,
                _ => aws::Source::Environment,
            }
        }
        (Some("web-identity"), false) => aws::Source::web_identity(),
        (Some("web-identity"), true) => {
            let source: WebIdentitySource = reader.table(value)?;
            aws::Source::WebIdentity {
                role: source.role,
                token: path(source.token),
                session: source.session,
            }
        }
        (Some("profile"), false) => aws::Source::profile(),
        (Some("profile"), true) => {
            let source: ProfileSource = reader.table(value)?;
            aws::Source::Profile {
                name: source.profile,
                credentials_file: path(source.credentials_file),
                config_file: path(source.config_file),
            }
        }
        (Some("container"), false) => aws::Source::Container {
            endpoint: None,
            token: None,
        },
        (Some("container"), true) => {
            let source: ContainerSource = reader.table(value)?;
            aws::Source::Container {
                endpoint: source.endpoint.map(|address| address.0.0),
                token: path(source.token),
            }
        }
        (Some("instance"), false) => aws::Source::Instance { endpoint: None },
        (Some("instance"), true) => {
            let source: InstanceSource = reader.table(value)?;
            aws::Source::Instance {
                endpoint: source.endpoint.map(|address| address.0.0),
            }
        }
        _ => {
            return Err(reader.at(
                at,
                "credentials is \"default\", \"environment\", \"web-identity\", \"profile\", \"container\" or \"instance\", or a table with that as its source",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeTable;

    use super::*;

    const ARN: &str =
        "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const MRK: &str = "mrk-1234abcd12ab34cd56ef1234567890ab";

    fn read_in(text: &str, environment: Environment) -> Result<(KeyName, Settings), String> {
        let text = format!("provider = \"aws-kms\"\n{text}\n");
        let reader = Reader::of(Path::new("set.toml"), &text);
        let table = DeTable::parse(&text).unwrap();
        let span = table.span();
        let value = Spanned::new(span, DeValue::Table(table.into_inner()));
        match in_environment(&reader, value, environment) {
            Ok(definition) => match definition.source {
                Source::Aws { key, settings } => Ok((key, *settings)),
                _ => panic!("another provider"),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    fn read(text: &str) -> Result<(KeyName, Settings), String> {
        read_in(text, Environment::fixed([]))
    }

    fn refused(text: &str, why: &str) {
        let error = read(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }

    fn urls(settings: &Settings) -> Vec<String> {
        let urls = settings.endpoints.iter();
        urls.map(|endpoint| endpoint.url.to_string()).collect()
    }

    #[test]
    fn an_arn_says_all() {
        let (key, settings) = read(&format!("key = \"{ARN}\"")).unwrap();
        assert_eq!(key.to_string(), ARN);
        assert_eq!(urls(&settings), ["https://kms.eu-central-1.amazonaws.com"]);
        assert_eq!(settings.accounts, ["111122223333"]);
        assert_eq!(settings.identity.source, aws::Source::Default);
        let more = format!("key = \"{ARN}\"\naccounts = [\"444455556666\"]");
        assert_eq!(
            read(&more).unwrap().1.accounts,
            ["111122223333", "444455556666"]
        );
        refused(&format!("key = \"{ARN}\"\naccounts = [\"1\"]"), "12 digits");
        refused(
            &format!("key = \"{ARN}\"\nregion = \"us-east-1\""),
            "is not in us-east-1",
        );
        refused("key = \"disks\"\nregion = \"us-east-1\"", "alias/NAME");
    }

    #[test]
    fn regions_are_in_their_order_and_have_the_endpoints_that_are_asked_for() {
        let regions = "regions = [\"eu-central-1\", \"eu-west-1\"]";
        let (_, settings) = read(&format!("key = \"{MRK}\"\n{regions}\nfips = true")).unwrap();
        assert_eq!(
            urls(&settings),
            [
                "https://kms-fips.eu-central-1.amazonaws.com",
                "https://kms-fips.eu-west-1.amazonaws.com"
            ]
        );
        let own = "endpoints = [\"https://vpce-1.example\", \"https://vpce-2.example\"]";
        let (_, settings) = read(&format!("key = \"alias/disks\"\n{regions}\n{own}")).unwrap();
        assert_eq!(
            urls(&settings),
            ["https://vpce-1.example", "https://vpce-2.example"]
        );
        assert_eq!(settings.endpoints[1].region.as_str(), "eu-west-1");
        let (_, settings) = read(&format!(
            "key = \"alias/disks\"\nregion = \"eu-west-1\"\n{own}"
        ))
        .unwrap();
        assert_eq!(settings.endpoints[0].region.as_str(), "eu-west-1");
        refused(
            &format!("key = \"{MRK}\"\n{regions}\nendpoints = [\"https://x.example\"]"),
            "one for each region",
        );
        refused(
            &format!("key = \"{MRK}\"\n{regions}\n{own}\ndualstack = true"),
            "either them or endpoints",
        );
        refused(
            &format!("key = \"{ARN}\"\n{regions}"),
            "only multi-Region keys",
        );
        refused(
            &format!("key = \"{MRK}\"\nregions = [\"eu-central-1\", \"cn-north-1\"]"),
            "different partitions",
        );
        refused(
            &format!("key = \"{MRK}\"\nregions = []"),
            "at least one region",
        );
        refused(
            &format!("key = \"{MRK}\"\nregion = \"eu-west-1\"\n{regions}"),
            "either region or regions",
        );
        refused(
            &format!("key = \"{MRK}\"\nregion = \"Frankfurt\""),
            "is not a region",
        );
    }

    #[test]
    fn the_region_may_come_from_where_the_tools_of_aws_have_it() {
        let key = "key = \"alias/disks\"";
        refused(key, "no region is known");
        let region = |variables: &[(&str, &str)], more: &str| {
            let environment = Environment::fixed(variables.iter().copied());
            let text = format!("{key}\n{more}");
            read_in(&text, environment)
                .map(|(_, settings)| settings.endpoints[0].region.to_string())
        };
        assert_eq!(
            region(&[("AWS_REGION", "us-east-2")], "").unwrap(),
            "us-east-2"
        );
        assert_eq!(
            region(
                &[("AWS_DEFAULT_REGION", "us-east-2")],
                "region = \"eu-west-1\""
            )
            .unwrap(),
            "eu-west-1"
        );
        let error = region(&[("AWS_REGION", "nowhere")], "").unwrap_err();
        assert!(error.contains("AWS_REGION"), "{error}");
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(
            home.path().join(".aws/config"),
            "[default]\nregion = eu-north-1\n[profile prod]\nregion=eu-south-1\noutput=json\n",
        )
        .unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(region(&[("HOME", home)], "").unwrap(), "eu-north-1");
        let prod = [("HOME", home), ("AWS_PROFILE", "prod")];
        assert_eq!(region(&prod, "").unwrap(), "eu-south-1");
        let named = "credentials = { source = \"profile\", profile = \"prod\" }";
        assert_eq!(region(&[("HOME", home)], named).unwrap(), "eu-south-1");
        assert!(region(&[("HOME", home), ("AWS_PROFILE", "x")], "").is_err());
    }

    #[test]
    fn credentials_are_of_one_source() {
        let source = |credentials: &str| {
            let text = format!("key = \"{ARN}\"\ncredentials = {credentials}");
            read(&text).map(|(_, settings)| settings.identity.source)
        };
        assert_eq!(source("\"environment\"").unwrap(), aws::Source::Environment);
        assert_eq!(source("\"profile\"").unwrap(), aws::Source::profile());
        assert_eq!(
            source("{ source = \"instance\", endpoint = \"http://169.254.169.254\" }").unwrap(),
            aws::Source::Instance {
                endpoint: Some("http://169.254.169.254".into())
            }
        );
        assert_eq!(
            source("{ source = \"web-identity\", role = \"arn\", token = \"/run/token\" }")
                .unwrap(),
            aws::Source::WebIdentity {
                role: Some("arn".into()),
                token: Some("/run/token".into()),
                session: None,
            }
        );
        for (bad, why) in [
            ("\"magic\"", "credentials is"),
            ("3", "credentials is"),
            ("{ profile = \"x\" }", "credentials is"),
            (
                "{ source = \"environment\", profile = \"x\" }",
                "unknown field",
            ),
            (
                "{ source = \"instance\", endpoint = \"http://10.0.0.1\" }",
                "without TLS",
            ),
            (
                "{ source = \"profile\", credentials_file = \"x\" }",
                "absolute path",
            ),
        ] {
            let error = source(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_version_cannot_be_pinned() {
        let text = format!("key = \"{ARN}\"\nversion = \"latest\"");
        assert!(read(&text).is_ok());
        refused(
            &text.replace("latest", "1"),
            "by its id and not by an alias",
        );
    }
}
