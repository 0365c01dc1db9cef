//! What /proc says of a process: its worker, its resources, its end.
//!
//! A daemon with a keeper is two processes: the one that was started, and its only child, whose arguments begin with
//! `--worker FD`.

use std::fs;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::wait;

/// Resources of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Open descriptors.
    pub fds: usize,
    /// Threads of its own; those with which the kernel carries out io_uring's operations come and go.
    pub threads: usize,
    /// Mappings.
    pub maps: usize,
    /// Resident memory of its own in KiB: not what is shared, the program's text and the guest's RAM, of which the page
    /// cache decides how much is mapped at once.
    pub rss_kib: u64,
}

/// Descriptors, threads, mappings and memory of a process at this moment.
///
/// # Panics
/// It has ended.
pub fn counts(pid: u32) -> Counts {
    let entries = |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).map(Iterator::count);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map(|text| text.lines().count());
    let gone = |e| panic!("process {pid} is gone: {e}");
    Counts {
        fds: entries("fd").unwrap_or_else(gone),
        threads: threads(pid),
        maps: maps.unwrap_or_else(gone),
        rss_kib: rss_kib(pid),
    }
}

fn threads(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter(|stat| !is_io_worker(stat)).count()
}

/// PF_IO_WORKER in the flags, the 9th field of proc(5) stat.
fn is_io_worker(stat: &str) -> bool {
    const IO_WORKER: u32 = 0x10;
    fields(stat)
        .get(6)
        .and_then(|flags| flags.parse::<u32>().ok())
        .is_some_and(|flags| flags & IO_WORKER != 0)
}

/// From the third field on: the name in parentheses before them may hold anything.
fn fields(stat: &str) -> Vec<&str> {
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect()
}

/// Clock ticks (hundredths of a second) of CPU time that a process used.
///
/// # Panics
/// It has ended.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // utime and stime are 14 and 15.
    let ticks = fields(&stat).get(11..13).map(|two| two.iter().filter_map(|n| n.parse::<u64>().ok()).sum());
    ticks.unwrap_or_else(|| panic!("process {pid} is gone"))
}

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The worker of the daemon that was started as `pid`, which is that process itself where there is no keeper.
///
/// # Panics
/// The keeper has no worker within the deadline.
pub fn worker_of(pid: u32) -> u32 {
    let until = wait::deadline();
    loop {
        if !args(pid).iter().any(|arg| arg == "--as-keeper") {
            return pid;
        }
        if let Some(worker) = find_worker(pid) {
            return worker;
        }
        assert!(Instant::now() < until, "keeper {pid} has no worker");
        std::thread::yield_now();
    }
}

/// The worker of a keeper, if it has one at this moment.
pub fn find_worker(keeper: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
    let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.find(|child| args(*child).get(1).is_some_and(|arg| arg == "--worker"))
}

fn args(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// Kills a process (SIGKILL), if it is there.
pub fn kill(pid: u32) {
    if let Some(pid) = raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills a process and returns when it is gone.
///
/// # Panics
/// It is not gone within the deadline.
pub fn kill_and_wait(pid: u32) {
    kill(pid);
    wait_gone(pid);
}

/// Returns when a process has ended, whoever reaps it.
///
/// # Panics
/// It has not within the deadline.
pub fn wait_gone(pid: u32) {
    match pidfd_open(raw(pid).unwrap_or(Pid::INIT), PidfdFlags::empty()) {
        Ok(pidfd) => assert!(wait::one_readable(&pidfd, wait::deadline()), "process {pid} does not end"),
        Err(Errno::SRCH) => {}
        Err(errno) => panic!("pidfd of {pid}: {errno}"),
    }
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).unwrap_or(0))
}
