//! Worker threads: one engine, one handler, the queues they serve.
//!
//! In: commands from the control thread (start a queue, stop it, another call eventfd). Out: served queues.
//! A round of a worker is: pause until something happened; hand completions to the handler; run the tasks for which
//! something happened; give each queue that has something to do a bounded turn; publish and interrupt. A pause begins by looking at the rings for a
//! while where that has paid lately ([`crate::pause`]); drivers are asked to notify only before sleeping. A timer ends
//! a pause at its moment; a worker without one sleeps until something comes. Promises: a queue that is
//! never empty leaves time for the others; a stopped queue's base is answered only when nothing of it is in
//! flight and nothing will be written to its guest any more; an error of the host or the guest ends no
//! worker. Refuses nothing: what is wrong was refused by the session before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::cpus::CpuList;
use crate::device::{Device, Handler, Io, Queues, SOURCE_BASE, Source, Timer, Turn};
use crate::engine::{Alarm, Engine, EngineKind, Event, Interest, Prepared, Token};
use crate::log::{self, Class};
use crate::notify::Signal;
use crate::pause::Window;
use crate::queue::Queue;
use crate::sandbox::Filter;
use crate::sys;
use crate::task::{self, Home, Sleeper, Tagged, Tasks};

/// Token of the mailbox; kicks have the queue's number.
const MAILBOX: Token = Token(1 << 30);

/// Hints to the CPU between two looks at the rings: looking all the time takes the cache line from the driver.
const SPINS: usize = 16;

/// How long the end of the daemon waits for its workers.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// How often a worker that is waited for is freed from a system call that does not return.
const NUDGE_INTERVAL: Duration = Duration::from_millis(100);

/// What the control thread asks of a worker.
enum Command {
    Start(Box<Queue>, Arc<OwnedFd>),
    Stop(u16, Stop, SyncSender<u32>),
    SetCall(u16, Signal),
    Exit,
}

/// How a queue stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// What is in flight is waited for.
    Drain,
    /// What is in flight is given up where that can be, and stays marked in the in-flight region. Without one, as
    /// [`Stop::Drain`].
    Suspend,
}

/// The workers of a daemon; threads begin when a queue needs them.
pub struct Workers<D: Device> {
    device: Arc<D>,
    /// The one they begin with.
    engine: EngineKind,
    cpus: CpuList,
    /// What each thread takes on before it serves.
    filter: Arc<Filter>,
    /// As many as the device has use for; each waits here for its thread.
    engines: Vec<Option<Prepared>>,
    threads: Vec<Worker>,
}

struct Worker {
    commands: Sender<Command>,
    bell: Signal,
    thread: JoinHandle<()>,
    /// Hangs up when the thread has ended.
    ended: Receiver<()>,
}

impl<D: Device> Workers<D> {
    /// No worker yet; all that they will need of the kernel is there.
    ///
    /// # Errors
    /// The kernel refuses the engine that was asked for.
    pub fn new(device: Arc<D>, engine: EngineKind, cpus: CpuList) -> io::Result<Workers<D>> {
        Workers::fenced(device, engine, cpus, None)
    }

    /// The same; each of them holds `fence` open while anything of it is in flight at the host.
    ///
    /// # Errors
    /// As from [`Workers::new`].
    pub fn fenced(
        device: Arc<D>,
        engine: EngineKind,
        cpus: CpuList,
        fence: Option<&OwnedFd>,
    ) -> io::Result<Workers<D>> {
        let prepare = |_| Prepared::fenced(engine, fence.map(AsFd::as_fd)).map(Some);
        let engines = (0..device.workers().max(1)).map(prepare).collect::<io::Result<Vec<_>>>()?;
        let all_rings = engines.iter().flatten().all(Prepared::is_ring);
        let engine = if all_rings { EngineKind::IoUring } else { EngineKind::Epoll };
        Ok(Workers { device, engine, cpus, filter: Arc::default(), engines, threads: Vec::new() })
    }

