//! Gives an empty file its size and its room.
//!
//! Room is taken by fallocate(2), as posix_fallocate(3) does it, in large pieces: between two of them a signal is heard
//! and the bar is moved. Zeros are written after that, over room that is there already: a disk that is too small shows
//! before the long part begins. They are made durable every now and then, so that the bar tells of the disk, not of
//! memory.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Preallocation, Problem};

/// Room that is taken at once.
const KEEP_BYTES: u64 = 1 << 30;
/// Zeros that are written at once.
const WRITE_BYTES: u64 = 4 << 20;
/// Zeros that are made durable at once.
const SYNC_BYTES: u64 = 64 << 20;

/// Whether a signal has asked to end.
#[derive(Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// SIGINT and SIGTERM ask so from now on.
    pub(super) fn on_signals() -> io::Result<Stop> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        if self.0.load(Ordering::Relaxed) { Err(Problem::Signal) } else { Ok(()) }
    }
}

/// Makes an empty file one of `bytes` zeros.
pub(super) fn fill(file: &File, bytes: u64, how: Preallocation, stop: &Stop) -> Result<(), Problem> {
    let sized = match how {
        Preallocation::Off => file.set_len(bytes).map_err(|cause| problem(cause, bytes)),
        Preallocation::Falloc => keep(file, bytes, stop),
        Preallocation::Full => match keep(file, bytes, stop) {
            Ok(()) | Err(Problem::CannotKeep) => write(file, bytes, stop),
            refused => refused,
        },
    };
    sized.and_then(|()| stop.check())
}

/// What the host's refusal means.
pub(super) fn problem(cause: io::Error, bytes: u64) -> Problem {
    match Errno::from_io_error(&cause) {
        Some(Errno::NOSPC | Errno::DQUOT) => Problem::Full(bytes),
        Some(Errno::FBIG) => Problem::TooLong(bytes),
        Some(Errno::OPNOTSUPP | Errno::NOSYS) => Problem::CannotKeep,
        _ => Problem::Write(cause),
    }
}

fn keep(file: &File, bytes: u64, stop: &Stop) -> Result<(), Problem> {
    for (offset, length) in pieces(bytes, KEEP_BYTES) {
        loop {
            stop.check()?;
            match fallocate(file, FallocateFlags::empty(), offset, length) {
                Err(Errno::INTR) => {}
                kept => break kept.map_err(|errno| problem(errno.into(), bytes))?,
            }
        }
    }
    Ok(())
}

fn write(mut file: &File, bytes: u64, stop: &Stop) -> Result<(), Problem> {
    let zeros = vec![0; usize::try_from(WRITE_BYTES).unwrap_or(0)];
    let bar = bar(bytes);
    for (offset, length) in pieces(bytes, WRITE_BYTES) {
        stop.check()?;
        let piece = zeros.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        file.write_all(piece).map_err(|cause| problem(cause, bytes))?;
        bar.inc(length);
        if (offset.saturating_add(length)).is_multiple_of(SYNC_BYTES) {
            file.sync_data().map_err(|cause| problem(cause, bytes))?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// On a terminal; elsewhere it draws nothing.
fn bar(bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// Offsets and lengths.
fn pieces(bytes: u64, of: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = std::iter::successors(Some(0), move |start: &u64| start.checked_add(of));
    let starts = starts.take_while(move |start| *start < bytes);
    starts.map(move |start| (start, of.min(bytes.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_of_it() {
        assert_eq!(pieces(10, 4).collect::<Vec<_>>(), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(pieces(8, 4).collect::<Vec<_>>(), [(0, 4), (4, 4)]);
        assert_eq!(pieces(u64::MAX, 1 << 63).count(), 2);
    }

    #[test]
    fn a_signal_ends_each_way() {
        for how in [Preallocation::Off, Preallocation::Falloc, Preallocation::Full] {
            let file = tempfile::tempfile().unwrap();
            let stop = Stop::default();
            stop.0.store(true, Ordering::Relaxed);
            assert!(matches!(fill(&file, 1 << 20, how, &stop), Err(Problem::Signal)), "{how:?}");
        }
    }

    #[test]
    fn each_way_gives_the_size_and_zeros() {
        for how in [Preallocation::Off, Preallocation::Falloc, Preallocation::Full] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let bytes = WRITE_BYTES + 512;
            fill(file.as_file(), bytes, how, &Stop::default()).unwrap();
            let read = std::fs::read(file.path()).unwrap();
            assert!(read.len() as u64 == bytes && read.iter().all(|byte| *byte == 0), "{how:?}");
        }
    }
}
