//! The one generic vhost-user front-end: from a `--device` to a PCI device with a daemon behind it.
//!
//! [`connect`] reaches the socket, gets to know the daemon, sees that it is of the type that was asked for, and
//! makes the PCI function. All features of the daemon are passed on to the guest except those that speak of
//! this process's side, so a new type of device, or a new feature of one, needs no line here.
//!
//! The whole of it is over within [`CONNECT_DEADLINE`], whatever is on the socket. Every failure is one line
//! that names the option, its value and what to do.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

pub mod address;
pub mod agreement;
pub mod daemon;
pub mod device;
pub mod frontend;
pub mod kind;
pub mod link;
pub mod restore;
pub mod socket;
pub mod spec;

#[cfg(test)]
mod testing;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::proto::TransportError;
use backends::sandbox::SandboxError;
use kvm_ioctls::VmFd;

pub use self::device::{DeviceThread, VhostPciDevice};
pub use self::kind::DeviceKind;
pub use self::spec::{DeviceSpec, SpecError, give_names};

use self::agreement::Agreement;
use self::device::VhostBackend;
use self::frontend::{Frontend, FrontendError, within};
use self::kind::{Offer, QueueCount};
use self::link::{DEADLINES, Deadlines, Link};
use self::restore::Contract;
use crate::kvm::event::Event;
use crate::kvm::irq::IrqRouter;
use crate::memory::GuestRam;
use crate::pci::common::F_VERSION_1;
use crate::pci::virtio::{FunctionError, Shape, VirtioPci};

/// How long a daemon may take to become a device.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Largest size of a virtqueue unless `queue-size=` says another.
pub const DEFAULT_QUEUE_SIZE: u16 = 256;

/// Feature bits that a guest never sees. F_LOG_ALL (26) and F_PROTOCOL_FEATURES (30) are between front-end and
/// back-end. The others promise something of the transport that this one does not have: ACCESS_PLATFORM (33) an
/// IOMMU, SR_IOV (37), NOTIFICATION_DATA (38) and NOTIF_CONFIG_DATA (39) doorbells with a value, ADMIN_VQ (41).
const NOT_FOR_GUESTS: u64 = 1 << 26 | 1 << 30 | 1 << 33 | 1 << 37 | 1 << 38 | 1 << 39 | 1 << 41;

/// Why a device could not be attached. Shows as one line.
#[derive(Debug, thiserror::Error)]
#[error("--device {kind},socket={}: {problem}", .socket.display())]
pub struct Error {
    kind: DeviceKind,
    socket: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a device's socket or daemon.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The socket cannot be reached.
    #[error("{0}")]
    Socket(String),
    /// Nothing, or not enough, was answered in time.
    #[error("the daemon there did not answer within {} s ({what}); see that it is a vhost-user daemon, that it is not stopped, and that it serves no other machine, or {cure}", CONNECT_DEADLINE.as_secs())]
    Silent {
        /// What was waited for.
        what: String,
        /// What to do.
        cure: String,
    },
    /// The connection was closed.
    #[error("the daemon there hung up ({what}); look into its messages, or {cure}")]
    HungUp {
        /// What was being asked.
        what: String,
        /// What to do.
        cure: String,
    },
    /// Not vhost-user.
    #[error("what listens there does not speak vhost-user ({what}); {cure}")]
    NotVhostUser {
        /// What came.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A daemon for something else.
    #[error("{what}; {cure} and name its socket, or name the right TYPE")]
    WrongType {
        /// What is seen.
        what: String,
        /// What to do.
        cure: String,
    },
    /// A daemon of before virtio 1.
    #[error(
        "the daemon there does not offer VIRTIO_F_VERSION_1 (features {0:#x}); use one that speaks virtio 1.x"
    )]
    Legacy(u64),
    /// More queues than there are.
    #[error("queues={asked}: the daemon there has {has}; leave queues out, or ask for at most {has}")]
    TooManyQueues {
        /// Asked for.
        asked: u16,
        /// There.
        has: u16,
    },
    /// Fewer queues than a network device can do with.
    #[error(
        "queues={asked}: a network device has 2 for each pair and one for control, and the daemon there has {has}; leave queues out"
    )]
    QueuePairs {
        /// Asked for.
        asked: u16,
        /// There.
        has: u16,
    },
    /// A size that the daemon does not take.
    #[error(
        "queue-size={0}: the daemon there does not take virtqueues of that size; use a smaller one, or leave queue-size out"
    )]
    QueueSize(u16),
    /// The device's thread could not be started.
    #[error("cannot start a thread for it: {0}; raise the limit of processes (ulimit -u)")]
    Thread(std::io::Error),
    /// The device's thread could not be confined.
    #[error("{0}")]
    Sandbox(SandboxError),
    /// The PCI function could not be made.
    #[error("{0}")]
    Function(#[from] FunctionError),
}

/// Attaches the device that `spec` describes; its daemon must be listening. The device does nothing before its thread is
/// started.
///
/// # Errors
/// One line to show.
pub fn connect(
    spec: &DeviceSpec,
    ram: &Arc<GuestRam>,
    vm: &Arc<VmFd>,
    irq: &Arc<IrqRouter>,
) -> Result<(Arc<VhostPciDevice>, DeviceThread), Error> {
    connect_within(spec, ram, vm, irq, DEADLINES)
}

