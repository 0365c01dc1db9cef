use std::collections::BTreeMap;

use super::*;
use crate::inflight::RegionError;
use crate::proto::VringFd;
use crate::ring::Layout;
use crate::testing::{memfd, region};

/// Records what a session does to the rest of the daemon.
#[derive(Default)]
struct Recorder {
    regions: usize,
    running: BTreeMap<u16, RingStart>,
    starts: usize,
    refuse_memory: bool,
    refuse_rings: bool,
    refuse_starts: bool,
    config: Vec<u8>,
    channels: usize,
    transfers: Vec<Direction>,
    /// Regions that were asked for, each with whether it may be a new one; and what was forgotten.
    regions_asked: Vec<bool>,
    regions_set: Vec<(Inflight, bool)>,
    forgotten: Vec<Option<(u16, bool)>>,
    stopped: Vec<Stop>,
    resets: usize,
}

impl Host for Recorder {
    fn set_memory(&mut self, table: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), MemoryError> {
        assert!(self.running.is_empty(), "memory changes under no running ring");
        if self.refuse_memory {
            return Err(MemoryError::Slots);
        }
        self.regions = table.len();
        Ok(())
    }
    fn add_memory(&mut self, _: MemoryRegion, _: OwnedFd) -> Result<(), MemoryError> {
        self.regions += 1;
        Ok(())
    }
    fn remove_memory(&mut self, _: MemoryRegion) -> Result<(), MemoryError> {
        assert!(self.running.is_empty(), "memory changes under no running ring");
        self.regions -= 1;
        Ok(())
    }
    fn has_memory(&self) -> bool {
        self.regions > 0
    }
    fn ring_fits(&self, _: &Layout) -> bool {
        !self.refuse_rings
    }
    fn start_ring(&mut self, ring: RingStart) -> Result<(), Refusal> {
        if self.refuse_starts {
            return Err(Refusal::RingAddress(ring.index.into()));
        }
        self.starts += 1;
        assert!(self.running.insert(ring.index, ring).is_none(), "a ring has one owner");
        Ok(())
    }
    fn inflight(&mut self, queues: u16, queue_size: u16, idle: bool) -> Inflight {
        self.regions_asked.push(idle);
        Inflight { size_bytes: 4096, mmap_offset: 0, queues, queue_size }
    }
    fn set_inflight(&mut self, shape: Inflight, _: OwnedFd, packed: bool) -> Result<(), RegionError> {
        if shape.queues > 2 {
            return Err(RegionError::Counts { queues: shape.queues, queue_size: shape.queue_size, limit: 2 });
        }
        self.regions_set.push((shape, packed));
        Ok(())
    }
    fn forget_inflight(&mut self, queue: Option<(u16, bool)>) {
        self.forgotten.push(queue);
    }
    /// As if one request had been served since the start.
    fn stop_ring(&mut self, index: u16, how: Stop) -> Result<u32, Refusal> {
        self.stopped.push(how);
        Ok(self.running.remove(&index).unwrap().base + 1)
    }
    fn set_call(&mut self, _: u16, _: Signal) {}
    fn set_log(&mut self, size_bytes: u64, _: u64, _: OwnedFd) -> Result<(), MemoryError> {
        assert!(self.running.is_empty(), "the log changes under no running ring");
        if size_bytes == 0 { Err(MemoryError::Slots) } else { Ok(()) }
    }
    fn set_channel(&mut self, _: OwnedFd) {
        self.channels += 1;
    }
    fn transfer_state(&mut self, direction: Direction, _: OwnedFd) -> bool {
        self.transfers.push(direction);
        true
    }
    fn state_is_good(&self) -> bool {
        !self.transfers.is_empty()
    }
    fn reset_device(&mut self) {
        assert!(self.running.is_empty(), "a device is reset without running rings");
        self.resets += 1;
    }
    fn set_mtu(&mut self, mtu_bytes: u16) -> bool {
        mtu_bytes >= 68
    }
    fn send_rarp(&mut self, mac: [u8; 6]) -> bool {
        mac != [0; 6]
    }
    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }
    fn negotiated(&mut self, _: u64) {}

    fn set_config(&mut self, offset: usize, data: &[u8]) -> bool {
        self.config[offset..offset + data.len()].copy_from_slice(data);
        true
    }
}

