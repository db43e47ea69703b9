//! The settings of a key set as they are given to a command.

use std::io::Read;
use std::path::PathBuf;

use crate::error::{Failure, Kind, io_kind};

/// More than the settings of any key set are.
const FILE_MAX: u64 = 1 << 16;

/// Settings, from a file and from flags, of which the flags win.
#[derive(Debug, Default, clap::Args)]
pub struct SettingArgs {
    /// File with settings in TOML; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// Provider: file, vault, kmip, …
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,

    /// Endpoint of the service, the nearest first; may come several times
    #[arg(long, value_name = "URL")]
    endpoint: Vec<String>,

    /// The key, as the service has it: its name, or a PKCS#11 URI
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    /// The version to stay with, or `latest`
    #[arg(long, value_name = "VERSION")]
    key_version: Option<String>,

    /// Any other setting; the value in TOML, or plain text; may come several times
    #[arg(long, value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

impl SettingArgs {
    /// The settings that were given.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML, or a setting has no value.
    pub fn table(self) -> Result<toml::Table, Failure> {
        let mut table = match &self.from {
            Some(path) => read(path)?,
            None => toml::Table::new(),
        };
        if let Some(provider) = self.provider {
            table.insert("provider".into(), provider.into());
        }
        // Each provider calls it as its service does.
        let key = match table.get("provider").and_then(toml::Value::as_str) {
            Some("broker") => "key_set",
            Some("kmip") => "key_name",
            Some("pkcs11") => "uri",
            _ => "key",
        };
        let texts = [(key, self.key), ("version", self.key_version)];
        for (name, text) in texts {
            if let Some(text) = text {
                table.insert(name.into(), text.into());
            }
        }
        match (
            table.get("provider").and_then(toml::Value::as_str),
            &*self.endpoint,
        ) {
            (_, []) => {}
            (Some("azure-keyvault"), [vault]) => {
                table.insert("vault".into(), vault.clone().into());
            }
            _ => {
                table.insert("endpoints".into(), self.endpoint.into());
            }
        }
        for setting in &self.set {
            let Some((name, value)) = setting.split_once('=') else {
                return Err(Failure::new(
                    Kind::Usage,
                    format!("--set {setting:?} has no value"),
                    Some("write --set SETTING=VALUE".into()),
                ));
            };
            table.insert(name.trim().into(), value_of(value));
        }
        Ok(table)
    }
}

/// A value as TOML has it, or else the text itself: `--set hierarchy=direct`
/// needs no quotes.
fn value_of(text: &str) -> toml::Value {
    let parsed = format!("value = {text}").parse::<toml::Table>();
    parsed
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::from(text))
}

fn read(path: &PathBuf) -> Result<toml::Table, Failure> {
    let shown = path.display();
    let mut text = String::new();
    let result = match path.as_os_str() == "-" {
        true => std::io::stdin()
            .lock()
            .take(FILE_MAX + 1)
            .read_to_string(&mut text),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text)),
    };
    match result {
        Ok(length) if length as u64 > FILE_MAX => Err(Failure::new(
            Kind::Usage,
            format!("{shown} is too long for the settings of a key set"),
            Some("name a file with these settings alone".into()),
        )),
        Ok(_) => text.parse().map_err(|error: toml::de::Error| {
            Failure::new(
                Kind::Usage,
                format!("{shown}: {error}"),
                Some("write the settings in TOML, as docs/kms.md shows them".into()),
            )
        }),
        Err(error) => Err(Failure::new(
            io_kind(&error),
            format!("cannot read {shown}: {error}"),
            Some("check the path and its permissions".into()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_text() {
        assert_eq!(value_of("direct"), toml::Value::from("direct"));
        assert_eq!(value_of("\"3\""), toml::Value::from("3"));
        assert_eq!(value_of("5m"), toml::Value::from("5m"));
        assert_eq!(value_of("[\"a\"]"), toml::Value::from(vec!["a"]));
        assert!(value_of("{ method = \"token\" }").is_table());
        assert_eq!(value_of("1\nb = 2"), toml::Value::from("1\nb = 2"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("set.toml");
        std::fs::write(&path, "provider = \"vault\"\nkey = \"a\"\n").unwrap();
        let args = SettingArgs {
            from: Some(path.clone()),
            key: Some("b".into()),
            set: vec!["poll=5m".into()],
            ..SettingArgs::default()
        };
        let table = args.table().unwrap();
        assert_eq!(
            table.to_string(),
            "provider = \"vault\"\nkey = \"b\"\npoll = \"5m\"\n"
                .parse::<toml::Table>()
                .unwrap()
                .to_string()
        );
        std::fs::write(&path, "provider = ").unwrap();
        let args = SettingArgs {
            from: Some(path),
            ..SettingArgs::default()
        };
        assert_eq!(args.table().unwrap_err().kind(), Kind::Usage);
    }
}
