//! Devices in daemons of their own, driven by the bare-metal guest through our VMM on this host's KVM.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tests::daemon::{Daemon, Launch};
use tests::vmm::{Ended, Run};
use tests::wait;

const SECTOR_BYTES: usize = 512;
/// 100,000 requests, or as many exits, take seconds where KVM interprets the guest, and longer on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn metal(cmdline: &str) -> Run {
    Run::metal(env!("CARGO_BIN_EXE_outboard"), cmdline)
}

fn rng() -> Daemon {
    Launch::new("outboard-rng").serve().unwrap()
}

#[test]
fn entropy_comes_through() {
    let daemon = rng();
    let ended = metal("metal=rng requests=1000").device("rng", daemon.socket()).finish();
    assert!(ended.ok().serial.contains("metal: rng 64000 bytes in 1000 requests\n"), "{ended:#?}");
}

#[test]
fn entropy_comes_without_optional_ring_features() {
    let daemon = rng();
    // Bits 28 and 29: indirect descriptors and event index.
    let cmdline = format!("metal=rng requests=1000 hide={}", 3u64 << 28);
    metal(&cmdline).device("rng", daemon.socket()).finish().ok();
}

#[test]
fn polled_requests_do_not_reach_the_vmm() {
    assert_no_exits("metal=rng requests=100000 mark");
}

#[test]
fn requests_with_interrupts_do_not_reach_the_vmm() {
    assert_no_exits("metal=rng requests=100000 mark irq");
}

/// The guest leaves mark 1, makes its requests, and leaves mark 2.
fn assert_no_exits(cmdline: &str) {
    let daemon = rng();
    let ended = metal(cmdline).device("rng", daemon.socket()).start().finish_within(LONG);
    let (before, after) = (ended.ok().event("mark", Some(1)), ended.event("mark", Some(2)));
    assert_eq!(after.kvm_exits - before.kvm_exits, 1, "mark 2 is the only exit: {ended:#?}");
    assert_eq!(after.epoll_returns - before.epoll_returns, 0, "{ended:#?}");
    let requests_us = after.us - before.us;
    println!("{cmdline}: {} ns a request", requests_us / 100);
}

#[test]
fn masked_interrupts_wait_and_come_once() {
    let daemon = rng();
    let ended = metal("metal=irq").device("rng", daemon.socket()).finish();
    assert!(ended.ok().serial.contains("metal: irq pending\n"), "{ended:#?}");
}

#[test]
fn a_device_serves_again_after_the_guest_resets() {
    let daemon = rng();
    let vmm = metal("metal=rng requests=100 irq then-reset").device("rng", daemon.socket()).start();
    vmm.wait_for("metal: rng 6400 bytes in 100 requests\n", 3);
}

#[test]
fn nonsense_in_pci_registers_kills_nobody() {
    for seed in 1..=4 {
        let mut daemon = rng();
        let ended = metal(&format!("metal=evil-pci writes=500 seed={seed}"))
            .device("rng", daemon.socket())
            .start()
            .finish_within(LONG);
        assert!(ended.ok().serial.contains("metal: evil-pci survived\n"), "seed {seed}: {ended:#?}");
        assert!(daemon.is_running(), "seed {seed}: {}", daemon.stderr());
    }
}

#[test]
fn nonsense_in_the_registers_of_every_device_kills_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemons = [rng(), disk(dir.path(), &["--queues", "2"]), console(&dir.path().join("port"))];
    let [rng, blk, console] = &daemons;
    let run = metal("metal=evil-pci writes=500 seed=5")
        .device("blk", blk.socket())
        .device("console", console.socket());
    run.device("rng", rng.socket()).option("--cpus", "2").start().finish_within(LONG).ok();
    for daemon in &mut daemons {
        assert!(daemon.is_running(), "{}", daemon.stderr());
    }
}

/// `outboard-blk` on an image of 1 MiB with serial number `metal-1`.
fn disk(dir: &Path, options: &[&str]) -> Daemon {
    let image = dir.join("disk.img");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let image = image.display().to_string();
    let launch =
        Launch::new("outboard-blk").args(["--image", &image, "--serial", "metal-1"].map(str::to_owned));
    launch.args(options.iter().map(ToString::to_string)).serve().unwrap()
}

#[test]
fn sectors_that_the_guest_writes_are_in_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = disk(dir.path(), &[]);
    let ended = metal("metal=blk sectors=8").device("blk", daemon.socket()).finish();
    let said = "metal: blk capacity 2048 id \"metal-1\" read-only false\n";
    assert!(ended.ok().serial.contains(said), "{ended:#?}");
    let image = std::fs::read(dir.path().join("disk.img")).unwrap();
    for sector in (0..8).chain(2040..2048) {
        assert_eq!(image[sector * SECTOR_BYTES..][..SECTOR_BYTES], pattern(sector), "sector {sector}");
    }
    assert!(image[8 * SECTOR_BYTES..2040 * SECTOR_BYTES].iter().all(|byte| *byte == 0));
}

/// As in tests/metal/src/cases/blk.rs.
fn pattern(sector: usize) -> [u8; SECTOR_BYTES] {
    std::array::from_fn(|offset| (sector * 31 + offset).to_le_bytes()[0])
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = disk(dir.path(), &["--read-only"]);
    let ended = metal("metal=blk").device("blk", daemon.socket()).finish();
    assert!(ended.ok().serial.contains("read-only true\n"), "{ended:#?}");
    let image = std::fs::read(dir.path().join("disk.img")).unwrap();
    assert!(image.iter().all(|byte| *byte == 0));
}

fn console(port: &Path) -> Daemon {
    let daemon =
        Launch::new("outboard-console").args(["--listen".to_owned(), port.display().to_string()]).serve();
    daemon.unwrap().wait_listening(port).unwrap()
}

#[test]
fn the_console_echoes_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let port = dir.path().join("port");
    let daemon = console(&port);
    let host = UnixStream::connect(&port).unwrap();
    host.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let vmm = metal("metal=console").device("console", daemon.socket()).start();
    let mut lines = BufReader::new(&host).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let mut said = 0;
    for line in
        (0..50).map(|number| format!("line {number} {}", "x".repeat(number * 7))).chain(["quit".into()])
    {
        writeln!(&host, "{line}").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), line);
        said += line.len() + 1;
    }
    let ended: Ended = vmm.finish();
    assert!(ended.ok().serial.contains(&format!("metal: console echoed {said} bytes\n")), "{ended:#?}");
}
