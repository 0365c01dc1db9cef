#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
use proptest::prelude::*;

use super::offset::*;
use super::*;

const OFFERED: u64 = F_VERSION_1 | F_RING_RESET | 0x200;
const ACKNOWLEDGE_DRIVER: u8 = 3;

fn common() -> Common {
    Common::new(OFFERED, 2, 256)
}

fn read<const N: usize>(common: &Common, at: usize) -> [u8; N] {
    let mut data = [0xaa; N];
    common.read(at, &mut data, 7, 9);
    data
}

fn read16(common: &Common, at: usize) -> u16 {
    u16::from_le_bytes(read(common, at))
}

fn write16(common: &mut Common, at: usize, value: u16) -> Effect {
    common.write(at, &value.to_le_bytes())
}

fn write32(common: &mut Common, at: usize, value: u32) -> Effect {
    common.write(at, &value.to_le_bytes())
}

fn take_features(common: &mut Common, features: u64) -> u8 {
    let bytes = features.to_le_bytes();
    for (select, half) in [(0, &bytes[..4]), (1, &bytes[4..])] {
        write32(common, DRIVER_FEATURE_SELECT, select);
        common.write(DRIVER_FEATURE, half);
    }
    common.write(STATUS, &[ACKNOWLEDGE_DRIVER | STATUS_FEATURES_OK]);
    read::<1>(common, STATUS)[0]
}

/// A device that runs with queue 1 enabled.
fn running() -> Common {
    let mut common = common();
    assert_ne!(take_features(&mut common, F_VERSION_1 | F_RING_RESET) & STATUS_FEATURES_OK, 0);
    write16(&mut common, QUEUE_SELECT, 1);
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::Nothing);
    assert_eq!(common.write(STATUS, &[0x0f]), Effect::Start);
    common
}

#[test]
fn features_are_read_in_halves_and_end_at_64() {
    let mut common = common();
    for (select, want) in [(0, 0x200), (1, 0x101), (2, 0), (u32::MAX, 0)] {
        write32(&mut common, DEVICE_FEATURE_SELECT, select);
        assert_eq!(u32::from_le_bytes(read(&common, DEVICE_FEATURE)), want, "half {select}");
    }
}

#[test]
fn features_ok_is_given_only_to_a_subset_with_version_1() {
    assert_eq!(take_features(&mut common(), OFFERED), 0x0b);
    assert_eq!(take_features(&mut common(), F_VERSION_1), 0x0b);
    assert_eq!(take_features(&mut common(), 0x200), 0x03, "2.2: VERSION_1 is not optional");
    assert_eq!(take_features(&mut common(), F_VERSION_1 | 1), 0x03, "not offered");
}

#[test]
fn features_are_frozen_by_features_ok() {
    let mut common = common();
    take_features(&mut common, F_VERSION_1);
    take_features(&mut common, OFFERED);
    assert_eq!(common.driver_features(), F_VERSION_1);
}

#[test]
fn a_device_does_not_start_without_features_ok() {
    let mut common = common();
    assert_eq!(common.write(STATUS, &[0x07]), Effect::Nothing);
    assert!(!common.is_running());
    assert_eq!(common.write(STATUS, &[0]), Effect::Reset);
}

#[test]
fn only_the_device_asks_for_a_reset() {
    let mut common = common();
    common.write(STATUS, &[STATUS_NEEDS_RESET | 1]);
    assert_eq!(read::<1>(&common, STATUS), [1]);
    assert!(!common.needs_reset(), "no driver to be told");
    let mut running = running();
    assert!(running.needs_reset());
    assert!(!running.needs_reset(), "once");
    running.write(STATUS, &[0x0f]);
    assert_eq!(read::<1>(&running, STATUS), [0x4f]);
    running.begin_reset();
    running.finish_reset();
    assert_eq!(read::<1>(&running, STATUS), [0]);
}

