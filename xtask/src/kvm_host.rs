//! Where a command finds a KVM that runs Linux: on this host, or on the emulated one.
//!
//! This host is asked first, by `outboard check`: a `/dev/kvm` without VMX or SVM behind it is a software
//! implementation, which runs small guests and stops at the first instruction it does not know, long before Linux
//! is up.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use serde::Deserialize;

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

/// What `outboard check --json` says.
#[derive(Debug, Deserialize)]
struct Check {
    guests: String,
    missing: Option<String>,
    problem: Option<String>,
}

impl Check {
    fn obstacle(self) -> Option<String> {
        if self.guests == "linux" {
            return None;
        }
        let stops = self.missing.map(|instruction| format!("it stops at {instruction}"));
        Some(stops.or(self.problem).unwrap_or_else(|| format!("it can run {} guests", self.guests)))
    }
}

/// Why this host's KVM cannot run Linux, if it cannot: as the VMM in `programs` finds out by trying, or, as long as it
/// is not built, by what the processor says of itself.
pub fn obstacle(programs: &Path) -> Option<String> {
    match ask(&programs.join("outboard")) {
        Some(check) => check.obstacle(),
        None => guess(),
    }
}

fn ask(vmm: &Path) -> Option<Check> {
    // It fails when the answer is no, and has then still given it.
    let answer = process::spoken(command(vmm).args(["check", "--json"])).ok()?;
    serde_json::from_str(&answer).ok()
}

fn guess() -> Option<String> {
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
pub fn choose(chosen: Option<Place>, programs: &Path) -> Place {
    if let Some(place) = chosen {
        return place;
    }
    let Some(obstacle) = obstacle(programs) else {
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
    fn the_answer_of_the_vmm_is_understood() {
        let obstacle = |text: &str| serde_json::from_str::<Check>(text).unwrap().obstacle();
        assert_eq!(obstacle(r#"{"guests":"linux"}"#), None);
        let small = r#"{"guests":"small","missing":"SSE","problem":"small guests only"}"#;
        assert_eq!(obstacle(small).as_deref(), Some("it stops at SSE"));
        let none = r#"{"guests":"none","problem":"no guests: no /dev/kvm"}"#;
        assert_eq!(obstacle(none).as_deref(), Some("no guests: no /dev/kvm"));
    }

    #[test]
    fn the_exit_code_is_passed_on() {
        let words = ["sh", "-c", "exit 7"].map(OsString::from);
        assert_eq!(run(Place::Direct, &words, &EmulatedHost::default()).unwrap(), 7);
        let words = ["sh", "-c", "kill -9 $$"].map(OsString::from);
        assert_eq!(run(Place::Direct, &words, &EmulatedHost::default()).unwrap(), 137);
    }
}
