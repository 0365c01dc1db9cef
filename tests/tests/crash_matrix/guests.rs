//! Ends that are meant (K10, K11), guests that start again (K12), and hosts that run out of something (K20, K21).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backends::proto::Request;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, prlimit,
};
use tests::frontend::{Frontend, Wants};
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::machine::{self, QUEUE_SIZE, RAM_BYTES};
use tests::restart::soak::Device;
use tests::restart::{Mode, Rig, remembered_base};
use tests::wait;

use crate::{Cell, Story, armed, same_counts};

/// The daemon's first process: the keeper where there is one.
fn first(story: &Story) -> Pid {
    i32::try_from(story.rig.daemon.pid()).ok().and_then(Pid::from_raw).unwrap()
}

/// What is in flight is finished, the rest is for the next daemon, which learns of it by the front-end's region.
fn k10_sigterm_under_load_leaves_the_rest_to_the_next(cell: Cell) {
    let (launch, points) = armed(cell, &[]);
    let rig = Rig::start(launch, cell.mode, Wants::on(cell.rings), cell.device.queues());
    let mut story = Story::of(cell, rig, points);
    let pid = first(&story);
    let ended = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    story.load.submit();
    let asked = Instant::now();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(wait::one_readable(&ended, wait::deadline()), "{cell:?}: it does not end");
    assert!(asked.elapsed() < Duration::from_secs(10), "{cell:?}: it took {:?}", asked.elapsed());
    assert!(story.rig.daemon.stderr().contains("served requests="), "{cell:?}: it gave no account");
    story.load.killed(true).and_then(|()| story.load.salvage()).unwrap();
    story.rig.reconnect(&mut *story.load).unwrap_or_else(|fault| panic!("{cell:?}: {fault}"));
    story.ends_well();
}

/// The same daemon as scenarios know it, with a request that must succeed.
fn scenario(cell: Cell) -> machine::Device {
    let device = match cell.device {
        Device::Blk | Device::BlkGraph => machine::BLK,
        Device::Rng => machine::RNG,
        Device::Console => machine::CONSOLE,
    };
    device.on(cell.rings)
}

/// A new guest, on a new connection, which is served.
#[track_caller]
fn serves_anew(story: &mut Story) {
    next_front_end(story);
    story.rig.frontend.handshake(story.cell.wants()).unwrap();
    serves_on_a_new_ring(story);
}

/// Only what was asked comes back.
#[track_caller]
fn serves_on_a_new_ring(story: &mut Story) -> Ring {
    let device = scenario(story.cell);
    let mut ring = story.rig.frontend.start_new(device.queue, QUEUE_SIZE).unwrap();
    for _ in 0..5 {
        let done = ring.run(&device.request());
        assert!(done.as_ref().is_ok_and(|done| device.accepts(done)), "{:?}: {done:?}", story.cell);
    }
    assert_eq!(ring.waiting(), 0, "{:?}: more came back than was asked", story.cell);
    ring
}

/// The front-end goes, and another is there that has said nothing yet.
fn next_front_end(story: &mut Story) {
    // It waits in the backlog until the one before is gone.
    story.rig.frontend = Frontend::connect(story.rig.daemon.socket(), &Ram::new(RAM_BYTES)).unwrap();
}

/// A front-end that dies takes its memory and its requests with it; the next one finds the daemon as it was.
fn k11_killed_vmm_leaves_nothing_behind(cell: Cell) {
    let mut story = Story::begin(cell, &[]);
    let mut alone = Vec::new();
    for round in 0..4 {
        story.load.submit();
        next_front_end(&mut story);
        story.rig.frontend.sync().unwrap();
        if round == 0 {
            alone = story.rig.counts();
            assert!(cell.device != Device::Blk || story.load.check().is_ok(), "{cell:?}: the disk is wrong");
        }
        same_counts(cell, &alone, &story.rig.counts());
        serves_anew(&mut story);
    }
}

