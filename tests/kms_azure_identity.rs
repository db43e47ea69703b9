//! Who we are at Azure, in each of the ways there are, how long that lasts, and
//! to whom a credential is never shown. The services are the fakes in
//! `support/azure`.
#![cfg(feature = "azure-keyvault")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/azure/mod.rs"]
mod azure;
#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azure::login::{self, Mood};
use azure::platform::RESOURCE_ID;
use azure::{Azure, CLIENT, KEY, Kind};
use sealblk::error::{Explain, Kind as ErrorKind};
use sealblk::kms::azure::{AzureProvider, Header, Identity, Platform, Settings, Which};
use sealblk::kms::credential::SecretFile;
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, tls};
use sealblk::secret::Secret;

const AAD: &[u8] = b"volume 1";
const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn try_with(provider: &AzureProvider) -> Result<(), Error> {
    let key = KeyRef {
        id: Some(KEY.into()),
        version: None,
    };
    let payload = Secret::random(64).unwrap();
    let wrapped = wait(provider.wrap(&key, &payload, AAD))?;
    assert_eq!(wait(provider.unwrap(&wrapped, AAD))?, payload);
    Ok(())
}

fn try_as(azure: &Azure, identity: Identity) -> Result<(), Error> {
    try_with(&AzureProvider::new(azure.settings(Kind::Vault, identity)))
}

#[track_caller]
fn expect(result: Result<(), Error>, class: Class, cause: &str, next: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.class(), class, "{error}");
    let help = error.help().unwrap();
    assert!(error.to_string().contains(cause), "{error}");
    assert!(help.contains(next), "{help}");
    error
}

/// How often a token was asked for.
fn logins(azure: &Azure) -> usize {
    azure.asked("login", "/token") + azure.asked("platform", "/token")
}

#[test]
fn a_secret_is_shown_to_the_authority_alone_and_a_token_to_the_vault_alone() {
    let azure = Azure::start();
    let provider = AzureProvider::new(azure.settings(Kind::Vault, azure.with_secret()));
    for _ in 0..3 {
        try_with(&provider).unwrap();
    }
    assert_eq!(logins(&azure), 1, "one token for all");
    let state = azure.state();
    let first = &state.seen[0];
    assert_eq!(
        (first.0, first.1.body.len()),
        ("vault", 0),
        "asked without a body"
    );
    assert_eq!(first.1.header("authorization"), None);
    for (service, request) in &state.seen {
        let text = format!("{request:?}") + &String::from_utf8_lossy(&request.body);
        assert_eq!(text.contains("not-a-real-secret"), *service == "login");
        let bearer = request.header("authorization").is_some();
        assert!(!bearer || *service == "vault");
    }
}

