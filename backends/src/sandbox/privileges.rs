//! Who the process is, and what that is worth: another user, no capabilities, nothing to be had by execve.
//!
//! In: `--user`, if given. Out: a process without any capability, which can never get one again, whose memory no other
//! process of its user can read or dump. Refuses a user or group that this host does not know, and to become another one
//! without being root.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, chownat};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, no_new_privs,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_gid,
    set_thread_groups, set_thread_uid,
};

use super::SandboxError;
use crate::sys;

/// Bits of a set of capabilities.
const MAX_CAPABILITIES: u32 = u64::BITS;

/// Whom to become: `USER` or `USER:GROUP`, each a name or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// Who is meant by `--user`.
    ///
    /// # Errors
    /// [`SandboxError::NoUser`]: this host knows them not.
    pub fn named(text: &str) -> Result<Account, SandboxError> {
        let unknown = |problem| SandboxError::NoUser { name: text.to_owned(), problem };
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let known = sys::user(user);
        let uid = user.parse().ok().or(known.map(|(uid, _)| uid));
        let uid = uid.ok_or_else(|| unknown("this host has no such user; make it (useradd --system)"))?;
        let gid = match group {
            Some(group) => group.parse().ok().or_else(|| sys::group(group)),
            None => known.map(|(_, gid)| gid),
        };
        let gid = gid.ok_or_else(|| {
            unknown("this host has no such group; make it (groupadd --system), or give USER:GROUP")
        })?;
        Ok(Account { name: text.to_owned(), uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }

    /// What is at this path, be it a link, is theirs from now on.
    ///
    /// # Errors
    /// [`SandboxError::User`]: only root may give it away.
    pub fn own(&self, path: &Path) -> Result<(), SandboxError> {
        let given = chownat(CWD, path, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW);
        given.map_err(|errno| SandboxError::User { name: self.name.clone(), cause: errno.into() })
    }

    /// The calling thread is theirs from now on, without any other group. Capabilities go with that.
    ///
    /// # Errors
    /// [`SandboxError::User`]: only root may do so.
    pub fn take_on(&self) -> Result<(), SandboxError> {
        let refused = |errno: Errno| SandboxError::User { name: self.name.clone(), cause: errno.into() };
        set_thread_groups(&[self.gid]).map_err(refused)?;
        set_thread_gid(self.gid).map_err(refused)?;
        set_thread_uid(self.uid).map_err(refused)
    }
}

/// No file with capabilities gives any to who executes it. Where this may not be said, nobody gains any anyway: see
/// [`drop_all`].
///
/// # Errors
/// [`SandboxError::Host`]
pub fn empty_bounding_set() -> Result<(), SandboxError> {
    let failed = |errno: Errno| SandboxError::Host {
        what: "empty the bounding set of capabilities",
        cause: errno.into(),
    };
    if !capabilities(None).map_err(failed)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    for bit in 0..MAX_CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // After the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

/// No capability is left, nor anything to be had by executing a file.
///
/// # Errors
/// [`SandboxError::Host`]
pub fn drop_all() -> Result<(), SandboxError> {
    let failed = |what| move |errno: Errno| SandboxError::Host { what, cause: errno.into() };
    clear_ambient_capability_set().map_err(failed("drop ambient capabilities"))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(failed("drop capabilities"))?;
    set_no_new_privs(true).map_err(failed("renounce new privileges"))
}

/// A program that was executed in a sandbox: says so again, what execve forgets.
///
/// # Errors
/// [`SandboxError::Host`]
pub fn stay_hidden() -> Result<(), SandboxError> {
    if no_new_privs().unwrap_or(false) { hide() } else { Ok(()) }
}

/// Nobody but root can look into this process. Each program begins without this: it has to be said again after execve.
///
/// # Errors
/// [`SandboxError::Host`]
pub fn hide() -> Result<(), SandboxError> {
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    hidden.map_err(|errno| SandboxError::Host { what: "keep others from looking in", cause: errno.into() })
}

/// No core files, in which a guest's memory would be; and as much memory for io_uring as may be had: since Linux 6.14 its
/// rings count as locked memory of the user, of all processes together.
///
/// # Errors
/// [`SandboxError::Host`]
pub fn limit() -> Result<(), SandboxError> {
    let failed = |errno: Errno| SandboxError::Host { what: "set limits", cause: errno.into() };
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(failed)?;
    let unlimited = Rlimit { current: None, maximum: None };
    // Root may; others have what they were given.
    if setrlimit(Resource::Memlock, unlimited).is_ok() {
        return Ok(());
    }
    let given = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: given.maximum, ..given }).map_err(failed)
}