/// What a guest had in flight when it was started again is nobody's: not after the reset, not after a death before or
/// behind it.
fn k12_a_guest_that_starts_again_gets_nothing_stale(cell: Cell) {
    for death_before in [false, true] {
        let mut story = Story::begin(cell, &[]);
        story.load.submit();
        if death_before {
            story.rig.kill(&mut *story.load).unwrap();
            if cell.mode == Mode::Reconnect {
                story.rig.daemon.restart().unwrap();
                story.rig.connect().unwrap();
            }
        }
        reset(&mut story);
        let old: Vec<_> = story.load.rings().iter().map(|ring| ring.written_by_device()).collect();
        let ring = serves_on_a_new_ring(&mut story);
        story.rig.kill_server();
        if cell.mode == Mode::Reconnect {
            story.rig.daemon.restart().unwrap();
            story.rig.connect().unwrap();
            story.rig.frontend.start(scenario(cell).queue, &ring, remembered_base(&ring)).unwrap();
        }
        serves(&mut story, ring);
        let now: Vec<_> = story.load.rings().iter().map(|ring| ring.written_by_device()).collect();
        assert!(now == old, "{cell:?}: a ring of the guest before was written to");
    }
}

/// The VMM's part of a reboot: rings stopped, device reset.
fn reset(story: &mut Story) {
    for queue in 0..story.cell.device.queues() {
        story.rig.frontend.stop(u8::try_from(queue).unwrap()).unwrap();
    }
    let features = story.rig.frontend.features();
    story.rig.frontend.tell(Request::ResetDevice, &[]).unwrap();
    story.rig.frontend.tell(Request::SetFeatures(features), &[]).unwrap();
    story.rig.track().unwrap();
}

#[track_caller]
fn serves(story: &mut Story, mut ring: Ring) {
    let device = scenario(story.cell);
    ring.kick();
    let done = ring.run(&device.request());
    assert!(done.as_ref().is_ok_and(|done| device.accepts(done)), "{:?}: {done:?}", story.cell);
    assert_eq!(ring.waiting(), 0, "{:?}: more came back than was asked", story.cell);
}

/// The session that is there goes on; the next front-end waits without making the daemon spin, and is served later.
fn k20_without_descriptors_for_the_next_front_end(cell: Cell) {
    let mut story = Story::begin(cell, &[]);
    let pid = first(&story);
    // As many as it has had since its start, and as poll(2) needs.
    let few = Rlimit { current: Some(6), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(pid), Resource::Nofile, few).unwrap();
    story.traffic();
    next_front_end(&mut story);
    let asked = Request::GetFeatures;
    story.rig.frontend.send(&asked, &[], false).unwrap();
    let ticks = story.rig.daemon.cpu_ticks();
    let silent = !wait::one_readable(&story.rig.frontend, Instant::now() + Duration::from_millis(500));
    let spent = story.rig.daemon.cpu_ticks() - ticks;
    assert!(silent && spent < 20, "{cell:?}: it answers: {}; {spent} ticks of CPU in half a second", !silent);
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    story.rig.frontend.receive(asked.code()).unwrap();
    serves_anew(&mut story);
}

/// Deadlines are those of a clock that nobody sets (CLOCK_MONOTONIC, `Instant`): nothing that a daemon is made of asks
/// for the time of day, but to tell it: when something began, when a line was written.
fn k21_clock_jumps_are_not_seen(cell: Cell) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for sources in [root.join("backends/src"), root.join(cell.device.folder()).join("src")] {
        let asking = asks_for_the_time_of_day(&sources);
        assert!(asking.is_empty(), "{asking:?}");
    }
}

fn asks_for_the_time_of_day(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let asks = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        ["SystemTime", "Realtime", "REALTIME", "gettimeofday"].iter().any(|word| text.contains(word))
    };
    let below = folders.iter().flat_map(|folder| asks_for_the_time_of_day(folder));
    let tells = |path: &PathBuf| path.ends_with("backends/src/clock.rs");
    files.iter().filter(|path| asks(path) && !tells(path)).cloned().chain(below).collect()
}

crate::matrix! {
    blk Blk: [
        k10_sigterm_under_load_leaves_the_rest_to_the_next, k11_killed_vmm_leaves_nothing_behind,
        k12_a_guest_that_starts_again_gets_nothing_stale, k20_without_descriptors_for_the_next_front_end,
        k21_clock_jumps_are_not_seen,
    ],
    rng Rng: [
        k10_sigterm_under_load_leaves_the_rest_to_the_next, k11_killed_vmm_leaves_nothing_behind,
        k12_a_guest_that_starts_again_gets_nothing_stale, k20_without_descriptors_for_the_next_front_end,
        k21_clock_jumps_are_not_seen,
    ],
    console Console: [
        k10_sigterm_under_load_leaves_the_rest_to_the_next, k11_killed_vmm_leaves_nothing_behind,
        k12_a_guest_that_starts_again_gets_nothing_stale, k20_without_descriptors_for_the_next_front_end,
        k21_clock_jumps_are_not_seen,
    ],
}
