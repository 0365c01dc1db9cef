//! What tasks wait for: each wait is an entry here, under a key that the engine gives back with the event.
//!
//! In: what a task asks for, and the engine's events by key. Out: wishes for the engine, in the order in which they
//! came, and tasks that are due. An entry is made when a wait begins and goes with the wait, except that of an operation,
//! which stays until the host is done.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;

use super::{Due, DueList, Home, Sleeper, TOKENS, Tagged, TaskId};
use crate::engine::slab::Slab;
use crate::engine::{Buffers, Engine, Interest, Op, Token};

/// The worker as a task sees it. Clones are the same.
pub struct TaskIo<T>(Rc<Shared<T>>);

impl<T> Clone for TaskIo<T> {
    fn clone(&self) -> Self {
        TaskIo(Rc::clone(&self.0))
    }
}

struct Shared<T> {
    /// The task that runs now.
    current: Cell<TaskId>,
    waits: RefCell<Slab<Entry<T>>>,
    wishes: RefCell<VecDeque<Wish<T>>>,
    due: DueList,
    news: Cell<bool>,
}

/// A wait of a task.
struct Entry<T> {
    task: TaskId,
    state: State<T>,
}

/// What is waited for, and whether it has come.
enum State<T> {
    Sleep {
        over: bool,
    },
    Watch {
        ready: bool,
        deaf: bool,
    },
    /// An operation is under way.
    Begun,
    Done(Option<(T, Result<u32, Errno>)>),
    /// An operation is under way, and nobody waits for it any more.
    Forgotten,
}

impl<T> State<T> {
    fn take_outcome(&mut self) -> Option<(T, Result<u32, Errno>)> {
        let State::Done(outcome) = self else { return None };
        outcome.take()
    }

    fn take_readiness(&mut self) -> Option<Result<(), Deaf>> {
        match self {
            State::Watch { deaf: true, .. } => Some(Err(Deaf)),
            State::Watch { ready, .. } => std::mem::take(ready).then_some(Ok(())),
            _ => None,
        }
    }
}

/// What the engine is to do.
enum Wish<T> {
    Arm(u32, Instant),
    Disarm(u32),
    Watch(u32, Rc<OwnedFd>, Interest),
    /// The descriptor is closed after that at the soonest.
    Unwatch(u32, Rc<OwnedFd>),
    Submit(u32, Rc<OwnedFd>, Op, T),
}

impl<T> TaskIo<T> {
    pub(super) fn new(due: DueList) -> TaskIo<T> {
        TaskIo(Rc::new(Shared {
            current: Cell::default(),
            waits: RefCell::default(),
            wishes: RefCell::default(),
            due,
            news: Cell::default(),
        }))
    }

    /// Goes on after this time of the monotonic clock, in the next round at the soonest.
    pub async fn sleep(&self, time: Duration) {
        let wait = self.begin(State::Sleep { over: false });
        // A time that the clock cannot hold is for ever.
        if let Some(at) = Instant::now().checked_add(time) {
            self.wish(Wish::Arm(wait.key, at));
        }
        wait.until(|state| matches!(state, State::Sleep { over: true }).then_some(())).await;
    }

    /// Watches a descriptor until the [`Watch`] is dropped; one watch a descriptor.
    pub fn watch(&self, fd: &Rc<OwnedFd>, interest: Interest) -> Watch<T> {
        let wait = self.begin(State::Watch { ready: false, deaf: false });
        self.wish(Wish::Watch(wait.key, Rc::clone(fd), interest));
        Watch { wait, fd: Rc::clone(fd) }
    }

    /// Does a file operation; its owner comes back with the bytes moved or the host's error.
    pub async fn submit(&self, file: &Rc<OwnedFd>, op: Op, owner: T) -> (T, Result<u32, Errno>) {
        let wait = self.begin(State::Begun);
        self.wish(Wish::Submit(wait.key, Rc::clone(file), op, owner));
        wait.until(State::take_outcome).await
    }

    /// Has [`crate::device::Handler::told`] called after this round's tasks.
    pub fn tell(&self) {
        self.0.news.set(true);
    }

    fn begin(&self, state: State<T>) -> Wait<T> {
        let (key, _) = self.0.waits.borrow_mut().insert(Entry { task: self.0.current.get(), state });
        Wait { io: self.clone(), key }
    }

    fn wish(&self, wish: Wish<T>) {
        self.0.wishes.borrow_mut().push_back(wish);
    }

