//! The daemon with standard input and output that are not /dev/null.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use tests::daemon::process::{cpu_ticks, worker_of};
use tests::daemon::{binary, listening};
use tests::wait;

/// `outboard-console --stdio` as a process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    pub child: Child,
    dir: TempDir,
}

impl Process {
    /// Starts it and returns when it listens for front-ends.
    pub fn start(engine: &str, input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Process {
        let dir = tempfile::Builder::new().prefix("outboard-").tempdir().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(binary("outboard-console"));
        command.args(["--stdio", "--engine", engine, "--socket-path"]).arg(dir.path().join("vhost.sock"));
        command.stdin(Stdio::from(input.into())).stdout(Stdio::from(output.into()));
        command.stderr(File::create(dir.path().join("stderr")).unwrap());
        let mut process = Process { child: command.spawn().unwrap(), dir };
        let until = wait::deadline();
        while !listening(&process.socket()) {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "{}", process.stderr());
            std::thread::yield_now();
        }
        process
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vhost.sock")
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    /// Clock ticks of CPU time that keeper and worker used.
    pub fn cpu_ticks(&self) -> u64 {
        let keeper = self.child.id();
        cpu_ticks(keeper) + cpu_ticks(worker_of(keeper))
    }

    /// SIGTERM; the exit code and what it said.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        let pid = Pid::from_child(&self.child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(wait::one_readable(&pidfd, wait::deadline()), "does not end: {}", self.stderr());
        (self.child.wait().unwrap().code(), self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
