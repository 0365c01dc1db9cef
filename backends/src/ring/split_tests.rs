use super::*;
use crate::testing::Guest;

/// What the driver wants to hear, said the slow way: `event` lies in the half-open step from `old` to `new`.
fn passed(event: u16, new: u16, old: u16) -> bool {
    let mut index = old;
    while index != new {
        if index == event {
            return true;
        }
        index = index.wrapping_add(1);
    }
    false
}

#[test]
fn virtio_2_7_7_1_event_arithmetic_is_that_of_counting() {
    for start in [0u16, 1, 7, 0x7ffc, 65530, 65535] {
        for step in 0..=8u16 {
            for event in 0..=u16::MAX {
                let (old, new) = (start, start.wrapping_add(step));
                assert_eq!(event_wanted(event, new, old), passed(event, new, old), "{event} {new} {old}");
            }
        }
    }
}

#[test]
fn virtio_2_7_13_3_every_index_step_of_small_rings() {
    for size in [1u16, 2, 4, 8] {
        let guest = Guest::new(size, false);
        (0..size).for_each(|at| guest.available(at, at));
        for base in [0u16, 1, 65534, 65535] {
            for ahead in 0..=u16::MAX {
                guest.available_index(base.wrapping_add(ahead));
                let mut ring = guest.ring(base);
                let taken =
                    std::iter::from_fn(|| ring.next().transpose()).take(32).collect::<Result<Vec<_>, _>>();
                if ahead <= size {
                    let expected: Vec<u16> = (0..ahead).map(|i| base.wrapping_add(i) % size).collect();
                    assert_eq!(taken, Ok(expected));
                } else {
                    assert!(matches!(taken, Err(RingError::AvailableIndex { .. })));
                }
            }
        }
    }
}

#[test]
fn g02_a_head_outside_the_table_breaks_the_ring() {
    let guest = Guest::new(8, false);
    guest.available(0, 8);
    guest.available_index(1);
    assert_eq!(guest.ring(0).next(), Err(RingError::Head(8)));
}

#[test]
fn used_elements_show_only_when_published() {
    for base in [0u16, 65534] {
        let guest = Guest::new(4, false);
        guest.set_used_index(base);
        let mut ring = guest.ring(base);
        for head in 0..3 {
            ring.push_used(head, 100 + u32::from(head));
            assert_eq!(guest.used_index(), base);
        }
        assert!(ring.publish());
        assert_eq!(guest.used_index(), base.wrapping_add(3));
        for head in 0..3u16 {
            assert_eq!(guest.used(base.wrapping_add(head)), (u32::from(head), 100 + u32::from(head)));
        }
    }
}

#[test]
fn virtio_2_7_6_flags_suppress_interrupts() {
    let guest = Guest::new(4, false);
    let mut ring = guest.ring(0);
    guest.available_flags(1);
    ring.push_used(0, 0);
    assert!(!ring.publish());
    guest.available_flags(0);
    ring.push_used(1, 0);
    assert!(ring.publish());
}

#[test]
fn virtio_2_7_7_used_event_suppresses_interrupts() {
    let guest = Guest::new(4, true);
    let mut ring = guest.ring(0);
    guest.used_event(1);
    ring.push_used(0, 0);
    assert!(!ring.publish(), "index 1 is not passed by 0 -> 1");
    ring.push_used(1, 0);
    assert!(ring.publish(), "1 -> 2 passes it");
    ring.push_used(2, 0);
    assert!(!ring.publish(), "2 -> 3 does not");
    guest.used_event(3);
    ring.push_used(3, 0);
    ring.push_used(0, 0);
    assert!(ring.publish());
}

#[test]
fn notifications_are_asked_for_and_not_lost() {
    let plain = Guest::new(4, false);
    let mut ring = plain.ring(0);
    ring.disarm();
    assert_eq!(plain.used_flags(), 1);
    assert!(!ring.arm());
    assert_eq!(plain.used_flags(), 0);
    plain.available_index(1);
    assert!(ring.arm(), "an entry that came before arming is seen");

    let event = Guest::new(4, true);
    let mut ring = event.ring(65535);
    event.available_index(65535);
    assert!(!ring.arm());
    assert_eq!(event.avail_event(), 65535);
    event.available_index(0);
    assert!(ring.arm());
    assert_eq!(ring.next(), Ok(Some(0)));
    assert!(!ring.arm());
    assert_eq!(event.avail_event(), 0);
}

#[test]
fn f08_rings_that_do_not_fit_are_none() {
    let guest = Guest::new(4, false);
    let fits = |change: fn(&mut Layout)| {
        let mut layout = guest.layout();
        change(&mut layout);
        SplitRing::new(&guest.memory, &layout, 0).is_some()
    };
    assert!(fits(|_| {}));
    assert!(!fits(|l| l.descriptor += 8));
    assert!(!fits(|l| l.available += 1));
    assert!(!fits(|l| l.used += 2));
    assert!(!fits(|l| l.used += 0x10_0000 - 0x8000 - 8));
    assert!(!fits(|l| l.size = 3));
    assert!(!fits(|l| l.size = 0));
}
