//! The block device (virtio 1.3 §5.2): a disk for one virtual machine.
//!
//! ```text
//! chain → request (what is asked, checked) → device (what becomes of it) → graph, volume by volume → engine → answer
//! ```
//! [`request`] is pure, [`device`] is the only part that knows both sides, and a [`graph`] knows nothing of virtio: a
//! [`call`] carries an operation of [`op`] through it, down to a leaf of [`storage`].

#![deny(unsafe_code)]

pub mod answer;
pub mod cache;
pub mod call;
#[allow(unsafe_code)]
pub mod cipher;
pub mod config;
pub mod create;
pub mod debug;
pub mod device;
pub mod features;
pub mod graph;
pub mod growth;
pub mod offer;
pub mod op;
pub mod request;
pub mod source;
pub mod storage;
pub mod tool;
pub mod uevents;
pub mod wire;

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod testing;
