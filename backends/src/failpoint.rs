//! Named points at which a test lets this process die, as if by `kill -9` at just that instruction.
//!
//! In: `OUTBOARD_FAILPOINTS="NAME=FILE[,NAME=FILE]..."` in the environment. [`reach`] of a NAME removes its FILE, and
//! whoever succeeds in that kills its own process by SIGKILL. So one file is one death, at a moment the test chooses
//! by making the file; a process that is started again passes the point; a name that is listed with three files is
//! three deaths. FILE is a path without a comma.
//!
//! Names follow the data path:
//!
//! ```text
//! queue.popped           taken from the ring, not marked in flight       ring.element_written   used, not published
//! queue.marked           marked, not handed to the device                ring.published         marks not cleared yet
//! blk.submitted          handed to the engine                            queue.cleared          nobody interrupted yet
//! engine.submitted       io_uring: the kernel has it                     session.message.NAME.before
//! blk.done               the host is done, the answer is not written     session.message.NAME.after   not answered yet
//! rng.filled, console.written, console.read      as blk.done
//! ```
//! Others change something there by [`removed`], and nobody dies: `keeper.mute` has the keeper wait for one answer a second
//! only. A release build has none of this: [`reach`] is empty there.

use std::fmt::Display;

/// Ends the process here if a test asked for it.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_name: impl Display) {}

/// Ends the process here if a test asked for it.
#[cfg(debug_assertions)]
pub fn reach(name: impl Display) {
    let points = asked::points();
    if !points.is_empty() {
        asked::reach(points, &name.to_string());
    }
}

/// Whether a test asked for something else than death here: its file was there, and is gone.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn removed(_name: &str) -> bool {
    false
}

/// Whether a test asked for something else than death here: its file was there, and is gone.
#[cfg(debug_assertions)]
pub fn removed(name: &str) -> bool {
    asked::removed(asked::points(), name)
}

/// What a process may do beside, so that its points work in a sandbox ([`crate::sandbox::policy`]).
#[cfg(not(debug_assertions))]
pub(crate) fn policy() -> &'static str {
    ""
}

/// What a process may do beside, so that its points work in a sandbox ([`crate::sandbox::policy`]).
#[cfg(debug_assertions)]
pub(crate) fn policy() -> &'static str {
    if asked::points().is_empty() { "" } else { asked::POLICY }
}

/// Files whose points work in a sandbox.
#[cfg(not(debug_assertions))]
pub(crate) fn files() -> impl Iterator<Item = &'static std::path::Path> {
    std::iter::empty()
}

/// Files whose points work in a sandbox.
#[cfg(debug_assertions)]
pub(crate) fn files() -> impl Iterator<Item = &'static std::path::Path> {
    asked::points().iter().map(|point| point.file.as_path())
}

#[cfg(debug_assertions)]
mod asked {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    use rustix::process::{Signal, getpid, kill_process};

    pub(super) const POLICY: &str = "
        [data path]
        unlink                      # whoever removes a point's file dies there
        getpid                      # and this is how
        kill if arg0 == SELF        # the same
        [keeper]
        landlock_add_rule           # a worker may remove the files of its points
    ";

    /// A name and the file that stands for one death there.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Point {
        pub(super) name: String,
        pub(super) file: PathBuf,
    }

    /// What the environment asks for.
    pub(super) fn points() -> &'static [Point] {
        static POINTS: OnceLock<Vec<Point>> = OnceLock::new();
        POINTS.get_or_init(|| parse(&std::env::var("OUTBOARD_FAILPOINTS").unwrap_or_default()))
    }

    /// Words without `=` name no file and are passed over.
    pub(super) fn parse(text: &str) -> Vec<Point> {
        let pairs = text.split(',').filter_map(|word| word.trim().split_once('='));
        pairs.map(|(name, file)| Point { name: name.into(), file: file.into() }).collect()
    }

    pub(super) fn removed(points: &[Point], name: &str) -> bool {
        let mut files = points.iter().filter(|point| point.name == name).map(|point| &point.file);
        files.any(|file| std::fs::remove_file(file).is_ok())
    }

    pub(super) fn reach(points: &[Point], name: &str) {
        if removed(points, name) {
            // It cannot fail for oneself, and does not return.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::asked::{Point, parse, reach};

    #[test]
    fn names_and_files_are_told_apart() {
        let point = |name: &str, file: &str| Point { name: name.into(), file: file.into() };
        assert_eq!(
            parse("a.b=/t/1,a.b=/t/2, c=d=e"),
            [point("a.b", "/t/1"), point("a.b", "/t/2"), point("c", "d=e")]
        );
        assert_eq!(parse("").len() + parse("nothing").len(), 0);
    }

    #[test]
    fn without_its_file_a_point_is_passed() {
        reach(&parse("here=/nonexistent/file"), "here");
        let here = std::env::temp_dir().join(format!("outboard-failpoint-{}", std::process::id()));
        std::fs::write(&here, "").unwrap();
        reach(&parse(&format!("there={}", here.display())), "here");
        assert!(std::fs::remove_file(&here).is_ok(), "another point's file is left alone");
    }
}
