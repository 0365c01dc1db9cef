//! Calls against a host that is slow, short or broken.

use super::*;
use crate::call::Pool;
use crate::op::Op;

const OP: Op = Op::Read { offset: 1000, bytes: 100 };

fn call(bytes: usize) -> Call {
    let buffer = backends::memory::own::Buffer::new(4096).unwrap();
    // Nothing touches the data.
    Pool::default().piece(0, OP, [buffer.segment(bytes)])
}

#[test]
fn k18_a_short_transfer_is_continued_where_it_stopped() {
    let mut call = call(100);
    assert_eq!(after(&mut call, 100, Ok(30)), Next::Again);
    assert_eq!((call.transfer().done, call.data()[0].len()), (30, 70));
    assert_eq!(after(&mut call, 100, Ok(69)), Next::Again);
    assert_eq!((call.transfer().done, call.data()[0].len()), (99, 1));
    assert_eq!(after(&mut call, 100, Ok(1)), Next::Over(Ok(())));
}

#[test]
fn k18_an_interrupted_transfer_is_repeated_but_not_for_ever() {
    let mut call = call(512);
    for errno in [Errno::INTR, Errno::AGAIN].into_iter().cycle().take(MAX_REPEATS.into()) {
        assert_eq!(after(&mut call, 512, Err(errno)), Next::Again);
        assert_eq!(call.transfer().done, 0);
    }
    assert_eq!(after(&mut call, 512, Err(Errno::AGAIN)), Next::Over(Err(Errno::AGAIN)));
}

#[test]
fn progress_restores_patience() {
    let mut call = call(1024);
    for _ in 0..3 {
        for _ in 0..MAX_REPEATS {
            assert_eq!(after(&mut call, 1024, Err(Errno::AGAIN)), Next::Again);
        }
        assert_eq!(after(&mut call, 1024, Ok(1)), Next::Again);
    }
    assert_eq!(call.transfer().done, 3);
}

#[test]
fn no_progress_without_an_error_is_the_end_of_the_image() {
    let mut call = call(1024);
    assert_eq!(after(&mut call, 1024, Ok(512)), Next::Again);
    assert_eq!(after(&mut call, 1024, Ok(0)), Next::Over(Err(Errno::IO)));
}

#[test]
fn k17_an_error_ends_a_call_whatever_was_moved_before() {
    let mut call = call(1024);
    assert_eq!(after(&mut call, 1024, Ok(512)), Next::Again);
    assert_eq!(after(&mut call, 1024, Err(Errno::NOSPC)), Next::Over(Err(Errno::NOSPC)));
}
