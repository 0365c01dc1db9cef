//! Processes that cannot outlive us.
//!
//! Every child is started through `setpriv --pdeathsig KILL` (util-linux, part of every Debian), so the kernel ends it
//! when we are gone, however we went; it is also ended when its [`Running`] is dropped. Every wait has a deadline and
//! ends early when the user asks to stop.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::interrupt;

/// How often a wait looks again.
pub const TICK: Duration = Duration::from_millis(5);

/// How long a process may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How long a tool may take; the longest is the installation of packages.
const TOOL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Why a process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started at all.
    #[error("Cannot start {name}: is it installed?")]
    Start {
        /// The program as shown to people.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Waiting for it failed.
    #[error("Cannot wait for {name}")]
    Wait {
        /// The program as shown to people.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ran into its time limit and was ended.
    #[error("{name} did not end within {seconds} s and was killed")]
    TimeLimit {
        /// The program as shown to people.
        name: String,
        /// The limit it ran into.
        seconds: u64,
    },
    /// It ended and said that it failed.
    #[error("{name} failed ({status}): {stderr}")]
    Failed {
        /// The program with its arguments.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// The user asked to stop.
    #[error("Interrupted")]
    Interrupted,
}

/// A command whose process dies with this one.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs a tool to its end and gives its standard output; a failure carries its standard error.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let (status, stdout, stderr) = captured(command)?;
    if status.success() {
        return Ok(stdout);
    }
    Err(Error::Failed { name: describe(command), status, stderr: last_lines(stderr.as_bytes(), 5) })
}

/// Runs a tool to its end and gives its standard output, whether it says that it failed or not.
pub fn spoken(command: &mut Command) -> Result<String, Error> {
    captured(command).map(|(_, stdout, _)| stdout)
}

fn captured(command: &mut Command) -> Result<(ExitStatus, String, String), Error> {
    let name = describe(command);
    let io = |source| Error::Wait { name: name.clone(), source };
    let (mut stdout, mut stderr) = (tempfile::tempfile().map_err(io)?, tempfile::tempfile().map_err(io)?);
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().map_err(io)?).stderr(stderr.try_clone().map_err(io)?);
    let status = Running::start(&name, command)?.wait(TOOL_LIMIT, || ())?;
    Ok((status, written(&mut stdout).map_err(io)?, written(&mut stderr).map_err(io)?))
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `count` lines of a log, for an error message.
pub fn last_lines(log: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Waits until `done` is true or the deadline passes; whether it became true.
pub fn wait_until(deadline: Instant, mut done: impl FnMut() -> bool) -> Result<bool, Error> {
    loop {
        if done() {
            return Ok(true);
        }
        if interrupt::asked() {
            return Err(Error::Interrupted);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(TICK);
    }
}

/// A child process that is ended when this value goes away.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    started: Instant,
}

impl Running {
    /// Starts `command`, which should come from [`command`]; `name` is for messages.
    pub fn start(name: &str, command: &mut Command) -> Result<Self, Error> {
        let started = Instant::now();
        match command.spawn() {
            Ok(child) => Ok(Self { name: name.to_owned(), child, started }),
            Err(source) => Err(Error::Start { name: name.to_owned(), source }),
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if that is a pipe and nobody has taken it.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().map_err(|source| Error::Wait { name: self.name.clone(), source })
    }

    /// Waits for its end, at most until `limit` after its start, calling `meanwhile` now and then.
    pub fn wait(&mut self, limit: Duration, mut meanwhile: impl FnMut()) -> Result<ExitStatus, Error> {
        let mut status = None;
        let deadline = self.started + limit;
        wait_until(deadline, || {
            meanwhile();
            status = self.ended().transpose();
            status.is_some()
        })?;
        status.unwrap_or_else(|| {
            self.terminate();
            Err(Error::TimeLimit { name: self.name.clone(), seconds: limit.as_secs() })
        })
    }

    /// Asks it to end, and kills it when it does not within a few seconds.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(TICK);
        }
        self.kill()
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        // Failing means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Failing means that it has ended already: it is our child and not yet waited for.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.terminate();
        }
    }
}

/// The command as a person would type it, without the leash.
fn describe(command: &Command) -> String {
    let mut words: Vec<_> = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    if words.first().is_some_and(|program| program == "setpriv") {
        words.drain(..4.min(words.len()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_tells_its_command_and_its_last_words() {
        let error = output(command("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(
            error.starts_with("sh -c") && error.contains("exit status: 3") && error.ends_with("why"),
            "{error}"
        );
    }

    #[test]
    fn a_process_over_its_limit_is_ended() {
        let mut sleeper = Running::start("sleep", command("sleep").arg("60")).unwrap();
        let error = sleeper.wait(Duration::from_millis(50), || ()).unwrap_err();
        assert!(matches!(error, Error::TimeLimit { .. }), "{error}");
        assert!(sleeper.ended().unwrap().is_some());
    }

    #[test]
    fn dropping_ends_the_process() {
        let sleeper = Running::start("sleep", command("sleep").arg("60")).unwrap();
        let proc = format!("/proc/{}", sleeper.id());
        drop(sleeper);
        assert!(!std::path::Path::new(&proc).exists());
    }
}
