//! `outboard-rng` under QEMU, a front-end that is not ours, with a Debian guest that reads /dev/hwrng.

use std::time::Duration;

use tests::machine::RNG;
use xtask::demo::Served;
use xtask::frontend::Guest;
use xtask::packages;

/// The guest boots, reads and powers off within this time, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Reads by odd sizes as well as by the page; says which device feeds /dev/hwrng and what came.
const SCRIPT: &str = "
echo packed $(cut -c 35 /sys/bus/virtio/devices/virtio0/features)
echo source $(cat /sys/class/misc/hw_random/rng_current)
for size in 1 13 4096; do echo bytes $size $(dd if=/dev/hwrng bs=$size count=3 iflag=fullblock 2>/dev/null | wc -c); done
echo different $(for i in 1 2 3 4; do dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum; done | sort -u | wc -l)";

#[test]
fn qemu_guest_reads_hwrng() {
    assert_reads_hwrng(|guest| guest, "packed 0");
}

#[test]
fn qemu_guest_reads_hwrng_by_packed_rings() {
    assert_reads_hwrng(Guest::packed, "packed 1");
}

#[track_caller]
fn assert_reads_hwrng(rings: fn(Guest) -> Guest, packed: &str) {
    packages::ensure().unwrap();
    let daemon = RNG.launch().serve().unwrap();
    let guest = rings(Guest::new(&["virtio_pci", "virtio_rng"], SCRIPT));
    let said = guest.rng(daemon.socket()).run(LIMIT).unwrap();
    let said: Vec<&str> = said.lines().collect();
    let wanted =
        [packed, "source virtio_rng.0", "bytes 1 3", "bytes 13 39", "bytes 4096 12288", "different 4"];
    assert!(said.ends_with(&wanted), "{said:?}");

    let exit = daemon.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    let served = Served::from_log(&exit.stderr).unwrap();
    assert!(served.bytes >= 12288 && served.requests > 0, "{served:?}");
}

#[test]
fn qemu_guest_after_guest_is_served_by_the_same_process() {
    packages::ensure().unwrap();
    let daemon = RNG.launch().serve().unwrap();
    let guest =
        Guest::new(&["virtio_pci", "virtio_rng"], "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c");
    let guest = guest.cpus(2).rng(daemon.socket());
    for _ in 0..2 {
        let said = guest.run(LIMIT).unwrap();
        assert_eq!(said.lines().last(), Some("64"), "{said}");
    }
}
