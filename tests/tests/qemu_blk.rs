//! `outboard-blk` under QEMU, a front-end that is not ours, with a Debian guest that reads and writes the disk by rings
//! of both kinds.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::daemon::binary;
use tests::machine::BLK;
use tests::wait;
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

/// A program of the host: busybox's does not write zeroes.
const BLKDISCARD: &str = "/usr/sbin/blkdiscard";
const MIB: usize = 1 << 20;

#[test]
fn qemu_guest_discards_zeroes_and_chooses_its_cache() {
    packages::ensure().unwrap();
    let launch = BLK.launch();
    let image = launch.dir().join("disk.img");
    let mut content = disk::random(16 * MIB).unwrap();
    fs::write(&image, &content).unwrap();
    let daemon = launch.serve().unwrap();
    let script = "cd /sys/block/vda; echo blocks $(cat queue/physical_block_size queue/minimum_io_size queue/optimal_io_size)
        echo discard $(cat queue/discard_granularity queue/discard_max_bytes queue/max_discard_segments)
        echo zeroes $(cat queue/write_zeroes_max_bytes)
        /usr/sbin/blkdiscard -z -o 1M -l 3M /dev/vda; echo zeroed $?
        /usr/sbin/blkdiscard -o 8M -l 4M /dev/vda; echo discarded $?
        fill() { yes $1 | dd of=/dev/vda bs=64k count=1 seek=$2 oflag=direct iflag=fullblock 2>/dev/null; echo $1 $?; }
        echo cache $(cat cache_type); fill back 0
        echo write through >cache_type; echo cache $(cat cache_type) $(cat queue/write_cache); fill through 1
        echo write back >cache_type; echo cache $(cat cache_type); fill again 2; sync";
    let guest = Guest::new(&MODULES, script).program(BLKDISCARD.as_ref()).blk(daemon.socket(), 1);
    let said = guest.run(LIMIT).unwrap();
    let said: Vec<&str> = said.lines().collect();
    let expected = [
        "blocks 4096 4096 0",
        "discard 4096 1073741824 256",
        "zeroes 1073741824",
        "zeroed 0",
        "discarded 0",
        "cache write back",
        "back 0",
        "cache write through write through",
        "through 0",
        "cache write back",
        "again 0",
    ];
    assert!(said.ends_with(&expected), "{said:#?}");
    content[MIB..4 * MIB].fill(0);
    content[8 * MIB..12 * MIB].fill(0);
    for (nth, word) in ["back\n", "through\n", "again\n"].iter().enumerate() {
        let bytes = word.bytes().cycle();
        content[nth << 16..].iter_mut().take(1 << 16).zip(bytes).for_each(|(to, byte)| *to = byte);
    }
    assert!(fs::read(&image).unwrap() == content);
    assert!(room(&image) <= 12 * MIB, "what was discarded was given back: {}", room(&image));
    assert_eq!(daemon.terminate().code, Some(0));
}

/// Bytes that a file takes of its disk.
fn room(file: &Path) -> usize {
    usize::try_from(fs::metadata(file).unwrap().blocks() * 512).unwrap()
}

#[test]
fn qemu_guest_trims_what_its_file_system_does_not_use() {
    packages::ensure().unwrap();
    let launch = BLK.launch();
    let image = launch.dir().join("disk.img");
    File::create(&image).unwrap().set_len(64 * MIB as u64).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().unwrap();
    assert!(made.success());
    let daemon = launch.serve().unwrap();
    let script = "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; echo mounted $?
        dd if=/dev/urandom of=/mnt/large bs=1M count=40 2>/dev/null; echo kept >/mnt/small; sync; rm /mnt/large; sync
        echo 3 >/proc/sys/vm/drop_caches; fstrim /mnt; echo trimmed $?; cat /mnt/small; umount /mnt";
    let modules = [&MODULES[..], &["ext4"]].concat();
    let guest = Guest::new(&modules, script).blk(daemon.socket(), 1);
    let said = guest.run(LIMIT).unwrap();
    let said: Vec<&str> = said.lines().collect();
    assert!(said.ends_with(&["mounted 0", "trimmed 0", "kept"]), "{said:#?}");
    assert!(room(&image) < 20 * MIB, "what was trimmed was given back: {}", room(&image));
    assert_eq!(daemon.terminate().code, Some(0));
}

#[test]
fn qemu_guest_sees_its_disk_grow() {
    packages::ensure().unwrap();
    let launch = BLK.launch();
    let image = launch.dir().join("disk.img");
    fs::write(&image, vec![0; 2 * MIB]).unwrap();
    let control = launch.dir().join("control");
    let daemon = launch.args(["--control-socket".to_owned(), control.display().to_string()]).serve().unwrap();
    let script = "size() { blockdev --getsize64 /dev/vda; }
        before=$(size); echo ready | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null
        while [ $(size) = $before ]; do usleep 10000; done; echo grown $before $(size)
        yes more | dd of=/dev/vda bs=1M seek=3 count=1 conv=fsync,notrunc iflag=fullblock 2>/dev/null; echo written $?";
    let guest = Guest::new(&MODULES, script).blk(daemon.socket(), 1);
    let said = std::thread::scope(|scope| {
        let guest = scope.spawn(|| guest.run(LIMIT));
        let is_ready = || {
            let mut word = [0; 5];
            let read = File::open(&image).unwrap().read_exact_at(&mut word, 0);
            guest.is_finished() || read.is_ok() && &word == b"ready"
        };
        wait::until_within(LIMIT, is_ready);
        let mut grow = Command::new(binary("outboard-blk"));
        grow.arg("grow")
            .arg("--control-socket")
            .arg(&control)
            .arg("--image")
            .arg(&image)
            .args(["--to", "4M"]);
        let grown = grow.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&grown.stdout), "The disk has 4M now, 2M before\n");
        guest.join().unwrap().unwrap()
    });
    let said: Vec<&str> = said.lines().collect();
    assert!(said.ends_with(&["grown 2097152 4194304", "written 0"]), "{said:#?}");
    assert!(fs::read(&image).unwrap()[3 * MIB..].starts_with(b"more\nmore\n"));
    assert_eq!(daemon.terminate().code, Some(0));
}