/// As [`connect`], with a daemon that may take this long later on.
fn connect_within(
    spec: &DeviceSpec,
    ram: &Arc<GuestRam>,
    vm: &Arc<VmFd>,
    irq: &Arc<IrqRouter>,
    deadlines: Deadlines,
) -> Result<(Arc<VhostPciDevice>, DeviceThread), Error> {
    let device = attach(spec, ram, vm, irq, deadlines);
    device.map_err(|problem| Error { kind: spec.kind, socket: spec.socket.clone(), problem })
}

fn attach(
    spec: &DeviceSpec,
    ram: &Arc<GuestRam>,
    vm: &Arc<VmFd>,
    irq: &Arc<IrqRouter>,
    deadlines: Deadlines,
) -> Result<(Arc<VhostPciDevice>, DeviceThread), Problem> {
    let deadline = within(CONNECT_DEADLINE);
    let stream = socket::connect(spec, deadline).map_err(Problem::Socket)?;
    let lost = |cause| problem_of(FrontendError::Lost(cause), spec);
    let mut greeted = Frontend::new(stream).map_err(lost)?;
    let offer = greeted.greet(spec.kind, deadline).map_err(|error| problem_of(error, spec))?;
    check_type(spec, &offer)?;
    let queues = queues(spec, &offer)?;
    check_queue_size(spec, &mut greeted, deadline)?;
    let shape = Shape {
        device_type: spec.kind.id(),
        class: spec.kind.class(),
        features: guest_features(spec.kind, &offer),
        queues,
        max_queue_size: spec.queue_size.unwrap_or(DEFAULT_QUEUE_SIZE),
    };
    let config = guest_config(spec.kind, offer.config.unwrap_or_default(), queues);
    let contract = Contract {
        kind: spec.kind,
        features: shape.features,
        queues,
        queue_size: shape.max_queue_size,
        config_bytes: config.len(),
    };
    let agreement = Arc::new(Agreement::new(config).map_err(FunctionError::Event)?);
    let label = format!("{} ({})", spec.id, spec.socket.display());
    let backend = VhostBackend::new(label.clone(), Arc::clone(&agreement), Arc::clone(ram));
    let function = Arc::new(VirtioPci::new(&shape, backend, vm, irq)?);
    let link = Link {
        label,
        spec: spec.clone(),
        contract,
        ram: Arc::clone(ram),
        agreement,
        function: Arc::downgrade(&function),
        errors: Event::new().map_err(FunctionError::Event)?,
        deadlines,
    };
    let device = VhostPciDevice::new(function, &link);
    Ok((Arc::new(device), DeviceThread { link, greeted }))
}

fn check_type(spec: &DeviceSpec, offer: &Offer) -> Result<(), Problem> {
    let cure = || spec.kind.start_hint(&spec.socket);
    spec.kind.check(offer).map_err(|what| Problem::WrongType { what, cure: cure() })?;
    if offer.queues == Some(0) {
        return Err(Problem::WrongType {
            what: "the daemon there has no virtqueues".to_owned(),
            cure: cure(),
        });
    }
    if offer.features & F_VERSION_1 == 0 {
        return Err(Problem::Legacy(offer.features));
    }
    Ok(())
}

/// How many virtqueues the device gets.
fn queues(spec: &DeviceSpec, offer: &Offer) -> Result<u16, Problem> {
    let has = offer.queues.unwrap_or(spec.kind.default_queues());
    match spec.queues {
        None => Ok(has),
        Some(asked) if asked > has => Err(Problem::TooManyQueues { asked, has }),
        Some(asked) if asked < has && spec.kind.has_fixed_queues() => Err(Problem::QueuePairs { asked, has }),
        Some(asked) => Ok(asked),
    }
}

/// A size that the user chose is tried now; later it would be the driver who learns that it is too large.
fn check_queue_size(spec: &DeviceSpec, frontend: &mut Frontend, deadline: Instant) -> Result<(), Problem> {
    let Some(size) = spec.queue_size else { return Ok(()) };
    frontend.try_queue_size(size, deadline).map_err(|error| match error {
        FrontendError::Refused { .. } => Problem::QueueSize(size),
        error => problem_of(error, spec),
    })
}

fn guest_features(kind: DeviceKind, offer: &Offer) -> u64 {
    let meaningless = if offer.config.is_none() { kind.features_of_config() } else { 0 };
    offer.features & !NOT_FOR_GUESTS & !meaningless
}

/// Configuration space with the number of queues that the device really has.
fn guest_config(kind: DeviceKind, mut config: Vec<u8>, queues: u16) -> Vec<u8> {
    if let Some(QueueCount { offset, bytes, others }) = kind.queue_count()
        && let Some(field) = offset.checked_add(bytes).and_then(|end| config.get_mut(offset..end))
    {
        let ours = u64::from(queues.saturating_sub(others).max(1));
        let mut said = [0; 8];
        said.iter_mut().zip(&*field).for_each(|(to, from)| *to = *from);
        let number = u64::from_le_bytes(said).min(ours).to_le_bytes();
        field.iter_mut().zip(number).for_each(|(to, from)| *to = from);
    }
    config
}

/// What an error of the first conversation says about the other side.
fn problem_of(error: FrontendError, spec: &DeviceSpec) -> Problem {
    let (what, cure) = (error.to_string(), spec.kind.start_hint(&spec.socket));
    match error {
        FrontendError::Transport { cause: TransportError::Deadline, .. } => Problem::Silent { what, cure },
        FrontendError::Transport { cause: TransportError::Truncated, .. }
        | FrontendError::Garbage { .. }
        | FrontendError::Unasked => Problem::NotVhostUser { what, cure },
        _ => Problem::HungUp { what, cure },
    }
}

#[cfg(test)]
#[path = "mod_tests.rs"]
mod tests;
