//! Where a command finds a KVM that runs Linux: on this host, or on the emulated one.
//!
//! This host is asked first. Its processor must have VMX or SVM: a `/dev/kvm` without them is a software
//! implementation, which runs small guests and stops at the first instruction it does not know, long before Linux
//! is up.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::emulated::{self, EmulatedHost};
use crate::packages;
use crate::process::{self, Running, command};

/// Where to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Direct,
    /// On the emulated host.
    Emulated,
}

/// Why the command has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Packages are missing.
    #[error(transparent)]
    Packages(#[from] packages::Error),
    /// The emulated host failed.
    #[error(transparent)]
    Emulated(#[from] emulated::Error),
    /// The command could not be started here.
    #[error(transparent)]
    Process(#[from] process::Error),
}

/// Why this host's KVM cannot run Linux, if it cannot.
pub fn obstacle() -> Option<String> {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(match error.kind() {
            io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
            _ => format!("/dev/kvm cannot be opened ({error})"),
        });
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    (!has_virtualisation(&cpuinfo)).then(|| "the processor offers neither VMX nor SVM".to_owned())
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The place to run, when the user has not chosen one: says why when it is not this host.
pub fn choose(chosen: Option<Place>) -> Place {
    if let Some(place) = chosen {
        return place;
    }
    let Some(obstacle) = obstacle() else {
        return Place::Direct;
    };
    eprintln!("This host's KVM cannot run Linux: {obstacle}. Using an emulated host (QEMU).");
    Place::Emulated
}

/// Runs `words` there; gives the exit code (128 and the signal for a command that a signal ended, as a shell does).
pub fn run(place: Place, words: &[OsString], host: &EmulatedHost) -> Result<u8, Error> {
    match place {
        Place::Direct => direct(words, host),
        Place::Emulated => {
            packages::ensure()?;
            Ok(host.run(words)?)
        }
    }
}

fn direct(words: &[OsString], host: &EmulatedHost) -> Result<u8, Error> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(0);
    };
    let name = program.to_string_lossy();
    let mut running = Running::start(&name, command(program).args(arguments))?;
    Ok(exit_code(running.wait(host.limit, || ())?))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_flags_count() {
        assert!(has_virtualisation("flags\t\t: fpu vmx sse\n"));
        assert!(!has_virtualisation("flags\t\t: fpu svm_lock\nvmx flags\t: vnmi\n"));
        assert!(!has_virtualisation(""));
    }

    #[test]
    fn the_exit_code_is_passed_on() {
        let words = ["sh", "-c", "exit 7"].map(OsString::from);
        assert_eq!(run(Place::Direct, &words, &EmulatedHost::default()).unwrap(), 7);
        let words = ["sh", "-c", "kill -9 $$"].map(OsString::from);
        assert_eq!(run(Place::Direct, &words, &EmulatedHost::default()).unwrap(), 137);
    }
}
