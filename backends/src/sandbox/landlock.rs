//! Which files may still be opened, made or removed: none, but for those that are named.
//!
//! In: [`Allowed`] paths. Out: the calling thread, and all that it starts, can do nothing else with any path; what is open
//! already stays of use. TCP cannot be used, and from ABI 6 on signals reach no process outside, nor connections abstract
//! sockets outside. Everything that the kernel at hand can enforce is enforced, up to ABI 7 (Linux 6.15).
//! Refuses a kernel without Landlock. Paths that do not exist are passed over: there is nothing to allow.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};

use super::{SandboxError, host};

/// The newest ABI that this program has been seen to live with.
const KNOWN: ABI = ABI::V7;

/// A file or directory, and what may be done with it and all below it.
#[derive(Clone, Debug)]
pub struct Allowed {
    path: PathBuf,
    access: BitFlags<AccessFs>,
}

impl Allowed {
    fn new(path: &Path, access: impl Into<BitFlags<AccessFs>>) -> Allowed {
        // The parent of a path without a slash.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Allowed { path: path.into(), access: access.into() }
    }

    /// Files may be read, directories listed.
    pub fn read(path: &Path) -> Allowed {
        Allowed::new(path, AccessFs::ReadFile | AccessFs::ReadDir)
    }

    /// Files may be read, and executed.
    pub fn execute(path: &Path) -> Allowed {
        Allowed::new(path, AccessFs::ReadFile | AccessFs::Execute)
    }

    /// Sockets may be made there, and what is there be removed.
    pub fn sockets(dir: &Path) -> Allowed {
        Allowed::new(dir, AccessFs::MakeSock | AccessFs::RemoveFile)
    }

    /// What is there may be removed.
    pub fn remove(dir: &Path) -> Allowed {
        Allowed::new(dir, AccessFs::RemoveFile)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Confines the calling thread to these; the ABI that the kernel has.
///
/// # Errors
/// [`SandboxError::Missing`]: this kernel has no Landlock, or it is not switched on; [`SandboxError::Host`].
pub fn restrict(allowed: &[Allowed], abstract_sockets: bool) -> Result<u8, SandboxError> {
    let scope = if abstract_sockets { Scope::Signal.into() } else { BitFlags::<Scope>::all() };
    let failed = |error| SandboxError::Host { what: "set up Landlock", cause: io::Error::other(error) };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(scope))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for Allowed { path, access } in allowed {
        let Ok(fd) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { *access } else { *access & AccessFs::from_file(KNOWN) };
        rules = rules.add_rule(PathBeneath::new(fd, access)).map_err(failed)?;
    }
    let status = rules.restrict_self().map_err(failed)?;
    abi(&status.landlock)
}

fn abi(status: &LandlockStatus) -> Result<u8, SandboxError> {
    let missing = |errno| host::no_landlock(io::Error::from_raw_os_error(errno));
    match status {
        LandlockStatus::Available { effective_abi, .. } => Ok(*effective_abi as u8),
        LandlockStatus::NotEnabled => Err(missing(libc::EOPNOTSUPP)),
        _ => Err(missing(libc::ENOSYS)),
    }
}
