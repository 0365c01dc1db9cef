//! What the API's thread and the machine's loop have in common: orders one way, how the machine stands the other way.
//!
//! Neither waits for the other's work: an order is queued and the loop woken; its sender waits for the answer no longer
//! than [`PATIENCE`], and the loop does not wait at all. How the machine stands is one atomic, which only the loop sets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use crate::kvm::event::Event;

/// How long an order may take before its sender is told that it is under way. It usually takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// It is being reset.
    Rebooting,
}

impl Standing {
    /// All of them, each at its number.
    pub const ALL: [Standing; 3] = [Standing::Running, Standing::Paused, Standing::Rebooting];

    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Running => "running",
            Standing::Paused => "paused",
            Standing::Rebooting => "rebooting",
        }
    }
}

/// What a machine is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out.
    Done,
    /// It will be.
    UnderWay,
    /// It will not: the machine is at its end.
    Ended,
}

/// The API's side.
pub struct Remote {
    orders: Sender<(Order, SyncSender<()>)>,
    wake: Arc<Event>,
    standing: Arc<AtomicU8>,
}

/// The loop's side.
pub struct Orders {
    orders: Receiver<(Order, SyncSender<()>)>,
    wake: Arc<Event>,
    standing: Arc<AtomicU8>,
}

/// Both sides of one machine, which runs.
///
/// # Errors
/// There is no eventfd to be had.
pub fn pair() -> io::Result<(Remote, Orders)> {
    let (sender, receiver) = channel();
    let wake = Arc::new(Event::new()?);
    let standing = Arc::new(AtomicU8::new(0));
    let remote = Remote { orders: sender, wake: Arc::clone(&wake), standing: Arc::clone(&standing) };
    Ok((remote, Orders { orders: receiver, wake, standing }))
}

impl Remote {
    /// How the machine stands.
    pub fn standing(&self) -> Standing {
        let number = self.standing.load(Ordering::Relaxed);
        Standing::ALL.into_iter().find(|standing| *standing as u8 == number).unwrap_or(Standing::Running)
    }

    /// Has the loop do something.
    pub fn order(&self, order: Order) -> Outcome {
        let (done, when_done) = sync_channel(1);
        if self.orders.send((order, done)).is_err() {
            return Outcome::Ended;
        }
        self.wake.raise();
        match when_done.recv_timeout(PATIENCE) {
            Ok(()) => Outcome::Done,
            Err(RecvTimeoutError::Timeout) => Outcome::UnderWay,
            Err(RecvTimeoutError::Disconnected) => Outcome::Ended,
        }
    }
}

impl Orders {
    /// Raised when there are orders.
    pub fn wake(&self) -> &Event {
        &self.wake
    }

    /// The next order, and whom to tell when it is carried out.
    pub fn next(&self) -> Option<(Order, Done)> {
        let (order, done) = self.orders.try_recv().ok()?;
        Some((order, Done(done)))
    }

    /// Tells how the machine stands from now on.
    pub fn stand(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Relaxed);
    }
}

/// Somebody who waits for an order to be carried out.
pub struct Done(SyncSender<()>);

impl Done {
    /// It is.
    pub fn tell(self) {
        match self.0.try_send(()) {
            // There is room for one, and one is sent; or nobody waits any more.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_done_when_the_loop_says_so() {
        let (remote, orders) = pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !orders.wake().take() {
                    std::thread::yield_now();
                }
                let (order, done) = orders.next().unwrap();
                assert_eq!(order, Order::Pause);
                orders.stand(Standing::Paused);
                done.tell();
                assert!(orders.next().is_none());
            });
            assert_eq!(remote.order(Order::Pause), Outcome::Done);
            assert_eq!(remote.standing(), Standing::Paused);
        });
    }

    #[test]
    fn a_loop_that_is_busy_or_gone_holds_nobody_up() {
        let (remote, orders) = pair().unwrap();
        assert_eq!(remote.order(Order::Resume), Outcome::UnderWay);
        orders.next().unwrap().1.tell();
        drop(orders);
        assert_eq!(remote.order(Order::Resume), Outcome::Ended);
    }

    #[test]
    fn every_standing_is_told_apart() {
        let (remote, orders) = pair().unwrap();
        for standing in Standing::ALL {
            orders.stand(standing);
            assert_eq!(remote.standing(), standing);
        }
    }
}
