//! The sandbox: what a daemon can still do after somebody has taken it over.
//!
//! ```text
//! first process   opens everything ── privileges ── limits ── landlock ── seccomp (outer) ── executes the keeper
//!   keeper        all of that, inherited ────────────────────────────────────────────────── starts workers
//!     worker      takes what was opened, makes rings ── hidden ── landlock (nothing) ── seccomp (inner) ── READY
//!       queue thread  starts ── seccomp (data path) ── serves
//! ```
//! Stages, what each takes away, and what must still work after it:
//!
//! | stage | takes away | still works |
//! |---|---|---|
//! | `limits` | core files, the bounding set of capabilities | as many descriptors as before |
//! | `user` | the operator's name (with `--user`) | what is open already |
//! | `privileges` | capabilities, set-user-ID programs, being looked into | what is open already |
//! | `landlock` | files, TCP, signals to others | what is open; outer: starting a worker, binding sockets |
//! | `seccomp` | system calls, and arguments of those that stay | what the [`policy`] files list, with the reason |
//!
//! In: policies, paths. Out: a [`Standing`], or why there is no sandbox: a daemon never serves with half of one. With
//! [`Mode::Log`] nothing is refused: the kernel writes down what would be.

pub(crate) mod bounds;
pub mod host;
pub mod landlock;
pub mod policy;
pub mod privileges;
pub mod seccomp;

use std::io;
use std::sync::OnceLock;

use thiserror::Error;

pub use landlock::Allowed;
pub use privileges::Account;
pub use seccomp::Filter;

/// What every daemon may do.
pub const COMMON: [&str; 2] =
    [include_str!("../../policy/common.policy"), include_str!("../../policy/keeper.policy")];

/// Whether and how to confine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// What no policy allows ends the process.
    #[default]
    On,
    /// It is done, and the kernel logs it: for finding out what a policy lacks.
    Log,
    /// Nothing is taken away.
    Off,
}

impl Mode {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::On => "on",
            Mode::Log => "log",
            Mode::Off => "off",
        }
    }
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The kernel cannot do it.
    #[error("--sandbox on: this kernel has no {what}: {cause}; boot one with {option}, or use --sandbox off")]
    Missing {
        /// What it cannot do.
        what: &'static str,
        /// How it is built so that it can.
        option: &'static str,
        /// What it answered.
        cause: io::Error,
    },
    /// It refuses something.
    #[error(
        "--sandbox: cannot {what}: {cause}; see whether something around this process forbids it, or use --sandbox off"
    )]
    Host {
        /// What was to be done.
        what: &'static str,
        /// What it answered.
        cause: io::Error,
    },
    /// Another user cannot be had.
    #[error("--user {name}: cannot become that user: {cause}; start as root, or leave --user out")]
    User {
        /// As it was given.
        name: String,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// Nobody has that name.
    #[error("--user {name}: {problem}")]
    NoUser {
        /// As it was given.
        name: String,
        /// What is wrong, and the cure.
        problem: &'static str,
    },
    /// A policy of this program is wrong.
    #[error("--sandbox: {0}; this is a mistake in this program, use --sandbox off until it is mended")]
    Policy(#[from] policy::PolicyError),
    /// The same.
    #[error("--sandbox: {0}; this is a mistake in this program, use --sandbox off until it is mended")]
    Compile(#[from] seccompiler::BackendError),
}

/// What confines this process now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How it was asked for.
    pub mode: Mode,
    /// The ABI of the kernel's Landlock, if that is in force.
    pub landlock_abi: Option<u8>,
    /// Stages that are in force, in their order.
    pub stages: Vec<&'static str>,
}

static STANDING: OnceLock<Standing> = OnceLock::new();

impl Standing {
    /// What confines this process; nothing does yet, or any more than that it was asked for.
    pub fn current() -> Standing {
        STANDING.get().cloned().unwrap_or_default()
    }

    fn remember(self) {
        // The first one of a process is the one that stays.
        let _ = STANDING.set(self);
    }

    /// What the operator should know of it.
    pub fn tell(&self) {
        match (self.mode, self.landlock_abi) {
            (Mode::Off, _) => tracing::warn!("No sandbox (--sandbox off)"),
            (Mode::Log, _) => tracing::warn!(
                "No sandbox: what it would refuse is in the kernel's log as type=1326 (journalctl -k, ausearch -m SECCOMP; \
                 ausyscall NUMBER names the call)"
            ),
            (Mode::On, abi) => tracing::info!(landlock_abi = abi, "Confined"),
        }
    }
}

/// A confinement that is about to begin.
#[derive(Debug, Default)]
pub struct Plan {
    /// How.
    pub mode: Mode,
    /// Whom to become.
    pub user: Option<Account>,
    /// What may still be done with paths.
    pub allowed: Vec<Allowed>,
    /// Abstract sockets of others may still be connected to: the service manager listens on one.
    pub abstract_sockets: bool,
    /// What may still be called.
    pub filter: Filter,
}

impl Plan {
    /// Takes away all else from this process, which has one thread so far: stage after stage, each of which may stand
    /// already. There is no way back.
    ///
    /// # Errors
    /// [`SandboxError`]; what was taken away until then stays so.
    pub fn enforce(self) -> Result<Standing, SandboxError> {
        let mut standing = Standing { mode: self.mode, ..Standing::default() };
        if self.mode != Mode::Off {
            privileges::limit()?;
            privileges::empty_bounding_set()?;
            standing.stages.push("limits");
        }
        if let Some(user) = &self.user {
            user.take_on()?;
            standing.stages.push("user");
        }
        if self.mode == Mode::Off {
            return Ok(standing);
        }
        // Asked of the kernel when it is first needed, which would be too late.
        let _ = rustix::param::page_size();
        privileges::drop_all()?;
        privileges::hide()?;
        standing.stages.push("privileges");
        if self.mode == Mode::On {
            standing.landlock_abi = Some(landlock::restrict(&self.allowed, self.abstract_sockets)?);
            standing.stages.push("landlock");
        }
        self.filter.apply()?;
        standing.stages.push("seccomp");
        Ok(standing)
    }
}
