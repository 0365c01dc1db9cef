//! `cargo xtask demo`: a Debian guest whose disk, entropy and console are served by three processes, and the proof.
//!
//! ```text
//! packages ─► build ─► kernel, initramfs, disk ─► boot (here or on the emulated host) ─► image verified ─► table
//! ```
//!
//! Its last line on standard output is a contract: `demo: ok` or `demo: FAILED: reason`.

mod boot;
mod conversation;
pub mod disk;
#[cfg(test)]
mod reference_tests;
mod report;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use boot::Plan;
pub use report::{Process, Report, Served};

use crate::emulated::EmulatedHost;
use crate::explain::explain;
use crate::initramfs::Initramfs;
use crate::kernel::{Flavour, Kernel};
use crate::kvm_host::{self, Place};
use crate::{cargo, packages, workspace};

const GUEST: &str = include_str!("demo/guest.sh");

/// The guest's drivers, where its kernel has them as modules.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_rng", "virtio_blk"];

/// What the boot leaves in its directory (see `boot.rs`).
const LOGS: [&str; 5] =
    ["outboard-rng.log", "outboard-blk.log", "outboard-console.log", "outboard.log", "serial.log"];

/// The boot, including the emulated host's own.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What to show.
#[derive(Debug)]
pub struct Demo {
    /// A kernel other than Debian's.
    pub kernel: Option<PathBuf>,
    /// Where to boot; decided by what this host's KVM can do when not given.
    pub place: Option<Place>,
    /// The build profile of cargo.
    pub profile: String,
}

impl Demo {
    /// Does all of it; the error is one reason.
    pub fn run(&self) -> Result<Report, Failure> {
        packages::ensure()?;
        cargo::build_programs(&self.profile)?;
        let scratch = workspace::scratch().map_err(reason("cannot make a temporary directory"))?;
        let place = kvm_host::choose(self.place, &cargo::programs_dir(&self.profile));
        let plan = self.plan(scratch.path())?;
        let before = fs::read(&plan.disk).map_err(reason("cannot read the disk"))?;
        let started = Instant::now();
        let report = boot_at(place, &plan, scratch.path());
        let report = report.inspect_err(|_| show_logs(&plan.logs))?;
        eprintln!("demo: the boot part took {:.1} s", started.elapsed().as_secs_f64());
        let difference = disk::difference(&plan.disk, &disk::expected(&before, &plan.nonce));
        match difference.map_err(reason("cannot read the disk"))? {
            Some(difference) => {
                Err(Failure::Reason(format!("the guest's write is not in the image: {difference}")))
            }
            None => {
                eprintln!("demo: the pattern is in the image, and everything else as it was");
                Ok(report)
            }
        }
    }

    /// Prepares the files of the boot in `dir`.
    fn plan(&self, dir: &Path) -> Result<Plan, Failure> {
        let kernel = match &self.kernel {
            Some(file) => Kernel::file(file),
            None => Kernel::debian(Flavour::Cloud),
        };
        let kernel = kernel.map_err(reason("no kernel"))?;
        eprintln!("demo: kernel {} ({})", kernel.version, kernel.image.display());
        let plan = Plan {
            programs: cargo::programs_dir(&self.profile),
            kernel: kernel.image.clone(),
            initrd: dir.join("initrd"),
            disk: dir.join("disk"),
            logs: dir.to_owned(),
            nonce: disk::nonce().map_err(reason("no random bytes"))?,
        };
        let modules = kernel.modules(&MODULES).map_err(reason("no modules"))?;
        let initrd =
            Initramfs::new(&modules, &guest_script()).and_then(|initramfs| initramfs.write(&plan.initrd));
        initrd.map_err(reason("no initramfs"))?;
        let content = disk::random(disk::DISK_BYTES).map_err(reason("no random bytes"))?;
        fs::write(&plan.disk, content).map_err(reason("cannot write the disk"))?;
        Ok(plan)
    }
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Packages are missing; has its own exit code.
    #[error(transparent)]
    Packages(#[from] packages::Error),
    /// The build failed; cargo has said why.
    #[error(transparent)]
    Build(#[from] cargo::Error),
    /// Anything later.
    #[error("{0}")]
    Reason(String),
}

fn reason<E: std::error::Error>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::Reason(format!("{what}: {}", explain(&error)))
}

/// Shows how each process and the guest's kernel ended, before the directory with their logs goes away.
fn show_logs(logs: &Path) {
    for name in LOGS {
        let log = fs::read(logs.join(name)).unwrap_or_default();
        if !log.is_empty() {
            eprintln!("demo: the end of {name}:\n{}", crate::process::last_lines(&log, 20));
        }
    }
}

/// The guest's script with the numbers that both sides must agree on.
fn guest_script() -> String {
    format!(
        "LINES_TO_SAY={}\nRANDOM_BYTES={}\nPATTERN_AT={}\nPATTERN_BYTES={}\n{GUEST}",
        conversation::LINES_TO_SAY,
        conversation::RANDOM_BYTES,
        disk::PATTERN_AT,
        disk::PATTERN_BYTES
    )
}

fn boot_at(place: Place, plan: &Plan, dir: &Path) -> Result<Report, Failure> {
    match place {
        Place::Direct => boot::boot(plan).map_err(Failure::Reason),
        Place::Emulated => boot_emulated(plan, dir),
    }
}

/// Has this very program do the boot on the emulated host.
fn boot_emulated(plan: &Plan, dir: &Path) -> Result<Report, Failure> {
    let file = dir.join("plan.json");
    let text = serde_json::to_string(plan).map_err(reason("cannot write the plan"))?;
    fs::write(&file, text).map_err(reason("cannot write the plan"))?;
    let xtask = env::current_exe().map_err(reason("cannot find this program"))?;
    let words = [xtask.into_os_string(), OsString::from("demo-boot"), file.clone().into_os_string()];
    let host = EmulatedHost { limit: BOOT_LIMIT, ..EmulatedHost::default() };
    eprintln!("demo: starting the emulated host");
    host.run(&words).map_err(reason("emulated host"))?;
    let answer =
        fs::read_to_string(answer_path(&file)).map_err(reason("no answer from the emulated host"))?;
    let answer: Result<Report, String> = serde_json::from_str(&answer).map_err(reason("no answer"))?;
    answer.map_err(Failure::Reason)
}

/// The boot of the plan in `file`, with the answer left beside it: what runs on the emulated host.
pub fn boot_from_file(file: &Path) -> Result<(), Failure> {
    let text = fs::read_to_string(file).map_err(reason("cannot read the plan"))?;
    let plan: Plan = serde_json::from_str(&text).map_err(reason("cannot read the plan"))?;
    let answer = serde_json::to_string(&boot::boot(&plan)).map_err(reason("cannot write the answer"))?;
    fs::write(answer_path(file), answer).map_err(reason("cannot write the answer"))
}

fn answer_path(plan: &Path) -> PathBuf {
    plan.with_extension("answer")
}
