//! What `backends` costs by itself: a device that answers at once, an idle daemon, a start.
//!
//! `outboard-null` and qemu-storage-daemon's `null-co` are loaded by the same client on the `virtio-driver` crate, one
//! right after the other, each started anew; back-end and client have a CPU each. See `tests/src/bin`.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Suite;
use super::backend::{Backend, pinned};
use super::load::{self, BACKEND_CPU, CLIENT_CPU, Figures, Load, compare};
use super::row::{Better, Claim, Round, Row};
use crate::cargo;
use crate::explain::explain;
use crate::process::{Running, command, wait_until};

/// How long a daemon may take to put its things away once there is nothing to do.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a daemon is watched doing nothing.
const IDLE: Duration = Duration::from_secs(2);
/// Every step that is waited for ends within this.
const LIMIT: Duration = Duration::from_secs(20);
/// The name of the double's guest memory.
const GUEST_RAM: &str = "/memfd:guest-ram";

const ROWS: [Claim; 7] = [
    Claim::new(
        "null.split.qd128.iops",
        "kIOPS",
        Better::Higher,
        (1.2, 1.0),
        "outboard-null / qemu-storage-daemon null-co; 4 KiB reads, ring of 512, EVENT_IDX, client sleeps; one CPU each, 4 KiB pages",
    ),
    Claim::new(
        "null.split.qd128.backend_cpu_us",
        "us",
        Better::Lower,
        (0.40, 0.56),
        "CPU of outboard-null a request, in the row before",
    ),
    Claim::new(
        "null.packed.qd128.iops",
        "kIOPS",
        Better::Higher,
        (1.0, 0.9),
        "packed / split ring; outboard-null, 4 KiB reads, ring of 512, flags, client sleeps; one CPU each",
    ),
    Claim::new(
        "null.split.qd1.p50_us",
        "us",
        Better::Lower,
        (1.0, 1.0),
        "outboard-null / qemu-storage-daemon null-co; 4 KiB reads, ring of 4, EVENT_IDX, client polls; one CPU each",
    ),
    Claim::new(
        "idle.cpu_percent",
        "%",
        Better::Lower,
        (0.0, 0.0),
        "outboard-rng with a front-end and a running ring, half a second after the last message",
    ),
    Claim::new(
        "idle.rss_kb",
        "KiB",
        Better::Lower,
        (4096.0, 4096.0),
        "outboard-rng with a front-end and a running ring; resident memory without the guest's",
    ),
    Claim::new(
        "start.to_listening_ms",
        "ms",
        Better::Lower,
        (5.0, 5.0),
        "outboard-rng from fork to READY=1, through setpriv",
    ),
];

/// The suite.
#[derive(Debug)]
pub struct Null;

impl Suite for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn claims(&self) -> Vec<Claim> {
        ROWS.to_vec()
    }

    fn run(&self, rounds: usize, scratch: &Path) -> Result<Vec<Row>, String> {
        build().map_err(|error| explain(&error))?;
        let place = Place { programs: cargo::programs_dir("release"), scratch: scratch.to_owned() };
        let rounds = (0..rounds).map(|_| place.round()).collect::<Result<Vec<_>, _>>()?;
        let row = |(at, claim): (usize, &Claim)| {
            Row::measured(claim, &rounds.iter().map(|round| round[at]).collect::<Vec<_>>())
        };
        Ok(ROWS.iter().enumerate().map(row).collect())
    }
}

fn build() -> Result<(), cargo::Error> {
    let mut build = cargo::cargo();
    build.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "tests",
        "--package",
        "outboard-rng",
        "--bins",
    ]);
    cargo::run("cargo build", &mut build)
}

/// Which back-end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Ours,
    /// Ours without a keeper; requests in flight are not tracked, as the client does not ask for it.
    Untracked,
    Qemu,
}

pub(super) const DEEP: Load = Load::new(4_000_000, &["--depth", "128", "--event-idx"]);
const DEEP_FLAGS: Load = Load::new(4_000_000, &["--depth", "128"]);
// The crate loses notifications of packed rings with event indices.
const DEEP_PACKED: Load = Load::new(4_000_000, &["--depth", "128", "--packed"]);
const SINGLE: Load = Load::new(400_000, &["--depth", "1", "--event-idx", "--poll"]);

/// Where programs are, and where sockets go.
pub(super) struct Place {
    pub(super) programs: PathBuf,
    pub(super) scratch: PathBuf,
}

impl Place {
    /// One round of all rows, in their order.
    fn round(&self) -> Result<[Round; 7], String> {
        let (split, qemu) = (self.load(Kind::Ours, DEEP)?, self.load(Kind::Qemu, DEEP)?);
        let (packed, flags) = (self.load(Kind::Ours, DEEP_PACKED)?, self.load(Kind::Ours, DEEP_FLAGS)?);
        let (single, qemu_single) = (self.load(Kind::Ours, SINGLE)?, self.load(Kind::Qemu, SINGLE)?);
        let (cpu_percent, rss_kib) = self.idle()?;
        let cpu = Round { cpu_us_ours: Some(split.backend_cpu_us), ..Round::alone(split.backend_cpu_us) };
        Ok([
            compare(split, qemu, |figures| figures.iops / 1e3),
            cpu,
            compare(packed, flags, |figures| figures.iops / 1e3),
            compare(single, qemu_single, |figures| figures.p50_us),
            Round::alone(cpu_percent),
            Round::alone(rss_kib),
            Round::alone(self.start()?),
        ])
    }

