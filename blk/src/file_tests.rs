//! An image as storage: how it is opened, and what it makes of the host's answers.

use std::path::Path;

use backends::engine::Buffers;
use backends::memory::Segment;

use super::*;

/// Nobody's buffers.
#[derive(Debug)]
struct Nothing;

impl Buffers for Nothing {
    fn segments(&self) -> &[Segment] {
        &[]
    }
}

impl Owner for Nothing {
    fn advance(&mut self, _: usize) {}
}

/// Keeps what was submitted.
#[derive(Default)]
struct Recorder(Vec<(RawFd, Job<Nothing>)>);

impl Host<Nothing> for Recorder {
    fn submit(&mut self, fd: RawFd, job: Job<Nothing>) {
        self.0.push((fd, job));
    }
}

fn image(path: &Path) -> Image {
    Image { path: path.to_owned(), read_only: false, direct: false, block_bytes: 512 }
}

fn make(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn outcome(step: Step<Nothing>) -> Option<Result<(), Errno>> {
    match step {
        Step::Done(_, _, outcome) => Some(outcome),
        Step::UnderWay => None,
    }
}

/// As a process that is its own keeper.
fn open(image: &Image) -> Result<File, ImageError> {
    let mut opened = Opened::default();
    File::prepare(image, &mut opened)?;
    File::open(image, &opened.into_kept().0)
}

fn refusal(image: &Image) -> (String, u8) {
    let failure = Failure::from(open(image).unwrap_err());
    (failure.message, failure.code)
}

#[test]
fn k17_a_failed_sync_fails_all_that_follow() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&image(&make(dir.path(), 4096))).unwrap();
    let mut host = Recorder::default();
    // Two syncs are under way; the kernel tells one of them.
    for _ in 0..2 {
        assert_eq!(outcome(file.start(Job::new(Nothing, Op::Sync, 0), &mut host)), None);
    }
    let (first, second) = (host.0.remove(0).1, host.0.remove(0).1);
    assert_eq!(outcome(file.proceed(first, Err(Errno::IO), &mut host)), Some(Err(Errno::IO)));
    assert_eq!(outcome(file.proceed(second, Ok(0), &mut host)), Some(Err(Errno::IO)));
    let third = file.start(Job::new(Nothing, Op::Sync, 0), &mut host);
    assert_eq!(outcome(third), Some(Err(Errno::IO)), "it does not even reach the host");
    let write = file.start(Job::new(Nothing, Op::Write { offset: 0, durable: false }, 512), &mut host);
    assert_eq!(outcome(write), None, "writing goes on");
}

#[test]
fn direct_io_that_is_not_aligned_goes_through_the_page_cache() {
    // Beside the test itself: a temporary file system may be one without direct I/O.
    let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let image = Image { direct: true, block_bytes: 4096, ..image(&make(dir.path(), 4096)) };
    let file = open(&image).unwrap();
    let mut host = Recorder::default();
    let _ = file.start(Job::new(Nothing, Op::Read { offset: 0 }, 512), &mut host);
    let (direct, job) = host.0.pop().unwrap();
    assert_eq!(direct, file.direct.as_ref().unwrap().as_raw_fd());
    assert_eq!(outcome(file.proceed(job, Err(Errno::INVAL), &mut host)), None);
    let (cached, job) = host.0.pop().unwrap();
    assert_eq!(cached, file.cached.as_raw_fd());
    let again = file.proceed(job, Err(Errno::INVAL), &mut host);
    assert_eq!(outcome(again), Some(Err(Errno::INVAL)), "there is no third way");
}

#[test]
fn what_is_no_image_is_refused_with_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let told = |path: &Path, part: &str| {
        let (message, code) = refusal(&image(path));
        let named = format!("--image {}: ", path.display());
        assert!(message.starts_with(&named) && message.contains(part) && code == 2, "{code}: {message}");
    };
    told(&dir.path().join("none.img"), "truncate -s");
    told(dir.path(), "a directory");
    told(&make(dir.path(), 0), "empty");
    told(&make(dir.path(), 1000), "no multiple of --block-size 512");
    told(Path::new("/dev/null"), "neither a file nor a block device");
}

#[test]
fn a_size_must_fit_the_block_size_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&make(dir.path(), 4096 + 512));
    assert_eq!(open(&image).unwrap().size_bytes(), 4608);
    let (message, code) = refusal(&Image { block_bytes: 4096, ..image });
    assert!(message.contains("--block-size 4096") && code == 2, "{message}");
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
