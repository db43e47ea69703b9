//! The numbers of KMIP: tags (KMIP 1.4, section 9.1.3.1), operations, states
//! and reasons (section 9.1.3.2), and what KMIP 2.0 added to them.
#![allow(missing_docs)] // Each is named as the specification names it.

/// Tags.
pub mod tag {
    use crate::kms::kmip::ttlv::Tag;

    pub const ATTRIBUTE: Tag = Tag(0x42_0008);
    pub const ATTRIBUTE_NAME: Tag = Tag(0x42_000a);
    pub const ATTRIBUTE_VALUE: Tag = Tag(0x42_000b);
    pub const BATCH_COUNT: Tag = Tag(0x42_000d);
    pub const BATCH_ITEM: Tag = Tag(0x42_000f);
    pub const BLOCK_CIPHER_MODE: Tag = Tag(0x42_0011);
    pub const CRYPTOGRAPHIC_ALGORITHM: Tag = Tag(0x42_0028);
    pub const CRYPTOGRAPHIC_LENGTH: Tag = Tag(0x42_002a);
    pub const CRYPTOGRAPHIC_PARAMETERS: Tag = Tag(0x42_002b);
    pub const CRYPTOGRAPHIC_USAGE_MASK: Tag = Tag(0x42_002c);
    pub const DEACTIVATION_DATE: Tag = Tag(0x42_002f);
    pub const ENCRYPTION_KEY_INFORMATION: Tag = Tag(0x42_0036);
    pub const INITIAL_DATE: Tag = Tag(0x42_0039);
    pub const IV_COUNTER_NONCE: Tag = Tag(0x42_003d);
    pub const KEY_BLOCK: Tag = Tag(0x42_0040);
    pub const KEY_FORMAT_TYPE: Tag = Tag(0x42_0042);
    pub const KEY_MATERIAL: Tag = Tag(0x42_0043);
    pub const KEY_VALUE: Tag = Tag(0x42_0045);
    pub const KEY_WRAPPING_DATA: Tag = Tag(0x42_0046);
    pub const KEY_WRAPPING_SPECIFICATION: Tag = Tag(0x42_0047);
    pub const MAXIMUM_ITEMS: Tag = Tag(0x42_004f);
    pub const MAXIMUM_RESPONSE_SIZE: Tag = Tag(0x42_0050);
    pub const NAME: Tag = Tag(0x42_0053);
    pub const NAME_TYPE: Tag = Tag(0x42_0054);
    pub const NAME_VALUE: Tag = Tag(0x42_0055);
    pub const OBJECT_TYPE: Tag = Tag(0x42_0057);
    pub const OPERATION: Tag = Tag(0x42_005c);
    pub const PROTECT_STOP_DATE: Tag = Tag(0x42_0068);
    pub const PROTOCOL_VERSION: Tag = Tag(0x42_0069);
    pub const PROTOCOL_VERSION_MAJOR: Tag = Tag(0x42_006a);
    pub const PROTOCOL_VERSION_MINOR: Tag = Tag(0x42_006b);
    pub const QUERY_FUNCTION: Tag = Tag(0x42_0074);
    pub const REQUEST_HEADER: Tag = Tag(0x42_0077);
    pub const REQUEST_MESSAGE: Tag = Tag(0x42_0078);
    pub const REQUEST_PAYLOAD: Tag = Tag(0x42_0079);
    pub const RESPONSE_MESSAGE: Tag = Tag(0x42_007b);
    pub const RESPONSE_HEADER: Tag = Tag(0x42_007a);
    pub const RESPONSE_PAYLOAD: Tag = Tag(0x42_007c);
    pub const RESULT_MESSAGE: Tag = Tag(0x42_007d);
    pub const RESULT_REASON: Tag = Tag(0x42_007e);
    pub const RESULT_STATUS: Tag = Tag(0x42_007f);
    pub const REVOCATION_REASON: Tag = Tag(0x42_0081);
    pub const STATE: Tag = Tag(0x42_008d);
    pub const SYMMETRIC_KEY: Tag = Tag(0x42_008f);
    pub const TEMPLATE_ATTRIBUTE: Tag = Tag(0x42_0091);
    pub const UNIQUE_IDENTIFIER: Tag = Tag(0x42_0094);
    pub const VENDOR_IDENTIFICATION: Tag = Tag(0x42_009d);
    pub const WRAPPING_METHOD: Tag = Tag(0x42_009e);
    pub const ENCODING_OPTION: Tag = Tag(0x42_00a3);
    pub const DATA: Tag = Tag(0x42_00c2);
    pub const TAG_LENGTH: Tag = Tag(0x42_00ce);
    pub const AUTHENTICATED_ENCRYPTION_ADDITIONAL_DATA: Tag = Tag(0x42_00fe);
    pub const AUTHENTICATED_ENCRYPTION_TAG: Tag = Tag(0x42_00ff);
    pub const CLIENT_CORRELATION_VALUE: Tag = Tag(0x42_0105);
    pub const SERVER_CORRELATION_VALUE: Tag = Tag(0x42_0106);
    pub const ATTRIBUTES: Tag = Tag(0x42_0125);
    pub const ATTRIBUTE_REFERENCE: Tag = Tag(0x42_013b);
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    Create = 0x01,
    Locate = 0x08,
    Get = 0x0a,
    GetAttributes = 0x0b,
    Activate = 0x12,
    Query = 0x18,
    DiscoverVersions = 0x1e,
    Encrypt = 0x1f,
    Decrypt = 0x20,
}