    /// The engine that its threads begin with: never [`EngineKind::Auto`].
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// Has all threads take on this filter before they serve.
    pub fn confine(&mut self, filter: Filter) {
        self.filter = Arc::new(filter);
    }

    /// Serves `queue`, kicked by `kick`.
    ///
    /// # Errors
    /// The worker could not begin.
    pub fn start(&mut self, queue: Queue, kick: Arc<OwnedFd>) -> io::Result<()> {
        let at = self.place(queue.index());
        while self.threads.len() <= at {
            let worker = self.spawn(self.threads.len())?;
            self.threads.push(worker);
        }
        if self.threads.get(at).is_some_and(Worker::has_ended) {
            log::line!(
                error,
                Class::WorkerThread,
                worker = at,
                "A worker ended by itself; another one takes its place, with epoll"
            );
            self.threads[at] = self.spawn(at)?;
        }
        if let Some(worker) = self.threads.get(at) {
            worker.send(Command::Start(Box::new(queue), kick));
        }
        Ok(())
    }

    /// Which thread serves a queue.
    fn place(&self, index: u16) -> usize {
        usize::from(index).checked_rem(self.engines.len()).unwrap_or(0)
    }

    /// The sandbox lets nobody make another ring: a thread that takes the place of one does without.
    fn spawn(&mut self, number: usize) -> io::Result<Worker> {
        let engine = self.engines.get_mut(number).and_then(Option::take).unwrap_or_else(Prepared::late);
        let start = Start { engine, cpus: self.cpus.clone(), filter: Arc::clone(&self.filter), number };
        Worker::spawn(Arc::clone(&self.device), start)
    }

    /// Stops a queue: no new request is taken, what is in flight is waited for as long as `go_on` says so, which is
    /// asked now and then. The base to go on from; `None` when it was not waited for, and the queue goes on
    /// draining by itself.
    pub fn stop(&self, index: u16, how: Stop, go_on: impl Fn() -> bool) -> Option<u32> {
        let (answer, answered) = sync_channel(1);
        let worker = self.of(index)?;
        worker.send(Command::Stop(index, how, answer));
        worker.wait_for(&answered, go_on).ok()
    }

    /// Gives a running queue another call eventfd.
    pub fn set_call(&self, index: u16, call: Signal) {
        if let Some(worker) = self.of(index) {
            worker.send(Command::SetCall(index, call));
        }
    }

    fn of(&self, index: u16) -> Option<&Worker> {
        self.threads.get(self.place(index))
    }
}

impl<D: Device> Drop for Workers<D> {
    /// All workers end, within [`EXIT_PATIENCE`]. One that does not is left to the end of the process: what it
    /// works on stays with it.
    fn drop(&mut self) {
        let began = Instant::now();
        self.threads.iter().for_each(|worker| worker.send(Command::Exit));
        for (number, worker) in self.threads.iter().enumerate() {
            if let Err(RecvTimeoutError::Timeout) =
                worker.wait_for(&worker.ended, || began.elapsed() < EXIT_PATIENCE)
            {
                log::line!(
                    error,
                    Class::WorkerThread,
                    worker = number,
                    "A worker does not end; its host I/O hangs"
                );
            }
        }
    }
}

/// With what a thread begins.
struct Start {
    engine: Prepared,
    cpus: CpuList,
    filter: Arc<Filter>,
    number: usize,
}

