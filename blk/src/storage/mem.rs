//! `storage/mem`: a disk in the host's memory. It lasts as long as the daemon, over its workers, and no longer.
//!
//! In: a size. Out: a file of memory, which [`super::file`] serves as any other; nothing in it is ever durable.

use std::fs::File;
use std::io;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

use super::image::Found;

/// An empty disk.
///
/// # Errors
/// The host has no descriptor left.
pub fn create(size_bytes: u64) -> io::Result<Found> {
    let memory = File::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
    memory.set_len(size_bytes)?;
    let lost = eventfd(0, EventfdFlags::CLOEXEC)?;
    Ok(Found { cached: memory.into(), direct: None, size_bytes, lost })
}
