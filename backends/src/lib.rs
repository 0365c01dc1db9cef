//! What every Outboard daemon is made of, except its device.
pub mod proto;
