//! A daemon of the workspace as a process: found, built if need be, started, watched, ended.
//!
//! In: a binary's name and options. Out: a running child with a temporary directory of its own for its socket
//! and its output, its counts from /proc, and its end. A child never outlives its [`Daemon`], nor the thread
//! that started it (PR_SET_PDEATHSIG, set by `setpriv`). Listening is seen by inotify and /proc/net/unix,
//! without a connection that the daemon would have to serve.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backends::control::Method;
use backends::control::client::Client;
use rustix::fs::inotify;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use thiserror::Error;

mod binary;
pub mod process;
pub mod standing;

pub use binary::binary;
pub use process::Counts;

use crate::wait;

/// Descriptor number under which [`Launch::pass`] hands over its socket: the first one after standard error.
pub const PASSED_FD: i32 = 3;
/// What stands before the program: the socket moves from standard input to descriptor 3.
const HANDOVER: &str = r#"exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$@""#;
/// The same for any number of descriptors, which come under the numbers of the first arguments, up to a `--`.
const HANDOVER_ALL: &str = r#"to=3; while test "$1" != --; do eval "exec $to<&$1 $1<&-"; to=$((to + 1)); shift; done
shift; export LISTEN_PID=$$; exec "$@""#;
/// Numbers over those that the descriptors come to have.
const HIGH: i32 = 500;
/// How long whoever is asked how things stand may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// `__SO_ACCEPTCON` in the flags column of /proc/net/unix.
const ACCEPTING: u32 = 1 << 16;

/// Why a daemon does not listen.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// It ended instead.
    #[error("It ended with {0}")]
    Ended(Exit),
    /// It runs but does not listen.
    #[error("It does not listen on {0} within the deadline")]
    Deadline(PathBuf),
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {:?}, signal {:?}: {}", self.code, self.signal, self.stderr.trim())
    }
}

/// A program about to be started.
#[derive(Debug)]
pub struct Launch {
    before: Vec<String>,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    dir: TempDir,
    stdin: Option<OwnedFd>,
    passed: bool,
    activated: Vec<(String, OwnedFd)>,
}

impl Launch {
    /// The workspace's binary of this name, with a temporary directory of its own.
    ///
    /// # Panics
    /// It cannot be built, or there is no room for the directory.
    pub fn new(name: &str) -> Launch {
        Launch::of(binary(name))
    }

    /// Any program, with a temporary directory of its own.
    ///
    /// # Panics
    /// There is no room for the directory.
    pub fn of(program: impl Into<PathBuf>) -> Launch {
        let dir = tempfile::Builder::new().prefix("outboard-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("temporary directory: {e}"));
        let (before, args, env, activated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Launch { before, program: program.into(), args, env, dir, stdin: None, passed: false, activated }
    }

    /// The same with another program.
    pub fn of_program(mut self, program: &Path) -> Launch {
        self.program = program.to_owned();
        self
    }

    /// Starts it by another program, which is to become it: these words stand before it.
    pub fn by<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Launch {
        self.before.extend(words.into_iter().map(Into::into));
        self
    }

    /// Its directory, which lives as long as the daemon.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where [`Launch::serve`] makes it listen.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("vhost.sock")
    }

    /// Adds options.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Launch {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Launch {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives it a standard input; otherwise that is empty.
    pub fn stdin(mut self, fd: impl Into<OwnedFd>) -> Launch {
        self.stdin = Some(fd.into());
        self
    }

    /// Hands over a socket as descriptor [`PASSED_FD`], in place of a standard input.
    pub fn pass(mut self, fd: impl Into<OwnedFd>) -> Launch {
        self.passed = true;
        self.stdin(fd)
    }

    /// Hands over a listening socket as systemd does, under this name (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID).
    pub fn activate(self, fd: impl Into<OwnedFd>, name: &str) -> Launch {
        self.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).pass(fd)
    }

    /// Hands over all of these as systemd does, for one start.
    pub fn activate_all(mut self, fds: Vec<(String, OwnedFd)>) -> Launch {
        self.activated = fds;
        self
    }

