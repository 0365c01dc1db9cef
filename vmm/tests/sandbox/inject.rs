//! A thread of another process is made to call the kernel, as code would that somebody smuggled in.
//!
//! In: a thread that waits in a call, another call. Out: what the kernel answered, or that the process is no more. It is
//! done by ptrace(2), so nothing in the program is there for it.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel answered: a value, or an error number below zero.
    Answered(i64),
    /// The process was ended by this signal.
    Ended(i32),
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Number(i64),
    Text(&'a str),
}

/// Where in the stack of a thread texts are put: far below what it uses.
const BELOW: u64 = 16 << 10;

/// Has thread `tid` of `pid` make the call `number`.
pub fn call(pid: u32, tid: i32, number: i64, args: &[Arg<'_>]) -> Outcome {
    trace(libc::PTRACE_ATTACH, tid, 0);
    wait(tid);
    let mut registers = get(tid);
    assert!(registers.orig_rax < 1 << 32, "thread {tid} waits in no call");
    let mut values = [0; 6];
    for (at, (arg, value)) in args.iter().zip(&mut values).enumerate() {
        *value = match arg {
            Arg::Number(number) => number.cast_unsigned(),
            Arg::Text(text) => put(pid, registers.rsp - BELOW + 256 * at as u64, text),
        };
    }
    registers.rip -= 2;
    registers.rax = number.cast_unsigned();
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = values;
    trace(libc::PTRACE_SETREGS, tid, (&raw const registers).expose_provenance());
    trace(libc::PTRACE_SINGLESTEP, tid, 0);
    match wait(tid) {
        status if libc::WIFSTOPPED(status) => {
            let answer = get(tid).rax.cast_signed();
            trace(libc::PTRACE_DETACH, tid, 0);
            Outcome::Answered(answer)
        }
        status => Outcome::Ended(libc::WTERMSIG(status)),
    }
}

/// Puts a text with a zero behind it into a process.
fn put(pid: u32, at: u64, text: &str) -> u64 {
    let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).unwrap();
    memory.write_all_at(format!("{text}\0").as_bytes(), at).unwrap();
    at
}

fn get(tid: i32) -> libc::user_regs_struct {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
    trace(libc::PTRACE_GETREGS, tid, registers.as_mut_ptr().expose_provenance());
    // SAFETY: the call before succeeded, and fills all of it.
    unsafe { registers.assume_init() }
}

fn trace(request: libc::c_uint, tid: i32, data: usize) {
    // SAFETY: the requests used here read or write at most one set of registers of this process, which `data` points to.
    let done = unsafe { libc::ptrace(request, tid, 0usize, data) };
    assert_eq!(done, 0, "ptrace {request}: {}", std::io::Error::last_os_error());
}

fn wait(tid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is written to a number that outlives the call.
    let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
    assert_eq!(waited, tid, "{}", std::io::Error::last_os_error());
    status
}
