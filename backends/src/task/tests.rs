use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::{EngineKind, Event, Interest, Op};
use crate::testing::{GUEST_BASE, Guest, memfd};

const KINDS: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Epoll];
const PATIENCE: Duration = Duration::from_secs(20);

/// A piece of guest memory, and what tells that it was dropped.
struct Piece(Vec<Segment>, Rc<()>);

impl Buffers for Piece {
    fn segments(&self) -> &[Segment] {
        &self.0
    }
}

fn piece(guest: &Guest, at: u64, len: u32) -> Piece {
    let mut segments = Vec::new();
    assert!(guest.memory.translate(GUEST_BASE + at, len, &mut segments));
    Piece(segments, Rc::default())
}

/// A worker with nothing but tasks.
struct Worker {
    tasks: Tasks<Piece>,
    engine: Engine<Tagged<Piece>>,
    log: Rc<RefCell<Vec<String>>>,
}

impl Worker {
    fn new(kind: EngineKind) -> Worker {
        Worker { tasks: Tasks::default(), engine: Engine::new(kind).unwrap(), log: Rc::default() }
    }

    /// A task by itself.
    fn spawn<F: Future<Output = ()> + 'static>(&mut self, story: impl Fn(TaskIo<Piece>) -> F + 'static) {
        let spawner = self.tasks.pool(1, story);
        assert!(spawner.spawn(self.tasks.io()).is_ok());
    }

    fn say(&self) -> impl Fn(&str) + Clone + use<> {
        let log = Rc::clone(&self.log);
        move |text: &str| log.borrow_mut().push(text.to_owned())
    }

    fn round(&mut self) {
        self.tasks.run(&mut self.engine);
        self.wait(false);
    }

    fn wait(&mut self, sleep: bool) {
        self.engine.wait(sleep && !self.tasks.are_due()).unwrap();
        while let Some(event) = self.engine.event() {
            match event {
                Event::Ready(token) => self.tasks.on_ready(token, true),
                Event::Deaf(token) => self.tasks.on_ready(token, false),
                Event::Expired(alarm) => match Sleeper::of(alarm) {
                    Sleeper::Task(key) => self.tasks.on_expired(key),
                    Sleeper::Handler(_) => panic!("no handler is here"),
                },
                Event::Done(Tagged { home: Home::Task(key, _), owner }, result) => {
                    self.tasks.on_done(key, owner, result);
                }
                Event::Done(..) => panic!("no queue is here"),
            }
        }
    }

    fn run_until(&mut self, lines: usize) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.tasks.run(&mut self.engine);
            if self.log.borrow().len() >= lines {
                return self.log.borrow().clone();
            }
            assert!(Instant::now() < until, "{:?}", self.log);
            self.wait(true);
        }
    }
}

#[test]
fn tasks_sleep_beside_each_other() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let began = Instant::now();
        for (name, time) in [("late", 60), ("soon", 20), ("at once", 0)] {
            let say = worker.say();
            worker.spawn(move |io| {
                let say = say.clone();
                async move {
                    io.sleep(Duration::from_millis(time)).await;
                    assert!(began.elapsed() >= Duration::from_millis(time));
                    say(name);
                }
            });
        }
        assert_eq!(worker.run_until(3), ["at once", "soon", "late"], "{kind:?}");
        assert_eq!(worker.engine.deadline(), None);
        assert!(!worker.tasks.are_due());
    }
}

#[test]
fn a_task_reads_writes_and_syncs_with_its_own_buffers() {
    for kind in KINDS {
        let (guest, mut worker) = (Guest::new(8, false), Worker::new(kind));
        let file = File::from(memfd(0));
        file.write_all_at(b"0123456789", 0).unwrap();
        let shared = Rc::new(OwnedFd::from(file.try_clone().unwrap()));
        let (piece, say) = (RefCell::new(Some(piece(&guest, 0x1000, 4))), worker.say());
        worker.spawn(move |io| {
            let (file, piece, say) = (Rc::clone(&shared), piece.take().unwrap(), say.clone());
            async move {
                let (piece, read) = io.submit(&file, Op::Read { offset: 2 }, piece).await;
                let (piece, write) = io.submit(&file, Op::Write { offset: 8, durable: false }, piece).await;
                let (piece, sync) = io.submit(&file, Op::Sync, piece).await;
                let (_, past) = io.submit(&file, Op::Read { offset: 100 }, piece).await;
                say(&format!("{read:?} {write:?} {sync:?} {past:?}"));
            }
        });
        assert_eq!(worker.run_until(1), ["Ok(4) Ok(4) Ok(0) Ok(0)"], "{kind:?}");
        let mut text = [0; 12];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"012345672345");
    }
}

