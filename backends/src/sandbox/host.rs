//! What this host's kernel can confine a process with, before anybody depends on it.
//!
//! In: nothing. Out: each of the two, or a [`SandboxError::Missing`] that says how to get it. Nothing changes by asking.

use std::io;

use super::SandboxError;
use crate::sys;

/// Whether filters of system calls can end a process.
///
/// # Errors
/// [`SandboxError::Missing`]
pub fn seccomp() -> Result<(), SandboxError> {
    sys::has_seccomp().map_err(no_seccomp)
}

/// The ABI of Landlock.
///
/// # Errors
/// [`SandboxError::Missing`]
pub fn landlock() -> Result<u8, SandboxError> {
    sys::landlock_abi().map_err(no_landlock)
}

pub(super) fn no_seccomp(cause: io::Error) -> SandboxError {
    SandboxError::Missing { what: "seccomp filters", option: "CONFIG_SECCOMP_FILTER=y", cause }
}

pub(super) fn no_landlock(cause: io::Error) -> SandboxError {
    let option = "CONFIG_SECURITY_LANDLOCK=y, and landlock in its list lsm=";
    SandboxError::Missing { what: "Landlock", option, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_line_with_the_cure() {
        let missing = [no_seccomp, no_landlock].map(|missing| missing(io::Error::from_raw_os_error(38)));
        for line in missing.map(|error| error.to_string()) {
            assert!(line.contains("CONFIG_SEC") && line.contains("--sandbox off"), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn the_host_of_the_tests_has_both() {
        seccomp().unwrap();
        assert!(landlock().unwrap() >= 1);
    }
}