#[test]
fn each_refusal_of_the_authority_is_told() {
    let azure = Azure::start();
    let other_client = |id: &str| Identity::Secret {
        client: id.parse().unwrap(),
        tenant: None,
        secret: SecretFile::new(azure.path("client-secret")),
    };
    let gone = "cccccccc-0000-4000-8000-000000000009";
    expect(
        try_as(&azure, other_client(gone)),
        FORBIDDEN,
        "it was deleted",
        "deletedItems",
    );
    let in_tenant = |tenant: &str| Identity::Secret {
        client: CLIENT.parse().unwrap(),
        tenant: Some(tenant.parse().unwrap()),
        secret: SecretFile::new(azure.path("client-secret")),
    };
    expect(
        try_as(&azure, in_tenant("nowhere.example")),
        FORBIDDEN,
        "no tenant nowhere.example",
        "leave it out",
    );
    expect(
        try_as(&azure, in_tenant("other.example")),
        FORBIDDEN,
        "of another tenant",
        "check tenant",
    );
    azure.write("client-secret", "wrong");
    expect(
        try_as(&azure, azure.with_secret()),
        FORBIDDEN,
        "is not one of application",
        "not its id",
    );
    azure.write("client-secret", login::SECRET);
    let change = |change: fn(&mut login::Principal)| {
        let mut state = azure.state();
        change(state.principals.get_mut(CLIENT).unwrap());
    };
    change(|app| {
        app.expired.insert(login::SECRET.into());
    });
    let error = expect(
        try_as(&azure, azure.with_secret()),
        FORBIDDEN,
        "has expired",
        "az ad app credential reset",
    );
    assert!(error.words().unwrap().contains("AADSTS7000222"), "{error}");
    assert!(!error.to_string().contains("not-a-real-secret"));
    change(|app| app.expired.clear());
    change(|app| app.disabled = true);
    expect(
        try_as(&azure, azure.with_secret()),
        FORBIDDEN,
        "is disabled",
        "accountEnabled",
    );
    change(|app| app.disabled = false);
    for (mood, class) in [
        (Mood::Failing, Class::Unreachable),
        (Mood::Garbled, Class::Protocol),
    ] {
        azure.state().login = mood;
        let error = try_as(&azure, azure.with_secret()).unwrap_err();
        assert_eq!(error.class(), class, "{error}");
    }
    azure.state().login = Mood::Throttling;
    let error = try_as(&azure, azure.with_secret()).unwrap_err();
    assert!(
        matches!(
            error.class(),
            Class::Throttled {
                retry_after: Some(_)
            }
        ),
        "{error}"
    );
    azure.state().login = Mood::Well;
    try_as(&azure, azure.with_secret()).unwrap();
    std::fs::remove_file(azure.path("client-secret")).unwrap();
    let error = try_as(&azure, azure.with_secret()).unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Unreachable, ErrorKind::NotFound)
    );
}

#[test]
fn a_token_is_replaced_when_it_is_near_its_end_or_refused() {
    let azure = Azure::start();
    azure.state().lifetime = 2;
    let provider = AzureProvider::new(azure.settings(Kind::Vault, azure.with_secret()));
    // Past the time of the first one, with not one failure.
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        try_with(&provider).unwrap();
    }
    let few = logins(&azure);
    assert!((2..20).contains(&few), "{few} tokens");

    azure.state().lifetime = 3600;
    let provider = AzureProvider::new(azure.settings(Kind::Vault, azure.with_secret()));
    try_with(&provider).unwrap();
    let before = logins(&azure);
    azure.state().tokens.clear();
    try_with(&provider).unwrap();
    assert_eq!(logins(&azure), before + 1, "a new one, once");

    // The vault moves to another tenant, of which we are one, too.
    azure.state().vault(Kind::Vault).tenant = "other.example".into();
    try_with(&provider).unwrap();
    // And one that is refused whatever we do ends in a denial.
    azure.state().vault(Kind::Vault).resource = "https://vault.example";
    let header = format!(
        "Bearer authorization=\"{}/other.example\", resource=\"https://vault.azure.net\"",
        azure.login_url()
    );
    azure.state().vault(Kind::Vault).challenge = Some(header);
    let before = logins(&azure);
    expect(
        try_with(&provider),
        FORBIDDEN,
        "for something else",
        "check tenant",
    );
    assert_eq!(logins(&azure), before + 1);
}

#[test]
fn calls_at_the_same_time_share_one_token() {
    let azure = Azure::start();
    let provider = AzureProvider::new(azure.settings(Kind::Vault, azure.with_secret()));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| try_with(&provider).unwrap());
        }
    });
    assert_eq!(logins(&azure), 1);
}

