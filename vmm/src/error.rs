//! Everything that can end the VMM, and the exit code that says which kind it was.

use std::path::PathBuf;
use std::process::ExitCode;

use backends::log::LogError;
use backends::sandbox::SandboxError;

use crate::boot::linux::BootError;
use crate::config::ConfigError;
use crate::ctl::CtlError;
use crate::kvm::KvmError;
use crate::kvm::vcpu::Crash;
use crate::memory::MemoryError;
use crate::pci::PciError;
use crate::vhost;

/// Something failed that is nobody's option.
pub const EXIT_FAILURE: u8 = 1;
/// An option, a configuration file or a file it names cannot be used.
pub const EXIT_OPTION: u8 = 2;
/// This host cannot run the machine.
pub const EXIT_HOST: u8 = 3;
/// A device failed at start.
pub const EXIT_DEVICE: u8 = 4;
/// The guest crashed, or KVM could not go on with it.
pub const EXIT_CRASH: u8 = 5;
/// The guest's kernel panicked.
pub const EXIT_PANIC: u8 = 6;

/// Why the VMM ends other than by power-off. Each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command line that does not parse.
    #[error("{0}")]
    Usage(String),
    /// A file of options that cannot be used.
    #[error(transparent)]
    File(#[from] backends::config::ConfigError),
    /// A log that cannot be had.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Options that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Kernel or initramfs that cannot be used.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// RAM that cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM that cannot be had, or refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A socket that an option names cannot be made.
    #[error(transparent)]
    Socket(#[from] backends::options::SocketError),
    /// A file that an option names cannot be created.
    #[error("{option} {path}: {cause}", path = path.display())]
    OutputFile {
        /// The option.
        option: &'static str,
        /// Its file.
        path: PathBuf,
        /// What the host said.
        cause: std::io::Error,
    },
    /// No sandbox, or only a part of it.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A daemon that does not answer as it should.
    #[error(transparent)]
    Device(#[from] vhost::Error),
    /// No slot left.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A daemon or machine that could not be asked, or refused.
    #[error(transparent)]
    Ctl(#[from] CtlError),
    /// The guest came to its end.
    #[error(transparent)]
    Crash(#[from] Crash),
    /// The guest said so itself.
    #[error("the guest's kernel panicked")]
    GuestPanic,
    /// A vCPU thread failed.
    #[error("a vCPU thread failed; its own message stands above")]
    VcpuLost,
    /// This host cannot run guests.
    #[error("{0}")]
    CheckFailed(String),
    /// A system call that should have worked.
    #[error("cannot {what}: {cause}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        cause: std::io::Error,
    },
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Error::Log(LogError::Journal { .. }) => EXIT_HOST,
            Error::Usage(_)
            | Error::Log(_)
            | Error::File(_)
            | Error::Config(_)
            | Error::OutputFile { .. } => EXIT_OPTION,
            Error::Boot(_) | Error::Socket(_) => EXIT_OPTION,
            Error::Sandbox(SandboxError::Missing { .. })
            | Error::Memory(MemoryError::Host { .. })
            | Error::Kvm(_)
            | Error::CheckFailed(_) => EXIT_HOST,
            Error::Memory(_) => EXIT_OPTION,
            Error::Device(_) | Error::Pci(_) => EXIT_DEVICE,
            Error::Crash(_) => EXIT_CRASH,
            Error::Ctl(error) => error.exit_code(),
            Error::GuestPanic => EXIT_PANIC,
            Error::Sandbox(_) | Error::VcpuLost | Error::System { .. } => EXIT_FAILURE,
        })
    }
}

/// Says what was being done when a system call failed.
pub(crate) fn system<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |cause| Error::System { what, cause: cause.into() }
}