struct Table {
    session: Session,
    host: Recorder,
}

const OFFERED: u64 = 1 << 32 | 1 << 5;

fn table() -> Table {
    let offer = Offer { features: OFFERED, protocol: ProtocolFeatures::all(), queues: 2 };
    Table { session: Session::new(offer), host: Recorder { config: vec![1, 2, 3, 4], ..Recorder::default() } }
}

impl Table {
    fn say(&mut self, request: Request) -> Answer {
        let fds = match &request {
            Request::SetMemTable(regions) => regions.len(),
            Request::AddMemReg(_)
            | Request::SetLogBase { .. }
            | Request::SetLogFd
            | Request::SetBackendReqFd
            | Request::SetInflightFd(_)
            | Request::SetDeviceStateFd { .. } => 1,
            Request::SetVringKick(v) | Request::SetVringCall(v) | Request::SetVringErr(v) => {
                usize::from(v.has_fd)
            }
            _ => 0,
        };
        self.session.handle(request, (0..fds).map(|_| memfd(4096)).collect(), &mut self.host)
    }

    fn negotiate(&mut self) {
        self.say(Request::SetProtocolFeatures(ProtocolFeatures::all().bits())).unwrap();
        self.say(Request::SetFeatures(OFFERED | F_PROTOCOL_FEATURES)).unwrap();
    }

    /// All that a ring needs, in the usual order.
    fn ring(&mut self, index: u8) {
        for request in ring_messages(index) {
            self.say(request).unwrap();
        }
    }
}

fn memory() -> Request {
    Request::SetMemTable(vec![region(0, 4096, 0, 0)])
}

fn addr(index: u32) -> VringAddr {
    VringAddr { index, flags: 0, descriptor: 0, used: 0x800, available: 0x400, log: 0 }
}

fn kick(index: u8) -> Request {
    Request::SetVringKick(VringFd { index, has_fd: true })
}

fn ring_messages(queue: u8) -> [Request; 6] {
    let index = u32::from(queue);
    [
        Request::SetVringNum { index, num: 16 },
        Request::SetVringBase { index, base: 100 },
        Request::SetVringAddr(addr(index)),
        Request::SetVringCall(VringFd { index: queue, has_fd: true }),
        kick(queue),
        Request::SetVringEnable { index, enable: 1 },
    ]
}

fn base_of(answer: Answer) -> u32 {
    match answer.unwrap() {
        Some(Reply::VringState { base, .. }) => base,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ring_starts_when_it_is_complete_and_enabled() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    for request in ring_messages(1) {
        assert!(t.host.running.is_empty());
        t.say(request).unwrap();
    }
    let start = &t.host.running[&1];
    assert_eq!((start.base, start.layout.size, start.layout.event_idx), (100, 16, false));
}

#[test]
fn f13_whatever_the_order_a_ring_starts_exactly_once() {
    // All orders of the four messages that complete a ring, and memory.
    let parts = || {
        vec![
            memory(),
            Request::SetVringNum { index: 0, num: 16 },
            Request::SetVringAddr(addr(0)),
            kick(0),
            Request::SetVringEnable { index: 0, enable: 1 },
        ]
    };
    for mut order in 0..120usize {
        let mut t = table();
        t.negotiate();
        let mut left = parts();
        while !left.is_empty() {
            assert!(t.host.running.is_empty());
            let take = order % left.len();
            order /= left.len();
            t.say(left.remove(take)).unwrap();
        }
        assert_eq!((t.host.running.len(), t.host.starts), (1, 1));
    }
}

#[test]
fn without_protocol_features_rings_begin_enabled() {
    let mut t = table();
    t.say(Request::SetFeatures(OFFERED)).unwrap();
    t.say(memory()).unwrap();
    for request in ring_messages(0).into_iter().take(5) {
        t.say(request).unwrap();
    }
    assert_eq!(t.host.running.len(), 1);
}

#[test]
fn get_vring_base_stops_and_a_new_kick_starts_again() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    assert_eq!(base_of(t.say(Request::GetVringBase { index: 0 })), 101);
    assert!(t.host.running.is_empty());
    assert_eq!(base_of(t.say(Request::GetVringBase { index: 0 })), 101, "asking twice changes nothing");
    t.say(kick(0)).unwrap();
    assert_eq!(t.host.running[&0].base, 101);
}

