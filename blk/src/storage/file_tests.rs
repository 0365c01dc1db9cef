//! A file as a leaf: how it is opened, and what it makes of the host's answers.

use std::path::{Path, PathBuf};
use std::time::Instant;

use backends::daemon::Failure;
use backends::opened::Opened;

use super::*;
use crate::graph::tree::Outside;
use crate::graph::{Graph, Tree};
use crate::storage::image::{Image, ImageError};

/// Keeps what was submitted.
#[derive(Default)]
struct Recorder(Vec<(RawFd, engine::Op, Call)>);

impl Outside for Recorder {
    fn submit(&mut self, _: u16, fd: RawFd, op: engine::Op, call: Call) {
        self.0.push((fd, op, call));
    }
    fn arm(&mut self, _: u16, _: Instant) {}
    fn disarm(&mut self, _: u16) {}
}

fn image(path: &Path) -> Image {
    Image { path: path.to_owned(), read_only: false, direct: false, block_bytes: 512 }
}

fn make(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// As a process that is its own keeper.
fn open(image: &Image) -> Result<Found, ImageError> {
    let mut opened = Opened::default();
    image.prepare("disk", &mut opened)?;
    image.find("disk", &opened.into_kept().0)
}

fn refusal(image: &Image) -> (String, u8) {
    let failure = Failure::from(open(image).unwrap_err());
    (failure.message, failure.code)
}

/// A disk of one file, and a host that does nothing by itself.
struct Disk {
    tree: Tree,
    host: Recorder,
}

impl Disk {
    fn new(image: &Image) -> Disk {
        let leaf = image.volume(open(image).unwrap());
        let graph = Graph::of_leaf("disk", "storage/file", leaf).unwrap();
        Disk { tree: Tree::of(&graph).unwrap(), host: Recorder::default() }
    }

    /// Sends a call. How it went, if it is over.
    fn send(&mut self, op: Op) -> Option<Outcome> {
        let call = self.tree.pool().piece(0, op, []);
        self.tree.begin(call, &mut self.host);
        self.over()
    }

    /// The host answers what was begun first.
    fn answer(&mut self, answer: Result<u32, Errno>) -> Option<Outcome> {
        let (_, _, call) = self.host.0.remove(0);
        self.tree.answered(call, answer, &mut self.host);
        self.over()
    }

    fn over(&mut self) -> Option<Outcome> {
        let (call, outcome) = self.tree.finished()?;
        self.tree.pool().end(call);
        Some(outcome)
    }

    /// What the host has to do first.
    fn begun(&self) -> engine::Op {
        self.host.0[0].1
    }
}

#[test]
fn k17_a_failed_sync_fails_all_that_follow() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(&image(&make(dir.path(), 4096)));
    // Two syncs are under way; the kernel tells one of them.
    assert_eq!([disk.send(Op::Flush), disk.send(Op::Flush)], [None, None]);
    assert_eq!(disk.answer(Err(Errno::IO)), Some(Err(Errno::IO)));
    assert_eq!(disk.answer(Ok(0)), Some(Err(Errno::IO)));
    assert_eq!(disk.send(Op::Flush), Some(Err(Errno::IO)), "it does not even reach the host");
    assert_eq!(disk.send(Op::Write { offset: 0, bytes: 512, fua: false }), None, "writing goes on");
    assert_eq!(disk.answer(Ok(512)), Some(Ok(())));
    assert_eq!(disk.send(Op::Write { offset: 0, bytes: 512, fua: true }), None);
    assert_eq!(disk.answer(Ok(512)), Some(Err(Errno::IO)), "nothing is durable any more");
}

#[test]
fn k16_a_durable_write_without_room_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(&image(&make(dir.path(), 4096)));
    let (write, durable) =
        (Op::Write { offset: 0, bytes: 512, fua: true }, |durable| engine::Op::Write { offset: 0, durable });
    assert_eq!((disk.send(write), disk.begun()), (None, durable(true)));
    assert_eq!((disk.answer(Err(Errno::NOSPC)), disk.begun()), (None, durable(false)));
    assert_eq!(disk.answer(Err(Errno::NOSPC)), Some(Err(Errno::NOSPC)));
    assert_eq!((disk.send(write), disk.begun()), (None, durable(true)));
    assert_eq!(disk.answer(Ok(512)), Some(Ok(())), "there is room again");
    // There was room for these bytes: what the host had no room for was written before.
    assert_eq!((disk.send(write), disk.answer(Err(Errno::NOSPC))), (None, None));
    assert_eq!(disk.answer(Ok(512)), Some(Err(Errno::NOSPC)));
    assert_eq!(disk.send(Op::Flush), Some(Err(Errno::IO)));
}

