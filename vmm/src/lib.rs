//! The slim KVM core: vCPUs, guest RAM, a PCI bus, and nothing else. Every device of the guest is a vhost-user
//! daemon of its own.

pub mod boot;
pub mod bus;
pub mod kvm;
pub mod layout;
pub mod memory;
pub mod pci;
pub mod power;
pub mod serial;
pub mod terminal;
pub mod timings;