#[test]
fn a_failed_operation_gives_its_owner_back() {
    for kind in KINDS {
        let (guest, mut worker) = (Guest::new(8, false), Worker::new(kind));
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let (piece, file, say) = (RefCell::new(Some(piece(&guest, 0, 8))), Rc::new(writer), worker.say());
        worker.spawn(move |io| {
            let (file, piece, say) = (Rc::clone(&file), piece.take().unwrap(), say.clone());
            async move {
                let (piece, result) = io.submit(&file, Op::Read { offset: 0 }, piece).await;
                say(&format!("{} {}", piece.0.len(), result.is_err()));
            }
        });
        assert_eq!(worker.run_until(1), ["1 true"], "{kind:?}");
    }
}

#[test]
fn a_watch_keeps_what_happened_until_it_is_asked() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (ours, say) = (Rc::new(OwnedFd::from(ours)), worker.say());
        let seen = Rc::downgrade(&ours);
        worker.spawn(move |io| {
            let (ours, say) = (Rc::clone(&ours), say.clone());
            async move {
                let watch = io.watch(&ours, Interest::Read);
                say("watching");
                loop {
                    watch.ready().await.unwrap();
                    let mut bytes = [0; 8];
                    match rustix::io::read(&*ours, &mut bytes) {
                        Ok(0) => return say("end"),
                        Ok(count) => {
                            say(std::str::from_utf8(&bytes[..count]).unwrap());
                            // What comes meanwhile is not missed.
                            io.sleep(Duration::from_millis(5)).await;
                        }
                        Err(Errno::AGAIN) => {}
                        Err(errno) => panic!("{errno}"),
                    }
                }
            }
        });
        worker.run_until(1);
        for (lines, word) in [(2, "one"), (3, "two"), (4, "three")] {
            theirs.write_all(word.as_bytes()).unwrap();
            assert_eq!(worker.run_until(lines).last().unwrap(), word, "{kind:?}");
        }
        drop(theirs);
        assert_eq!(worker.run_until(5).last().unwrap(), "end", "{kind:?}");
        worker.round();
        // The story keeps one; neither task nor engine does.
        assert_eq!(seen.strong_count(), 1, "{kind:?}");
    }
}

/// A handler may hold a task's watch, and drop it in a round in which no task runs.
#[test]
fn a_watch_that_is_dropped_outside_of_tasks_ends_too() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let (bell, _writer) = rustix::pipe::pipe().unwrap();
        let bell = Rc::new(bell);
        let watch = worker.tasks.io().watch(&bell, Interest::Read);
        worker.round();
        drop(watch);
        assert!(worker.tasks.are_due(), "{kind:?}");
        worker.round();
        assert!(!worker.tasks.are_due(), "{kind:?}");
        assert_eq!(Rc::strong_count(&bell), 1, "{kind:?}");
    }
}

#[test]
fn what_cannot_be_watched_says_so() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let zero = Rc::new(OwnedFd::from(File::open("/dev/zero").unwrap()));
        let say = worker.say();
        worker.spawn(move |io| {
            let (zero, say) = (Rc::clone(&zero), say.clone());
            async move {
                let watch = io.watch(&zero, Interest::Read);
                let mut times = 0;
                while watch.ready().await.is_ok() {
                    times += 1;
                    assert!(times < 20, "it is always ready");
                }
                say("deaf");
            }
        });
        assert_eq!(worker.run_until(1), ["deaf"], "{kind:?}");
    }
}

