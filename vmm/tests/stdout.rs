//! Nobody reads what the guest says: it waits for that, the operator does not.
#![allow(clippy::unwrap_used)]

mod raw;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tests::wait;

/// Leaves a mark and writes to COM1 for ever.
#[rustfmt::skip]
const CHATTERBOX: [u8; 9] = [
    0xE6, 0x80,             // out 0x80, al
    0x66, 0xBA, 0xF8, 0x03, // mov dx, COM1
    0xEE,                   // out dx, al
    0xEB, 0xFD,             // jmp to the out
];

/// Leaves a mark, has the second CPU write to COM1 for ever, and resets the machine.
#[rustfmt::skip]
const IMPATIENT: [u8; 77] = [
    0xE6, 0x80,                                                 // out 0x80, al
    0xC7, 0x05, 0x00, 0x80, 0x00, 0x00, 0xC6, 0x06, 0x00, 0x70, // at 0x8000: mov byte [0x7000], 1
    0xC7, 0x05, 0x04, 0x80, 0x00, 0x00, 0x01, 0xBA, 0xF8, 0x03, //            mov dx, COM1
    0xC7, 0x05, 0x08, 0x80, 0x00, 0x00, 0xEE, 0xEB, 0xFD, 0x90, //            out dx, al; jmp to it
    0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, 0x00, 0x45, 0x0C, 0x00, // INIT to all other CPUs
    0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, 0x08, 0x46, 0x0C, 0x00, // start-up at 0x8000
    0x80, 0x3D, 0x00, 0x70, 0x00, 0x00, 0x01,                   // cmp byte [0x7000], 1
    0x75, 0xF7,                                                 // jne to the cmp
    0xB9, 0x00, 0x00, 0x01, 0x00,                               // mov ecx, 0x10000
    0xE2, 0xFE,                                                 // loop to itself
    0x66, 0xBA, 0x02, 0x06,                                     // mov dx, RESET
    0xB0, 0x01,                                                 // mov al, 1
    0xEE,                                                       // out dx, al
    0xEB, 0xFE,                                                 // jmp to itself
];

/// A VMM whose standard output is a pipe without room, and whose timings come on its standard error.
struct Session {
    _unread: File,
    child: Child,
    keyboard: ChildStdin,
    timings: ChildStderr,
    _dir: tempfile::TempDir,
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Session {
    fn start(code: &[u8]) -> Session {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, raw::kernel(code)).unwrap();
        let (unread, stdout) = full_pipe();
        let mut child = Command::new(env!("CARGO_BIN_EXE_outboard"))
            .args(["run", "--memory", "2M", "--cpus", "2", "--timings", "/dev/stderr", "--kernel"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (keyboard, timings) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
        Session { _unread: unread, child, keyboard, timings, _dir: dir }
    }

    /// Waits for the guest's next mark.
    fn wait_for_mark(&mut self) {
        let mut line = String::new();
        while !(line.ends_with('\n') && line.contains("\"mark\"")) {
            if line.ends_with('\n') {
                line.clear();
            }
            assert!(wait::one_readable(&self.timings, wait::deadline()), "no mark");
            let mut byte = [0];
            self.timings.read_exact(&mut byte).unwrap();
            line.push(byte[0].into());
        }
    }

    /// Asks it to end, which it does in time.
    fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        assert!(wait::one_readable(&pidfd, wait::deadline()), "the VMM does not end");
        self.child.wait().unwrap()
    }
}

fn full_pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    rustix::io::write(&writer, &vec![b'.'; room]).unwrap();
    (reader.into(), writer)
}

#[test]
fn a_signal_ends_a_machine_that_nobody_listens_to() {
    let mut session = Session::start(&CHATTERBOX);
    session.wait_for_mark();
    session.keyboard.write_all(b"hello").unwrap();
    assert_eq!(session.terminate().code(), Some(0));
}

#[test]
fn a_machine_that_nobody_listens_to_can_reboot() {
    let mut session = Session::start(&IMPATIENT);
    for _ in 0..3 {
        session.wait_for_mark();
    }
    assert_eq!(session.terminate().code(), Some(0));
}
