//! A report with a signature around it.
//!
//! The form is that of DSSE, the *Dead Simple Signing Envelope* (version 1.0,
//! <https://github.com/secure-systems-lab/dsse>): the bytes of the report are
//! carried in base64 and signed as they are, together with their type, so that
//! nobody has to agree on how JSON is written, and no other kind of document
//! that the key may sign can be taken for a report.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::host_key::{HostKey, PublicKey};
use super::report::{Report, TYPE, VERSION};

/// The type of what is signed.
pub const PAYLOAD_TYPE: &str = "application/vnd.sealblk.verification+json";

/// No report has a thousandth of that.
const LONGEST: usize = 16 << 20;

/// A signed report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The bytes of the report, in base64.
    pub payload: String,
    /// [`PAYLOAD_TYPE`].
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// One signature.
    pub signatures: Vec<Signature>,
}

/// A signature and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public key, in hexadecimal digits. Says which key to check with, and
    /// is not to be believed.
    pub keyid: String,
    /// The signature, in base64.
    pub sig: String,
}

/// What is signed of a payload.
fn signed_bytes(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Envelope {
    /// Signs a report.
    ///
    /// # Errors
    /// Never, unless the key is none.
    pub fn sign(report: &Report, key: &HostKey) -> Result<Self, Error> {
        let payload = serde_json::to_vec(report).map_err(|_| Error::Internal)?;
        let signature = key.sign(&signed_bytes(PAYLOAD_TYPE, &payload))?;
        Ok(Envelope {
            payload: BASE64.encode(&payload),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: vec![Signature {
                keyid: key.public().to_string(),
                sig: BASE64.encode(signature),
            }],
        })
    }

    /// Reads an envelope. Nothing of it is checked yet.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        if text.len() > LONGEST {
            return Err(Error::NotSigned("it is too long".into()));
        }
        serde_json::from_slice(text).map_err(|error| Error::NotSigned(error.to_string()))
    }

    /// The report, if `key` has signed it.
    ///
    /// # Errors
    /// When it has not, or it is no report.
    pub fn open(&self, key: &PublicKey) -> Result<Report, Error> {
        let not = |why: &dyn fmt::Display| Error::NotSigned(why.to_string());
        if self.payload_type != PAYLOAD_TYPE {
            return Err(not(&format_args!("its type is {:?}", self.payload_type)));
        }
        let [signature] = self.signatures.as_slice() else {
            return Err(not(&"it must have one signature"));
        };
        if signature.keyid != key.to_string() {
            return Err(Error::OtherKey {
                expected: key.to_string(),
                found: signature.keyid.chars().take(100).collect(),
            });
        }
        let payload = BASE64.decode(&self.payload).map_err(|error| not(&error))?;
        let sig = BASE64.decode(&signature.sig).map_err(|error| not(&error))?;
        if !key.verifies(&signed_bytes(&self.payload_type, &payload), &sig) {
            return Err(Error::Forged);
        }
        // From here on it is what the host has written.
        let report: Report = serde_json::from_slice(&payload).map_err(|error| not(&error))?;
        match report.kind == TYPE && report.version == VERSION {
            true => Ok(report),
            false => Err(not(&format_args!(
                "it is a {:?} of version {}, and this sealblk reads version {VERSION}",
                report.kind, report.version
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::verify::report::{Check, Disk, Expect, Outcome, Requester, Verdict};

    fn report() -> Report {
        Report {
            kind: TYPE.into(),
            version: VERSION,
            time: "2031-02-28T23:59:59Z".parse().unwrap(),
            took_ms: 12,
            host: "hv-1".into(),
            sealblk: "0".into(),
            requester: Requester {
                uid: 7,
                role: "reader".into(),
            },
            nonce: Some("again".into()),
            expect: Expect::Encrypted,
            verdict: Verdict::Proved,
            disk: Disk::default(),
            scope: None,
            checks: vec![Check::new("header", Outcome::Passed, "good").with("update", 3)],
        }
    }

    fn key(directory: &tempfile::TempDir, name: &str) -> HostKey {
        HostKey::make(&directory.path().join(name)).unwrap()
    }

    #[test]
    fn a_signed_report_checks_with_its_key_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, other) = (key(&directory, "a"), key(&directory, "b"));
        let envelope = Envelope::sign(&report(), &ours).unwrap();
        assert_eq!(envelope.open(&ours.public()).unwrap(), report());
        assert!(matches!(
            envelope.open(&other.public()).unwrap_err(),
            Error::OtherKey { .. }
        ));
        // Somebody else's signature under our name.
        let mut forged = Envelope::sign(&report(), &other).unwrap();
        forged.signatures[0].keyid = ours.public().to_string();
        assert!(matches!(
            forged.open(&ours.public()).unwrap_err(),
            Error::Forged
        ));
        // Written down in another way it is the same.
        let pretty = serde_json::to_vec_pretty(&envelope).unwrap();
        let read = Envelope::parse(&pretty).unwrap();
        assert_eq!(read.open(&ours.public()).unwrap(), report());
    }

    /// Whatever byte is changed, and to whatever: it does not check, or still
    /// says the same.
    #[test]
    fn no_byte_can_be_changed() {
        let directory = tempfile::tempdir().unwrap();
        let key = key(&directory, "a");
        let envelope = Envelope::sign(&report(), &key).unwrap();
        let text = serde_json::to_vec(&envelope).unwrap();
        let (mut checked, mut same) = (0, 0);
        for place in 0..text.len() {
            for flip in [0x01, 0x02, 0x04, 0x20, 0x40, 0x80] {
                let mut edited = text.clone();
                edited[place] ^= flip;
                checked += 1;
                if let Ok(report) =
                    Envelope::parse(&edited).and_then(|read| read.open(&key.public()))
                {
                    assert_eq!(report, self::report(), "byte {place}");
                    same += 1;
                }
            }
        }
        assert!(checked > 1000 && same == 0, "{same} of {checked}");
        // And the report itself, with its carrier made to fit.
        let payload = BASE64.decode(&envelope.payload).unwrap();
        for place in 0..payload.len() {
            let mut edited = payload.clone();
            edited[place] ^= 1;
            let edited = Envelope {
                payload: BASE64.encode(&edited),
                ..envelope.clone()
            };
            assert!(matches!(
                edited.open(&key.public()).unwrap_err(),
                Error::Forged
            ));
        }
    }

    #[test]
    fn what_is_no_signed_report_is_told_from_a_forged_one() {
        let directory = tempfile::tempdir().unwrap();
        let key = key(&directory, "a");
        let envelope = Envelope::sign(&report(), &key).unwrap();
        let edits: [fn(&mut Envelope); 4] = [
            |envelope| envelope.payload_type = "text/plain".into(),
            |envelope| envelope.signatures.clear(),
            |envelope| envelope.signatures.push(envelope.signatures[0].clone()),
            |envelope| envelope.payload.push('!'),
        ];
        for edit in edits {
            let mut edited = envelope.clone();
            edit(&mut edited);
            let error = edited.open(&key.public()).unwrap_err();
            assert!(matches!(error, Error::NotSigned(_)), "{error}");
        }
        for text in ["", "{}", "null", r#"{"type": "sealblk-verification"}"#] {
            let error = Envelope::parse(text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::NotSigned(_)), "{text}");
        }
    }

    /// OpenSSL, which knows nothing of us, says the same of it.
    #[test]
    fn openssl_checks_it() {
        let directory = tempfile::tempdir().unwrap();
        let key = key(&directory, "a");
        let envelope = Envelope::sign(&report(), &key).unwrap();
        let payload = BASE64.decode(&envelope.payload).unwrap();
        let head = format!("DSSEv1 41 {PAYLOAD_TYPE} {} ", payload.len());
        assert_eq!(PAYLOAD_TYPE.len(), 41);
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let message = write("message", &[head.as_bytes(), &payload].concat());
        let signature = write("sig", &BASE64.decode(&envelope.signatures[0].sig).unwrap());
        let public = write("public.pem", key.public().pem().as_bytes());
        let status = Command::new("openssl")
            .args(["pkeyutl", "-verify", "-pubin", "-rawin", "-inkey"])
            .arg(&public)
            .arg("-in")
            .arg(&message)
            .arg("-sigfile")
            .arg(&signature)
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
    }
}