#[test]
fn no_token_is_fetched_for_what_the_vault_is_not_a_part_of() {
    let azure = Azure::start();
    let try_at = |change: &dyn Fn(&mut Settings)| {
        let mut settings = azure.settings(Kind::Vault, azure.with_secret());
        change(&mut settings);
        try_with(&AzureProvider::new(settings))
    };
    // 127.0.0.1 is not below vault.azure.net, and nothing else is configured.
    let error = try_at(&|settings| settings.resource = None);
    expect(error, Class::Protocol, "not a part of", "resource =");
    let elsewhere = format!(
        "Bearer authorization=\"{}/{}\", resource=\"https://management.azure.com\"",
        azure.login_url(),
        azure::TENANT
    );
    azure.state().vault(Kind::Vault).challenge = Some(elsewhere);
    expect(
        try_at(&|_| {}),
        Class::Protocol,
        "not a part of",
        "who answers",
    );
    azure.state().vault(Kind::Vault).challenge = None;
    // A vault in no known cloud: whom to trust has to be said.
    let error = try_at(&|settings| settings.authority = None);
    expect(error, Class::Protocol, "nobody is trusted", "authority =");
    assert_eq!(logins(&azure), 0);
    // What is configured is asked, whatever the vault says.
    let stranger = format!(
        "Bearer authorization=\"https://evil.example/{}\", resource=\"https://vault.azure.net\"",
        azure::TENANT
    );
    azure.state().vault(Kind::Vault).challenge = Some(stranger);
    try_at(&|_| {}).unwrap();
}

#[test]
fn a_certificate_signs_for_us() {
    let azure = Azure::start();
    let registered = azure.certificate("app");
    azure.certificate("other");
    let app = |app: &mut login::Principal| app.certificates.push(registered.clone());
    app(azure.state().principals.get_mut(CLIENT).unwrap());
    let with = |certificate: &Path, key: &Path| Identity::Certificate {
        client: CLIENT.parse().unwrap(),
        tenant: None,
        certificate: tls::ClientCertificate {
            certificate: certificate.into(),
            key: SecretFile::new(key),
        },
    };
    let (pem, key) = (azure.path("app.pem"), azure.path("app.key"));
    // Each assertion is used once; the authority sees to that.
    for _ in 0..2 {
        try_as(&azure, with(&pem, &key)).unwrap();
    }
    let (other_pem, other_key) = (azure.path("other.pem"), azure.path("other.key"));
    for (certificate, key) in [(&other_pem, &other_key), (&pem, &other_key)] {
        let error = expect(
            try_as(&azure, with(certificate, key)),
            FORBIDDEN,
            "is not one of application",
            "--cert",
        );
        assert!(error.words().unwrap().contains("AADSTS700027"), "{error}");
    }
    let ec = azure.authority.client("ec");
    azure.write("ec.key", ec.key_pem());
    let error = try_as(&azure, with(&pem, &azure.path("ec.key"))).unwrap_err();
    assert_eq!(
        (error.class(), error.kind()),
        (Class::Unreachable, ErrorKind::Usage)
    );
    assert!(error.to_string().contains("not an RSA key"), "{error}");
}

#[test]
fn a_federated_token_is_read_anew() {
    let azure = Azure::start();
    let trust = |tokens: &[&str]| {
        let mut state = azure.state();
        let app = state.principals.get_mut(CLIENT).unwrap();
        app.federated = tokens.iter().map(|token| (*token).to_owned()).collect();
        state.tokens.clear();
    };
    let file = azure.write("federated", "first\n");
    let provider = AzureProvider::new(azure.settings(
        Kind::Vault,
        Identity::Federated {
            client: CLIENT.parse().unwrap(),
            tenant: None,
            token: SecretFile::new(file).readable_by_all(),
        },
    ));
    trust(&["first"]);
    try_with(&provider).unwrap();
    trust(&["second"]);
    assert_eq!(try_with(&provider).unwrap_err().class(), FORBIDDEN);
    azure.write("federated", "second\n");
    try_with(&provider).unwrap();
}

fn managed(platform: Platform, which: Which) -> Identity {
    Identity::Managed { platform, which }
}

