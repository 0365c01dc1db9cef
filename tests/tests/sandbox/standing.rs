//! What the kernel says of the processes of a daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tests::daemon::Launch;
use tests::guest::memory::Ram;
use tests::machine::{BLK, CONSOLE, Device, RAM_BYTES, RNG};

/// Users and groups that Debian gives `nobody`.
const NOBODY: u32 = 65534;

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let word = line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().next().unwrap();
    u64::from_str_radix(word, if name.starts_with("Cap") { 16 } else { 10 }).unwrap()
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

/// Of a thread that serves queues.
fn queue_thread(pid: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut all = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    all.find(|status| status.contains("worker-0")).unwrap()
}

fn is_confined(status: &str) {
    let told = |name| field(status, name);
    assert_eq!((told("NoNewPrivs"), told("Seccomp")), (1, 2), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(told(set), 0, "{set}: {status}");
    }
}

fn all_of_it_is_confined(device: Device) {
    let mut machine = device.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let (keeper, worker) = (machine.daemon.pid(), machine.daemon.worker_pid());
    let all = [status(keeper), status(worker), queue_thread(worker)];
    all.iter().for_each(|status| is_confined(status));
    let filters = all.map(|status| field(&status, "Seccomp_filters"));
    assert!(filters.is_sorted_by(|one, next| one < next), "{filters:?}");
    let core = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    assert!(
        core.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")),
        "{core}"
    );
    assert!(machine.daemon.stderr().contains("Confined landlock_abi="), "{}", machine.daemon.stderr());
}

#[test]
fn all_of_a_disk_is_confined() {
    all_of_it_is_confined(BLK);
}

#[test]
fn all_of_an_entropy_source_is_confined() {
    all_of_it_is_confined(RNG);
}

#[test]
fn all_of_a_console_is_confined() {
    all_of_it_is_confined(CONSOLE);
}

#[test]
fn one_process_is_confined_as_a_worker_is() {
    let daemon = Launch::new("outboard-rng").args(["--keeper", "off"]).serve().unwrap();
    is_confined(&status(daemon.pid()));
    let socket = daemon.socket().to_owned();
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(!socket.exists(), "what it made is still there");
}

fn another_user(keeper: &str) {
    let launch = Launch::new("outboard-blk");
    let image = launch.dir().join("disk.img");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    // Only root can open it, and the directory is nobody's to write to.
    let image = image.display().to_string();
    let daemon = launch.args(["--user", "nobody", "--keeper", keeper, "--image", &image]).serve().unwrap();
    // The socket is there before the keeper is.
    let until = tests::wait::deadline();
    while !daemon.stderr().contains("Listening") {
        assert!(std::time::Instant::now() < until, "{}", daemon.stderr());
    }
    for pid in [daemon.pid(), daemon.worker_pid()] {
        let status = status(pid);
        is_confined(&status);
        assert_eq!((field(&status, "Uid"), field(&status, "Gid")), (NOBODY.into(), NOBODY.into()));
        assert!(
            status
                .lines()
                .any(|line| line.trim_end() == "Groups:\t65534" || line.trim_end() == "Groups: 65534"),
            "{status}"
        );
        assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "it can be looked into");
    }
    let socket = fs::metadata(daemon.socket()).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (NOBODY, NOBODY));
    assert_eq!(daemon.terminate().code, Some(0));
}

#[test]
fn another_user_serves_what_root_opened() {
    another_user("on");
}

#[test]
fn another_user_serves_what_root_opened_without_a_keeper() {
    another_user("off");
}

#[test]
fn users_that_are_not_there_are_told() {
    for (user, said) in [
        ("nobody-of-that-name", "--user nobody-of-that-name: this host has no such user"),
        ("nobody:no-such-group", "--user nobody:no-such-group: this host has no such group"),
    ] {
        let exit = Launch::new("outboard-rng").args(["--user", user, "--socket-path", "s"]).run();
        assert_eq!(exit.code, Some(2), "{exit}");
        assert!(exit.stderr.contains(said) && exit.stderr.lines().count() == 1, "{exit}");
    }
}

#[test]
fn without_a_sandbox_that_is_told() {
    let machine = RNG.boot_with(RNG.launch().args(["--sandbox", "off"]), &Ram::new(RAM_BYTES), RNG.wants());
    let status = status(machine.daemon.worker_pid());
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), (0, 0));
    assert!(machine.daemon.stderr().contains("No sandbox (--sandbox off)"), "{}", machine.daemon.stderr());
}

#[test]
fn a_sandbox_that_only_logs_says_where() {
    let mut machine =
        RNG.boot_with(RNG.launch().args(["--sandbox", "log"]), &Ram::new(RAM_BYTES), RNG.wants());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    assert!(machine.daemon.stderr().contains("journalctl -k"), "{}", machine.daemon.stderr());
}
