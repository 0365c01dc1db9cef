//! Giving requests back in the order they came, where the driver was promised that (VIRTIO_F_IN_ORDER).
//!
//! In: requests as they are taken, and as they are finished, in any order. Out: those that may be given back
//! now. A malformed chain, which goes back at once, waits here for its turn like any other. Nothing is kept for a
//! driver that did not ask for order.

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

use std::collections::VecDeque;

use crate::ring::Taken;

/// Requests in flight, oldest first, with what was written for those that are finished.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Number of the oldest.
    first: u64,
    waiting: VecDeque<(Taken, Option<u32>)>,
}

impl Order {
    /// A request was taken; its number.
    pub(crate) fn begin(&mut self, taken: Taken) -> u64 {
        let number = self.first.wrapping_add(u64::try_from(self.waiting.len()).unwrap_or(0));
        self.waiting.push_back((taken, None));
        number
    }

    /// The request with this number is finished.
    pub(crate) fn finish(&mut self, number: u64, written_bytes: u32) {
        let place = usize::try_from(number.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        if let Some((_, written)) = self.waiting.get_mut(place) {
            *written = Some(written_bytes);
        }
    }

    /// The oldest request, if it is finished.
    pub(crate) fn next(&mut self) -> Option<(Taken, u32)> {
        let (taken, written) = *self.waiting.front()?;
        let written = written?;
        self.waiting.pop_front();
        self.first = self.first.wrapping_add(1);
        Some((taken, written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_order_of_finishing_requests_go_back_as_they_came() {
        // All orders in which five requests can be finished.
        for mut permutation in 0..120u32 {
            let mut order = Order::default();
            let mut left: Vec<u64> = (0..5).map(|id| order.begin(Taken { id, slots: 1 })).collect();
            let mut back = Vec::new();
            while !left.is_empty() {
                let take = permutation as usize % left.len();
                permutation /= u32::try_from(left.len()).unwrap();
                let number = left.remove(take);
                order.finish(number, 100 + u32::try_from(number).unwrap());
                back.extend(std::iter::from_fn(|| order.next()));
                // Exactly those go back before which nothing is missing.
                assert_eq!(back.len() as u64, left.iter().min().copied().unwrap_or(5));
            }
            let expected: Vec<_> = (0..5).map(|id| (Taken { id, slots: 1 }, 100 + u32::from(id))).collect();
            assert_eq!(back, expected);
        }
    }

    #[test]
    fn numbers_go_on_where_they_were() {
        let mut order = Order::default();
        for id in 0..1000 {
            let number = order.begin(Taken { id, slots: 1 });
            order.finish(number, 0);
            assert_eq!(order.next(), Some((Taken { id, slots: 1 }, 0)));
            assert_eq!(order.next(), None);
        }
    }
}
