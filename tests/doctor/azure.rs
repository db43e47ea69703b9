//! Keys of Azure, at the fake that the official SDK has judged.

use sealblk::kms::azure::Identity;

use super::azure_fake::vault::Mood;
use super::azure_fake::{Azure, CLIENT, KEY, Kind, TENANT, login};
use super::lab::{Host, Told};
use super::needles::assert_absent;

fn host(azure: &Azure) -> Host {
    let Identity::Secret { secret, .. } = azure.with_secret() else {
        unreachable!("it has a secret");
    };
    Host::with(&format!(
        "provider = \"azure-keyvault\"\nvault = {:?}\nkey = {KEY:?}\nauthority = {:?}\n\
         resource = \"https://vault.azure.net\"\nca_file = {:?}\ntimeout = \"20s\"\n\
         identity = {{ method = \"client-secret\", client_id = {CLIENT:?}, secret = {:?} }}",
        azure.url(Kind::Vault),
        azure.login_url(),
        azure.ca_file(),
        secret.path().unwrap(),
    ))
}

fn examine(azure: &Azure) -> Told {
    host(azure).examine()
}

#[test]
fn a_vault_that_works_is_said_to_work() {
    let azure = Azure::start();
    let told = examine(&azure);
    assert_eq!(told.status, 0, "{}", told.stderr);
    told.each(
        &[
            "configuration",
            "credential",
            "dns",
            "tcp",
            "tls",
            "service",
            "clock",
            "identity",
            "read_key",
            "key",
            "expiry",
            "version",
            "recovery",
            "wrap",
            "unwrap",
        ],
        "ok",
    )
    .expect("service", "ok", &["vault.azure.net", TENANT, "westeurope"])
    .expect("identity", "ok", &[CLIENT, "object id", "minutes"])
    .expect("recovery", "ok", &["nobody can purge"])
    .expect("wrap", "ok", &["RSA-OAEP-256"]);
    let shown = told.all.to_string() + &told.stderr;
    assert_absent(
        shown.as_bytes(),
        login::SECRET.as_bytes(),
        "the doctor's report",
    );
    for token in azure.state().tokens.keys() {
        assert_absent(shown.as_bytes(), token.as_bytes(), "the doctor's report");
    }
}

#[test]
fn what_is_wrong_with_a_vault_is_said() {
    let azure = Azure::start();
    let at = |change: fn(&mut super::azure_fake::vault::Vault)| {
        change(azure.state().vault(Kind::Vault));
    };
    at(|vault| vault.recovery = "Recoverable+Purgeable");
    examine(&azure).expect(
        "recovery",
        "warn",
        &["purges it", "--enable-purge-protection"],
    );
    at(|vault| {
        vault.recovery = "Recoverable";
        vault.permissions.get_mut(CLIENT).unwrap().remove("wrapKey");
    });
    examine(&azure)
        .only_failure(
            "wrap",
            8,
            &["permits wrapKey", "Crypto Service Encryption User"],
        )
        .expect("unwrap", "ok", &["a made-up key is refused"]);
    at(|vault| {
        vault.permissions.remove(CLIENT);
    });
    let told = examine(&azure);
    assert_eq!(told.status, 8);
    told.expect("identity", "ok", &["object id", CLIENT])
        .expect("read_key", "fail", &["permits get"])
        .expect("wrap", "skip", &[])
        .expect("unwrap", "skip", &["nothing to unwrap"]);
    at(|vault| {
        vault
            .permissions
            .insert(CLIENT.into(), ["get", "wrapKey", "unwrapKey"].into());
        vault.latest(KEY).enabled = false;
    });
    let told = examine(&azure);
    assert_eq!(told.status, 8);
    told.expect("key", "fail", &["is disabled", "--enabled true"]);
    at(|vault| vault.delete(KEY));
    let told = examine(&azure);
    assert_eq!(told.status, 8);
    told.expect(
        "read_key",
        "fail",
        &["has been deleted", "az keyvault key recover"],
    );
    at(|vault| vault.recover(KEY));
    at(|vault| vault.mood = Mood::Firewall);
    examine(&azure).expect("read_key", "fail", &["firewall", "network-rule"]);
    // Nothing but the secret of the identity.
    at(|vault| vault.mood = Mood::Well);
    at(|vault| vault.latest(KEY).enabled = true);
    azure.write("client-secret", "expired");
    let mut state = azure.state();
    let app = state.principals.get_mut(CLIENT).unwrap();
    app.expired.insert("expired".into());
    drop(state);
    examine(&azure)
        .only_failure(
            "identity",
            8,
            &["client secret", "has expired", "credential reset"],
        )
        .each(&["service", "clock"], "ok")
        .each(&["read_key", "recovery", "wrap", "unwrap"], "skip");
}
