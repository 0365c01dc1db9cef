//! K03: a worker is killed while the host works for it. Nobody touches the image before that has ended. K17: what a worker
//! was told of lost writes, the next one knows.

use rustix::io::Errno;
use tests::daemon::Launch;
use tests::daemon::process::{find_worker, kill_and_wait};
use tests::guest::blk::{Answer, FLUSH, Framing, IOERR, OK, Request};
use tests::guest::chain::Chain;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::machine::{BLK, Machine, RAM_BYTES};
use tests::manager::Manager;
use tests::slow::{Kind, SlowDisk};
use tests::wait;
use xtask::skip::skip;

const DISK_BYTES: usize = 1 << 20;
const DATA: [u8; 4096] = [0x5a; 4096];
const TOLD: &str = "has not ended the I/O of the worker before";

/// A guest whose disk has taken a write, and does not answer it.
struct Story {
    /// Goes before the directory that it is mounted in.
    disk: SlowDisk,
    machine: Machine,
    ring: Ring,
}

impl Story {
    /// None: this host cannot have such a disk.
    fn begin(manager: Option<&Manager>) -> Option<Story> {
        let mut story = Story::at_rest(manager)?;
        story.disk.hold();
        story.ring.add(&write());
        story.ring.notify();
        story.disk.await_held(1);
        Some(story)
    }

    /// The same before the write.
    fn at_rest(manager: Option<&Manager>) -> Option<Story> {
        let launch = BLK.launch().args(["--direct".to_owned()]);
        let disk = match SlowDisk::over(&launch.dir().join("disk.img"), DISK_BYTES) {
            Ok(disk) => disk,
            Err(obstacle) => {
                skip("slow-disk", &obstacle);
                return None;
            }
        };
        let launch = manager.into_iter().fold(launch, |launch, manager| manager.of(launch));
        let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
        let ring = machine.start_queue().unwrap();
        if let Some(manager) = manager {
            manager.settle();
        }
        Some(Story { disk, machine, ring })
    }

    /// The host ends what it had begun: the write comes back, and was repeated after that.
    fn end(mut self) {
        assert_eq!(self.disk.seen(), (0, false));
        self.disk.release();
        let done = self.ring.wait_used().unwrap();
        assert_eq!(Answer::new(&done, 0).status, Some(OK));
        assert_eq!(self.disk.seen(), (2, false));
        assert_eq!(self.disk.content()[8 * 512..][..DATA.len()], DATA);
        self.machine.assert_serves(&mut self.ring);
    }

    fn flush(&mut self) -> Option<u8> {
        let done = self.ring.run(&Request::bare(FLUSH).chain(&Framing::usual(0))).unwrap();
        Answer::new(&done, 0).status
    }

    fn await_told(&self, times: usize) {
        wait::until(|| self.machine.daemon.stderr().matches(TOLD).count() >= times);
    }
}

fn write() -> Chain {
    Request::write(8, &DATA).chain(&Framing::usual(0))
}

#[test]
fn k03_the_next_worker_waits_for_what_the_host_still_does_for_the_one_before() {
    let Some(story) = Story::begin(None) else { return };
    let keeper = story.machine.daemon.pid();
    kill_and_wait(story.machine.daemon.worker_pid());
    // Told after one second, three, seven: not more often than that.
    story.await_told(2);
    assert_eq!(find_worker(keeper), None);
    story.end();
}

#[test]
fn k03_the_next_keeper_waits_for_it_too() {
    let manager = Manager::new(16);
    let Some(mut story) = Story::begin(Some(&manager)) else { return };
    story.machine.daemon.kill9();
    story.machine.daemon.start_again(manager.stored());
    story.await_told(1);
    assert_eq!(find_worker(story.machine.daemon.pid()), None);
    story.end();
}

#[test]
fn k03_a_daemon_that_waits_for_the_host_can_be_asked_to_end_and_its_image_stays_locked() {
    let Some(mut story) = Story::begin(None) else { return };
    kill_and_wait(story.machine.daemon.worker_pid());
    story.await_told(1);
    assert_eq!(story.machine.daemon.stop().code, Some(0));
    let image = story.machine.daemon.dir().join("disk.img").display().to_string();
    let next = || Launch::new("outboard-blk").args(["--image", &image]);
    let refused = next().args(["--socket-path", "/nobody/gets/there"]).run();
    assert_eq!(refused.code, Some(4), "{refused}");
    story.disk.release();
    assert!(next().serve().is_ok());
}

#[test]
fn k17_lost_writes_are_not_forgotten_with_the_worker_that_was_told() {
    let manager = Manager::new(16);
    let Some(mut story) = Story::at_rest(Some(&manager)) else { return };
    assert_eq!(story.flush(), Some(OK));
    story.disk.fail(Kind::Sync, Errno::IO);
    assert_eq!(story.flush(), Some(IOERR));
    story.disk.mend();
    story.machine.daemon.kill_worker();
    assert_eq!(story.flush(), Some(IOERR));
    story.machine.frontend.sync().unwrap();
    manager.settle();
    story.machine.daemon.kill9();
    story.machine.daemon.start_again(manager.stored());
    assert_eq!(story.flush(), Some(IOERR));
    // A daemon that was stopped begins with what the disk has: the manager lets go of what it stored.
    story.machine.daemon.kill9();
    manager.replace(Vec::new());
    story.machine.daemon.start_again(manager.stored());
    story.machine.daemon.wait_again().unwrap();
    story.machine.reconnect().unwrap();
    story.ring = story.machine.start_queue().unwrap();
    assert_eq!(story.flush(), Some(OK));
}
