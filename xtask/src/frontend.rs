//! QEMU as a front-end that is not ours: a Debian guest whose devices are vhost-user daemons.
//!
//! In: the modules of the guest, its script, the sockets of the daemons. Out: what the script wrote, once the guest has
//! powered off. Guest memory is a shared memfd, as vhost-user asks.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::{Path, PathBuf};
//! let guest = xtask::frontend::Guest::new(&["virtio_pci", "virtio_rng"], "dd if=/dev/hwrng bs=64 count=1 | od -x")
//!     .rng(Path::new("/run/rng.sock"));
//! let said = guest.run(std::time::Duration::from_secs(60))?;
//! # Ok(()) }
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::explain::explain;
use crate::kernel::{self, Flavour, Kernel};
use crate::qemu::Machine;
use crate::{initramfs, initramfs::Initramfs, workspace};

/// Its memory; a program of the host and its libraries stand in it twice while it boots.
const MEMORY_MIB: u32 = 256;
const MEMORY_WITH_PROGRAMS_MIB: u32 = 512;

/// Why the guest did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// No initial RAM file system.
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    /// A file of the run's directory failed.
    #[error("Cannot prepare the guest")]
    Io(#[from] io::Error),
    /// QEMU did not start, failed, or ran into its time limit.
    #[error("{error}. Last words of QEMU and its guest:\n{last_words}")]
    Qemu {
        /// What happened.
        error: String,
        /// What they wrote.
        last_words: String,
    },
}

/// A Debian cloud guest that has not been started.
#[derive(Debug)]
pub struct Guest {
    modules: Vec<String>,
    script: String,
    cpus: u32,
    rings: &'static str,
    reconnect: &'static str,
    devices: Vec<String>,
    programs: Vec<PathBuf>,
}

impl Guest {
    /// A guest that loads `modules`, runs `script` (busybox's shell, root, standard output is the serial port) and
    /// powers off.
    pub fn new(modules: &[&str], script: &str) -> Self {
        let modules = modules.iter().map(|name| (*name).to_owned()).collect();
        Self {
            modules,
            script: format!("{script}\npoweroff -f\n"),
            cpus: 1,
            rings: "",
            reconnect: "",
            devices: Vec::new(),
            programs: Vec::new(),
        }
    }

    /// Gives it `cpus` processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Gives it a program of this host, under the same path.
    pub fn program(mut self, path: &Path) -> Self {
        self.programs.push(path.to_owned());
        self
    }

    /// Offers packed rings with the devices added from now on.
    pub fn packed(mut self) -> Self {
        self.rings = ",packed=on";
        self
    }

    /// Connects again, each second, to daemons that went, for the devices added from now on.
    pub fn reconnecting(mut self) -> Self {
        self.reconnect = ",reconnect=1";
        self
    }

    /// Adds an entropy device served by the daemon at `socket`.
    pub fn rng(self, socket: &Path) -> Self {
        self.device(socket, "vhost-user-rng-pci")
    }

    /// Adds a disk served by the daemon at `socket`, with `queues` queues.
    pub fn blk(self, socket: &Path, queues: u16) -> Self {
        self.device(socket, &format!("vhost-user-blk-pci,num-queues={queues}"))
    }

    fn device(mut self, socket: &Path, device: &str) -> Self {
        let id = format!("daemon{}", self.devices.len() / 4);
        let chardev = format!("socket,id={id},path={}{}", socket.display(), self.reconnect);
        let device = format!("{device},chardev={id}{}", self.rings);
        self.devices.extend(["-chardev".into(), chardev, "-device".into(), device]);
        self
    }

    /// Runs it to its end and gives what its script wrote, without what the kernel wrote between.
    pub fn run(&self, limit: Duration) -> Result<String, Error> {
        let scratch = workspace::scratch()?;
        let machine = self.machine(scratch.path())?;
        let status = machine.start().and_then(|mut qemu| qemu.wait(limit, || ()));
        let error = match status {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("QEMU failed ({status})")),
            Err(error) => Some(explain(&error)),
        };
        match error {
            None => Ok(script_lines(&String::from_utf8_lossy(&std::fs::read(machine.serial())?))),
            Some(error) => Err(Error::Qemu { error, last_words: machine.last_words() }),
        }
    }

    fn machine(&self, scratch: &Path) -> Result<Machine, Error> {
        let kernel = Kernel::debian(Flavour::Cloud)?;
        let modules: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        let initrd = scratch.join("initrd");
        let archive = Initramfs::new(&kernel.modules(&modules)?, &self.script)?;
        let archive = self.programs.iter().try_fold(archive, |archive, path| archive.program(path))?;
        archive.write(&initrd)?;
        let mib = if self.programs.is_empty() { MEMORY_MIB } else { MEMORY_WITH_PROGRAMS_MIB };
        let memory = format!("memory-backend-memfd,id=memory,size={mib}M,share=on");
        let devices: Vec<&str> = self.devices.iter().map(String::as_str).collect();
        Ok(Machine::new(&kernel.image, &initrd, mib, self.cpus, scratch)
            .arguments(&["-object", &memory, "-numa", "node,memdev=memory"])
            .arguments(&devices))
    }
}

/// The lines of a serial console that are not the kernel's, which begin with a time: `[    2.210477] reboot: ...`.
fn script_lines(serial: &str) -> String {
    let is_kernels = |line: &str| {
        line.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(|c: char| c.is_ascii_digit()))
    };
    let lines: Vec<&str> =
        serial.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !is_kernels(line)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_left_out() {
        let serial = "[    0.5] ACPI: bug\r\n64\r\n[x]\r\n[   12.210477] reboot: Power down\r\n";
        assert_eq!(script_lines(serial), "64\n[x]");
    }
}
