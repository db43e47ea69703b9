//! What the configuration file takes, and what it says about the rest.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::error::{Explain, Kind};
use crate::kms::cluster::Timing;
use crate::kms::credential::SecretFile;
use crate::kms::{tls, vault};

fn parse(text: &str) -> Result<Config, Error> {
    file::parse(Path::new("/etc/x.toml"), text)
}

fn name(text: &str) -> keys::Name {
    text.parse().unwrap()
}

#[test]
fn everything_can_be_set() {
    let config = parse(
        r#"
        [log]
        level = "debug"
        format = "json"

        [key_sets.prod]
        provider = "file"
        key_file = "/keys/prod"
        version = "00C0FFEE"

        [key_sets.default]
        provider = "file"
        version = "latest"

        [serve]
        socket_mode = "0660"
        socket_group = "0"
        queues = 3
        cpus = "4-5,1"
        queue_size = 128
        read_only = false
        discard = "pass"
        direct = "never"
        cache = "writethrough"
        poll_us = 0
        engine = "portable"
        serial = "disk-1"
        pid_file = "/run/x.pid"
        on_error = "stop"
        stuck_after = "2m"
        limits = { iops_total = 500, bps_write = "10M" }
        "#,
    )
    .unwrap();
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.format, LogFormat::Json);
    let path = "/keys/prod".into();
    let prod = Definition::new(Source::File { path }, Some("00c0ffee".into()));
    assert_eq!(config.key_sets[&name("prod")], prod);
    assert_eq!(config.key_sets[&name("default")], platform_key());

    let volumes = vec!["/v".into()];
    let serve = Serve::resolve(
        volumes,
        vec![],
        vec!["/s".into()],
        Options::default(),
        config.serve,
    )
    .unwrap();
    assert_eq!(serve.socket_mode.bits(), 0o660);
    assert_eq!(serve.socket_group.unwrap().gid, 0);
    assert_eq!((serve.queues, serve.queue_size), (3, 128));
    assert_eq!(serve.on_error, OnError::Stop);
    assert_eq!(serve.stuck_after, Duration::from_secs(120));
    assert_eq!(serve.cpus, [4, 5, 1]);
    assert!(!serve.read_only);
    assert_eq!(serve.discard, Discard::Pass);
    assert_eq!(serve.direct, Direct::Never);
    assert_eq!(serve.cache, Cache::Writethrough);
    assert_eq!(serve.poll, Duration::ZERO);
    assert_eq!(serve.engine.resolve(), crate::crypt::Engine::Portable);
    assert_eq!(serve.disks[0].serial.as_ref().unwrap().as_str(), "disk-1");
    assert_eq!(serve.pid_file.as_deref(), Some(Path::new("/run/x.pid")));
    assert_eq!(serve.limits.operations.total.unwrap().per_second, 500);
    assert_eq!(serve.limits.bytes.write.unwrap().per_second, 10 << 20);
}

/// What every key set at Vault needs, in one line.
const VAULT: &str = r#"provider = "vault"
key = "k"
endpoints = ["https://a"]
"#;

#[test]
fn everything_of_a_vault_key_set_can_be_set() {
    let text = r#"
        [key_sets.prod]
        provider = "vault"
        endpoints = ["https://a:8200", "https://b:8200/base/"]
        mount = "team/transit"
        namespace = "hosts"
        key = "disks"
        version = "3"
        auth = { method = "cert", mount = "certs", role = "host" }
        ca_file = "/ca.pem"
        client_cert = "/host.pem"
        client_key = "credential:host.key"
        timeout = "250ms"
        deadline = "1m"
        "#;
    let mut config = parse(text).unwrap();
    let definition = config.key_sets.remove(&name("prod")).unwrap();
    assert_eq!(definition.version.as_deref(), Some("3"));
    let Source::Vault { key, settings } = definition.source else {
        panic!("it is at Vault");
    };
    assert_eq!(key.as_str(), "disks");
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let expected = vault::Settings {
        endpoints: ["https://a:8200", "https://b:8200/base/"]
            .map(|url| url.parse().unwrap())
            .into(),
        namespace: Some("hosts".parse().unwrap()),
        mount: "team/transit".parse().unwrap(),
        auth: vault::Auth::Certificate {
            mount: "certs".parse().unwrap(),
            role: Some("host".into()),
        },
        tls: tls::Settings {
            ca_files: vec!["/ca.pem".into()],
            client: Some(tls::ClientCertificate {
                certificate: "/host.pem".into(),
                key: SecretFile::credential("host.key", credentials),
            }),
        },
        timing: Timing {
            timeout: Duration::from_millis(250),
            deadline: Duration::from_secs(60),
        },
    };
    assert_eq!(*settings, expected);
}

