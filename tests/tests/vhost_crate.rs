//! The `vhost` crate's own front-end against `outboard-rng`: a peer whose author never saw our codec.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use tests::daemon::Daemon;
use tests::event::Event;
use tests::frontend::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use tests::guest::chain::{Chain, POISON};
use tests::guest::format::Shape;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::guest::ring::Ring;
use tests::machine::RNG;
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | PROTOCOL_FEATURES;

fn wanted() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// A daemon and the crate's front-end, through the handshake and asking for acks.
fn connect() -> (Daemon, Frontend) {
    let daemon = RNG.launch().serve().unwrap();
    let frontend = shake_hands(&daemon, wanted());
    (daemon, frontend)
}

fn shake_hands(daemon: &Daemon, wanted: VhostUserProtocolFeatures) -> Frontend {
    let mut frontend = Frontend::connect(daemon.socket(), 1).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(offered & FEATURES, FEATURES);
    frontend.set_features(FEATURES).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    assert!(protocol.contains(wanted));
    frontend.set_protocol_features(wanted).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), 1);
    frontend
}

fn regions(ram: &Ram) -> Vec<VhostUserMemoryRegionInfo> {
    let info = |region: &tests::guest::memory::Region| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.table.guest_addr,
        memory_size: region.table.size_bytes,
        userspace_addr: region.table.user_addr,
        mmap_offset: region.table.mmap_offset,
        mmap_handle: region.fd().as_raw_fd(),
    };
    ram.regions().iter().map(info).collect()
}

/// The ring as queue 0, with eventfds of the crate's kind.
fn start(frontend: &mut Frontend, ring: &mut Ring, base: u16) {
    let layout = ring.layout();
    let config = VringConfigData {
        queue_max_size: layout.size,
        queue_size: layout.size,
        flags: 0,
        desc_table_addr: ring.ram().user_addr(layout.desc),
        used_ring_addr: ring.ram().user_addr(layout.used),
        avail_ring_addr: ring.ram().user_addr(layout.avail),
        log_addr: None,
    };
    let [kick, call, err] = [(); 3].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    frontend.set_vring_num(0, layout.size).unwrap();
    frontend.set_vring_addr(0, &config).unwrap();
    frontend.set_vring_base(0, base).unwrap();
    frontend.set_vring_call(0, &call).unwrap();
    frontend.set_vring_err(0, &err).unwrap();
    frontend.set_vring_kick(0, &kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    (ring.kick, ring.call, ring.err) = (Event::share(&kick), Event::share(&call), Event::share(&err));
}

#[track_caller]
fn assert_filled(ring: &mut Ring) {
    let done = ring.run(&Chain::new().readable(b"?").writable(100).writable(28).indirect()).unwrap();
    assert_eq!(done.len, 128);
    assert!(done.data.iter().filter(|byte| **byte == POISON).count() < 8, "{:x?}", done.data);
}

fn two_regions() -> Arc<Ram> {
    Ram::with(&[(0, 0x10_0000), (RAM_BASE, 0x10_0000)], Backing::Sealed)
}

#[test]
fn bytes_arrive_in_the_guest() {
    let (_daemon, mut frontend) = connect();
    let ram = two_regions();
    frontend.set_mem_table(&regions(&ram)).unwrap();
    let mut ring = Ring::new(&ram, Shape { event_idx: true, ..Shape::split(32) });
    start(&mut frontend, &mut ring, 0);
    for _ in 0..100 {
        assert_filled(&mut ring);
    }
    assert_eq!(frontend.get_vring_base(0).unwrap(), 100);
}

#[test]
fn memory_by_slots_and_a_second_start() {
    let (_daemon, mut frontend) = connect();
    let ram = two_regions();
    assert!(frontend.get_max_mem_slots().unwrap() >= 2);
    for region in regions(&ram) {
        frontend.add_mem_region(&region).unwrap();
    }
    let mut ring = Ring::new(&ram, Shape { event_idx: true, ..Shape::split(32) });
    start(&mut frontend, &mut ring, 0);
    assert_filled(&mut ring);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 1);
    start(&mut frontend, &mut ring, 1);
    assert_filled(&mut ring);
    for region in regions(&ram) {
        frontend.remove_mem_region(&region).unwrap();
    }
}

#[test]
fn what_it_asks_wrongly_is_refused_and_it_goes_on() {
    let (_daemon, mut frontend) = connect();
    frontend.set_mem_table(&regions(&two_regions())).unwrap();
    assert!(frontend.set_vring_num(0, 3).is_err(), "a split ring's size is a power of two");
    assert!(frontend.set_features(FEATURES | 1 << 60).is_err());
    assert_eq!(frontend.get_queue_num().unwrap(), 1);
}

/// A region that this front-end asked for, kept over the death of the daemon, and handed to the next.
#[test]
fn what_was_in_flight_is_served_by_the_next_daemon() {
    let tracked = wanted() | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    let mut daemon = RNG.launch().serve().unwrap();
    let mut frontend = shake_hands(&daemon, tracked);
    let ram = two_regions();
    frontend.set_mem_table(&regions(&ram)).unwrap();
    let asked = VhostUserInflight { num_queues: 1, queue_size: 32, ..VhostUserInflight::default() };
    let (shape, file) = frontend.get_inflight_fd(&asked).unwrap();
    frontend.set_inflight_fd(&shape, file.as_raw_fd()).unwrap();
    let mut ring = Ring::new(&ram, Shape { event_idx: true, ..Shape::split(32) });
    start(&mut frontend, &mut ring, 0);
    assert_filled(&mut ring);
    for _ in 0..10 {
        for _ in 0..8 {
            ring.add_writable(64);
        }
        ring.notify();
        daemon.restart().unwrap();
        frontend = shake_hands(&daemon, tracked);
        frontend.set_mem_table(&regions(&ram)).unwrap();
        frontend.set_inflight_fd(&shape, file.as_raw_fd()).unwrap();
        start(&mut frontend, &mut ring, 0);
        assert!(ring.wait_all().unwrap().iter().all(|done| done.len == 64));
    }
    assert_filled(&mut ring);
}