    /// Starts it with `--socket-path` in its directory and returns when it listens there.
    ///
    /// # Errors
    /// It ends or does not listen.
    pub fn serve(self) -> Result<Daemon, DaemonError> {
        let socket = self.socket();
        let daemon = self.args(["--socket-path".to_owned(), socket.display().to_string()]).start();
        daemon.wait_listening(&socket)
    }

    /// Starts it.
    ///
    /// # Panics
    /// The host cannot start a process.
    pub fn start(mut self) -> Daemon {
        let child = self.spawn();
        Daemon { child, socket: self.socket(), launch: self }
    }

    fn spawn(&mut self) -> Child {
        // What others start meanwhile must not inherit what is handed over.
        static SPAWNING: Mutex<()> = Mutex::new(());
        let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        let (names, fds): (Vec<_>, Vec<_>) =
            self.activated.drain(..).map(|(name, fd)| (name, inheritable(&fd))).unzip();
        let stdin = self.stdin.take();
        let mut command = self.command(&fds);
        if !fds.is_empty() {
            command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        command.args(&self.args).envs(self.env.clone()).current_dir(self.dir());
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(self.output("stdout")).stderr(self.output("stderr"));
        command.spawn().unwrap_or_else(|e| panic!("start {}: {e}", self.program.display()))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It does not end within the deadline.
    pub fn run(self) -> Exit {
        self.start().wait_exit()
    }

    fn command(&self, activated: &[OwnedFd]) -> Command {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let before = match (activated, self.passed) {
            ([], false) => Vec::new(),
            ([], true) => words(&["sh", "-c", HANDOVER, "sh"]),
            (fds, _) => {
                let numbers = fds.iter().map(|fd| fd.as_raw_fd().to_string());
                words(&["bash", "-c", HANDOVER_ALL, "bash"])
                    .into_iter()
                    .chain(numbers)
                    .chain(["--".into()])
                    .collect()
            }
        };
        let mut words = before.into_iter().chain(words(&["setpriv", "--pdeathsig", "KILL", "--"]));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(&self.before).arg(&self.program);
        command
    }

    fn output(&self, name: &str) -> Stdio {
        let file = File::options().create(true).append(true).open(self.dir().join(name));
        file.unwrap_or_else(|e| panic!("create {name}: {e}")).into()
    }
}

/// The same open file for a child to have.
fn inheritable(fd: &OwnedFd) -> OwnedFd {
    let copy =
        fcntl_dupfd_cloexec(fd, HIGH).and_then(|copy| fcntl_setfd(&copy, FdFlags::empty()).map(|()| copy));
    copy.unwrap_or_else(|e| panic!("descriptor to hand over: {e}"))
}

/// A running program; ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    launch: Launch,
}

impl Daemon {
    /// The socket of [`Launch::serve`].
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.launch.dir()
    }

    /// Its process number: the keeper's, if it has one.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Returns when it listens on `socket`.
    ///
    /// # Errors
    /// It ends or does not listen.
    ///
    /// # Panics
    /// The host has no inotify or pidfd left.
    pub fn wait_listening(mut self, socket: &Path) -> Result<Daemon, DaemonError> {
        self.await_listening(socket).map(|()| self)
    }

