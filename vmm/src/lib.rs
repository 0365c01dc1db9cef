//! The slim KVM core: vCPUs, guest RAM, a PCI bus, and nothing else. Every device of the guest is a vhost-user
//! daemon of its own.

#![deny(unsafe_code)]

pub mod api;
pub mod boot;
pub mod builder;
pub mod bus;
pub mod check;
pub mod cli;
pub mod config;
pub mod contended;
pub mod ctl;
pub mod error;
#[allow(unsafe_code)]
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod output;
pub mod pci;
pub mod power;
pub mod sandbox;
pub mod serial;
pub mod terminal;
pub mod timings;
pub mod vhost;