impl Worker {
    fn spawn<D: Device>(device: Arc<D>, start: Start) -> io::Result<Worker> {
        let (commands, inbox) = channel();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let heard = bell.try_clone()?;
        let (ready, began) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        let name = format!("worker-{}", start.number);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Goes with the thread, however that ends.
            let _end = end;
            // They are the control thread's to hear.
            sys::hold_signals(true);
            match Round::begin(&*device, start, inbox, heard) {
                Ok(mut round) => {
                    let _ = ready.send(Ok(()));
                    round.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        began.recv().unwrap_or_else(|_| Err(io::Error::other("the worker ended at once")))?;
        Ok(Worker { commands, bell: Signal::new(Some(bell)), thread, ended })
    }

    fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    fn send(&self, command: Command) {
        // A worker that is gone is seen by whoever waits for its answer.
        let _ = self.commands.send(command);
        self.bell.raise();
    }

    /// Waits for an answer of this worker as long as `go_on` says so. A thread that stands in a system call which a
    /// front-end keeps from returning (an eventfd that it filled and made blocking) is freed from it now and then.
    fn wait_for<T>(&self, answer: &Receiver<T>, go_on: impl Fn() -> bool) -> Result<T, RecvTimeoutError> {
        loop {
            match answer.recv_timeout(NUDGE_INTERVAL) {
                Err(RecvTimeoutError::Timeout) if go_on() => sys::interrupt_thread(&self.thread),
                other => return other,
            }
        }
    }
}

/// What a worker thread has in hand.
struct Round<H: Handler> {
    handler: H,
    tasks: Tasks<H::Op>,
    engine: Engine<Tagged<H::Op>>,
    queues: Queues,
    /// By queue number, beside `queues`.
    duties: Vec<Duty>,
    inbox: Receiver<Command>,
    bell: OwnedFd,
    window: Window,
    running: bool,
}

/// What a worker owes a queue.
#[derive(Default)]
struct Duty {
    kick: Option<Arc<OwnedFd>>,
    /// A turn is due.
    due: bool,
    /// Whoever waits for the queue to be stopped.
    stopping: Option<SyncSender<u32>>,
    /// The handler has given back what it held, for the stop.
    quiesced: bool,
    /// Starts when the one before has drained: its front-end went without waiting for that.
    successor: Option<(Queue, Arc<OwnedFd>)>,
}

impl<H: Handler> Round<H> {
    /// What the calling thread needs to serve, after which it is confined to serving.
    fn begin<D: Device<Handler = H>>(
        device: &D,
        start: Start,
        inbox: Receiver<Command>,
        bell: OwnedFd,
    ) -> io::Result<Self> {
        start.cpus.pin(start.number)?;
        let mut engine = Engine::from_prepared(start.engine)?;
        engine.watch(bell.as_fd(), Interest::Read, MAILBOX)?;
        let mut handler = device.handler()?;
        let mut tasks = Tasks::default();
        handler.start(&mut Io { engine: &mut engine, tasks: &mut tasks })?;
        start.filter.apply().map_err(io::Error::other)?;
        let queues = Queues::default();
        Ok(Round {
            handler,
            tasks,
            engine,
            queues,
            duties: Vec::new(),
            inbox,
            bell,
            window: Window::default(),
            running: true,
        })
    }

    fn run(&mut self) {
        while self.running {
            let waited = if self.is_idle() { self.pause() } else { self.engine.wait(false) };
            if let Err(error) = waited {
                log::line!(error, Class::WorkerThread, %error, "The engine failed; this worker ends");
                return;
            }
            self.handler.woke();
            while let Some(event) = self.engine.event() {
                self.on_event(event);
            }
            self.run_tasks();
            for index in 0..self.duties.len() {
                self.serve(index);
            }
        }
        self.engine.unwatch(self.bell.as_fd(), MAILBOX);
    }

    fn is_idle(&self) -> bool {
        !self.duties.iter().any(|duty| duty.due) && !self.queues.any_woken() && !self.tasks.are_due()
    }

    fn run_tasks(&mut self) {
        if self.tasks.are_due() {
            self.tasks.run(&mut self.engine);
        }
        if self.tasks.take_news() {
            let mut io = Io { engine: &mut self.engine, tasks: &mut self.tasks };
            self.handler.told(&mut self.queues, &mut io);
        }
    }

    /// Nothing is left to do: looks for more, then sleeps, at most until the next timer.
    fn pause(&mut self) -> io::Result<()> {
        let (began, deadline) = (Instant::now(), self.engine.deadline());
        if self.look(began, deadline) || self.queues.arm() {
            return self.engine.wait(false);
        }
        self.engine.wait(true)?;
        // A pause that a timer ended says nothing of how soon work comes.
        if deadline.is_none_or(|at| Instant::now() < at) {
            self.window.slept(began.elapsed());
        }
        Ok(())
    }

    /// Looks at rings and engine for as long as that pays. Whether there is something to do.
    fn look(&mut self, began: Instant, deadline: Option<Instant>) -> bool {
        let end = began + self.window.length();
        let end = deadline.map_or(end, |at| at.min(end));
        while Instant::now() < end {
            let Some(ready) = self.engine.is_ready() else { return false };
            if ready || self.queues.any_more() {
                return true;
            }
            (0..SPINS).for_each(|_| std::hint::spin_loop());
        }
        false
    }

    fn on_event(&mut self, event: Event<Tagged<H::Op>>) {
        match event {
            Event::Ready(MAILBOX) => self.read_mail(),
            Event::Ready(Token(token)) if token & SOURCE_BASE != 0 => self.on_source(token),
            Event::Ready(token) if task::owns(token) => self.tasks.on_ready(token, true),
            Event::Ready(Token(token)) => {
                if let Some(duty) = self.duties.get_mut(token as usize) {
                    duty.due = true;
                }
            }
            Event::Deaf(Token(token)) if token & SOURCE_BASE != 0 => self.on_source(token),
            Event::Deaf(token) if task::owns(token) => self.tasks.on_ready(token, false),
            Event::Deaf(Token(token)) => {
                log::line!(
                    warn,
                    Class::QueueUnserved,
                    queue = token,
                    "Kick descriptor cannot be polled; the queue will not be served"
                );
            }
            Event::Expired(alarm) => self.on_expired(alarm),
            Event::Done(tagged, result) => self.on_done(tagged, result),
        }
    }

    fn on_source(&mut self, token: u32) {
        let source = Source((token & 0xffff).try_into().unwrap_or(u16::MAX));
        self.handler.ready(
            source,
            &mut self.queues,
            &mut Io { engine: &mut self.engine, tasks: &mut self.tasks },
        );
    }

    fn on_expired(&mut self, alarm: Alarm) {
        let timer = match Sleeper::of(alarm) {
            Sleeper::Handler(number) => Timer(number),
            Sleeper::Task(key) => return self.tasks.on_expired(key),
        };
        let mut io = Io { engine: &mut self.engine, tasks: &mut self.tasks };
        self.handler.expired(timer, &mut self.queues, &mut io);
    }

    fn on_done(&mut self, Tagged { home, owner }: Tagged<H::Op>, result: Result<u32, Errno>) {
        let index = match home {
            Home::Queue(index) => index,
            Home::Task(key, _) => return self.tasks.on_done(key, owner, result),
        };
        let mut io = Io { engine: &mut self.engine, tasks: &mut self.tasks };
        if let Some(queue) = self.queues.get(index) {
            return self.handler.complete(queue, owner, result, &mut io);
        }
        // A queue stays until no request of it is in flight.
        self.handler.complete_alone(owner, result, &mut self.queues, &mut io);
    }

    fn read_mail(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Start(queue, kick) => self.start(*queue, kick),
                Command::Stop(index, how, answer) => self.stop(index, how, answer),
                Command::SetCall(index, call) => {
                    if let Some(queue) = self.queues.get(index) {
                        queue.set_call(call);
                        // What was published since the driver turned to the new one went to the old one.
                        queue.raise_call();
                    }
                }
                Command::Exit => self.running = false,
            }
        }
    }