    /// Whatever begins to wait from now on is this task.
    pub(super) fn enter(&self, task: TaskId) {
        self.0.current.set(task);
    }

    pub(super) fn has_wishes(&self) -> bool {
        !self.0.wishes.borrow().is_empty()
    }

    pub(super) fn take_news(&self) -> bool {
        self.0.news.take()
    }

    /// Changes the state of a wait, and makes its task due.
    fn notice(&self, key: u32, change: impl FnOnce(&mut State<T>)) {
        if let Some(entry) = self.0.waits.borrow_mut().get_mut(key) {
            change(&mut entry.state);
            self.0.due.borrow_mut().push_back(Due::Task(entry.task));
        }
    }

    /// An event of an old watch may come late, for a key that something else has now: it says nothing then.
    pub(super) fn on_ready(&self, key: u32, heard: bool) {
        self.notice(key, |state| {
            if let State::Watch { ready, deaf } = state {
                (*ready, *deaf) = (true, *deaf || !heard);
            }
        });
    }

    pub(super) fn on_expired(&self, key: u32) {
        self.notice(key, |state| {
            if let State::Sleep { over } = state {
                *over = true;
            }
        });
    }

    pub(super) fn on_done(&self, key: u32, owner: T, result: Result<u32, Errno>) {
        let mut forgotten = false;
        self.notice(key, |state| {
            forgotten = matches!(state, State::Forgotten);
            *state = State::Done(Some((owner, result)));
        });
        if forgotten {
            let entry = self.0.waits.borrow_mut().remove(key);
            drop(entry);
        }
    }

    /// Hands all wishes to the engine.
    pub(super) fn carry_out(&self, engine: &mut Engine<Tagged<T>>)
    where
        T: Buffers,
    {
        loop {
            let Some(wish) = self.0.wishes.borrow_mut().pop_front() else { return };
            match wish {
                Wish::Arm(key, at) => engine.arm(Sleeper::Task(key).alarm(), at),
                Wish::Disarm(key) => engine.disarm(Sleeper::Task(key).alarm()),
                Wish::Watch(key, fd, interest) => {
                    if engine.watch(fd.as_fd(), interest, Token(TOKENS | key)).is_err() {
                        self.on_ready(key, false);
                    }
                }
                Wish::Unwatch(key, fd) => engine.unwatch(fd.as_fd(), Token(TOKENS | key)),
                Wish::Submit(key, file, op, owner) => {
                    let fd = file.as_raw_fd();
                    engine.submit(fd, op, Tagged { home: Home::Task(key, file), owner });
                }
            }
        }
    }
}

/// A wait that has begun.
struct Wait<T> {
    io: TaskIo<T>,
    key: u32,
}

impl<T> Wait<T> {
    /// Goes on when `outcome` finds what is waited for.
    async fn until<R>(&self, mut outcome: impl FnMut(&mut State<T>) -> Option<R>) -> R {
        poll_fn(|_| {
            let shared = &self.io.0;
            let mut waits = shared.waits.borrow_mut();
            let found = waits.get_mut(self.key).and_then(|entry| {
                entry.task = shared.current.get();
                outcome(&mut entry.state)
            });
            found.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        let mut waits = self.io.0.waits.borrow_mut();
        if let Some(Entry { state, .. }) = waits.get_mut(self.key) {
            match state {
                // The host is not done with it.
                State::Begun => return *state = State::Forgotten,
                State::Sleep { over: false } => self.io.wish(Wish::Disarm(self.key)),
                _ => {}
            }
        }
        let entry = waits.remove(self.key);
        // What it owns may come here when it is dropped.
        drop(waits);
        drop(entry);
    }
}

/// A watched descriptor, which stays open as long as it is watched.
pub struct Watch<T> {
    wait: Wait<T>,
    fd: Rc<OwnedFd>,
}

/// A descriptor that cannot be polled: a file, or a device that never wakes anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the descriptor cannot be watched")]
pub struct Deaf;

impl<T> Watch<T> {
    /// Goes on when the descriptor became ready since the last time, at once if it did meanwhile. An edge, not a level:
    /// go on until `EAGAIN` before the next. A spurious one does no harm.
    ///
    /// # Errors
    /// It cannot be watched, or not any more.
    pub async fn ready(&self) -> Result<(), Deaf> {
        self.wait.until(State::take_readiness).await
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.wait.io.wish(Wish::Unwatch(self.wait.key, Rc::clone(&self.fd)));
    }
}
