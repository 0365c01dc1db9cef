//! Taking a call's data apart at any byte.
//!
//! In: segments as the guest cut them. Out: segments of the next so many bytes. Promises: each byte once, in order;
//! nothing is allocated. Refuses nothing: of too few bytes it gives what there are.

use std::slice;

use backends::memory::Segment;

/// Where a call's data are being cut.
#[derive(Debug)]
pub struct Cutter<'a> {
    rest: slice::Iter<'a, Segment>,
    front: Option<Segment>,
}

impl<'a> Cutter<'a> {
    /// From the first byte on.
    pub fn new(data: &'a [Segment]) -> Cutter<'a> {
        Cutter { rest: data.iter(), front: None }
    }

    /// The next `bytes`.
    pub fn take(&mut self, bytes: u64) -> impl Iterator<Item = Segment> + use<'_, 'a> {
        let mut left = bytes;
        std::iter::from_fn(move || {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let front = if left > 0 { self.front()? } else { return None };
            let piece = front.take_front(wanted);
            left = left.saturating_sub(piece.len() as u64);
            Some(piece)
        })
    }

    /// The segment that the next byte is in.
    fn front(&mut self) -> Option<&mut Segment> {
        while self.front.is_none_or(|front| front.is_empty()) {
            self.front = Some(*self.rest.next()?);
        }
        self.front.as_mut()
    }
}

/// Fills `to` with what the segments hold.
pub fn gather(from: &[Segment], to: &mut [u8]) {
    let mut rest = to;
    for segment in from {
        let count = segment.copy_to(rest);
        rest = rest.split_at_mut(count).1;
    }
}

/// Fills the segments with `from`.
pub fn scatter(from: &[u8], to: &[Segment]) {
    let mut rest = from;
    for segment in to {
        rest = rest.split_at(segment.copy_from(rest)).1;
    }
}

#[cfg(test)]
mod tests {
    use backends::memory::own::Buffer;
    use proptest::prelude::*;

    use super::*;

    /// A buffer's first bytes, cut where asked.
    fn segments(buffer: &Buffer, lengths: &[usize]) -> Vec<Segment> {
        let mut whole = buffer.segment(buffer.len());
        lengths.iter().map(|length| whole.take_front(*length)).collect()
    }

    proptest! {
        #[test]
        fn each_byte_comes_once_and_in_order(
            lengths in prop::collection::vec(0..40usize, 0..20),
            cuts in prop::collection::vec(0..60u64, 0..20),
        ) {
            let mut buffer = Buffer::new(4096).unwrap();
            for (byte, value) in buffer.bytes_mut().iter_mut().zip((0..=250).cycle()) {
                *byte = value;
            }
            let data = segments(&buffer, &lengths);
            let mut all = vec![0; lengths.iter().sum()];
            gather(&data, &mut all);
            let (mut cutter, mut at) = (Cutter::new(&data), 0);
            for cut in cuts {
                let piece: Vec<Segment> = cutter.take(cut).collect();
                let bytes: usize = piece.iter().map(Segment::len).sum();
                prop_assert_eq!(bytes, usize::try_from(cut).unwrap().min(all.len() - at));
                prop_assert!(piece.iter().all(|segment| !segment.is_empty()));
                let mut held = vec![0; bytes];
                gather(&piece, &mut held);
                prop_assert_eq!(&held, &all[at..at + bytes]);
                at += bytes;
            }
        }
    }

    #[test]
    fn bytes_are_scattered_as_they_are_gathered() {
        let buffer = Buffer::new(4096).unwrap();
        let data = segments(&buffer, &[3, 0, 5]);
        scatter(b"abcdefghij", &data);
        let mut back = [0; 10];
        gather(&data, &mut back);
        assert_eq!(&back, b"abcdefgh\0\0");
    }
}
