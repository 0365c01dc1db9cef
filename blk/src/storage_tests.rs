//! Jobs against a host that is slow, short or broken.

use super::*;

/// Buffers that only count what they were told.
#[derive(Debug, Default)]
struct Counting {
    bytes: usize,
}

impl Buffers for Counting {
    fn segments(&self) -> &[Segment] {
        &[]
    }
}

impl Owner for Counting {
    fn advance(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

fn job(op: Op, bytes: u64) -> Job<Counting> {
    Job::new(Counting::default(), op, bytes)
}

#[track_caller]
fn goes_on(step: Result<Job<Counting>, Step<Counting>>) -> Job<Counting> {
    step.unwrap_or_else(|done| panic!("it ended: {done:?}"))
}

#[track_caller]
fn ended(step: Result<Job<Counting>, Step<Counting>>) -> (usize, Result<(), Errno>) {
    match step {
        Err(Step::Done(owner, _, outcome)) => (owner.bytes, outcome),
        other => panic!("it goes on: {other:?}"),
    }
}

#[test]
fn k18_a_short_transfer_is_continued_where_it_stopped() {
    let job = goes_on(job(Op::Write { offset: 1000, durable: false }, 100).after(Ok(30)));
    assert_eq!(job.op(), Op::Write { offset: 1030, durable: false });
    let job = goes_on(job.after(Ok(69)));
    assert_eq!(job.op(), Op::Write { offset: 1099, durable: false });
    assert_eq!(ended(job.after(Ok(1))), (100, Ok(())));
}

#[test]
fn k18_an_interrupted_transfer_is_repeated_but_not_for_ever() {
    let mut job = job(Op::Read { offset: 0 }, 512);
    for errno in [Errno::INTR, Errno::AGAIN].into_iter().cycle().take(MAX_REPEATS.into()) {
        job = goes_on(job.after(Err(errno)));
        assert_eq!(job.op(), Op::Read { offset: 0 });
    }
    assert_eq!(ended(job.after(Err(Errno::AGAIN))), (0, Err(Errno::AGAIN)));
}

#[test]
fn progress_restores_patience() {
    let mut job = job(Op::Read { offset: 0 }, 1024);
    for _ in 0..3 {
        for _ in 0..MAX_REPEATS {
            job = goes_on(job.after(Err(Errno::AGAIN)));
        }
        job = goes_on(job.after(Ok(1)));
    }
    assert_eq!(job.op(), Op::Read { offset: 3 });
}

#[test]
fn no_progress_without_an_error_is_the_end_of_the_image() {
    let job = goes_on(job(Op::Read { offset: 0 }, 1024).after(Ok(512)));
    assert_eq!(ended(job.after(Ok(0))), (512, Err(Errno::IO)));
}

#[test]
fn k17_an_error_ends_a_job_with_what_was_moved_before() {
    let job = goes_on(job(Op::Write { offset: 0, durable: false }, 1024).after(Ok(512)));
    assert_eq!(ended(job.after(Err(Errno::NOSPC))), (512, Err(Errno::NOSPC)));
}

#[test]
fn a_sync_moves_nothing() {
    assert_eq!(ended(job(Op::Sync, 0).after(Ok(0))), (0, Ok(())));
}
