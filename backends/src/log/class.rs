//! Classes of lines that others can cause: each has a gate of its own, one line a second, and counters.
//!
//! In: somebody wants to write a line of a class. Out: whether it may be written, and how many were not since the last
//! one. Promises: nothing here waits or allocates; every line is counted, written or left out. A guest that breaks its
//! ring a million times fills no disk, and does not hide what a front-end does.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The time between two lines of a class.
const INTERVAL_MS: u64 = 1000;

/// Makes the enum, its names, and what the documentation says of each, from one table.
macro_rules! classes {
    ($($(#[doc = $about:literal])+ $class:ident = $name:literal by $cause:ident,)+) => {
        /// What lines of a daemon or of the VMM can be about, if somebody else can cause them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Class {
            $($(#[doc = $about])+ $class,)+
        }

        impl Class {
            /// All of them.
            pub const ALL: &'static [Class] = &[$(Class::$class,)+];

            /// What metrics and structured logs call it.
            pub const fn name(self) -> &'static str {
                match self { $(Class::$class => $name,)+ }
            }

            /// Who can cause it.
            pub const fn cause(self) -> Cause {
                match self { $(Class::$class => Cause::$cause,)+ }
            }

            /// What it is about, in a sentence.
            pub fn about(self) -> &'static str {
                match self { $(Class::$class => concat!($($about,)+).trim_start(),)+ }
            }
        }
    };
}

classes! {
    /// A front-end connected.
    FrontEndConnected = "front-end-connected" by FrontEnd,
    /// A front-end went, or was hung up on.
    FrontEndGone = "front-end-gone" by FrontEnd,
    /// A front-end waits and cannot be accepted.
    FrontEndWaits = "front-end-waits" by FrontEnd,
    /// A message of a front-end was refused.
    MessageRefused = "message-refused" by FrontEnd,
    /// A front-end does not read what the daemon tells it.
    FrontEndDeaf = "front-end-deaf" by FrontEnd,
    /// Guest memory can be cut short by the front-end.
    MemoryUnsealed = "memory-unsealed" by FrontEnd,
    /// A queue drains without its front-end, or cannot be kicked.
    QueueUnserved = "queue-unserved" by FrontEnd,
    /// A ring cannot go on with the memory or the features it has now.
    RingRefused = "ring-refused" by FrontEnd,
    /// A worker thread ended, or does not end; another takes its place.
    WorkerThread = "worker-thread" by FrontEnd,
    /// Device state was not carried over to another daemon.
    StateLost = "state-lost" by FrontEnd,
    /// Requests of an earlier worker are served again.
    RequestsReplayed = "requests-replayed" by FrontEnd,
    /// A driver broke its ring.
    RingBroken = "ring-broken" by Guest,
    /// A request or a queue was dropped: a bug in this program.
    RequestLost = "request-lost" by Guest,
    /// I/O of a guest failed on the host; the guest was told.
    HostIo = "host-io" by Guest,
    /// A disk has grown, or cannot.
    DiskGrew = "disk-grew" by Peer,
    /// The host lost what guests had written, and every flush fails from then on.
    WritesLost = "writes-lost" by Guest,
    /// Nobody takes what a guest writes to its console, and the oldest of it is dropped.
    ConsoleDropped = "console-dropped" by Guest,
    /// The host side of a console came, went, or cannot be served.
    ConsolePeer = "console-peer" by Peer,
    /// The keeper does not take what a worker gives it.
    KeeperDeaf = "keeper-deaf" by Peer,
    /// A worker ended, and another one goes on.
    WorkerEnded = "worker-ended" by Guest,
    /// A worker cannot be started.
    WorkerStart = "worker-start" by Guest,
    /// A front-end is gone, as its keeper sees it.
    SessionOver = "session-over" by FrontEnd,
    /// What is to go on in the next keeper cannot be stored.
    StoreRefused = "store-refused" by FrontEnd,
    /// A request on the control socket was refused.
    ControlRefused = "control-refused" by Client,
    /// Something was changed over the control socket.
    ControlChange = "control-change" by Client,
    /// A device of the VMM lost its daemon, or has it back.
    DaemonLost = "daemon-lost" by Daemon,
    /// A daemon or a driver does what the VMM does not take.
    DeviceRefused = "device-refused" by Guest,
    /// An interrupt or a notification of a device takes the slow way, or none.
    Interrupts = "interrupts" by Guest,
    /// A line of timings was lost.
    TimingsLost = "timings-lost" by Guest,
    /// The guest resets.
    GuestReset = "guest-reset" by Guest,
}

/// Who can cause a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The driver in the guest.
    Guest,
    /// A vhost-user front-end: the VMM.
    FrontEnd,
    /// What a daemon talks to on its other side: a console's reader, a server of blocks, a tunnel's end.
    Peer,
    /// A client of the control socket.
    Client,
    /// A vhost-user back-end, as the VMM sees it.
    Daemon,
}

