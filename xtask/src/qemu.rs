//! QEMU under TCG: a machine that needs nothing of the host's KVM.
//!
//! In: a kernel, an initial RAM file system, devices. Out: a running process whose serial port is a file. It has a
//! time limit like every process here; it ends by itself when its guest powers off, resets or panics.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::process::{self, Running, command};

/// The emulator, from package `qemu-system-x86`.
const PROGRAM: &str = "qemu-system-x86_64";

/// What every guest's kernel is told: be quiet, be quick, reset on panic.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off nokaslr init_on_alloc=0 tsc=reliable \
    no_timer_check 8250.nr_uarts=1 i8042.noaux audit=0 apparmor=0 nowatchdog";

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    arguments: Vec<OsString>,
    serial: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// A q35 machine that boots `kernel` (ELF) with `initrd`; what it says on its serial port and what QEMU itself has
    /// to say go to files in `scratch`.
    pub fn new(kernel: &Path, initrd: &Path, memory_mib: u32, cpus: u32, scratch: &Path) -> Self {
        let (serial, log) = (scratch.join("serial"), scratch.join("qemu.log"));
        let machine = Self { arguments: Vec::new(), serial, log };
        let (memory, cpus) = (memory_mib.to_string(), cpus.to_string());
        let chardev = format!("file:{}", machine.serial.display());
        machine
            .arguments(&[
                "-accel",
                "tcg,thread=multi",
                "-machine",
                "q35",
                "-cpu",
                "max",
                "-smp",
                &cpus,
                "-m",
                &memory,
            ])
            .arguments(&[
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-serial",
                &chardev,
            ])
            .option("-kernel", kernel)
            .option("-initrd", initrd)
            .arguments(&["-append", COMMAND_LINE])
    }

    /// Adds arguments of QEMU.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(OsString::from));
        self
    }

    fn option(mut self, name: &str, value: &Path) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// The file that the guest's serial port writes.
    pub fn serial(&self) -> &Path {
        &self.serial
    }

    /// Starts it.
    pub fn start(&self) -> Result<Running, process::Error> {
        let start = |source| process::Error::Start { name: PROGRAM.to_owned(), source };
        let log = fs::File::create(&self.log).map_err(start)?;
        let mut qemu = command(PROGRAM);
        qemu.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Running::start(PROGRAM, &mut qemu)
    }

    /// The ends of what QEMU and the guest said, for an error message.
    pub fn last_words(&self) -> String {
        let read = |path| fs::read(path).unwrap_or_default();
        let (log, serial) = (read(&self.log), read(&self.serial));
        format!("{}\n{}", process::last_lines(&log, 5), process::last_lines(&serial, 20)).trim().to_owned()
    }
}
