//! The bounds of a daemon's processes: of the keeper and all that it starts, of a worker, of a daemon that is one process.
//!
//! In: what was opened. Out: the calling process, confined. The outer bounds are taken on by the first process before it
//! executes the keeper: the executable and libraries can be read and executed, since each worker is started from them,
//! and what was made at paths can be removed. The inner ones, of a worker, leave no path at all.

use std::path::{Path, PathBuf};

use super::{Account, Allowed, COMMON, Filter, Mode, Plan, SandboxError};
use crate::daemon::Program;
use crate::failpoint;
use crate::opened::Opened;
use crate::options::Common;

/// Where programs and libraries find what they are made of, beside their own directories.
const LOADED: [&str; 2] = ["/etc/ld.so.cache", "/etc/ld.so.preload"];
/// What programs read of themselves and their host when they begin: mappings, CPUs, limits of their control group.
const LOOKED_AT: [&str; 3] = ["/proc", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

/// Where a process may go.
pub(crate) struct Bounds {
    parts: &'static [&'static str],
    allowed: Vec<Allowed>,
    /// What was made at paths, if this process made it: it is then who becomes another user, and who tells.
    made: Option<Vec<PathBuf>>,
}

impl Bounds {
    /// Of a worker: all is open.
    pub(crate) fn worker() -> Bounds {
        Bounds { parts: &["data path", "worker", "closed"], allowed: Vec::new(), made: None }
    }

    /// Of a daemon that is one process, which removes at its end what it made.
    pub(crate) fn alone(opened: &Opened) -> Bounds {
        Bounds {
            parts: &["data path", "worker", "closed", "alone"],
            allowed: removed(opened),
            made: made(opened),
        }
    }

    /// Of a keeper and its workers, before these are ready.
    ///
    /// # Errors
    /// This process cannot be looked at.
    pub(crate) fn keeper(opened: &Opened) -> Result<Bounds, SandboxError> {
        let failed =
            |cause| SandboxError::Host { what: "find the executable and its libraries in /proc/self", cause };
        let maps = std::fs::read_to_string("/proc/self/maps").map_err(failed)?;
        let mut allowed = removed(opened);
        allowed.extend(directories(&maps).map(Allowed::execute));
        allowed.extend(LOADED.into_iter().chain(LOOKED_AT).map(Path::new).map(Allowed::read));
        Ok(Bounds { parts: &["data path", "worker", "alone", "keeper"], allowed, made: made(opened) })
    }

    /// Takes them on, with more parts of the daemon's own policy.
    ///
    /// # Errors
    /// [`SandboxError`]
    pub(crate) fn confine<P: Program>(self, options: &Common, more: &[&str]) -> Result<(), SandboxError> {
        let user = options.user.as_deref().filter(|_| self.made.is_some()).map(Account::named).transpose()?;
        if let (Some(user), Some(made)) = (&user, &self.made) {
            made.iter().try_for_each(|path| user.own(path))?;
        }
        let mut allowed = self.allowed;
        allowed.extend(failpoint::files().filter_map(Path::parent).map(Allowed::remove));
        let plan = Plan {
            mode: options.sandbox,
            user,
            allowed,
            abstract_sockets: std::env::var("NOTIFY_SOCKET").is_ok_and(|path| path.starts_with('@')),
            filter: Filter::new(&policies::<P>(), &[self.parts, more].concat(), options.sandbox)?,
        };
        let standing = plan.enforce()?;
        if self.made.is_some() {
            standing.tell();
        }
        standing.remember();
        Ok(())
    }
}

/// For threads that serve queues, with more parts of the daemon's own policy.
///
/// # Errors
/// [`SandboxError`]
pub(crate) fn data_path<P: Program>(mode: Mode, more: &[&str]) -> Result<Filter, SandboxError> {
    Filter::new(&policies::<P>(), &[&["data path"], more].concat(), mode)
}

fn policies<P: Program>() -> [&'static str; 4] {
    let [common, keeper] = COMMON;
    [common, keeper, failpoint::policy(), P::POLICY]
}

fn made(opened: &Opened) -> Option<Vec<PathBuf>> {
    Some(opened.paths().map(Path::to_owned).collect())
}

fn removed(opened: &Opened) -> Vec<Allowed> {
    opened.paths().filter_map(Path::parent).map(Allowed::remove).collect()
}

/// Of everything that this process has mapped of files: its executable, its libraries and what loads them.
fn directories(maps: &str) -> impl Iterator<Item = &Path> {
    let files = maps.lines().filter_map(|line| line.find('/').and_then(|at| line.get(at..)));
    let mut all: Vec<&Path> = files.filter_map(|file| Path::new(file).parent()).collect();
    all.sort();
    all.dedup();
    all.into_iter()
}
