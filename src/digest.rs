//! The one digest of the service.

use sha2::{Digest, Sha256};

/// Returns the SHA-256 of some bytes in hexadecimal: 64 lower-case characters.
pub fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
