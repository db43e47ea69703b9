//! The clouds: which vaults are in which, and who gives out identities there.
//!
//! A vault tells where to log in. It is believed as far as its own cloud goes:
//! see [`super::challenge`].

/// One cloud, with sign-in hosts and key services of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cloud {
    /// For messages.
    pub name: &'static str,
    /// Where identities of this cloud get their tokens.
    pub authority: &'static str,
    /// The names that this authority has, which vaults may send us to.
    pub sign_in_hosts: &'static [&'static str],
    /// The domains of its key services, each of which is the resource that
    /// tokens are for, too.
    pub domains: &'static [&'static str],
}

const CLOUDS: [Cloud; 3] = [
    Cloud {
        name: "Azure",
        authority: "https://login.microsoftonline.com",
        sign_in_hosts: &[
            "login.microsoftonline.com",
            "login.microsoft.com",
            "login.windows.net",
        ],
        domains: &["vault.azure.net", "managedhsm.azure.net"],
    },
    Cloud {
        name: "Azure Government",
        authority: "https://login.microsoftonline.us",
        sign_in_hosts: &[
            "login.microsoftonline.us",
            "login-us.microsoftonline.com",
            "login.usgovcloudapi.net",
        ],
        domains: &["vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net"],
    },
    Cloud {
        name: "Azure in China",
        authority: "https://login.chinacloudapi.cn",
        sign_in_hosts: &["login.chinacloudapi.cn", "login.partner.microsoftonline.cn"],
        domains: &["vault.azure.cn", "managedhsm.azure.cn"],
    },
];

/// The cloud that the host `vault` is in, and the domain it has there.
pub(super) fn of_vault(vault: &str) -> Option<(&'static Cloud, &'static str)> {
    CLOUDS.iter().find_map(|cloud| {
        let domain = cloud
            .domains
            .iter()
            .find(|domain| is_below(vault, domain))?;
        Some((cloud, *domain))
    })
}

/// Whether the host `name` lies below `domain`, and is not `domain` itself.
pub(super) fn is_below(name: &str, domain: &str) -> bool {
    name.len() > domain.len() + 1
        && name
            .to_ascii_lowercase()
            .strip_suffix(&domain.to_ascii_lowercase())
            .is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_is_in_the_cloud_of_its_domain() {
        for (vault, authority) in [
            ("disks.vault.azure.net", "https://login.microsoftonline.com"),
            (
                "HSM.managedhsm.azure.net",
                "https://login.microsoftonline.com",
            ),
            (
                "x.vault.usgovcloudapi.net",
                "https://login.microsoftonline.us",
            ),
            ("x.vault.azure.cn", "https://login.chinacloudapi.cn"),
        ] {
            assert_eq!(of_vault(vault).unwrap().0.authority, authority);
        }
        for other in [
            "vault.azure.net",
            ".vault.azure.net",
            "disksvault.azure.net",
            "x.vault.azure.net.example",
            "127.0.0.1",
            "",
        ] {
            assert_eq!(of_vault(other), None, "{other:?}");
        }
    }
}
