//! A key set with `provider = "k8s-kms"`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Error;
use super::file::Reader;
use super::service::{self, Parsed, Wait};
use crate::keys::{Definition, Source};
use crate::kms::k8s::Settings;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct K8sKeySet {
    #[serde(rename = "provider")]
    _provider: String,
    endpoint: Spanned<String>,
    plugin_user: Option<u32>,
    version: Option<Spanned<String>>,
    timeout: Option<Parsed<Wait>>,
    deadline: Option<Spanned<Parsed<Wait>>>,
}

/// The key set that `value` describes.
pub(super) fn definition<'a>(
    reader: &Reader<'a>,
    value: Spanned<DeValue<'a>>,
) -> Result<Definition, Error> {
    let set: K8sKeySet = reader.table(value)?;
    if let Some(version) = set.version.filter(|version| version.get_ref() != "latest") {
        return Err(reader.at(
            version.span().start,
            "a KMS plugin encrypts with its current key alone: configure at the plugin which one that is",
        ));
    }
    let at = set.endpoint.span().start;
    let endpoint = set.endpoint.into_inner();
    // As Kubernetes has it, or the path alone.
    let path = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
    if !path.starts_with('/') {
        return Err(reader.at(
            at,
            format!("{endpoint:?} is not a unix socket: write \"unix:///PATH\""),
        ));
    }
    // sun_path, with the zero after it.
    if path.len() > 107 {
        return Err(reader.at(at, "the path of a unix socket has at most 107 bytes"));
    }
    let source = Source::K8s(Box::new(Settings {
        socket: PathBuf::from(path),
        plugin_user: set.plugin_user,
        timing: service::timing(reader, set.timeout, set.deadline)?,
    }));
    Ok(Definition::new(source, None))
}
