//! Unmodified Debian guests under our VMM. `cargo xtask test` runs these where KVM runs Linux: on this host, or all of
//! them in one boot of the emulated host.

mod linux;

use std::fs;

use linux::{can_run, guest, powered_off, run};
use tests::machine::{BLK, RNG};
use tests::vmm::Ended;
use xtask::demo::disk;
use xtask::initramfs::Initramfs;
use xtask::kernel::{Flavour, Kernel};

fn says(ended: &Ended, line: &str) {
    assert!(ended.serial.lines().any(|said| said.trim_end() == line), "no {line:?}: {ended:#?}");
}

#[test]
fn kvm_linux_sees_its_processors_and_its_memory() {
    if !can_run() {
        return;
    }
    let script = "echo processors $(nproc)
        [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -gt 200000 ] && echo memory
        poweroff -f";
    let ended = powered_off(guest(&[], &[], script).option("--cpus", "2").start());
    says(&ended, "processors 2");
    says(&ended, "memory");
}

#[test]
fn kvm_linux_boots_compressed() {
    if !can_run() {
        return;
    }
    let kernel = Kernel::debian(Flavour::Cloud).unwrap();
    let run = run(&kernel.compressed.unwrap(), Initramfs::new(&[], "echo up\npoweroff -f").unwrap());
    says(&powered_off(run.start()), "up");
}

#[test]
fn kvm_linux_reset_ends_the_vmm_when_told_so() {
    if !can_run() {
        return;
    }
    let ended = powered_off(guest(&[], &[], "echo up\nreboot -f").option("--on-reset", "exit").start());
    says(&ended, "up");
}

#[test]
fn kvm_linux_outlives_its_daemon() {
    if !can_run() {
        return;
    }
    let mut daemon = RNG.launch().args(["--keeper", "off"]).serve().unwrap();
    let script = "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c
        echo ready
        read -r line
        echo alive $line
        poweroff -f";
    let run = guest(&["virtio_pci", "virtio_rng"], &[], script).device("rng", daemon.socket());
    let mut vmm = run.start();
    vmm.wait_for("ready", 1);
    daemon.kill9();
    vmm.type_in("still\n");
    let ended = powered_off(vmm);
    says(&ended, "64");
    says(&ended, "alive still");
}

#[test]
fn kvm_linux_works_on_a_disk_from_two_processors() {
    if !can_run() {
        return;
    }
    let content = disk::random(disk::DISK_BYTES).unwrap();
    let launch = BLK.launch();
    let image = launch.dir().join("disk.img");
    fs::write(&image, &content).unwrap();
    let daemon = launch.serve().unwrap();
    // Feature bit 34 is the 35th character: the driver took packed rings, through our VMM.
    let script = "echo queues $(ls /sys/block/vda/mq | wc -l)
        echo packed $(cut -c 35 /sys/block/vda/device/features)
        echo sha256 $(sha256sum </dev/vda | cut -d ' ' -f 1)
        for half in 0 1; do
            taskset $((half + 1)) dd if=/dev/zero of=/dev/vda bs=64k count=8 seek=$((half * 8)) conv=fsync,notrunc 2>/dev/null &
        done
        wait
        sync
        poweroff -f";
    let run = guest(&["virtio_pci", "virtio_blk"], &[], script).option("--cpus", "2");
    let ended = powered_off(run.device("blk", daemon.socket()).start());
    says(&ended, "queues 2");
    says(&ended, "packed 1");
    says(&ended, &format!("sha256 {}", disk::sha256(&content)));
    let mut expected = content;
    expected[..1 << 20].fill(0);
    assert_eq!(disk::difference(&image, &expected).unwrap(), None);
}
