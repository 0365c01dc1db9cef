//! What a front-end may send, and that no daemon suffers (cases F of the threat model).
//!
//! A violation is refused by a non-zero ack where one was asked for, else the connection is closed. Either way
//! nothing of the state changes, every descriptor that came is closed, and the next front-end is served.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use backends::proto::wire::{F_PROTOCOL_FEATURES, Header};
use backends::proto::{Code, Inflight, MemoryRegion, ProtocolFeatures, Reply, Request, VringAddr, VringFd};
use tests::daemon::Counts;
use tests::event::Event;
use tests::frontend::{F_EVENT_IDX, Frontend, FrontendError, Memory, Wants};
use tests::guest::memory::{Backing, RAM_BASE, Ram, memfd};
use tests::guest::ring::Ring;
use tests::machine::{Device, Machine, QUEUE_SIZE, RAM_BYTES};
use tests::wait;

mod inflight;
mod memory;
mod messages;
mod rings;

/// A guest that has been served once.
fn running(device: Device) -> (Machine, Ring) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    (machine, ring)
}

/// The back-end said no, and goes on.
#[track_caller]
fn assert_refused(answer: Result<(), FrontendError>) {
    assert!(answer.as_ref().is_err_and(FrontendError::is_refusal), "{answer:?}");
}

/// Sends a message of any kind, asks for an ack and wants it to be a refusal.
#[track_caller]
fn assert_raw_refused(machine: &mut Machine, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let size = u32::try_from(payload.len()).unwrap();
    let header = Header { request, flags: 0b1001, size };
    machine.frontend.raw_message(header, payload, fds).unwrap();
    let ack = machine.frontend.receive_number(request).unwrap();
    assert_ne!(ack, 0, "request {request} with {} bytes and {} descriptors", payload.len(), fds.len());
}

/// Resources with one served front-end, everything else having been given back.
fn at_rest(machine: &mut Machine) -> Counts {
    machine.assert_serves_anew();
    machine.daemon.counts()
}

/// Nothing was kept since `before`; memory may have grown by what an allocator holds back.
#[track_caller]
fn assert_at_rest(machine: &mut Machine, before: Counts) {
    let after = at_rest(machine);
    assert_eq!((after.fds, after.threads), (before.fds, before.threads), "{before:?} {after:?}");
    assert!(after.maps <= before.maps + 2 && after.rss_kib <= before.rss_kib + 1024, "{before:?} {after:?}");
}

/// One well-formed request of each kind.
fn requests() -> Vec<Request> {
    let region = MemoryRegion { guest_addr: 0, size_bytes: 4096, user_addr: 4096, mmap_offset: 0 };
    let addr = VringAddr { index: 0, flags: 0, descriptor: 0, used: 0, available: 0, log: 0 };
    let vring = VringFd { index: 0, has_fd: true };
    let inflight = Inflight { size_bytes: 4096, mmap_offset: 0, queues: 1, queue_size: 16 };
    let all = vec![
        Request::GetFeatures,
        Request::SetFeatures(0),
        Request::SetOwner,
        Request::ResetOwner,
        Request::SetMemTable(vec![region]),
        Request::SetVringNum { index: 0, num: 16 },
        Request::SetVringAddr(addr),
        Request::SetVringBase { index: 0, base: 0 },
        Request::GetVringBase { index: 0 },
        Request::SetVringKick(vring),
        Request::SetVringCall(vring),
        Request::SetVringErr(vring),
        Request::GetProtocolFeatures,
        Request::SetProtocolFeatures(0),
        Request::GetQueueNum,
        Request::SetVringEnable { index: 0, enable: 0 },
        Request::GetConfig { offset: 0, size: 8 },
        Request::SetConfig { offset: 0, data: vec![0].into() },
        Request::GetMaxMemSlots,
        Request::AddMemReg(region),
        Request::RemMemReg(region),
        Request::SetLogBase { size_bytes: 4096, mmap_offset: 0 },
        Request::SetLogFd,
        Request::SendRarp { mac: [2, 0, 0, 0, 0, 1] },
        Request::NetSetMtu { mtu_bytes: 1500 },
        Request::SetBackendReqFd,
        Request::ResetDevice,
        Request::GetInflightFd(inflight),
        Request::SetInflightFd(inflight),
        Request::SetStatus(0),
        Request::GetStatus,
        Request::SetDeviceStateFd { direction: 0, phase: 0 },
        Request::CheckDeviceState,
    ];
    assert_eq!(all.len(), Code::ALL.len());
    all
}