#[test]
fn each_way_to_log_in_has_its_usual_place() {
    let auth = |auth: &str| {
        let text = format!("[key_sets.prod]\n{VAULT}auth = {auth}");
        let mut config = parse(&text).unwrap();
        let definition = config.key_sets.remove(&name("prod")).unwrap();
        assert_eq!(definition.version, None);
        let Source::Vault { settings, .. } = definition.source else {
            panic!("it is at Vault");
        };
        assert_eq!(settings.mount.to_string(), "transit");
        assert_eq!(settings.timing, Timing::default());
        assert_eq!(settings.tls, tls::Settings::default());
        settings.auth
    };
    let token = auth(r#"{ method = "token", token = "/t" }"#);
    assert_eq!(token, vault::Auth::Token(SecretFile::new("/t")));
    let approle = auth(r#"{ method = "approle", role_id = "r", secret_id = "/s" }"#);
    assert_eq!(
        approle,
        vault::Auth::AppRole {
            mount: "approle".parse().unwrap(),
            role_id: vault::RoleId::Plain("r".into()),
            secret_id: SecretFile::new("/s"),
        }
    );
    let kubernetes = auth(r#"{ method = "kubernetes", role = "vms" }"#);
    let usual = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    assert_eq!(
        kubernetes,
        vault::Auth::Jwt {
            mount: "kubernetes".parse().unwrap(),
            role: "vms".into(),
            token: SecretFile::new(usual).readable_by_all(),
        }
    );
}

#[test]
fn each_fault_of_a_vault_key_set_is_told_with_its_place() {
    // The line counts from the table's header, which is line 1.
    #[rustfmt::skip]
    let table: &[(&str, usize, &str)] = &[
        ("", 1, "says not how to log in"),
        ("auth = \"root\"", 5, "auth is a table with method"),
        ("auth = { method = \"password\" }", 5, "auth is a table with method"),
        ("auth = { method = \"token\", token = \"s.123\" }", 5, "secrets are not written into the configuration"),
        ("auth = { method = \"token\", token = \"credential:a/b\" }", 5, "not the name of a systemd credential"),
        ("auth = { method = \"token\", token = \"/t\", role = \"x\" }", 5, "unknown field `role`"),
        ("auth = { method = \"approle\", secret_id = \"/s\" }", 5, "either role_id or role_id_file"),
        ("auth = { method = \"approle\", role_id = \"r\", role_id_file = \"/r\", secret_id = \"/s\" }", 5, "either role_id or role_id_file"),
        ("auth = { method = \"cert\" }", 5, "needs client_cert and client_key"),
        ("auth = { method = \"jwt\", role = \"r\" }", 5, "needs token"),
        ("auth = { method = \"jwt\", token = \"/t\" }", 5, "missing field `role`"),
        ("TOKEN\nclient_cert = \"/c\"", 6, "client_cert needs client_key"),
        ("TOKEN\nclient_key = \"/c\"", 6, "client_key needs client_cert"),
        ("TOKEN\nca_file = \"ca.pem\"", 6, "is not an absolute path"),
        ("TOKEN\nmount = \"a/../b\"", 6, "is not a path at the service"),
        ("TOKEN\nnamespace = \"\"", 6, "is not a path at the service"),
        ("TOKEN\nversion = \"0\"", 6, "or \"latest\""),
        ("TOKEN\ntimeout = \"5\"", 6, "is not a time to wait"),
        ("TOKEN\ntimeout = 5", 6, "invalid type: integer `5`"),
        ("TOKEN\ndeadline = \"11m\"", 6, "is not a time to wait"),
        ("TOKEN\ntimeout = \"2s\"\ndeadline = \"1s\"", 7, "cannot be shorter than timeout"),
        ("TOKEN\nverify = false", 6, "unknown field `verify`"),
    ];
    let token = "auth = { method = \"token\", token = \"/t\" }";
    for (lines, place, told) in table {
        let lines = lines.replace("TOKEN", token);
        let text = format!("[key_sets.prod]\n{VAULT}{lines}");
        let error = parse(&text).expect_err(&text);
        let Error::File { line, message, .. } = &error else {
            panic!("{text}: {error:?}");
        };
        assert!(message.contains(told), "{text}: {message}");
        assert_eq!(line, place, "{text}: {message}");
    }
    let own = format!("[key_sets.prod]\n{VAULT}{token}");
    for (good, bad, told) in [
        ("\"k\"", "\"a/b\"", "not the name of a transit key"),
        ("[\"https://a\"]", "[]", "at least one endpoint"),
        ("https://a", "http://a", "without TLS"),
        ("key = ", "kee = ", "unknown field `kee`"),
    ] {
        let error = parse(&own.replacen(good, bad, 1)).expect_err(bad);
        assert!(error.to_string().contains(told), "{error}");
    }
    parse(&own).unwrap();
}

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("").unwrap();
    assert_eq!(config.key_sets, Config::default().key_sets);
    assert_eq!(config.log, Log::default());
    assert_eq!(config.serve, Options::default());
}

/// Each fault, where it is said to be, and what is said about it.
#[test]
fn each_fault_is_told_with_its_place() {
    #[rustfmt::skip]
    let table: &[(&str, (usize, usize), &str)] = &[
        // Not TOML, or not a setting.
        ("[serve\nqueues = 1", (1, 7), ""),
        ("queues = 1", (1, 1), "there is no setting \"queues\" here"),
        ("\n[server]\n", (2, 2), "the tables [log], [audit], [serve], [daemon], [verify], [broker], [key_sets.NAME] and [key_stores.NAME]"),
        ("serve = 3", (1, 9), "invalid type: integer `3`"),
        ("[serve]\nqueues = 1\nqueues = 2", (3, 1), "duplicate key"),
        ("[serve]\nsocket_moed = \"0600\"", (2, 1), "unknown field `socket_moed`, expected one of `socket_mode`"),
        ("[log]\nfile = \"x\"", (2, 1), "unknown field `file`, expected `level` or `format`"),
        // Values.
        ("[log]\nlevel = \"loud\"", (2, 9), "unknown variant `loud`, expected one of `off`, `error`"),
        ("[log]\nformat = \"xml\"", (2, 10), "expected `text` or `json`"),
        ("[serve]\nsocket_mode = 600", (2, 15), "expected an octal mode in quotes, such as \"0660\""),
        ("[serve]\nsocket_mode = \"0999\"", (2, 15), "write three or four octal digits"),
        ("[serve]\nsocket_mode = \"4600\"", (2, 15), "write three or four octal digits"),
        ("[serve]\nsocket_mode = \"0666\"", (2, 15), "lets everybody on the host connect"),
        ("[serve]\nsocket_group = \"no-such-group\"", (2, 16), "there is no group \"no-such-group\""),
        ("[serve]\nqueues = 0", (2, 10), "write a number from 1 to 64"),
        ("[serve]\nqueues = 65", (2, 10), "write a number from 1 to 64"),
        ("[serve]\nqueues = \"4\"", (2, 10), "invalid type: string \"4\", expected a number from 1 to 64"),
        ("[serve]\nqueue_size = 100", (2, 14), "100 is not a queue size: write 16, 32"),
        ("[serve]\nqueue_size = 2048", (2, 14), "is not a queue size"),
        ("[serve]\npoll_us = 1001", (2, 11), "write 0 (off) to 1000 microseconds"),
        ("[serve]\ncpus = \"5-2\"", (2, 8), "such as 2-5,8"),
        ("[serve]\ncpus = 2", (2, 8), "in quotes"),
        ("[serve.limits]\niops_total = -1", (2, 14), "a number up to"),
        ("[serve.limits]\nbps = 1", (2, 1), "bps"),
        ("[serve]\npoll_us = -1", (2, 11), "write 0 (off) to 1000 microseconds"),
        ("[serve]\nread_only = \"yes\"", (2, 13), "expected a boolean"),
        ("[serve]\ndiscard = \"drop\"", (2, 11), "expected `ignore` or `pass`"),
        ("[serve]\ndirect = true", (2, 10), ""),
        ("[serve]\ncache = \"none\"", (2, 9), "expected `writeback` or `writethrough`"),
        ("[serve]\nengine = \"warp\"", (2, 10), "use auto, or one of: "),
        ("[serve]\nserial = \"a serial number that is long\"", (2, 10), "write 1 to 20 printable ASCII"),
        ("[serve]\nserial = \"é\"", (2, 10), "write 1 to 20 printable ASCII"),
        ("[serve]\npid_file = \"x.pid\"", (2, 12), "is not an absolute path: begin it with /"),
        // Key sets.
        ("key_sets = 1", (1, 12), "key sets are tables"),
        ("[key_sets]\nprod = \"file\"", (2, 8), "a key set is a table"),
        ("[key_sets.prod]\nkey_file = \"/k\"", (1, 1), "key set \"prod\" names no provider"),
        ("[key_sets.prod]\nprovider = \"fiel\"", (2, 12), "there is no provider \"fiel\""),
        ("[key_sets.prod]\nprovider = 1", (2, 12), "the provider is a name in quotes"),
        ("[key_sets.\"a b\"]\nprovider = \"file\"", (1, 11), "is not a name for a key set"),
        ("[key_sets.prod]\nprovider = \"file\"\nkeyfile = \"/k\"", (3, 1), "unknown field `keyfile`"),
        ("[key_sets.prod]\nprovider = \"file\"\nkey_file = \"k\"", (3, 12), "is not an absolute path"),
        ("[key_sets.prod]\nprovider = \"file\"\nversion = \"1\"", (3, 11), "or \"latest\""),
        ("[key_sets.prod]\nprovider = \"file\"\nversion = 1", (3, 11), "invalid type: integer `1`"),
        // KMIP.
        ("[key_sets.k]\nprovider = \"kmip\"", (1, 1), "missing field `endpoints`"),
        ("[key_sets.k]\nprovider = \"kmip\"\nendpoints = [\"https://kms\"]", (3, 14), "is not a KMIP server"),
        ("[key_sets.k]\nprovider = \"kmip\"\nendpoints = [\"kms\"]\nkey_name = \"k\"", (1, 1), "add client_cert and client_key"),
        ("[key_sets.k]\nprovider = \"kmip\"\nendpoints = [\"kms\"]\nclient_cert = \"/c\"", (4, 15), "client_cert needs client_key"),
        ("[key_sets.k]\nprovider = \"kmip\"\nendpoints = [\"kms\"]\nmode = \"put\"", (4, 8), "unknown variant `put`, expected `server` or `get`"),
        ("[key_sets.k]\nprovider = \"kmip\"\nendpoints = [\"kms\"]\nprotocol = \"1.0\"", (4, 12), "is not a version of KMIP"),
        // KMS plugins.
        ("[key_sets.k]\nprovider = \"k8s-kms\"", (1, 1), "missing field `endpoint`"),
        ("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"https://kms\"", (3, 12), "is not a unix socket"),
        ("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"unix://run/kms.sock\"", (3, 12), "is not a unix socket"),
        ("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"/run/kms.sock\"\nversion = \"1\"", (4, 11), "its current key alone"),
        ("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"/run/kms.sock\"\nplugin_user = \"kms\"", (4, 15), "expected u32"),
        ("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"/run/kms.sock\"\nkey = \"k\"", (4, 1), "unknown field `key`"),
        // PKCS#11.
        ("[key_sets.p]\nprovider = \"pkcs11\"", (1, 1), "missing field `uri`"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k?pin-value=1\"", (3, 7), "put the PIN into a file"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:token=t\"", (3, 7), "names no key"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k\"", (3, 7), "names no library"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k\"\npin = \"1234\"", (4, 7), "secrets are not written"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k\"\nmodule = \"m.so\"", (4, 10), "is not an absolute path"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k\"\nmechanism = \"des\"", (4, 13), "unknown variant `des`, expected one of `gcm`, `kwp`, `oaep`"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k?module-path=/m\"\nmodule = \"/m\"", (4, 10), "either module or module-path"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k?module-path=/m&pin-source=/p\"\npin = \"/p\"", (4, 7), "either pin or pin-source"),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:object=k?module-path=/m\"\nversion = \"1\"", (4, 11), "or \"latest\""),
        ("[key_sets.p]\nprovider = \"pkcs11\"\nuri = \"pkcs11:id=%01?module-path=/m\"\nversion = \"01\"", (4, 11), "version goes with a URI without id"),
    ];
    let left_out = |text: &str| {
        let optional = [
            ("\"k8s-kms\"", cfg!(feature = "k8s-kms")),
            ("\"pkcs11\"", cfg!(feature = "pkcs11")),
        ];
        optional
            .iter()
            .any(|(provider, built)| !built && text.contains(provider))
    };
    for (text, place, told) in table.iter().filter(|row| !left_out(row.0)) {
        let error = parse(text).expect_err(text);
        let Error::File {
            line,
            column,
            message,
            ..
        } = &error
        else {
            panic!("{text}: {error:?}");
        };
        assert!(message.contains(told), "{text}: {message}");
        assert!(!message.contains('\n'), "{text}: {message}");
        assert_eq!((*line, *column), *place, "{text}: {message}");
        assert_eq!(error.kind(), Kind::Usage);
        let shown = error.to_string();
        assert!(
            shown.starts_with(&format!("/etc/x.toml:{line}:{column}: ")),
            "{shown}"
        );
    }
}

#[test]
fn columns_count_characters() {
    let error = parse("[log]\n\"é\" = 1").unwrap_err();
    assert!(
        error.to_string().starts_with("/etc/x.toml:2:1: "),
        "{error}"
    );
    let error = parse("[key_sets]\n\"é\" = 1").unwrap_err();
    assert!(
        error.to_string().starts_with("/etc/x.toml:2:1: "),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_trusted_or_read_are_refused() {
    let directory = TempDir::new().unwrap();
    let load = |path: &Path| Config::load(Some(path), Overrides::default()).unwrap_err();

    let missing = load(&directory.path().join("missing"));
    assert!(matches!(missing, Error::Missing { .. }));
    assert_eq!(missing.kind(), Kind::NotFound);

    assert!(matches!(load(directory.path()), Error::Read { .. }));

    let path = directory.path().join("c.toml");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(load(&path), Error::Read { .. }));

    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let writable = load(&path);
    assert_eq!(writable.kind(), Kind::Permission);
    assert!(writable.help().unwrap().starts_with("chmod o-w "));

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(matches!(load(&path), Error::Read { .. }));
}

#[test]
fn flags_override_the_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.toml");
    let text = "[log]\nlevel = \"warn\"\nformat = \"json\"\n\
        [key_sets.default]\nprovider = \"file\"\nkey_file = \"/a\"\nversion = \"0000000a\"\n\
        [key_sets.other]\nprovider = \"file\"\nkey_file = \"/b\"\n";
    std::fs::write(&path, text).unwrap();
    let overrides = Overrides {
        key_file: Some("/c".into()),
        log_level: Some(LogLevel::Trace),
        log_format: None,
        daemon: None,
    };
    let config = Config::load(Some(&path), overrides).unwrap();
    assert_eq!(config.path, Some(path));
    assert_eq!(config.log.level, LogLevel::Trace);
    assert_eq!(config.log.format, LogFormat::Json);
    let source = |set: &str| config.key_sets[&name(set)].source.clone();
    assert_eq!(source("default"), Source::File { path: "/c".into() });
    assert_eq!(source("other"), Source::File { path: "/b".into() });
    let version = &config.key_sets[&name("default")].version;
    assert_eq!(version.as_deref(), Some("0000000a"));
}

#[test]
fn a_kmip_key_set_is_read_and_its_contradictions_are_told() {
    use crate::kms::kmip::Mode;

    const BASE: &str =
        "[key_sets.k]\nprovider = \"kmip\"\nclient_cert = \"/c\"\nclient_key = \"/k\"\n";
    let read = |more: &str| {
        let config = parse(&format!("{BASE}{more}"))?;
        let Definition {
            source, version, ..
        } = config.key_sets[&name("k")].clone();
        match source {
            Source::Kmip { key, settings } => Ok::<_, Error>((key, version, settings)),
            other => panic!("{other:?}"),
        }
    };
    let (key, version, settings) = read(
        "endpoints = [\"a\", \"[::1]:7\"]\nkey_name = \"disks\"\nversion = \"42\"\nmode = \"get\"\n\
         wrapping_key = \"7\"\nwrapping_key_file = \"credential:kek\"\nca_file = \"/ca\"\n\
         timeout = \"2s\"\ndeadline = \"10s\"\nprotocol = \"1.4\"",
    )
    .unwrap();
    assert_eq!(
        (key.as_str(), version.as_deref()),
        ("name:disks", Some("42"))
    );
    let endpoints: Vec<String> = settings.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(endpoints, ["a:5696", "[::1]:7"]);
    assert_eq!(settings.mode, Mode::Get);
    assert_eq!(settings.wrapping_key.unwrap().id, "7");
    assert_eq!(settings.timing.deadline, Duration::from_secs(10));
    assert_eq!(settings.version.unwrap().to_string(), "1.4");

    let (key, version, settings) =
        read("endpoints = [\"a\"]\nkey_id = \"42\"\nversion = \"latest\"").unwrap();
    assert_eq!((key.as_str(), version), ("42", None));
    assert_eq!((settings.mode, settings.wrapping_key), (Mode::Server, None));

    for (more, told) in [
        ("endpoints = []\nkey_id = \"1\"", "at least one endpoint"),
        ("endpoints = [\"a\"]", "names no key"),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nkey_name = \"k\"",
            "either key_name or key_id",
        ),
        ("endpoints = [\"a\"]\nkey_name = \"\"", "it is empty"),
        (
            "endpoints = [\"a\"]\nkey_id = \"name:k\"",
            "could be mistaken for a name",
        ),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nversion = \"2\"",
            "version goes with key_name",
        ),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nwrapping_key = \"2\"",
            "goes with mode",
        ),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nmode = \"get\"\nwrapping_key = \"2\"",
            "needs wrapping_key_file",
        ),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nmode = \"get\"\nwrapping_key_file = \"/w\"",
            "needs wrapping_key",
        ),
        (
            "endpoints = [\"a\"]\nkey_id = \"1\"\nwrapping_key_file = \"/w\"",
            "needs wrapping_key",
        ),
    ] {
        let error = read(more).unwrap_err().to_string();
        assert!(error.contains(told), "{more}: {error}");
    }
}

