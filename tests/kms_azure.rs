//! What Azure can do to us: states of keys, permissions, throttling, and
//! services that are broken. The service is the fake in `support/azure`. Who we
//! are there, and for how long, is in `kms_azure_identity`; what all providers
//! do, in `kms_conformance`.
#![cfg(feature = "azure-keyvault")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "support/azure/mod.rs"]
mod azure;
#[allow(dead_code)]
#[path = "support/certificates.rs"]
mod certificates;

use std::collections::BTreeSet;
use std::time::Duration;

use azure::keys::Version;
use azure::vault::{Mood, Vault};
use azure::{Azure, CLIENT, KEY, Kind, now};
use sealblk::error::Explain;
use sealblk::kms::azure::{Algorithm, AzureProvider, Settings};
use sealblk::kms::{Class, Denied, Error, KeyRef, Provider, Wrapped, call};
use sealblk::secret::Secret;
use uuid::Uuid;

const AAD: &[u8] = b"volume 1";
const FORBIDDEN: Class = Class::Denied(Denied::Forbidden);

fn wait<F: Future>(future: F) -> F::Output {
    sealblk::runtime::block_on(future).unwrap()
}

fn key(name: &str) -> KeyRef {
    KeyRef {
        id: Some(name.into()),
        version: None,
    }
}

fn payload() -> Secret {
    Secret::copy_of(&[0x42; 64]).unwrap()
}

/// A provider for the key in one of the vaults.
struct Lab {
    azure: Azure,
    kind: Kind,
    provider: AzureProvider,
}

impl Lab {
    fn new(kind: Kind) -> Self {
        Self::with(Azure::start(), kind, |_| {})
    }

    fn with(azure: Azure, kind: Kind, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = azure.settings(kind, azure.with_secret());
        change(&mut settings);
        Lab {
            azure,
            kind,
            provider: AzureProvider::new(settings),
        }
    }

    fn at<T>(&self, change: impl FnOnce(&mut Vault) -> T) -> T {
        change(self.azure.state().vault(self.kind))
    }

    fn wrap(&self) -> Result<Wrapped, Error> {
        wait(self.provider.wrap(&key(KEY), &payload(), AAD))
    }

    fn unwrap(&self, wrapped: &Wrapped) -> Result<(), Error> {
        let opened = wait(self.provider.unwrap(wrapped, AAD))?;
        assert_eq!(opened, payload());
        Ok(())
    }

    fn both(&self) -> Result<Wrapped, Error> {
        let wrapped = self.wrap()?;
        self.unwrap(&wrapped)?;
        Ok(wrapped)
    }
}

/// Checks an error for its class, what it says, and what it proposes.
#[track_caller]
fn expect<T>(result: Result<T, Error>, class: Class, cause: &str, next: &str) {
    let Err(error) = result else {
        panic!("it has to fail with {cause:?}");
    };
    assert_eq!(error.class(), class, "{error}");
    let help = error.help().unwrap();
    assert!(error.to_string().contains(cause), "{error}");
    assert!(help.contains(next), "{help}");
}

#[test]
fn each_kind_of_key_wraps() {
    for (kind, bits) in [("RSA", 2048), ("RSA", 3072), ("RSA-HSM", 4096)] {
        let azure = Azure::with_keys((kind, bits), ("oct-HSM", 256));
        let lab = Lab::with(azure, Kind::Vault, |_| {});
        let wrapped = lab.both().unwrap();
        assert_eq!(wrapped.alg, "RSA-OAEP-256");
        assert!(wrapped.key_id.ends_with("/keys/disks"));
    }
    for (algorithm, name) in [
        (None, "A256KW"),
        (Some(Algorithm::CkmAesKeyWrap), "CKM_AES_KEY_WRAP"),
        (Some(Algorithm::CkmAesKeyWrapPad), "CKM_AES_KEY_WRAP_PAD"),
    ] {
        let lab = Lab::with(Azure::start(), Kind::Hsm, |settings| {
            settings.algorithm = algorithm;
        });
        let wrapped = lab.both().unwrap();
        assert_eq!(wrapped.alg, name);
        // Whatever is configured now, it opens as it was wrapped.
        let settings = lab.azure.settings(Kind::Hsm, lab.azure.with_secret());
        let other = AzureProvider::new(settings);
        assert_eq!(wait(other.unwrap(&wrapped, AAD)).unwrap(), payload());
    }
}

