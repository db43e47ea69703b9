//! A key set with `provider = "broker"`.
#![forbid(unsafe_code)]

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, SecretPath, Wait};
use super::values::FilePath;
use crate::keys::{Definition, Source};
use crate::kms::broker::seal::PublicKey;
use crate::kms::broker::{PlainName, Settings};
use crate::kms::http::BaseUrl;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    endpoints: Spanned<Vec<Spanned<Parsed<BaseUrl>>>>,
    key_set: Parsed<PlainName>,
    version: Option<Spanned<String>>,
    host: Parsed<PlainName>,
    host_key: Parsed<SecretPath>,
    broker_keys: Spanned<Vec<Parsed<PublicKey>>>,
    ca_file: Option<FilePath>,
    client_cert: Option<Spanned<FilePath>>,
    client_key: Option<Spanned<Parsed<SecretPath>>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let at = value.span().start;
    let set: BrokerKeySet = reader.table(value)?;
    if let Some(version) = set.version.filter(|version| version.get_ref() != "latest") {
        return Err(reader.at(
            version.span().start,
            "which version wraps is set in the key set at the broker",
        ));
    }
    let tls = service::tls(reader, set.ca_file, set.client_cert, set.client_key)?;
    if tls.client.is_none() {
        return Err(reader.at(
            at,
            "brokers know their hosts by certificates: add client_cert and client_key",
        ));
    }
    let endpoints_at = set.endpoints.span().start;
    let mut endpoints = Vec::new();
    for endpoint in set.endpoints.into_inner() {
        let at = endpoint.span().start;
        let endpoint = endpoint.into_inner().0;
        if !endpoint.has_tls() {
            return Err(reader.at(at, "brokers are reached with TLS alone: write https"));
        }
        endpoints.push(endpoint);
    }
    if endpoints.is_empty() {
        return Err(reader.at(endpoints_at, "name at least one endpoint"));
    }
    let keys_at = set.broker_keys.span().start;
    let broker_keys: Vec<PublicKey> = set
        .broker_keys
        .into_inner()
        .into_iter()
        .map(|parsed| parsed.0)
        .collect();
    if broker_keys.is_empty() {
        return Err(reader.at(
            keys_at,
            "name the public key of at least one broker: `sealblk broker pubkey FILE` prints it there",
        ));
    }
    let settings = Settings {
        endpoints,
        host: set.host.0,
        host_key: set.host_key.0.0,
        broker_keys,
        tls,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    };
    let source = Source::Broker {
        key_set: set.key_set.0,
        settings: Box::new(settings),
    };
    Ok(Definition::new(source, None))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::file;
    use crate::keys::Hierarchy;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    fn text() -> String {
        format!(
            r#"[key_sets.prod]
provider = "broker"
endpoints = ["https://broker-a:8843", "https://broker-b:8843"]
key_set = "prod-eu"
host = "hv1"
host_key = "/etc/sealblk/host.key"
broker_keys = ["{KEY}"]
ca_file = "/etc/sealblk/ca.pem"
client_cert = "/etc/sealblk/hv1.pem"
client_key = "/etc/sealblk/hv1.key"
"#
        )
    }

    fn read(text: &str) -> Result<Definition, String> {
        file::parse(Path::new("/c.toml"), text)
            .map(|mut config| config.key_sets.remove("prod").unwrap())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_set_at_a_broker_is_read() {
        let definition = read(&format!("{}timeout = \"2s\"\n", text())).unwrap();
        assert_eq!(definition.policy.hierarchy, Hierarchy::Direct);
        assert_eq!(definition.source.provider(), "broker");
        assert_eq!(definition.source.key_id().as_deref(), Some("prod-eu"));
        let Source::Broker { settings, .. } = definition.source else {
            panic!("it is a broker");
        };
        assert_eq!(settings.endpoints.len(), 2);
        assert_eq!(settings.host.as_str(), "hv1");
        assert_eq!(settings.broker_keys, [PublicKey::new([1; 32])]);
        assert_eq!(settings.timing.timeout, Duration::from_secs(2));
        let group = read(&format!("{}hierarchy = \"group\"\n", text())).unwrap();
        assert_eq!(group.policy.hierarchy, Hierarchy::Group);
    }

    #[test]
    fn each_fault_is_told_with_its_place() {
        for (from, to, why) in [
            ("https://broker-a:8843", "http://127.0.0.1:1", "write https"),
            (
                "\"https://broker-a:8843\", \"https://broker-b:8843\"",
                "",
                "at least one endpoint",
            ),
            (&format!("\"{KEY}\""), "", "broker pubkey"),
            (KEY, "AQEB", "not a public key"),
            ("prod-eu", "prod eu", "not a name for a broker"),
            ("hv1\"", "\"", "not a name for a broker"),
            (
                "client_key = \"/etc/sealblk/hv1.key\"\n",
                "",
                "needs client_key",
            ),
            (
                "client_cert = \"/etc/sealblk/hv1.pem\"\nclient_key = \"/etc/sealblk/hv1.key\"\n",
                "",
                "by certificates",
            ),
            ("/etc/sealblk/host.key", "host.key", "absolute path"),
            ("provider", "version = \"3\"\nprovider", "at the broker"),
            ("host =", "hosts =", "unknown field"),
        ] {
            let text = text().replacen(from, to, 1);
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{from} -> {to}: {error}");
            assert!(error.contains("/c.toml:"), "{error}");
        }
    }
}
