//! The front-end against a back-end that notes what it hears.

use super::*;
use crate::guest::memory::Backing;
use backends::proto::wire::F_LOG_ALL;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

/// What a back-end heard: (request, descriptors).
type Heard = Vec<(Request, Vec<OwnedFd>)>;

/// Serves until the front-end hangs up: offers `features`, acks with `ack`.
fn backend(features: u64, protocol: u64, ack: u64) -> (UnixStream, JoinHandle<Heard>) {
    let (here, there) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut connection = Connection::new(there).unwrap();
        let mut heard = Vec::new();
        while let Ok(frame) = connection.recv(wait::deadline()) {
            let request = Request::decode(frame.header, &frame.payload, frame.fds.len()).unwrap();
            let reply = match &request {
                Request::GetFeatures => Some(Reply::U64(features)),
                Request::GetProtocolFeatures => Some(Reply::U64(protocol)),
                Request::GetVringBase { index } => Some(Reply::VringState { index: *index, base: 77 }),
                _ => frame.header.needs_reply().then_some(Reply::U64(ack)),
            };
            if let Some(payload) = reply.map(|reply| reply.payload()) {
                let header = Header::reply(frame.header.request, payload.len());
                connection.send(header, &payload, &[], wait::deadline()).unwrap();
            }
            heard.push((request, frame.fds));
        }
        heard
    });
    (here, thread)
}

fn codes(heard: &Heard) -> Vec<Code> {
    heard.iter().map(|(request, _)| request.code()).collect()
}

const OFFERED: u64 = F_PROTOCOL_FEATURES | F_EVENT_IDX | F_VERSION_1;

#[test]
fn a_session_negotiates_what_both_want_and_hands_over_all_memory() {
    let (socket, thread) = backend(OFFERED, ProtocolFeatures::REPLY_ACK.bits(), 0);
    let ram = Ram::with(&[(0, 0x1000), (0x1_0000, 0x2000)], Backing::Sealed);
    let mut frontend = Frontend::on(socket, &ram).unwrap();
    frontend.handshake(Wants::default()).unwrap();
    assert_eq!(frontend.features(), OFFERED);
    drop(frontend);
    let heard = thread.join().unwrap();
    let want = [
        Code::GetFeatures,
        Code::GetProtocolFeatures,
        Code::SetProtocolFeatures,
        Code::SetOwner,
        Code::SetFeatures,
        Code::SetMemTable,
    ];
    assert_eq!(codes(&heard), want);
    let (Request::SetMemTable(table), fds) = &heard[5] else { panic!("{heard:?}") };
    assert_eq!((table.len(), fds.len()), (2, 2));
    assert!(table.iter().all(|region| region.user_addr != region.guest_addr));
}

#[test]
fn rings_are_what_was_asked_for_and_offered() {
    let all = F_RING_PACKED | F_IN_ORDER | F_LOG_ALL | F_EVENT_IDX;
    let shape = |offered, wants: Wants| {
        let (socket, _thread) = backend(offered, 0, 0);
        let mut frontend = Frontend::on(socket, &Ram::new(1 << 20)).unwrap();
        frontend.handshake(Wants { memory: Memory::None, protocol: None, ..wants }).unwrap();
        assert_eq!(frontend.features() & F_LOG_ALL, 0);
        frontend.shape(16)
    };
    let usual = Shape { event_idx: true, ..Shape::split(16) };
    assert_eq!(shape(all, Wants::default()), usual);
    let packed = Wants { in_order: true, ..Wants::on(RingKind::Packed) };
    assert_eq!(shape(all, packed), Shape { kind: RingKind::Packed, in_order: true, ..usual });
    assert_eq!(shape(F_EVENT_IDX, packed), usual);
}

#[test]
fn without_protocol_features_rings_are_not_enabled_by_message() {
    let (socket, thread) = backend(OFFERED, 0, 0);
    let mut frontend = Frontend::on(socket, &Ram::new(1 << 20)).unwrap();
    frontend.handshake(Wants { protocol: None, memory: Memory::None, ..Wants::default() }).unwrap();
    let ring = frontend.start_new(0, 16).unwrap();
    assert_eq!(frontend.stop(0).unwrap(), 77);
    drop((frontend, ring));
    let heard = thread.join().unwrap();
    assert!(!codes(&heard).contains(&Code::SetVringEnable));
    assert!(heard.contains_features(OFFERED & !F_PROTOCOL_FEATURES));
}

trait Contains {
    fn contains_features(&self, features: u64) -> bool;
}

impl Contains for Heard {
    fn contains_features(&self, features: u64) -> bool {
        self.iter().any(|(request, _)| *request == Request::SetFeatures(features))
    }
}

#[test]
fn ring_addresses_are_those_of_the_front_end() {
    let (socket, _thread) = backend(OFFERED, 0, 0);
    let ram = Ram::new(1 << 20);
    let frontend = Frontend::on(socket, &ram).unwrap();
    let ring = frontend.new_ring(16);
    let addr = frontend.vring_addr(3, &ring);
    assert_eq!(ram.guest_addr(addr.descriptor), Some(ring.layout().desc));
    assert_eq!(ram.guest_addr(addr.used), Some(ring.layout().used));
    assert_eq!(addr.index, 3);
}

#[test]
fn a_refusal_is_an_error_that_names_the_request() {
    let (socket, _thread) = backend(OFFERED, ProtocolFeatures::REPLY_ACK.bits(), 5);
    let mut frontend = Frontend::on(socket, &Ram::new(1 << 20)).unwrap();
    let error = frontend.handshake(Wants::default()).unwrap_err();
    assert!(matches!(error, FrontendError::Refused { code: Code::SetOwner, ack: 5 }));
}

#[test]
fn raw_bytes_and_descriptors_arrive_as_they_are() {
    let (here, there) = UnixStream::pair().unwrap();
    let frontend = Frontend::on(here, &Ram::new(1 << 20)).unwrap();
    let header = Header { request: 999, flags: 0xff, size: 5 };
    frontend.raw_message(header, &[1, 2, 3], &[frontend.as_fd(), frontend.as_fd()]).unwrap();
    frontend.raw(&[4, 5], &[]).unwrap();
    let frame = Connection::new(there).unwrap().recv(wait::deadline()).unwrap();
    assert_eq!((frame.header, frame.payload.0, frame.fds.len()), (header, vec![1, 2, 3, 4, 5], 2));
}

#[test]
fn a_hang_up_is_seen() {
    let (here, there) = UnixStream::pair().unwrap();
    let mut frontend = Frontend::on(here, &Ram::new(1 << 20)).unwrap();
    drop(there);
    assert!(frontend.sync().unwrap_err().is_hangup());
    assert!(frontend.hung_up());
}
