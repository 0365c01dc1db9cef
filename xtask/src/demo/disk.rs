//! The demo's disk: what is on it before, what the guest writes, what must be there after.
//!
//! Its content is random and known to the host by its SHA-256 alone. The guest overwrites one range with a pattern the
//! host chose after the guest was up; afterwards that range must hold the pattern, and everything else what it held.

use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Size of the disk: SHA-256 of it takes seconds on an emulated processor under an emulated one.
pub const DISK_BYTES: usize = 2 << 20;
/// Where the guest writes.
pub const PATTERN_AT: usize = 1 << 20;
/// How much the guest writes.
pub const PATTERN_BYTES: usize = 512 << 10;

/// Random bytes from the kernel.
pub fn random(count: usize) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut bytes = Vec::with_capacity(count);
    fs::File::open("/dev/urandom")?.take(u64::try_from(count).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A word that was never said before.
pub fn nonce() -> io::Result<String> {
    random(16).map(|bytes| hex(&bytes))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 as `sha256sum` prints it.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// The content of the disk once the guest has written `nonce`, a line of it after another.
pub fn expected(before: &[u8], nonce: &str) -> Vec<u8> {
    let mut after = before.to_owned();
    let pattern = nonce.bytes().chain([b'\n']).cycle();
    let range = after.iter_mut().skip(PATTERN_AT).take(PATTERN_BYTES);
    range.zip(pattern).for_each(|(byte, pattern)| *byte = pattern);
    after
}

/// Where the image differs first from what it should be, in words.
pub fn difference(image: &Path, expected: &[u8]) -> io::Result<Option<String>> {
    let found = fs::read(image)?;
    if found.len() != expected.len() {
        return Ok(Some(format!("the image has {} bytes instead of {}", found.len(), expected.len())));
    }
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    Ok(at.map(|at| format!("the image differs from byte {at} on")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_where_it_should_be_and_only_there() {
        let before = vec![0xee; DISK_BYTES];
        let after = expected(&before, "abc");
        assert_eq!(&after[PATTERN_AT - 1..PATTERN_AT + 5], b"\xeeabc\na");
        let end = PATTERN_AT + PATTERN_BYTES;
        assert_eq!(&after[end..], &before[end..]);
        assert_ne!(after[end - 1], 0xee);
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, b"abXd").unwrap();
        assert_eq!(difference(&image, b"abXd").unwrap(), None);
        assert_eq!(difference(&image, b"abcd").unwrap().unwrap(), "the image differs from byte 2 on");
        assert!(difference(&image, b"abXde").unwrap().is_some());
    }

    #[test]
    fn sha256_is_what_sha256sum_prints() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