impl std::fmt::Display for Operation {
    /// As the specification and servers' logs and policies name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Operation::Create => "Create",
            Operation::Locate => "Locate",
            Operation::Get => "Get",
            Operation::GetAttributes => "Get Attributes",
            Operation::Activate => "Activate",
            Operation::Query => "Query",
            Operation::DiscoverVersions => "Discover Versions",
            Operation::Encrypt => "Encrypt",
            Operation::Decrypt => "Decrypt",
        })
    }
}

/// Result Status: the operation succeeded.
pub const SUCCESS: u32 = 0;
/// Object Type: Symmetric Key.
pub const SYMMETRIC_KEY: u32 = 2;
/// Name Type: Uninterpreted Text String.
pub const UNINTERPRETED_TEXT: u32 = 1;
/// Cryptographic Algorithm: AES.
pub const AES: u32 = 3;
/// Block Cipher Mode: GCM.
pub const GCM: u32 = 9;
/// Block Cipher Mode: NIST Key Wrap (RFC 3394).
pub const NIST_KEY_WRAP: u32 = 0x0d;
/// Key Format Type: Raw.
pub const RAW: u32 = 1;
/// Wrapping Method: Encrypt.
pub const WRAP_ENCRYPT: u32 = 1;
/// Encoding Option: No Encoding: what is wrapped is the bare key material.
pub const NO_ENCODING: u32 = 1;
/// Cryptographic Usage Mask: Encrypt.
pub const MAY_ENCRYPT: i32 = 0x04;
/// Cryptographic Usage Mask: Decrypt.
pub const MAY_DECRYPT: i32 = 0x08;
/// Query Function: Query Operations.
pub const QUERY_OPERATIONS: u32 = 1;
/// Query Function: Query Server Information.
pub const QUERY_SERVER_INFORMATION: u32 = 3;

/// Result Reasons.
pub mod reason {
    pub const ITEM_NOT_FOUND: u32 = 0x01;
    pub const RESPONSE_TOO_LARGE: u32 = 0x02;
    pub const AUTHENTICATION_NOT_SUCCESSFUL: u32 = 0x03;
    pub const INVALID_MESSAGE: u32 = 0x04;
    pub const OPERATION_NOT_SUPPORTED: u32 = 0x05;
    pub const FEATURE_NOT_SUPPORTED: u32 = 0x08;
    pub const CRYPTOGRAPHIC_FAILURE: u32 = 0x0a;
    pub const ILLEGAL_OPERATION: u32 = 0x0b;
    pub const PERMISSION_DENIED: u32 = 0x0c;
    pub const OBJECT_ARCHIVED: u32 = 0x0d;
    pub const SENSITIVE: u32 = 0x16;
    pub const NOT_EXTRACTABLE: u32 = 0x17;
    pub const GENERAL_FAILURE: u32 = 0x100;
    // KMIP 2.0.
    pub const INTERNAL_SERVER_ERROR: u32 = 0x2a;
    pub const INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK: u32 = 0x29;
    pub const OBJECT_DESTROYED: u32 = 0x36;
    pub const OBJECT_NOT_FOUND: u32 = 0x37;
    pub const NOT_AUTHORISED: u32 = 0x39;
    pub const UNSUPPORTED_PROTOCOL_VERSION: u32 = 0x3f;
    pub const WRONG_KEY_LIFECYCLE_STATE: u32 = 0x43;
}
