//! Files as they can be, and handshakes with OpenSSL as the server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use openssl::ssl::{SslAcceptor, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tempfile::TempDir;

use super::*;
use crate::error::{Explain, Kind};
use crate::kms::Class;

#[allow(dead_code, reason = "shared with integration tests")]
#[path = "../../../tests/support/certificates.rs"]
mod certificates;
use certificates::{Authority, Issued};

/// The files of one client.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Files(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, text: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    fn trust(&self, authority: &Authority) -> Settings {
        Settings {
            ca_files: vec![self.write("ca.pem", &authority.certificate_pem())],
            client: None,
        }
    }

    fn client(&self, issued: &Issued) -> ClientCertificate {
        ClientCertificate {
            certificate: self.write("client.pem", &issued.certificate_pem()),
            key: SecretFile::new(self.write("client.key", &issued.key_pem())),
        }
    }
}

/// How each file fault is told.
fn refused(settings: Settings) -> (Kind, String) {
    let error = Tls::new(settings).config().unwrap_err();
    assert_eq!(error.class(), Class::Unreachable);
    assert!(!error.help().unwrap().is_empty());
    (error.kind(), error.to_string())
}

#[test]
fn each_faulty_file_is_told() {
    let files = Files::new();
    let authority = Authority::new("test authority");
    let good = files.client(&authority.client("host-1"));
    let with = |certificate: &Path, key: &Path| Settings {
        ca_files: Vec::new(),
        client: Some(ClientCertificate {
            certificate: certificate.into(),
            key: SecretFile::new(key),
        }),
    };
    let ca = |path: PathBuf| Settings {
        ca_files: vec![path],
        client: None,
    };
    let key = good.key.path().unwrap();
    let ours = Settings {
        client: Some(good.clone()),
        ..files.trust(&authority)
    };
    Tls::new(ours.clone()).config().unwrap();
    let based = |mut settings: Settings| {
        settings.ca_files.clone_from(&ours.ca_files);
        settings
    };

    let expired = authority.client_valid("host-1", (-3, -1));
    let expired = files.write("expired.pem", &expired.certificate_pem());
    let future = authority.client_valid("host-1", (2, 3));
    let future = files.write("future.pem", &future.certificate_pem());
    let stranger = files.write("other.key", &authority.client("host-2").key_pem());
    let open = files.write("open.key", &std::fs::read(&key).unwrap());
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    let old_ca = Authority::valid("old", (-9, -2)).certificate_pem();
    let broken = b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let missing = files.0.path().join("missing");

    for (settings, kind, told) in [
        (ca(missing.clone()), Kind::NotFound, "cannot read it"),
        (
            ca(files.write("empty", b"")),
            Kind::Usage,
            "there is no certificate",
        ),
        (ca(key.clone()), Kind::Usage, "there is no certificate"),
        (
            ca(files.write("broken", broken)),
            Kind::Usage,
            "not a certificate in PEM",
        ),
        (ca(files.write("old", &old_ca)), Kind::Key, "expired on 2"),
        (
            based(with(&missing, &key)),
            Kind::NotFound,
            "cannot read it",
        ),
        (based(with(&expired, &key)), Kind::Key, "expired on 2"),
        (based(with(&future, &key)), Kind::Key, "is valid from 2"),
        (
            based(with(&good.certificate, &missing)),
            Kind::NotFound,
            "does not exist",
        ),
        (
            based(with(&good.certificate, &open)),
            Kind::Permission,
            "0644",
        ),
        (
            based(with(&good.certificate, &good.certificate)),
            Kind::Usage,
            "no usable private key",
        ),
        (
            based(with(&good.certificate, &stranger)),
            Kind::Usage,
            "does not belong",
        ),
    ] {
        let (found, message) = refused(settings);
        assert!(message.contains(told), "{told:?}: {message}");
        assert_eq!(found, kind, "{message}");
    }
}

#[test]
fn a_bundle_may_hold_an_old_authority_beside_a_good_one() {
    let files = Files::new();
    let authority = Authority::new("good");
    let mut bundle = Authority::valid("old", (-9, -2)).certificate_pem();
    bundle.extend(authority.certificate_pem());
    let settings = Settings {
        ca_files: vec![files.write("bundle", &bundle)],
        client: None,
    };
    let server = Server::start(authority.server(), |_| ());
    server.handshake(&Tls::new(settings)).unwrap();
}

#[test]
fn a_replaced_file_is_taken_and_an_unchanged_one_not_read_again() {
    let files = Files::new();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let tls = Tls::new(files.trust(&old));
    let server = Server::start(new.server(), |_| ());
    assert!(server.handshake(&tls).is_err());
    let before = tls.config().unwrap();
    assert!(Arc::ptr_eq(&before, &tls.config().unwrap()));
    // As certificate managers do it.
    let fresh = files.write("ca.new", &new.certificate_pem());
    std::fs::rename(fresh, files.0.path().join("ca.pem")).unwrap();
    server.handshake(&tls).unwrap();
}

