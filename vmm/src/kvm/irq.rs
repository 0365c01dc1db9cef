//! Interrupts of devices: an eventfd that raises an MSI in the guest without passing through this process.
//!
//! Each source of interrupts (a virtqueue, a configuration change) owns an [`IrqLine`]: one eventfd and one GSI
//! for its whole life. A daemon, or this process, raises the eventfd. While the line is *attached*, KVM turns
//! that into the MSI its GSI is routed to; while it is not (the guest has masked the vector), the eventfd keeps
//! the interrupt, [`Event::is_raised`] is the pending bit, and attaching again delivers it: KVM looks at the
//! counter when it takes an irqfd. So neither masking nor a new vector needs a message to a daemon.
//!
//! `KVM_SET_GSI_ROUTING` replaces the whole table, so [`IrqRouter::apply`] takes all changes of a device at
//! once, and makes no call when nothing changed. The routes that KVM_CREATE_IRQCHIP set up (GSI 0-23 to the PICs
//! and the I/O APIC) are kept as they were; MSIs use GSIs from 24.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use super::event::Event;
use crate::layout::FIRST_MSI_GSI;

/// GSIs that may carry an MSI end here: KVM takes 4096 routes, of which the legacy ones need 40.
const MSI_GSI_END: u32 = 4056;
/// Pins of the two PICs, and of each of them.
const PIC_PINS: u32 = 16;
const PIC_PINS_EACH: u32 = 8;

/// Why an interrupt line could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// Every GSI is taken.
    #[error("This machine has more than {} interrupt sources; use fewer devices or queues", MSI_GSI_END - FIRST_MSI_GSI)]
    TooMany,
    /// The host would not make an eventfd.
    #[error("Cannot make an eventfd: {0}; raise the limit of open files (ulimit -n)")]
    Event(io::Error),
    /// KVM refused.
    #[error("KVM refused to {step}: {cause}")]
    Kvm {
        /// What was asked.
        step: &'static str,
        /// What it said.
        cause: kvm_ioctls::Error,
    },
}

/// Where an MSI is written and what (PCI 3.0 §6.8.2; on x86 the local APIC and the vector).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

impl MsiMessage {
    /// Whether the address is one of local APICs. Any other would be a write to memory, which no device here
    /// makes; and KVM would refuse the whole table for one with the low bits of the upper half set.
    fn is_interrupt(self) -> bool {
        self.address >> 20 & 0xfff == 0xfee && self.address >> 32 & 0xff == 0
    }

    fn route(self, gsi: u32) -> kvm_irq_routing_entry {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        let msi = kvm_irq_routing_msi {
            address_lo: u32::from_le_bytes([a, b, c, d]),
            address_hi: u32::from_le_bytes([e, f, g, h]),
            data: self.data,
            ..Default::default()
        };
        entry(gsi, KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry__bindgen_ty_1 { msi })
    }
}

/// GSI to message; a GSI that is taken but has no message yet has `None`.
type Routes = BTreeMap<u32, Option<MsiMessage>>;

/// The GSI routing of one machine.
pub struct IrqRouter {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

impl IrqRouter {
    /// For a machine that has its in-kernel irqchip.
    pub fn new(vm: Arc<VmFd>) -> IrqRouter {
        IrqRouter { vm, routes: Mutex::default() }
    }

    /// A new line: detached, not raised.
    pub fn line(self: &Arc<Self>) -> Result<IrqLine, IrqError> {
        let event = Arc::new(Event::new().map_err(IrqError::Event)?);
        let mut routes = self.lock();
        let free = (FIRST_MSI_GSI..MSI_GSI_END).find(|gsi| !routes.contains_key(gsi));
        let gsi = free.ok_or(IrqError::TooMany)?;
        routes.insert(gsi, None);
        Ok(IrqLine { router: Arc::clone(self), gsi, event, attached: false })
    }

    /// Gives each line its message (`None`: masked) in one change of the table.
    ///
    /// # Errors
    /// KVM refused; lines that were to change are left detached, so that none goes to an old vector.
    pub fn apply(&self, wanted: &mut [(&mut IrqLine, Option<MsiMessage>)]) -> Result<(), IrqError> {
        for (line, message) in wanted.iter_mut() {
            *message = message.filter(|m| m.is_interrupt());
            if message.is_none() {
                line.detach();
            }
        }
        self.route(wanted)?;
        wanted.iter_mut().filter(|(_, message)| message.is_some()).try_for_each(|(line, _)| line.attach())
    }

    fn route(&self, wanted: &mut [(&mut IrqLine, Option<MsiMessage>)]) -> Result<(), IrqError> {
        let mut routes = self.lock();
        let mut next = routes.clone();
        for (line, message) in wanted.iter().filter(|(_, message)| message.is_some()) {
            next.insert(line.gsi, *message);
        }
        if *routes == next {
            return Ok(());
        }
        if let Err(error) = self.set_table(&next) {
            wanted.iter_mut().for_each(|(line, _)| line.detach());
            return Err(error);
        }
        *routes = next;
        Ok(())
    }

