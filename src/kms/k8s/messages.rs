//! The messages of the Kubernetes KMS v2 API (`v2.KeyManagementService`), with
//! the numbers that its definition gives them.

use std::collections::BTreeMap;
use std::fmt;

use prost::Message;
use zeroize::Zeroize;

/// Asks how the plugin is.
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

/// How the plugin is.
#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    /// The version of the API.
    #[prost(string, tag = "1")]
    pub version: String,
    /// `ok`, or what is wrong.
    #[prost(string, tag = "2")]
    pub healthz: String,
    /// The key that it encrypts with now.
    #[prost(string, tag = "3")]
    pub key_id: String,
}

/// Asks for something to be encrypted.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct EncryptRequest {
    /// What is to be encrypted.
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    /// An id of the request, for logs.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// What the plugin made of it, all of which it wants back to decrypt it.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptResponse {
    /// The ciphertext.
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    /// The key that it was encrypted with.
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What else there is to be kept.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// Asks for something to be decrypted.
#[derive(Clone, PartialEq, Message)]
pub struct DecryptRequest {
    /// The ciphertext.
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    /// An id of the request, for logs.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The key that it was encrypted with.
    #[prost(string, tag = "3")]
    pub key_id: String,
    /// What came with it.
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// What was encrypted.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct DecryptResponse {
    /// The plaintext.
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

// Those with a secret in them do not show it, and wipe it.

impl fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncryptRequest({})", self.uid)
    }
}

impl fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DecryptResponse({} bytes)", self.plaintext.len())
    }
}

impl Drop for EncryptRequest {
    fn drop(&mut self) {
        self.plaintext.zeroize();
    }
}

impl Drop for DecryptResponse {
    fn drop(&mut self) {
        self.plaintext.zeroize();
    }
}
