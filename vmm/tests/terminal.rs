//! The operator's terminal: raw while the guest runs, as it was after every kind of end.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, tcgetattr};
use tests::metal;

const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A guest that idles with a terminal as its keyboard.
struct Session {
    keyboard: File,
    terminal: OwnedFd,
    child: Child,
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Session {
    /// Starts the guest and waits until it says that it idles.
    fn start() -> Session {
        let keyboard =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&keyboard).unwrap();
        rustix::pty::unlockpt(&keyboard).unwrap();
        let name = rustix::pty::ptsname(&keyboard, Vec::new()).unwrap();
        let terminal =
            File::options().read(true).write(true).open(Path::new(name.to_str().unwrap())).unwrap();
        assert!(is_cooked(&terminal));
        let mut child = Command::new(env!("CARGO_BIN_EXE_outboard"))
            .args(["run", "--memory", "64M", "--cmdline", "metal=idle", "--kernel"])
            .arg(metal::image().unwrap())
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"metal: idle\n") {
            let mut byte = [0];
            assert_eq!(
                std::io::Read::read(&mut said, &mut byte).unwrap(),
                1,
                "the guest said {text:?} and ended"
            );
            text.push(byte[0]);
        }
        Session { keyboard: keyboard.into(), terminal: terminal.into(), child }
    }

    /// How the VMM ended, which it does in time.
    fn ended(&mut self) -> ExitStatus {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)).unwrap();
        assert_eq!(ended, 1, "the VMM does not end");
        self.child.wait().unwrap()
    }
}

fn is_cooked(terminal: impl std::os::fd::AsFd) -> bool {
    let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    tcgetattr(terminal).unwrap().local_modes.contains(cooked)
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut session = Session::start();
        assert!(!is_cooked(&session.terminal), "keys go to the guest while it runs");
        kill_process(Pid::from_child(&session.child), signal).unwrap();
        assert_eq!(session.ended().code(), Some(0), "{signal:?}");
        assert!(is_cooked(&session.terminal), "{signal:?}");
    }
}

#[test]
fn control_a_x_ends_the_machine_and_control_c_goes_to_the_guest() {
    let mut session = Session::start();
    session.keyboard.write_all(b"\x03\x01\x01\x01x").unwrap();
    assert_eq!(session.ended().code(), Some(0));
    assert!(is_cooked(&session.terminal));
}
