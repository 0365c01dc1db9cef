//! What tests of this crate's PCI and vhost parts share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};

/// A machine of the real KVM with its in-kernel irqchip.
pub fn test_vm() -> Arc<VmFd> {
    let vm =
        Kvm::new().expect("these tests need /dev/kvm and the permission to open it").create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Arc::new(vm)
}
