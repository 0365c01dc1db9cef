//! `confined PART[,PART]... CALL [ARGUMENT]...`: takes on these parts of every daemon's policy, and no path; makes one
//! system call, and ends with its error number, or 0. What is forbidden ends it by SIGSYS. `read-file PATH` as the call
//! reads a file.

use std::process::ExitCode;
use std::str::FromStr;

use backends::sandbox::{COMMON, Filter, Mode, Plan};
use syscalls::Sysno;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let parts: Vec<&str> = words[0].split(',').collect();
    let call = Sysno::from_str(&words[1]).ok();
    let mut args = [0; 6];
    let numbers = words.iter().skip(2).filter(|_| call.is_some());
    args.iter_mut().zip(numbers).for_each(|(arg, word)| *arg = number(word));
    let filter = Filter::new(&COMMON, &parts, Mode::On).unwrap_or_else(|e| panic!("{e}"));
    let plan = Plan { filter, ..Plan::default() };
    plan.enforce().unwrap_or_else(|e| panic!("{e}"));
    ExitCode::from(match call {
        Some(call) => of(call, args),
        None => code(std::fs::read(&words[2]).map(drop)),
    })
}

/// `self` is the number of this process.
fn number(word: &str) -> i64 {
    if word == "self" {
        std::process::id().into()
    } else {
        word.parse().unwrap_or_else(|e| panic!("{word}: {e}"))
    }
}

fn of(call: Sysno, [a, b, c, d, e, f]: [i64; 6]) -> u8 {
    // SAFETY: arguments are small numbers, no addresses of this process: whatever the call is, it touches no memory here
    // that is used again.
    let result = unsafe { libc::syscall(i64::from(call.id()), a, b, c, d, e, f) };
    code(if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) })
}

/// The error number, or 0.
fn code(result: std::io::Result<()>) -> u8 {
    let error = result.err().map_or(Some(0), |error| error.raw_os_error());
    error.and_then(|errno| u8::try_from(errno).ok()).unwrap_or(u8::MAX)
}
