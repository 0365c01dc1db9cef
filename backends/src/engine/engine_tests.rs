use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::event::{EventfdFlags, eventfd};

use std::time::{Duration, Instant};

use super::*;
use crate::testing::{GUEST_BASE, Guest, memfd};

/// An owner of buffers in a test guest, and a number to know it by.
#[derive(Debug)]
struct Owner(u32, Vec<Segment>);

impl Buffers for Owner {
    fn segments(&self) -> &[Segment] {
        &self.1
    }
}

const KINDS: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Epoll];

fn owner(guest: &Guest, number: u32, pieces: &[(u64, u32)]) -> Owner {
    let mut segments = Vec::new();
    for (at, len) in pieces {
        assert!(guest.memory.translate(GUEST_BASE + at, *len, &mut segments));
    }
    Owner(number, segments)
}

fn next(engine: &mut Engine<Owner>) -> Event<Owner> {
    loop {
        if let Some(event) = engine.event() {
            return event;
        }
        engine.wait(true).unwrap();
    }
}

fn file_of(bytes: &[u8]) -> File {
    let file = File::from(memfd(0));
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn reads_and_writes_come_back_with_their_owner() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        let mut engine = Engine::new(kind).unwrap();
        let file = file_of(b"0123456789");
        let fd = file.as_raw_fd();
        engine.submit(fd, Op::Read { offset: 2 }, owner(&guest, 7, &[(0x1000, 3), (0x2000, 4)]));
        let Event::Done(Owner(7, _), Ok(7)) = next(&mut engine) else { panic!("{kind:?}") };
        assert_eq!((guest.read::<3>(0x1000), guest.read::<4>(0x2000)), (*b"234", *b"5678"));
        engine.submit(fd, Op::Write { offset: 8, durable: false }, owner(&guest, 8, &[(0x1000, 3)]));
        let Event::Done(Owner(8, _), Ok(3)) = next(&mut engine) else { panic!("{kind:?}") };
        engine.submit(fd, Op::Sync, owner(&guest, 9, &[]));
        let Event::Done(Owner(9, _), Ok(0)) = next(&mut engine) else { panic!("{kind:?}") };
        let mut text = String::new();
        (&file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "01234567234");
        assert_eq!(engine.in_flight(), 0);
    }
}

#[test]
fn a_failed_operation_returns_its_owner() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        let mut engine = Engine::new(kind).unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        engine.submit(writer.as_raw_fd(), Op::Read { offset: 0 }, owner(&guest, 3, &[(0, 8)]));
        let Event::Done(Owner(3, _), Err(_)) = next(&mut engine) else { panic!("{kind:?}") };
    }
}

#[test]
fn a_host_with_little_to_do_begins_before_anybody_waits() {
    let guest = Guest::new(8, false);
    let mut engine = Engine::new(EngineKind::IoUring).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let written = || rustix::io::ioctl_fionread(&reader).unwrap();
    for number in 0..12 {
        let op = Op::Write { offset: 0, durable: false };
        engine.submit(writer.as_raw_fd(), op, owner(&guest, number, &[(0x1000, 1)]));
        if number < 7 {
            assert_eq!(written(), 0, "a few are submitted together");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while written() < 8 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(written(), 8, "the rest waits for more, or for whoever waits");
    for _ in 0..12 {
        let Event::Done(_, Ok(1)) = next(&mut engine) else { panic!("a write failed") };
    }
}

#[test]
fn more_operations_than_the_queue_has_entries() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        let mut engine = Engine::new(kind).unwrap();
        let file = file_of(&[42; 4096]);
        for number in 0..3000 {
            engine.submit(file.as_raw_fd(), Op::Read { offset: 0 }, owner(&guest, number, &[(0x3000, 64)]));
        }
        let mut seen = vec![false; 3000];
        for _ in 0..3000 {
            let Event::Done(Owner(number, _), Ok(64)) = next(&mut engine) else { panic!("{kind:?}") };
            assert!(!std::mem::replace(&mut seen[number as usize], true));
        }
    }
}

#[test]
fn more_completions_than_the_kernel_has_room_for() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        let mut engine = Engine::new(kind).unwrap();
        let file = file_of(&[42; 4096]);
        let count = 20_000;
        for number in 0..count {
            let pieces = [(0x3000, 8), (0x4000, 8)];
            engine.submit(file.as_raw_fd(), Op::Read { offset: 0 }, owner(&guest, number, &pieces));
        }
        let mut seen = vec![false; count as usize];
        for _ in 0..count {
            let Event::Done(Owner(number, _), Ok(16)) = next(&mut engine) else { panic!("{kind:?}") };
            assert!(!std::mem::replace(&mut seen[number as usize], true));
        }
    }
}