#[test]
fn a_virtual_machine_has_identities() {
    let azure = Azure::start();
    let imds = || Platform::Imds {
        endpoint: azure.platform_url().parse().unwrap(),
    };
    let other = "cccccccc-0000-4000-8000-000000000009";
    for which in [
        Which::System,
        Which::Client(CLIENT.parse().unwrap()),
        Which::Object(CLIENT.parse().unwrap()),
        Which::Resource(RESOURCE_ID.into()),
    ] {
        try_as(&azure, managed(imds(), which)).unwrap();
    }
    assert_eq!(azure.asked("login", ""), 0);
    let error = expect(
        try_as(
            &azure,
            managed(imds(), Which::Client(other.parse().unwrap())),
        ),
        Class::Unreachable,
        "no identity with the id",
        "az vm identity assign",
    );
    assert_eq!(error.kind(), ErrorKind::Key);
    // An identity that was taken away.
    azure.state().platform.identity = None;
    let before = logins(&azure);
    expect(
        try_as(&azure, managed(imds(), Which::System)),
        Class::Unreachable,
        "no system-assigned identity",
        "assign it",
    );
    assert_eq!(logins(&azure), before + 1, "waiting gives it none");
    azure.state().platform.identity = Some(CLIENT.into());
    // The platform is being updated.
    for status in [404, 410, 500] {
        azure.state().platform.fails = Some((status, 1));
        try_as(&azure, managed(imds(), Which::System)).unwrap();
    }
    azure.state().platform.fails = Some((410, 1000));
    expect(
        try_as(&azure, managed(imds(), Which::System)),
        Class::Unreachable,
        "status 410",
        "being updated",
    );
}

#[test]
fn an_app_service_has_an_identity() {
    let azure = Azure::start();
    let header = azure.state().platform.header.clone();
    let at = |header: Header| {
        let endpoint = format!("{}/msi/token", azure.platform_url());
        Platform::AppService {
            endpoint: endpoint.parse().unwrap(),
            header,
        }
    };
    let given = |text: &str| Header::Given(Arc::new(Secret::copy_of(text.as_bytes()).unwrap()));
    let file = Header::File(SecretFile::new(azure.write("header", &header)));
    for header in [given(&header), file] {
        for which in [Which::System, Which::Resource(RESOURCE_ID.into())] {
            try_as(&azure, managed(at(header.clone()), which)).unwrap();
        }
    }
    expect(
        try_as(&azure, managed(at(given("wrong")), Which::System)),
        Class::Unreachable,
        "gives this process no token",
        "may ask",
    );
}

#[test]
fn a_machine_of_arc_has_an_identity() {
    let azure = Azure::start();
    let arc = || {
        let endpoint = format!("{}/arc/token", azure.platform_url());
        Platform::Arc {
            endpoint: endpoint.parse().unwrap(),
            keys: azure.path("tokens"),
        }
    };
    let ours = || Which::Client(CLIENT.parse().unwrap());
    for which in [Which::System, ours(), Which::Resource(RESOURCE_ID.into())] {
        try_as(&azure, managed(arc(), which)).unwrap();
    }
    azure.state().platform.old_agent = true;
    expect(
        try_as(&azure, managed(arc(), ours())),
        Class::Unreachable,
        "another identity",
        "upgrade the agent",
    );
    azure.state().platform.old_agent = false;
    // Whoever answers in the agent's place gets no other file.
    let secret = azure.write("outside.key", "not for the agent");
    for lie in ["/etc/passwd", secret.to_str().unwrap()] {
        azure.state().platform.lie = Some(lie.into());
        expect(
            try_as(&azure, managed(arc(), Which::System)),
            Class::Unreachable,
            "does not prove",
            "in its place",
        );
    }
    let state = azure.state();
    let shown = state
        .seen
        .iter()
        .filter_map(|(_, request)| request.header("authorization"));
    assert!(
        shown
            .into_iter()
            .all(|shown| !shown.contains("not for the agent"))
    );
}