    /// Starts a back-end and loads it.
    pub(super) fn load(&self, kind: Kind, load: Load) -> Result<Figures, String> {
        load::measure(&self.programs, &self.backend(kind)?, load, Some(CLIENT_CPU))
    }

    fn backend(&self, kind: Kind) -> Result<Backend, String> {
        let socket = self.socket("null")?;
        match kind {
            Kind::Ours | Kind::Untracked => {
                let mut program = pinned(BACKEND_CPU, self.programs.join("outboard-null"));
                program.arg("--socket-path").arg(&socket);
                if matches!(kind, Kind::Untracked) {
                    program.args(["--keeper", "off"]);
                }
                Backend::start("outboard-null", &mut program, &socket)
            }
            Kind::Qemu => {
                let mut program = pinned(BACKEND_CPU, "qemu-storage-daemon");
                program.args(["--blockdev", "driver=null-co,node-name=n,size=1073741824,read-zeroes=off"]);
                let export = "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,writable=on,addr.path=";
                program.args(["--export", &format!("{export}{}", socket.display())]);
                Backend::start("qemu-storage-daemon", &mut program, &socket)
            }
        }
    }

    /// A path that nobody listens on.
    fn socket(&self, name: &str) -> Result<PathBuf, String> {
        let socket = self.scratch.join(name);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", socket.display()))
            }
            _ => Ok(socket),
        }
    }

    /// CPU in percent and memory in KiB of a daemon that has a front-end and nothing to do.
    fn idle(&self) -> Result<(f64, f64), String> {
        let socket = self.socket("rng")?;
        let mut program = self.rng(&socket);
        let daemon = Backend::start("outboard-rng", &mut program, &socket)?;
        let _frontend = self.frontend(&socket)?;
        thread::sleep(SETTLE);
        let before = daemon.cpu();
        thread::sleep(IDLE);
        let spent = daemon.cpu().saturating_sub(before);
        let rss_kib = u32::try_from(daemon.rss_kib_without(GUEST_RAM)).unwrap_or(u32::MAX);
        Ok((spent.as_secs_f64() / IDLE.as_secs_f64() * 100.0, f64::from(rss_kib)))
    }

    /// Resident memory of the keeper of a daemon that has a front-end and nothing to say to it, in KiB.
    pub(super) fn keeper_rss_kib(&self) -> Result<f64, String> {
        let socket = self.socket("rng")?;
        let daemon = Backend::start("outboard-rng", &mut self.rng(&socket), &socket)?;
        let _frontend = self.frontend(&socket)?;
        thread::sleep(IDLE);
        Ok(f64::from(u32::try_from(daemon.keeper_rss_kib()).unwrap_or(u32::MAX)))
    }

    fn rng(&self, socket: &Path) -> Command {
        let mut program = command(self.programs.join("outboard-rng"));
        program.arg("--socket-path").arg(socket);
        program
    }

    /// A front-end that has been served and went silent.
    fn frontend(&self, socket: &Path) -> Result<Running, String> {
        let said = self.scratch.join("idle-frontend");
        let file =
            File::create(&said).map_err(|error| format!("cannot write {}: {error}", said.display()))?;
        let mut program = command(self.programs.join("idle-frontend"));
        program.arg(socket).stdin(Stdio::null()).stdout(file);
        let running = Running::start("idle-frontend", &mut program).map_err(|error| explain(&error))?;
        let idle = || fs::read_to_string(&said).is_ok_and(|text| text.contains("idle"));
        match wait_until(Instant::now() + LIMIT, idle) {
            Ok(true) => Ok(running),
            Ok(false) => Err("idle-frontend was not served".to_owned()),
            Err(error) => Err(explain(&error)),
        }
    }

    /// Milliseconds from starting a daemon to its word that it is ready.
    fn start(&self) -> Result<f64, String> {
        let path = self.socket("ready")?;
        let ready =
            UnixDatagram::bind(&path).and_then(|ready| ready.set_read_timeout(Some(LIMIT)).map(|()| ready));
        let ready = ready.map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
        let mut program = self.rng(&self.socket("rng")?);
        program.env("NOTIFY_SOCKET", &path).stdin(Stdio::null()).stderr(Stdio::null());
        let daemon = Running::start("outboard-rng", &mut program).map_err(|error| explain(&error))?;
        ready.recv(&mut [0; 64]).map_err(|error| format!("outboard-rng does not become ready: {error}"))?;
        Ok(daemon.started().elapsed().as_secs_f64() * 1e3)
    }
}