    fn await_listening(&mut self, socket: &Path) -> Result<(), DaemonError> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let watch = watch.unwrap_or_else(|e| panic!("inotify: {e}"));
        let parent = socket.parent().unwrap_or(Path::new("."));
        inotify::add_watch(&watch, parent, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)
            .unwrap_or_else(|e| panic!("watch {}: {e}", parent.display()));
        let (pidfd, until) = (self.pidfd(), wait::deadline());
        while !listening(socket) {
            if let Some(status) = self.child.try_wait().unwrap_or_default() {
                return Err(DaemonError::Ended(self.exit(status)));
            }
            // Between bind and listen the file is there and nothing announces the rest: look again at once.
            let named = socket.exists();
            let late = !named && !wait::readable(&[watch.as_fd(), pidfd.as_fd()], until);
            if late || Instant::now() > until {
                return Err(DaemonError::Deadline(socket.to_owned()));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Kills it (SIGKILL) and starts it again with the same options, in the same directory; returns when it listens on
    /// its socket. What it says now follows what it said before.
    ///
    /// # Errors
    /// It ends or does not listen.
    pub fn restart(&mut self) -> Result<(), DaemonError> {
        self.kill9();
        self.child = self.launch.spawn();
        self.await_listening(&self.socket.clone())
    }

    /// Starts it again, after its end, with the same options and with these descriptors, as systemd does.
    pub fn start_again(&mut self, fds: Vec<(String, OwnedFd)>) {
        self.launch.activated = fds;
        self.child = self.launch.spawn();
    }

    /// Returns when a daemon that was started again listens on its socket.
    ///
    /// # Errors
    /// It ends or does not listen.
    pub fn wait_again(&mut self) -> Result<(), DaemonError> {
        self.await_listening(&self.socket.clone())
    }

    /// All that can be learned of it while it runs, for the words of a test that gives up: what it said, where its
    /// processes stand, and what it answers on the control socket of this name in its directory.
    pub fn explain(&self, control: &str) -> String {
        let [metrics, state] = ["/metrics", "/state"].map(|path| answer(&self.dir().join(control), path));
        let telling =
            |line: &&str| !line.starts_with('#') && !line.contains("_bucket") && !line.ends_with(" 0");
        let counted: Vec<_> = metrics.lines().filter(telling).collect();
        let (standing, said) = (standing::of(self.pid()), self.stderr());
        format!("{standing}{}{said}\n{}\n{state}\n", self.stdout(), counted.join("\n"))
    }

    /// Asks it to end (SIGTERM) and waits for that, to start it again; how it ended.
    ///
    /// # Panics
    /// It does not end within the deadline.
    pub fn stop(&mut self) -> Exit {
        let _ = kill_process(self.rustix_pid(), Signal::TERM);
        self.reap()
    }

    /// Kills it (SIGKILL) and waits until it is gone, and its worker, which then ends by itself.
    ///
    /// # Panics
    /// Its worker goes on.
    pub fn kill9(&mut self) {
        let worker = process::find_worker(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(worker) = worker {
            process::wait_gone(worker);
        }
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Panics
    /// It does not end within the deadline.
    pub fn terminate(self) -> Exit {
        let _ = kill_process(self.rustix_pid(), Signal::TERM);
        self.wait_exit()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// It does not end within the deadline.
    pub fn wait_exit(mut self) -> Exit {
        self.reap()
    }

    fn reap(&mut self) -> Exit {
        let ended = wait::one_readable(&self.pidfd(), wait::deadline());
        assert!(ended, "the program does not end; it said: {}", self.stderr());
        let status = self.child.wait().unwrap_or_else(|e| panic!("wait for the program: {e}"));
        self.exit(status)
    }

    /// It has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Descriptors, threads, mappings and memory of its worker at this moment.
    ///
    /// # Panics
    /// It has ended.
    pub fn counts(&self) -> Counts {
        process::counts(self.worker_pid())
    }

    /// Its worker threads by name, and the CPUs they may run on (Cpus_allowed_list of proc(5)), sorted.
    ///
    /// # Panics
    /// It has ended.
    pub fn worker_cpus(&self) -> Vec<(String, String)> {
        let worker = self.worker_pid();
        let tasks = fs::read_dir(format!("/proc/{worker}/task"));
        let tasks = tasks.unwrap_or_else(|e| panic!("process {worker} is gone: {e}"));
        let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        let field = |status: &str, name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap_or_default().trim().to_owned()
        };
        let all = statuses.map(|status| (field(&status, "Name:"), field(&status, "Cpus_allowed_list:")));
        let mut workers: Vec<_> = all.filter(|(name, _)| name.starts_with("worker-")).collect();
        workers.sort();
        workers
    }

    /// The same of its keeper.
    ///
    /// # Panics
    /// It has ended.
    pub fn keeper_counts(&self) -> Counts {
        process::counts(self.pid())
    }

    /// CPU time it has used, keeper and worker, in clock ticks (hundredths of a second).
    ///
    /// # Panics
    /// It has ended.
    pub fn cpu_ticks(&self) -> u64 {
        let (keeper, worker) = (self.pid(), self.worker_pid());
        process::cpu_ticks(worker) + if keeper == worker { 0 } else { process::cpu_ticks(keeper) }
    }

    /// The process that serves the device: the keeper's worker, or the only one there is (`--keeper off`).
    ///
    /// # Panics
    /// There is none within the deadline.
    pub fn worker_pid(&self) -> u32 {
        process::worker_of(self.pid())
    }

    /// Kills the worker (SIGKILL) and returns when it is gone; who it was. The keeper starts the next one.
    ///
    /// # Panics
    /// There is no worker within the deadline.
    pub fn kill_worker(&self) -> u32 {
        let worker = self.worker_pid();
        process::kill_and_wait(worker);
        worker
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn pidfd(&self) -> OwnedFd {
        pidfd_open(self.rustix_pid(), PidfdFlags::empty()).unwrap_or_else(|e| panic!("pidfd: {e}"))
    }

    fn exit(&self, status: ExitStatus) -> Exit {
        let (stdout, stderr) = (self.text("stdout"), self.text("stderr"));
        Exit { code: status.code(), signal: status.signal(), stdout, stderr }
    }

    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.dir().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let worker = process::find_worker(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        worker.inspect(|pid| process::kill(*pid));
    }
}

/// What whoever listens there answers, or why there is no answer.
fn answer(socket: &Path, path: &str) -> String {
    let asked = Client::connect(socket, ANSWER_PATIENCE)
        .and_then(|mut client| client.call(Method::Get, path, None, None));
    match asked {
        Ok(reply) => format!("{path}:\n{}", String::from_utf8_lossy(&reply.body)),
        Err(error) => format!("{path}: {error}"),
    }
}

/// Does a process of this host listen on the socket of that path?
pub fn listening(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let name = path.display().to_string();
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let flags = fields.nth(3).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0);
        flags & ACCEPTING != 0 && fields.nth(3) == Some(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn shell(script: &str) -> Launch {
        Launch::of("/bin/sh").args(["-c", script])
    }

    #[test]
    fn a_program_that_ends_is_told_with_code_and_output() {
        let exit = shell("echo out; echo err >&2; exit 7").run();
        assert_eq!((exit.code, exit.stdout.trim(), exit.stderr.trim()), (Some(7), "out", "err"));
    }

    #[test]
    fn a_socket_is_passed_as_descriptor_three_with_the_right_pid() {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let exit = shell("test -S /proc/self/fd/3 && test $LISTEN_PID = $$ && test $LISTEN_FDNAMES = x")
            .activate(listener, "x")
            .run();
        assert_eq!(exit.code, Some(0));
    }

    #[test]
    fn listening_is_not_the_same_as_bound() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("s");
        assert!(!listening(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(listening(&path));
        drop(listener);
        assert!(!listening(&path) && path.exists());
    }

    #[test]
    fn a_daemon_that_ends_early_is_no_deadline() {
        let launch = shell("echo no room >&2; exit 1");
        let socket = launch.socket();
        let error = launch.start().wait_listening(&socket).unwrap_err();
        assert!(matches!(error, DaemonError::Ended(exit) if exit.stderr.contains("no room")));
    }

    #[test]
    fn a_restarted_daemon_is_another_process_with_the_same_options() {
        let mut daemon = Launch::new("outboard-rng").serve().unwrap();
        let (first, before) = (daemon.pid(), daemon.stderr());
        daemon.restart().unwrap();
        assert_ne!(daemon.pid(), first);
        assert!(listening(daemon.socket()) && daemon.stderr().starts_with(&before));
    }

    #[test]
    fn a_dropped_daemon_is_gone() {
        let daemon = shell("exec sleep 1000").start();
        let pid = daemon.pid();
        assert_eq!(daemon.counts().threads, 1);
        drop(daemon);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
