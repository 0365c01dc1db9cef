//! 10,000 front-ends come and go, and the daemon is what it was before.

use tests::daemon::Counts;
use tests::frontend::{Memory, Wants};
use tests::guest::format::RingKind;
use tests::guest::memory::Ram;
use tests::machine::{Machine, RNG};

const RECONNECTS: usize = 10_000;
/// As often as makes everything that is set up once be there: each kind of session some times.
const FIRST: usize = 120;
const RAM_BYTES: u64 = 1 << 20;
/// What the allocator may keep more or less of. 10,000 times 16 bytes would be more.
const NOISE_KIB: u64 = 128;

/// Sessions of every kind, one after the other; the last one stays.
fn reconnect(machine: &mut Machine, times: usize) {
    for nth in 0..times {
        let rings = [RingKind::Split, RingKind::Packed][nth % 2];
        let memory = [Memory::Table, Memory::Slots][nth / 2 % 2];
        machine.hang_up();
        let wants = Wants { memory, ..Wants::on(rings) };
        machine.connect(&Ram::new(RAM_BYTES), wants).unwrap();
        match nth / 4 % 3 {
            // A ring that is never used, requests that are served, requests that nobody waits for.
            0 => drop(machine.start_queue().unwrap()),
            1 => {
                let mut ring = machine.start_queue().unwrap();
                (0..3).for_each(|_| machine.assert_serves(&mut ring));
            }
            _ => {
                let mut ring = machine.start_queue().unwrap();
                (0..10).for_each(|_| assert!(ring.add_writable(64) < 64));
                ring.notify();
            }
        }
    }
}

/// What the daemon has while it serves a session that is always the same.
fn counts(machine: &mut Machine) -> Counts {
    machine.hang_up();
    machine.connect(&Ram::new(RAM_BYTES), Wants::default()).unwrap();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    machine.daemon.counts()
}

#[test]
fn ten_thousand_reconnects_leave_nothing_behind() {
    let mut machine = RNG.boot();
    reconnect(&mut machine, FIRST);
    let before = counts(&mut machine);
    reconnect(&mut machine, RECONNECTS);
    let after = counts(&mut machine);
    assert_eq!(Counts { rss_kib: before.rss_kib, ..after }, before);
    assert!(after.rss_kib <= before.rss_kib + NOISE_KIB, "{before:?} became {after:?}");
}
