//! Logs that take nothing: a full disk, a size limit, a pipe that nobody reads, or nobody can. Nothing stops, and the
//! lines are lost.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use tests::daemon::process::{kill_and_wait, worker_of};
use tests::daemon::{Launch, binary, listening};
use tests::frontend::Frontend;
use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

/// Serves, goes on when its worker dies, and ends well, all of it with something to log each time.
fn assert_undisturbed(device: Device, launch: Launch) -> String {
    let mut machine = device.boot_with(launch, &Ram::new(RAM_BYTES), device.wants());
    drop(break_ring(&mut machine));
    machine.assert_serves_anew();
    machine.daemon.kill_worker();
    machine.assert_serves_anew();
    let exit = machine.daemon.terminate();
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit}");
    exit.stderr
}

#[test]
fn a_log_on_a_full_disk_ends_nothing() {
    for device in DAEMONS {
        assert_undisturbed(device, device.launch().args(["--log-file", "/dev/full"]));
    }
}

/// A file system that is full: the file is there, and not a byte fits.
#[test]
fn a_log_on_a_full_tmpfs_ends_nothing_and_goes_on_when_there_is_room() {
    let script = r#"mkdir full && mount -t tmpfs -o size=64k none full && : >full/log
        head -c 1M /dev/zero >full/filler; exec "$@" --log-file full/log"#;
    let daemon = binary(RNG.binary).display().to_string();
    let words = ["--mount", "sh", "-c", script, "sh", &daemon];
    let mut machine = RNG.boot_with(Launch::of("unshare").args(words), &Ram::new(RAM_BYTES), RNG.wants());
    let full = format!("/proc/{}/root{}/full", machine.daemon.pid(), machine.daemon.dir().display());
    let size = || fs::metadata(format!("{full}/log")).unwrap().len();
    drop(break_ring(&mut machine));
    machine.daemon.kill_worker();
    machine.assert_serves_anew();
    assert_eq!(size(), 0);
    fs::remove_file(format!("{full}/filler")).unwrap();
    // One a second is written.
    wait::until(|| {
        machine.assert_serves_anew();
        fs::read_to_string(format!("{full}/log")).unwrap().contains("Front-end connected")
    });
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

#[test]
fn a_log_at_its_size_limit_ends_nothing() {
    for keeper in ["on", "off"] {
        let daemon = binary(RNG.binary).display().to_string();
        // Above what the daemon makes for itself in memory, which the limit binds, too.
        let script = r#"truncate -s 16M log; ulimit -f 16384; exec "$0" --log-file log "$@""#;
        let launch = Launch::of("bash").args(["-c", script, &daemon, "--keeper", keeper]);
        let mut machine = RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants());
        drop(break_ring(&mut machine));
        machine.assert_serves_anew();
        assert_eq!(fs::metadata(machine.daemon.dir().join("log")).unwrap().len(), 16 << 20);
        assert_eq!(machine.daemon.terminate().code, Some(0));
    }
}

/// A daemon whose standard error is this pipe.
struct Piped {
    child: Child,
    dir: TempDir,
}

impl Piped {
    fn start(stderr: OwnedFd) -> Piped {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("s");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(binary(RNG.binary)).arg("--socket-path").arg(&socket);
        let child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        wait::until(|| listening(&socket));
        Piped { child, dir }
    }

    fn assert_serves(&self) {
        let frontend = Frontend::session(&self.dir.path().join("s"), &Ram::new(RAM_BYTES), RNG.wants());
        let mut frontend = frontend.unwrap();
        let mut ring = frontend.start_new(RNG.queue, QUEUE_SIZE).unwrap();
        assert!(RNG.accepts(&ring.run(&RNG.request()).unwrap()));
    }

    fn terminate(mut self) {
        let pid = Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(wait::one_readable(&ended, wait::deadline()), "it does not end");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_reader_that_stands_still_keeps_nothing_waiting() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut filler = File::from(OwnedFd::from(writer.try_clone().unwrap()));
    rustix::io::ioctl_fionbio(&filler, true).unwrap();
    while filler.write(&[b'x'; 4096]).is_ok() {}
    // Daemons inherit the pipe as they would from a shell, where writing waits.
    rustix::io::ioctl_fionbio(&filler, false).unwrap();
    drop(filler);
    let daemon = Piped::start(writer.into());
    daemon.assert_serves();
    kill_and_wait(worker_of(daemon.child.id()));
    daemon.assert_serves();
    daemon.terminate();
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.bytes().all(|byte| byte == b'x'), "lines there was no room for are lost whole");
}

#[test]
fn a_reader_that_goes_ends_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = Piped::start(writer.into());
    drop(reader);
    daemon.assert_serves();
    kill_and_wait(worker_of(daemon.child.id()));
    daemon.assert_serves();
    daemon.terminate();
}
