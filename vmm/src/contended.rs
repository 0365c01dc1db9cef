//! A lock with two kinds of holders: vCPU threads, which wait for it, and the main loop, which must not.
//!
//! A vCPU thread may keep the lock for as long as a daemon drains or standard output is full. The main loop asks
//! with [`Contended::try_lock`]; when that says no, the event it was made with is raised as soon as the lock is
//! free, and the main loop asks again. It is raised for nobody else, so a lock that nobody missed costs no wake-up.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::kvm::event::Event;

/// A value under such a lock.
pub struct Contended<T> {
    value: Mutex<T>,
    missed: AtomicBool,
    free: Arc<Event>,
}

impl<T> Contended<T> {
    /// `free` is raised when the lock is free again after it was missed.
    pub fn new(value: T, free: Arc<Event>) -> Contended<T> {
        Contended { value: Mutex::new(value), missed: AtomicBool::new(false), free }
    }

    /// For vCPU threads: waits. One that panicked in here must not take the others along.
    pub fn lock(&self) -> Guard<'_, T> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Guard { value, _told: Told(self) }
    }

    /// For the main loop: `None` if somebody else has the lock, and then `free` will be raised.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.missed.store(true, Ordering::Relaxed);
        // Either this look finds the lock free, or its holder finds `missed` after letting go.
        fence(Ordering::SeqCst);
        let value = match self.value.try_lock() {
            Ok(value) => value,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.missed.store(false, Ordering::Relaxed);
        Some(Guard { value, _told: Told(self) })
    }
}

/// The lock while it is held.
pub struct Guard<'a, T> {
    value: MutexGuard<'a, T>,
    /// Dropped after `value`, and so when the lock is free.
    _told: Told<'a, T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

struct Told<'a, T>(&'a Contended<T>);

impl<T> Drop for Told<'_, T> {
    fn drop(&mut self) {
        fence(Ordering::SeqCst);
        if self.0.missed.swap(false, Ordering::Relaxed) {
            self.0.free.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contended() -> (Contended<u8>, Arc<Event>) {
        let free = Arc::new(Event::new().unwrap());
        (Contended::new(0, Arc::clone(&free)), free)
    }

    #[test]
    fn who_missed_the_lock_is_told_when_it_is_free() {
        let (contended, free) = contended();
        let held = contended.lock();
        assert!(contended.try_lock().is_none());
        assert!(!free.is_raised());
        drop(held);
        assert!(free.take());
        *contended.try_lock().unwrap() = 1;
        assert_eq!(*contended.lock(), 1);
    }

    #[test]
    fn a_lock_that_nobody_missed_wakes_nobody() {
        let (contended, free) = contended();
        drop(contended.lock());
        drop(contended.try_lock());
        drop(contended.lock());
        assert!(!free.is_raised());
    }

    #[test]
    fn no_miss_is_forgotten() {
        let (contended, free) = contended();
        let rounds = 20_000;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..rounds).for_each(|_| *contended.lock() = 1));
            for round in 0..rounds {
                while contended.try_lock().is_none() {
                    let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
                    let mut wanted = [rustix::event::PollFd::new(&*free, rustix::event::PollFlags::IN)];
                    let told = rustix::event::poll(&mut wanted, Some(&patience));
                    assert_eq!(told, Ok(1), "round {round}");
                    free.take();
                }
            }
        });
    }
}
