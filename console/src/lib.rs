//! The console device (virtio 1.3 §5.3): a byte stream each way between a guest and one place on the host.
//!
//! ```text
//! receiveq  ◄── Port::receive  ◄── readv  ── host::{stdio, pty, unix, connect}
//! transmitq ──► Port::transmit ──► writev ─►      one reader and writer at a time
//! ```
//! Both queues belong to one worker, which owns the [`port::Port`], so nothing is locked. The port stays when
//! front-ends come and go. What it promises about bytes stands in [`port`].
//! Not here: more than one port (F_MULTIPORT), emergency write. A second port is a second [`port::Port`] with
//! its own pair of queues; [`device`] alone knows which queue is whose.

#![forbid(unsafe_code)]

pub mod backlog;
pub mod config;
pub mod device;
pub mod host;
pub mod outgoing;
pub mod port;
pub mod wire;