    fn set_table(&self, routes: &Routes) -> Result<(), IrqError> {
        let mut table = legacy_routes();
        table.extend(routes.iter().filter_map(|(gsi, message)| message.map(|m| m.route(*gsi))));
        let table = KvmIrqRouting::from_entries(&table).map_err(|_| IrqError::TooMany)?;
        let refused = |cause| IrqError::Kvm { step: "route interrupts (KVM_SET_GSI_ROUTING)", cause };
        self.vm.set_gsi_routing(&table).map_err(refused)
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One source of interrupts: an eventfd, and the GSI by which KVM delivers it. Both are given back on drop.
pub struct IrqLine {
    router: Arc<IrqRouter>,
    gsi: u32,
    event: Arc<Event>,
    attached: bool,
}

impl IrqLine {
    /// What is raised to interrupt; the call descriptor of a daemon. The same for the line's whole life.
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    fn attach(&mut self) -> Result<(), IrqError> {
        if !self.attached {
            let refused = |cause| IrqError::Kvm { step: "attach an interrupt (KVM_IRQFD)", cause };
            self.router.vm.register_irqfd(self.event.for_kvm(), self.gsi).map_err(refused)?;
            self.attached = true;
        }
        Ok(())
    }

    fn detach(&mut self) {
        if self.attached {
            // KVM knows this pair, since it was attached; there is nothing else that could fail.
            let _ = self.router.vm.unregister_irqfd(self.event.for_kvm(), self.gsi);
            self.attached = false;
        }
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.detach();
        // KVM's table may keep the route until it is set next time: without an irqfd nothing uses it.
        self.router.lock().remove(&self.gsi);
    }
}

/// What KVM_CREATE_IRQCHIP set up: GSI 0-15 on a PIC and the I/O APIC, 16-23 on the I/O APIC.
fn legacy_routes() -> Vec<kvm_irq_routing_entry> {
    let pic = (0..PIC_PINS).map(|gsi| match gsi.checked_sub(PIC_PINS_EACH) {
        None => pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        Some(pin_of_slave) => pin(gsi, KVM_IRQCHIP_PIC_SLAVE, pin_of_slave),
    });
    let ioapic = (0..FIRST_MSI_GSI).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic).collect()
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry(gsi, KVM_IRQ_ROUTING_IRQCHIP, kvm_irq_routing_entry__bindgen_ty_1 { irqchip })
}

fn entry(gsi: u32, type_: u32, u: kvm_irq_routing_entry__bindgen_ty_1) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry { gsi, type_, flags: 0, pad: 0, u }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::pci::testing::test_vm;

    const APIC0: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x4041 };

    fn router() -> Arc<IrqRouter> {
        Arc::new(IrqRouter::new(test_vm()))
    }

    #[test]
    fn a_line_gives_its_gsi_back() {
        let router = router();
        let first = router.line().unwrap();
        let second = router.line().unwrap();
        assert_eq!((first.gsi, second.gsi), (FIRST_MSI_GSI, FIRST_MSI_GSI + 1));
        drop(first);
        assert_eq!(router.line().unwrap().gsi, FIRST_MSI_GSI);
    }

    #[test]
    fn an_attached_line_is_emptied_by_kvm_and_a_masked_one_keeps_the_interrupt() {
        let router = router();
        let mut line = router.line().unwrap();
        line.event().raise();
        assert!(line.event().is_raised(), "nobody has taken it yet");
        router.apply(&mut [(&mut line, Some(APIC0))]).unwrap();
        assert!(line.attached);
        // Taking the irqfd off empties the counter: what had come while attached went to the guest.
        router.apply(&mut [(&mut line, None)]).unwrap();
        assert!(!line.attached && !line.event().is_raised());
        line.event().raise();
        assert!(line.event().is_raised());
    }

    #[test]
    fn a_message_that_is_no_interrupt_masks_the_line_and_harms_no_other() {
        let router = router();
        let (mut good, mut bad) = (router.line().unwrap(), router.line().unwrap());
        for address in [0, 0x1000, 0xfed0_0000, 0xff_fee0_0000, u64::MAX] {
            let message = MsiMessage { address, data: 0 };
            router.apply(&mut [(&mut good, Some(APIC0)), (&mut bad, Some(message))]).unwrap();
            assert!(good.attached && !bad.attached, "{address:#x}");
        }
    }

    #[test]
    fn kvm_takes_a_table_of_all_gsis() {
        let router = router();
        let all: Routes = (FIRST_MSI_GSI..MSI_GSI_END).map(|gsi| (gsi, Some(APIC0))).collect();
        router.set_table(&all).unwrap();
        *router.lock() = all;
        assert!(matches!(router.line(), Err(IrqError::TooMany)));
    }

    #[test]
    fn what_kvm_refuses_leaves_lines_detached() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        // Without an irqchip there is nothing to route to.
        let router = Arc::new(IrqRouter::new(Arc::new(kvm.create_vm().unwrap())));
        let mut line = router.line().unwrap();
        assert!(matches!(router.apply(&mut [(&mut line, Some(APIC0))]), Err(IrqError::Kvm { .. })));
        assert!(!line.attached);
        assert_eq!(router.lock().get(&line.gsi), Some(&None));
    }
}
