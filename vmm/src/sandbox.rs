//! The confinement of a running machine: what a guest can still do that has taken over one of its threads.
//!
//! ```text
//! main thread  builds everything ── privileges ── limits ── landlock ── seccomp [main] ── starts all others ── waits
//!   vhost NAME   ─ seccomp [device] ─ speaks to its daemon, connects again
//!   vcpuN        ─ seccomp [vcpu] ─ KVM_RUN, again and again
//!   control, reboot   as the main thread
//! ```
//! In: the mode of `--sandbox`. Out: a [`Sandbox`] that is enforced while there is one thread, and whose filters the
//! others take on besides. It promises that no guest instruction is executed before: a thread that could not confine
//! itself ends the machine. Landlock leaves one right, to remove the API's socket at the end. It does not hold
//! connections to sockets at paths; the rights of files do, so nothing is reached at the start with a capability that
//! is gone when a daemon comes back ([`Sandbox::as_later`]).
//!
//! Refuses a kernel without seccomp or Landlock, before any file is touched.

use std::path::Path;

use backends::sandbox::{Allowed, Filter, Mode, Plan, SandboxError, Standing, host};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What the threads may call: docs/syscalls.md is made from it.
pub const POLICY: &str = include_str!("../policy/seccomp.policy");

/// A confinement that is ready to be taken on.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    mode: Mode,
    main: Filter,
    device: Filter,
    vcpu: Filter,
}

impl Sandbox {
    /// For a machine on this host.
    ///
    /// # Errors
    /// [`SandboxError::Missing`]: this kernel cannot.
    pub fn new(mode: Mode) -> Result<Sandbox, SandboxError> {
        if mode != Mode::Off {
            host::seccomp()?;
            host::landlock()?;
        }
        let filter = |parts: &[&str]| Filter::new(&[POLICY], parts, mode);
        Ok(Sandbox {
            mode,
            main: filter(&["all", "main", "device", "vcpu"])?,
            device: filter(&["all", "device"])?,
            vcpu: filter(&["all", "vcpu"])?,
        })
    }

    /// Does something with the rights that the process will have when it is confined.
    ///
    /// # Errors
    /// Capabilities cannot be put aside.
    pub fn as_later<T>(&self, what: impl FnOnce() -> T) -> Result<T, SandboxError> {
        if self.mode == Mode::Off {
            return Ok(what());
        }
        let failed = |errno: rustix::io::Errno| SandboxError::Host {
            what: "put capabilities aside",
            cause: errno.into(),
        };
        let own = capabilities(None).map_err(failed)?;
        let aside = CapabilitySets { effective: CapabilitySet::empty(), ..own };
        set_capabilities(None, aside).map_err(failed)?;
        let done = what();
        set_capabilities(None, own).map_err(failed)?;
        Ok(done)
    }

    /// Confines the process, which has one thread so far. `socket` may still be removed.
    ///
    /// # Errors
    /// [`SandboxError`]
    pub fn enforce(&self, socket: Option<&Path>) -> Result<Standing, SandboxError> {
        let allowed = socket.and_then(Path::parent).map(Allowed::remove).into_iter().collect();
        let standing =
            Plan { mode: self.mode, allowed, filter: self.main.clone(), ..Plan::default() }.enforce()?;
        // A machine that is confined as it should be says nothing on what may be its guest's terminal.
        if self.mode != Mode::On {
            standing.tell();
        }
        Ok(standing)
    }

    /// For threads of devices.
    pub fn device(&self) -> Filter {
        self.device.clone()
    }

    /// For threads of vCPUs.
    pub fn vcpu(&self) -> Filter {
        self.vcpu.clone()
    }
}
