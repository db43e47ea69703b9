//! Who may do what: roles, and the operations that each permits.
//!
//! The one who attaches disks touches no key set, and the one who changes key
//! sets attaches no disk. Nobody but root has both, unless configured so; and
//! root's right can be taken away by configuration, so that also root acts in
//! a role that somebody gave it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::peer::Peer;
use crate::config::daemon::{self, DEFAULT_GROUP, Principal};
use crate::config::{Group, user};

/// What somebody is to the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// May look, and have disks verified.
    Reader,
    /// May attach, detach, limit, resize, freeze and upgrade, and look.
    Operator,
    /// May change and check key sets, destroy the keys of volumes, and look.
    KeyAdmin,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Reader, Role::Operator, Role::KeyAdmin];

    /// As it is configured, and stands in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::KeyAdmin => "key-admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To see disks, key sets, status, metrics, records.
    Look,
    /// To attach a disk.
    Attach,
    /// To detach one.
    Detach,
    /// To change one: to limit what its guest may do per second, or resize it.
    /// Which of them is in a body that nobody reads before it is permitted.
    Change,
    /// To make a key set.
    KeySetCreate,
    /// To change one.
    KeySetEdit,
    /// To remove one.
    KeySetRemove,
    /// To have the service asked for its key.
    KeySetCheck,
    /// To have the configuration read again.
    Reload,
    /// To destroy the key of a volume.
    VolumeErase,
    /// To make or destroy wraps for break-glass access.
    WrapsChange,
    /// To have the volumes of a key set follow its key.
    KeySetRotate,
    /// To make a key set one of another key or service.
    KeySetSwitch,
    /// To have a volume forgotten that is gone for good.
    VolumeForget,
    /// To have a disk verified that the manager knows.
    Verify,
    /// To freeze a disk for a snapshot.
    Freeze,
    /// To let it go on.
    Thaw,
    /// To have all data of disks re-encrypted, decrypted, or brought back.
    Rekey,
    /// To say how fast that goes, and whether it rests.
    RekeyPace,
    /// To have workers and manager replaced by new processes.
    Upgrade,
    /// To try again what waits because the disk below fails, or to have it fail.
    Resume,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 21] = [
        Operation::Look,
        Operation::Attach,
        Operation::Detach,
        Operation::Change,
        Operation::KeySetCreate,
        Operation::KeySetEdit,
        Operation::KeySetRemove,
        Operation::KeySetCheck,
        Operation::Reload,
        Operation::VolumeErase,
        Operation::WrapsChange,
        Operation::KeySetRotate,
        Operation::KeySetSwitch,
        Operation::VolumeForget,
        Operation::Verify,
        Operation::Freeze,
        Operation::Thaw,
        Operation::Rekey,
        Operation::RekeyPace,
        Operation::Upgrade,
        Operation::Resume,
    ];

    /// As it stands in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Look => "look",
            Operation::Attach => "attach",
            Operation::Detach => "detach",
            Operation::Change => "change",
            Operation::KeySetCreate => "key-set-create",
            Operation::KeySetEdit => "key-set-edit",
            Operation::KeySetRemove => "key-set-remove",
            Operation::KeySetCheck => "key-set-check",
            Operation::Reload => "reload",
            Operation::VolumeErase => "volume-erase",
            Operation::WrapsChange => "wraps-change",
            Operation::KeySetRotate => "key-set-rotate",
            Operation::KeySetSwitch => "key-set-switch",
            Operation::VolumeForget => "volume-forget",
            Operation::Verify => "verify",
            Operation::Freeze => "freeze",
            Operation::Thaw => "thaw",
            Operation::Rekey => "rekey",
            Operation::RekeyPace => "rekey-pace",
            Operation::Upgrade => "upgrade",
            Operation::Resume => "resume",
        }
    }

    /// The roles that permit it; any of them will do.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Operation::Look => &Role::ALL,
            // Nothing is changed, and nothing of the data or the key is told.
            Operation::Verify => &Role::ALL,
            Operation::Attach
            | Operation::Detach
            | Operation::Change
            | Operation::Freeze
            | Operation::Thaw
            | Operation::Upgrade
            | Operation::Resume => &[Role::Operator],
            Operation::KeySetCreate
            | Operation::KeySetEdit
            | Operation::KeySetRemove
            | Operation::KeySetCheck
            | Operation::KeySetRotate
            | Operation::KeySetSwitch
            | Operation::VolumeForget => &[Role::KeyAdmin],
            // The file is not theirs to write: it only takes effect.
            Operation::Reload => &[Role::Operator, Role::KeyAdmin],
            // Also of one that is attached: whoever controls a key can take it
            // away from a disk at its service, too.
            Operation::VolumeErase | Operation::WrapsChange => &[Role::KeyAdmin],
            // It ends a key and makes another one, or does away with it.
            Operation::Rekey => &[Role::KeyAdmin],
            // Who answers for the speed of guests may slow it down, and who wants
            // the key gone may see to that; neither decides what the data becomes.
            Operation::RekeyPace => &[Role::Operator, Role::KeyAdmin],
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Somebody lacks the role for what they want.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "user {uid} may not do this: it takes the role {}, and {}",
    any_of(needs),
    has(roles)
)]
pub struct Refused {
    /// Who.
    pub uid: u32,
    /// The roles of which one would do.
    pub needs: &'static [Role],
    /// The roles they have.
    pub roles: BTreeSet<Role>,
}

