//! A disk that goes bad under a daemon that serves (K16, K17): whoever asked is told, nobody else, and what is lost stays
//! known until the daemon is stopped and started.
//!
//! The disk is a file of the test's own making ([`tests::slow`]), so that errors take the whole way: file system, page
//! cache or past it, engine, storage, device, guest; in the daemon as it is started for a guest, with a keeper.

use backends::proto::Request as Message;
use rustix::io::Errno;
use tests::frontend::Wants;
use tests::guest::blk::{Blk, IOERR, OK};
use tests::guest::memory::Ram;
use tests::machine::{BLK, DISK_SECTORS, Machine, RAM_BYTES};
use tests::slow::{Kind, SlowDisk};
use xtask::skip::skip;

const DISK_BYTES: usize = 512 * 2048;
const FEATURE_FLUSH: u64 = 1 << 9;
const DATA: [u8; 4096] = [0x5a; 4096];
/// Every way there is to a disk.
const WAYS: [&[&str]; 4] = [&[], &["--direct"], &["--engine", "epoll"], &["--engine", "epoll", "--direct"]];

/// A guest with a disk that can fail.
struct Story {
    /// Goes before the directory that it is mounted in.
    disk: SlowDisk,
    machine: Machine,
    blk: Blk,
}

impl Story {
    /// None: this host cannot have such a disk.
    fn begin(words: &[&str], features: u64) -> Option<Story> {
        let launch = BLK.launch().args(words.iter().copied());
        let disk = SlowDisk::over(&launch.dir().join("disk.img"), DISK_BYTES);
        let disk = disk.map_err(|obstacle| skip("slow-disk", &obstacle)).ok()?;
        let wants = Wants { features, ..BLK.wants() };
        let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), wants);
        let blk = Blk::new(machine.start_queue().unwrap());
        Some(Story { disk, machine, blk })
    }

    fn write(&mut self) -> Option<u8> {
        self.blk.write(8, &DATA).unwrap().status
    }

    fn read(&mut self) -> Option<u8> {
        self.blk.read(1024, 512).unwrap().status
    }

    fn flush(&mut self) -> Option<u8> {
        self.blk.flush().unwrap().status
    }

    fn ring(&mut self) {
        self.blk = Blk::new(self.machine.start_queue().unwrap());
    }

    /// The device is reset, as when the guest starts again.
    fn reset(&mut self) {
        let frontend = &mut self.machine.frontend;
        frontend.stop(BLK.queue).unwrap();
        let features = frontend.features();
        frontend.tell(Message::ResetDevice, &[]).unwrap();
        frontend.tell(Message::SetFeatures(features), &[]).unwrap();
        self.ring();
    }

    fn next_front_end(&mut self) {
        self.machine.reconnect().unwrap();
        self.ring();
    }

    /// The operator has looked at the disk, and starts the daemon anew.
    fn stop_and_start(&mut self) {
        self.machine.hang_up();
        assert_eq!(self.machine.daemon.stop().code, Some(0));
        self.machine.daemon.start_again(Vec::new());
        self.machine.daemon.wait_again().unwrap();
        self.next_front_end();
    }

    /// Everything that a daemon outlives, and each time this is still so.
    fn whatever_happens(&mut self, so: impl Fn(&mut Story)) {
        so(self);
        self.machine.daemon.kill_worker();
        so(self);
        self.reset();
        so(self);
        self.next_front_end();
        so(self);
        self.machine.daemon.kill_worker();
        so(self);
    }
}

#[test]
fn k17_lost_writes_are_known_until_the_daemon_is_stopped_and_started() {
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT] {
        let Some(mut story) = Story::begin(&[], u64::MAX) else { return };
        assert_eq!((story.write(), story.flush()), (Some(OK), Some(OK)));
        story.disk.fail(Kind::Sync, errno);
        assert_eq!((story.write(), story.flush()), (Some(OK), Some(IOERR)), "{errno}");
        story.disk.mend();
        story.whatever_happens(|story| {
            assert_eq!((story.flush(), story.write()), (Some(IOERR), Some(OK)), "{errno}");
            assert_eq!((story.flush(), story.read()), (Some(IOERR), Some(OK)), "{errno}");
        });
        let told = "flushes fail until this daemon is stopped and started";
        assert!(story.machine.daemon.stderr().contains(told), "{errno}");
        story.stop_and_start();
        assert_eq!((story.write(), story.flush(), story.read()), (Some(OK), Some(OK), Some(OK)), "{errno}");
    }
}

