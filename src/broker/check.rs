//! Tries the configuration of a broker without serving it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::policy::{self, Policy};
use crate::audit;
use crate::config::broker::Broker as Settings;
use crate::config::{self, Config};
use crate::doctor::Check;
use crate::kms::broker::keyfile;
use crate::kms::tls;
use crate::timestamp::Timestamp;

/// An end that is nearer is to be looked at.
const NEAR: Duration = Duration::from_secs(30 * 86_400);

/// Makes all checks of `settings`, which are those of `config`.
pub fn examine(settings: &Settings, config: &Config) -> Vec<Check> {
    let mut checks = vec![
        tls(settings),
        end("certificate", &settings.tls.certificate),
        end("client_ca", &settings.tls.client_ca_file),
        key(settings),
        audit_log(config),
    ];
    checks.retain(|check| !check.message.is_empty());
    checks.extend(policy(settings, config));
    checks
}

fn tls(settings: &Settings) -> Check {
    match tls::server(&settings.tls) {
        Ok(_) => Check::ok("tls", "certificate, key and authority of clients fit"),
        Err(error) => Check::failed("tls", &error),
    }
}

/// When the first certificate of a file ends. What is wrong with the file is
/// told by another check.
fn end(name: &'static str, path: &Path) -> Check {
    let found = tls::in_file(path).unwrap_or_default();
    let Some(first) = found.first() else {
        return Check::skip(name, "");
    };
    let message = format!("{}, until {}", first.subject, first.not_after);
    let left = first
        .not_after
        .to_system()
        .duration_since(SystemTime::now());
    match left {
        Ok(left) if left > NEAR => Check::ok(name, message),
        _ => Check::warn(
            name,
            message,
            "have it renewed in time, and send the broker a SIGHUP",
        ),
    }
}

fn key(settings: &Settings) -> Check {
    match keyfile::read(&settings.key) {
        Ok(key) => Check::ok(
            "key",
            format!("{}: hosts have it as broker_key", key.public()),
        ),
        Err(error) => Check::failed("key", &error),
    }
}

fn audit_log(config: &Config) -> Check {
    const NAME: &str = "audit";
    let Some(settings) = config.audit.of_manager() else {
        return Check::warn(
            NAME,
            "none is kept",
            "set enabled = true in [audit]: who used which key is known nowhere else",
        );
    };
    let path = settings.path.display().to_string();
    match audit::Log::open(settings) {
        Ok(_) => Check::ok(NAME, format!("{path} can be written")),
        Err(error) => Check::failed(NAME, &error),
    }
}

fn policy(settings: &Settings, config: &Config) -> Vec<Check> {
    const NAME: &str = "policy";
    let path = &settings.policy;
    let read = config::text_of(path).map_err(policy::Error::Read);
    match read.and_then(|text| policy::parse(path, &text)) {
        Err(error) => vec![Check::failed(NAME, &error)],
        Ok(policy) => {
            let (hosts, rules) = (policy.hosts.len(), policy.rules.len());
            let mut checks = vec![Check::ok(NAME, format!("{hosts} hosts, {rules} rules"))];
            let key_sets: Vec<&str> = config.key_sets.keys().map(|name| name.as_str()).collect();
            let doubts = doubts(&policy, &key_sets, Timestamp::now());
            checks.extend(
                doubts
                    .into_iter()
                    .map(|(what, next)| Check::warn(NAME, what, next)),
            );
            checks
        }
    }
}

/// What in a policy is as it may be, and was hardly meant: what, and what to
/// do about it.
fn doubts(policy: &Policy, key_sets: &[&str], now: Timestamp) -> Vec<(String, &'static str)> {
    let mut doubts = Vec::new();
    for (number, rule) in (1..).zip(&policy.rules) {
        let hosts = &policy.hosts;
        if !hosts
            .iter()
            .any(|host| rule.hosts.iter().any(|one| one.matches(&host.name)))
        {
            doubts.push((
                format!("rule {number} is for no host that there is"),
                "correct its hosts, or remove it",
            ));
        }
        if !key_sets
            .iter()
            .any(|name| rule.key_sets.iter().any(|one| one.matches(name)))
        {
            doubts.push((
                format!("rule {number} is for no key set that there is"),
                "correct its key_sets, define the key set, or remove the rule",
            ));
        }
        if rule.times.are_over(now) {
            doubts.push((
                format!("rule {number} holds no longer: {}", rule.times),
                "remove it, or set another not_after",
            ));
        }
    }
    for host in &policy.hosts {
        let permits = policy.rules.iter().filter(|rule| !rule.deny);
        let mut patterns = permits.flat_map(|rule| &rule.hosts);
        if !patterns.any(|pattern| pattern.matches(&host.name)) {
            doubts.push((
                format!("host {:?} is permitted nothing by any rule", host.name),
                "add it to a rule, or remove it",
            ));
        }
        if host.certificates.iter().any(|pattern| pattern.is_any()) {
            doubts.push((
                format!("host {:?} may have any certificate", host.name),
                "name its certificate: its key alone tells it from others now",
            ));
        }
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_hardly_meant_is_told() {
        let text = "[[hosts]]\nname = \"a\"\ncertificates = [\"a\"]\n\
            keys = [\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=\"]\n\
            [[hosts]]\nname = \"b\"\ncertificates = [\"*\"]\n\
            keys = [\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI=\"]\n\
            [[rules]]\nhosts = [\"a\"]\nkey_sets = [\"prod-*\"]\n\
            [[rules]]\nhosts = [\"x*\"]\nkey_sets = [\"prod-*\"]\n\
            [[rules]]\nhosts = [\"a\"]\nkey_sets = [\"nothing\"]\n\
            [[rules]]\nhosts = [\"b\"]\nkey_sets = [\"*\"]\ndeny = true\n\
            [[rules]]\nhosts = [\"a\"]\nkey_sets = [\"*\"]\nnot_after = \"2020-01-01T00:00:00Z\"\n";
        let policy = policy::parse(Path::new("p"), text).unwrap();
        let now = "2026-11-22T00:00:00Z".parse().unwrap();
        let told: Vec<String> = doubts(&policy, &["prod-1"], now)
            .into_iter()
            .map(|(what, _)| what)
            .collect();
        assert_eq!(
            told,
            [
                "rule 2 is for no host that there is",
                "rule 3 is for no key set that there is",
                "rule 5 holds no longer: until 2020-01-01T00:00:00Z",
                "host \"b\" is permitted nothing by any rule",
                "host \"b\" may have any certificate",
            ]
        );
    }
}
