//! The bare-metal guest under QEMU's emulator: a machine and devices that are not ours must satisfy it too, so
//! that what it finds wrong under our VMM is our VMM's fault. Not `evil-pci`: QEMU 7.2 hangs on it.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use tests::metal;
use xtask::packages;

const LIMIT_S: &str = "120";

/// Runs the guest on q35 with the devices of `options`; returns what it said.
fn qemu(cmdline: &str, options: &[&str]) -> String {
    packages::ensure().unwrap();
    let machine = "-machine q35 -accel tcg -m 128 -smp 2 -nodefaults -display none -no-reboot -serial stdio";
    let output = Command::new("timeout")
        .args(["--kill-after=5", LIMIT_S, "qemu-system-x86_64"])
        .args(machine.split(' '))
        .args(["-append", cmdline, "-kernel"])
        .arg(metal::image().unwrap())
        .args(options)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // Power-off takes QEMU a moment, in which the guest may complain that it still runs.
    assert!(said.contains("metal: ok\n"), "{cmdline}: {output:?}");
    said
}

const RNG: [&str; 2] = ["-device", "virtio-rng-pci,disable-legacy=on"];

#[test]
fn cpus_and_tables() {
    assert!(qemu("metal=smp", &[]).contains("metal: smp 2 CPUs\n"));
    assert!(qemu("metal=info", &[]).contains("metal: cpus [0, 1]\n"));
}

#[test]
fn entropy_polled_and_by_interrupt() {
    let said = "metal: rng 64000 bytes in 1000 requests\n";
    assert!(qemu("metal=rng requests=1000", &RNG).contains(said));
    assert!(qemu("metal=rng requests=1000 irq", &RNG).contains(said));
}

#[test]
fn masked_interrupts() {
    assert!(qemu("metal=irq", &RNG).contains("metal: irq pending\n"));
}

#[test]
fn a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let said = qemu("metal=blk", &disk(&image).each_ref().map(String::as_str));
    assert!(said.contains("metal: blk capacity 2048 id \"metal-1\" read-only false\n"), "{said}");
    assert!(fs::read(&image).unwrap().starts_with(&[0, 1, 2, 3]));
}

fn disk(image: &Path) -> [String; 4] {
    let drive = format!("file={},format=raw,if=none,id=disk", image.display());
    ["-drive".into(), drive, "-device".into(), "virtio-blk-pci,drive=disk,serial=metal-1".into()]
}
