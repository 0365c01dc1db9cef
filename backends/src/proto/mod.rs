//! The vhost-user protocol: one codec for daemons, front-ends and test doubles.
//!
//! `wire` holds the messages as plain structs with pure functions from and to bytes; the table in it says
//! how long each message is, how many descriptors it carries and how it is answered. `transport` moves
//! those bytes and descriptors over a unix socket without ever blocking longer than a deadline.

pub mod transport;
pub mod wire;

pub use transport::{Connection, Frame, TransportError};
pub use wire::{
    Code, DecodeError, Header, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr, VringFd,
};
