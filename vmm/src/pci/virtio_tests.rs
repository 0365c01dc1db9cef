#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, Weak};

use proptest::prelude::*;

use super::*;
use crate::pci::common::F_VERSION_1;
use crate::pci::testing::test_vm;

const BAR: u32 = 0xc000_8000;
const FEATURES: u64 = F_VERSION_1 | 1 << 40 | 2;

/// A backend that writes down what it is asked, and fails when told to.
#[derive(Default)]
struct Log {
    calls: Mutex<Vec<String>>,
    fault: Mutex<Option<Fault>>,
    busy: AtomicBool,
}

struct Double(Arc<Log>, [u8; 8]);

impl Double {
    fn said(&self, call: String) -> Result<(), Fault> {
        self.0.calls.lock().unwrap().push(call);
        self.0.fault.lock().unwrap().map_or(Ok(()), Err)
    }
}

impl Backend for Double {
    fn start(&mut self, features: u64, rings: Vec<Ring>) -> Result<(), Fault> {
        let rings: Vec<_> = rings.iter().map(|r| (r.index, r.queue.size)).collect();
        self.said(format!("start {features:#x} {rings:?}"))
    }
    fn start_ring(&mut self, ring: Ring) -> Result<(), Fault> {
        self.said(format!("start_ring {}", ring.index))
    }
    fn stop_ring(&mut self, index: u16) {
        self.said(format!("stop_ring {index}")).unwrap();
    }
    fn stop(&mut self) {
        self.said("stop".into()).unwrap();
    }
    fn is_at_rest(&self) -> bool {
        !self.0.busy.load(Ordering::Relaxed)
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy(&self.1, offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.said(format!("write_config {offset} {data:?}")).unwrap();
    }
}

fn function(queues: u16) -> (VirtioPci<Double>, Arc<Log>) {
    let vm = test_vm();
    let irq = Arc::new(IrqRouter::new(Arc::clone(&vm)));
    let log = Arc::new(Log::default());
    let shape = Shape { device_type: 2, class: 0x01_80_00, features: FEATURES, queues, max_queue_size: 128 };
    let device =
        VirtioPci::new(&shape, Double(Arc::clone(&log), [1, 2, 3, 4, 5, 6, 7, 8]), &vm, &irq).unwrap();
    device.place(BAR);
    (device, log)
}

fn calls(log: &Log) -> Vec<String> {
    std::mem::take(&mut log.calls.lock().unwrap())
}

fn config32(device: &VirtioPci<Double>, at: usize) -> u32 {
    let mut data = [0; 4];
    device.config_read(at, &mut data);
    u32::from_le_bytes(data)
}

fn common8(device: &VirtioPci<Double>, at: u64) -> u8 {
    let mut data = [0];
    device.bar_read(COMMON + at, &mut data);
    data[0]
}

const STATUS: u64 = 0x14;

/// Drives the function to DRIVER_OK with queue 0 enabled.
fn start(device: &VirtioPci<Double>) {
    device.bar_write(0x08, &1u32.to_le_bytes());
    device.bar_write(0x0c, &(FEATURES >> 32).to_le_bytes()[..4]);
    device.bar_write(STATUS, &[0x0b]);
    device.bar_write(0x16, &0u16.to_le_bytes());
    device.bar_write(0x1c, &1u16.to_le_bytes());
    device.bar_write(STATUS, &[0x0f]);
}

#[test]
fn a_driver_finds_every_area_by_the_capabilities() {
    let (device, _) = function(2);
    assert_eq!(config32(&device, 0), 0x1042_1af4);
    assert_eq!(device.bar(), Some(u64::from(BAR)));
    let mut found = Vec::new();
    let mut at = usize::from(config32(&device, 0x34).to_le_bytes()[0]);
    while at != 0 {
        let [id, next, length, kind] = config32(&device, at).to_le_bytes();
        if id == CAPABILITY_VENDOR {
            assert_eq!(usize::from(length), if matches!(kind, CFG_NOTIFY | CFG_PCI) { 20 } else { 16 });
            found.push((kind, config32(&device, at + 8), config32(&device, at + 12)));
        } else {
            assert_eq!((id, config32(&device, at) >> 16), (msix::CAPABILITY_ID, 2));
            assert_eq!((config32(&device, at + 4), config32(&device, at + 8)), (0x4000, 0x6000));
        }
        at = usize::from(next);
    }
    assert_eq!(
        found,
        [
            (CFG_COMMON, 0, 0x1000),
            (CFG_ISR, 0x1000, 0x1000),
            (CFG_DEVICE, 0x2000, 0x1000),
            (CFG_NOTIFY, 0x3000, 0x1000),
            (CFG_PCI, 0, 0)
        ]
    );
}

#[test]
fn a_driver_starts_and_resets_the_device() {
    let (device, log) = function(2);
    start(&device);
    assert_eq!(common8(&device, STATUS), 0x0f);
    assert_eq!(calls(&log), ["start 0x10100000000 [(0, 128)]"]);
    device.bar_write(STATUS, &[0]);
    assert_eq!(calls(&log), ["stop"]);
    assert_eq!(common8(&device, STATUS), 0);
    start(&device);
    assert_eq!(calls(&log).len(), 1);
}

#[test]
fn one_queue_is_reset_alone() {
    let (device, log) = function(1);
    start(&device);
    device.bar_write(0x3a, &1u16.to_le_bytes());
    device.bar_write(0x1c, &1u16.to_le_bytes());
    assert_eq!(calls(&log)[1..], ["stop_ring 0", "start_ring 0"]);
}

#[test]
fn the_device_configuration_is_the_backends() {
    let (device, log) = function(1);
    let mut data = [0xff; 4];
    device.bar_read(DEVICE + 6, &mut data);
    assert_eq!(data, [7, 8, 0, 0]);
    device.bar_write(DEVICE + 6, &[9, 9]);
    assert_eq!(calls(&log), ["write_config 6 [9, 9]"]);
}

#[test]
fn a_fault_is_told_to_the_driver_once() {
    let (device, _) = function(1);
    device.attend(|| Err(Fault));
    assert_eq!(common8(&device, STATUS), 0, "no driver to be told");
    start(&device);
    device.attend(|| Err(Fault));
    assert_eq!(common8(&device, STATUS), 0x4f);
    assert!(device.lock().msix.event(CONFIG_LINE).unwrap().is_raised());
    let mut isr = [0];
    device.bar_read(ISR, &mut isr);
    assert_eq!(isr, [ISR_CONFIG]);
    device.bar_read(ISR, &mut isr);
    assert_eq!(isr, [0], "reading clears it");
    device.attend(|| Err(Fault));
    device.bar_read(ISR, &mut isr);
    assert_eq!(isr, [0], "it knows");
    device.bar_write(STATUS, &[0]);
    start(&device);
    assert_eq!(common8(&device, STATUS), 0x0f);
}

#[test]
fn virtio_4_1_4_3_1_the_status_is_not_0_before_the_device_is_at_rest() {
    let (device, log) = function(1);
    start(&device);
    log.busy.store(true, Ordering::Relaxed);
    device.bar_write(STATUS, &[0]);
    assert_eq!(common8(&device, STATUS), 0x0f);
    device.bar_write(STATUS, &[0x1f]);
    device.bar_write(0x1c, &1u16.to_le_bytes());
    device.attend(|| Err(Fault));
    assert_eq!(common8(&device, STATUS), 0x0f, "nothing counts until then");
    assert_eq!(calls(&log).len(), 2);
    log.busy.store(false, Ordering::Relaxed);
    assert_eq!(common8(&device, STATUS), 0);
    start(&device);
    assert_eq!(common8(&device, STATUS), 0x0f);
}

#[test]
fn a_queue_says_so_until_its_reset_is_over() {
    let (device, log) = function(1);
    start(&device);
    log.busy.store(true, Ordering::Relaxed);
    device.bar_write(0x3a, &1u16.to_le_bytes());
    device.bar_write(0x1c, &1u16.to_le_bytes());
    assert_eq!((common8(&device, 0x3a), common8(&device, 0x1c)), (1, 0));
    log.busy.store(false, Ordering::Relaxed);
    assert_eq!(common8(&device, 0x3a), 0);
    device.bar_write(0x1c, &1u16.to_le_bytes());
    assert_eq!(calls(&log)[1..], ["stop_ring 0", "start_ring 0"]);
}

#[test]
fn a_change_of_the_configuration_is_told_to_a_driver() {
    let (device, _) = function(1);
    device.config_changed();
    assert!(!device.lock().msix.event(CONFIG_LINE).unwrap().is_raised());
    start(&device);
    let generation = common8(&device, 0x15);
    device.config_changed();
    assert_eq!(common8(&device, 0x15), generation + 1);
    assert!(device.lock().msix.event(CONFIG_LINE).unwrap().is_raised());
}

#[test]
fn a_driver_that_lied_may_try_again() {
    let (device, log) = function(1);
    *log.fault.lock().unwrap() = Some(Fault);
    start(&device);
    assert_eq!(common8(&device, STATUS), 0x4f);
    *log.fault.lock().unwrap() = None;
    device.bar_write(STATUS, &[0]);
    start(&device);
    assert_eq!(common8(&device, STATUS), 0x0f);
}

#[test]
fn a_notification_that_reaches_us_is_passed_on() {
    let (device, _) = function(3);
    device.bar_write(NOTIFY + 8, &2u16.to_le_bytes());
    assert!(device.lock().doorbells.kick(2).unwrap().is_raised());
    device.bar_write(NOTIFY + 12, &2u16.to_le_bytes());
}

#[test]
fn moving_the_bar_and_switching_it_off_is_seen_by_the_bus() {
    let (device, _) = function(1);
    device.config_write(0x10, &u32::MAX.to_le_bytes());
    assert_eq!(config32(&device, 0x10), 0xffff_8000);
    device.config_write(0x10, &0xd001_0000u32.to_le_bytes());
    assert_eq!(device.bar(), Some(0xd001_0000));
    device.config_write(0x04, &[0, 0]);
    assert_eq!(device.bar(), None);
    device.reset();
    assert_eq!(device.bar(), Some(u64::from(BAR)));
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let (device, _) = function(2);
    let window = device.lock().window;
    let through = |offset: u32, length: u32| {
        device.config_write(window + WINDOW_OFFSET, &offset.to_le_bytes());
        device.config_write(window + WINDOW_LENGTH, &length.to_le_bytes());
        config32(&device, window + WINDOW_DATA)
    };
    assert_eq!(through(0x12, 2), 2, "num_queues");
    assert_eq!(through(0x2004, 4), 0x0807_0605);
    through(0x14, 1);
    device.config_write(window + WINDOW_DATA, &[1, 0, 0, 0]);
    assert_eq!(common8(&device, STATUS), 1);
    through(0x16, 2);
    device.config_write(window + WINDOW_DATA, &[1, 0]);
    assert_eq!(common8(&device, 0x16), 1);
    for (offset, length) in [(0x14, 3), (0x15, 2), (0x8000, 1), (u32::MAX, 1), (0, 0)] {
        through(offset, length);
        device.config_write(window + WINDOW_DATA, &[0xff; 4]);
        assert_eq!(common8(&device, STATUS), 1, "{offset:#x}+{length}");
    }
}

#[test]
fn msix_is_switched_by_its_control_word() {
    let (device, _) = function(1);
    let at = device.lock().msix_at;
    device.bar_write(0x10, &0u16.to_le_bytes());
    device.bar_write(TABLE, &0xfee0_0000u64.to_le_bytes());
    device.bar_write(TABLE + 8, &0x31u64.to_le_bytes());
    device.lock().msix.event(CONFIG_LINE).unwrap().raise();
    let pending = || {
        let mut data = [0];
        device.bar_read(PENDING, &mut data);
        data[0]
    };
    assert_eq!(pending(), 1, "MSI-X is off");
    device.config_write(at + 2, &0xffffu16.to_le_bytes());
    assert_eq!(config32(&device, at) >> 16, 0xc001, "size is read-only");
    assert_eq!(pending(), 1, "function mask");
    device.config_write(at + 3, &[0x80]);
    assert_eq!(pending(), 0, "a write of one byte counts too");
}

#[test]
fn dropping_a_function_drops_its_backend() {
    let (device, log) = function(1);
    let gone: Weak<Log> = Arc::downgrade(&log);
    drop((device, log));
    assert!(gone.upgrade().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_access_of_a_hostile_guest_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<bool>(), 0u64..0x8000, prop::collection::vec(any::<u8>(), 0..10)), 0..200),
    ) {
        let (device, _) = function(2);
        for (config, write, offset, data) in accesses {
            let at = usize::try_from(offset % 0x108).unwrap();
            let mut out = data.clone();
            match (config, write) {
                (true, true) => device.config_write(at, &data),
                (true, false) => device.config_read(at, &mut out),
                (false, true) => device.bar_write(offset, &data),
                (false, false) => device.bar_read(offset, &mut out),
            }
        }
        device.reset();
        start(&device);
        prop_assert_eq!(common8(&device, STATUS), 0x0f, "and a good driver still gets its device");
    }
}