#[test]
fn keys_that_cannot_wrap_are_told() {
    for (kind, bits, cause) in [
        ("EC", 256, "type EC"),
        ("RSA", 1024, "1024 bits"),
        ("oct-HSM", 128, "does not take wrapKey"),
    ] {
        let azure = Azure::with_keys((kind, bits), ("oct-HSM", 256));
        let lab = Lab::with(azure, Kind::Vault, |_| {});
        expect(lab.wrap(), Class::Protocol, cause, "RSA");
    }
    let lab = Lab::with(Azure::start(), Kind::Vault, |settings| {
        settings.algorithm = Some(Algorithm::A256KW);
    });
    expect(
        lab.wrap(),
        Class::Protocol,
        "no A256KW",
        "leave algorithm out",
    );
    // 190 bytes is what RSA with 2048 bits carries, of which 32 are ours.
    let lab = Lab::new(Kind::Vault);
    let long = |bytes| {
        let payload = Secret::zeroed(bytes).unwrap();
        wait(lab.provider.wrap(&key(KEY), &payload, AAD))
    };
    assert!(long(158).is_ok());
    expect(long(159), Class::Protocol, "too many", "longer RSA key");
}

#[test]
fn the_state_of_a_key_is_told_and_how_to_mend_it() {
    let lab = Lab::new(Kind::Vault);
    let wrapped = lab.both().unwrap();
    let current = || wait(lab.provider.current_version(&key(KEY))).unwrap();
    assert!(current().enabled);

    // The service wraps with a disabled key, and does not unwrap.
    lab.at(|vault| vault.latest(KEY).enabled = false);
    let disabled = Class::Denied(Denied::Disabled);
    expect(lab.wrap(), disabled, "is disabled", "--enabled true");
    expect(
        lab.unwrap(&wrapped),
        disabled,
        "is disabled",
        "--enabled true",
    );
    assert!(!current().enabled);
    // Paths of both end in `wrapkey`.
    let wraps = lab.azure.asked("vault", "wrapkey") - lab.azure.asked("vault", "unwrapkey");
    assert_eq!(wraps, 1, "with the disabled key nothing was wrapped");
    lab.at(|vault| vault.latest(KEY).enabled = true);

    // Outside of its time it unwraps, and does not wrap.
    let expired = Class::Denied(Denied::Expired);
    let ended = now() - 60;
    lab.at(|vault| vault.latest(KEY).exp = Some(ended));
    expect(
        lab.wrap(),
        expired,
        "has expired",
        "key rotate --name disks",
    );
    lab.unwrap(&wrapped).unwrap();
    let told = current();
    assert!(!told.enabled);
    let since = told.expires.unwrap().duration_since(std::time::UNIX_EPOCH);
    assert_eq!(since.unwrap().as_secs(), ended);
    lab.at(|vault| {
        vault.latest(KEY).exp = None;
        vault.latest(KEY).nbf = Some(now() + 3600);
    });
    expect(lab.wrap(), expired, "not valid before", "--not-before");
    lab.unwrap(&wrapped).unwrap();
    lab.at(|vault| vault.latest(KEY).nbf = None);

    // It is not for that, whoever asks.
    lab.at(|vault| vault.latest(KEY).ops = vec!["encrypt".into()]);
    expect(
        lab.wrap(),
        FORBIDDEN,
        "whoever asks",
        "--ops wrapKey unwrapKey",
    );
    expect(lab.unwrap(&wrapped), FORBIDDEN, "unwrapKey", "--ops");
}

#[test]
fn a_deleted_key_is_told_from_one_that_is_gone() {
    for kind in [Kind::Vault, Kind::Hsm] {
        let lab = Lab::new(kind);
        let wrapped = lab.both().unwrap();
        lab.at(|vault| vault.delete(KEY));
        let deleted = Class::Denied(Denied::Deleted);
        let recover = "az keyvault key recover --name disks";
        if kind == Kind::Hsm {
            // Whoever may not see what was deleted is told how to find out.
            expect(lab.wrap(), Class::NotFound, "has no key disks", recover);
            lab.at(|vault| {
                vault
                    .permissions
                    .get_mut(CLIENT)
                    .unwrap()
                    .insert("getDeleted")
            });
        }
        expect(lab.wrap(), deleted, "can be recovered until", recover);
        expect(
            lab.unwrap(&wrapped),
            deleted,
            "can be recovered until",
            recover,
        );
        lab.at(|vault| vault.recover(KEY));
        lab.unwrap(&wrapped).unwrap();
        lab.at(|vault| vault.keys.remove(KEY));
        expect(lab.wrap(), Class::NotFound, "has no key disks", "purged");
        expect(
            lab.unwrap(&wrapped),
            Class::NotFound,
            "has no key",
            "backup",
        );
    }
}

