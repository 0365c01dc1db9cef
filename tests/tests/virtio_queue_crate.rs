//! The driver's side of the `virtio-queue` crate on rings of our daemons, over the `vhost` crate's front-end and the
//! `vm-memory` crate's RAM: nothing on the guest's side of these conversations is ours.

use std::collections::BTreeSet;
use std::fs;

use tests::daemon::Daemon;
use tests::event::Event;
use tests::frontend::{F_INDIRECT_DESC, F_VERSION_1};
use tests::guest::memory::{Backing, memfd};
use tests::machine::{BLK, Device, RNG};
use tests::wait;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM_BYTES: usize = 1 << 20;
const DESCRIPTORS_AT: GuestAddress = GuestAddress(0x1_0000);
const AVAIL_AT: GuestAddress = GuestAddress(0x2_0000);
const USED_AT: GuestAddress = GuestAddress(0x3_0000);
const TABLE_AT: GuestAddress = GuestAddress(0x4_0000);
const BUFFERS_AT: u64 = 0x8_0000;
/// Between buffers, so that what is written beside one is seen.
const STRIDE: u64 = 0x400;
const SIZE: u16 = 16;
/// virtio 1.3 §2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The crate's view of a split ring. Its parts are put together here, since its `MockSplitQueue` lays the used ring
/// over the second half of the available one.
struct Queue<'a> {
    table: DescriptorTable<'a, GuestMemoryMmap>,
    avail: AvailRing<'a, GuestMemoryMmap>,
    used: UsedRing<'a, GuestMemoryMmap>,
}

impl Queue<'_> {
    fn new(memory: &GuestMemoryMmap) -> Queue<'_> {
        Queue {
            table: DescriptorTable::new(memory, DESCRIPTORS_AT, SIZE),
            avail: AvailRing::new(memory, AVAIL_AT, SIZE),
            used: UsedRing::new(memory, USED_AT, SIZE),
        }
    }

    /// Writes a chain from descriptor `head` on, and makes it available.
    fn offer(&self, head: u16, chain: &[RawDescriptor]) {
        for (at, part) in (head..).zip(chain) {
            self.table.store(at, *part).unwrap();
        }
        let index = self.avail.idx().load();
        self.avail.ring().ref_at(usize::from(index % SIZE)).unwrap().store(head);
        self.avail.idx().store(index + 1);
    }

    /// What was given back as the `number`th since the start: head and length.
    fn used(&self, number: u16) -> (u32, u32) {
        let element: VirtqUsedElem = self.used.ring().ref_at(usize::from(number % SIZE)).unwrap().load();
        (element.id(), element.len())
    }
}

/// A daemon with its first queue running.
struct Rig {
    daemon: Daemon,
    frontend: Frontend,
    kick: EventFd,
    call: Event,
}

impl Rig {
    fn new(device: Device, memory: &GuestMemoryMmap) -> Rig {
        let daemon = device.launch().serve().unwrap();
        let mut frontend = Frontend::connect(daemon.socket(), u64::from(device.queues)).unwrap();
        frontend.set_owner().unwrap();
        let features = F_VERSION_1 | F_INDIRECT_DESC | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(frontend.get_features().unwrap() & features, features);
        frontend.set_features(features).unwrap();
        frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        let [kick, call] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        start(&mut frontend, memory, &kick, &call);
        Rig { daemon, frontend, kick, call: Event::share(&call) }
    }

    /// Kicks, and waits until `count` chains were given back since the start.
    #[track_caller]
    fn wait_used(&self, queue: &Queue<'_>, count: u16) {
        self.kick.write(1).unwrap();
        let until = wait::deadline();
        while queue.used.idx().load() != count {
            let called = self.call.wait(until).is_some();
            assert!(called, "{} of {count} came: {}", queue.used.idx().load(), self.daemon.stderr());
        }
    }
}

fn start(frontend: &mut Frontend, memory: &GuestMemoryMmap, kick: &EventFd, call: &EventFd) {
    let user_addr = |addr| memory.get_host_address(addr).unwrap() as u64;
    let config = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: user_addr(DESCRIPTORS_AT),
        used_ring_addr: user_addr(USED_AT),
        avail_ring_addr: user_addr(AVAIL_AT),
        log_addr: None,
    };
    frontend.set_vring_num(0, SIZE).unwrap();
    frontend.set_vring_addr(0, &config).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    frontend.set_vring_call(0, call).unwrap();
    frontend.set_vring_kick(0, kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
}