fn any_of(roles: &[Role]) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    names.join(" or ")
}

fn has(roles: &BTreeSet<Role>) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    match names.as_slice() {
        [] => "they have none".into(),
        names => format!("they have {}", names.join(", ")),
    }
}

/// Roles of users and groups, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    users: BTreeMap<u32, BTreeSet<Role>>,
    groups: BTreeMap<u32, BTreeSet<Role>>,
}

impl Roles {
    /// Looks up who was named. `own` is the user that the manager runs as.
    /// Also returns who could not be found: they have no role, which does
    /// harm to nobody but them.
    pub fn resolve(config: &daemon::Roles, own: u32) -> (Self, Vec<String>) {
        let mut roles = Roles::default();
        let mut missing = Vec::new();
        if config.root {
            for uid in [0, own] {
                roles.users.entry(uid).or_default().extend(Role::ALL);
            }
        }
        let lists = [
            (Role::Reader, &config.reader),
            (Role::Operator, &config.operator),
            (Role::KeyAdmin, &config.key_admin),
        ];
        for (role, list) in lists {
            for principal in list {
                match roles.entry(principal) {
                    Ok(entry) => {
                        entry.insert(role);
                    }
                    // It is named by default, and need not be there.
                    Err(_) if *principal == Principal::Group(DEFAULT_GROUP.into()) => {}
                    Err(why) => missing.push(format!("[daemon.roles] {role}: {why}")),
                }
            }
        }
        (roles, missing)
    }

    fn entry(&mut self, principal: &Principal) -> Result<&mut BTreeSet<Role>, String> {
        Ok(match principal {
            Principal::User(name) => self.users.entry(user::uid_of(name)?).or_default(),
            Principal::Group(name) => self.groups.entry(name.parse::<Group>()?.gid).or_default(),
        })
    }

    /// The roles of a peer: as a user, and by its groups.
    pub fn of(&self, peer: &Peer) -> BTreeSet<Role> {
        let of_user = self.users.get(&peer.uid).into_iter();
        let of_groups = self
            .groups
            .iter()
            .filter(|(gid, _)| peer.is_in(**gid))
            .map(|(_, roles)| roles);
        of_user.chain(of_groups).flatten().copied().collect()
    }

