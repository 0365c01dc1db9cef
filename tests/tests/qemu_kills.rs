//! Daemons that are killed under QEMU, a front-end that is not ours, while a Debian guest checks all of its I/O.

use std::time::Duration;

use tests::daemon::{Daemon, Launch};
use tests::kills::{Lane, Watch, assert_good, script};
use tests::machine::{BLK, RNG};
use tests::random::Random;
use xtask::demo::disk;
use xtask::frontend::Guest;
use xtask::packages;

/// The guest boots, works and powers off within this time, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// A kill comes at any moment of the rounds that follow: a round is a few milliseconds, most of it flushes.
const LATEST_KILL_US: u64 = 20_000;
/// Kills of each daemon.
const KILLS: u64 = 20;

const DISKS: [Lane; 2] = [Lane::Disk, Lane::Disk];
const ALL: [Lane; 3] = [Lane::Disk, Lane::Disk, Lane::Entropy];

fn disk_daemon(keeper: &str) -> (Daemon, Watch) {
    let launch = Launch::new(BLK.binary);
    let watch = Watch::create(&launch.dir().join("disk.img")).unwrap();
    let image = watch.path().display().to_string();
    let options = ["--image", &image, "--queues", "2", "--keeper", keeper].map(str::to_owned);
    (launch.args(options).serve().unwrap(), watch)
}

/// Runs the guest, calls `kill` again and again while it works, and checks what it said.
#[track_caller]
fn work(guest: &Guest, lanes: usize, watch: &Watch, mut kill: impl FnMut()) {
    let mut random = Random::from_env();
    let said = std::thread::scope(|scope| {
        let running = scope.spawn(|| guest.run(LIMIT));
        let lanes = lanes.try_into().unwrap();
        for _ in 0..KILLS {
            // At least one round of each lane is whole between two kills, and the next one has begun.
            watch.wait_for(lanes, 1, LIMIT).unwrap();
            std::thread::sleep(Duration::from_micros(random.below(LATEST_KILL_US)));
            kill();
        }
        watch.wait_for(lanes, 2, LIMIT).unwrap();
        watch.stop().unwrap();
        running.join().unwrap().unwrap()
    });
    assert_good(&said, lanes);
    println!("{KILLS} kills; the guest: {said}");
}

fn guest(lanes: &[Lane]) -> Guest {
    packages::ensure().unwrap();
    Guest::new(&["virtio_pci", "virtio_blk", "virtio_rng"], &script(lanes, &disk::nonce().unwrap())).cpus(2)
}

#[test]
fn qemu_guest_does_not_notice_that_workers_are_killed() {
    let (blk, watch) = disk_daemon("on");
    let rng = RNG.launch().serve().unwrap();
    let guest = guest(&ALL).blk(blk.socket(), 2).rng(rng.socket());
    work(&guest, ALL.len(), &watch, || {
        blk.kill_worker();
        rng.kill_worker();
    });
}

#[test]
fn qemu_guest_does_not_notice_that_workers_are_killed_on_packed_rings() {
    let (blk, watch) = disk_daemon("on");
    let rng = RNG.launch().serve().unwrap();
    let guest = guest(&ALL).packed().blk(blk.socket(), 2).rng(rng.socket());
    work(&guest, ALL.len(), &watch, || {
        blk.kill_worker();
        rng.kill_worker();
    });
}

#[test]
fn qemu_guest_goes_on_when_the_whole_daemon_is_killed() {
    let (mut blk, watch) = disk_daemon("off");
    let guest = guest(&DISKS).reconnecting().blk(blk.socket(), 2);
    work(&guest, DISKS.len(), &watch, || blk.restart().unwrap());
}
