//! Deadlines of one thread, the soonest first.
//!
//! In: alarms by number, each armed for a moment of the monotonic clock. Out: the soonest moment, and the alarms whose
//! moment has come. A binary heap that knows where each alarm is, so that arming one again moves it instead of
//! leaving the old deadline behind: it never holds more entries than there are alarms, and once it has grown to
//! that it allocates nothing.

use std::time::Instant;

use super::Alarm;

/// Place of an alarm that is not armed.
const ABSENT: usize = usize::MAX;

/// Alarms that are armed.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// No entry is sooner than the one at half its place.
    heap: Vec<(Instant, Alarm)>,
    /// By number of the alarm: its place in the heap.
    places: Vec<usize>,
}

impl Timers {
    /// The alarm goes off at this moment, and at no other.
    pub(crate) fn arm(&mut self, alarm: Alarm, at: Instant) {
        if self.places.len() <= row(alarm) {
            self.places.resize(row(alarm) + 1, ABSENT);
        }
        let place = match self.places[row(alarm)] {
            ABSENT => {
                self.heap.push((at, alarm));
                self.heap.len() - 1
            }
            place => {
                self.heap[place].0 = at;
                place
            }
        };
        self.settle(place);
    }

    /// The alarm does not go off any more.
    pub(crate) fn disarm(&mut self, alarm: Alarm) {
        let Some(place) = self.places.get_mut(row(alarm)) else { return };
        let place = std::mem::replace(place, ABSENT);
        if place == ABSENT {
            return;
        }
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.settle(place);
        }
    }

    /// When the next alarm goes off.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|(at, _)| *at)
    }

    /// Disarms and returns an alarm whose moment has come by `now`, the soonest first.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Alarm> {
        let (_, alarm) = *self.heap.first().filter(|(at, _)| *at <= now)?;
        self.disarm(alarm);
        Some(alarm)
    }

    /// Moves the entry at `place` to where it belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.heap[place].0 < self.heap[(place - 1) / 2].0 {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        while let Some(child) = self.sooner_child(place)
            && self.heap[child].0 < self.heap[place].0
        {
            self.swap(place, child);
            place = child;
        }
        self.places[row(self.heap[place].1)] = place;
    }

    fn sooner_child(&self, place: usize) -> Option<usize> {
        (2 * place + 1..2 * place + 3)
            .filter(|child| *child < self.heap.len())
            .min_by_key(|c| self.heap[*c].0)
    }

    /// Swaps two entries; the one that comes to the first place is known to be there.
    fn swap(&mut self, moved: usize, other: usize) {
        self.heap.swap(moved, other);
        self.places[row(self.heap[moved].1)] = moved;
    }
}

fn row(alarm: Alarm) -> usize {
    alarm.0 as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u64),
        Disarm(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..12u32, 0..50u64).prop_map(|(alarm, at)| Step::Arm(alarm, at)),
            1 => (0..12u32).prop_map(Step::Disarm),
            1 => (0..10u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against a sorted map: whatever is armed, moved and disarmed, alarms go off at their moment, soonest first.
        #[test]
        fn alarms_go_off_at_their_last_deadline(steps in prop::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let moment = |at: u64| start + Duration::from_secs(at);
            let (mut timers, mut model, mut now) = (Timers::default(), BTreeMap::new(), 0);
            for step in steps {
                match step {
                    Step::Arm(alarm, after) => {
                        timers.arm(Alarm(alarm), moment(now + after));
                        model.insert(alarm, now + after);
                    }
                    Step::Disarm(alarm) => {
                        timers.disarm(Alarm(alarm));
                        model.remove(&alarm);
                    }
                    Step::Pass(time) => {
                        now += time;
                        let mut last = 0;
                        while let Some(Alarm(alarm)) = timers.expire(moment(now)) {
                            let at = model.remove(&alarm).expect("it is armed");
                            prop_assert!(last <= at && at <= now);
                            last = at;
                        }
                    }
                }
                prop_assert_eq!(timers.heap.len(), model.len());
                prop_assert_eq!(timers.next(), model.values().min().map(|at| moment(*at)));
            }
        }
    }

    #[test]
    fn an_alarm_that_is_armed_again_and_again_takes_one_place() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        for at in 0..10_000 {
            timers.arm(Alarm(3), start + Duration::from_millis(at));
        }
        assert_eq!((timers.heap.len(), timers.places.len()), (1, 4));
        assert_eq!(timers.expire(start + Duration::from_millis(9998)), None);
        assert_eq!(timers.expire(start + Duration::from_millis(9999)), Some(Alarm(3)));
    }
}