#[test]
fn the_audit_log_is_kept_where_it_is_asked_for() {
    let audit = |text: &str| parse(text).map(|config| config.audit);
    let unset = audit("").unwrap();
    assert_eq!(unset, Audit::Unset);
    assert_eq!(unset.of_commands(), None);
    assert_eq!(unset.of_manager(), Some(audit_log::Settings::default()));

    let on = audit("[audit]\npath = \"/a/b\"\nmax_size = \"1M\"\nkeep = 3").unwrap();
    let settings = audit_log::Settings {
        path: "/a/b".into(),
        max_size: 1 << 20,
        keep: Some(3),
    };
    assert_eq!(on.of_commands(), Some(settings.clone()));
    assert_eq!(on.of_manager(), Some(settings));
    let usual = audit("[audit]").unwrap();
    assert_eq!(usual.of_commands(), Some(audit_log::Settings::default()));

    let off = audit("[audit]\nenabled = false\npath = \"/a\"").unwrap();
    assert_eq!((off.of_commands(), off.of_manager()), (None, None));

    for (bad, line, why) in [
        ("[audit]\nkeep = 0", 2, "at least one"),
        ("[audit]\nmax_size = \"1K\"", 2, "64K to 4G"),
        ("[audit]\npath = \"relative\"", 2, "absolute"),
        ("[audit]\nrotate = true", 2, "unknown field"),
    ] {
        match audit(bad) {
            Err(Error::File {
                line: at, message, ..
            }) => assert!(
                at == line && message.contains(why),
                "{bad}: {at}: {message}"
            ),
            other => panic!("{bad}: {other:?}"),
        }
    }
}

