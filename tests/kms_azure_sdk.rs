//! The fake of Azure is judged by the official SDK for Python, and what the one
//! client wraps the other one opens.
#![cfg(feature = "azure-keyvault")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/azure/mod.rs"]
mod azure;
#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use azure::{Azure, CLIENT, KEY, Kind, OFFICER, TENANT, login};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sealblk::kms::azure::{Algorithm, AzureProvider};
use sealblk::kms::{KeyRef, Provider, Wrapped};
use sealblk::secret::Secret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const AAD: &[u8] = b"volume 1";

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

/// Has the SDK do something, and returns what it says.
fn sdk(azure: &Azure, command: &str, more: Value) -> Value {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("azure-sdk/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/install-deps test",
        python.display()
    );
    let mut told = json!({
        "vault": azure.url(Kind::Vault),
        "hsm": azure.url(Kind::Hsm),
        "login": azure.login_url(),
        "platform": azure.platform_url(),
        "tenant": TENANT,
        "client": CLIENT,
        "officer": OFFICER,
        "secret": login::SECRET,
        "key": KEY,
        "header": azure.state().platform.header,
    });
    for (name, value) in more.as_object().unwrap() {
        told[name] = value.clone();
    }
    let mut child = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/support/azure_sdk.py"
        ))
        .arg(command)
        .env("REQUESTS_CA_BUNDLE", azure.ca_file())
        .env_remove("IDENTITY_ENDPOINT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(told.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_sdk_finds_everything_in_its_place() {
    let azure = Azure::start();
    sdk(&azure, "tour", json!({}));
}

#[test]
fn the_sdk_has_each_identity() {
    let azure = Azure::start();
    let certificate = azure.certificate("app");
    let federated = azure.write("federated", "a token of another issuer");
    let mut state = azure.state();
    let app = state.principals.get_mut(CLIENT).unwrap();
    app.certificates.push(certificate);
    app.federated.insert("a token of another issuer".into());
    drop(state);
    let found = sdk(
        &azure,
        "identities",
        json!({"pem": azure.path("app.both"), "federated": federated}),
    );
    let words = found["refusals"].to_string();
    for code in ["AADSTS7000215", "AADSTS700016"] {
        assert!(words.contains(code), "{words}");
    }
}

/// Both keys, and each way in which they wrap.
const WAYS: [(Kind, Option<Algorithm>, &str); 4] = [
    (Kind::Vault, None, "RSA-OAEP-256"),
    (Kind::Hsm, None, "A256KW"),
    (
        Kind::Hsm,
        Some(Algorithm::CkmAesKeyWrap),
        "CKM_AES_KEY_WRAP",
    ),
    (
        Kind::Hsm,
        Some(Algorithm::CkmAesKeyWrapPad),
        "CKM_AES_KEY_WRAP_PAD",
    ),
];

fn provider(azure: &Azure, kind: Kind, algorithm: Option<Algorithm>) -> AzureProvider {
    let mut settings = azure.settings(kind, azure.with_secret());
    settings.algorithm = algorithm;
    AzureProvider::new(settings)
}

#[test]
fn the_sdk_opens_what_we_wrap() {
    let azure = Azure::start();
    let key = KeyRef {
        id: Some(KEY.into()),
        version: None,
    };
    let payload = Secret::random(64).unwrap();
    for (kind, algorithm, alg) in WAYS {
        let wrapped = wait(provider(&azure, kind, algorithm).wrap(&key, &payload, AAD)).unwrap();
        assert_eq!(wrapped.alg, alg);
        // As docs/kms/azure-keyvault.md has it: the header, and what the service made.
        let names = wrapped.key_id.len() + wrapped.version.len();
        let (header, ciphertext) = wrapped.bytes.split_at(6 + 2 + 2 + names + 16);
        let id = format!("{}/{}", wrapped.key_id, wrapped.version);
        let told = json!({"id": id, "alg": alg, "value": BASE64.encode(ciphertext)});
        let opened = sdk(&azure, "unwrap", told);
        let opened = BASE64.decode(opened["value"].as_str().unwrap()).unwrap();
        assert_eq!(opened, [&payload[..], &digest(header)].concat());
    }
}

/// What follows the payload in what the service wraps.
fn digest(header: &[u8]) -> Vec<u8> {
    let length = (AAD.len() as u64).to_be_bytes();
    Sha256::digest([header, &length, AAD].concat()).to_vec()
}

#[test]
fn we_open_what_the_sdk_wraps() {
    let azure = Azure::start();
    let payload = [0x42; 64];
    for (number, (kind, algorithm, alg)) in WAYS.into_iter().enumerate() {
        let version = azure.state().vault(kind).latest(KEY).id.clone();
        let key_id = format!("{}/keys/{KEY}", azure.url(kind));
        let mut header = b"sbWB\x01".to_vec();
        header.push(u8::try_from(number).unwrap() + 1);
        for name in [&key_id, &version] {
            header.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            header.extend(name.bytes());
        }
        header.extend([0x5a; 16]);
        let inside = [&payload[..], &digest(&header)].concat();
        let id = format!("{key_id}/{version}");
        let told = json!({"id": id, "alg": alg, "value": BASE64.encode(inside)});
        let wrapped = sdk(&azure, "wrap", told);
        assert_eq!(wrapped["kid"], id);
        let ciphertext = BASE64.decode(wrapped["value"].as_str().unwrap()).unwrap();
        let wrapped = Wrapped {
            key_id,
            version,
            alg: alg.into(),
            bytes: [header, ciphertext].concat(),
        };
        let opened = wait(provider(&azure, kind, algorithm).unwrap(&wrapped, AAD)).unwrap();
        assert_eq!(&opened[..], payload);
    }
}
