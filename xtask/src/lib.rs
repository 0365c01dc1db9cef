//! The one entry to building, trying and measuring Outboard, for people and for CI.
//!
//! `main.rs` only parses the command line; each module here does one thing, and those that prepare kernels, guests
//! and QEMU are also a library for the scenario tests in `tests/`:
//!
//! ```text
//! packages ─► kernel ─► initramfs ─► qemu ─┬─► emulated   a host whose KVM runs Linux: `cargo xtask kvm-host`
//!                                          └─► frontend   QEMU with a Debian guest on our daemons (tests)
//! ```
//!
//! Everything fetched is kept under `$XDG_CACHE_HOME/outboard` (see [`cache`]); everything else lives in a temporary
//! directory that goes away with the run. Every process started is one of [`process::Running`]: it has a time limit,
//! and dies with us.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cache;
pub mod cargo;
pub mod cli;
pub mod coverage;
pub mod demo;
pub mod emulated;
pub mod explain;
pub mod frontend;
pub mod initramfs;
pub mod interrupt;
pub mod kernel;
pub mod kvm_host;
pub mod listen;
pub mod manuals;
pub mod packages;
pub mod process;
pub mod qemu;
pub mod skip;
pub mod soak;
pub mod test;
pub mod workspace;