#[test]
fn a_sync_that_is_given_up_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(&image(&make(dir.path(), 4096)));
    assert_eq!(disk.send(Op::Flush), None);
    assert_eq!(disk.answer(Err(Errno::CANCELED)), Some(Err(Errno::CANCELED)));
    assert_eq!(disk.send(Op::Flush), None);
    assert_eq!(disk.answer(Ok(0)), Some(Ok(())));
}

#[test]
fn direct_io_that_is_not_aligned_goes_through_the_page_cache() {
    // Beside the test itself: a temporary file system may be one without direct I/O.
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let image = Image { direct: true, block_bytes: 4096, ..image(&make(dir.path(), 4096)) };
    let mut disk = Disk::new(&image);
    assert_eq!(disk.send(Op::Read { offset: 0, bytes: 512 }), None);
    let direct = disk.host.0[0].0;
    assert_eq!(disk.answer(Err(Errno::INVAL)), None);
    assert_ne!(disk.host.0[0].0, direct);
    assert_eq!(disk.answer(Err(Errno::INVAL)), Some(Err(Errno::INVAL)), "there is no third way");
}

#[test]
fn what_a_file_system_cannot_do_about_a_range_is_done_by_writing() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(&image(&make(dir.path(), 4 << 20)));
    let reserve = |room| engine::Op::Reserve { room, offset: 4096, bytes: 3 << 19 };
    let write = |offset| engine::Op::Write { offset, durable: false };
    let zeroes = Op::Zeroes { offset: 4096, bytes: 3 << 19, unmap: true };
    assert_eq!(disk.send(zeroes), None);
    assert_eq!(disk.begun(), reserve(Room::Hole));
    assert_eq!(disk.answer(Err(Errno::OPNOTSUPP)), None);
    assert_eq!(disk.begun(), reserve(Room::Zeros));
    assert_eq!(disk.answer(Err(Errno::OPNOTSUPP)), None);
    assert_eq!(disk.begun(), write(4096));
    assert_eq!(disk.answer(Ok(1 << 20)), None);
    assert_eq!(disk.begun(), write(4096 + (1 << 20)));
    assert_eq!(disk.answer(Ok(1 << 19)), Some(Ok(())));
    // It is not asked again, but what needs no promise is done with.
    assert_eq!(disk.send(zeroes), None);
    assert_eq!(disk.begun(), write(4096));
    assert_eq!(disk.answer(Err(Errno::NOSPC)), Some(Err(Errno::NOSPC)));
    assert_eq!(disk.send(Op::Discard { offset: 4096, bytes: 3 << 19 }), None);
    assert_eq!(disk.begun(), reserve(Room::Hole));
    assert_eq!(disk.answer(Err(Errno::OPNOTSUPP)), Some(Ok(())));
}

#[test]
fn what_is_no_image_is_refused_with_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let told = |path: &Path, part: &str| {
        let (message, code) = refusal(&image(path));
        let named = format!("--image {}: ", path.display());
        assert!(message.starts_with(&named) && message.contains(part) && code == 2, "{code}: {message}");
    };
    told(&dir.path().join("none.img"), "outboard-blk create PATH --size 10G");
    told(dir.path(), "a directory");
    told(&make(dir.path(), 0), "empty");
    told(&make(dir.path(), 1000), "no multiple of block-size 512");
    told(Path::new("/dev/null"), "neither a file nor a block device");
}

#[test]
fn a_size_must_fit_the_block_size_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&make(dir.path(), 4096 + 512));
    assert_eq!(open(&image).unwrap().size_bytes[0].load(Ordering::Relaxed), 4608);
    let (message, code) = refusal(&Image { block_bytes: 4096, ..image });
    assert!(message.contains("block-size 4096") && code == 2, "{message}");
}

#[test]
fn a_file_that_grows_is_followed_and_one_that_shrinks_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), 8192);
    let graph = {
        let image = image(&path);
        Graph::of_leaf("disk", "storage/file", image.volume(open(&image).unwrap())).unwrap()
    };
    for (bytes, seen) in [(16_384, (8192, 16_384)), (4096, (16_384, 16_384)), (20_000, (16_384, 19_968))] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        assert_eq!(graph.look_again().unwrap(), seen);
        assert_eq!(graph.size_bytes(), seen.1);
    }
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let writing = image(&make(dir.path(), 4096));
    let reading = Image { read_only: true, ..writing.clone() };
    let writer = open(&writing).unwrap();
    for second in [&writing, &reading] {
        let (message, code) = refusal(second);
        assert!(message.contains("process") && code == 4, "{code}: {message}");
    }
    drop(writer);
    let readers = (open(&reading).unwrap(), open(&reading).unwrap());
    assert_eq!(refusal(&writing).1, 4);
    drop(readers);
    assert!(open(&writing).is_ok());
}
