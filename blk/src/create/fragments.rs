//! In how many pieces a file lies on its device (FIEMAP, as filefrag(8) counts them).
//!
//! In: an open file, written out. Out: how often a part of it does not follow on the one before; parts that do follow
//! are one piece, however the file system describes them. None where it does not tell, as tmpfs and NFS.

use std::os::fd::AsFd;

use backends::sys::{self, Place};

/// The last part of the file (linux/fiemap.h).
const FIEMAP_EXTENT_LAST: u32 = 1;

/// How many pieces there are.
pub(super) fn count(file: &impl AsFd) -> Option<u64> {
    let mut count = 0;
    let mut before: Option<Place> = None;
    loop {
        let places = sys::places(file.as_fd(), before.map_or(0, |place| end(place.logical, place))).ok()?;
        for place in &places {
            count += u64::from(!before.is_some_and(|before| follows(before, *place)));
            before = Some(*place);
        }
        if places.last().is_none_or(|last| last.flags & FIEMAP_EXTENT_LAST != 0) {
            return Some(count);
        }
    }
}

/// Where it ends, if it begins here.
fn end(start: u64, place: Place) -> u64 {
    start.saturating_add(place.length)
}

fn follows(before: Place, place: Place) -> bool {
    end(before.physical, before) == place.physical && end(before.logical, before) == place.logical
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(logical: u64, physical: u64) -> Place {
        let mut place = Place::default();
        (place.logical, place.physical, place.length) = (logical, physical, 4096);
        place
    }

    #[test]
    fn parts_that_follow_each_other_in_the_file_and_on_the_device_are_one_piece() {
        assert!(follows(place(0, 8192), place(4096, 12288)));
        assert!(!follows(place(0, 8192), place(4096, 16384)));
        assert!(!follows(place(0, 8192), place(8192, 12288)));
    }
}