#[test]
fn everything_of_the_daemon_can_be_set() {
    let text = r#"
        [daemon]
        socket = "/s"
        socket_group = "0"
        socket_mode = "0666"
        state_dir = "/state"
        run_dir = "/run/x"
        attach_concurrency = 3
        keep_deks = false
        poll = "2m"
        rewrap_rate = 7
        rekey_concurrency = 5
        worker_uids = "1000-1999"
        require_sandbox = true
        paths = ["/srv", "/dev"]

        [daemon.roles]
        root = false
        reader = ["@100", "carol"]
        operator = ["1000"]
        key-admin = []
        "#;
    let daemon = parse(text).unwrap().daemon;
    let user = |name: &str| daemon::Principal::User(name.into());
    let expected = Daemon {
        socket: "/s".into(),
        socket_group: Some("0".parse().unwrap()),
        socket_mode: Some("0666".parse().unwrap()),
        state_dir: "/state".into(),
        run_dir: "/run/x".into(),
        attach_concurrency: 3,
        keep_deks: false,
        poll: Duration::from_secs(120),
        rewrap_rate: 7,
        rekey_concurrency: 5,
        roles: daemon::Roles {
            root: false,
            reader: vec![daemon::Principal::Group("100".into()), user("carol")],
            operator: vec![user("1000")],
            key_admin: vec![],
        },
        worker_uids: Some("1000-1999".parse().unwrap()),
        require_sandbox: true,
        paths: vec!["/srv".into(), "/dev".into()],
    };
    assert_eq!(daemon, expected);
    // Nothing of it is the default, so that the above shows something.
    let (a, b) = (
        parse(text).unwrap().settings(),
        parse("").unwrap().settings(),
    );
    for (name, value) in a.iter().filter(|(name, _)| name.starts_with("daemon.")) {
        assert_ne!(Some(value), b.get(name), "{name}");
    }
    assert_eq!(parse("[daemon]").unwrap().daemon, Daemon::default());
    let roles = parse("[daemon.roles]\noperator = [\"a\"]")
        .unwrap()
        .daemon
        .roles;
    assert_eq!(roles.reader, daemon::Roles::default().reader);
}

