//! The guest: its RAM, the driver's side of a virtqueue, and drivers for each device type.

pub mod blk;
pub mod chain;
pub mod console;
pub mod format;
pub mod memory;
mod packed;
pub mod raw;
pub mod raw_packed;
pub mod ring;
pub mod rng;
mod space;
mod split;

#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod tests;
