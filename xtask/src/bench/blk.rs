//! What outboard-blk does with an image, against what else serves or reads the same image.
//!
//! In: an image of [`IMAGE_BYTES`] whose bytes are in the page cache, made for the run. Peers: qemu-storage-daemon under
//! the same client, and fio, which has no guest and no rings between it and the file. Ours and the peer's round follow
//! each other, each started anew; what serves has one CPU, what asks another. As shipped: keeper, sandbox, tracking of
//! requests in flight and overflow checks are on.

mod fio;
mod graph;
mod idle;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Suite;
use super::backend::{Backend, pinned};
use super::load::{self, BACKEND_CPU, CLIENT_CPU, Figures, Load, compare};
use super::row::{Better, Claim, Round, Row};
use crate::explain::explain;
use crate::process::command;
use crate::{cargo, packages};

/// Of the image that all rows read.
const IMAGE_BYTES: u64 = 1 << 30;

const DEEP_IOPS: Claim = Claim::new(
    "blk.4k.cached.qd128.iops",
    "kIOPS",
    Better::Higher,
    (1.35, 1.0),
    "outboard-blk / qemu-storage-daemon (aio=io_uring); random 4 KiB reads of a cached GiB, ring of 512, EVENT_IDX, client sleeps; one CPU each, 4 KiB pages",
);
const DEEP_CPU: Claim = Claim::new(
    "blk.4k.cached.qd128.cpu_us",
    "us",
    Better::Lower,
    (0.67, 1.0),
    "CPU of back-end and client a request, in the row before",
);
const DIRECT: Claim = Claim::new(
    "blk.4k.direct.qd32.iops",
    "kIOPS",
    Better::Higher,
    (0.95, 0.75),
    "outboard-blk --direct / fio (io_uring, direct, batched); random 4 KiB reads, depth 32, ring of 128; one CPU each",
);
const SEQUENTIAL: Claim = Claim::new(
    "blk.64k.cached.seq.mbps",
    "MB/s",
    Better::Higher,
    (0.85, 0.76),
    "outboard-blk / fio (io_uring, batched); 64 KiB reads one after the other of a cached GiB, depth 32, ring of 128; one CPU each",
);
const SINGLE: Claim = Claim::new(
    "blk.4k.qd1.p50_us",
    "us",
    Better::Lower,
    (0.76, 1.0),
    "outboard-blk / qemu-storage-daemon (aio=io_uring); random 4 KiB reads of a cached GiB, ring of 4, EVENT_IDX, client polls; one CPU each",
);
const TWO_QUEUES: Claim = Claim::new(
    "blk.2q.scaling",
    "kIOPS",
    Better::Higher,
    (1.0, 0.0),
    "two queues / one queue of outboard-blk, a client thread for each; random 4 KiB reads, depth 128, rings of 512; both sides on all CPUs",
);
const IDLE_AGAIN: Claim = Claim::new(
    "blk.idle_again_ms",
    "ms",
    Better::Lower,
    (1.0, 10.0),
    "last request of a load at depth 128 done until the last sign of life of any thread of outboard-blk, its front-end still there",
);

const HOP: Claim = Claim::new(
    "graph.hop_ns",
    "ns",
    Better::Lower,
    (25.0, 100.0),
    "what a translator that looks at a request on its way down and up and passes it on adds to it; layers alone, one thread",
);
const EIGHT: Claim = Claim::new(
    "graph.eight_us",
    "us",
    Better::Lower,
    (0.2, 1.0),
    "CPU of outboard-blk a request over eight translators (offset, map, io-stats, trace, throttle, offset, map, io-stats), less that without; load of blk.4k.cached.qd128",
);
const ALLOCATIONS: Claim = Claim::new(
    "graph.allocs_per_request",
    "",
    Better::Lower,
    (0.0, 0.0),
    "allocations of all threads of a block device over a graph of several layers; reads, writes, flushes, both engines, both rings",
);
const CRYPT: Claim = Claim::new(
    "crypt.4k.mbps",
    "MB/s",
    Better::Higher,
    (0.8, 0.5),
    "features/crypt / openssl speed, AES-256-XTS of 4 KiB blocks, a second of CPU time each; ours with its copies, reads and writes in turn",
);

const DEEP_LOAD: Load = Load::new(1_000_000, &["--depth", "128", "--event-idx", "--span", "1073741824"]);
const SINGLE_LOAD: Load =
    Load::new(200_000, &["--depth", "1", "--event-idx", "--poll", "--span", "1073741824"]);
