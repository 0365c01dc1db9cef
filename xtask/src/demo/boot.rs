//! The boot part of the demo: three daemons, the VMM, a Debian guest, and a talk with it.
//!
//! It runs wherever KVM runs Linux: in the process of `cargo xtask demo`, or, by the hidden subcommand `demo-boot`, in
//! one on the emulated host. In: a [`Plan`]: programs and files. Out: a [`Report`], or the first thing that went
//! wrong; the logs of all processes stay in the plan's directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::conversation::Conversation;
use super::report::{Process, Report, Served};
use crate::listen::is_listening;
use crate::process::{Running, command, last_lines, wait_until};
use crate::workspace;

/// A daemon listens within this time.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// The guest has powered off within this time of its start.
const GUEST_LIMIT: Duration = Duration::from_secs(90);

/// What every guest of the demo is told: be quiet, be quick, reset on panic.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 quiet mitigations=off init_on_alloc=0 tsc=reliable audit=0 apparmor=0";

/// What to boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Where the programs are.
    pub programs: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initial RAM file system.
    pub initrd: PathBuf,
    /// The guest's disk.
    pub disk: PathBuf,
    /// Where logs go.
    pub logs: PathBuf,
    /// What the guest writes to its disk.
    pub nonce: String,
}

/// Boots the guest of `plan` and talks it through the demo.
pub fn boot(plan: &Plan) -> Result<Report, String> {
    let sockets =
        workspace::scratch().map_err(|error| format!("cannot make a directory for sockets: {error}"))?;
    let started = Instant::now();
    let console = sockets.path().join("hvc0");
    let image = plan.disk.as_os_str();
    let mut daemons = [
        Daemon::start(plan, sockets.path(), "rng", &[])?,
        Daemon::start(plan, sockets.path(), "blk", &["--image".as_ref(), image])?,
        Daemon::start(plan, sockets.path(), "console", &["--listen".as_ref(), console.as_os_str()])?,
    ];
    let stream = UnixStream::connect(&console)
        .map_err(|error| format!("cannot connect to {}: {error}", console.display()))?;
    let mut vmm = start_vmm(plan, &daemons)?;
    let init = talk(plan, stream, &mut vmm)?;
    power_off(plan, &mut vmm)?;
    let mut processes = vec![Process { name: "outboard".to_owned(), pid: vmm.id(), served: None }];
    for daemon in &mut daemons {
        processes.push(daemon.end()?);
    }
    Ok(Report { init_ms: millis(init), total_ms: millis(started.elapsed()), processes })
}

fn start_vmm(plan: &Plan, daemons: &[Daemon]) -> Result<Running, String> {
    let mut vmm = command(plan.programs.join("outboard"));
    vmm.arg("run").arg("--kernel").arg(&plan.kernel).arg("--initrd").arg(&plan.initrd);
    vmm.args(["--cmdline", COMMAND_LINE, "--memory", "256M", "--cpus", "1", "--serial"]);
    vmm.arg(format!("file={}", plan.logs.join("serial.log").display()));
    for daemon in daemons {
        vmm.arg("--device").arg(format!("{},socket={}", daemon.kind, daemon.socket.display()));
    }
    start("outboard", vmm, &plan.logs)
}

/// The steps of the demo; gives the time from the VMM's start to the guest's init.
fn talk(plan: &Plan, stream: UnixStream, vmm: &mut Running) -> Result<Duration, String> {
    let content =
        fs::read(&plan.disk).map_err(|error| format!("cannot read {}: {error}", plan.disk.display()))?;
    let started = vmm.started();
    let alive = || match vmm.ended() {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            Err(format!("outboard ended early ({status}): {}", log_end(&plan.logs, "outboard")))
        }
        Err(error) => Err(error.to_string()),
    };
    let mut guest =
        Conversation::new(stream, started + GUEST_LIMIT, alive).map_err(|error| error.to_string())?;
    let step = |what: &str| step(&format!("{what} ({:.1} s)", started.elapsed().as_secs_f64()));
    guest.init()?;
    let init = started.elapsed();
    step("the guest's init is up");
    guest.console()?;
    step("hvc0: both ways, nothing lost, nothing reordered");
    guest.random()?;
    step("/dev/hwrng: bytes from outboard-rng");
    guest.disk(&content)?;
    step("/dev/vda: the guest's sha256 is the host's");
    guest.write(&plan.nonce)?;
    step("/dev/vda: pattern written");
    Ok(init)
}