    fn start(&mut self, mut queue: Queue, kick: Arc<OwnedFd>) {
        let index = queue.index();
        let at = usize::from(index);
        if self.duties.len() <= at {
            self.duties.resize_with(at.saturating_add(1), Duty::default);
        }
        let Some(duty) = self.duties.get_mut(at) else { return };
        if self.queues.get(index).is_some() {
            duty.successor = Some((queue, kick));
            return;
        }
        if let Err(error) = self.engine.watch(kick.as_fd(), Interest::Read, Token(u32::from(index))) {
            log::line!(warn, Class::QueueUnserved, queue = index, %error, "Kick descriptor cannot be polled; the queue will not be served");
        }
        queue.recover();
        if !queue.is_fresh() {
            // Whoever served the ring before may have ended between the used index and the interrupt.
            queue.raise_call();
        }
        self.queues.insert(queue);
        *duty = Duty { kick: Some(kick), due: true, ..Duty::default() };
    }

    fn stop(&mut self, index: u16, how: Stop, answer: SyncSender<u32>) {
        let (Some(queue), Some(duty)) = (self.queues.get(index), self.duties.get_mut(usize::from(index)))
        else {
            return;
        };
        if let Some((waiting, _)) = duty.successor.take() {
            let _ = answer.send(waiting.base());
            return;
        }
        if how == Stop::Drain {
            queue.close();
        } else if queue.suspend() && H::CANCELS {
            self.engine.cancel(|tagged| matches!(tagged.home, Home::Queue(of) if of == index));
        }
        (duty.due, duty.stopping) = (false, Some(answer));
    }

