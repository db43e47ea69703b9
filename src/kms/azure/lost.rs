//! What became of a key or a version that is not there, to be told to people.

use std::time::SystemTime;

use reqwest::Url;
use serde::Deserialize;

use super::answer::{self, Operation, Question, Refusal};
use super::client::{Client, EMPTY};
use super::keys::{Bundle, identified, time};
use super::name::{KeyName, Version};
use crate::kms::cluster::Failed;
use crate::kms::{Class, Denied, Error};
use crate::timestamp::Timestamp;

/// The pages of versions that are looked at, of 25 each as a rule.
const PAGES_MAX: usize = 40;

/// Says more of a refusal where the service itself says too little: it has one
/// answer for a key that never was and one that can be recovered.
pub(super) async fn explained(
    client: &Client,
    question: &Question<'_>,
    refusal: Refusal,
) -> Result<Refusal, Failed> {
    if refusal.error.class() != Class::NotFound {
        return Ok(refusal);
    }
    let words = refusal.error.words().unwrap_or_default().to_owned();
    if let Some(purge) = deleted(client, question.name).await? {
        let (vault, name) = (question.vault, question.name);
        let until = purge.map_or(String::new(), |at| {
            format!(" until {}", Timestamp::from(at))
        });
        let error = Error::new(
            Class::Denied(Denied::Deleted),
            format!("key {name} of {vault} has been deleted, and can be recovered{until}"),
            answer::recover(vault, name),
        );
        return Ok(Refusal {
            error: error.with_words(&words),
            may_pass: false,
        });
    }
    let Some(asked) = question.version else {
        return Ok(refusal);
    };
    let versions = versions(client, question.name).await.unwrap_or_default();
    let newest: Vec<&str> = versions.iter().rev().take(3).map(Version::as_str).collect();
    if newest.is_empty() {
        return Ok(refusal);
    }
    let error = Error::new(
        Class::NotFound,
        format!(
            "key {} of {} has no version {asked}: the newest are {}",
            question.name,
            question.vault,
            newest.join(", ")
        ),
        "name a version that it has in the key set, or \"latest\"; what a lost version has wrapped opens with a backup of the key alone",
    );
    Ok(Refusal {
        error: error.with_words(&words),
        may_pass: false,
    })
}

/// When a deleted key will be gone, if it is one that is kept until then. Who
/// may not know that is told nothing.
async fn deleted(client: &Client, name: &KeyName) -> Result<Option<Option<SystemTime>>, Failed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Deleted {
        recovery_id: String,
        #[serde(default)]
        scheduled_purge_date: Option<u64>,
    }
    let question = client.question(Operation::GetDeleted, name, None);
    let url = client.address(&question, super::API);
    let Ok(reply) = client.ask(&question, url, EMPTY).await? else {
        return Ok(None);
    };
    let found: Option<Deleted> = serde_json::from_slice(&reply.body).ok();
    let found = found.filter(|found| !found.recovery_id.is_empty());
    Ok(found.map(|found| found.scheduled_purge_date.and_then(time)))
}

/// The versions of a key, the oldest first, as far as it is permitted to list
/// them; else the latest one.
async fn versions(client: &Client, name: &KeyName) -> Result<Vec<Version>, Failed> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        #[serde(default)]
        value: Vec<Item>,
        #[serde(default)]
        next_link: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item {
        kid: String,
        #[serde(default)]
        attributes: Created,
    }
    #[derive(Deserialize, Default)]
    struct Created {
        #[serde(default)]
        created: u64,
    }
    let question = client.question(Operation::Versions, name, None);
    let first = client.address(&question, super::API);
    let mut next = Some(first.clone());
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let Some(url) = next.take() else { break };
        let Ok(reply) = client.ask(&question, url, EMPTY).await? else {
            break;
        };
        let page: Page = answer::parse(&question, &reply)?;
        for item in page.value {
            found.push((item.attributes.created, identified(&question, &item.kid)?));
        }
        next = page
            .next_link
            .filter(|link| !link.is_empty())
            .and_then(|link| Url::parse(&link).ok())
            .filter(|link| continues(&first, link));
    }
    if found.is_empty() {
        let latest = client.question(Operation::Get, name, None);
        let url = client.address(&latest, super::API);
        let Ok(reply) = client.ask(&latest, url, EMPTY).await? else {
            return Ok(Vec::new());
        };
        let bundle: Bundle = answer::parse(&latest, &reply)?;
        return Ok(vec![identified(&latest, &bundle.key.kid)?]);
    }
    found.sort_by_key(|(created, _)| *created);
    Ok(found.into_iter().map(|(_, version)| version).collect())
}

/// Whether a link leads to more of the same list, and takes our token nowhere
/// else.
fn continues(list: &Url, link: &Url) -> bool {
    link.origin() == list.origin() && link.path() == list.path()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_at_the_same_place_alone() {
        let url = |text: &str| Url::parse(text).unwrap();
        let list = url("https://v.vault.azure.net/keys/k/versions?api-version=7.4");
        let more = "https://v.vault.azure.net:443/keys/k/versions?$skiptoken=x";
        assert!(continues(&list, &url(more)));
        for bad in [
            "https://w.vault.azure.net/keys/k/versions?$skiptoken=x",
            "http://v.vault.azure.net/keys/k/versions",
            "https://v.vault.azure.net/secrets",
        ] {
            assert!(!continues(&list, &url(bad)), "{bad}");
        }
    }
}
