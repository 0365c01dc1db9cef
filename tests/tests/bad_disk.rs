//! A disk that goes bad under a daemon that serves (K16 to K18): whoever asked is told, nobody else, and what is lost stays
//! known until the daemon is stopped and started.
//!
//! The disk is a file of the test's own making ([`tests::slow`]), so that errors take the whole way: file system, page
//! cache or past it, engine, storage, device, guest; in the daemon as it is started for a guest, with a keeper.

use backends::proto::Request as Message;
use rustix::io::Errno;
use tests::daemon::Launch;
use tests::frontend::Wants;
use tests::guest::blk::{Blk, IOERR, OK};
use tests::guest::memory::Ram;
use tests::machine::{BLK, DISK_SECTORS, Machine, RAM_BYTES};
use tests::restart::graph;
use tests::slow::{Kind, SlowDisk};
use xtask::skip::skip;

const DISK_BYTES: usize = 512 * 2048;
const FEATURE_FLUSH: u64 = 1 << 9;
const DATA: [u8; 4096] = [0x5a; 4096];
/// Every way there is to a disk.
const WAYS: [Way; 6] = [
    Way { words: &[], graph: false },
    Way { words: &["--direct"], graph: false },
    Way { words: &["--engine", "epoll"], graph: false },
    Way { words: &["--engine", "epoll", "--direct"], graph: false },
    Way { words: &[], graph: true },
    Way { words: &["--engine", "epoll"], graph: true },
];

/// How a daemon comes to its disk.
#[derive(Clone, Copy, Debug)]
struct Way {
    words: &'static [&'static str],
    /// By five layers over two images, of which the first one fails: it has the first quarter of the disk.
    graph: bool,
}

impl Way {
    fn launch(self) -> Launch {
        let launch =
            if self.graph { graph::launch(Launch::new(BLK.binary), DISK_SECTORS) } else { BLK.launch() };
        launch.args(self.words.iter().copied())
    }

    /// Name and length of the image that fails.
    fn image(self) -> (&'static str, usize) {
        if self.graph { (graph::IMAGES[0], DISK_BYTES / 2) } else { ("disk.img", DISK_BYTES) }
    }
}

/// A guest with a disk that can fail.
struct Story {
    /// Goes before the directory that it is mounted in.
    disk: SlowDisk,
    machine: Machine,
    blk: Blk,
}

impl Story {
    /// None: this host cannot have such a disk.
    fn begin(way: Way, features: u64) -> Option<Story> {
        let (launch, (name, bytes)) = (way.launch(), way.image());
        let disk = SlowDisk::over(&launch.dir().join(name), bytes);
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
        self.blk.read(256, 512).unwrap().status
    }

    fn holds(&mut self, data: &[u8]) -> bool {
        self.blk.read(8, u32::try_from(data.len()).unwrap()).unwrap().data == data
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
        let Some(mut story) = Story::begin(WAYS[0], u64::MAX) else { return };
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
        story.machine.daemon.kill_worker();
        assert!(story.holds(&DATA), "{way:?}");
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
        story.machine.daemon.kill_worker();
        assert!(story.holds(&DATA), "{way:?}");
    }
}

#[test]
fn k16_a_disk_without_cache_that_fills_takes_writes_again_when_there_is_room() {
    for way in WAYS {
        let Some(mut story) = Story::begin(way, !FEATURE_FLUSH) else { return };
        story.disk.fail(Kind::Write, Errno::NOSPC);
        assert_eq!([story.write(), story.write()], [Some(IOERR); 2], "{way:?}");
        story.disk.mend();
        assert_eq!(story.write(), Some(OK), "{way:?}");
    }
}

/// The mode of the cache is told to a worker again; on a disk that has lost writes it is taken up, too.
#[test]
fn k17_a_mode_that_was_chosen_outlives_the_worker_on_a_disk_that_lost_writes() {
    for way in WAYS {
        let Some(mut story) = Story::begin(way, u64::MAX) else { return };
        story.machine.frontend.set_config(32, &[0]).unwrap();
        assert_eq!(story.write(), Some(OK), "{way:?}");
        story.disk.fail(Kind::Sync, Errno::IO);
        assert_eq!(story.write(), Some(IOERR), "{way:?}");
        story.disk.mend();
        story.machine.daemon.kill_worker();
        assert_eq!((story.read(), story.write()), (Some(OK), Some(IOERR)), "{way:?}");
        assert_eq!(story.machine.frontend.config(32, 1).unwrap(), [0], "{way:?}");
    }
}

#[test]
fn k17_an_image_that_is_cut_short_fails_what_was_cut_off_and_nothing_else() {
    for way in WAYS.into_iter().filter(|way| !way.graph) {
        let launch = way.launch();
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

#[test]
fn k18_writes_that_the_host_stutters_at_are_finished() {
    // FUSE makes an EIO of a direct write that is cut short.
    for way in WAYS.into_iter().filter(|way| !way.words.contains(&"--direct")) {
        let Some(mut story) = Story::begin(way, u64::MAX) else { return };
        let data: Vec<u8> = (0..=255).cycle().take(16_384).collect();
        story.disk.stutter(9);
        assert_eq!(story.blk.write(8, &data).unwrap().status, Some(OK), "{way:?}");
        assert_eq!(story.disk.stutters(), 0, "{way:?}");
        story.machine.daemon.kill_worker();
        assert!(story.holds(&data), "{way:?}");
    }
}