    /// A queue's part of a round: its turn if one is due, then what a batch of completions owes the driver.
    fn serve(&mut self, at: usize) {
        let (Some(duty), Ok(index)) = (self.duties.get_mut(at), u16::try_from(at)) else { return };
        let Some(queue) = self.queues.get(index) else { return };
        // A queue that stops still owes its driver what a worker before us had taken.
        let wanted = duty.stopping.is_none() || queue.has_replays();
        let last = duty.stopping.is_some() && queue.in_flight() == 0;
        let due = std::mem::take(&mut duty.due) | queue.take_woken() | queue.has_more() | last;
        if due && wanted && queue.broken().is_none() {
            let mut io = Io { engine: &mut self.engine, tasks: &mut self.tasks };
            duty.due = turn(&mut self.handler, queue, &mut io);
            if last && !duty.due && queue.in_flight() == 0 {
                queue.abandon_replays();
            }
        }
        queue.flush();
        if duty.stopping.is_some() {
            self.rest(index);
        }
    }

    /// A queue that stops: it rests once nothing of it is in flight.
    fn rest(&mut self, index: u16) {
        let (Some(queue), Some(duty)) = (self.queues.get(index), self.duties.get_mut(usize::from(index)))
        else {
            return;
        };
        if queue.has_replays() && queue.broken().is_none() {
            return;
        }
        if !std::mem::replace(&mut duty.quiesced, true) {
            self.handler.quiesce(queue, &mut Io { engine: &mut self.engine, tasks: &mut self.tasks });
            // No turn comes after the one that was the last.
            queue.end_turn(false);
            duty.due = false;
            queue.flush();
        }
        if queue.in_flight() == 0 {
            self.finish(index);
        }
    }

    /// Nothing is in flight: the queue ends, and whoever waits for it learns where.
    fn finish(&mut self, index: u16) {
        let (Some(queue), Some(duty)) = (self.queues.remove(index), self.duties.get_mut(usize::from(index)))
        else {
            return;
        };
        let Duty { kick, stopping, successor, .. } = std::mem::take(duty);
        if let Some(kick) = kick {
            self.engine.unwatch(kick.as_fd(), Token(u32::from(index)));
        }
        let base = queue.base();
        queue.end();
        drop(queue);
        // Whoever asked may have stopped waiting.
        let _ = stopping.map(|answer| answer.send(base));
        if let Some((queue, kick)) = successor {
            self.start(queue, kick);
        }
    }
}

/// A queue's turn. `true`: another one is due.
fn turn<H: Handler>(handler: &mut H, queue: &mut Queue, io: &mut Io<'_, H::Op>) -> bool {
    queue.begin_turn();
    while let Some(request) = queue.next_poisoned() {
        handler.poisoned(queue, request);
    }
    let turn = handler.process(queue, io);
    queue.flush();
    queue.end_turn(turn == Turn::Drained)
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
