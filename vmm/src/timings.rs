//! `--timings FILE`: what happened when, and how often the machine came back to user space until then.
//!
//! Each event is one JSON line, written when it happens, so that the file tells the story of a run that never
//! ended. Until there is a file (a start that is refused leaves none behind) the lines wait. The two counters are the evidence for the data path: between two marks of a guest that made 100,000
//! device requests neither may move. They count always (two relaxed atomics); the file exists only when asked for.
//!
//! A guest decides how often it leaves a mark and how often it starts again. Of either the first [`KEPT`] are
//! written and no more, so that it cannot fill the host's disk.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use backends::log::{self, Class};
use serde::Serialize;

/// Lines that a guest can cause, of each kind. As --help says.
pub const KEPT: u64 = 1_000;

/// What a line of the file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The options are understood. Time zero is the start of `main`.
    Main,
    /// The VM exists, with its interrupt controllers.
    KvmReady,
    /// Guest RAM exists and is mapped.
    Memory,
    /// Kernel, initramfs, command line and ACPI tables are in guest RAM.
    KernelLoaded,
    /// Every device answered and has its slot.
    Devices,
    /// The boot CPU is about to execute its first instruction.
    FirstEntry,
    /// The guest wrote a byte to port 0x80.
    Mark,
    /// The guest switched itself off.
    PowerOff,
    /// The VMM ends.
    Exit,
}

#[derive(Serialize)]
struct Line {
    event: Event,
    us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<u8>,
    kvm_exits: u64,
    epoll_returns: u64,
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// They wait: the machine is still being built.
    Early(Mutex<Vec<u8>>),
    File(File),
    Nowhere,
}

/// Counters, and the file if there is one.
#[derive(Debug)]
pub struct Timings {
    start: Instant,
    sink: Sink,
    kvm_exits: AtomicU64,
    epoll_returns: AtomicU64,
    marks: AtomicU64,
    entries: AtomicU64,
}

impl Timings {
    /// Starts the clock at `start`. Lines are kept until [`Timings::settled`].
    pub fn new(start: Instant) -> Timings {
        Timings {
            start,
            sink: Sink::Early(Mutex::default()),
            kvm_exits: AtomicU64::new(0),
            epoll_returns: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    /// From now on lines go to `file`, those that were kept first; without one they go nowhere.
    pub fn settled(mut self, file: Option<File>) -> Timings {
        let sink = file.map_or(Sink::Nowhere, Sink::File);
        if let Sink::Early(lines) = std::mem::replace(&mut self.sink, sink) {
            self.write(&lines.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        self
    }

    /// When the clock was started: with the process.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// A vCPU came back from `KVM_RUN`.
    pub fn kvm_exit(&self) {
        self.kvm_exits.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was.
    pub fn kvm_exits(&self) -> u64 {
        self.kvm_exits.load(Ordering::Relaxed)
    }

    /// How often the main loop woke up.
    pub fn epoll_returns(&self) -> u64 {
        self.epoll_returns.load(Ordering::Relaxed)
    }

    /// The main loop woke up.
    pub fn epoll_return(&self) {
        self.epoll_returns.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the line of an event that has just happened.
    pub fn event(&self, event: Event) {
        self.line(event, None);
    }

    /// Writes the line of a byte that the guest wrote to port 0x80.
    pub fn mark(&self, value: u8) {
        self.line(Event::Mark, Some(value));
    }

    fn line(&self, event: Event, value: Option<u8>) {
        if matches!(self.sink, Sink::Nowhere) || !self.has_room(event) {
            return;
        }
        let line = Line {
            event,
            us: u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX),
            value,
            kvm_exits: self.kvm_exits(),
            epoll_returns: self.epoll_returns(),
        };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        self.write(&text);
    }

    /// One `write` a line, so that lines of several threads do not mix. A full disk loses lines, not the guest.
    fn write(&self, text: &[u8]) {
        match &self.sink {
            Sink::Early(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(text);
            }
            Sink::File(file) => {
                let mut file = file;
                if let Err(error) = file.write_all(text) {
                    log::line!(warn, Class::TimingsLost, %error, "--timings: a line was lost");
                }
            }
            Sink::Nowhere => {}
        }
    }

    /// Counts an event that a guest can repeat, and says whether it is among the first.
    fn has_room(&self, event: Event) -> bool {
        let written = match event {
            Event::Mark => &self.marks,
            Event::FirstEntry => &self.entries,
            _ => return true,
        };
        written.fetch_add(1, Ordering::Relaxed) < KEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_event_value_and_counters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let timings = Timings::new(Instant::now());
        timings.event(Event::Main);
        assert!(!path.exists());
        let timings = timings.settled(Some(File::create(&path).unwrap()));
        timings.kvm_exit();
        timings.epoll_return();
        timings.epoll_return();
        timings.mark(7);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["event"], "main");
        assert_eq!(lines[0].get("value"), None);
        assert_eq!(lines[1]["event"], "mark");
        assert_eq!(lines[1]["value"], 7);
        assert_eq!(lines[1]["kvm_exits"], 1);
        assert_eq!(lines[1]["epoll_returns"], 2);
    }

    #[test]
    fn a_guest_cannot_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        let timings = Timings::new(Instant::now()).settled(Some(File::create(&path).unwrap()));
        for _ in 0..KEPT + 10 {
            timings.mark(1);
            timings.event(Event::FirstEntry);
        }
        timings.event(Event::Exit);
        let text = std::fs::read_to_string(&path).unwrap();
        for event in ["mark", "first_entry"] {
            assert_eq!(text.matches(&format!("\"event\":\"{event}\"")).count(), 1_000, "{event}");
        }
        assert!(text.lines().last().unwrap().contains("\"exit\""), "the VMM's own events are never left out");
    }
}