#[test]
fn disabling_stops_and_enabling_goes_on() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.say(Request::SetVringEnable { index: 0, enable: 0 }).unwrap();
    assert!(t.host.running.is_empty());
    t.say(Request::SetVringEnable { index: 0, enable: 1 }).unwrap();
    assert_eq!(t.host.running[&0].base, 101);
}

#[test]
fn f11_memory_changes_under_stopped_rings_that_go_on() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.ring(1);
    t.say(memory()).unwrap();
    assert_eq!(t.host.running.values().map(|ring| ring.base).collect::<Vec<_>>(), [101, 101]);
    t.say(Request::AddMemReg(region(1 << 20, 4096, 1 << 20, 0))).unwrap();
    t.say(Request::RemMemReg(region(1 << 20, 4096, 1 << 20, 0))).unwrap();
    assert_eq!(t.host.running.len(), 2);
}

#[test]
fn f09_a_refused_table_leaves_rings_running_on_the_old_one() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.host.refuse_memory = true;
    assert!(matches!(t.say(memory()), Err(Refusal::Memory(_))));
    assert_eq!((t.host.running.len(), t.host.regions), (1, 1));
}

#[test]
fn f12_a_ring_left_out_of_memory_stays_stopped() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.host.refuse_rings = true;
    t.say(memory()).unwrap();
    assert!(t.host.running.is_empty());
}

#[test]
fn f06_queues_that_do_not_exist_are_refused_without_truncation() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    for index in [2, 256, 65536, u32::MAX] {
        let refused = |answer: Answer| matches!(answer, Err(Refusal::NoQueue { .. }));
        assert!(refused(t.say(Request::SetVringNum { index, num: 16 })));
        assert!(refused(t.say(Request::SetVringBase { index, base: 0 })));
        assert!(refused(t.say(Request::SetVringAddr(addr(index)))));
        assert!(refused(t.say(Request::SetVringEnable { index, enable: 1 })));
        assert!(refused(t.say(Request::GetVringBase { index })));
    }
    assert!(matches!(t.say(kick(2)), Err(Refusal::NoQueue { .. })));
}

#[test]
fn f07_sizes_and_bases_that_make_no_sense_are_refused() {
    let mut t = table();
    for num in [0, 3, 32769, 65536, u32::MAX] {
        assert!(matches!(t.say(Request::SetVringNum { index: 0, num }), Err(Refusal::Size(n)) if n == num));
    }
    assert!(t.say(Request::SetVringNum { index: 0, num: 32768 }).is_ok());
    assert!(matches!(t.say(Request::SetVringBase { index: 0, base: 65536 }), Err(Refusal::Base(_))));
}

#[test]
fn f07_f14_a_running_ring_does_not_change() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    let running = |answer: Answer| matches!(answer, Err(Refusal::RingRunning { .. }));
    assert!(running(t.say(Request::SetVringNum { index: 0, num: 32 })));
    assert!(running(t.say(Request::SetVringBase { index: 0, base: 0 })));
    assert!(running(t.say(Request::SetVringAddr(VringAddr { used: 0x900, ..addr(0) }))));
    assert!(t.say(Request::SetVringAddr(VringAddr { flags: 1, log: 0x100, ..addr(0) })).is_ok());
    assert!(matches!(t.say(Request::SetFeatures(1 << 32)), Err(Refusal::Running)));
    assert!(
        t.say(Request::SetFeatures(OFFERED | F_PROTOCOL_FEATURES)).is_ok(),
        "the same bits change nothing"
    );
    assert_eq!(t.host.starts, 2, "once more, to log its used ring");
}

#[test]
fn f08_a_ring_outside_memory_is_refused_and_the_old_address_stays() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.say(Request::SetVringNum { index: 0, num: 16 }).unwrap();
    t.host.refuse_rings = true;
    assert!(matches!(t.say(Request::SetVringAddr(addr(0))), Err(Refusal::RingAddress(0))));
    t.host.refuse_rings = false;
    t.say(kick(0)).unwrap();
    t.say(Request::SetVringEnable { index: 0, enable: 1 }).unwrap();
    assert!(t.host.running.is_empty(), "no address was taken");
}

