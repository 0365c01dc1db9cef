//! QEMU's storage daemon as back-end of our VMM: a disk whose every line is somebody else's, in C.

use std::fs::{self, File};
use std::path::Path;

use tests::daemon::{Daemon, Launch, binary};
use tests::vmm::Run;
use xtask::packages;

const SECTOR_BYTES: usize = 512;
const SECTORS: usize = 2048;

/// The daemon with a disk of 1 MiB.
fn disk(options: &str) -> Daemon {
    packages::ensure().unwrap();
    let launch = Launch::of("qemu-storage-daemon");
    let image = launch.dir().join("disk.img");
    File::create(&image).unwrap().set_len(u64::try_from(SECTORS * SECTOR_BYTES).unwrap()).unwrap();
    let file = format!("driver=file,node-name=file,filename={}", image.display());
    let socket = launch.socket();
    let at = format!("addr.type=unix,addr.path={}", socket.display());
    let export = format!("type=vhost-user-blk,id=export,node-name=file,{at},{options}");
    launch.args(["--blockdev", &file, "--export", &export]).start().wait_listening(&socket).unwrap()
}

fn guest(cmdline: &str, socket: &Path) -> Run {
    Run::metal(binary("outboard"), cmdline).device("blk", socket)
}

/// As in tests/metal/src/cases/blk.rs.
fn pattern(sector: usize) -> [u8; SECTOR_BYTES] {
    std::array::from_fn(|offset| (sector * 31 + offset).to_le_bytes()[0])
}

#[track_caller]
fn assert_writes(daemon: &Daemon, cmdline: &str) {
    let ended = guest(cmdline, daemon.socket()).finish();
    let said = "metal: blk capacity 2048 id \"vhost_user_blk\" read-only false\n";
    assert!(ended.ok().serial.contains(said), "{ended:#?}");
    let image = fs::read(daemon.dir().join("disk.img")).unwrap();
    for sector in (0..8).chain(SECTORS - 8..SECTORS) {
        assert_eq!(image[sector * SECTOR_BYTES..][..SECTOR_BYTES], pattern(sector), "sector {sector}");
    }
    assert!(image[8 * SECTOR_BYTES..(SECTORS - 8) * SECTOR_BYTES].iter().all(|byte| *byte == 0));
}

#[test]
fn the_storage_daemon_has_what_guest_after_guest_writes() {
    let daemon = disk("writable=on,num-queues=4");
    for _ in 0..2 {
        assert_writes(&daemon, "metal=blk sectors=8");
    }
}

#[test]
fn the_storage_daemon_serves_without_optional_ring_features() {
    // Bits 28 and 29: indirect descriptors and event index.
    assert_writes(&disk("writable=on"), &format!("metal=blk sectors=8 hide={}", 3_u64 << 28));
}

#[test]
fn a_read_only_export_of_the_storage_daemon_refuses_writes() {
    let daemon = disk("writable=off");
    let ended = guest("metal=blk", daemon.socket()).finish();
    assert!(ended.ok().serial.contains("read-only true\n"), "{ended:#?}");
    assert!(fs::read(daemon.dir().join("disk.img")).unwrap().iter().all(|byte| *byte == 0));
}
