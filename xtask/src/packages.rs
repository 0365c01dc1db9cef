//! The Debian packages that the demo, the tests and the emulated host need.
//!
//! What is missing is found by asking dpkg, which costs milliseconds when nothing is. Root on Debian gets it installed,
//! and is told; anyone else is told the one command to run. Nothing is ever removed or upgraded, with one exception:
//! an emulator tool of a newer release (`qemu-utils` from backports) excludes the release's own QEMU, and is then
//! brought back to its version.

use std::io;
use std::process::Command;

use crate::process;

/// What is needed, and what for.
pub const NEEDED: [&str; 10] = [
    "busybox-static",            // the guests' user space
    "kmod",                      // modules in their order
    "lz4",                       // unpacks the cloud kernel
    "python3-jsonschema",        // looks at answers of control sockets
    "python3-prometheus-client", // reads their metrics
    "qemu-system-x86",           // the emulated host, and a front-end that is not ours
    "qemu-utils",                // disk images, and the release's version of it beside the emulator
    "strace",                    // which system calls a sandbox must allow
    "systemd",                   // looks at our unit files, and runs them
    "xz-utils",                  // unpacks the full kernel
];

/// What tests against DPDK need besides: `testpmd`, and with it 180 MiB of libraries.
const DPDK: [&str; 1] = ["dpdk-dev"];

/// What tests of the sandbox need besides: it shows what a daemon calls, and stands in for a kernel that lacks something.
const STRACE: [&str; 1] = ["strace"];

/// What guests that verify their disks need besides: the program is given to them with its libraries.
const FIO: [&str; 1] = ["fio"];

/// What `cargo xtask bench` measures against.
const BENCH: [&str; 3] = ["fio", "openssl", "qemu-system-common"];

/// What `cargo xtask coverage` needs besides: tools that read this compiler's profiles.
const COVERAGE: [&str; 1] = ["llvm-19"];

/// Why the packages are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not allowed to install: the user has to.
    #[error(
        "Packages are missing: {missing}. Run this, then try again:\n  sudo apt-get install --no-install-recommends {missing}"
    )]
    Missing {
        /// Their names.
        missing: String,
    },
    /// No dpkg here.
    #[error(
        "Cannot ask dpkg which packages are there: this command needs Debian 12 (bookworm) with {needed}"
    )]
    NotDebian {
        /// What is needed.
        needed: String,
        /// What the system said.
        source: io::Error,
    },
    /// apt-get failed.
    #[error("Cannot install {missing}")]
    Install {
        /// Their names.
        missing: String,
        /// What apt-get said.
        source: process::Error,
    },
}

/// Makes sure that every package of [`NEEDED`] is installed.
pub fn ensure() -> Result<(), Error> {
    ensure_all(&NEEDED)
}

/// Makes sure that DPDK's `testpmd` is installed.
pub fn ensure_dpdk() -> Result<(), Error> {
    ensure_all(&DPDK)
}

/// Makes sure that strace is installed.
pub fn ensure_strace() -> Result<(), Error> {
    ensure_all(&STRACE)
}

/// Makes sure that fio is installed.
pub fn ensure_fio() -> Result<(), Error> {
    ensure_all(&FIO)
}

/// Makes sure that the peers of benches are installed.
pub fn ensure_bench() -> Result<(), Error> {
    ensure_all(&BENCH)
}

/// Makes sure that LLVM's coverage tools are installed.
pub fn ensure_coverage() -> Result<(), Error> {
    ensure_all(&COVERAGE)
}

fn ensure_all(needed: &[&str]) -> Result<(), Error> {
    let missing = missing(needed)?;
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Missing { missing: missing.join(" ") });
    }
    eprintln!("packages: installing {} with apt-get", missing.join(" "));
    install(&missing).map_err(|source| Error::Install { missing: missing.join(" "), source })
}

/// Those of `names` that dpkg does not hold as installed.
fn missing(names: &[&str]) -> Result<Vec<String>, Error> {
    let answer = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Abbrev}\n"])
        .args(names)
        .output()
        .map_err(|source| Error::NotDebian { needed: names.join(" "), source })?;
    // dpkg-query fails when it does not know a name, and still lists those it knows.
    Ok(not_installed(names, &String::from_utf8_lossy(&answer.stdout)))
}

fn not_installed(names: &[&str], listing: &str) -> Vec<String> {
    let installed = |name: &str| listing.lines().any(|line| line.trim_end() == format!("{name} ii"));
    names.iter().filter(|name| !installed(name)).map(|name| (*name).to_owned()).collect()
}

fn install(names: &[String]) -> Result<(), process::Error> {
    process::output(&mut apt_get(&["update"]))?;
    let install = ["install", "--yes", "--no-install-recommends"];
    let plain = process::output(apt_get(&install).args(names));
    match plain {
        Err(process::Error::Failed { .. }) if names.iter().any(|name| name == "qemu-system-x86") => {
            let utils = format!("qemu-utils={}", candidate("qemu-system-x86")?);
            eprintln!("packages: the newer qemu-utils here excludes this release's QEMU; installing {utils}");
            let others = names.iter().filter(|name| *name != "qemu-utils");
            process::output(apt_get(&install).arg("--allow-downgrades").args(others).arg(utils)).map(drop)
        }
        plain => plain.map(drop),
    }
}

/// The version of `package` that apt would install.
fn candidate(package: &str) -> Result<String, process::Error> {
    let policy = process::output(process::command("apt-cache").args(["policy", package]))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.unwrap_or_default().to_owned())
}

/// apt-get that asks nothing and waits for another one to finish.
pub fn apt_get(arguments: &[&str]) -> Command {
    let mut command = process::command("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_and_unknown_packages_are_missing() {
        let listing = "lz4 ii \nkmod rc \n";
        assert_eq!(not_installed(&["kmod", "lz4", "qemu-utils"], listing), ["kmod", "qemu-utils"]);
    }
}
