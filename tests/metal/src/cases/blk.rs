//! `metal=blk [sectors=N]`: writes a pattern at both ends of the disk, flushes, reads back, asks for the ID,
//! and checks that a request past the end is refused.
//!
//! The pattern of sector S is byte `S * 31 + offset` (modulo 256), so the host can verify the image.

use super::{Machine, Outcome};
use crate::{dma::Identity, say, virtio::VirtioPci};
use alloc::{format, string::String, vec, vec::Vec};
use virtio_drivers::{
    Error,
    device::blk::{SECTOR_SIZE, VirtIOBlk},
    transport::DeviceType,
};

type Disk = VirtIOBlk<Identity, VirtioPci>;

pub fn run(machine: &Machine) -> Outcome {
    let transport = machine.virtio(DeviceType::Block, false)?;
    let mut disk = Disk::new(transport).map_err(|error| format!("{error}"))?;
    let capacity = usize::try_from(disk.capacity()).map_err(|error| format!("{error}"))?;
    say!("blk capacity {capacity} id {:?} read-only {}", id(&mut disk)?, disk.readonly());
    if disk.readonly() {
        return refused(disk.write_blocks(0, &pattern(0, 1)), "a write to a read-only disk");
    }
    let sectors =
        usize::try_from(machine.options.number("sectors", 8)).map_err(|error| format!("{error}"))?;
    let last = capacity.checked_sub(sectors).ok_or("the disk is smaller than the test")?;
    for start in [0, last] {
        check(disk.write_blocks(start, &pattern(start, sectors)), "write", start)?;
    }
    check(disk.flush(), "flush", 0)?;
    for start in [0, last] {
        verify(&mut disk, start, sectors)?;
    }
    refused(disk.read_blocks(capacity, &mut [0; SECTOR_SIZE]), "a read past the end")?;
    refused(disk.write_blocks(capacity - 1, &pattern(0, 2)), "a write across the end")
}

fn pattern(start: usize, sectors: usize) -> Vec<u8> {
    let byte = |at: usize| ((start + at / SECTOR_SIZE) * 31 + at % SECTOR_SIZE).to_le_bytes()[0];
    (0..sectors * SECTOR_SIZE).map(byte).collect()
}

fn verify(disk: &mut Disk, start: usize, sectors: usize) -> Outcome {
    let mut found = vec![0; sectors * SECTOR_SIZE];
    check(disk.read_blocks(start, &mut found), "read", start)?;
    if found == pattern(start, sectors) { Ok(()) } else { Err(format!("sector {start} reads back changed")) }
}

fn id(disk: &mut Disk) -> Result<String, String> {
    let mut id = [0; 20];
    let length = disk.device_id(&mut id).map_err(|error| format!("get ID: {error}"))?;
    Ok(String::from_utf8_lossy(&id[..length]).into_owned())
}

fn check(result: virtio_drivers::Result, what: &str, start: usize) -> Outcome {
    result.map_err(|error| format!("{what} at sector {start}: {error}"))
}

/// virtio 1.3 section 5.2.6.2: such a request ends with VIRTIO_BLK_S_IOERR.
fn refused(result: virtio_drivers::Result, what: &str) -> Outcome {
    match result {
        Err(Error::IoError) => Ok(()),
        other => Err(format!("{what} ended with {other:?}, not with an I/O error")),
    }
}
