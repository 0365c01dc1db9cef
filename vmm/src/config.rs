//! `outboard run`: from options and a configuration file to a validated [`Plan`].
//!
//! The same options stand on the command line and in a TOML file ([`backends::config`]), where the devices of both are
//! joined. Everything that can be refused without touching the host is refused here, with the option, its value and
//! the cure; what leaves here names files that may still be missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use backends::log;
use backends::sandbox;
use clap::Args;

use crate::memory::{self, MemoryError};
use crate::pci::ecam::SLOTS;
use crate::serial::SerialMode;
use crate::vhost::{DeviceSpec, give_names};

/// Most CPUs of a machine: APIC ids of 8 bits, less the broadcast address and one for the I/O APIC.
pub const MAX_CPUS: u8 = 254;
/// Most devices: the slots of the PCI bus but the host bridge's.
pub const MAX_DEVICES: usize = SLOTS as usize - 1;

/// Options of `outboard run`, as given.
#[derive(Debug, Default, Args)]
pub struct RunOptions {
    /// Take options from this TOML file too; its keys are their names, and the command line wins
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say whether the options are good, and what they name can be used, without a machine; exit 0, or as a start would
    #[arg(long)]
    check: bool,
    /// The kernel: an ELF with a PVH entry point (vmlinux), or a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Guest RAM in bytes, or with K, M, G or T behind the number (powers of 1024)
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// A device of the guest, served by the daemon on that socket; may be repeated. `queues` counts virtqueues; without
    /// it the daemon's answer decides
    #[arg(long = "device", value_name = "TYPE,socket=PATH[,id=NAME][,queues=N][,queue-size=N]")]
    device: Vec<String>,
    /// The serial line (COM1): stdio, off, or file=PATH [default: stdio]
    #[arg(long, value_name = "WHERE")]
    serial: Option<String>,
    /// Listen on this unix socket for `outboard ctl` and other tools (HTTP and JSON)
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    api_socket: Option<PathBuf>,
    /// When the guest resets: reboot it, or exit [default: reboot]
    #[arg(long, value_name = "ACTION")]
    on_reset: Option<OnReset>,
    /// Write when things happened, and how many KVM exits and wake-ups there were, as JSON lines. Of the marks
    /// that the guest leaves (writes to port 0x80) the first 1,000 are kept
    #[arg(long, value_name = "FILE")]
    timings: Option<PathBuf>,
    /// Confine the VMM to what it needs; log: let it do the rest too, and have the kernel log that
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    sandbox: sandbox::Mode,
    /// How and where to log
    #[command(flatten)]
    pub log: log::LogOptions,
}

/// What a reset by the guest leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReset {
    /// The machine starts again.
    #[default]
    Reboot,
    /// The VMM ends as if the guest had switched off.
    Exit,
}

/// Why options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nothing to run.
    #[error("--kernel is missing: give a kernel, --kernel vmlinux or --kernel bzImage")]
    NoKernel,
    /// How much?
    #[error("--memory is missing: give the size of guest RAM, for example --memory 512M")]
    NoMemory,
    /// Not a size.
    #[error(
        "--memory {0}: not a size; give a number of bytes, or a number with K, M, G or T, for example 512M"
    )]
    BadSize(String),
    /// A size no machine can have.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// None, or more than APIC ids.
    #[error("--cpus {0}: give a number from 1 to {MAX_CPUS}")]
    Cpus(u8),
    /// Not a serial mode.
    #[error("--serial {value}: {cure}")]
    Serial {
        /// As given.
        value: String,
        /// What can be given.
        cure: String,
    },
    /// A NUL would end it early.
    #[error("--cmdline: holds a NUL character; leave it out")]
    NulInCmdline,
    /// Not a device.
    #[error("--device {value}: {cause}")]
    Device {
        /// As given.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The same name or socket twice.
    #[error("--device {value}: {what} is already used by --device {first}; {cure}")]
    Twice {
        /// The second device, as given.
        value: String,
        /// The first, as given.
        first: String,
        /// Name or socket.
        what: String,
        /// What to do.
        cure: &'static str,
    },
    /// The bus is full.
    #[error("--device: {0} devices, a machine takes at most {MAX_DEVICES}")]
    TooManyDevices(usize),
}

/// A machine that could be built.
#[derive(Debug)]
pub struct Plan {
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initramfs file.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest RAM, a multiple of the page size.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Devices in the order of their PCI slots; no id and no socket stands here twice.
    pub devices: Vec<DeviceSpec>,
    /// Where COM1 leads.
    pub serial: SerialMode,
    /// Where the API listens.
    pub api_socket: Option<PathBuf>,
    /// What a reset leads to.
    pub on_reset: OnReset,
    /// Whether the VMM is confined.
    pub sandbox: sandbox::Mode,
    /// Where events are written.
    pub timings: Option<PathBuf>,
}

