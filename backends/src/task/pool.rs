//! Slots for tasks of one async function.
//!
//! In: jobs, from a [`Spawner`]. Out: running tasks. The type of an async function cannot be named, so a pool is
//! hidden behind [`Slots`]: one box a pool and one a slot, made with it, and tasks move into slots.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::{Due, DueList};

/// A pool, whatever its tasks are.
pub(super) trait Slots {
    /// Makes a task of the oldest job; its slot.
    fn begin(&mut self) -> Option<usize>;

    /// Lets a task go on. One that is over already is not there any more: nothing happens.
    fn poll(&mut self, slot: usize);
}

/// Tasks that are made by `story`.
pub(super) struct Pool<J, F, S> {
    story: S,
    inbox: Rc<Inbox<J>>,
    slots: Vec<Pin<Box<Option<F>>>>,
    free: Vec<usize>,
}

struct Inbox<J> {
    jobs: RefCell<VecDeque<J>>,
    /// Free slots less jobs that wait.
    room: Cell<usize>,
}

impl<J, F, S> Pool<J, F, S> {
    pub(super) fn new(slots: usize, story: S, number: usize, due: DueList) -> (Self, Spawner<J>) {
        let jobs = RefCell::new(VecDeque::with_capacity(slots));
        let inbox = Rc::new(Inbox { jobs, room: Cell::new(slots) });
        let pool = Pool {
            story,
            inbox: Rc::clone(&inbox),
            slots: (0..slots).map(|_| Box::pin(None)).collect(),
            free: (0..slots).rev().collect(),
        };
        (pool, Spawner { inbox, number, due })
    }
}

impl<J, F: Future<Output = ()>, S: Fn(J) -> F> Slots for Pool<J, F, S> {
    fn begin(&mut self) -> Option<usize> {
        let job = self.inbox.jobs.borrow_mut().pop_front()?;
        // There is a slot for each job that was let in.
        let slot = self.free.pop()?;
        self.slots[slot].set(Some((self.story)(job)));
        Some(slot)
    }

    fn poll(&mut self, slot: usize) {
        let place = &mut self.slots[slot];
        let Some(task) = place.as_mut().as_pin_mut() else { return };
        if task.poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            place.set(None);
            self.free.push(slot);
            self.inbox.room.update(|room| room + 1);
        }
    }
}

/// Begins tasks of one pool.
pub struct Spawner<J> {
    inbox: Rc<Inbox<J>>,
    number: usize,
    due: DueList,
}

impl<J> Spawner<J> {
    /// Begins a task, which runs in this or the next round of the worker.
    ///
    /// # Errors
    /// All slots are taken: the job comes back.
    pub fn spawn(&self, job: J) -> Result<(), J> {
        let Some(room) = self.inbox.room.get().checked_sub(1) else { return Err(job) };
        self.inbox.room.set(room);
        self.inbox.jobs.borrow_mut().push_back(job);
        self.due.borrow_mut().push_back(Due::Job(self.number));
        Ok(())
    }
}