#[test]
fn an_eventfd_is_reported_at_each_raise_without_being_read() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        engine.watch(bell.as_fd(), Interest::Read, Token(5)).unwrap();
        for _ in 0..3 {
            engine.wait(false).unwrap();
            assert!(engine.event().is_none(), "{kind:?}: quiet until raised");
            rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
            let event = next(&mut engine);
            assert!(matches!(event, Event::Ready(Token(5))), "{kind:?} {event:?}");
        }
        engine.unwatch(bell.as_fd(), Token(5));
        engine.wait(false).unwrap();
        while engine.event().is_some() {}
        rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        engine.wait(false).unwrap();
        assert!(engine.event().is_none(), "{kind:?}: unwatched");
    }
}

#[test]
fn the_end_of_a_watch_does_not_end_the_next_one_of_the_same_name() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let [old, new] = [(); 2].map(|()| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        engine.watch(old.as_fd(), Interest::Read, Token(5)).unwrap();
        engine.wait(false).unwrap();
        engine.unwatch(old.as_fd(), Token(5));
        engine.watch(new.as_fd(), Interest::Read, Token(5)).unwrap();
        for _ in 0..2 {
            rustix::io::write(&new, &1u64.to_ne_bytes()).unwrap();
            let event = next(&mut engine);
            assert!(matches!(event, Event::Ready(Token(5))), "{kind:?} {event:?}");
        }
    }
}

#[test]
fn what_is_ready_already_is_reported_once() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let bell = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        engine.watch(bell.as_fd(), Interest::Read, Token(1)).unwrap();
        assert!(matches!(next(&mut engine), Event::Ready(Token(1))));
        engine.wait(false).unwrap();
        assert!(engine.event().is_none(), "{kind:?}");
    }
}

#[test]
fn f20_what_cannot_be_polled_is_not_spun_on() {
    let zero = File::open("/dev/zero").unwrap();
    let mut epoll = Engine::<Owner>::new(EngineKind::Epoll).unwrap();
    assert!(epoll.watch(zero.as_fd(), Interest::Read, Token(1)).is_err());
    let mut uring = Engine::<Owner>::new(EngineKind::IoUring).unwrap();
    uring.watch(zero.as_fd(), Interest::Read, Token(1)).unwrap();
    let reports =
        std::iter::from_fn(|| Some(next(&mut uring))).position(|e| matches!(e, Event::Deaf(Token(1))));
    assert!(reports.unwrap() < 20);
    uring.wait(false).unwrap();
    assert!(uring.event().is_none());
}

#[test]
fn streams_are_reported_when_they_become_readable_again() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        engine.watch(ours.as_fd(), Interest::Read, Token(2)).unwrap();
        for _ in 0..2 {
            theirs.write_all(b"x").unwrap();
            assert!(matches!(next(&mut engine), Event::Ready(Token(2))), "{kind:?}");
            (&ours).read_exact(&mut [0]).unwrap();
        }
        drop(theirs);
        assert!(matches!(next(&mut engine), Event::Ready(Token(2))), "{kind:?}: the end is an event too");
    }
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn an_alarm_ends_a_wait_at_its_moment_and_not_before() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let began = Instant::now();
        engine.arm(Alarm(4), began + SOON * 3);
        engine.arm(Alarm(2), began + SOON);
        engine.wait(false).unwrap();
        assert!(engine.event().is_none(), "{kind:?}: only a look");
        assert!(matches!(next(&mut engine), Event::Expired(Alarm(2))), "{kind:?}");
        assert!(began.elapsed() >= SOON, "{kind:?}: too soon");
        assert!(matches!(next(&mut engine), Event::Expired(Alarm(4))), "{kind:?}");
        assert!(began.elapsed() >= SOON * 3, "{kind:?}: too soon");
        assert_eq!(engine.deadline(), None);
    }
}

