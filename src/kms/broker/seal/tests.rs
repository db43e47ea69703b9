use openssl::derive::Deriver;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey};
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead};

use super::*;

fn keys() -> (PrivateKey, PrivateKey) {
    (
        PrivateKey::generate().unwrap(),
        PrivateKey::generate().unwrap(),
    )
}

fn message(text: &[u8]) -> Secret {
    Secret::copy_of(text).unwrap()
}

#[test]
fn a_request_opens_for_that_broker_from_that_host_alone() {
    let (host, broker) = keys();
    let frame = request(&host, "hv1", broker.public(), &message(b"hello")).unwrap();
    let opened = open_request(&broker, host.public(), &frame).unwrap();
    assert_eq!(&*opened, b"hello");

    let (other, _) = keys();
    let refused = |result: Result<Secret, Error>| matches!(result, Err(Error::Unauthentic));
    assert!(refused(open_request(&other, host.public(), &frame)));
    assert!(refused(open_request(&broker, other.public(), &frame)));
    // One's own request is not one from the other.
    assert!(refused(open_request(&broker, broker.public(), &frame)));
    for change in [
        |frame: &mut Frame| frame.host = "hv2".into(),
        |frame: &mut Frame| frame.ciphertext[0] ^= 1,
        |frame: &mut Frame| *frame.ciphertext.last_mut().unwrap() ^= 1,
        |frame: &mut Frame| frame.ciphertext.truncate(15),
        |frame: &mut Frame| frame.enc[0] ^= 1,
        |frame: &mut Frame| frame.enc.clear(),
        |frame: &mut Frame| frame.enc = vec![0; 32],
    ] {
        let mut changed = frame.clone();
        change(&mut changed);
        assert!(refused(open_request(&broker, host.public(), &changed)));
    }
    let mut newer = frame;
    newer.version = 2;
    let newer = open_request(&broker, host.public(), &newer);
    assert!(matches!(newer, Err(Error::Version(2))));
}

#[test]
fn an_answer_opens_for_that_request_alone() {
    let (host, broker) = keys();
    let ask = || request(&host, "hv1", broker.public(), &message(b"same")).unwrap();
    let (first, second) = (ask(), ask());
    assert_ne!(first, second, "no two frames are the same");
    let frame = answer(&broker, host.public(), &first, &message(b"yes")).unwrap();
    let opened = open_answer(&host, broker.public(), &first, &frame).unwrap();
    assert_eq!(&*opened, b"yes");
    let refused = |request, from, frame| {
        matches!(
            open_answer(&host, from, request, frame),
            Err(Error::Unauthentic)
        )
    };
    assert!(refused(&second, broker.public(), &frame));
    assert!(refused(&first, keys().0.public(), &frame));
    // A request that comes back is not its answer.
    assert!(refused(&first, broker.public(), &first));
}

#[test]
fn a_key_with_which_nothing_can_be_agreed_on_is_refused() {
    let (host, _) = keys();
    for bytes in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let weak = PublicKey::new(bytes);
        let error = request(&host, "hv1", weak, &message(b"x")).unwrap_err();
        assert!(matches!(error, Error::Key(key) if key == weak));
    }
}

#[test]
fn a_public_key_has_one_spelling() {
    let (host, _) = keys();
    let text = host.public().to_string();
    assert_eq!(text.parse::<PublicKey>().unwrap(), host.public());
    for bad in [
        "",
        "A",
        "AAAA",
        &text[1..],
        &format!("{text}A"),
        &format!(" {text}"),
    ] {
        let error = bad.parse::<PublicKey>().unwrap_err();
        assert!(error.contains("broker pubkey"), "{error}");
    }
}

/// HPKE's receiving end in mode *auth* as RFC 9180 writes it down, with
/// nothing but OpenSSL's primitives: an independent judge.
struct Judge {
    aead_id: u16,
    key_bytes: u16,
    cipher: Cipher,
}

const KEM_ID: u16 = 0x20;
const KDF_ID: u16 = 1;
const MODE_AUTH: u8 = 2;

fn extract(suite: &[u8], salt: &[u8], label: &str, ikm: &[u8]) -> Vec<u8> {
    // An empty HMAC key is the same as a block of zeroes.
    let salt = if salt.is_empty() { &[0; 32] } else { salt };
    let input = [b"HPKE-v1", suite, label.as_bytes(), ikm].concat();
    hmac(salt, &input)
}

fn hmac(key: &[u8], input: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
    signer.sign_oneshot_to_vec(input).unwrap()
}