#[test]
fn a_queue_is_described_by_halves_or_whole() {
    let mut common = common();
    write16(&mut common, QUEUE_SELECT, 1);
    write16(&mut common, QUEUE_SIZE, 64);
    write32(&mut common, QUEUE_DESC, 0x1111_2000);
    write32(&mut common, QUEUE_DESC + 4, 0x3);
    common.write(QUEUE_DRIVER, &0x4_5555_6000u64.to_le_bytes());
    common.write(QUEUE_DEVICE, &0x7_8888_9000u64.to_le_bytes());
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::Nothing);
    let want = Queue {
        size: 64,
        enabled: true,
        descriptors: 0x3_1111_2000,
        driver: 0x4_5555_6000,
        device: 0x7_8888_9000,
        ..Queue::default()
    };
    assert_eq!(common.enabled_queues().collect::<Vec<_>>(), [(1, want)]);
    assert_eq!(u64::from_le_bytes(read(&common, QUEUE_DESC)), 0x3_1111_2000);
    assert_eq!(read16(&common, QUEUE_NOTIFY_OFF), 1);
    write32(&mut common, QUEUE_DESC, 0);
    write16(&mut common, QUEUE_SIZE, 32);
    assert_eq!(common.queue(1), Some(want), "frozen while enabled");
}

#[test]
fn a_size_that_no_ring_has_is_not_taken() {
    let mut common = common();
    for (size, want) in [(0, 256), (512, 256), (100, 256), (128, 128), (u16::MAX, 128)] {
        write16(&mut common, QUEUE_SIZE, size);
        assert_eq!(read16(&common, QUEUE_SIZE), want, "after {size}");
    }
    common.driver_features |= F_RING_PACKED;
    write16(&mut common, QUEUE_SIZE, 100);
    assert_eq!(read16(&common, QUEUE_SIZE), 100, "2.8.10.1: any size for a packed ring");
}

#[test]
fn a_queue_that_does_not_exist_has_size_0_and_cannot_be_enabled() {
    let mut common = common();
    write16(&mut common, QUEUE_SELECT, 2);
    assert_eq!(read16(&common, QUEUE_SIZE), 0);
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::Nothing);
    assert_eq!(common.enabled_queues().count(), 0);
}

#[test]
fn a_queue_of_a_running_device_is_reset_and_started_again() {
    let mut common = running();
    assert_eq!(write16(&mut common, QUEUE_RESET, 1), Effect::StopQueue(1));
    assert_eq!((read16(&common, QUEUE_RESET), read16(&common, QUEUE_ENABLE)), (1, 0));
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::Nothing, "not yet");
    assert!(!common.finish_reset());
    assert_eq!((read16(&common, QUEUE_RESET), read16(&common, QUEUE_ENABLE)), (0, 0));
    assert_eq!(write16(&mut common, QUEUE_RESET, 1), Effect::Nothing, "it is disabled already");
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::StartQueue(1));
    assert_eq!(write16(&mut common, QUEUE_ENABLE, 1), Effect::Nothing);
}

#[test]
fn a_queue_reset_that_was_not_negotiated_is_ignored() {
    let mut common = common();
    take_features(&mut common, F_VERSION_1);
    write16(&mut common, QUEUE_ENABLE, 1);
    common.write(STATUS, &[0x0f]);
    assert_eq!(write16(&mut common, QUEUE_RESET, 1), Effect::Nothing);
    assert_eq!(read16(&common, QUEUE_ENABLE), 1);
}

#[test]
fn vectors_are_the_owners_business() {
    let mut common = common();
    assert_eq!(write16(&mut common, CONFIG_VECTOR, 3), Effect::ConfigVector(3));
    write16(&mut common, QUEUE_SELECT, 1);
    assert_eq!(write16(&mut common, QUEUE_VECTOR, 2), Effect::QueueVector(1, 2));
    assert_eq!((read16(&common, CONFIG_VECTOR), read16(&common, QUEUE_VECTOR)), (7, 9));
}

proptest! {
    #[test]
    fn any_access_leaves_the_promises_intact(
        accesses in prop::collection::vec((0usize..0x1000, prop::collection::vec(any::<u8>(), 0..12)), 0..200),
    ) {
        let mut common = common();
        let mut running = false;
        for (at, data) in &accesses {
            match common.write(*at % 0x48, data) {
                Effect::Start => running = true,
                Effect::Reset => { common.begin_reset(); common.finish_reset(); running = false; }
                Effect::StartQueue(index) | Effect::StopQueue(index) => prop_assert!(running && index < 2),
                _ => {}
            }
            common.read(*at, &mut vec![0; data.len()], 0, 0);
            prop_assert_eq!(running, common.is_running());
            prop_assert!(common.status & STATUS_NEEDS_RESET == 0);
            if running {
                prop_assert_eq!(common.driver_features & !OFFERED, 0);
                prop_assert!(common.driver_features & F_VERSION_1 != 0);
            }
            for queue in &common.queues {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= 256);
            }
        }
    }
}