    /// The role in which a peer may do something.
    ///
    /// # Errors
    /// When it has none that permits it.
    pub fn permit(&self, peer: &Peer, operation: Operation) -> Result<Role, Refused> {
        let roles = self.of(peer);
        // Reading is done as a reader by those who have several.
        match operation.roles().iter().find(|role| roles.contains(role)) {
            Some(role) => Ok(*role),
            None => Err(Refused {
                uid: peer.uid,
                needs: operation.roles(),
                roles,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principals(list: &[&str]) -> Vec<Principal> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn config(root: bool) -> daemon::Roles {
        daemon::Roles {
            root,
            reader: principals(&["100", "@500"]),
            operator: principals(&["200", "@600"]),
            key_admin: principals(&["300", "@700"]),
        }
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid,
            gid,
            groups: groups.to_vec(),
            pid: None,
        }
    }

    /// What a peer may do, besides looking.
    fn permitted(roles: &Roles, peer: &Peer) -> Vec<Operation> {
        Operation::ALL
            .into_iter()
            .filter(|operation| roles.permit(peer, *operation).is_ok())
            .collect()
    }

    const LOOK: &[Operation] = &[Operation::Look, Operation::Verify];
    const OPERATOR: &[Operation] = &[
        Operation::Look,
        Operation::Attach,
        Operation::Detach,
        Operation::Change,
        Operation::Reload,
        Operation::Verify,
        Operation::Freeze,
        Operation::Thaw,
        Operation::RekeyPace,
        Operation::Upgrade,
        Operation::Resume,
    ];
    const KEY_ADMIN: &[Operation] = &[
        Operation::Look,
        Operation::KeySetCreate,
        Operation::KeySetEdit,
        Operation::KeySetRemove,
        Operation::KeySetCheck,
        Operation::Reload,
        Operation::VolumeErase,
        Operation::WrapsChange,
        Operation::KeySetRotate,
        Operation::KeySetSwitch,
        Operation::VolumeForget,
        Operation::Verify,
        Operation::Rekey,
        Operation::RekeyPace,
    ];

    #[test]
    fn users_and_groups_have_what_their_role_permits_and_nothing_else() {
        let (roles, missing) = Roles::resolve(&config(true), 900);
        assert_eq!(missing, [""; 0]);
        for (peer, expected) in [
            (peer(1, 1, &[]), &[][..]),
            (peer(100, 1, &[]), LOOK),
            (peer(1, 500, &[]), LOOK),
            (peer(1, 1, &[9, 500]), LOOK),
            (peer(200, 1, &[]), OPERATOR),
            (peer(1, 600, &[]), OPERATOR),
            (peer(1, 1, &[600]), OPERATOR),
            (peer(300, 1, &[]), KEY_ADMIN),
            (peer(1, 1, &[700, 500]), KEY_ADMIN),
            // Numbers of users and groups are different things.
            (peer(600, 200, &[300]), &[]),
            (peer(0, 0, &[]), &Operation::ALL),
            (peer(900, 1, &[]), &Operation::ALL),
            (peer(1, 1, &[600, 700]), &Operation::ALL),
        ] {
            assert_eq!(permitted(&roles, &peer), expected, "{peer:?}");
        }
    }

    #[test]
    fn duties_are_separate_for_every_role() {
        for operation in Operation::ALL {
            let both = [Role::Operator, Role::KeyAdmin]
                .iter()
                .all(|role| operation.roles().contains(role));
            let looks = matches!(operation, Operation::Look | Operation::Verify);
            let shared = [Operation::Reload, Operation::RekeyPace];
            let harmless = looks || shared.contains(&operation);
            assert_eq!(both, harmless, "{operation}");
            let reads = operation.roles().contains(&Role::Reader);
            assert_eq!(reads, looks, "{operation}");
        }
    }

    #[test]
    fn root_can_be_left_without_a_role() {
        let (roles, _) = Roles::resolve(&config(false), 900);
        assert_eq!(permitted(&roles, &peer(0, 0, &[])), []);
        assert_eq!(permitted(&roles, &peer(900, 0, &[])), []);
        let mut operator = config(false);
        operator.operator = principals(&["root"]);
        let (roles, _) = Roles::resolve(&operator, 900);
        assert_eq!(permitted(&roles, &peer(0, 0, &[])), OPERATOR);
    }

    #[test]
    fn who_does_not_exist_is_told_and_has_no_role() {
        let mut config = config(true);
        config.operator = principals(&["no-such-user-here", "200", "@no-such-group-here"]);
        config.reader = principals(&["@sealblk"]);
        let (roles, missing) = Roles::resolve(&config, 0);
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].contains("operator: there is no user \"no-such-user-here\""));
        assert!(missing[1].contains("operator: there is no group \"no-such-group-here\""));
        assert_eq!(permitted(&roles, &peer(200, 1, &[])), OPERATOR);
    }

    #[test]
    fn a_refusal_says_what_it_takes() {
        let (roles, _) = Roles::resolve(&config(true), 0);
        let refused = roles.permit(&peer(100, 1, &[]), Operation::Attach);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "user 100 may not do this: it takes the role operator, and they have reader"
        );
        let refused = roles.permit(&peer(1, 1, &[]), Operation::Reload);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "user 1 may not do this: it takes the role operator or key-admin, and they have none"
        );
    }
}