#[test]
fn an_alarm_is_moved_or_taken_back() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let began = Instant::now();
        (1..4).for_each(|number| engine.arm(Alarm(number), began + SOON));
        engine.arm(Alarm(1), began + SOON * 2);
        engine.disarm(Alarm(2));
        engine.disarm(Alarm(77));
        assert!(matches!(next(&mut engine), Event::Expired(Alarm(3))), "{kind:?}");
        assert!(matches!(next(&mut engine), Event::Expired(Alarm(1))), "{kind:?}");
        assert!(began.elapsed() >= SOON * 2, "{kind:?}: it was moved");
        assert_eq!(engine.deadline(), None, "{kind:?}: the other was taken back");
    }
}

#[test]
fn an_alarm_that_is_over_already_does_not_sleep() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        engine.arm(Alarm(0), Instant::now());
        engine.wait(true).unwrap();
        assert!(matches!(engine.event(), Some(Event::Expired(Alarm(0)))), "{kind:?}");
    }
}

#[test]
fn other_events_come_while_an_alarm_is_armed() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        let mut engine = Engine::new(kind).unwrap();
        let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        engine.watch(bell.as_fd(), Interest::Read, Token(5)).unwrap();
        engine.arm(Alarm(0), Instant::now() + Duration::from_secs(3600));
        rustix::io::write(&bell, &1u64.to_ne_bytes()).unwrap();
        assert!(matches!(next(&mut engine), Event::Ready(Token(5))), "{kind:?}");
        let file = file_of(b"0123");
        engine.submit(file.as_raw_fd(), Op::Read { offset: 0 }, owner(&guest, 1, &[(0, 4)]));
        assert!(matches!(next(&mut engine), Event::Done(Owner(1, _), Ok(4))), "{kind:?}");
    }
}

#[test]
fn a_durable_write_moves_as_any_other() {
    for kind in KINDS {
        let guest = Guest::new(8, false);
        guest.write(0x1000, b"abcdef");
        let mut engine = Engine::new(kind).unwrap();
        let file = file_of(b"0123456789");
        for (offset, pieces) in [(1, &[(0x1000, 2)][..]), (5, &[(0x1002, 1), (0x1004, 2)])] {
            let write = Op::Write { offset, durable: true };
            engine.submit(file.as_raw_fd(), write, owner(&guest, 1, pieces));
            assert!(matches!(next(&mut engine), Event::Done(Owner(1, _), Ok(2 | 3))), "{kind:?}");
        }
        assert_eq!(content(&file), b"0ab34cef89", "{kind:?}");
    }
}

#[test]
fn room_of_a_file_is_given_back_and_kept_within_its_size() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let file = file_of(&[7; 16 << 10]);
        let mut reserve = |room, offset, bytes| {
            let answer = reserve(&mut engine, &file, Op::Reserve { room, offset, bytes });
            let meta = file.metadata().unwrap();
            (answer, meta.size(), meta.blocks() * 512)
        };
        assert_eq!(reserve(Room::Hole, 4 << 10, 8 << 10), (Ok(0), 16 << 10, 8 << 10), "{kind:?}");
        assert_eq!(reserve(Room::Kept, 0, 32 << 10), (Ok(0), 16 << 10, 32 << 10), "{kind:?}");
        let expected = [&[7; 4 << 10], [0; 8 << 10].as_slice(), &[7; 4 << 10]].concat();
        assert!(content(&file) == expected, "{kind:?}");
        assert_eq!(reserve(Room::Hole, 0, u64::MAX).0, Err(Errno::INVAL), "{kind:?}");
    }
}

#[test]
fn zeros_keep_their_room_where_the_file_system_can_do_that() {
    for kind in KINDS {
        let mut engine = Engine::<Owner>::new(kind).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 16 << 10], 0).unwrap();
        let zeros = Op::Reserve { room: Room::Zeros, offset: 4 << 10, bytes: 64 << 10 };
        match reserve(&mut engine, &file, zeros) {
            // tmpfs cannot.
            Err(Errno::OPNOTSUPP) => continue,
            answer => assert_eq!(answer, Ok(0), "{kind:?}"),
        }
        assert!(content(&file) == [&[7; 4 << 10], [0; 12 << 10].as_slice()].concat(), "{kind:?}");
        assert!(file.metadata().unwrap().blocks() * 512 >= 16 << 10, "{kind:?}");
    }
}

fn reserve(engine: &mut Engine<Owner>, file: &File, op: Op) -> Result<u32, Errno> {
    engine.submit(file.as_raw_fd(), op, Owner(1, Vec::new()));
    let Event::Done(Owner(1, _), answer) = next(engine) else { panic!("{op:?}") };
    answer
}
