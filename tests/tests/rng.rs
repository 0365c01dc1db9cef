//! `outboard-rng` over a real socket: chains of every shape, notifications, restarts, memory.

use std::collections::HashSet;

use tests::frontend::{F_EVENT_IDX, Frontend, Memory, Wants};
use tests::guest::chain::{Chain, POISON};
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::ring::{Interrupts, Ring};
use tests::guest::rng::Rng;
use tests::machine::{Machine, RAM_BYTES, RNG};
use tests::wait;

const ENGINES: [&str; 2] = ["io-uring", "epoll"];
const RINGS: [RingKind; 2] = [RingKind::Split, RingKind::Packed];
/// What the daemon gives to one request at most.
const MAX_BYTES: u32 = 64 * 1024;

/// The daemon with this engine, and a guest with these wishes.
fn boot(engine: &str, wants: Wants) -> Machine {
    let launch = RNG.launch().args(["--engine", engine]);
    RNG.boot_with(launch, &Ram::new(RAM_BYTES), wants)
}

/// Both kinds of ring, with and without EVENT_IDX, with and without IN_ORDER.
fn every_wish() -> impl Iterator<Item = Wants> {
    (0..8).map(|bits| Wants {
        features: if bits & 1 == 0 { u64::MAX } else { !F_EVENT_IDX },
        in_order: bits & 2 != 0,
        ..Wants::on(RINGS[bits >> 2])
    })
}

/// Runs `check` with both engines and every wish.
fn everywhere(check: impl Fn(&mut Machine)) {
    for engine in ENGINES {
        every_wish().for_each(|wants| check(&mut boot(engine, wants)));
    }
}

/// Bytes of the request, which must all have been written.
#[track_caller]
fn filled(ring: &mut Ring, chain: &Chain, len: u32) -> Vec<u8> {
    let done = ring.run(chain).unwrap();
    assert_eq!(done.len, len);
    let poison = done.data.iter().filter(|byte| **byte == POISON).count();
    assert!(poison <= done.data.len() / 64 + 4, "{poison} of {len} bytes were not written");
    done.data
}

#[test]
fn chains_of_every_shape_are_filled() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        for len in [1, 2, 63, 4096, 4097, MAX_BYTES] {
            filled(&mut ring, &Chain::new().writable(len), len);
        }
        let many = (0..60).fold(Chain::new(), |chain, len| chain.writable(len));
        let sum = (0..60).sum();
        filled(&mut ring, &many, sum);
        // §2.8.8: a packed chain is all direct or all indirect.
        let mixed = if ring.shape().kind == RingKind::Split { &[0, 1, 3, 59][..] } else { &[0] };
        for &direct in mixed {
            filled(&mut ring, &many.clone().indirect_after(direct), sum);
        }
    });
}

#[test]
fn r02_readable_and_empty_descriptors_are_passed_over() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        let chain = Chain::new().readable(b"to be").readable(b"").readable(b"skipped");
        let chain = chain.writable(0).writable(10).writable(0).writable(20).writable(0);
        filled(&mut ring, &chain, 30);
        filled(&mut ring, &chain.indirect(), 30);
    });
}

#[test]
fn r01_four_gigabytes_in_one_chain_get_64_kib() {
    everywhere(|machine| {
        let ram = machine.ram();
        ram.claim(RAM_BASE, u64::from(MAX_BYTES));
        let mut ring = machine.frontend.start_new(0, 512).unwrap();
        let whole = u32::try_from(RAM_BYTES).unwrap();
        let chain = (0..500).fold(Chain::new(), |chain, _| chain.at(RAM_BASE, whole, true));
        for chain in [chain.clone(), chain.indirect()] {
            let done = ring.run(&chain).unwrap();
            assert!((1..=MAX_BYTES).contains(&done.len), "{} bytes", done.len);
            machine.assert_serves(&mut ring);
        }
    });
}

#[test]
fn seventy_thousand_requests_wrap_the_indices_and_never_repeat() {
    for wants in every_wish() {
        let mut machine = boot("io-uring", wants);
        let mut ring = machine.start_queue().unwrap();
        let mut seen = HashSet::new();
        while seen.len() < 70_000 {
            (0..50).for_each(|_| assert!(ring.add_writable(8) < 64));
            ring.notify();
            let before = seen.len();
            seen.extend(ring.wait_all().unwrap().into_iter().map(|done| done.data));
            assert_eq!(seen.len(), before + 50, "a value came twice");
        }
    }
}

