//! The vhost-user protocol: one codec for daemons, front-ends and test doubles.
//!
//! `code` is the table of messages: how long each is, how many descriptors it carries, how it is answered. `wire`
//! holds them as plain structs with pure functions from and to bytes. `transport` moves
//! those bytes and descriptors over a unix socket without ever blocking longer than a deadline.

pub mod code;
pub mod transport;
pub mod wire;

pub use transport::{Connection, Frame, TransportError};
pub use wire::{
    Code, DecodeError, Header, Inflight, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr, VringFd,
};
