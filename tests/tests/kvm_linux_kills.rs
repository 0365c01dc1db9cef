//! A Debian guest under our VMM that checks all of its I/O while its daemons are killed. Run as `kvm_linux_boot` is.

mod linux;

use std::fs;
use std::time::{Duration, Instant};

use linux::{LIMIT, can_run, guest, powered_off};
use tests::daemon::{Daemon, Launch};
use tests::kills::{Lane, Watch, assert_good, script};
use tests::machine::{BLK, RNG};
use tests::random::Random;
use tests::vmm::Vmm;
use xtask::demo::disk;

/// Kills of each daemon.
const KILLS: u64 = 20;
/// A kill comes at any moment of the rounds that follow.
const LATEST_KILL_US: u64 = 50_000;
const LANES: [Lane; 2] = [Lane::Disk, Lane::Entropy];

/// Name of the daemons' control sockets, in their directories.
const CONTROL: &str = "control.sock";

/// Each lane has `more` rounds.
///
/// # Panics
/// Nothing goes on any more; all that can be learned of those who should serve them.
fn rounds(watch: &Watch, more: u64, daemons: &[Daemon], vmm: &Vmm) {
    let Err(stands) = watch.wait_for(LANES.len().try_into().unwrap(), more, LIMIT) else { return };
    let daemons: Vec<_> = daemons.iter().map(|daemon| daemon.explain(CONTROL)).collect();
    panic!("{stands}\n{}\n{}", daemons.join("\n"), vmm.explain());
}

/// Lets a guest work on both daemons, calls `kill` again and again, and checks what it said. What the VMM said.
fn work(keeper: &str, mut kill: impl FnMut(&mut Daemon)) -> String {
    let launch = Launch::new(BLK.binary);
    let watch = Watch::create(&launch.dir().join("disk.img")).unwrap();
    let image = watch.path().display().to_string();
    let mut daemons = [
        launch
            .args(["--image", &image, "--queues", "2", "--keeper", keeper, "--control-socket", CONTROL])
            .serve()
            .unwrap(),
        RNG.launch().args(["--keeper", keeper, "--control-socket", CONTROL]).serve().unwrap(),
    ];
    let script = format!("{}\npoweroff -f", script(&LANES, &disk::nonce().unwrap()));
    let [blk, rng] = &daemons;
    let run = guest(&["virtio_pci", "virtio_blk", "virtio_rng"], &[], &script).option("--cpus", "2");
    let vmm = run.device("blk", blk.socket()).device("rng", rng.socket()).start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap().count();

    let mut random = Random::from_env();
    rounds(&watch, 1, &daemons, &vmm);
    let (before, start) = (descriptors(), Instant::now());
    for _ in 0..KILLS {
        // At least one round of each lane is whole between two kills, and the next one has begun.
        rounds(&watch, 1, &daemons, &vmm);
        std::thread::sleep(Duration::from_micros(random.below(LATEST_KILL_US)));
        daemons.iter_mut().for_each(&mut kill);
    }
    rounds(&watch, 2, &daemons, &vmm);
    let took = start.elapsed();
    assert_eq!(descriptors(), before, "N5");
    watch.stop().unwrap();
    let ended = powered_off(vmm);
    let said: Vec<&str> = ended.serial.lines().map(str::trim_end).collect();
    assert_good(&said.join("\n"), LANES.len());
    println!("{KILLS} kills of each daemon in {took:?}; the guest: {}", said.join(" | "));
    ended.stderr
}

#[test]
fn kvm_linux_goes_on_when_whole_daemons_are_killed() {
    if can_run() {
        let said = work("off", |daemon| {
            let again = daemon.restart();
            again.unwrap_or_else(|error| panic!("{error}; {}", daemon.explain(CONTROL)));
        });
        assert!(said.contains("its daemon is back"), "{said}");
    }
}

#[test]
fn kvm_linux_does_not_notice_that_workers_are_killed() {
    if can_run() {
        let said = work("on", |daemon| {
            daemon.kill_worker();
        });
        assert_eq!(said, "", "nor does the VMM");
    }
}