#[test]
fn each_fault_of_the_daemon_is_told() {
    let long = format!("socket = \"/{}\"", "x".repeat(107));
    for (line, told) in [
        ("socket = \"s\"", "not an absolute path"),
        (long.as_str(), "has 108 bytes, and the system takes 107"),
        ("socket_mode = \"0778\"", "not a mode"),
        ("socket_mode = \"1777\"", "not a mode"),
        ("socket_group = \"no-such-group-here\"", "there is no group"),
        ("attach_concurrency = 0", "from 1 to 256"),
        ("attach_concurrency = -1", "invalid value"),
        ("rewrap_rate = 0", "from 1 to 100000"),
        ("worker_uids = \"0-9\"", "no range of users"),
        ("require_sandbox = 1", "expected a boolean"),
        ("paths = [\"srv\"]", "not an absolute path"),
        ("rekey_concurrency = 0", "from 1 to 256"),
        ("poll = \"0s\"", "1s to 24h"),
        ("poll = 60", "text in quotes"),
        ("poll = \"25h\"", "1s to 24h"),
        ("keep_deks = \"yes\"", "expected a boolean"),
        ("keep_dek = true", "keep_dek"),
        ("roles = { reader = [\"@\"] }", "neither a user"),
        ("roles = { operator = [\"a b\"] }", "neither a user"),
        ("roles = { operator = \"a\" }", "expected a sequence"),
        ("roles = { key_admin = [] }", "key_admin"),
    ] {
        let error = parse(&format!("[daemon]\n{line}")).expect_err(line);
        assert!(error.to_string().contains(told), "{line}: {error}");
        assert!(error.to_string().contains(":2:"), "{line}: {error}");
        assert_eq!(error.kind(), Kind::Usage);
    }
}

