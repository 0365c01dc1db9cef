//! Two processes: who lives when, how they end, and how one takes the place of another.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tests::daemon::process::{find_worker, kill, wait_gone};
use tests::daemon::{Launch, binary};
use tests::frontend::Wants;
use tests::guest::memory::Ram;
use tests::machine::{BLK, DISK_SECTORS, Device, Machine, RAM_BYTES, RNG};
use tests::restart::graph;
use tests::wait;

tests::against_every_daemon! {
    both: [k10_sigterm_ends_both, a_killed_keeper_leaves_nothing_behind, an_upgrade_keeps_the_front_end],
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn children(pid: u32) -> usize {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().count()
}

/// A line of proc(5) status.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned())
}

fn is_stopped(pid: u32) -> bool {
    status(pid, "State:").is_some_and(|state| state.starts_with('T'))
}

/// It was sent to a process that has not taken it.
fn is_pending(pid: u32, signal: Signal) -> bool {
    let bits = status(pid, "ShdPnd:").and_then(|bits| u64::from_str_radix(&bits, 16).ok());
    bits.is_some_and(|bits| bits & 1 << (signal.as_raw() - 1) != 0)
}

fn k10_sigterm_ends_both(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let (worker, socket) = (machine.daemon.worker_pid(), machine.daemon.socket().to_owned());
    assert_ne!(worker, machine.daemon.pid());
    let exit = machine.daemon.terminate();
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(!Path::new(&format!("/proc/{worker}")).exists(), "the worker goes on");
    assert!(!socket.exists());
    assert!(machine.frontend.hung_up());
}

fn a_killed_keeper_leaves_nothing_behind(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let worker = machine.daemon.worker_pid();
    kill(machine.daemon.pid());
    wait_gone(worker);
    assert!(machine.frontend.hung_up());
}

/// Its front-end may be with the next daemon already: not even a worker that cannot notice goes on later.
#[test]
fn a_killed_keeper_takes_its_worker_along_at_once() {
    let machine = RNG.boot();
    let worker = machine.daemon.worker_pid();
    signal(worker, Signal::STOP);
    kill(machine.daemon.pid());
    wait_gone(worker);
}

/// A program of its own, to be replaced.
fn own_program(device: Device) -> (Launch, PathBuf) {
    let dir = device.launch();
    let path = dir.dir().join("program");
    fs::copy(binary(device.binary), &path).unwrap();
    (dir.of_program(&path), path)
}

/// Another file in its place, as a package manager does it.
fn replace(path: &Path, by: &Path) {
    let next = path.with_extension("next");
    fs::copy(by, &next).unwrap();
    fs::rename(next, path).unwrap();
}

fn executable(pid: u32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

fn await_other_worker(machine: &Machine, than: u32) -> u32 {
    let until = wait::deadline();
    loop {
        assert!(Instant::now() < until, "no other worker: {}", machine.daemon.stderr());
        match find_worker(machine.daemon.pid()) {
            Some(worker) if worker != than => return worker,
            _ => std::thread::yield_now(),
        }
    }
}

fn an_upgrade_keeps_the_front_end(device: Device) {
    let (launch, path) = own_program(device);
    let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let (first, old) = (machine.daemon.worker_pid(), executable(machine.daemon.worker_pid()));
    replace(&path, &binary(device.binary));
    let new = fs::metadata(&path).unwrap().ino();
    // A crash goes on with the program that was running; an upgrade takes the one that is there.
    machine.daemon.kill_worker();
    let second = await_other_worker(&machine, first);
    machine.assert_serves(&mut ring);
    assert_eq!(executable(second), old);
    signal(machine.daemon.pid(), Signal::HUP);
    let third = await_other_worker(&machine, second);
    machine.assert_serves(&mut ring);
    assert_eq!(executable(third), new);
    machine.daemon.kill_worker();
    let fourth = await_other_worker(&machine, third);
    machine.assert_serves(&mut ring);
    assert_eq!(executable(fourth), new);
    machine.frontend.sync().unwrap();
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

#[test]
fn an_upgrade_to_something_that_does_not_start_is_taken_back() {
    let (launch, path) = own_program(RNG);
    let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
    let mut ring = machine.start_queue().unwrap();
    let old = executable(machine.daemon.worker_pid());
    for broken in ["/bin/false", "/etc/passwd"] {
        let worker = machine.daemon.worker_pid();
        replace(&path, Path::new(broken));
        signal(machine.daemon.pid(), Signal::HUP);
        wait_gone(worker);
        machine.assert_serves(&mut ring);
        assert_eq!(executable(machine.daemon.worker_pid()), old);
    }
    assert!(machine.daemon.stderr().contains("does not start, going on with the one before"));
}

#[test]
fn an_upgrade_to_a_device_that_lacks_what_was_negotiated_is_taken_back() {
    let (launch, path) = own_program(RNG);
    let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), Wants { in_order: true, ..RNG.wants() });
    let mut ring = machine.start_queue().unwrap();
    let (worker, old) = (machine.daemon.worker_pid(), executable(machine.daemon.worker_pid()));
    replace(&path, &binary("outboard-null"));
    signal(machine.daemon.pid(), Signal::HUP);
    wait_gone(worker);
    machine.assert_serves(&mut ring);
    assert_eq!(executable(machine.daemon.worker_pid()), old);
    assert!(machine.daemon.stderr().contains("does not take the session, going on with the one before"));
}

#[test]
fn a_worker_that_does_not_end_for_an_upgrade_is_killed() {
    let mut machine = RNG.boot();
    let mut ring = machine.start_queue().unwrap();
    let worker = machine.daemon.worker_pid();
    signal(worker, Signal::STOP);
    signal(machine.daemon.pid(), Signal::HUP);
    wait_gone(worker);
    machine.assert_serves(&mut ring);
}

