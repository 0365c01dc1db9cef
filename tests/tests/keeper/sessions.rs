//! What a new worker is told: whatever the front-end had said, with memory of any shape, tracked or not.

use std::time::Instant;

use backends::proto::Request;
use backends::proto::wire::BackendCode;
use rustix::process::Signal;
use tests::daemon::Launch;
use tests::frontend::{F_RING_PACKED, Frontend, Memory, Wants};
use tests::guest::format::RingKind;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::machine::{Device, QUEUE_SIZE, RNG};
use tests::random::Random;
use tests::restart::soak::Device as Soaked;
use tests::restart::{Mode, Rig};
use tests::wait;
use xtask::demo::Served;

use super::processes::signal;
use super::untracked;

tests::against_every_daemon! {
    both: [
        n5_an_idle_worker_is_replaced_and_nothing_grows,
        totals_go_on_in_the_next_worker,
        k03_a_front_end_that_tracks_nothing_gets_every_request_back_once,
        k03_a_region_that_was_only_asked_for_is_the_next_workers_too,
        k08_a_front_end_without_protocol_features_is_kept_too,
        k08_hundreds_of_memory_slots_are_handed_to_the_next_worker,
        k08_a_ring_whose_memory_was_taken_away_does_not_end_the_session,
    ],
}

#[test]
fn k08_the_channel_for_our_own_requests_is_handed_to_the_next_worker() {
    let daemon = Launch::new("outboard-null").serve().unwrap();
    let mut frontend = Frontend::session(daemon.socket(), &Ram::new(1 << 20), Wants::default()).unwrap();
    let mut channel = frontend.open_channel().unwrap();
    for _ in 0..3 {
        daemon.kill_worker();
        frontend.sync().unwrap();
        signal(daemon.worker_pid(), Signal::USR2);
        let told = channel.recv(wait::deadline()).unwrap();
        assert_eq!(told.header.request, BackendCode::ConfigChange as u32);
    }
}

fn n5_an_idle_worker_is_replaced_and_nothing_grows(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    let (mut first, mut keeper) = (None, None);
    for nth in 0..34 {
        machine.daemon.kill_worker();
        machine.assert_serves(&mut ring);
        machine.frontend.sync().unwrap();
        let (worker, holder) = (machine.daemon.counts(), machine.daemon.keeper_counts());
        if nth == 10 {
            (first, keeper) = (Some(worker), Some(holder));
        }
        if nth > 10 {
            let (first, keeper) = (first.unwrap(), keeper.unwrap());
            assert_eq!((worker.fds, worker.threads), (first.fds, first.threads));
            assert!(worker.maps <= first.maps + 2, "{worker:?} after {first:?}");
            assert_eq!((holder.fds, holder.threads, holder.maps), (keeper.fds, keeper.threads, keeper.maps));
            assert!(holder.rss_kib <= keeper.rss_kib + 1024, "{holder:?} after {keeper:?}");
        }
    }
    machine.frontend.sync().unwrap();
}

/// Of a worker that is killed only what it counted in its last microseconds may be lost: a batch, here one request.
fn totals_go_on_in_the_next_worker(device: Device) {
    const KILLS: u64 = 3;
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    for nth in 0..=KILLS {
        for _ in 0..10 {
            machine.assert_serves(&mut ring);
        }
        if nth < KILLS {
            machine.daemon.kill_worker();
        }
    }
    let exit = machine.daemon.terminate();
    let requests = Served::from_log(&exit.stderr).unwrap().requests;
    assert!(requests >= 10 * (KILLS + 1) - KILLS, "{requests} requests: {exit}");
}

/// The load of the soak, killed in the middle of things, by a front-end without a region of its own.
fn k03_a_front_end_that_tracks_nothing_gets_every_request_back_once(device: Device) {
    let soaked = match device.binary {
        "outboard-rng" => Soaked::Rng,
        "outboard-blk" => Soaked::Blk,
        _ => Soaked::Console,
    };
    let mut rig = Rig::start(soaked.launch(), Mode::Keeper, untracked(device.rings), soaked.queues());
    assert!(!rig.frontend.tracks());
    let mut load = soaked.load(&mut rig, Random::new(3));
    let mut pauses = Vec::new();
    for _ in 0..15 {
        for _ in 0..30 {
            load.submit();
            load.reap().unwrap();
        }
        load.submit();
        let killed = rig.kill(&mut *load).unwrap();
        rig.recover(&mut *load).unwrap();
        load.submit();
        load.wait().unwrap();
        pauses.push(killed.elapsed());
        // All of it, so that no request sees three deaths: the third would be the end of it.
        load.drain().unwrap();
        load.check().unwrap();
    }
    pauses.sort();
    println!("{device:?}: pause p50 {:?}, max {:?}", pauses[pauses.len() / 2], pauses.last().unwrap());
}

