//! The slim KVM core: vCPUs, guest RAM, a PCI bus, and nothing else. Every device of the guest is a vhost-user
//! daemon of its own.

pub mod layout;
pub mod memory;
