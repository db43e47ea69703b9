//! The files that say whom to trust: a host whose files are wrong asks nobody.

use std::os::unix::fs::PermissionsExt;

use sealblk::error::{Explain as _, Kind};

use super::check;
use super::hostile::Hostile;
use super::sites::{self, Host};

#[test]
fn authorities_that_are_missing_broken_or_anybody_s_are_not_trusted() {
    let host = Host::new();
    let good = host.authority.certificate_pem();
    let server = Hostile::tls(&host.authority.server(), |_| (), Box::new(|_| ()));
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA!\n-----END CERTIFICATE-----\n";
    let states: [(&str, &[u8], u32, Kind, &str); 4] = [
        ("empty", b"", 0o600, Kind::Usage, "there is no certificate"),
        (
            "garbage",
            &[0xff; 4096],
            0o600,
            Kind::Usage,
            "there is no certificate",
        ),
        (
            "broken",
            broken,
            0o600,
            Kind::Usage,
            "not a certificate in PEM",
        ),
        (
            "writable by all",
            &good,
            0o666,
            Kind::Permission,
            "mode 0666",
        ),
    ];
    for site in sites::with_tls() {
        for (state, bytes, mode, kind, told) in states {
            let what = format!("{}: {state}", site.name);
            let path = host.write("ca.pem", bytes);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let client = site.client(&host, server.port);
            let error = client.wrap().expect_err(&what);
            check(&error, &what);
            let text = error.to_string();
            assert!(
                text.contains(told) && text.contains("ca.pem"),
                "{what}: {text}"
            );
            assert_eq!(error.kind(), kind, "{what}");
        }
        std::fs::remove_file(host.path("ca.pem")).unwrap();
        let error = site.client(&host, server.port).wrap().expect_err(site.name);
        check(&error, site.name);
        assert_eq!(error.kind(), Kind::NotFound, "{}: {error}", site.name);
        host.write("ca.pem", &good);
    }
    assert_eq!(server.taken(), 0, "nobody was asked");
}
