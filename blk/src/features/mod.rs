//! Translators that make a disk out of others: what goes in is what a guest asked for, what comes out is the same for
//! those below, and each promises upward no more than they keep.

pub mod crypt;
pub mod cut;
pub mod join;
pub mod map;
pub mod offset;
pub mod quiesce;
pub mod read_only;
pub mod throttle;

use crate::op::Keeps;

/// What the only subvolume keeps; how many there are is checked before a volume is made.
pub(crate) fn only(below: &[Keeps]) -> Result<Keeps, String> {
    match below {
        [only] => Ok(*only),
        _ => Err(format!("it stands on {} volumes; give it one", below.len())),
    }
}
