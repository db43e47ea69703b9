//! What key services answer, or who is in their place: HTTP that is mostly what the
//! service says, with edits of status, headers and JSON, cut short, garbled or without
//! end, to the real clients of Vault and OpenBao, AWS KMS, Cloud KMS, Azure Key Vault
//! and their sources of credentials, and of a broker.
//!
//! Nothing panics and nothing waits without end; what fails says why, in one line,
//! without the key and without a credential; and what is taken for a key of a
//! volume has its size.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sealblk::error::Explain;
use sealblk::kms::aws::{AwsProvider, Endpoint, Environment, Identity, Source as Credentials};
use sealblk::kms::azure::{AzureProvider, Identity as AzureIdentity, Platform, Which};
use sealblk::kms::cluster::Timing;
use sealblk::kms::credential::SecretFile;
use sealblk::kms::gcp::{Auth as GoogleAuth, GcpProvider};
use sealblk::kms::http::BaseUrl;
use sealblk::kms::vault::{Auth, RoleId, VaultProvider};
use sealblk::kms::{Error, KeyRef, Provider, aws, azure, gcp, tls, vault};
use sealblk::secret::{Dek, Secret};
use sealblk_fuzz::kms::{self, ACCESS_KEY, ARN, CREDENTIALS, GOOGLE_KEY, Service};
use sealblk_fuzz::source::Source;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
});

static SERVICE: LazyLock<Service> = LazyLock::new(Service::start);

/// A file with a credential.
static SECRET: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    use std::os::unix::fs::OpenOptionsExt;
    let path = std::env::temp_dir().join(format!("sealblk-kms-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::OpenOptions::new()
        .mode(0o600)
        .create_new(true)
        .write(true)
        .open(&path)
        .expect("a file");
    std::io::Write::write_all(&mut file, CREDENTIALS[0].as_bytes()).expect("room");
    path
});

/// Short, so that what waits for the end of the world does not.
const TIMING: Timing = Timing {
    timeout: Duration::from_secs(10),
    deadline: Duration::from_millis(30),
};

const AAD: &[u8] = b"volume 1";

/// What is wrapped: nothing that text has by chance.
const KEY: [u8; 64] = {
    let mut key = [0; 64];
    let mut at = 0;
    while at < 64 {
        key[at] = (at as u8).wrapping_mul(37).wrapping_add(11);
        at += 1;
    }
    key
};

fuzz_target!(|bytes: &[u8]| {
    let mut source = Source::new(bytes);
    let which = source.below(5);
    let url: BaseUrl = SERVICE.url().parse().expect("this host");
    let (provider, key): (Arc<dyn Provider>, &str) = match which {
        0 => (vault(&url, &mut source), "disks"),
        1 => (amazon(&url, &mut source), ARN),
        2 => (google(&url), GOOGLE_KEY),
        3 => (microsoft(&url), "disks"),
        _ => (vault(&url, &mut source), "disks"),
    };
    let key = KeyRef {
        id: Some(key.into()),
        version: None,
    };
    SERVICE.expect(source.rest());
    RUNTIME.block_on(use_it(&*provider, &key));
    SERVICE.forget();
});

async fn use_it(provider: &dyn Provider, key: &KeyRef) {
    match provider.current_version(key).await {
        Ok(version) => assert!(!version.id.is_empty() && version.id.len() < 1024),
        Err(error) => check(&error),
    }
    let payload = Secret::copy_of(&KEY).expect("locked memory");
    let wrapped = match provider.wrap(key, &payload, AAD).await {
        Ok(wrapped) => wrapped,
        Err(error) => return check(&error),
    };
    assert!(!wrapped.bytes.is_empty());
    match provider.unwrap(&wrapped, AAD).await {
        Ok(secret) => {
            let right = secret.len() == KEY.len();
            // Whatever it is: only what has the size of one becomes a key.
            assert_eq!(Dek::try_from(secret).is_ok(), right);
        }
        Err(error) => check(&error),
    }
}

fn check(error: &Error) {
    let help = error.help().expect("something to do");
    let text = format!("{error} {help} {error:?}");
    assert!(!error.to_string().is_empty() && text.len() < 1 << 16);
    assert!(
        !format!("{error}{help}").contains(char::is_control),
        "{text:?}"
    );
    for secret in kms::secrets_in(&KEY) {
        assert!(!text.contains(&secret), "a secret is told: {text}");
    }
}

fn vault(url: &BaseUrl, source: &mut Source<'_>) -> Arc<dyn Provider> {
    let mount = |name: &str| name.parse().expect("a mount");
    let auth = match source.below(3) {
        0 => Auth::Token(SecretFile::new(&*SECRET)),
        1 => Auth::AppRole {
            mount: mount("approle"),
            role_id: RoleId::Plain("r".into()),
            secret_id: SecretFile::new(&*SECRET),
        },
        _ => Auth::Jwt {
            mount: mount("kubernetes"),
            role: "r".into(),
            token: SecretFile::new(&*SECRET),
        },
    };
    Arc::new(VaultProvider::new(vault::Settings {
        endpoints: vec![url.clone()],
        namespace: None,
        mount: mount("transit"),
        auth,
        tls: tls::Settings::default(),
        timing: TIMING,
    }))
}

fn amazon(url: &BaseUrl, source: &mut Source<'_>) -> Arc<dyn Provider> {
    let credentials = match source.below(3) {
        0 => Credentials::Environment,
        1 => Credentials::Container {
            endpoint: Some(format!("{url}/credentials")),
            token: None,
        },
        _ => Credentials::Instance {
            endpoint: Some(url.to_string()),
        },
    };
    Arc::new(AwsProvider::new(aws::Settings {
        endpoints: vec![Endpoint {
            region: "eu-central-1".parse().expect("a region"),
            url: url.clone(),
        }],
        accounts: vec![],
        identity: Identity {
            source: credentials,
            environment: Environment::fixed([
                ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
                ("AWS_SECRET_ACCESS_KEY", CREDENTIALS[0]),
            ]),
            sts_endpoint: None,
        },
        tls: tls::Settings::default(),
        timing: TIMING,
    }))
}

fn google(url: &BaseUrl) -> Arc<dyn Provider> {
    Arc::new(GcpProvider::new(gcp::Settings {
        endpoints: vec![url.clone()],
        auth: GoogleAuth::Metadata {
            server: url.clone(),
            account: None,
        },
        tls: tls::Settings::default(),
        timing: TIMING,
    }))
}

fn microsoft(url: &BaseUrl) -> Arc<dyn Provider> {
    Arc::new(AzureProvider::new(azure::Settings {
        vault: url.clone(),
        identity: AzureIdentity::Managed {
            platform: Platform::Imds {
                endpoint: url.clone(),
            },
            which: Which::System,
        },
        authority: Some(url.clone()),
        resource: Some("https://vault.azure.net".into()),
        algorithm: None,
        retry_forbidden: None,
        tls: tls::Settings::default(),
        timing: TIMING,
    }))
}
