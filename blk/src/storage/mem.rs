//! `storage/mem`: a disk in the host's memory. It lasts as long as the daemon, over its workers, and no longer.
//!
//! In: a size. Out: a file of memory, which [`super::file`] serves as any other; nothing in it is ever durable.

use std::fs::File as HostFile;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backends::engine::Room;
use backends::memory::words::Words;
use rustix::fs::{MemfdFlags, fstat, memfd_create};

use super::file::{File, Shape, block_bytes};
use super::image::{CACHED, Found, LOST, flag};
use super::null::{OPTIONS, size_bytes};
use crate::graph::options::{Bad, Values};
use crate::graph::registry::{Kind, Made, Openings};

/// Bytes of a page of memory.
const PAGE_BYTES: u32 = 4096;

/// How it is written in a graph.
pub static KIND: Kind = Kind {
    name: "storage/mem",
    about: "A disk in memory, which ends with the daemon",
    subvolumes: 0..=0,
    options: OPTIONS,
    prepare: Some(prepare),
    make: |made| Ok(Arc::new(volume(made)?)),
};

/// Makes an empty disk, or goes on with that of a keeper before.
fn prepare(values: &Values, openings: &mut Openings<'_>) -> Result<(), Bad> {
    let size_bytes = size_bytes(values)?;
    let before = openings.before(CACHED).filter(|memory| is_of(memory, size_bytes));
    let memory = before.map_or_else(|| create(size_bytes), Ok).map_err(no_memory)?;
    openings.insert(CACHED, memory);
    openings.insert(LOST, flag().map_err(no_memory)?);
    Ok(())
}

fn volume(made: &Made<'_>) -> Result<Arc<File>, Bad> {
    let [cached, lost] = [CACHED, LOST].map(|what| made.take(what));
    let (Some(cached), Some(lost)) = (cached, lost) else {
        return Err(Bad::volume("its memory is not open").with_code(1));
    };
    let block_bytes = block_bytes(made.values);
    let (size, bytes) = (Words::own(1), size_bytes(made.values)?);
    size.iter().for_each(|word| word.store(bytes, Ordering::Relaxed));
    let found = Found { cached, direct: None, size_bytes: size, lost };
    let physical_bytes = PAGE_BYTES.max(block_bytes);
    let file = File::new(
        found,
        Shape {
            block_bytes,
            physical_bytes,
            read_only: false,
            durable: false,
            overwrites: false,
            keeps_room: false,
            lifetime: None,
        },
    );
    // Memory is given back or not, but has no zeros of its own.
    file.cannot(Room::Zeros);
    Ok(file)
}

fn create(size_bytes: u64) -> io::Result<OwnedFd> {
    let memory = HostFile::from(memfd_create("disk", MemfdFlags::CLOEXEC)?);
    memory.set_len(size_bytes)?;
    Ok(memory.into())
}

fn is_of(memory: &OwnedFd, size_bytes: u64) -> bool {
    fstat(memory).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(size_bytes))
}

fn no_memory(cause: impl Into<io::Error>) -> Bad {
    Bad::option("size", format_args!("{}; give less, or give this host more memory", cause.into()))
        .with_code(1)
}
