//! Answers of a KMIP server, or of somebody in its place.
//!
//! Taking them apart never panics, whatever was asked and in whichever version
//! of the protocol; what is accepted as TTLV is written back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealblk::kms::kmip::numbers::Operation;
use sealblk::kms::kmip::protocol::{self, Version};
use sealblk::kms::kmip::ttlv;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = ttlv::decode(bytes) else {
        return;
    };
    let written = message.encode().expect("secret memory");
    assert_eq!(written.len(), bytes.len());
    assert_eq!(ttlv::decode(&written).expect("it is ours"), message);

    for operation in [
        Operation::Create,
        Operation::Locate,
        Operation::Get,
        Operation::GetAttributes,
        Operation::Query,
        Operation::DiscoverVersions,
        Operation::Encrypt,
        Operation::Decrypt,
    ] {
        let Ok(payload) = protocol::answer(&message, operation) else {
            continue;
        };
        for version in Version::SPOKEN {
            let _ = protocol::got_attributes(version, payload);
            let _ = protocol::queried(version, payload);
        }
        let _ = protocol::discovered(payload);
        let _ = protocol::located(payload);
        let _ = protocol::identifier(payload);
        for wrapped in [false, true] {
            if let Ok(key) = protocol::got(payload, wrapped) {
                assert!(key.len() < bytes.len());
            }
        }
        if let Ok((data, tag)) = protocol::encrypted(payload, &[0; 12], 64) {
            assert_eq!((data.len(), tag.len()), (64, 16));
        }
        if let Ok(data) = protocol::decrypted(payload, 64) {
            assert_eq!(data.len(), 64);
        }
    }
});