/// One block is enough for all that is asked.
fn expand(suite: &[u8], key: &[u8], label: &str, info: &[u8], length: u16) -> Vec<u8> {
    assert!(length <= 32);
    let input = [
        &length.to_be_bytes()[..],
        b"HPKE-v1",
        suite,
        label.as_bytes(),
        info,
        &[1],
    ]
    .concat();
    hmac(key, &input)[..usize::from(length)].to_vec()
}

fn agree(private: &[u8], public: &[u8]) -> Vec<u8> {
    let private = PKey::private_key_from_raw_bytes(private, Id::X25519).unwrap();
    let public = PKey::public_key_from_raw_bytes(public, Id::X25519).unwrap();
    let mut deriver = Deriver::new(&private).unwrap();
    deriver.set_peer(&public).unwrap();
    deriver.derive_to_vec().unwrap()
}

impl Judge {
    fn open(
        &self,
        (private, public): (&[u8], &[u8]),
        from: &[u8],
        enc: &[u8],
        info: &[u8],
        aad: &[u8],
        ciphertext: &[u8],
    ) -> Vec<u8> {
        let kem = [b"KEM", &KEM_ID.to_be_bytes()[..]].concat();
        let agreed = [agree(private, enc), agree(private, from)].concat();
        let context = [enc, public, from].concat();
        let eae = extract(&kem, b"", "eae_prk", &agreed);
        let shared = expand(&kem, &eae, "shared_secret", &context, 32);

        let ids = [KEM_ID, KDF_ID, self.aead_id].map(u16::to_be_bytes);
        let suite = [b"HPKE", &ids.concat()[..]].concat();
        let psk_id = extract(&suite, b"", "psk_id_hash", b"");
        let info = extract(&suite, b"", "info_hash", info);
        let context = [&[MODE_AUTH][..], &psk_id, &info].concat();
        let secret = extract(&suite, &shared, "secret", b"");
        let key = expand(&suite, &secret, "key", &context, self.key_bytes);
        let nonce = expand(&suite, &secret, "base_nonce", &context, 12);
        let (ciphertext, tag) = ciphertext.split_at(ciphertext.len() - 16);
        decrypt_aead(self.cipher, &key, Some(&nonce), aad, ciphertext, tag).unwrap()
    }
}

#[test]
fn the_judge_opens_what_rfc_9180_says() {
    // Appendix A.1.3 of RFC 9180: X25519, HKDF-SHA256, AES-128-GCM, mode auth.
    let read = |text: &str| hex::decode(text).unwrap();
    let opened = Judge {
        aead_id: 1,
        key_bytes: 16,
        cipher: Cipher::aes_128_gcm(),
    }
    .open(
        (
            &read("fdea67cf831f1ca98d8e27b1f6abeb5b7745e9d35348b80fa407ff6958f9137e"),
            &read("1632d5c2f71c2b38d0a8fcc359355200caa8b1ffdf28618080466c909cb69b2e"),
        ),
        &read("8b0c70873dc5aecb7f9ee4e62406a397b350e57012be45cf53b7105ae731790b"),
        &read("23fb952571a14a25e3d678140cd0e5eb47a0961bb18afcf85896e5453c312e76"),
        b"Ode on a Grecian Urn",
        b"Count-0",
        &read("5fd92cc9d46dbf8943e72a07e42f363ed5f721212cd90bcfd072bfd9f44e06b80fd17824947496e21b680c141b"),
    );
    assert_eq!(opened, b"Beauty is truth, truth beauty");
}

#[test]
fn the_judge_opens_what_we_seal() {
    let judge = Judge {
        aead_id: 2,
        key_bytes: 32,
        cipher: Cipher::aes_256_gcm(),
    };
    let (host, broker) = keys();
    let frame = request(&host, "hv1", broker.public(), &message(b"question")).unwrap();
    let aad = [
        &[0, 0, 0, 1, 0, 0, 0, 3][..],
        b"hv1",
        broker.public().bytes(),
    ]
    .concat();
    let opened = judge.open(
        (broker.bytes(), broker.public().bytes()),
        host.public().bytes(),
        &frame.enc,
        b"sealblk broker request v1",
        &aad,
        &frame.ciphertext,
    );
    assert_eq!(opened, b"question");

    let reply = answer(&broker, host.public(), &frame, &message(b"answer")).unwrap();
    let asked = [&frame.enc[..], &frame.ciphertext].concat();
    let opened = judge.open(
        (host.bytes(), host.public().bytes()),
        broker.public().bytes(),
        &reply.enc,
        b"sealblk broker answer v1",
        &openssl::sha::sha256(&asked),
        &reply.ciphertext,
    );
    assert_eq!(opened, b"answer");
}