fn ram() -> GuestMemoryMmap {
    let file = memfd(u64::try_from(RAM_BYTES).unwrap(), Backing::Sealed);
    let range = (GuestAddress(0), RAM_BYTES, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(addr, len, flags, next))
}

fn buffer(number: u16) -> u64 {
    BUFFERS_AT + u64::from(number) * STRIDE
}

/// How many of the bytes at `addr` are not 0.
fn set_bytes(memory: &GuestMemoryMmap, addr: u64, len: usize) -> usize {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
    bytes.iter().filter(|byte| **byte != 0).count()
}

#[test]
fn a_batch_of_the_crates_chains_is_filled_and_nothing_beside_them() {
    let memory = ram();
    let queue = Queue::new(&memory);
    let rig = Rig::new(RNG, &memory);
    let heads = || (0..SIZE).step_by(2);
    for head in heads() {
        let first = descriptor(buffer(head), 200, WRITE | NEXT, head + 1);
        queue.offer(head, &[first, descriptor(buffer(head + 1), 56, WRITE, 0)]);
    }
    rig.wait_used(&queue, SIZE / 2);
    let used: BTreeSet<_> = (0..SIZE / 2).map(|number| queue.used(number)).collect();
    assert_eq!(used, heads().map(|head| (u32::from(head), 256)).collect());
    for (number, len) in heads().flat_map(|head| [(head, 200), (head + 1, 56)]) {
        assert!(set_bytes(&memory, buffer(number), len) > len / 2, "buffer {number}");
        let beside = buffer(number) + u64::try_from(len).unwrap();
        assert_eq!(set_bytes(&memory, beside, 512), 0, "beside buffer {number}");
    }
}

#[test]
fn the_crates_ring_goes_round_with_plain_and_indirect_chains() {
    const LAPS: u16 = 5;
    let memory = ram();
    let queue = Queue::new(&memory);
    let rig = Rig::new(RNG, &memory);
    let table = DescriptorTable::new(&memory, TABLE_AT, 2);
    table.store(0, descriptor(buffer(0), 40, WRITE | NEXT, 1)).unwrap();
    table.store(1, descriptor(buffer(1), 60, WRITE, 0)).unwrap();
    for number in 0..LAPS * SIZE {
        let (head, is_indirect) = (number * 7 % SIZE, number % 3 == 0);
        let indirect = descriptor(TABLE_AT.0, 2 * 16, INDIRECT, 0);
        let (chain, len) =
            if is_indirect { (indirect, 100) } else { (descriptor(buffer(2), 64, WRITE, 0), 64) };
        queue.offer(head, &[chain]);
        rig.wait_used(&queue, number + 1);
        assert_eq!(queue.used(number), (u32::from(head), len), "request {number}");
    }
    assert_eq!(rig.frontend.get_vring_base(0).unwrap(), u32::from(LAPS * SIZE));
}

#[test]
fn a_sector_that_the_crates_chains_write_is_in_the_image_and_read_back() {
    let memory = ram();
    let queue = Queue::new(&memory);
    let rig = Rig::new(BLK, &memory);
    let content: Vec<u8> = (0..512_u32).map(|at| (at * 7 + 1).to_le_bytes()[0]).collect();
    memory.write_slice(&content, GuestAddress(buffer(1))).unwrap();
    // `struct virtio_blk_req` (virtio 1.3 §5.2.6) for sector 3: OUT (1), then IN (0).
    for (number, kind, flags, len) in [(0, 1, 0, 1), (1, 0, WRITE, 513)] {
        let head = number * 3;
        let [header, data, status] = [0, 1, 2].map(|part| buffer(head + part));
        memory.write_obj([kind, 3_u64], GuestAddress(header)).unwrap();
        memory.write_obj(0xff_u8, GuestAddress(status)).unwrap();
        let first = descriptor(header, 16, NEXT, head + 1);
        let second = descriptor(data, 512, flags | NEXT, head + 2);
        queue.offer(head, &[first, second, descriptor(status, 1, WRITE, 0)]);
        rig.wait_used(&queue, number + 1);
        assert_eq!(queue.used(number), (u32::from(head), len));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(status)).unwrap(), 0, "status of request {number}");
    }
    let mut read = vec![0; 512];
    memory.read_slice(&mut read, GuestAddress(buffer(4))).unwrap();
    assert_eq!(read, content);
    assert_eq!(fs::read(rig.daemon.dir().join("disk.img")).unwrap()[3 * 512..][..512], content);
}
