//! `outboard-blk` under QEMU, a front-end that is not ours, with a Debian guest that reads and writes the disk by rings
//! of both kinds.

use std::fs;
use std::time::Duration;

use tests::machine::BLK;
use xtask::demo::disk;
use xtask::frontend::Guest;
use xtask::packages;

/// The guest boots, works and powers off within this time, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

#[test]
fn qemu_guest_reads_and_writes_the_disk() {
    assert_reads_and_writes(|guest| guest, '0');
}

#[test]
fn qemu_guest_reads_and_writes_the_disk_by_packed_rings() {
    assert_reads_and_writes(Guest::packed, '1');
}

/// The guest says `packed` of the feature bit (34) that chooses the kind of rings.
#[track_caller]
fn assert_reads_and_writes(rings: fn(Guest) -> Guest, packed: char) {
    packages::ensure().unwrap();
    let content = disk::random(disk::DISK_BYTES).unwrap();
    let launch = BLK.launch();
    let image = launch.dir().join("disk.img");
    fs::write(&image, &content).unwrap();
    let daemon = launch.serve().unwrap();

    let nonce = disk::nonce().unwrap();
    let script = format!(
        "echo packed $(cut -c 35 /sys/block/vda/device/features)
        echo disk $(blockdev --getsize64 /dev/vda) $(sha256sum </dev/vda | cut -d ' ' -f 1)
        yes {nonce} | head -c {} | dd of=/dev/vda bs=64k seek={} oflag=seek_bytes conv=fsync,notrunc 2>/dev/null
        echo written $?",
        disk::PATTERN_BYTES,
        disk::PATTERN_AT
    );
    let guest = rings(Guest::new(&MODULES, &script)).cpus(2).blk(daemon.socket(), 2);
    let said = guest.run(LIMIT).unwrap();
    let rings = format!("packed {packed}");
    let seen = format!("disk {} {}", content.len(), disk::sha256(&content));
    let said: Vec<&str> = said.lines().collect();
    assert!(said.ends_with(&[&rings, &seen, "written 0"]), "{said:?}");
    assert_eq!(disk::difference(&image, &disk::expected(&content, &nonce)).unwrap(), None);
    assert_eq!(daemon.terminate().code, Some(0));
}

#[test]
fn qemu_guest_may_not_write_a_read_only_disk() {
    packages::ensure().unwrap();
    let daemon = BLK.launch().args(["--read-only"]).serve().unwrap();
    let image = daemon.dir().join("disk.img");
    let before = fs::read(&image).unwrap();
    let script = "echo read-only $(cat /sys/block/vda/ro)
        dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=fsync 2>/dev/null; echo written $?
        echo read $(dd if=/dev/vda bs=64k 2>/dev/null | wc -c)";
    let said = Guest::new(&MODULES, script).blk(daemon.socket(), 1).run(LIMIT).unwrap();
    let read = format!("read {}", before.len());
    let said: Vec<&str> = said.lines().collect();
    assert!(said.ends_with(&["read-only 1", "written 1", &read]), "{said:?}");
    assert_eq!(fs::read(&image).unwrap(), before);
}
