//! Wire formats of the network device (virtio 1.3 §5.1).
//!
//! What the daemon will need first and everybody must agree on: the header before each frame and the
//! configuration space, as plain values with pure functions from and to bytes. The daemon itself is not here
//! yet.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod wire;
