//! Calls that were cut into pieces, and come up when all of these did.
//!
//! In: a call, and each of its pieces when it begins and ends. Out: the call, with the first error there was. Promises: a
//! call comes back once, after its last piece; places are used again, so nothing is allocated once there were as many.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use crate::call::Call;
use crate::graph::Outcome;

/// A call whose pieces are under way.
#[derive(Debug)]
struct Joint {
    call: Call,
    pieces: u64,
    outcome: Outcome,
}

/// All that one layer has cut.
#[derive(Debug, Default)]
pub struct Joins {
    all: Vec<Option<Joint>>,
    free: Vec<usize>,
}

impl Joins {
    /// A call that is being cut. It counts as one piece until [`Joins::done`] says that there are no more.
    pub fn begin(&mut self, call: Call) -> usize {
        let joint = Some(Joint { call, pieces: 1, outcome: Ok(()) });
        match self.free.pop().and_then(|at| Some((at, self.all.get_mut(at)?))) {
            Some((at, place)) => {
                *place = joint;
                at
            }
            None => {
                self.all.push(joint);
                self.all.len().saturating_sub(1)
            }
        }
    }

    /// The call that is being cut.
    pub fn call(&mut self, at: usize) -> Option<&mut Call> {
        Some(&mut self.all.get_mut(at)?.as_mut()?.call)
    }

    /// One piece more is under way.
    pub fn add(&mut self, at: usize) {
        if let Some(Some(joint)) = self.all.get_mut(at) {
            joint.pieces = joint.pieces.saturating_add(1);
        }
    }

    /// A piece is over. The call, if that was the last one.
    pub fn done(&mut self, at: usize, outcome: Outcome) -> Option<(Call, Outcome)> {
        let place = self.all.get_mut(at)?;
        let joint = place.as_mut()?;
        joint.outcome = joint.outcome.and(outcome);
        joint.pieces = joint.pieces.saturating_sub(1);
        if joint.pieces > 0 {
            return None;
        }
        self.free.push(at);
        place.take().map(|joint| (joint.call, joint.outcome))
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::call::Pool;
    use crate::op::Op;

    #[test]
    fn a_call_comes_with_its_last_piece_and_the_first_error() {
        let (mut joins, mut pool) = (Joins::default(), Pool::default());
        let call = |pool: &mut Pool, bytes| pool.piece(0, Op::Discard { offset: 0, bytes }, []);
        let (one, other) = (joins.begin(call(&mut pool, 1)), joins.begin(call(&mut pool, 2)));
        assert_ne!(one, other);
        joins.add(one);
        joins.add(one);
        assert!(joins.done(one, Err(Errno::NOSPC)).is_none());
        assert_eq!(joins.call(one).unwrap().op(), Op::Discard { offset: 0, bytes: 1 });
        assert!(joins.done(one, Err(Errno::IO)).is_none());
        let (whole, outcome) = joins.done(one, Ok(())).unwrap();
        assert_eq!((whole.op(), outcome), (Op::Discard { offset: 0, bytes: 1 }, Err(Errno::NOSPC)));
        assert!(joins.done(one, Ok(())).is_none());
        pool.end(whole);
        assert_eq!(joins.begin(call(&mut pool, 3)), one);
        assert_eq!(joins.done(other, Ok(())).unwrap().1, Ok(()));
    }
}
