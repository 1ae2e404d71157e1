//! The one hash of the simulator.

/// Returns the FNV-1a digest of bytes: the seed of an answer, the choice of a fault, the digest of a model.
pub(crate) fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