#[test]
fn k17_no_write_is_durable_once_writes_were_lost_where_there_is_no_cache() {
    for way in WAYS {
        let Some(mut story) = Story::begin(way, !FEATURE_FLUSH) else { return };
        assert_eq!(story.write(), Some(OK), "{way:?}");
        story.disk.fail(Kind::Sync, Errno::IO);
        assert_eq!(story.write(), Some(IOERR), "{way:?}");
        story.disk.mend();
        story.whatever_happens(|story| {
            assert_eq!((story.write(), story.read()), (Some(IOERR), Some(OK)), "{way:?}");
        });
        story.stop_and_start();
        assert_eq!(story.write(), Some(OK), "{way:?}");
    }
}

#[test]
fn k17_a_disk_that_cannot_read_or_write_fails_what_needs_it_and_nothing_else() {
    for way in WAYS {
        let Some(mut story) = Story::begin(way, u64::MAX) else { return };
        story.disk.fail(Kind::Read, Errno::IO);
        assert_eq!(
            (story.read(), story.write(), story.flush()),
            (Some(IOERR), Some(OK), Some(OK)),
            "{way:?}"
        );
        story.disk.mend();
        story.disk.fail(Kind::Write, Errno::IO);
        assert_eq!((story.write(), story.read()), (Some(IOERR), Some(OK)), "{way:?}");
        story.machine.daemon.kill_worker();
        assert_eq!((story.write(), story.read()), (Some(IOERR), Some(OK)), "{way:?}");
        story.disk.mend();
        assert_eq!((story.write(), story.flush()), (Some(OK), Some(OK)), "{way:?}");
        assert_eq!(story.disk.content()[4096..][..DATA.len()], DATA, "{way:?}");
    }
}

#[test]
fn k16_a_disk_that_fills_takes_writes_again_when_there_is_room() {
    for way in WAYS {
        let Some(mut story) = Story::begin(way, u64::MAX) else { return };
        story.disk.fail(Kind::Write, Errno::NOSPC);
        for _ in 0..3 {
            assert_eq!(
                (story.write(), story.read(), story.flush()),
                (Some(IOERR), Some(OK), Some(OK)),
                "{way:?}"
            );
        }
        story.disk.mend();
        assert_eq!((story.write(), story.flush()), (Some(OK), Some(OK)), "{way:?}");
        assert_eq!(story.disk.content()[4096..][..DATA.len()], DATA, "{way:?}");
    }
}

#[test]
fn k17_an_image_that_is_cut_short_fails_what_was_cut_off_and_nothing_else() {
    for way in WAYS {
        let launch = BLK.launch().args(way.iter().copied());
        let path = launch.dir().join("disk.img");
        let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
        let mut blk = Blk::new(machine.start_queue().unwrap());
        let image = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        image.set_len(4096 * 10).unwrap();
        for killed in [false, true] {
            if killed {
                machine.daemon.kill_worker();
            }
            assert_eq!(blk.read(80, 512).unwrap().status, Some(IOERR), "{way:?}: past the end");
            assert_eq!(blk.read(72, 8192).unwrap().status, Some(IOERR), "{way:?}: across the end");
            assert_eq!(blk.read(DISK_SECTORS - 1, 512).unwrap().status, Some(IOERR), "{way:?}: the last one");
            assert_eq!(blk.write(8, &DATA).unwrap().status, Some(OK), "{way:?}");
            assert_eq!(blk.read(8, 4096).unwrap().data, DATA, "{way:?}");
            assert_eq!(blk.flush().unwrap().status, Some(OK), "{way:?}");
        }
        image.set_len(DISK_BYTES as u64).unwrap();
        machine.daemon.kill_worker();
        assert_eq!(blk.read(DISK_SECTORS - 1, 512).unwrap().status, Some(OK), "{way:?}");
        assert_eq!(machine.daemon.terminate().code, Some(0), "{way:?}");
    }
}
