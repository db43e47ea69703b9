//! Google's own Python clients (`google-cloud-kms` over REST, `google-auth`)
//! judge the fake that the `gcp-kms` provider is tested against, and open what
//! the provider wrapped, as it opens what they did.
#![cfg(feature = "gcp-kms")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/gcp/mod.rs"]
#[allow(dead_code)]
mod gcp;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gcp::Gcp;
use gcp::identity::{AUDIENCE, EMAIL, Identities, SUBJECT};
use gcp::kms::full_name;
use sealblk::kms::gcp::{GcpProvider, envelope};
use sealblk::kms::{Class, Denied, Provider, Wrapped};
use sealblk::secret::Secret;
use serde_json::{Value, json};

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

/// The clients, in a process of their own.
struct Sdk {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Sdk {
    fn start(gcp: &Gcp) -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let python = target.join("gcp-sdk/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run scripts/install-deps test",
            python.display()
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/gcp_sdk.py");
        let url = gcp.url();
        let host = url.strip_prefix("http://").unwrap();
        let mut child = Command::new(python)
            .arg(script)
            .arg(&url)
            .env("GCE_METADATA_HOST", host)
            .env("GCE_METADATA_IP", host)
            .env("GRPC_VERBOSITY", "NONE")
            .env("HOME", gcp.path(""))
            // It looks things up at Google on the side: nobody is there.
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("GOOGLE_APPLICATION_CREDENTIALS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Sdk {
            commands: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn ask(&mut self, command: Value) -> Value {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{command} gave {answer:?}"))
    }

    fn good(&mut self, command: Value) -> Value {
        let answer = self.ask(command);
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }

    /// The error that the client makes of it.
    fn error(&mut self, command: Value) -> Value {
        let answer = self.ask(command);
        assert!(answer["error"].is_object(), "{answer}");
        answer["error"].clone()
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        // It ends with its input. So it does when this process is killed.
        drop(self.commands.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the wrap is bound to, as `docs/kms/gcp-kms.md` describes it.
fn associated(header: &[u8], aad: &[u8]) -> Vec<u8> {
    let length = u64::try_from(aad.len()).unwrap().to_be_bytes();
    [header, &length, aad].concat()
}

#[test]
fn what_one_encrypts_the_other_decrypts() {
    let gcp = Gcp::start();
    let mut sdk = Sdk::start(&gcp);
    sdk.good(json!({"as": "file", "file": gcp.account_file()}));
    let provider = GcpProvider::new(gcp.patient_settings(gcp.file(gcp.account_file())));
    let (name, key) = (full_name("disks"), Gcp::key("disks"));
    let payload = Secret::random(64).unwrap();
    let encoded = BASE64.encode(&payload[..]);
    for round in 1..=2u64 {
        let wrapped = wait(provider.wrap(&key, &payload, b"volume 1")).unwrap();
        assert_eq!(wrapped.version, round.to_string());
        let taken = envelope::parse(&wrapped.bytes).unwrap();
        let header = &wrapped.bytes[..wrapped.bytes.len() - taken.ciphertext.len()];
        let opened = sdk.good(json!({
            "do": "decrypt",
            "name": name,
            "ciphertext": BASE64.encode(taken.ciphertext),
            "aad": BASE64.encode(associated(header, b"volume 1")),
        }));
        assert_eq!(opened["plaintext"], encoded);
        assert_eq!(
            (&opened["intact"], &opened["used_primary"]),
            (&true.into(), &true.into())
        );
        let other = sdk.error(json!({
            "do": "decrypt",
            "name": name,
            "ciphertext": BASE64.encode(taken.ciphertext),
            "aad": BASE64.encode(associated(header, b"volume 2")),
        }));
        assert_eq!(other["kind"], "BadRequest", "{other}");

        let header = envelope::header(&name.parse().unwrap(), round).unwrap();
        let made = sdk.good(json!({
            "do": "encrypt",
            "name": format!("{name}/cryptoKeyVersions/{round}"),
            "plaintext": encoded,
            "aad": BASE64.encode(associated(&header, b"volume 1")),
        }));
        assert_eq!(
            (&made["verified"], &made["intact"]),
            (&true.into(), &true.into())
        );
        let ciphertext = BASE64.decode(made["ciphertext"].as_str().unwrap()).unwrap();
        let theirs = Wrapped {
            bytes: [header, ciphertext].concat(),
            ..wrapped
        };
        assert_eq!(
            wait(provider.unwrap(&theirs, b"volume 1")).unwrap(),
            payload
        );
        let error = wait(provider.unwrap(&theirs, b"volume 2")).unwrap_err();
        assert_eq!(error.class(), Class::BadKey);
        // The operator's part, with the operator's own client.
        let rotated = sdk.good(json!({"do": "rotate", "name": name}));
        let current = wait(provider.current_version(&key)).unwrap();
        let full = format!("{name}/cryptoKeyVersions/{}", current.id);
        assert_eq!(rotated["primary"]["name"], full);
        assert_eq!(current.id, (round + 1).to_string());
    }
}

#[test]
fn states_and_errors_are_what_google_s_client_takes_them_for() {
    let gcp = Gcp::start();
    let mut sdk = Sdk::start(&gcp);
    sdk.good(json!({"as": "file", "file": gcp.account_file()}));
    let provider = GcpProvider::new(gcp.patient_settings(gcp.file(gcp.account_file())));
    let (name, key) = (full_name("disks"), Gcp::key("disks"));
    let version = format!("{name}/cryptoKeyVersions/1");
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key, &payload, b"v")).unwrap();
    let told = sdk.good(json!({"do": "get", "name": name}));
    assert_eq!(told["purpose"], "ENCRYPT_DECRYPT");
    assert_eq!(told["primary"]["algorithm"], "GOOGLE_SYMMETRIC_ENCRYPTION");
    let encrypt = json!({"do": "encrypt", "name": name, "plaintext": "AAAA", "aad": "AAAA"});
    for (action, state, violation, class) in [
        (
            "disable",
            "DISABLED",
            "KEY_DISABLED",
            Some(Class::Denied(Denied::Disabled)),
        ),
        ("enable", "ENABLED", "", None),
        (
            "destroy",
            "DESTROY_SCHEDULED",
            "KEY_DESTROY_SCHEDULED",
            Some(Class::Denied(Denied::Deleted)),
        ),
        (
            "restore",
            "DISABLED",
            "KEY_DISABLED",
            Some(Class::Denied(Denied::Disabled)),
        ),
        ("enable", "ENABLED", "", None),
    ] {
        let changed = sdk.good(json!({"do": action, "name": version}));
        assert_eq!(changed["state"], state);
        assert_eq!(sdk.good(json!({"do": "get", "name": version})), changed);
        let ours = wait(provider.unwrap(&wrapped, b"v"));
        assert_eq!(
            ours.as_ref().err().map(|error| error.class()),
            class,
            "{action}"
        );
        match class {
            None => drop(sdk.good(encrypt.clone())),
            Some(_) => {
                let error = sdk.error(encrypt.clone());
                assert_eq!(error["kind"], "BadRequest", "{error}");
                assert_eq!(error["violations"], json!([violation]));
            }
        }
    }
    // Checksums, rights, and what does not exist.
    let mut damaged = encrypt.clone();
    damaged["damage"] = 1.into();
    assert_eq!(sdk.error(damaged)["kind"], "BadRequest");
    let missing = sdk.error(json!({"do": "get", "name": full_name("none")}));
    assert_eq!(missing["kind"], "NotFound");
    gcp.cloud().keys.denied = ["cloudkms.cryptoKeyVersions.useToEncrypt".to_owned()].into();
    let forbidden = sdk.error(encrypt.clone());
    assert_eq!(forbidden["kind"], "Forbidden");
    assert_eq!(forbidden["reason"], "IAM_PERMISSION_DENIED");
    assert_eq!(
        forbidden["metadata"]["permission"],
        "cloudkms.cryptoKeyVersions.useToEncrypt"
    );
    gcp.cloud().keys.denied.clear();
    // A token that was taken back: it gets itself another one, as we do.
    gcp.cloud().identities.revoke_tokens();
    sdk.good(encrypt);
}

#[test]
fn google_s_own_authentication_takes_each_way_to_a_token() {
    let gcp = Gcp::start();
    let mut sdk = Sdk::start(&gcp);
    let encrypt =
        json!({"do": "encrypt", "name": full_name("disks"), "plaintext": "AAAA", "aad": "AAAA"});
    let holders = || -> Vec<String> {
        let mut cloud = gcp.cloud();
        let holders = cloud.identities.holders();
        let holders = holders.into_iter().map(str::to_owned).collect();
        cloud.identities.revoke_tokens();
        holders
    };
    sdk.good(json!({"as": "metadata"}));
    sdk.good(encrypt.clone());
    assert_eq!(holders(), [EMAIL]);
    gcp.cloud().identities.forget_cached();

    sdk.good(json!({"as": "file", "file": gcp.account_file()}));
    sdk.good(encrypt.clone());
    assert_eq!(holders(), [EMAIL]);

    let token = Identities::foreign_token(SUBJECT, 600);
    gcp.cloud().identities.subject_token = token.clone();
    let in_file = json!({"file": gcp.write("token", &token)});
    let at_url = json!({
        "url": format!("{}/subject", gcp.url()),
        "headers": {"X-Machine": "yes"},
        "format": {"type": "json", "subject_token_field_name": "subject"},
    });
    let account = format!(
        "{}/v1/projects/-/serviceAccounts/{EMAIL}:generateAccessToken",
        gcp.url()
    );
    let principal = format!("principal:{SUBJECT}");
    for (source, impersonation, expected) in [
        (&in_file, None, vec![principal.clone()]),
        (&at_url, None, vec![principal.clone()]),
        (
            &in_file,
            Some(&account),
            vec![principal.clone(), EMAIL.into()],
        ),
    ] {
        let mut json = json!({
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": format!("{}/v1/token", gcp.url()),
            "credential_source": source,
        });
        if let Some(url) = impersonation {
            json["service_account_impersonation_url"] = url.as_str().into();
        }
        // One file for both of us.
        let file = gcp.write("federation.json", &json.to_string());
        let provider = GcpProvider::new(gcp.patient_settings(gcp.file(file.clone())));
        wait(provider.current_version(&Gcp::key("disks"))).unwrap();
        assert_eq!(holders(), expected, "ours");
        sdk.good(json!({"as": "file", "file": file}));
        sdk.good(encrypt.clone());
        assert_eq!(holders(), expected, "Google's");
    }

    gcp.cloud().identities.keys.clear();
    sdk.good(json!({"as": "file", "file": gcp.account_file()}));
    let error = sdk.error(encrypt);
    assert_eq!(error["kind"], "RefreshError", "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("Invalid JWT Signature")
    );
}