#[test]
fn the_daemons_socket_can_be_a_flag() {
    let socket = |path: &str| {
        let overrides = Overrides {
            daemon: Some(FilePath::from_flag(path.into()).unwrap()),
            ..Overrides::default()
        };
        Config::load(None, overrides).map(|config| config.daemon.socket)
    };
    assert_eq!(socket("/x").unwrap(), Path::new("/x"));
    assert!(socket(&format!("/{}", "x".repeat(107))).is_err());
}

#[test]
fn options_are_written_as_they_are_read() {
    let text = r#"
        socket_mode = "0660"
        socket_group = "0"
        queues = 3
        cpus = "4-5,1"
        queue_size = 128
        read_only = false
        discard = "pass"
        direct = "never"
        cache = "writethrough"
        poll_us = 1000
        engine = "portable"
        serial = "disk-1"
        pid_file = "/run/x.pid"
        limits = { iops_total = 500, bps_write = "10M" }
        on_error = "enospc"
        stuck_after = "45s"
        "#;
    let options: Options = toml::from_str(text).unwrap();
    let json = serde_json::to_value(&options).unwrap();
    assert_eq!(json.as_object().unwrap().len(), 16, "{json}");
    assert_eq!(json["poll_us"], 1000);
    assert_eq!(serde_json::from_value::<Options>(json).unwrap(), options);
    let none = serde_json::to_value(Options::default()).unwrap();
    assert_eq!(none, serde_json::json!({}));
}