/// Lets one line a second through and counts the others.
#[derive(Debug, Default)]
pub struct Gate {
    /// When the last line went through, in ms since the first one of the process; 0: none has.
    last_ms: AtomicU64,
    left_out: AtomicU64,
}

impl Gate {
    /// A gate that lets the next line through.
    pub const fn new() -> Gate {
        Gate { last_ms: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Whether a line may be written now, and how many were left out since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(now_ms())
    }

    fn pass_at(&self, now_ms: u64) -> Option<u64> {
        let last = self.last_ms.load(Ordering::Relaxed);
        let closed = last > 0 && now_ms.saturating_sub(last) < INTERVAL_MS;
        // Of two threads that come at the same moment one goes through.
        let swap = || self.last_ms.compare_exchange(last, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if closed || swap().is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

/// Milliseconds since the first line, from 1 on.
fn now_ms() -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(FIRST.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// A class's gate and what it has seen.
#[derive(Debug)]
struct Counted {
    gate: Gate,
    written: AtomicU64,
    left_out: AtomicU64,
}

impl Counted {
    const fn new() -> Counted {
        Counted { gate: Gate::new(), written: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    fn count(&self, passed: Option<u64>) -> Option<u64> {
        let counter = if passed.is_some() { &self.written } else { &self.left_out };
        counter.fetch_add(1, Ordering::Relaxed);
        passed
    }
}

fn counted(class: Class) -> Option<&'static Counted> {
    static COUNTED: [Counted; Class::ALL.len()] = [const { Counted::new() }; Class::ALL.len()];
    COUNTED.get(class as usize)
}

impl Class {
    /// Whether a line of this class may be written now, and how many were left out since the last one.
    pub fn pass(self) -> Option<u64> {
        counted(self).and_then(|counted| counted.count(counted.gate.pass()))
    }

    /// Through a gate of one's own: where those who can cause the line are few, and each is to be heard.
    pub fn by(self, gate: &Gate) -> Through<'_> {
        Through { class: self, gate: Some(gate) }
    }

    /// Through no gate: for a line that is said once, whoever does whatever how often.
    pub fn once(self) -> Through<'static> {
        Through { class: self, gate: None }
    }

    /// Whether only a keeper writes it: what was left out is said in its lines then, and in no metrics.
    const fn is_keepers(self) -> bool {
        matches!(self, Class::WorkerEnded | Class::WorkerStart | Class::SessionOver | Class::StoreRefused)
    }
}

/// A class with another gate than its own.
#[derive(Clone, Copy, Debug)]
pub struct Through<'a> {
    class: Class,
    gate: Option<&'a Gate>,
}

impl Through<'_> {
    /// As [`Class::pass`].
    pub fn pass(self) -> Option<u64> {
        counted(self.class).and_then(|counted| counted.count(self.gate.map_or(Some(0), Gate::pass)))
    }

    /// As [`Class::name`].
    pub const fn name(self) -> &'static str {
        self.class.name()
    }
}

/// By class: its name, the lines written, the lines left out, since this process began.
pub fn counts() -> impl Iterator<Item = (&'static str, u64, u64)> {
    Class::ALL.iter().filter(|class| !class.is_keepers()).filter_map(|class| {
        let Counted { written, left_out, .. } = counted(*class)?;
        Some((class.name(), written.load(Ordering::Relaxed), left_out.load(Ordering::Relaxed)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_rest_counted() {
        let gate = Gate::new();
        assert_eq!(gate.pass_at(1), Some(0));
        assert_eq!([gate.pass_at(2), gate.pass_at(1000)], [None, None]);
        assert_eq!(gate.pass_at(1001), Some(2));
        assert_eq!(gate.pass_at(2500), Some(0));
    }

    #[test]
    fn every_line_of_a_class_is_counted_once() {
        let of = |class: Class| counts().find(|(name, ..)| *name == class.name()).unwrap();
        let (_, written, left_out) = of(Class::StateLost);
        let passed = (0..1000).filter(|_| Class::StateLost.pass().is_some()).count() as u64;
        assert_eq!(of(Class::StateLost), ("state-lost", written + passed, left_out + 1000 - passed));
        assert!((1..10).contains(&passed), "{passed}");
        let own = Gate::new();
        assert_eq!(Class::StateLost.by(&own).pass(), Some(0));
        assert_eq!(of(Class::StateLost), ("state-lost", written + passed + 1, left_out + 1000 - passed));
    }

    #[test]
    fn a_flood_of_one_class_hides_no_other() {
        while Class::FrontEndWaits.pass().is_some() {}
        assert_eq!(Class::FrontEndDeaf.pass(), Some(0));
    }

    #[test]
    fn names_are_those_of_metrics_and_each_stands_once() {
        let mut names: Vec<_> = Class::ALL.iter().map(|class| class.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Class::ALL.len());
        assert!(Class::ALL.iter().enumerate().all(|(at, class)| *class as usize == at));
    }
}