#[test]
fn a_pool_has_room_for_its_slots_and_uses_them_again() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let (io, say) = (worker.tasks.io(), worker.say());
        let spawner = worker.tasks.pool(2, move |name: &'static str| {
            let (io, say) = (io.clone(), say.clone());
            async move {
                io.sleep(Duration::from_millis(2)).await;
                say(name);
            }
        });
        for turn in 1..=3 {
            assert_eq!(spawner.spawn("first"), Ok(()));
            assert_eq!(spawner.spawn("second"), Ok(()));
            assert_eq!(spawner.spawn("third"), Err("third"), "{kind:?}");
            assert_eq!(worker.run_until(turn * 2).len(), turn * 2);
        }
    }
}

/// Polls a future once, and drops it if it is not ready.
async fn once(future: impl Future<Output = ()>) -> bool {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

#[test]
fn a_sleep_that_is_dropped_wakes_nobody() {
    for kind in KINDS {
        let (mut worker, began) = (Worker::new(kind), Instant::now());
        let say = worker.say();
        worker.spawn(move |io| {
            let say = say.clone();
            async move {
                assert!(!once(io.sleep(Duration::from_millis(1))).await);
                // It takes over the key of the one before, and not its deadline.
                io.sleep(Duration::from_millis(40)).await;
                assert!(began.elapsed() >= Duration::from_millis(40));
                assert!(!once(io.sleep(Duration::from_secs(3600))).await);
                say("over");
            }
        });
        worker.run_until(1);
        worker.round();
        assert_eq!(worker.engine.deadline(), None, "{kind:?}");
    }
}

/// The task closes its file at once, and another one takes its number.
#[test]
fn an_operation_that_is_dropped_still_works_on_its_own_file() {
    for kind in KINDS {
        let (guest, mut worker) = (Guest::new(8, false), Worker::new(kind));
        guest.write(0x1000, b"text");
        let file = File::from(memfd(0));
        let (piece, say) = (piece(&guest, 0x1000, 4), worker.say());
        let alive = Rc::downgrade(&piece.1);
        let job = RefCell::new(Some((piece, file.try_clone().unwrap())));
        let other = Rc::new(RefCell::new(None));
        let taken = Rc::clone(&other);
        worker.spawn(move |io| {
            let (piece, file) = job.take().unwrap();
            let (other, say) = (Rc::clone(&other), say.clone());
            async move {
                let file = Rc::new(OwnedFd::from(file));
                assert!(
                    !once(async {
                        drop(io.submit(&file, Op::Write { offset: 0, durable: false }, piece).await)
                    })
                    .await
                );
                drop(file);
                *other.borrow_mut() = Some(File::from(memfd(0)));
                say("gone");
            }
        });
        worker.run_until(1);
        let until = Instant::now() + PATIENCE;
        while alive.strong_count() > 0 && Instant::now() < until {
            worker.round();
        }
        assert_eq!(alive.strong_count(), 0, "{kind:?}: its owner goes when the host is done");
        let written = |file: &File| file.metadata().unwrap().len();
        assert_eq!((written(&file), written(taken.borrow().as_ref().unwrap())), (4, 0), "{kind:?}");
    }
}

struct Guard(Rc<RefCell<Vec<String>>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.borrow_mut().push("dropped".into());
    }
}

#[test]
fn tasks_end_with_their_worker() {
    for kind in KINDS {
        let mut worker = Worker::new(kind);
        let (guest, bell) = (Guest::new(8, false), rustix::pipe::pipe().unwrap().0);
        let (piece, bell, log) =
            (RefCell::new(Some(piece(&guest, 0, 8))), Rc::new(bell), Rc::clone(&worker.log));
        let inner = Rc::clone(&log);
        worker.spawn(move |io| {
            let (bell, piece, guard) = (Rc::clone(&bell), piece.take().unwrap(), Guard(Rc::clone(&inner)));
            async move {
                let watch = io.watch(&bell, Interest::Read);
                let read = io.submit(&bell, Op::Read { offset: 0 }, piece);
                assert!(!once(async { drop(read.await) }).await);
                let _ = watch.ready().await;
                drop(guard);
            }
        });
        worker.round();
        drop(worker);
        assert_eq!(*log.borrow(), ["dropped"], "{kind:?}");
    }
}
