//! Tasks of a worker: stories that take long (reconnect, retry, heal), told as async functions, beside the requests.
//!
//! ```text
//! Handler::start   io.tasks().pool(slots, story) ──► Spawner          once, when the worker begins
//! anywhere         spawner.spawn(job)            ──► story(job)       in a free slot
//! in a story       io.sleep(), io.watch(), io.submit()                 through its TaskIo
//!                  io.tell()                     ──► Handler::told     when its handler should look
//! ```
//! In: jobs, and what the worker's engine reports. Out: wishes, which the worker carries out on its engine after the
//! tasks ran. A pool has room for a fixed number of tasks of one async function, taken when it is made; a task, its
//! sleeps, waits and operations allocate nothing, lock nothing and count no references but those of files. Each
//! task that is due runs once a round, between events and queues: tasks do not hold the queues up longer than a round.
//!
//! Promises: a wait that is dropped is over; an operation that is dropped is not, and its owner is dropped when the
//! host is done with it; descriptors stay open as long as the engine knows them. A worker that ends drops its tasks
//! where they stand.
//! Refuses: futures that are not made here cannot wake a task (there is no waker to call). What a task waits for is
//! a sleep, a watch or an operation, or several of them polled together: each wakes it.

mod io;
mod pool;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;

use crate::engine::{Alarm, Buffers, Engine, Token};
use crate::memory::Segment;
pub use io::{Deaf, TaskIo, Watch};
pub use pool::Spawner;
use pool::{Pool, Slots};

/// Tokens of what tasks watch; the rest is the key of the wait.
const TOKENS: u32 = 1 << 29;

/// An operation's owner, and where its completion belongs.
#[derive(Debug)]
pub struct Tagged<T> {
    /// Who began it.
    pub home: Home,
    /// The owner of the buffers.
    pub owner: T,
}

/// Who began an operation.
#[derive(Debug)]
pub enum Home {
    /// The handler, for a request of this queue.
    Queue(u16),
    /// A task, which waits under this key; the file stays open meanwhile.
    Task(u32, Rc<OwnedFd>),
}

impl<T: Buffers> Buffers for Tagged<T> {
    fn segments(&self) -> &[Segment] {
        self.owner.segments()
    }
}

/// A place for a task: the pool, and the slot in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TaskId {
    pool: usize,
    slot: usize,
}

/// What is to be done in the next round.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// A job waits in this pool's inbox.
    Job(usize),
    /// Something that a task waits for has happened.
    Task(TaskId),
}

/// What is due, for all who know of it.
type DueList = Rc<RefCell<VecDeque<Due>>>;

/// The tasks of one worker.
pub struct Tasks<T> {
    pools: Vec<Box<dyn Slots>>,
    io: TaskIo<T>,
    due: DueList,
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        let due = DueList::default();
        Tasks { pools: Vec::new(), io: TaskIo::new(Rc::clone(&due)), due }
    }
}

impl<T> Tasks<T> {
    /// What tasks use to sleep, watch and read; for them to take along.
    pub fn io(&self) -> TaskIo<T> {
        self.io.clone()
    }

    /// Room for `slots` tasks of one async function.
    pub fn pool<J, F, S>(&mut self, slots: usize, story: S) -> Spawner<J>
    where
        J: 'static,
        F: Future<Output = ()> + 'static,
        S: Fn(J) -> F + 'static,
    {
        let (pool, spawner) = Pool::new(slots, story, self.pools.len(), Rc::clone(&self.due));
        self.pools.push(Box::new(pool));
        spawner
    }

    /// Something waits to be run, or to be told to the engine.
    pub fn are_due(&self) -> bool {
        !self.due.borrow().is_empty() || self.io.has_wishes()
    }

    /// Runs each task that is due, once. What became due meanwhile is for the next round.
    pub fn run(&mut self, engine: &mut Engine<Tagged<T>>)
    where
        T: Buffers,
    {
        let count = self.due.borrow().len();
        for _ in 0..count {
            let next = self.due.borrow_mut().pop_front();
            if let Some(id) = next.and_then(|due| self.task(due)) {
                self.io.enter(id);
                self.pools[id.pool].poll(id.slot);
            }
        }
        self.io.carry_out(engine);
    }

    /// The task that is to run: for a job the new one.
    fn task(&mut self, due: Due) -> Option<TaskId> {
        match due {
            Due::Task(id) => Some(id),
            Due::Job(pool) => self.pools[pool].begin().map(|slot| TaskId { pool, slot }),
        }
    }

    /// A task wants its handler to look; told once.
    pub(crate) fn take_news(&self) -> bool {
        self.io.take_news()
    }

    /// A descriptor that a task watches became ready, or cannot be watched any more.
    pub(crate) fn on_ready(&self, token: Token, heard: bool) {
        self.io.on_ready(token.0 & !TOKENS, heard);
    }

    /// A task's sleep is over.
    pub(crate) fn on_expired(&self, key: u32) {
        self.io.on_expired(key);
    }

    /// An operation of a task is over: `key` is that of its [`Home`].
    pub fn on_done(&self, key: u32, owner: T, result: Result<u32, Errno>) {
        self.io.on_done(key, owner, result);
    }
}

/// A watch of a task.
pub(crate) fn owns(token: Token) -> bool {
    token.0 & !(TOKENS - 1) == TOKENS
}

/// Whose alarm went off. Those of handlers are even, those of tasks odd: both are small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleeper {
    Handler(u16),
    Task(u32),
}

impl Sleeper {
    pub(crate) fn alarm(self) -> Alarm {
        match self {
            Sleeper::Handler(timer) => Alarm(u32::from(timer) * 2),
            Sleeper::Task(key) => Alarm(key * 2 + 1),
        }
    }

    pub(crate) fn of(Alarm(number): Alarm) -> Sleeper {
        match number % 2 {
            0 => Sleeper::Handler((number / 2).try_into().unwrap_or(u16::MAX)),
            _ => Sleeper::Task(number / 2),
        }
    }
}

#[cfg(test)]
mod tests;