#[test]
fn a_refused_kick_or_address_leaves_the_old_one() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.say(Request::GetVringBase { index: 0 }).unwrap();
    t.host.refuse_rings = true;
    let before = format!("{:?}", t.session);
    assert!(matches!(t.say(kick(0)), Err(Refusal::RingAddress(0))));
    assert_eq!(format!("{:?}", t.session), before);
    let mut t = complete_but_for_its_address();
    t.host.refuse_starts = true;
    let before = format!("{:?}", t.session);
    assert!(t.say(Request::SetVringAddr(addr(0))).is_err());
    assert_eq!(format!("{:?}", t.session), before);
}

fn complete_but_for_its_address() -> Table {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    for request in ring_messages(0).into_iter().filter(|request| request.code() != Code::SetVringAddr) {
        t.say(request).unwrap();
    }
    t
}

/// Migration: the log, the feature, the used ring's flag; and back again.
#[test]
fn f14_logging_is_switched_on_and_off_under_running_rings() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.ring(1);
    let logs = |t: &Table| t.host.running.values().map(|r| (r.log_writes, r.log_used)).collect::<Vec<_>>();
    assert_eq!(logs(&t), [(false, None); 2]);
    let base = t.say(Request::SetLogBase { size_bytes: 4096, mmap_offset: 0 });
    assert_eq!(base.unwrap(), Some(Reply::U64(0)), "SET_LOG_BASE is always answered");
    t.say(Request::SetLogFd).unwrap();
    t.say(Request::SetFeatures(OFFERED | F_PROTOCOL_FEATURES | F_LOG_ALL)).unwrap();
    assert_eq!(logs(&t), [(true, None); 2]);
    t.say(Request::SetVringAddr(VringAddr { flags: 1, log: 0x100, ..addr(0) })).unwrap();
    assert_eq!(logs(&t), [(true, Some(0x100)), (true, None)]);
    t.say(Request::SetFeatures(OFFERED | F_PROTOCOL_FEATURES)).unwrap();
    assert_eq!(logs(&t), [(false, None); 2]);
    assert!(matches!(t.say(Request::SetFeatures(F_LOG_ALL)), Err(Refusal::Running)), "another bit with it");
}

#[test]
fn f21_a_refused_log_leaves_rings_running() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    let refused = t.say(Request::SetLogBase { size_bytes: 0, mmap_offset: 0 });
    assert!(matches!(refused, Err(Refusal::Memory(_))));
    assert_eq!(t.host.running.len(), 1);
}

#[test]
fn reset_device_stops_and_disables_every_ring() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.say(Request::ResetDevice).unwrap();
    assert_eq!((t.host.running.len(), t.host.resets), (0, 1));
    assert_eq!(base_of(t.say(Request::GetVringBase { index: 0 })), 0, "from the beginning");
    t.say(Request::SetFeatures(OFFERED | F_PROTOCOL_FEATURES)).unwrap();
    for request in ring_messages(0).into_iter().take(5) {
        t.say(request).unwrap();
    }
    assert!(t.host.running.is_empty(), "disabled until it is enabled");
    t.say(Request::SetVringEnable { index: 0, enable: 1 }).unwrap();
    assert_eq!(t.host.running.len(), 1);
}

#[test]
fn a_status_is_kept_and_zero_takes_the_rings_back() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.say(Request::SetStatus(0xf)).unwrap();
    assert_eq!(t.say(Request::GetStatus).unwrap(), Some(Reply::U64(0xf)));
    assert!(matches!(t.say(Request::SetStatus(256)), Err(Refusal::Status(256))));
    assert_eq!(t.host.running.len(), 1);
    t.say(Request::SetStatus(0)).unwrap();
    assert!(t.host.running.is_empty());
}