const DIRECT_LOAD: Load = Load::new(100_000, &["--depth", "32", "--event-idx", "--span", "1073741824"]);
const SEQUENTIAL_LOAD: Load = Load::new(
    65_536,
    &["--depth", "32", "--event-idx", "--bytes", "65536", "--sequential", "--span", "1073741824"],
);

/// The suite.
#[derive(Debug)]
pub struct Blk;

impl Suite for Blk {
    fn name(&self) -> &'static str {
        "blk"
    }

    fn claims(&self) -> Vec<Claim> {
        let image = [DEEP_IOPS, DEEP_CPU, DIRECT, SEQUENTIAL, SINGLE, TWO_QUEUES, IDLE_AGAIN];
        image.into_iter().chain([HOP, EIGHT, ALLOCATIONS, CRYPT]).collect()
    }

    fn run(&self, rounds: usize, scratch: &Path) -> Result<Vec<Row>, String> {
        packages::ensure_bench().map_err(|error| explain(&error))?;
        build().map_err(|error| explain(&error))?;
        let disk = Disk::new(scratch).map_err(|error| format!("cannot make an image: {error}"))?;
        let mut rows = Vec::new();
        rows.extend(measured([&DEEP_IOPS, &DEEP_CPU], rounds, || disk.deep()));
        rows.extend(measured([&DIRECT], rounds, || disk.direct()));
        rows.extend(measured([&SEQUENTIAL], rounds, || disk.sequential()));
        rows.extend(measured([&SINGLE], rounds, || disk.single()));
        rows.push(disk.two_queues(rounds));
        rows.extend(measured([&IDLE_AGAIN], rounds, || Ok([Round::alone(idle::again_ms(&disk)?)])));
        let [hop, crypt] = measured([&HOP, &CRYPT], rounds, || graph::layers(&disk));
        let [eight] = measured([&EIGHT], rounds, || graph::eight_us(&disk));
        let [allocations] = measured([&ALLOCATIONS], 1, graph::allocations);
        rows.extend([hop, eight, allocations, crypt]);
        Ok(rows)
    }
}

fn build() -> Result<(), cargo::Error> {
    let mut build = cargo::cargo();
    build.args([
        "build",
        "--quiet",
        "--release",
        "--bins",
        "--package",
        "tests",
        "--package",
        "outboard-blk",
    ]);
    cargo::run("cargo build", &mut build)
}

/// The rows of these claims from rounds that measure all of them together.
fn measured<const N: usize>(
    claims: [&Claim; N],
    rounds: usize,
    mut round: impl FnMut() -> Result<[Round; N], String>,
) -> [Row; N] {
    let rounds: Result<Vec<_>, String> = (0..rounds).map(|_| round()).collect();
    std::array::from_fn(|at| match &rounds {
        Ok(rounds) => Row::measured(claims[at], &rounds.iter().map(|round| round[at]).collect::<Vec<_>>()),
        Err(reason) => Row::missing(claims[at], reason),
    })
}

/// The image, and what serves it.
struct Disk {
    programs: PathBuf,
    scratch: PathBuf,
    image: PathBuf,
    socket: PathBuf,
}

impl Disk {
    /// Writes the image. Real blocks, no holes, and on the disk before anything is measured.
    fn new(scratch: &Path) -> io::Result<Disk> {
        let image = scratch.join("disk.img");
        let mut file = File::create(&image)?;
        let piece = vec![0x5a; 1 << 20];
        for _ in 0..IMAGE_BYTES >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        let (programs, socket) = (cargo::programs_dir("release"), scratch.join("blk"));
        Ok(Disk { programs, scratch: scratch.to_owned(), image, socket })
    }

    /// Random reads, many at a time: how many, and what they cost.
    fn deep(&self) -> Result<[Round; 2], String> {
        let (ours, peer) = (self.ours(DEEP_LOAD, &[])?, self.qemu(DEEP_LOAD)?);
        let both = |figures: &Figures| figures.backend_cpu_us + figures.client_cpu_us;
        Ok([compare(ours, peer, |figures| figures.iops / 1e3), compare(ours, peer, both)])
    }

    /// Random reads past the page cache.
    fn direct(&self) -> Result<[Round; 1], String> {
        let ours = self.ours(DIRECT_LOAD, &["--direct"])?;
        let peer = fio::run(&self.image, &fio::Job::direct(DIRECT_LOAD.requests))?;
        Ok([peer.against(ours, ours.iops / 1e3, peer.iops / 1e3)])
    }