#[cfg(feature = "pkcs11")]
#[test]
fn a_pkcs11_key_set_is_read() {
    use crate::kms::credential::SecretFile;
    use crate::kms::pkcs11::{Choice, TokenMatch};

    let read = |text: &str| {
        let text = format!("[key_sets.p]\nprovider = \"pkcs11\"\n{text}");
        let Definition {
            source, version, ..
        } = parse(&text).unwrap().key_sets[&name("p")].clone();
        match source {
            Source::Pkcs11 { key, settings } => (key.to_string(), version, *settings),
            other => panic!("{other:?}"),
        }
    };
    let (key, version, settings) = read(
        "uri = \"pkcs11:token=my%20token;serial=7;object=disks\"\nmodule = \"/m.so\"\n\
         pin = \"credential:pin\"\nmechanism = \"kwp\"\nversion = \"00ff\"\n\
         timeout = \"2s\"\ndeadline = \"10s\"",
    );
    assert_eq!(
        (key.as_str(), version.as_deref()),
        ("pkcs11:object=disks", Some("00ff"))
    );
    assert_eq!(settings.module, Path::new("/m.so"));
    let token = TokenMatch {
        label: Some("my token".into()),
        serial: Some("7".into()),
        ..TokenMatch::default()
    };
    assert_eq!(settings.token, token);
    assert!(settings.pin.unwrap().to_string().contains("\"pin\""));
    assert_eq!(settings.mechanism, Some(Choice::Kwp));
    assert_eq!(settings.timing.deadline, Duration::from_secs(10));

    let (key, version, settings) = read(
        "uri = \"pkcs11:slot-id=3;id=%0A;type=private?module-path=/m.so&pin-source=file:/p\"\n\
         version = \"latest\"",
    );
    assert_eq!(
        (key.as_str(), version),
        ("pkcs11:id=%0A;type=private", None)
    );
    assert_eq!(settings.token.slot, Some(3));
    assert_eq!(settings.pin, Some(SecretFile::new("/p")));
    assert_eq!(settings.mechanism, None);
}