#[test]
fn indices_wrap_one_by_one() {
    everywhere(|machine| {
        let base = match machine.frontend.shape(4).kind {
            RingKind::Split => 65_533,
            // The third entry of an even lap, for both sides.
            RingKind::Packed => 0x0002_0002,
        };
        let mut ring = machine.frontend.new_ring_at(4, base);
        machine.frontend.start(0, &ring, base).unwrap();
        for _ in 0..20 {
            machine.assert_serves(&mut ring);
        }
        let end = [65_533 + 20 - 65_536, 0x8002_8002][usize::from(base != 65_533)];
        assert_eq!(machine.frontend.stop(0).unwrap(), end);
    });
}

#[test]
fn bytes_look_random() {
    let mut machine = boot("epoll", Wants::on(RingKind::Packed));
    let mut rng = Rng::new(machine.start_queue().unwrap());
    let bytes = rng.fill(MAX_BYTES).unwrap();
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    // 524,288 bits: six standard deviations are 2,172.
    assert!(ones.abs_diff(MAX_BYTES * 4) < 2172, "{ones} of {} bits are set", MAX_BYTES * 8);
    let values: HashSet<u8> = bytes.iter().copied().collect();
    assert_eq!(values.len(), 256);
    assert_ne!(bytes, rng.fill(MAX_BYTES).unwrap());
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none_until_it_wants_them_again() {
    everywhere(|machine| {
        let mut ring = machine.frontend.new_ring(64);
        ring.set_interrupts(Interrupts::Never);
        machine.frontend.start(0, &ring, ring.base()).unwrap();
        for _ in 0..500 {
            machine.assert_serves(&mut ring);
        }
        let base = machine.frontend.stop(0).unwrap();
        // A ring that starts may interrupt once, since its driver may have missed one before.
        assert!(ring.interrupts() <= 1, "{} interrupts", ring.interrupts());
        machine.frontend.start(0, &ring, base).unwrap();
        machine.assert_serves(&mut ring);
        ring.interrupts();
        ring.set_interrupts(Interrupts::Always);
        ring.add(&machine.device.request());
        ring.notify();
        assert!(ring.call.wait(wait::deadline()).is_some(), "no interrupt after being armed again");
        assert_eq!(ring.wait_used().unwrap().len, 64);
    });
}

#[test]
fn many_requests_at_once_cost_few_interrupts() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        for _ in 0..20 {
            (0..60).for_each(|_| assert!(ring.add_writable(16) < 64));
            ring.notify();
            assert_eq!(ring.wait_all().unwrap().len(), 60);
        }
        machine.frontend.stop(0).unwrap();
        let interrupts = ring.interrupts();
        assert!((1..1200 / 8).contains(&interrupts), "{interrupts} interrupts for 1200 requests");
    });
}

#[test]
fn with_event_idx_the_driver_names_the_completion_that_interrupts() {
    for rings in RINGS {
        let mut machine = boot("io-uring", Wants::on(rings));
        let mut ring = machine.start_queue().unwrap();
        for _ in 0..10 {
            machine.assert_serves(&mut ring);
            ring.set_interrupts(Interrupts::After(32));
            for _ in 0..32 {
                ring.add_writable(8);
                ring.notify();
            }
            assert_eq!(ring.wait_all().unwrap().len(), 32, "the one interrupt comes with the last of them");
            ring.set_interrupts(Interrupts::Always);
        }
    }
}

#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        for round in 1..=5 {
            for _ in 0..10 {
                machine.assert_serves(&mut ring);
            }
            let base = machine.frontend.stop(0).unwrap();
            assert_eq!(base, ring.shape().base_after(round * 11 - 1));
            ring.add_writable(8);
            ring.publish();
            ring.kick();
            machine.frontend.sync().unwrap();
            assert_eq!(ring.waiting(), 0, "a stopped ring was served");
            machine.frontend.start(0, &ring, base).unwrap();
            assert_eq!(ring.wait_used().unwrap().len, 8, "the kick was lost");
        }
    });
}

/// What a front-end does when the driver resets a queue (virtio 1.3 §2.6.1, VIRTIO_F_RING_RESET).
#[test]
fn a_queue_that_was_reset_comes_back_with_another_size() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        let packed = ring.shape().kind == RingKind::Packed;
        for size in [64, 8, 256, 1, if packed { 100 } else { 128 }, if packed { 3 } else { 2 }] {
            (0..ring.free()).for_each(|_| _ = ring.add_writable(8));
            ring.notify();
            machine.frontend.stop(0).unwrap();
            ring = machine.frontend.start_new(0, size).unwrap();
            for _ in 0..2 * size {
                machine.assert_serves(&mut ring);
            }
        }
    });
}