fn power_off(plan: &Plan, vmm: &mut Running) -> Result<(), String> {
    let status = vmm.wait(GUEST_LIMIT, || ()).map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("outboard failed at power-off ({status}): {}", log_end(&plan.logs, "outboard")));
    }
    step("the guest has powered off");
    Ok(())
}

/// One of our daemons, listening.
struct Daemon {
    kind: &'static str,
    socket: PathBuf,
    logs: PathBuf,
    running: Running,
}

impl Daemon {
    fn start(
        plan: &Plan,
        sockets: &Path,
        kind: &'static str,
        options: &[&std::ffi::OsStr],
    ) -> Result<Self, String> {
        let name = format!("outboard-{kind}");
        let socket = sockets.join(kind);
        let mut daemon = command(plan.programs.join(&name));
        daemon.arg("--socket-path").arg(&socket).args(options);
        let running = start(&name, daemon, &plan.logs)?;
        let mut daemon = Self { kind, socket, logs: plan.logs.clone(), running };
        daemon.await_listening()?;
        step(&format!("{name} listens (pid {})", daemon.running.id()));
        Ok(daemon)
    }

    fn await_listening(&mut self) -> Result<(), String> {
        let deadline = self.running.started() + LISTEN_LIMIT;
        let (socket, running) = (&self.socket, &mut self.running);
        let mut dead = false;
        let listening = wait_until(deadline, || {
            dead = !matches!(running.ended(), Ok(None));
            dead || is_listening(socket)
        });
        if dead || !listening.map_err(|error| error.to_string())? {
            return Err(format!("{} does not listen: {}", self.name(), log_end(&self.logs, &self.name())));
        }
        Ok(())
    }

    /// Asks it to end, as a service manager does; it must do so cleanly and say what it served.
    fn end(&mut self) -> Result<Process, String> {
        let status = self.running.terminate();
        let log = fs::read_to_string(log_path(&self.logs, &self.name())).unwrap_or_default();
        if !status.is_some_and(|status| status.success()) {
            return Err(format!(
                "{} did not end cleanly on SIGTERM ({status:?}): {}",
                self.name(),
                log.trim_end()
            ));
        }
        let served =
            Served::from_log(&log).ok_or_else(|| format!("{} did not say what it served", self.name()))?;
        if served.requests == 0 {
            return Err(format!("{} served no request", self.name()));
        }
        Ok(Process { name: self.name(), pid: self.running.id(), served: Some(served) })
    }

    fn name(&self) -> String {
        format!("outboard-{}", self.kind)
    }
}

fn start(name: &str, mut command: std::process::Command, logs: &Path) -> Result<Running, String> {
    let open = || -> io::Result<(File, File)> {
        let log = File::create(log_path(logs, name))?;
        Ok((log.try_clone()?, log))
    };
    let (stdout, stderr) = open().map_err(|error| format!("cannot write the log of {name}: {error}"))?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    Running::start(name, &mut command).map_err(|error| error.to_string())
}

fn log_path(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}

fn log_end(logs: &Path, name: &str) -> String {
    let log = fs::read(log_path(logs, name)).unwrap_or_default();
    let said = last_lines(&log, 3);
    if said.is_empty() { "it said nothing".to_owned() } else { said }
}

fn step(what: &str) {
    eprintln!("demo: {what}");
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
