//! How long to look at the rings before sleeping.
//!
//! In: how long each pause between two pieces of work was, and whether it was slept through. Out: how long to look
//! during the next. Promises: looking begins only after a pause that it would have shortened, so a worker whose work
//! comes seldom just sleeps; and what is wasted when work stops coming is at most [`LONGEST`], once.

use std::time::Duration;

/// The first window after pauses became short.
const FIRST: Duration = Duration::from_micros(4);
/// The longest window. A pause that is longer is slept through: waking costs little of it.
const LONGEST: Duration = Duration::from_micros(32);

/// The time a worker looks before it sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window(Duration);

impl Window {
    /// The next pause begins with this much looking.
    pub(crate) fn length(self) -> Duration {
        self.0
    }

    /// A pause ended only after the worker had gone to sleep.
    pub(crate) fn slept(&mut self, pause: Duration) {
        self.0 = if pause > LONGEST { Duration::ZERO } else { (self.0 * 2).clamp(FIRST, LONGEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time spent looking in pauses of this length, and how many of them were slept through.
    fn spend(pauses: &[Duration]) -> (Duration, usize) {
        let (mut window, mut looked, mut sleeps) = (Window::default(), Duration::ZERO, 0);
        for pause in pauses {
            looked += window.length().min(*pause);
            if *pause > window.length() {
                sleeps += 1;
                window.slept(*pause);
            }
        }
        (looked, sleeps)
    }

    #[test]
    fn short_pauses_are_not_slept_through_for_long() {
        let pause = Duration::from_micros(20);
        let (looked, sleeps) = spend(&[pause; 1000]);
        assert_eq!(sleeps, 4);
        assert!(looked <= pause * 1000);
    }

    #[test]
    fn long_pauses_cost_nothing() {
        assert_eq!(spend(&[Duration::from_micros(33); 1000]), (Duration::ZERO, 1000));
    }

    #[test]
    fn when_work_stops_coming_one_window_is_lost() {
        let mut pauses = vec![Duration::from_micros(20); 100];
        let (before, _) = spend(&pauses);
        pauses.extend([Duration::from_secs(1); 10]);
        assert_eq!(spend(&pauses).0 - before, LONGEST);
    }
}
