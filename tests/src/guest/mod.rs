//! The guest: its RAM, the driver's side of a virtqueue, and drivers for each device type.

pub mod blk;
pub mod chain;
pub mod console;
pub mod memory;
pub mod raw;
pub mod ring;
pub mod rng;
mod space;
mod split;

#[cfg(test)]
mod tests;
