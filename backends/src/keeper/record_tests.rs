use super::*;
use crate::proto::{VringAddr, VringFd};

fn fd() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn region(guest_addr: u64) -> MemoryRegion {
    MemoryRegion { guest_addr, size_bytes: 4096, user_addr: guest_addr, mmap_offset: 0 }
}

fn vring(index: u8) -> VringFd {
    VringFd { index, has_fd: true }
}

fn addr(index: u32) -> VringAddr {
    VringAddr { index, flags: 0, descriptor: 0, used: 0, available: 0, log: 0 }
}

/// A session with one running ring, in the order of QEMU.
fn session() -> Record {
    let mut record = Record::new();
    for request in [Request::SetOwner, Request::SetFeatures(F_RING_PACKED)] {
        record.accept(request, Vec::new(), None);
    }
    record.accept(Request::SetMemTable(vec![region(0), region(8192)]), vec![fd(), fd()], None);
    record.accept(Request::SetVringNum { index: 0, num: 64 }, Vec::new(), None);
    record.accept(Request::SetVringBase { index: 0, base: 3 }, Vec::new(), None);
    record.accept(Request::SetVringAddr(addr(0)), Vec::new(), None);
    record.accept(Request::SetVringKick(vring(0)), vec![fd()], None);
    record.accept(Request::SetVringCall(vring(0)), vec![fd()], None);
    record.accept(Request::SetVringEnable { index: 0, enable: 1 }, Vec::new(), None);
    record
}

fn replayed(record: &Record) -> Vec<Request> {
    record.replay().map(|(request, _)| request.clone()).collect()
}

#[test]
fn rings_are_replayed_before_memory_and_kicks_last() {
    let record = session();
    let ring = [
        Request::SetVringNum { index: 0, num: 64 },
        Request::SetVringBase { index: 0, base: 3 },
        Request::SetVringAddr(addr(0)),
        Request::SetVringCall(vring(0)),
        Request::SetVringEnable { index: 0, enable: 1 },
    ];
    let mut expected = vec![Request::SetOwner, Request::SetFeatures(F_RING_PACKED)];
    expected.extend(ring);
    expected.extend([region(0), region(8192)].map(Request::AddMemReg));
    expected.push(Request::SetVringKick(vring(0)));
    assert_eq!(replayed(&record), expected);
    assert!(record.replay().all(|(request, fds)| fds.len()
        == usize::from(matches!(
            request,
            Request::AddMemReg(_) | Request::SetVringKick(_) | Request::SetVringCall(_)
        ))));
}

#[test]
fn what_is_replayed_builds_the_same_record() {
    let (record, mut again) = (session(), Record::new());
    for (request, fds) in record.replay() {
        again.accept(request.clone(), fds.iter().map(|fd| fd.try_clone().unwrap()).collect(), None);
    }
    assert_eq!(replayed(&again), replayed(&record));
}

#[test]
fn a_later_message_takes_the_place_of_an_earlier_one() {
    let mut record = session();
    let before = replayed(&record).len();
    record.accept(Request::SetVringNum { index: 0, num: 128 }, Vec::new(), None);
    record.accept(Request::SetMemTable(vec![region(4096)]), vec![fd()], None);
    let after = replayed(&record);
    assert_eq!(after.len(), before - 1);
    assert!(after.contains(&Request::SetVringNum { index: 0, num: 128 }));
    assert!(
        after.contains(&Request::AddMemReg(region(4096))) && !after.contains(&Request::AddMemReg(region(0)))
    );
}

#[test]
fn a_ring_that_was_stopped_is_not_kicked_and_begins_where_it_stood() {
    let mut record = session();
    let answer = Reply::VringState { index: 0, base: 17 };
    record.accept(Request::GetVringBase { index: 0 }, Vec::new(), Some(&answer));
    let after = replayed(&record);
    assert!(after.contains(&Request::SetVringBase { index: 0, base: 17 }));
    assert!(!after.iter().any(|request| matches!(request, Request::SetVringKick(_))));
}

#[test]
fn a_reset_leaves_memory_and_the_eventfds() {
    let mut record = session();
    record.accept(Request::ResetDevice, Vec::new(), None);
    let expected = [
        Request::SetOwner,
        Request::SetVringCall(vring(0)),
        Request::SetVringEnable { index: 0, enable: 0 },
        Request::AddMemReg(region(0)),
        Request::AddMemReg(region(8192)),
    ];
    assert_eq!(replayed(&record), expected);
}

#[test]
fn device_state_is_lost_with_the_worker_that_carried_it() {
    let mut record = session();
    record.worker_died();
    assert!(!record.state_lost && !record.state_under_way());
    record.accept(Request::SetDeviceStateFd { direction: 0, phase: 0 }, vec![fd()], None);
    assert!(record.state_under_way());
    record.worker_died();
    assert!(record.state_lost);
}
