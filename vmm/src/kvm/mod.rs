//! KVM: from `/dev/kvm` to a virtual machine with RAM and interrupt controllers.
//!
//! [`open`] says whether this host can run a machine at all, in words that name the cure. A [`Vm`] has KVM's own
//! I/O APIC and local APICs; there is no PIT, since a hardware-reduced ACPI guest takes its time from the TSC and
//! the local APIC. vCPUs live in [`vcpu`], what they start from in [`registers`] and [`cpuid`].

pub mod cpuid;
pub mod event;
pub mod irq;
pub mod registers;
pub mod vcpu;

use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::layout;
use crate::memory::GuestRam;

/// Where KVM is reached.
pub const KVM_PATH: &str = "/dev/kvm";

/// What a machine cannot do without, with the name to show.
const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why this host cannot run a machine.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No such device.
    #[error(
        "{KVM_PATH} does not exist: load the module kvm_intel or kvm_amd, or switch on (nested) virtualisation for this host"
    )]
    Missing,
    /// Not for this user.
    #[error(
        "{KVM_PATH}: permission denied: add this user to the group that owns it (`usermod -aG kvm USER`), or run as root"
    )]
    Permission,
    /// Something else is there.
    #[error("{KVM_PATH}: not a working KVM: {0}; is this the right device node?")]
    NotKvm(std::io::Error),
    /// Ancient or foreign.
    #[error("{KVM_PATH}: speaks API version {0}, this program needs {KVM_API_VERSION}: use a newer kernel")]
    ApiVersion(i32),
    /// Too old or too small.
    #[error("{KVM_PATH}: lacks {0}: use a newer kernel")]
    Capability(&'static str),
    /// More CPUs than it can.
    #[error("--cpus {asked}: this host's KVM runs at most {most} CPUs in a machine")]
    Cpus {
        /// What was asked for.
        asked: u8,
        /// What is possible.
        most: usize,
    },
    /// A call that should have worked.
    #[error("KVM refused {call}: {cause}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// What it said.
        cause: kvm_ioctls::Error,
    },
}

/// Names the ioctl that failed.
pub(crate) fn call(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |cause| KvmError::Call { call, cause }
}

/// Opens `/dev/kvm` and checks that it can do what every machine needs.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|cause| match cause.errno() {
        libc::ENOENT => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        errno => KvmError::NotKvm(std::io::Error::from_raw_os_error(errno)),
    })?;
    check(&kvm)?;
    Ok(kvm)
}

fn check(kvm: &Kvm) -> Result<(), KvmError> {
    match kvm.get_api_version() {
        -1 => return Err(KvmError::NotKvm(std::io::Error::last_os_error())),
        version if i64::from(version) != i64::from(KVM_API_VERSION) => {
            return Err(KvmError::ApiVersion(version));
        }
        _ => {}
    }
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Capability(name)),
        None => Ok(()),
    }
}

/// A virtual machine: RAM and interrupt controllers, no CPU yet.
pub struct Vm {
    fd: Arc<VmFd>,
    /// The controllers as KVM made them, to put them back at a reset.
    irqchips: Vec<kvm_irqchip>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// A machine that will have `ram` once [`Vm::show_ram`] is called.
    pub fn new(fd: VmFd, ram: GuestRam) -> Result<Vm, KvmError> {
        let irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                fd.get_irqchip(&mut chip).map(|()| chip)
            })
            .collect::<Result<_, _>>()
            .map_err(call("KVM_GET_IRQCHIP"))?;
        Ok(Vm { fd: Arc::new(fd), irqchips, ram: Arc::new(ram) })
    }

    /// The machine's descriptor, for irqfds, ioeventfds and interrupt routes.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The machine's RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Shows the guest its RAM. The last thing before the first instruction: KVM waits here until the ports of
    /// its interrupt controllers are settled, up to two timer ticks (8 ms), unless other work has filled the time.
    pub fn show_ram(&self) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(self.ram.regions()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.gpa,
                memory_size: region.size,
                userspace_addr: region.host_addr,
            };
            // SAFETY: the region is a shared mapping of `size` bytes at `host_addr` that lives as long as the
            // RAM, which this machine and every vCPU keep while a guest can run.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Puts the interrupt controllers back as they were when the machine was made.
    pub fn reset_irqchips(&self) -> Result<(), KvmError> {
        self.irqchips.iter().try_for_each(|chip| self.fd.set_irqchip(chip)).map_err(call("KVM_SET_IRQCHIP"))
    }
}

/// Asks KVM for a machine with interrupt controllers.
pub fn create(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    // Only Intel hosts use these pages, only older ones have to be told.
    if kvm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    if kvm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(layout::KVM_TSS).map_err(call("KVM_SET_TSS_ADDR"))?;
    }
    vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM_BYTES;

    #[test]
    fn a_reset_undoes_what_a_guest_wrote_to_the_io_apic() {
        let vm = Vm::new(create(&open().unwrap()).unwrap(), GuestRam::new(MIN_RAM_BYTES).unwrap()).unwrap();
        let ioapic = || {
            let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
            vm.fd().get_irqchip(&mut chip).unwrap();
            chip
        };
        // SAFETY: KVM fills this member of the union for this controller.
        let redirections = |chip: &kvm_irqchip| unsafe { chip.chip.ioapic.redirtbl.map(|entry| entry.bits) };
        let made = redirections(&ioapic());
        let mut chip = ioapic();
        // SAFETY: as above.
        unsafe { chip.chip.ioapic.redirtbl[4].bits = 0x31 };
        vm.fd().set_irqchip(&chip).unwrap();
        assert_ne!(redirections(&ioapic()), made);
        vm.reset_irqchips().unwrap();
        assert_eq!(redirections(&ioapic()), made);
    }
}