    /// Large reads one after the other.
    fn sequential(&self) -> Result<[Round; 1], String> {
        let ours = self.ours(SEQUENTIAL_LOAD, &[])?;
        let peer = fio::run(&self.image, &fio::Job::sequential(SEQUENTIAL_LOAD.requests))?;
        Ok([peer.against(ours, ours.iops * 0.065_536, peer.iops * 0.065_536)])
    }

    /// One read at a time.
    fn single(&self) -> Result<[Round; 1], String> {
        let (ours, peer) = (self.ours(SINGLE_LOAD, &[])?, self.qemu(SINGLE_LOAD)?);
        Ok([compare(ours, peer, |figures| figures.p50_us)])
    }

    /// Two queues against one, and how far that can go here: two workers at most share all CPUs with their client.
    fn two_queues(&self, rounds: usize) -> Row {
        let mut limits = Vec::new();
        let [mut row] = measured([&TWO_QUEUES], rounds, || {
            let one = self.spread(DEEP_LOAD)?;
            let two = self.spread(Load { queues: 2, ..DEEP_LOAD })?;
            limits.push(limit(&one, 2));
            Ok([compare(two, one, |figures| figures.iops / 1e3)])
        });
        if let Some(limit) = limits.into_iter().max_by(f64::total_cmp) {
            row.note = format!("{}; the CPUs here allow {limit:.2}", row.note);
        }
        row
    }

    /// Loads outboard-blk, on its CPU.
    fn ours(&self, load: Load, options: &[&str]) -> Result<Figures, String> {
        let mut program = pinned(BACKEND_CPU, self.programs.join("outboard-blk"));
        let backend = self.start(program.args(options))?;
        load::measure(&self.programs, &backend, load, Some(CLIENT_CPU))
    }

    /// Loads outboard-blk with as many queues, on any CPU.
    fn spread(&self, load: Load) -> Result<Figures, String> {
        let mut program = command(self.programs.join("outboard-blk"));
        let backend = self.start(program.args(["--queues", &load.queues.to_string()]))?;
        load::measure(&self.programs, &backend, load, None)
    }

    fn start(&self, program: &mut Command) -> Result<Backend, String> {
        self.begin(program.arg("--image").arg(&self.image))
    }

    /// Starts outboard-blk, which has been told what it serves.
    fn begin(&self, program: &mut Command) -> Result<Backend, String> {
        Backend::start("outboard-blk", program.arg("--socket-path").arg(&self.socket), &self.free_socket()?)
    }

    fn qemu(&self, load: Load) -> Result<Figures, String> {
        let mut program = pinned(BACKEND_CPU, "qemu-storage-daemon");
        let (image, socket) = (self.image.display(), self.socket.display());
        program.args(["--blockdev", &format!("driver=file,node-name=f,aio=io_uring,filename={image}")]);
        let export = "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path=";
        program.args(["--export", &format!("{export}{socket}")]);
        let backend = Backend::start("qemu-storage-daemon", &mut program, &self.free_socket()?)?;
        load::measure(&self.programs, &backend, load, Some(CLIENT_CPU))
    }

    /// The path of the socket, which nobody listens on.
    fn free_socket(&self) -> Result<PathBuf, String> {
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("cannot remove {}: {error}", self.socket.display()))
            }
            _ => Ok(self.socket.clone()),
        }
    }
}

/// How many times the requests of one queue `cpus` CPUs can serve and ask for, at the CPU time that one queue takes.
fn limit(one: &Figures, cpus: u32) -> f64 {
    let most = f64::from(cpus) * 1e6 / (one.backend_cpu_us + one.client_cpu_us);
    most / one.iops
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURES: Figures =
        Figures { iops: 500_000.0, p50_us: 1.0, client_cpu_us: 0.5, ended_us: 0.0, backend_cpu_us: 1.5 };

    #[test]
    fn two_cpus_do_not_serve_two_queues_twice_as_fast_when_the_client_needs_one_too() {
        assert!((limit(&FIGURES, 2) - 2.0).abs() < 1e-9);
        assert!((limit(&Figures { client_cpu_us: 2.5, ..FIGURES }, 2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_round_that_fails_is_the_reason_of_all_its_rows() {
        let mut left = 2;
        let rows = measured([&DEEP_IOPS, &DEEP_CPU], 5, || {
            left -= 1;
            if left == 0 { Err("no peer".to_owned()) } else { Ok([Round::alone(1.0); 2]) }
        });
        assert!(rows.iter().all(|row| row.ratio.is_none() && row.note == "no peer"));
    }
}