#[test]
fn who_refuses_is_told() {
    let lab = Lab::new(Kind::Vault);
    let wrapped = lab.both().unwrap();
    lab.at(|vault| vault.mood = Mood::Firewall);
    let rule = "network-rule add --name";
    expect(lab.unwrap(&wrapped), FORBIDDEN, "firewall", rule);
    lab.at(|vault| vault.mood = Mood::PrivateOnly);
    expect(
        lab.unwrap(&wrapped),
        FORBIDDEN,
        "firewall",
        "private endpoint",
    );
    lab.at(|vault| {
        vault.mood = Mood::Well;
        vault.permissions.remove(CLIENT);
    });
    let role = "Key Vault Crypto Service Encryption User";
    expect(lab.unwrap(&wrapped), FORBIDDEN, "no role", role);
    lab.at(|vault| vault.rbac = false);
    let policy = "--key-permissions get wrapKey unwrapKey";
    expect(lab.unwrap(&wrapped), FORBIDDEN, "access policy", policy);
}

#[test]
fn three_permissions_are_enough_and_each_is_needed() {
    let all = ["get", "wrapKey", "unwrapKey"];
    for rbac in [true, false] {
        let lab = Lab::new(Kind::Vault);
        lab.at(|vault| vault.rbac = rbac);
        lab.both().unwrap();
        for without in all {
            let left: BTreeSet<_> = all.into_iter().filter(|one| *one != without).collect();
            lab.at(|vault| vault.permissions.insert(CLIENT.into(), left));
            expect(lab.both(), FORBIDDEN, without, "OBJECT_ID");
        }
    }
}

#[test]
fn a_version_that_is_lost_is_told_with_those_there_are() {
    let lab = Lab::new(Kind::Vault);
    let wrapped = lab.wrap().unwrap();
    for _ in 0..4 {
        lab.at(|vault| vault.rotate(KEY));
    }
    let newest = lab.at(|vault| vault.latest(KEY).id.clone());
    let lost = lab.at(|vault| vault.versions(KEY).remove(0));
    assert_eq!(lost.id, wrapped.version);
    // Who may not list is told of the latest one.
    expect(lab.unwrap(&wrapped), Class::NotFound, &newest, "backup");
    assert_eq!(lab.azure.asked("vault", "versions"), 1);
    // Who may list is told of the newest, which are on the last of two pages.
    let before = lab.at(|vault| vault.versions(KEY)[1].id.clone());
    lab.at(|vault| vault.permissions.get_mut(CLIENT).unwrap().insert("list"));
    expect(
        lab.unwrap(&wrapped),
        Class::NotFound,
        &format!("{newest}, "),
        "backup",
    );
    expect(lab.unwrap(&wrapped), Class::NotFound, &before, "backup");
    assert_eq!(lab.azure.asked("vault", "versions"), 1 + 2 * 2);
}

#[test]
fn a_key_that_was_restored_elsewhere_opens_what_it_wrapped() {
    let azure = Azure::with_keys(("RSA", 2048), ("RSA-HSM", 2048));
    let lab = Lab::with(azure, Kind::Vault, |_| {});
    let wrapped = lab.wrap().unwrap();
    let elsewhere = lab.azure.settings(Kind::Hsm, lab.azure.with_secret());
    let elsewhere = AzureProvider::new(elsewhere);
    let opened = || wait(elsewhere.unwrap(&wrapped, AAD));
    let was = lab.azure.url(Kind::Vault);
    expect(
        opened(),
        Class::NotFound,
        &format!("wrapped in {was}"),
        "key restore",
    );
    let mut state = lab.azure.state();
    let versions = state.vault(Kind::Vault).keys.remove(KEY).unwrap();
    state.vault(Kind::Hsm).keys.insert(KEY.into(), versions);
    drop(state);
    assert_eq!(opened().unwrap(), payload());
}

