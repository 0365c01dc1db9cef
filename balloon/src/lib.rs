//! Wire formats of the memory balloon (virtio 1.3 §5.5).
//!
//! What the daemon will need first: the configuration space, of which a driver may change only two fields
//! whatever it sends. The daemon itself is not here yet.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod wire;