#[test]
fn device_state_is_carried_while_the_device_stands_still() {
    let mut t = table();
    t.negotiate();
    let transfer =
        |t: &mut Table, direction, phase| t.say(Request::SetDeviceStateFd { direction, phase }).unwrap();
    assert_eq!(t.say(Request::CheckDeviceState).unwrap(), Some(Reply::U64(1)), "nothing was carried");
    assert_eq!(transfer(&mut t, 0, 0), Some(Reply::U64(0x100)));
    assert_eq!(transfer(&mut t, 1, 0), Some(Reply::U64(0x100)));
    assert_eq!(t.say(Request::CheckDeviceState).unwrap(), Some(Reply::U64(0)));
    for (direction, phase) in [(2, 0), (0, 1), (u32::MAX, u32::MAX)] {
        assert_eq!(transfer(&mut t, direction, phase), Some(Reply::U64(0x101)));
    }
    t.say(memory()).unwrap();
    t.ring(0);
    assert_eq!(transfer(&mut t, 0, 0), Some(Reply::U64(0x101)), "a ring is running");
    assert_eq!(t.host.transfers, [Direction::Save, Direction::Load]);
}

#[test]
fn what_concerns_the_network_is_handed_to_the_device() {
    let mut t = table();
    t.negotiate();
    t.say(Request::NetSetMtu { mtu_bytes: 1500 }).unwrap();
    for mtu_bytes in [67, 65536, u64::MAX] {
        assert!(matches!(t.say(Request::NetSetMtu { mtu_bytes }), Err(Refusal::Device(Code::NetSetMtu))));
    }
    t.say(Request::SendRarp { mac: [2; 6] }).unwrap();
    assert!(t.say(Request::SendRarp { mac: [0; 6] }).is_err());
    t.say(Request::SetBackendReqFd).unwrap();
    assert_eq!(t.host.channels, 1);
}

#[test]
fn f14_features_that_were_not_offered_are_refused() {
    let mut t = table();
    assert!(matches!(t.say(Request::SetFeatures(1 << 33)), Err(Refusal::Features(f)) if f == 1 << 33));
    let offer = Offer { features: 0, protocol: ProtocolFeatures::MQ, queues: 1 };
    let mut narrow = Table { session: Session::new(offer), host: Recorder::default() };
    assert!(matches!(narrow.say(Request::SetProtocolFeatures(1 << 3)), Err(Refusal::Features(8))));
}

#[test]
fn f15_messages_of_features_that_were_not_negotiated_are_refused() {
    let mut t = table();
    for request in [
        Request::GetQueueNum,
        Request::GetConfig { offset: 0, size: 4 },
        Request::SetConfig { offset: 0, data: vec![0].into() },
        Request::GetMaxMemSlots,
        Request::AddMemReg(region(0, 4096, 0, 0)),
        Request::RemMemReg(region(0, 4096, 0, 0)),
        Request::SetLogBase { size_bytes: 1, mmap_offset: 0 },
        Request::SetLogFd,
        Request::SendRarp { mac: [0; 6] },
        Request::NetSetMtu { mtu_bytes: 1500 },
        Request::SetBackendReqFd,
        Request::ResetDevice,
        Request::GetInflightFd(shape(1)),
        Request::SetInflightFd(shape(1)),
        Request::SetStatus(1),
        Request::GetStatus,
        Request::SetDeviceStateFd { direction: 0, phase: 0 },
        Request::CheckDeviceState,
    ] {
        assert!(matches!(t.say(request), Err(Refusal::NotNegotiated(_))));
    }
}

#[test]
fn f16_configuration_is_read_and_written_within_its_bounds() {
    let mut t = table();
    t.negotiate();
    let mut read = |offset, size| match t.say(Request::GetConfig { offset, size }) {
        Ok(Some(Reply::Config { data, .. })) => data,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(0, 4), [1, 2, 3, 4]);
    assert_eq!(read(1, 2), [2, 3]);
    assert_eq!(read(2, 4), [3, 4, 0, 0], "what a front-end asks for beyond the device reads as zero");
    assert!(read(5, 1).is_empty());
    assert!(read(u32::MAX, 256).is_empty());
    t.say(Request::SetConfig { offset: 1, data: vec![9, 8].into() }).unwrap();
    assert_eq!(t.host.config, [1, 9, 8, 4]);
    for (offset, data) in [(3, vec![0, 0]), (4, vec![0]), (u32::MAX, vec![0])] {
        assert!(matches!(
            t.say(Request::SetConfig { offset, data: data.into() }),
            Err(Refusal::Config { .. })
        ));
    }
}