#[test]
fn each_failed_handshake_is_told() {
    let authority = Authority::new("ours");
    let files = Files::new();
    let anonymous = Tls::new(files.trust(&authority));
    let told = |server: &Server, tls: &Tls, expected: &str| {
        let error = server.handshake(tls).unwrap_err();
        assert_eq!(error.class(), Class::Unreachable);
        assert!(
            error.to_string().contains(expected),
            "{expected:?}: {error}"
        );
    };

    let stranger = Server::start(Authority::new("ours").server(), |_| ());
    told(&stranger, &anonymous, "authority that is not trusted");
    let elsewhere = Server::start(authority.server_at("127.0.0.2", (-1, 1)), |_| ());
    told(&elsewhere, &anonymous, "is for another host");
    let expired = Server::start(authority.server_at("127.0.0.1", (-3, -1)), |_| ());
    told(&expired, &anonymous, "has expired");
    let future = Server::start(authority.server_at("127.0.0.1", (1, 2)), |_| ());
    told(&future, &anonymous, "is not valid yet");
    let client = Server::start(authority.client("no server"), |_| ());
    told(&client, &anonymous, "");
    let old = Server::start(authority.server(), |acceptor| {
        acceptor.set_min_proto_version(None).unwrap();
        acceptor
            .set_max_proto_version(Some(SslVersion::TLS1_1))
            .unwrap();
        acceptor.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    });
    told(&old, &anonymous, "no version or cipher of TLS in common");

    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let mutual = Server::start(authority.server(), |acceptor| {
            acceptor.set_max_proto_version(Some(version)).unwrap();
            let mut store = X509StoreBuilder::new().unwrap();
            let pem = authority.certificate_pem();
            let trusted = openssl::x509::X509::from_pem(&pem).unwrap();
            store.add_cert(trusted).unwrap();
            acceptor.set_verify_cert_store(store.build()).unwrap();
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        });
        told(&mutual, &anonymous, "client certificate");
        let ours = Tls::new(Settings {
            client: Some(files.client(&authority.client("host-1"))),
            ..anonymous.settings().clone()
        });
        mutual.handshake(&ours).unwrap();
        let foreign = Authority::new("theirs").client("host-1");
        let foreign = Tls::new(Settings {
            client: Some(files.client(&foreign)),
            ..anonymous.settings().clone()
        });
        told(&mutual, &foreign, "does not accept our client certificate");
    }

    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = handshake(address.port(), &anonymous).unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    answer.join().unwrap();
}

/// A TLS server that sends one byte to each client, until it is dropped.
struct Server {
    port: u16,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(
        identity: Issued,
        configure: impl FnOnce(&mut openssl::ssl::SslAcceptorBuilder),
    ) -> Self {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_certificate(&identity.certificate).unwrap();
        acceptor.set_private_key(&identity.key).unwrap();
        configure(&mut acceptor);
        let acceptor = acceptor.build();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                if let Ok(mut tls) = acceptor.accept(stream.unwrap()) {
                    let _ = tls.write_all(b"!");
                    let _ = tls.shutdown();
                }
            }
        });
        Server {
            port,
            stop,
            thread: Some(thread),
        }
    }

    fn handshake(&self, tls: &Tls) -> Result<(), Error> {
        handshake(self.port, tls)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Connects and reads the byte: in TLS 1.3 a server refuses a client
/// certificate only after the client is done.
fn handshake(port: u16, tls: &Tls) -> Result<(), Error> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(tls.config().unwrap(), name).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, stream);
    match stream.read_exact(&mut [0]) {
        Ok(()) => Ok(()),
        Err(error) => {
            // As it comes out of an HTTP client: wrapped.
            let error = std::io::Error::other(error);
            Err(failure(&error, "127.0.0.1").unwrap_or_else(|| panic!("no TLS error: {error:?}")))
        }
    }
}

/// Whoever can write to the file of authorities decides whom we trust.
#[test]
fn authorities_are_read_from_no_file_that_others_can_write_to() {
    let files = Files::new();
    let authority = Authority::new("test");
    let settings = files.trust(&authority);
    let path = &settings.ca_files[0];
    files::roots(&settings.ca_files).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666)).unwrap();
    let error = Error::from(files::roots(&settings.ca_files).unwrap_err());
    assert_eq!(error.kind(), Kind::Permission, "{error}");
    assert!(error.help().unwrap().contains("cannot write"), "{error}");
    // Nobody is waited for.
    std::fs::remove_file(path).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
    let error = Error::from(files::roots(&settings.ca_files).unwrap_err());
    assert_eq!(error.kind(), Kind::Permission, "{error}");
}