/// The double refuses whatever comes back before its turn.
#[test]
fn with_in_order_a_bad_chain_waits_for_those_before_it() {
    for engine in ENGINES {
        for rings in RINGS {
            let mut machine = boot(engine, Wants { in_order: true, ..Wants::on(rings) });
            let mut ring = machine.start_queue().unwrap();
            assert!(ring.shape().in_order);
            for round in 0..50 {
                let is_bad = |nth: u32| (nth + round).is_multiple_of(3);
                for nth in 0..20 {
                    let bad = Chain::new().at(u64::MAX - 7, 8, true);
                    ring.add(&if is_bad(nth) { bad } else { Chain::new().writable(nth + 1) });
                }
                ring.notify();
                let lens: Vec<u32> = ring.wait_all().unwrap().iter().map(|done| done.len).collect();
                let expected = |nth: u32| if is_bad(nth) { 0 } else { nth + 1 };
                assert_eq!(lens, (0..20).map(expected).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn a_disabled_ring_waits() {
    everywhere(|machine| {
        let mut ring = machine.start_queue().unwrap();
        machine.assert_serves(&mut ring);
        machine.frontend.enable(0, false).unwrap();
        ring.add_writable(8);
        ring.publish();
        ring.kick();
        machine.frontend.sync().unwrap();
        assert_eq!(ring.used().unwrap(), None);
        machine.frontend.enable(0, true).unwrap();
        assert_eq!(ring.wait_used().unwrap().len, 8);
    });
}

#[test]
fn buffers_in_any_of_several_regions_are_filled() {
    let pieces = [(0, 0x10_0000), (0x10_0000, 0x10_0000), (0x4000_0000, 0x20_0000), (1 << 32, 0x10_0000)];
    for memory in [Memory::Table, Memory::Slots] {
        for backing in [Backing::Sealed, Backing::Unsealed] {
            let ram = Ram::with(&pieces, backing);
            ram.claim(0xf_ff80, 0x100);
            let wants = Wants { memory, ..Wants::on(RINGS[usize::from(backing == Backing::Sealed)]) };
            let mut machine = RNG.boot_with(RNG.launch(), &ram, wants);
            let mut ring = machine.start_queue().unwrap();
            let chain = (0..40).fold(Chain::new(), |chain, _| chain.writable(100));
            filled(&mut ring, &chain, 4000);
            filled(&mut ring, &Chain::new().at(0xf_ff80, 0x100, true), 0x100);
            assert_ne!(ram.read(0xf_fff8, 8), ram.read(0x10_0000, 8), "both sides of the seam are written");
        }
    }
}

#[test]
fn memory_is_added_and_removed_while_the_ring_runs() {
    everywhere(|machine| {
        let ram = Ram::with(&[(RAM_BASE, 0x10_0000), (RAM_BASE + 0x100_0000, 0x1000)], Backing::Sealed);
        let later = ram.regions()[1].clone();
        ram.claim(later.table.guest_addr, later.table.size_bytes);
        let mut frontend = switch_to(machine, &ram);
        let first = &ram.regions()[0];
        frontend.add_region(first.table, first.fd()).unwrap();
        let mut ring = frontend.start_new(0, 64).unwrap();
        let chain = Chain::new().at(later.table.guest_addr, 0x1000, true);
        for _ in 0..3 {
            assert_eq!(ring.run(&chain).unwrap().len, 0, "no such memory yet");
            frontend.add_region(later.table, later.fd()).unwrap();
            assert_eq!(ring.run(&chain).unwrap().len, 0x1000);
            frontend.remove_region(later.table).unwrap();
        }
        machine.assert_serves(&mut ring);
    });
}

/// Another session with the same daemon and no memory yet.
fn switch_to(machine: &mut Machine, ram: &std::sync::Arc<Ram>) -> Frontend {
    let wants = Wants { memory: Memory::None, ..Wants::default() };
    machine.hang_up();
    Frontend::session(machine.daemon.socket(), ram, wants).unwrap()
}

#[test]
fn front_ends_come_and_go() {
    everywhere(|machine| {
        for _ in 0..20 {
            machine.assert_serves_anew();
        }
    });
}

#[test]
fn a_front_end_without_protocol_features_is_served() {
    let wants = Wants { protocol: None, ..Wants::default() };
    let mut machine = RNG.boot_with(RNG.launch(), &Ram::new(RAM_BYTES), wants);
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    machine.assert_restarts();
}

#[test]
fn a_legacy_front_end_without_any_feature_is_served() {
    let wants = Wants { features: 0, protocol: None, ..Wants::default() };
    let mut machine = RNG.boot_with(RNG.launch(), &Ram::new(RAM_BYTES), wants);
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
}