#[test]
fn what_keeps_a_worker_from_starting_is_said_and_its_exit_code_passed_on() {
    let exit = Launch::new("outboard-blk").args(["--image", "/no/such/image", "--socket-path", "s"]).run();
    assert_eq!(exit.code, Some(2), "{exit}");
    assert!(exit.stderr.contains("--image /no/such/image: there is no such file"), "{exit}");
    let machine = BLK.boot();
    let image = machine.daemon.dir().join("disk.img").display().to_string();
    let exit = Launch::new("outboard-blk").args(["--image", &image, "--socket-path", "s"]).run();
    assert_eq!(exit.code, Some(4), "{exit}");
}

#[test]
fn k03_no_two_workers_ever_hold_one_image() {
    let mut machine = BLK.boot();
    let mut ring = machine.start_queue().unwrap();
    let (keeper, over) = (machine.daemon.pid(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let most = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(children(keeper));
            }
            most
        });
        for _ in 0..18 {
            machine.daemon.kill_worker();
            machine.assert_serves(&mut ring);
        }
        over.store(true, Ordering::Relaxed);
        // Dead ones that were not reaped count too.
        assert_eq!(most.join().unwrap(), 1);
    });
}

/// The descriptor of a process that has this file open.
fn descriptor(pid: u32, name: &str) -> PathBuf {
    let mut all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let has = |path: &PathBuf| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().starts_with(name));
    all.find(has).unwrap_or_else(|| panic!("process {pid} has no {name} open"))
}

#[test]
fn a_worker_that_cannot_start_again_is_tried_ever_more_seldom_until_it_can() {
    let launch = graph::launch(Launch::new(BLK.binary), DISK_SECTORS);
    let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
    let mut ring = machine.start_queue().unwrap();
    // What the keeper hands on to each worker; nobody but root could spoil it.
    let text = descriptor(machine.daemon.pid(), "/memfd:graph");
    let content = fs::read(&text).unwrap();
    fs::File::options().write(true).open(&text).unwrap().set_len(0).unwrap();
    let since = Instant::now();
    machine.daemon.kill_worker();
    wait::until(|| machine.daemon.stderr().matches("the file has no volume").count() >= 10);
    // Between ten tries 1, 2, 4 ... 256 ms.
    assert!(since.elapsed() >= Duration::from_millis(511), "{:?}", since.elapsed());
    fs::write(&text, content).unwrap();
    machine.assert_serves(&mut ring);
    machine.frontend.sync().unwrap();
}

#[test]
fn workers_that_die_one_after_the_other_are_replaced_ever_more_slowly() {
    let mut machine = RNG.boot();
    let since = Instant::now();
    for _ in 0..32 {
        machine.daemon.kill_worker();
        machine.frontend.sync().unwrap();
    }
    let spent = since.elapsed();
    // All deaths over 20 and five a second are waited for, 1, 2, 4 ... ms.
    let free = 20 + usize::try_from(spent.as_millis() / 200).unwrap() + 1;
    let waited: u64 = (0..32usize.saturating_sub(free)).map(|nth| 1 << nth).sum();
    assert!(spent >= Duration::from_millis(waited), "{spent:?} for 32 deaths, {free} of them free");
}

#[test]
fn a_terminated_worker_is_replaced_like_a_dead_one() {
    let mut machine = RNG.boot();
    let mut ring = machine.start_queue().unwrap();
    let worker = machine.daemon.worker_pid();
    signal(worker, Signal::TERM);
    wait_gone(worker);
    machine.assert_serves(&mut ring);
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let daemon = binary(RNG.binary).display().to_string();
    let script = r#"exec "$0" "$@" 2>/dev/full"#;
    let launch = Launch::of("/bin/sh").args(["-c", script, &daemon]);
    let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    machine.daemon.kill_worker();
    machine.assert_serves(&mut ring);
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

#[test]
fn k20_a_keeper_without_descriptors_waits_for_them() {
    let mut machine = RNG.boot();
    let mut ring = machine.start_queue().unwrap();
    let keeper = Pid::from_raw(i32::try_from(machine.daemon.pid()).unwrap());
    // Inherited from here, and raised to the most.
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = |current| prlimit(keeper, Resource::Nofile, Rlimit { current, maximum: most }).unwrap();
    // Enough to wait with, and for nothing new.
    limit(Some(6));
    machine.daemon.kill_worker();
    wait::until(|| machine.daemon.stderr().contains("No worker can be started"));
    limit(most);
    machine.assert_serves(&mut ring);
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

/// A stopped worker hears no SIGTERM: its keeper waits, and kills it.
#[test]
fn k10_a_daemon_that_is_to_end_while_its_worker_is_ending_leaves_nothing_behind() {
    let machine = RNG.boot();
    let worker = machine.daemon.worker_pid();
    signal(worker, Signal::STOP);
    // SIGTERM would be taken first if both were waiting.
    wait::until(|| is_stopped(worker));
    signal(machine.daemon.pid(), Signal::HUP);
    wait::until(|| is_pending(worker, Signal::TERM));
    machine.daemon.terminate();
    assert!(!Path::new(&format!("/proc/{worker}")).exists(), "the worker is left behind");
}

#[test]
fn arguments_may_end_in_two_dashes() {
    let launch = RNG.launch();
    let socket = launch.socket();
    let args = ["--socket-path".to_owned(), socket.display().to_string(), "--".to_owned()];
    let daemon = launch.args(args).start().wait_listening(&socket).unwrap();
    assert_eq!(daemon.terminate().code, Some(0));
}
