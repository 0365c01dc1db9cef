//! Leaves: the volumes that hold bytes.
//!
//! In: calls that nobody below can take. Out: operations of the engine on descriptors, and their answers as outcomes.
//! [`image`] opens what [`file`] serves; [`transfer`] sees to it that nobody ever sees half an operation.

pub mod file;
pub mod image;
pub mod lifetime;
pub mod lock;
pub mod mem;
pub mod null;
pub mod transfer;