/// GET_INFLIGHT_FD without SET_INFLIGHT_FD: the region is in use from then on.
fn k03_a_region_that_was_only_asked_for_is_the_next_workers_too(device: Device) {
    let mut machine = device.boot();
    machine.start_queue().unwrap();
    // The keeper has had its own region tracked so far.
    machine.frontend.stop(device.queue).unwrap();
    let queues = u16::try_from(machine.frontend.ask_u64(Request::GetQueueNum).unwrap()).unwrap();
    let region = machine.frontend.inflight(queues, QUEUE_SIZE).unwrap();
    let mut ring = machine.frontend.start_new(device.queue, QUEUE_SIZE).unwrap();
    machine.assert_serves(&mut ring);
    machine.daemon.kill_worker();
    machine.frontend.sync().unwrap();
    let before = region.header(device.queue.into(), device.rings);
    machine.assert_serves(&mut ring);
    assert_ne!(region.header(device.queue.into(), device.rings), before, "another region is in use");
}

fn k08_a_front_end_without_protocol_features_is_kept_too(device: Device) {
    let wants = Wants { protocol: None, ..device.wants() };
    let mut machine = device.boot_with(device.launch(), &Ram::new(16 << 20), wants);
    let mut ring = machine.start_queue().unwrap();
    for _ in 0..5 {
        machine.assert_serves(&mut ring);
        machine.daemon.kill_worker();
        machine.assert_serves(&mut ring);
    }
}

fn k08_hundreds_of_memory_slots_are_handed_to_the_next_worker(device: Device) {
    const SLOTS: u64 = 300;
    const BYTES: u64 = 256 << 10;
    let pieces: Vec<_> = (0..SLOTS).map(|nth| (RAM_BASE + nth * 2 * BYTES, BYTES)).collect();
    let ram = Ram::with(&pieces, Backing::Sealed);
    let wants = Wants { memory: Memory::Slots, ..device.wants() };
    let mut machine = device.boot_with(device.launch(), &ram, wants);
    for _ in 0..40 {
        // Rings and buffers all over the place.
        ram.take(BYTES / 2, 4096);
    }
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    for _ in 0..3 {
        machine.daemon.kill_worker();
        let since = Instant::now();
        machine.assert_serves(&mut ring);
        println!("{device:?}: {SLOTS} slots: {:?}", since.elapsed());
    }
    // The worker has all of them: each can be taken away, once.
    for region in ram.regions().iter().skip(200) {
        machine.frontend.remove_region(region.table).unwrap();
        assert!(machine.frontend.remove_region(region.table).unwrap_err().is_refusal());
    }
}

fn k08_a_ring_whose_memory_was_taken_away_does_not_end_the_session(device: Device) {
    const BYTES: u64 = 4 << 20;
    let ram = Ram::with(&[(RAM_BASE, BYTES), (RAM_BASE + 2 * BYTES, BYTES)], Backing::Sealed);
    let mut machine = device.boot_with(device.launch(), &ram, device.wants());
    let ring = machine.start_queue().unwrap();
    let holds = |region: &tests::guest::memory::Region| {
        (region.table.guest_addr..region.table.guest_addr + BYTES).contains(&ring.layout().desc)
    };
    let region = ram.regions().iter().find(|region| holds(region)).unwrap();
    machine.frontend.remove_region(region.table).unwrap();
    assert!(ring.wait_broken());
    machine.daemon.kill_worker();
    machine.frontend.add_region(region.table, region.fd()).unwrap();
    machine.frontend.ask_u64(Request::GetFeatures).unwrap();
    machine.frontend.stop(device.queue).unwrap();
    let mut ring = machine.frontend.start_new(device.queue, QUEUE_SIZE).unwrap();
    machine.assert_serves(&mut ring);
}

/// A guest's packed rings, then a firmware that has split ones and leaves this queue alone.
#[test]
fn k08_a_ring_of_a_packed_driver_before_does_not_end_the_session() {
    let mut device = RNG;
    device.rings = RingKind::Packed;
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    machine.frontend.stop(machine.device.queue).unwrap();
    let split = machine.frontend.features() & !F_RING_PACKED;
    machine.frontend.tell(Request::SetFeatures(split), &[]).unwrap();
    machine.daemon.kill_worker();
    machine.frontend.sync().unwrap();
}