#[test]
fn a_kick_without_a_descriptor_is_refused() {
    let mut t = table();
    let polled = Request::SetVringKick(VringFd { index: 0, has_fd: false });
    assert!(matches!(t.say(polled), Err(Refusal::Polled(0))));
}

#[test]
fn the_end_of_a_connection_stops_every_ring() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    t.ring(0);
    t.ring(1);
    t.session.close(&mut t.host).unwrap();
    assert!(t.host.running.is_empty());
}

fn shape(queues: u16) -> Inflight {
    Inflight { size_bytes: 4096, mmap_offset: 0, queues, queue_size: 16 }
}

#[test]
fn f18_a_region_is_a_new_one_only_while_no_ring_runs() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    assert_eq!(t.say(Request::GetInflightFd(shape(2))).unwrap(), Some(Reply::Inflight(shape(2))));
    t.ring(0);
    t.say(Request::GetInflightFd(shape(2))).unwrap();
    assert_eq!(t.host.regions_asked, [true, false]);
}

#[test]
fn f17_a_region_is_taken_while_no_ring_runs() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    assert!(matches!(t.say(Request::SetInflightFd(shape(3))), Err(Refusal::Inflight(_))));
    t.say(Request::SetInflightFd(shape(2))).unwrap();
    t.ring(0);
    assert!(matches!(t.say(Request::SetInflightFd(shape(2))), Err(Refusal::InflightRunning)));
    assert_eq!(t.host.regions_set, [(shape(2), false)]);
}

/// The region knows where the rings of a session that died were; a front-end knows where a ring is that it got back.
#[test]
fn what_a_region_says_counts_until_the_front_end_has_had_its_ring_back() {
    let mut t = table();
    t.negotiate();
    let drains = ProtocolFeatures::all() - ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
    t.say(Request::SetProtocolFeatures(drains.bits())).unwrap();
    t.say(memory()).unwrap();
    t.say(Request::SetInflightFd(shape(2))).unwrap();
    t.ring(0);
    assert_eq!(t.host.forgotten, [], "a first base is what a front-end remembers");
    t.say(Request::GetVringBase { index: 0 }).unwrap();
    t.say(Request::SetVringBase { index: 0, base: 0 }).unwrap();
    assert_eq!(t.host.forgotten, [Some((0, false))], "the guest began anew");
    t.say(Request::SetInflightFd(shape(2))).unwrap();
    t.say(Request::SetVringBase { index: 0, base: 0 }).unwrap();
    assert_eq!(t.host.forgotten.len(), 1, "a region that was handed back counts");
    t.say(Request::SetStatus(0)).unwrap();
    t.say(Request::ResetDevice).unwrap();
    assert_eq!(t.host.forgotten[1..], [None, None]);
}

#[test]
fn a_ring_is_suspended_only_where_requests_in_flight_are_tracked() {
    let (suspend, track) = (ProtocolFeatures::GET_VRING_BASE_INFLIGHT, ProtocolFeatures::INFLIGHT_SHMFD);
    for (features, how) in [(track, Stop::Drain), (suspend, Stop::Drain), (track | suspend, Stop::Suspend)] {
        let mut t = table();
        t.negotiate();
        t.say(Request::SetProtocolFeatures(features.bits())).unwrap();
        t.say(memory()).unwrap();
        t.ring(0);
        t.say(memory()).unwrap();
        t.say(Request::GetVringBase { index: 0 }).unwrap();
        assert_eq!(t.host.stopped, [Stop::Drain, how], "memory changes under nothing that is in flight");
        t.say(Request::SetVringBase { index: 0, base: 0 }).unwrap();
        let kept = t.host.forgotten.is_empty();
        assert_eq!(kept, how == Stop::Suspend, "what is suspended is still in flight");
    }
}

#[test]
fn a_region_that_says_nothing_leaves_a_base_that_was_said_before_it() {
    let mut t = table();
    t.negotiate();
    t.say(memory()).unwrap();
    for request in ring_messages(0) {
        if request.code() == Code::SetVringKick {
            t.say(Request::SetInflightFd(shape(2))).unwrap();
        }
        t.say(request).unwrap();
    }
    assert_eq!((t.host.running[&0].base, t.host.forgotten.len()), (100, 0));
}
