//! A back-end under measurement: a process on a CPU of its own, and what /proc says of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::explain::explain;
use crate::listen::is_listening;
use crate::process::{Running, command, last_lines, wait_until};

/// A back-end listens within this time.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// The program on this CPU alone, as a command that dies with us.
pub fn pinned(cpu: u32, program: impl AsRef<OsStr>) -> Command {
    let mut pinned = command("taskset");
    pinned.args(["--cpu-list", &cpu.to_string()]).arg(program);
    pinned
}

/// A running back-end.
#[derive(Debug)]
pub struct Backend {
    name: String,
    running: Running,
    socket: PathBuf,
}

impl Backend {
    /// Starts `program`, which was told to listen on `socket`, and returns when it does. Its log lies beside that.
    pub fn start(name: &str, program: &mut Command, socket: &Path) -> Result<Self, String> {
        let log = socket.with_extension("log");
        let file = File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let mut running = Running::start(name, program).map_err(|error| explain(&error))?;
        let mut dead = false;
        let listens = wait_until(Instant::now() + LISTEN_LIMIT, || {
            dead = !matches!(running.ended(), Ok(None));
            dead || is_listening(socket)
        });
        if dead || !listens.map_err(|error| explain(&error))? {
            let said = last_lines(&fs::read(&log).unwrap_or_default(), 3);
            return Err(format!("{name} does not listen: {said}"));
        }
        Ok(Self { name: name.to_owned(), running, socket: socket.to_owned() })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// CPU time of its threads so far, keeper and worker. The kernel counts a thread's when it goes to sleep.
    pub fn cpu(&self) -> Duration {
        self.processes().into_iter().map(cpu_of).sum()
    }

    /// Its memory in KiB, keeper and worker, without mappings of files whose name begins with `file`.
    pub fn rss_kib_without(&self, file: &str) -> u64 {
        let rss = |pid| rss_kib_without(file, &fs::read_to_string(proc(pid, "smaps")).unwrap_or_default());
        self.processes().into_iter().map(rss).sum()
    }

    /// Memory in KiB of the process that was started alone.
    pub fn keeper_rss_kib(&self) -> u64 {
        let smaps = fs::read_to_string(proc(self.running.id(), "smaps")).unwrap_or_default();
        rss_kib_without("no file", &smaps)
    }

    /// The process that was started, and its children.
    pub fn processes(&self) -> Vec<u32> {
        let pid = self.running.id();
        let children = fs::read_to_string(proc(pid, &format!("task/{pid}/children"))).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }
}

/// A file of /proc.
pub fn proc(pid: u32, name: &str) -> String {
    format!("/proc/{pid}/{name}")
}

fn cpu_of(pid: u32) -> Duration {
    let tasks = fs::read_dir(proc(pid, "task")).into_iter().flatten().flatten();
    let time = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
    tasks.map(|task| run_time(&time(task))).sum()
}

/// The first field of a schedstat file: nanoseconds on a CPU.
fn run_time(schedstat: &str) -> Duration {
    let first = schedstat.split_whitespace().next();
    Duration::from_nanos(first.and_then(|field| field.parse().ok()).unwrap_or(0))
}

/// A mapping is a line `address perms offset dev inode path` and then lines `Name: value`, `Rss:` among them.
fn rss_kib_without(file: &str, smaps: &str) -> u64 {
    let (mut counts, mut sum) = (true, 0);
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            ["Rss:", kib, _] if counts => sum += kib.parse::<u64>().unwrap_or(0),
            [name, ..] if name.ends_with(':') => {}
            _ => counts = !fields.get(5).is_some_and(|path| path.starts_with(file)),
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_guest_is_left_out() {
        let smaps = "\
            5600-5700 r-xp 00000000 fe:00 42   /bin/daemon\nSize: 64 kB\nRss:   60 kB\nVmFlags: rd ex\n\
            5700-5800 rw-p 00000000 00:00 0 \nRss:   30 kB\n\
            7f00-7f80 rw-s 00001000 00:01 3   /memfd:guest-ram (deleted)\nRss:  5000 kB\n\
            7f80-7f90 rw-p 00000000 00:00 0   [stack]\nRss:   7 kB\n";
        assert_eq!(rss_kib_without("/memfd:guest-ram", smaps), 97);
    }

    #[test]
    fn a_back_end_that_ends_early_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = pinned(0, "sh");
        program.args(["-c", "echo no room >&2; exit 1"]);
        let error = Backend::start("sh", &mut program, &dir.path().join("s")).unwrap_err();
        assert_eq!(error, "sh does not listen: no room");
    }

    #[test]
    fn cpu_time_is_that_of_all_threads() {
        assert_eq!(run_time("158148 2203911 2\n"), Duration::from_nanos(158_148));
        assert_eq!(run_time(""), Duration::ZERO);
    }
}
