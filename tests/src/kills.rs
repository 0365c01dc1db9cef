//! A Linux guest that checks its own I/O while a test on the host kills what serves it.
//!
//! In: the devices that the guest has. Out: a script for it ([`script`]), and on the host a [`Watch`] that sees it work and
//! ends it. Each *lane* of the script repeats a round for itself until told to stop: a disk lane writes a pattern that no
//! round before had, past its cache, flushes, reads it back and compares; an entropy lane reads a length and counts. A
//! round that is over is told by its number in a sector of the disk, which the host reads from the image. The host
//! stops the lanes by another sector. What goes wrong is said as a line that begins with `BAD`, and by the guest's
//! kernel log from warnings up, except that of a timer interrupt that took long: an emulated processor is slow.
//!
//! ```text
//! image   0          "stop" from the host
//!         4096 * n   number of the last round of lane n (1..)
//!         1 MiB * n  eight places of 64 KiB that disk lane n writes in turn
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use crate::wait;

/// Size of the image: a mebibyte of heads and one for each of three lanes.
pub const DISK_BYTES: u64 = 4 << 20;
/// Where a lane tells its rounds.
const HEAD_BYTES: u64 = 4096;

/// What a lane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Writes, flushes, reads back, compares.
    Disk,
    /// Reads /dev/hwrng.
    Entropy,
}

impl Lane {
    fn round(self) -> &'static str {
        match self {
            Lane::Disk => {
                "yes $word lane $1 round $n | head -c 65536 >/tmp/wrote$1
                dd if=/tmp/wrote$1 of=/dev/vda bs=64k seek=$(($1 * 16 + n % 8)) oflag=direct conv=notrunc,fsync 2>/dev/null \
                    || echo BAD write of lane $1 round $n
                dd if=/dev/vda bs=64k skip=$(($1 * 16 + n % 8)) count=1 iflag=direct 2>/dev/null | cmp -s - /tmp/wrote$1 \
                    || echo BAD content of lane $1 round $n"
            }
            Lane::Entropy => {
                "[ $(dd if=/dev/hwrng bs=512 count=1 iflag=fullblock 2>/dev/null | wc -c) = 512 ] \
                    || echo BAD entropy of round $n"
            }
        }
    }
}

/// What the guest runs: all lanes at once, until the host says stop. `word` was never written to the disk before.
pub fn script(lanes: &[Lane], word: &str) -> String {
    let starts: Vec<String> = lanes.iter().zip(1..).map(|(lane, n)| start(*lane, n)).collect();
    format!(
        "word={word}
        stopped() {{ dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | grep -q stop; }}
        tell() {{ printf %-512s $2 | dd of=/dev/vda bs=512 seek=$(($1 * 8)) oflag=direct conv=notrunc 2>/dev/null \
            || echo BAD telling of lane $1; }}
        dmesg -c >/dev/null
        {}
        wait
        dmesg -r | grep '^<[0-4]>' | grep -v 'hrtimer: interrupt took' | sed 's/^/BAD kernel: /'
        echo all lanes stopped",
        starts.join("\n")
    )
}

fn start(lane: Lane, number: u64) -> String {
    format!(
        "lane{number}() {{
            n=0
            while ! stopped; do n=$((n + 1))
                {}
                tell $1 $n
            done
            echo lane $1 stopped after $n
        }}
        lane{number} {number} &",
        lane.round()
    )
}

/// The host's eyes on the image of such a guest.
#[derive(Debug)]
pub struct Watch {
    image: File,
    path: PathBuf,
    changes: std::os::fd::OwnedFd,
}

impl Watch {
    /// Makes an empty image at `path` and watches it.
    ///
    /// # Errors
    /// The host's.
    pub fn create(path: &Path) -> io::Result<Watch> {
        let image = File::options().read(true).write(true).create_new(true).open(path)?;
        image.set_len(DISK_BYTES)?;
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
        Ok(Watch { image, path: path.into(), changes })
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rounds of lane `number` (1..) that are over.
    ///
    /// # Panics
    /// The image cannot be read.
    pub fn rounds(&self, number: u64) -> u64 {
        let mut sector = [0; 512];
        let read = self.image.read_exact_at(&mut sector, number * HEAD_BYTES);
        read.unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        let text = String::from_utf8_lossy(&sector);
        text.trim_matches(['\0', ' ']).parse().unwrap_or(0)
    }

    /// Waits until every one of `lanes` lanes has had `more` rounds from now on. A slow host takes its time: each of those
    /// rounds may take as long as `patience`.
    ///
    /// # Errors
    /// One took longer: where all lanes stand then.
    pub fn wait_for(&self, lanes: u64, more: u64, patience: Duration) -> Result<(), String> {
        let goals: Vec<(u64, u64)> = (1..=lanes).map(|lane| (lane, self.rounds(lane) + more)).collect();
        let missing =
            || goals.iter().map(|(lane, goal)| goal.saturating_sub(self.rounds(*lane))).sum::<u64>();
        let (mut last, mut until) = (missing(), Instant::now() + patience);
        while last > 0 {
            if !wait::one_readable(&self.changes, until) {
                return Err(self.standing(&goals, patience));
            }
            // All that came so far: what it was is seen in the image.
            while rustix::io::read(&self.changes, &mut [0; 4096]).is_ok() {}
            let now = missing();
            if now < last {
                (last, until) = (now, Instant::now() + patience);
            } else if Instant::now() >= until {
                return Err(self.standing(&goals, patience));
            }
        }
        Ok(())
    }

    fn standing(&self, goals: &[(u64, u64)], patience: Duration) -> String {
        let of =
            |(lane, goal): &(u64, u64)| format!("lane {lane} stands at {} of {goal}", self.rounds(*lane));
        let lanes: Vec<_> = goals.iter().map(of).collect();
        format!("{}; no round of those was over for {patience:?}", lanes.join(", "))
    }

    /// Tells the guest to stop its lanes.
    ///
    /// # Errors
    /// The host's.
    pub fn stop(&self) -> io::Result<()> {
        self.image.write_all_at(b"stop", 0)
    }
}

/// What the guest said must be all lanes' ends and nothing bad, and each must have worked.
///
/// # Panics
/// It is not.
pub fn assert_good(said: &str, lanes: usize) {
    let lines: Vec<&str> = said.lines().collect();
    assert!(!lines.iter().any(|line| line.contains("BAD")), "{said}");
    assert_eq!(lines.iter().filter(|line| line.contains(" stopped after ")).count(), lanes, "{said}");
    assert!(lines.contains(&"all lanes stopped"), "{said}");
}
