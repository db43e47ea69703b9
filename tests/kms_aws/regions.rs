//! Related keys in several regions, and endpoints.

use std::time::Duration;

use sealblk::kms::aws::{AwsProvider, Endpoint, Region, Settings, Variant};
use sealblk::kms::{Class, Provider};
use sealblk::secret::Secret;
use serde_json::{Value, json};

use super::faulty_proxy::{Fault, Proxy};
use super::moto::{Key, OPERATIONS, REGION, User, named, policy, server};
use super::{AAD, expect, try_as, try_with, wait};

const SECOND: &str = "eu-west-1";

/// Two regions, each behind an address of its own.
struct Regions {
    user: User,
    near: Proxy,
    far: Proxy,
}

impl Regions {
    fn new() -> Self {
        Regions {
            user: server().user(&policy(&OPERATIONS)),
            near: Proxy::to(server().port()),
            far: Proxy::to(server().port()),
        }
    }

    fn settings(&self) -> Settings {
        let endpoint = |region: &str, proxy: &Proxy| Endpoint {
            region: region.parse().unwrap(),
            url: format!("http://127.0.0.1:{}", proxy.port())
                .parse()
                .unwrap(),
        };
        let mut settings = self.user.settings();
        settings.endpoints = vec![endpoint(REGION, &self.near), endpoint(SECOND, &self.far)];
        settings
    }
}

fn related() -> Key {
    let key = server().key(json!({"multi_region": true}));
    key.ask("replicate", json!({"to": SECOND}));
    key
}

#[test]
fn a_replica_opens_and_wraps_where_the_first_region_is_gone() {
    let (regions, key) = (Regions::new(), related());
    let provider = AwsProvider::new(regions.settings());
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key.by_arn(), &payload, AAD)).unwrap();
    assert!(wrapped.key_id.contains(REGION));
    assert_eq!(regions.far.taken(), 0);

    regions.near.set(Fault::Refuse);
    assert_eq!(wait(provider.unwrap(&wrapped, AAD)).unwrap(), payload);
    let second = wait(provider.wrap(&key.by_arn(), &payload, AAD)).unwrap();
    assert!(second.key_id.contains(SECOND), "{}", second.key_id);
    // Related keys have the same material.
    assert_eq!(second.version, wrapped.version);
    let asked = regions.user.seen();
    let of_replica = key.arn.replace(REGION, SECOND);
    assert_eq!(asked.last().unwrap()["key"], of_replica.as_str());

    // And back: what the replica wrapped, the first region opens by itself.
    regions.far.set(Fault::Refuse);
    regions.near.set(Fault::None);
    let fresh = AwsProvider::new(regions.settings());
    assert_eq!(wait(fresh.unwrap(&second, AAD)).unwrap(), payload);
    regions.near.set(Fault::Refuse);
    let mut settings = regions.settings();
    settings.timing.deadline = Duration::from_secs(1);
    expect(
        wait(AwsProvider::new(settings).unwrap(&second, AAD)),
        Class::Unreachable,
        &["none of 2 endpoints helped", "refuses the connection"],
        "",
    );
}

#[test]
fn a_key_that_is_not_replicated_yet_is_found_where_it_is() {
    let regions = Regions::new();
    let key = server().key(json!({"multi_region": true, "region": SECOND}));
    let provider = AwsProvider::new(regions.settings());
    let wrapped = try_with(&provider, &named(&key.id)).unwrap();
    assert!(wrapped.key_id.contains(SECOND));
    let failed = regions.user.seen();
    assert_eq!(
        (&failed[0]["status"], &failed[1]["status"]),
        (&json!(400), &json!(200))
    );
}

#[test]
fn a_key_of_one_region_is_not_used_with_several() {
    let regions = Regions::new();
    let key = server().key(json!({}));
    expect(
        try_as(regions.settings(), &named(&key.id)),
        Class::Protocol,
        &["is not a multi-Region key"],
        "--multi-region",
    );
    // What it wrapped before opens in its own region, and is looked for there.
    let wrapped = try_as(regions.user.settings(), &key.by_arn()).unwrap();
    let mut settings = regions.settings();
    settings.endpoints.reverse();
    wait(AwsProvider::new(settings.clone()).unwrap(&wrapped, AAD)).unwrap();
    settings.endpoints.truncate(1);
    expect(
        wait(AwsProvider::new(settings).unwrap(&wrapped, AAD)),
        Class::NotFound,
        &["is in eu-central-1 alone"],
        "region",
    );
}

#[test]
fn a_denial_of_the_first_region_is_the_answer() {
    let (regions, key) = (Regions::new(), related());
    let provider = AwsProvider::new(regions.settings());
    let wrapped = try_with(&provider, &key.by_arn()).unwrap();
    key.state("Disabled");
    let error = wait(provider.unwrap(&wrapped, AAD)).unwrap_err();
    assert!(matches!(error.class(), Class::Denied(_)), "{error}");
    assert_eq!(regions.far.taken(), 0);
}

/// Compared with what the AWS SDK for Python asks.
#[test]
fn endpoints_are_those_of_the_sdk() {
    let regions = [
        "eu-central-1",
        "us-east-1",
        "ap-southeast-2",
        "cn-north-1",
        "cn-northwest-1",
        "us-gov-west-1",
        "us-iso-east-1",
        "us-isob-east-1",
        "eusc-de-east-1",
    ];
    let mut all = Vec::new();
    let mut ours = Vec::new();
    for name in regions {
        let region: Region = name.parse().unwrap();
        for (fips, dualstack) in [(false, false), (true, false), (false, true), (true, true)] {
            // Of the ISO partitions its clients and its tables say different things.
            if dualstack && region.partition().starts_with("aws-iso") {
                continue;
            }
            all.push(json!([name, fips, dualstack]));
            let url = region.kms(Variant { fips, dualstack }).unwrap();
            ours.push(Value::from(url.to_string()));
        }
    }
    let theirs = server().ask("resolve", json!({"all": all}));
    for ((which, ours), theirs) in all.iter().zip(&ours).zip(theirs.as_array().unwrap()) {
        assert_eq!(ours, theirs, "{which}");
    }
}