impl RunOptions {
    /// Whether the operator wants to know only whether these can be used.
    pub fn is_check(&self) -> bool {
        self.check
    }

    /// The file that some of these came from.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Validates everything.
    pub fn into_plan(self) -> Result<Plan, ConfigError> {
        let kernel = self.kernel.ok_or(ConfigError::NoKernel)?;
        let memory_bytes = parse_size(&self.memory.ok_or(ConfigError::NoMemory)?)?;
        memory::check_size(memory_bytes)?;
        let cpus = self.cpus.unwrap_or(1);
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(ConfigError::Cpus(cpus));
        }
        let cmdline = self.cmdline.unwrap_or_default();
        if cmdline.contains('\0') {
            return Err(ConfigError::NulInCmdline);
        }
        Ok(Plan {
            kernel,
            initrd: self.initrd,
            cmdline,
            memory_bytes,
            cpus,
            devices: parse_devices(&self.device)?,
            serial: parse_serial(self.serial.as_deref())?,
            api_socket: self.api_socket,
            on_reset: self.on_reset.unwrap_or_default(),
            sandbox: self.sandbox,
            timings: self.timings,
        })
    }
}

/// A number of bytes, or a number with K, M, G or T behind it.
fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let bad = || ConfigError::BadSize(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(bad()),
    };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(bad)
}

fn parse_serial(text: Option<&str>) -> Result<SerialMode, ConfigError> {
    let Some(text) = text else { return Ok(SerialMode::Stdio) };
    text.parse().map_err(|cure| ConfigError::Serial { value: text.to_owned(), cure })
}

fn parse_devices(texts: &[String]) -> Result<Vec<DeviceSpec>, ConfigError> {
    if texts.len() > MAX_DEVICES {
        return Err(ConfigError::TooManyDevices(texts.len()));
    }
    let mut devices = Vec::with_capacity(texts.len());
    let mut seen = BTreeMap::new();
    for text in texts {
        let device = DeviceSpec::from_str(text)
            .map_err(|cause| ConfigError::Device { value: text.clone(), cause: cause.to_string() })?;
        let id = (format!("the name {}", device.id), "give it another one with id=NAME");
        let socket =
            (format!("the socket {}", device.socket.display()), "start a second daemon on another socket");
        let given = [id, socket].into_iter().skip(usize::from(device.id.is_empty()));
        for (what, cure) in given {
            if let Some(first) = seen.insert(what.clone(), text.clone()) {
                return Err(ConfigError::Twice { value: text.clone(), first, what, cure });
            }
        }
        devices.push(device);
    }
    give_names(&mut devices);
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(device: &[&str]) -> RunOptions {
        RunOptions {
            kernel: Some("k".into()),
            memory: Some("64M".to_owned()),
            device: device.iter().map(|text| (*text).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn sizes_have_binary_units_or_none() {
        for (text, bytes) in
            [("4096", 4096), ("64K", 64 << 10), ("3m", 3 << 20), ("2G", 2 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "1.5G", "-1", "1 G", "64MB", "99999999999T"] {
            assert!(matches!(parse_size(text), Err(ConfigError::BadSize(_))), "{text}");
        }
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let plan = options(&[]).into_plan().unwrap();
        assert_eq!((plan.cpus, plan.serial, plan.on_reset), (1, SerialMode::Stdio, OnReset::Reboot));
        assert_eq!((plan.memory_bytes, plan.cmdline.as_str()), (64 << 20, ""));
    }

    #[test]
    fn names_and_sockets_are_used_once() {
        let twice =
            options(&["rng,socket=/a,id=x", "blk,socket=/b,id=x"]).into_plan().unwrap_err().to_string();
        assert_eq!(
            twice,
            "--device blk,socket=/b,id=x: the name x is already used by --device rng,socket=/a,id=x; \
             give it another one with id=NAME"
        );
        let socket = options(&["rng,socket=/a,id=x", "blk,socket=/a,id=y"]).into_plan().unwrap_err();
        assert!(matches!(socket, ConfigError::Twice { .. }));
    }

    #[test]
    fn no_more_devices_than_slots() {
        let texts: Vec<String> = (0..32).map(|i| format!("rng,socket=/{i},id=n{i}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(options(&texts[..31]).into_plan().unwrap().devices.len(), 31);
        assert!(matches!(options(&texts).into_plan(), Err(ConfigError::TooManyDevices(32))));
    }

    #[test]
    fn cpus_and_command_lines_that_cannot_be() {
        for cpus in [0, 255] {
            let result = RunOptions { cpus: Some(cpus), ..options(&[]) }.into_plan();
            assert!(matches!(result, Err(ConfigError::Cpus(n)) if n == cpus));
        }
        let nul = RunOptions { cmdline: Some("a\0b".to_owned()), ..options(&[]) };
        assert!(matches!(nul.into_plan(), Err(ConfigError::NulInCmdline)));
    }
}