#[cfg(feature = "k8s-kms")]
#[test]
fn a_kms_plugin_s_key_set_is_read() {
    for endpoint in ["unix:///run/kms/kms.sock", "/run/kms/kms.sock"] {
        let text = format!(
            "[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"{endpoint}\"\n\
             plugin_user = 65532\nversion = \"latest\"\ntimeout = \"2s\""
        );
        let Definition {
            source, version, ..
        } = parse(&text).unwrap().key_sets[&name("k")].clone();
        let Source::K8s(settings) = source else {
            panic!("{source:?}");
        };
        assert_eq!(version, None);
        assert_eq!(settings.socket, Path::new("/run/kms/kms.sock"));
        assert_eq!(settings.plugin_user, Some(65532));
        assert_eq!(settings.timing.timeout, Duration::from_secs(2));
    }
    let long = format!("/{}", "x".repeat(107));
    let text = format!("[key_sets.k]\nprovider = \"k8s-kms\"\nendpoint = \"{long}\"");
    assert!(parse(&text).unwrap_err().to_string().contains("107 bytes"));
}

#[test]
fn a_key_set_may_say_what_it_was_before_and_no_more_of_that() {
    let text = |more: &str| {
        format!(
            "[key_sets.a]\nprovider = \"file\"\nkey_file = \"/new\"\n{more}\n\
             [key_sets.a.previous]\nprovider = \"file\"\nkey_file = \"/old\"\n"
        )
    };
    let config = parse(&text("poll = \"5m\"")).unwrap();
    let set = &config.key_sets["a"];
    let previous = set.previous.as_deref().unwrap();
    assert_eq!(
        previous.source,
        Source::File {
            path: "/old".into()
        }
    );
    assert_eq!(
        set.source,
        Source::File {
            path: "/new".into()
        }
    );
    // Neither a policy nor something before that.
    for wrong in ["poll = \"5m\"", "previous = { provider = \"file\" }"] {
        let error = parse(&(text("") + wrong)).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
    }
    assert!(parse("[key_sets.a]\nprovider = \"file\"\nprevious = 7").is_err());
}
