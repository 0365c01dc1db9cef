#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::layout::PCI_ECAM;

/// A device whose registers all read as its number, and that may take its time for it.
struct Plain {
    bar: AtomicU64,
    value: u8,
    gate: Option<Mutex<mpsc::Receiver<()>>>,
}

fn plain(value: u8) -> Arc<Plain> {
    Arc::new(Plain { bar: AtomicU64::new(0), value, gate: None })
}

impl PciDevice for Plain {
    fn place(&self, bar: u32) {
        self.bar.store(u64::from(bar), Ordering::Relaxed);
    }
    fn config_read(&self, _offset: usize, data: &mut [u8]) {
        data.fill(self.value);
    }
    fn config_write(&self, _offset: usize, data: &[u8]) {
        self.bar.store(u64::from_le_bytes(data.try_into().unwrap()), Ordering::Relaxed);
    }
    fn bar(&self) -> Option<u64> {
        Some(self.bar.load(Ordering::Relaxed))
    }
    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        if let Some(gate) = &self.gate {
            gate.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
        }
        data.fill(self.value + u8::try_from(offset).unwrap());
    }
    fn bar_write(&self, _offset: u64, _data: &[u8]) {}
    fn reset(&self) {
        self.bar.store(0x1000, Ordering::Relaxed);
    }
}

fn read(root: &PciRoot, gpa: u64) -> Option<u32> {
    let mut data = [0x55; 4];
    root.read(gpa, &mut data).then(|| u32::from_le_bytes(data))
}

#[test]
fn the_bridge_is_at_slot_0_and_absent_functions_read_as_ones() {
    let root = PciRoot::new();
    assert_eq!(read(&root, PCI_ECAM), Some(0x0008_1b36));
    assert_eq!(read(&root, PCI_ECAM + 8), Some(0x0600_0000));
    for absent in [1 << 12, 7 << 12, 1 << 15, 31 << 15] {
        assert_eq!(read(&root, PCI_ECAM + absent), Some(u32::MAX), "{absent:#x}");
        assert!(root.write(PCI_ECAM + absent, &[0; 4]));
    }
    assert_eq!(read(&root, PCI_ECAM - 4), None);
}

#[test]
fn devices_get_slots_and_bars_in_order() {
    let root = PciRoot::new();
    assert_eq!(root.add(plain(0x10)).unwrap(), 1);
    assert_eq!(root.add(plain(0x20)).unwrap(), 2);
    assert_eq!(read(&root, PCI_ECAM + (2 << 15)), Some(0x2020_2020));
    assert_eq!(read(&root, PCI_ECAM + (2 << 15) + (1 << 12)), Some(u32::MAX), "one function a device");
    assert_eq!(read(&root, PCI_WINDOW + 2 * u64::from(BAR_BYTES) + 4), Some(0x2424_2424));
    assert_eq!(read(&root, PCI_WINDOW), None);
    assert_eq!(read(&root, PCI_WINDOW + 3 * u64::from(BAR_BYTES)), None);
}

#[test]
fn a_moved_bar_is_found_at_its_new_place_until_reset() {
    let root = PciRoot::new();
    root.add(plain(1)).unwrap();
    root.write(PCI_ECAM + (1 << 15), &0xd000_0000u64.to_le_bytes());
    assert_eq!(read(&root, 0xd000_0000), Some(0x0101_0101));
    root.reset();
    assert_eq!(read(&root, 0xd000_0000), None);
    assert_eq!(read(&root, 0x1000), Some(0x0101_0101));
}

#[test]
fn the_bus_has_31_places() {
    let root = PciRoot::new();
    for slot in 1..SLOTS {
        assert_eq!(root.add(plain(0)).unwrap(), slot);
    }
    assert!(root.add(plain(0)).unwrap_err().to_string().contains("31 devices"));
}

#[test]
fn a_device_that_waits_keeps_nobody_else_waiting() {
    let (open, gate) = mpsc::channel();
    let slow = Arc::new(Plain { bar: AtomicU64::new(0), value: 1, gate: Some(Mutex::new(gate)) });
    let root = Arc::new(PciRoot::new());
    root.add(slow).unwrap();
    root.add(plain(2)).unwrap();
    let other = Arc::clone(&root);
    let waiting = std::thread::spawn(move || read(&other, PCI_WINDOW + u64::from(BAR_BYTES)));
    assert_eq!(read(&root, PCI_WINDOW + 2 * u64::from(BAR_BYTES)), Some(0x0202_0202));
    assert_eq!(root.add(plain(3)).unwrap(), 3);
    assert_eq!(read(&root, PCI_WINDOW + 3 * u64::from(BAR_BYTES)), Some(0x0303_0303));
    open.send(()).unwrap();
    assert_eq!(waiting.join().unwrap(), Some(0x0101_0101));
}
