//! What a policy does not allow ends the process, whatever it is.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use backends::sandbox::COMMON;
use backends::sandbox::policy::parse;
use syscalls::{Sysno, SysnoSet};
use tests::daemon::binary;

const SIGSYS: i32 = 31;
/// Threads that serve queues; a worker; a keeper.
const DATA_PATH: &str = "data path";
const WORKER: &str = "data path,worker,closed";
const KEEPER: &str = "data path,worker,alone,keeper";

/// How a process ends that makes this call: with an error number, 0 among them, or by a signal.
fn made(parts: &str, call: &[&str]) -> Result<i32, i32> {
    let status =
        Command::new(binary("confined")).arg(parts).args(call).stderr(Stdio::null()).status().unwrap();
    status.code().ok_or_else(|| status.signal().unwrap())
}

fn every_call_that_is_not_named_ends_the_process(parts: &str) {
    let named: Vec<&str> = parts.split(',').collect();
    let named: BTreeSet<Sysno> = parse(&COMMON, &named).unwrap().iter().map(|rule| rule.call).collect();
    let mut tried = 0;
    // The kernel's own trampolines of probes pass every filter by, and do nothing for anybody else.
    let own = [Sysno::uprobe, Sysno::uretprobe];
    for call in SysnoSet::all().iter().filter(|call| !named.contains(call) && !own.contains(call)) {
        assert_eq!(made(parts, &[call.name()]), Err(SIGSYS), "{call} by {parts}");
        tried += 1;
    }
    assert!(tried > 250, "{tried}");
}

#[test]
fn every_call_that_is_not_named_ends_a_worker() {
    every_call_that_is_not_named_ends_the_process(WORKER);
}

#[test]
fn every_call_that_is_not_named_ends_who_serves_queues() {
    every_call_that_is_not_named_ends_the_process(DATA_PATH);
}

#[test]
fn every_call_that_is_not_named_ends_a_keeper() {
    every_call_that_is_not_named_ends_the_process(KEEPER);
}

#[test]
fn arguments_that_are_not_allowed_end_the_process() {
    let executable = ["mmap", "0", "4096", "5", "34", "-1", "0"];
    let cases: [(&str, &[&str]); 21] = [
        (DATA_PATH, &executable),
        (WORKER, &executable),
        (WORKER, &["mprotect", "0", "0", "4"]),
        // A process, and a namespace.
        (WORKER, &["clone", "17"]),
        (KEEPER, &["clone", "268435456"]),
        (KEEPER, &["clone", "131072"]),
        // Signals to others.
        (WORKER, &["tgkill", "1", "1", "0"]),
        // CPU time of others: all processes of a user, and init's CPUs.
        (WORKER, &["setpriority", "2", "0", "19"]),
        (WORKER, &["setpriority", "0", "1", "19"]),
        (WORKER, &["sched_setaffinity", "1", "0", "0"]),
        // F_SETOWN, TIOCSTI, PR_SET_DUMPABLE, SECCOMP_SET_MODE_STRICT.
        (WORKER, &["fcntl", "0", "8", "1"]),
        (KEEPER, &["fcntl", "0", "8", "1"]),
        (KEEPER, &["ioctl", "0", "21522"]),
        (WORKER, &["prctl", "4", "1"]),
        (WORKER, &["seccomp", "0"]),
        // Buffers of a ring, sockets that go anywhere, to a place and without one.
        (WORKER, &["io_uring_register", "0", "0"]),
        (DATA_PATH, &["sendto", "0", "0", "0", "0", "0", "16"]),
        (KEEPER, &["socket", "2", "1"]),
        (KEEPER, &["socket", "16", "3"]),
        // One that could connect to a service of this host.
        (KEEPER, &["socket", "1", "1"]),
        (KEEPER, &["setsockopt", "0", "0", "1"]),
    ];
    for (parts, call) in cases {
        assert_eq!(made(parts, call), Err(SIGSYS), "{call:?} by {parts}");
    }
}

#[test]
fn what_libraries_try_is_answered() {
    assert_eq!(made(WORKER, &["openat"]), Ok(2), "ENOENT");
    assert_eq!(made(WORKER, &["clone3"]), Ok(38), "ENOSYS");
    assert_eq!(made(KEEPER, &["clone3"]), Ok(38), "ENOSYS");
}

#[test]
fn files_that_are_not_named_cannot_be_opened() {
    // Everything that a keeper may call, and no path: Landlock says no (EACCES).
    assert_eq!(made(KEEPER, &["read-file", "/etc/passwd"]), Ok(13));
    assert_eq!(made(KEEPER, &["read-file", "/proc/self/maps"]), Ok(13));
}

/// Without `--connect` a console has no way to another socket than those that it was given.
#[test]
fn a_console_connects_only_where_it_was_told_to() {
    let own = <outboard_console::config::Options as backends::daemon::Program>::POLICY;
    let calls = |parts: &[&str]| parse(&[COMMON[0], own], parts).unwrap();
    let connects = |rules: &[backends::sandbox::policy::Rule]| {
        rules.iter().any(|rule| matches!(rule.call, Sysno::socket | Sysno::connect))
    };
    assert!(!connects(&calls(&["data path", "worker", "closed"])));
    assert!(connects(&calls(&["data path", "connect"])));
}
