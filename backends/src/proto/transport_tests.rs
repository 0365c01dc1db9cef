use std::io::Write;
use std::os::fd::AsRawFd;

use super::*;
use crate::proto::wire::Code;
use crate::testing::memfd;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Connection::new(ours).unwrap(), theirs)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn a_message_sent_arrives_with_its_descriptors() {
    let (mut a, b) = pair();
    let mut b = Connection::new(b).unwrap();
    let file = memfd(4096);
    let header = Header::request(Code::SetVringKick, 8, true);
    a.send(header, &7u64.to_le_bytes(), &[file.as_fd(), file.as_fd()], soon()).unwrap();
    let frame = b.recv(soon()).unwrap();
    assert_eq!(
        (frame.header, frame.payload.as_slice(), frame.fds.len()),
        (header, 7u64.to_le_bytes().as_slice(), 2)
    );
}

#[test]
fn bytes_one_at_a_time_make_the_same_messages() {
    let (mut a, mut raw) = pair();
    let mut bytes = Header::request(Code::SetFeatures, 8, false).to_bytes().to_vec();
    bytes.extend(42u64.to_le_bytes());
    for (at, byte) in bytes.iter().chain(&bytes).enumerate() {
        raw.write_all(&[*byte]).unwrap();
        let whole = (at + 1) % bytes.len() == 0;
        assert_eq!(a.try_recv().unwrap().is_some(), whole);
        assert_eq!(a.partial_since().is_none(), whole);
    }
}

#[test]
fn descriptors_belong_to_the_message_they_came_with() {
    let (mut a, b) = pair();
    let mut b = Connection::new(b).unwrap();
    let file = memfd(4096);
    let plain = Header::request(Code::GetFeatures, 0, false);
    a.send(plain, &[], &[], soon()).unwrap();
    a.send(plain, &[], &[file.as_fd()], soon()).unwrap();
    a.send(plain, &[], &[], soon()).unwrap();
    let counts: Vec<usize> = (0..3).map(|_| b.recv(soon()).unwrap().fds.len()).collect();
    assert_eq!(counts, [0, 1, 0]);
}

#[test]
fn an_announced_length_over_the_limit_ends_the_connection() {
    let (mut a, mut raw) = pair();
    raw.write_all(&Header { request: 1, flags: 1, size: u32::MAX }.to_bytes()).unwrap();
    assert!(matches!(a.try_recv(), Err(TransportError::TooLong(u32::MAX))));
}

#[test]
fn a_closed_peer_is_not_a_message() {
    let (mut a, raw) = pair();
    drop(raw);
    assert!(matches!(a.try_recv(), Err(TransportError::Closed)));
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let (mut a, raw) = pair();
    let header = Header::reply(1, 4096);
    let over = loop {
        let soon = Instant::now() + Duration::from_millis(50);
        if let Err(error) = a.send(header, &[0; 4096], &[], soon) {
            break error;
        }
    };
    assert!(matches!(over, TransportError::Deadline));
    drop(raw);
}

#[test]
fn descriptors_nobody_takes_are_closed() {
    let open = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
    let (mut a, b) = pair();
    let mut b = Connection::new(b).unwrap();
    let file = memfd(4096);
    let fds = [file.as_fd(); 8];
    let arrived = std::cell::Cell::new(0);
    let before = open();
    for _ in 0..100 {
        a.send(Header::request(Code::GetFeatures, 0, false), &[], &fds, soon()).unwrap();
        let frame = b.recv(soon()).unwrap();
        arrived.set(arrived.get() + frame.fds.len());
        assert!(frame.fds.iter().all(|fd| fd.as_raw_fd() > 2));
    }
    assert_eq!(arrived.get(), 800);
    // Other tests open and close descriptors meanwhile; a leak would be 800.
    assert!(open() < before + 400);
}