#[test]
fn a_permission_on_its_way_is_waited_for_when_asked_and_once() {
    let patient = |settings: &mut Settings| {
        settings.retry_forbidden = Some(Duration::from_secs(60));
    };
    for rbac in [true, false] {
        let lab = Lab::with(Azure::start(), Kind::Vault, patient);
        lab.at(|vault| {
            vault.rbac = rbac;
            vault.mood = Mood::Forgetful(2);
        });
        lab.both().unwrap();
    }
    let lab = Lab::new(Kind::Vault);
    lab.at(|vault| vault.mood = Mood::Forgetful(1));
    assert_eq!(lab.wrap().unwrap_err().class(), FORBIDDEN);
    lab.both().unwrap();

    // In vain it is waited for once: a host whose permission was taken away
    // learns that.
    let lab = Lab::with(Azure::start(), Kind::Vault, |settings| {
        settings.retry_forbidden = Some(Duration::from_secs(2));
    });
    let wrapped = lab.both().unwrap();
    let asked = || lab.azure.asked("vault", "unwrapkey");
    let before = asked();
    lab.at(|vault| vault.permissions.remove(CLIENT));
    assert_eq!(lab.unwrap(&wrapped).unwrap_err().class(), FORBIDDEN);
    assert!(asked() - before > 1, "it was asked again");
    let before = asked();
    assert_eq!(lab.unwrap(&wrapped).unwrap_err().class(), FORBIDDEN);
    assert_eq!(asked() - before, 1);
    // What waiting does not cure is not waited for.
    let lab = Lab::with(Azure::start(), Kind::Vault, patient);
    lab.at(|vault| vault.mood = Mood::Firewall);
    expect(lab.wrap(), FORBIDDEN, "firewall", "network-rule");
    assert_eq!(lab.azure.asked("vault", "keys"), 2);
}

#[test]
fn throttling_is_obeyed_and_outages_are_no_denials() {
    let lab = Lab::new(Kind::Vault);
    let wrapped = lab.both().unwrap();
    lab.at(|vault| vault.mood = Mood::Throttling(Some(600)));
    let asked = || lab.azure.asked("vault", "unwrapkey");
    let before = asked();
    let error = lab.unwrap(&wrapped).unwrap_err();
    let Class::Throttled { retry_after } = error.class() else {
        panic!("{error}");
    };
    assert!(retry_after.unwrap() > Duration::from_secs(590));
    assert_eq!(asked() - before, 1);
    // It is left alone until then.
    assert!(matches!(
        lab.unwrap(&wrapped).unwrap_err().class(),
        Class::Throttled { .. }
    ));
    assert_eq!(asked() - before, 1);

    for (mood, class) in [
        (
            Mood::Throttling(None),
            Class::Throttled { retry_after: None },
        ),
        (Mood::Failing(500), Class::Unreachable),
        (Mood::Failing(503), Class::Unreachable),
        (Mood::Gone, Class::Unreachable),
        (Mood::Garbled, Class::Protocol),
        (Mood::Confused, Class::Protocol),
    ] {
        let lab = Lab::new(Kind::Vault);
        let wrapped = lab.both().unwrap();
        lab.at(|vault| vault.mood = mood.clone());
        for error in [lab.wrap().unwrap_err(), lab.unwrap(&wrapped).unwrap_err()] {
            let same = match (error.class(), class) {
                (Class::Throttled { .. }, Class::Throttled { .. }) => true,
                (found, class) => found == class,
            };
            assert!(same, "{mood:?}: {error}");
        }
        lab.at(|vault| vault.mood = Mood::Well);
        // A round of retries may have to pass.
        let start = std::time::Instant::now();
        while let Err(error) = lab.unwrap(&wrapped) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{mood:?}: {error}"
            );
        }
    }
}

#[test]
fn a_use_of_a_key_has_ids_on_both_sides() {
    let lab = Lab::new(Kind::Vault);
    let id = Uuid::new_v4();
    let (wrapped, notes) = wait(call::observed(
        id,
        lab.provider.wrap(&key(KEY), &payload(), AAD),
    ));
    wrapped.unwrap();
    assert!(Uuid::parse_str(&notes.request_id.unwrap()).is_ok());
    let state = lab.azure.state();
    let mut asked = state.seen.iter().filter(|(name, _)| *name == "vault");
    assert!(asked.all(|(_, request)| {
        request.header("x-ms-client-request-id") == Some(&*id.to_string())
    }));
}

#[test]
fn a_wrap_for_another_volume_or_by_a_stranger_does_not_open() {
    let lab = Lab::new(Kind::Vault);
    let wrapped = lab.wrap().unwrap();
    let error = wait(lab.provider.unwrap(&wrapped, b"volume 2")).unwrap_err();
    assert_eq!(error.class(), Class::BadKey);
    // Whoever has the public key makes what opens, and is bound to nothing.
    let mut forged = wrapped.clone();
    let at = forged.bytes.len() - 256;
    let sealed = lab.at(|vault| {
        let version: &Version = vault.latest(KEY);
        version.wrap("RSA-OAEP-256", &[0x42; 96]).unwrap()
    });
    forged.bytes.splice(at.., sealed);
    let error = wait(lab.provider.unwrap(&forged, AAD)).unwrap_err();
    assert_eq!(error.class(), Class::BadKey);
}
