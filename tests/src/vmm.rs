//! `outboard run` as a process: started with the bare-metal guest, watched line by line, ended.
//!
//! In: the binary, the guest's command line, options. Out: what the guest said on its serial line while it runs,
//! and how the VMM ended, with the events of its `--timings` file. Every wait has a deadline, and a VMM never
//! outlives its [`Vmm`].

pub mod held;

use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::standing;
use crate::{metal, wait};

/// A VMM about to be started.
#[derive(Debug)]
pub struct Run {
    program: PathBuf,
    memory: String,
    args: Vec<String>,
    dir: TempDir,
}

impl Run {
    /// `program run` with the bare-metal guest and this command line.
    ///
    /// # Panics
    /// The guest cannot be built, or there is no room for a temporary directory.
    pub fn metal(program: impl Into<PathBuf>, cmdline: &str) -> Run {
        let image = metal::image().unwrap_or_else(|e| panic!("{e}"));
        let run = Run::new(program).option("--kernel", &image.display().to_string());
        run.option("--cmdline", cmdline)
    }

    /// `program run` with 64 MiB of RAM and timings.
    ///
    /// # Panics
    /// There is no room for a temporary directory.
    pub fn new(program: impl Into<PathBuf>) -> Run {
        let dir = tempfile::Builder::new().prefix("outboard-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("temporary directory: {e}"));
        let timings = dir.path().join("timings").display().to_string();
        let run = Run { program: program.into(), memory: "64M".into(), args: Vec::new(), dir };
        run.option("--timings", &timings)
    }

    /// Its directory, which lives as long as the VMM.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Gives the guest this much RAM.
    pub fn memory(mut self, size: &str) -> Run {
        size.clone_into(&mut self.memory);
        self
    }

    /// Adds an option and its value.
    pub fn option(mut self, name: &str, value: &str) -> Run {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Adds a device of this type, and of this name, whose daemon listens on `socket`.
    pub fn device(self, kind: &str, socket: &Path) -> Run {
        self.option("--device", &format!("{kind},socket={},id={kind}", socket.display()))
    }

    /// Starts it.
    ///
    /// # Panics
    /// The host cannot start a process.
    pub fn start(self) -> Vmm {
        let stderr =
            fs::File::create(self.dir().join("stderr")).unwrap_or_else(|e| panic!("create stderr: {e}"));
        // `setpriv` becomes the VMM, and has the kernel end it with the thread that started it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(["run", "--memory", &self.memory])
            .args(&self.args)
            .current_dir(self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn();
        let mut child = child.unwrap_or_else(|e| panic!("start {}: {e}", self.program.display()));
        let serial = Serial::default();
        if let Some(stdout) = child.stdout.take() {
            serial.follow(stdout);
        }
        Vmm { stdin: child.stdin.take(), child, serial, dir: self.dir }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It does not end within [`wait::PATIENCE`].
    pub fn finish(self) -> Ended {
        self.start().finish_within(wait::PATIENCE)
    }
}

/// A running VMM; ended when dropped.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    stdin: Option<ChildStdin>,
    serial: Serial,
    dir: TempDir,
}

impl Vmm {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest has said `text` `times` times.
    ///
    /// # Panics
    /// It does not, within [`wait::PATIENCE`] or before the VMM ends.
    pub fn wait_for(&self, text: &str, times: usize) {
        let heard = self.serial.wait(|said| said.matches(text).count() >= times);
        assert!(
            heard,
            "the guest did not say {text:?} {times} times but: {}\n{}",
            self.serial.text(),
            self.stderr()
        );
    }

    /// Waits until the VMM has said `text`.
    ///
    /// # Panics
    /// It does not, within [`wait::PATIENCE`].
    pub fn wait_for_stderr(&self, text: &str) {
        let file = self.dir.path().join("stderr");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let watch = watch.unwrap_or_else(|e| panic!("inotify: {e}"));
        inotify::add_watch(&watch, &file, inotify::WatchFlags::MODIFY)
            .unwrap_or_else(|e| panic!("watch {}: {e}", file.display()));
        let until = wait::deadline();
        while !self.stderr().contains(text) {
            assert!(wait::one_readable(&watch, until), "the VMM did not say {text:?} but: {}", self.stderr());
            let mut events = [MaybeUninit::uninit(); 512];
            while inotify::Reader::new(&watch, &mut events).next().is_ok() {}
        }
    }

    /// Types on the guest's serial line.
    ///
    /// # Panics
    /// The VMM does not read.
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap_or_else(|| panic!("no standard input"));
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).unwrap_or_else(|e| panic!("type: {e}"));
    }

    /// What the guest said so far.
    pub fn serial(&self) -> String {
        self.serial.text()
    }

    /// What the VMM wrote to standard error so far.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(self.dir.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All that can be learned of it while it runs, for the words of a test that gives up.
    pub fn explain(&self) -> String {
        format!("{}{}\nthe guest said: {}", standing::of(self.pid()), self.stderr(), self.serial())
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Panics
    /// It does not end within [`wait::PATIENCE`].
    pub fn terminate(self) -> Ended {
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.finish()
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// It does not end within [`wait::PATIENCE`].
    pub fn finish(self) -> Ended {
        self.finish_within(wait::PATIENCE)
    }

    /// Waits until it ends.
    ///
    /// # Panics
    /// It does not end within `patience`.
    pub fn finish_within(mut self, patience: Duration) -> Ended {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty());
        let pidfd = pidfd.unwrap_or_else(|e| panic!("pidfd: {e}"));
        let ended = wait::one_readable(&pidfd, Instant::now() + patience);
        assert!(ended, "the VMM does not end; the guest said: {}\n{}", self.serial.text(), self.stderr());
        let status = self.child.wait().unwrap_or_else(|e| panic!("wait for the VMM: {e}"));
        self.serial.wait_end();
        Ended {
            code: status.code(),
            signal: status.signal(),
            serial: self.serial.text(),
            stderr: self.stderr(),
            timings: timings(&self.dir.path().join("timings")),
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a VMM ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// What the guest said.
    pub serial: String,
    /// What the VMM said.
    pub stderr: String,
    /// Its timings, in order.
    pub timings: Vec<Timing>,
}

impl Ended {
    /// The guest did its work and powered off.
    ///
    /// # Panics
    /// Otherwise.
    pub fn ok(&self) -> &Ended {
        assert!(self.code == Some(0) && self.serial.ends_with("metal: ok\n"), "{self:#?}");
        self
    }

    /// It ended with this code.
    ///
    /// # Panics
    /// Otherwise.
    pub fn code(&self, code: i32) -> &Ended {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// The first event of this name (with this value, if it has one).
    ///
    /// # Panics
    /// There is none.
    pub fn event(&self, event: &str, value: Option<u64>) -> &Timing {
        let found = self.timings.iter().find(|timing| timing.event == event && timing.value == value);
        found.unwrap_or_else(|| panic!("no event {event} {value:?}: {self:#?}"))
    }
}

/// One line of a `--timings` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// What happened.
    pub event: String,
    /// Microseconds since `main`.
    pub us: u64,
    /// The byte of a mark.
    pub value: Option<u64>,
    /// Returns from `KVM_RUN` until then, of all vCPUs.
    pub kvm_exits: u64,
    /// Wake-ups of the main loop until then.
    pub epoll_returns: u64,
}

fn timings(path: &Path) -> Vec<Timing> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|line: Value| timing(&line)).collect()
}

fn timing(line: &Value) -> Timing {
    let number = |name: &str| line.get(name).and_then(Value::as_u64);
    Timing {
        event: line.get("event").and_then(Value::as_str).unwrap_or_default().to_owned(),
        us: number("us").unwrap_or_default(),
        value: number("value"),
        kvm_exits: number("kvm_exits").unwrap_or_default(),
        epoll_returns: number("epoll_returns").unwrap_or_default(),
    }
}

/// What a thread of its own reads from the guest's serial line.
#[derive(Clone, Debug, Default)]
struct Serial(Arc<(Mutex<Heard>, Condvar)>);

#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
}

impl Serial {
    fn follow(&self, mut from: impl Read + Send + 'static) {
        let serial = self.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut chunk) {
                serial.note(|heard| heard.bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()));
            }
            serial.note(|heard| heard.ended = true);
        });
    }

    fn note(&self, act: impl FnOnce(&mut Heard)) {
        let (heard, changed) = &*self.0;
        act(&mut heard.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap_or_else(PoisonError::into_inner).bytes).into_owned()
    }

    /// Waits until `enough` holds for what was said; `false` if that ends, or the deadline comes, before.
    fn wait(&self, enough: impl Fn(&str) -> bool) -> bool {
        let (heard, changed) = &*self.0;
        let held = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let more = |heard: &mut Heard| !heard.ended && !enough(&String::from_utf8_lossy(&heard.bytes));
        let waited = changed.wait_timeout_while(held, wait::PATIENCE, more);
        let (heard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        enough(&String::from_utf8_lossy(&heard.bytes))
    }

    /// Waits until all has been read: the other end is closed.
    fn wait_end(&self) {
        let (heard, changed) = &*self.0;
        let held = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let _unused = changed.wait_timeout_while(held, wait::PATIENCE, |heard| !heard.ended);
    }
}
