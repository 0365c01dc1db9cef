//! Many kills of one daemon under load, at moments that a seed chooses, and what came of them.
//!
//! In: a [`Plan`]. Out: a [`Tally`] of kills by phase and of pauses, or the first [`Failure`], which names all that is
//! needed to see it again. Each round: traffic for a while, a kill in its phase, recovery, the first interrupt that
//! brings something back (the pause ends), and everything that was outstanding. The phase that counts is the one at
//! the very kill: a message that was answered before was none, and requests that had all come back were none in flight.
//!
//! ```text
//! idle        nothing is outstanding
//! in-message  the front-end has sent a message and has no answer; requests are in flight meanwhile
//! in-flight   requests are
//! ```
//! One round in eight kills the successor too, while it takes over. Where a keeper keeps a disk over a graph, every other
//! round changes the graph meanwhile: whoever serves after the kill, it is the one graph or the other.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use backends::proto::{Code, ProtocolFeatures, Reply, Request};
use clap::ValueEnum;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::blk::{self, BlkLoad};
use super::console::{self, ConsoleLoad};
use super::graph::{self, Changes};
use super::load::{Fault, Load};
use super::rig::{Mode, Rig};
use super::rng::RngLoad;
use crate::daemon::{Counts, Launch};
use crate::frontend::Wants;
use crate::guest::format::RingKind;
use crate::guest::ring::Ring;
use crate::random::Random;
use crate::wait;

/// Longest time between a message or a submission and the kill.
const MAX_DELAY_US: u64 = 1500;
/// Longest time between the beginning of a change of the graph, which is that of a process, and the kill.
const LATEST_CHANGE_US: u64 = 40_000;
/// Rounds of traffic before a kill, at most.
const MAX_LEAD: u64 = 8;
/// Kills in a row, and a second, that do not make a keeper take its time.
const BURST: u32 = 15;
const KILLS_PER_SECOND: u32 = 4;
/// What memory may grow by over all kills: allocators keep some.
const RSS_SLACK_KIB: u64 = 2048;
const MAPS_SLACK: usize = 4;
const FDS_SLACK: usize = 4;

/// A daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// `outboard-blk`
    Blk,
    /// `outboard-blk` over a graph of five layers
    BlkGraph,
    /// `outboard-rng`
    Rng,
    /// `outboard-console`
    Console,
}

impl Device {
    /// All of them.
    pub const ALL: [Device; 4] = [Device::Blk, Device::BlkGraph, Device::Rng, Device::Console];

    /// Queues it has in these tests.
    pub fn queues(self) -> u16 {
        if self == Device::Rng { 1 } else { 2 }
    }

    /// The program with the options that its load needs.
    pub fn launch(self) -> Launch {
        match self {
            Device::Blk => blk::launch(Launch::new("outboard-blk")),
            Device::BlkGraph => graph::launch(Launch::new("outboard-blk"), blk::SECTORS),
            Device::Rng => Launch::new("outboard-rng"),
            Device::Console => console::launch(Launch::new("outboard-console")),
        }
    }

    /// The load that goes with it, on rings that this starts.
    ///
    /// # Panics
    /// The daemon refuses the rings.
    pub fn load(self, rig: &mut Rig, random: Random) -> Box<dyn Load> {
        let mut rings = rig.start_rings();
        match (self, rings.pop(), rings.pop()) {
            (Device::Rng, Some(ring), _) => Box::new(RngLoad::new(ring, random)),
            (Device::Console, Some(tx), Some(rx)) => {
                Box::new(ConsoleLoad::new(rx, tx, random, rig.daemon.dir()))
            }
            (_, second, first) => Box::new(self.disk(rig, first.into_iter().chain(second).collect(), random)),
        }
    }

    /// The load of a disk on these rings.
    pub fn disk(self, rig: &Rig, rings: Vec<Ring>, random: Random) -> BlkLoad {
        let load = if self == Device::BlkGraph {
            BlkLoad::of_nobody_else(rings, random)
        } else {
            BlkLoad::new(rings, random, rig.daemon.dir())
        };
        load.with(rig.frontend.features())
    }

    /// N5: its processes have the descriptors, threads, mappings and memory that they had. A graph that was `changed` goes on
    /// from its text and from descriptors that were given later, of which there are as many for any number of changes.
    ///
    /// # Errors
    /// They have not.
    pub fn same_counts(self, before: &[Counts], after: &[Counts], changed: bool) -> Result<(), Fault> {
        // Bounce buffers come and go, beside each other in one mapping or in several.
        let more_maps = if self == Device::BlkGraph { MAPS_SLACK } else { 0 };
        let same = |(before, after): (&Counts, &Counts)| {
            before.threads == after.threads
                && after.fds.abs_diff(before.fds) <= if changed { FDS_SLACK } else { 0 }
                && after.maps.abs_diff(before.maps) <= more_maps
                && after.rss_kib <= before.rss_kib + RSS_SLACK_KIB
        };
        let all = before.iter().zip(after).all(same);
        if all { Ok(()) } else { Err(Fault::Counts(format!("{after:?} where there were {before:?}"))) }
    }

    /// Folder of its sources.
    pub fn folder(self) -> &'static str {
        match self {
            Device::Blk | Device::BlkGraph => "blk",
            Device::Rng => "rng",
            Device::Console => "console",
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// To which daemon.
    pub device: Device,
    /// On which rings.
    pub rings: RingKind,
    /// Who brings the session back.
    pub mode: Mode,
    /// How often it is killed.
    pub kills: u32,
    /// What chooses the moments.
    pub seed: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { device, rings, mode, kills, seed } = self;
        write!(f, "{device:?} {rings:?} {mode:?} kills={kills} seed={seed}")
    }
}

/// When somebody is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    InMessage(Message),
    InFlight,
}

/// What a front-end may be saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Features,
    Config,
    MemoryTable,
    Enable(u8),
    /// A ring is stopped, and started again where it stood.
    Stop(u8),
}

/// One kill.
#[derive(Clone, Copy, Debug)]
struct Strike {
    phase: Phase,
    lead: u64,
    delay: Duration,
    /// The successor is killed too.
    again: bool,
}

impl Strike {
    fn choose(random: &mut Random, queues: u16) -> Strike {
        let queue = u8::try_from(random.below(queues.into())).unwrap_or(0);
        let message = match random.below(8) {
            0 => Message::Features,
            1 => Message::Config,
            2 | 3 => Message::MemoryTable,
            4 => Message::Enable(queue),
            _ => Message::Stop(queue),
        };
        let phase = match random.below(6) {
            0 => Phase::Idle,
            1 | 2 => Phase::InMessage(message),
            _ => Phase::InFlight,
        };
        let delay = Duration::from_micros(random.below(MAX_DELAY_US) >> random.below(6));
        Strike { phase, lead: 1 + random.below(MAX_LEAD), delay, again: random.below(8) == 0 }
    }
}

/// Why a run is not good.
#[derive(Debug, thiserror::Error)]
#[error("{plan}: after kill {kill} ({strike}): {fault}")]
pub struct Failure {
    plan: Plan,
    kill: u32,
    strike: String,
    /// What happened.
    pub fault: Fault,
}

/// What was done and seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Kills with nothing outstanding.
    pub idle: u32,
    /// Kills with a message unanswered.
    pub in_message: u32,
    /// Kills with requests in flight.
    pub in_flight: u32,
    /// Kills of a successor that was taking over.
    pub again: u32,
    /// Chains whose bytes came twice where they may.
    pub repeated: u64,
    /// Requests that came back.
    pub requests: u64,
    /// Changes of the graph that were made while somebody was killed.
    pub changes: u32,
    /// From each kill to the next interrupt that brought something back.
    pub pauses: Vec<Duration>,
}

impl Tally {
    /// All kills.
    pub fn kills(&self) -> u32 {
        self.idle + self.in_message + self.in_flight + self.again
    }

    /// The pause that so many of a hundred do not exceed, in milliseconds.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let mut pauses = self.pauses.clone();
        pauses.sort_unstable();
        let at = (pauses.len() * percent).div_ceil(100).saturating_sub(1);
        pauses.get(at).map_or(0.0, |pause| pause.as_secs_f64() * 1e3)
    }

    /// Adds another run.
    pub fn add(&mut self, other: &Tally) {
        self.idle += other.idle;
        self.in_message += other.in_message;
        self.in_flight += other.in_flight;
        self.again += other.again;
        self.repeated += other.repeated;
        self.requests += other.requests;
        self.changes += other.changes;
        self.pauses.extend(&other.pauses);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { idle, in_message, in_flight, again, repeated, requests, changes, .. } = self;
        let (p50, p99, max) = (self.percentile_ms(50), self.percentile_ms(99), self.percentile_ms(100));
        write!(
            f,
            "idle={idle} in_message={in_message} in_flight={in_flight} again={again} requests={requests} "
        )?;
        write!(f, "changes={changes} repeated={repeated} p50_ms={p50:.1} p99_ms={p99:.1} max_ms={max:.1}")
    }
}

/// Carries out a plan.
///
/// # Errors
/// The first thing that a guest would have noticed.
///
/// # Panics
/// The daemon cannot be started at all.
pub fn run(plan: Plan) -> Result<Tally, Failure> {
    let mut soak = Soak::new(plan);
    let mut strike = None;
    let outcome = loop {
        if soak.tally.kills() >= plan.kills {
            break soak.finish();
        }
        let next = Strike::choose(&mut soak.random, plan.device.queues());
        strike = Some(next);
        if let Err(fault) = soak.round(next) {
            break Err(fault);
        }
    };
    let (kill, strike) =
        (soak.tally.kills(), strike.map_or_else(String::new, |strike| format!("{strike:?}")));
    match outcome {
        Ok(()) => Ok(soak.tally),
        Err(fault) => Err(Failure { plan, kill, strike, fault }),
    }
}

struct Soak {
    plan: Plan,
    rig: Rig,
    load: Box<dyn Load>,
    random: Random,
    pace: Pace,
    config: Vec<u8>,
    before: Vec<Counts>,
    tally: Tally,
    /// Graphs to change to, where that outlives a kill.
    changes: Option<Changes>,
}

impl Soak {
    fn new(plan: Plan) -> Soak {
        let mut random = Random::new(plan.seed);
        let in_order = random.below(2) == 0;
        // Some front-ends know nothing of in-flight regions: then the keeper has one of its own.
        let tracks = plan.mode == Mode::Reconnect || random.below(2) == 0;
        let unknown = if tracks { ProtocolFeatures::empty() } else { ProtocolFeatures::INFLIGHT_SHMFD };
        let protocol = Some(ProtocolFeatures::all() - unknown);
        let wants = Wants { in_order, protocol, ..Wants::on(plan.rings) };
        let mut rig = Rig::start(plan.device.launch(), plan.mode, wants, plan.device.queues());
        let load = plan.device.load(&mut rig, Random::new(random.next_u64()));
        let config = rig.frontend.config(0, 8).unwrap_or_default();
        let (pace, before, tally) = (Pace::new(plan.mode), Vec::new(), Tally::default());
        let changing = plan.device == Device::BlkGraph && plan.mode == Mode::Keeper;
        let changes = changing.then(|| Changes::new(rig.daemon.dir(), blk::SECTORS));
        Soak { plan, rig, load, random, pace, config, before, tally, changes }
    }

    fn round(&mut self, strike: Strike) -> Result<(), Fault> {
        self.traffic(strike)?;
        let message = self.prepare(strike)?;
        let change = self.change();
        let since = Instant::now();
        while since.elapsed() < strike.delay {
            std::hint::spin_loop();
        }
        self.count(message.is_some());
        let mut killed = self.rig.kill(&mut *self.load)?;
        if strike.again && self.tally.kills() < self.plan.kills {
            killed = self.kill_successor(killed)?;
        }
        self.rig.recover(&mut *self.load)?;
        if let Some(message) = message {
            self.answered(message)?;
        }
        self.resume(killed)?;
        self.changed(change)
    }

    /// Begins a change of the graph in some rounds; the kill comes at any moment of it.
    fn change(&mut self) -> Option<Child> {
        let changes = self.changes.as_ref().filter(|_| self.random.below(2) == 0)?;
        let nth = usize::try_from(self.random.below(changes.count() as u64)).unwrap_or(0);
        let begun = changes.apply(nth).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        std::thread::sleep(Duration::from_micros(self.random.below(LATEST_CHANGE_US)));
        begun.ok()
    }

    /// It was made or not; it has ended.
    fn changed(&mut self, change: Option<Child>) -> Result<(), Fault> {
        let Some(mut change) = change else { return Ok(()) };
        let pid = Pid::from_child(&change);
        let ended =
            pidfd_open(pid, PidfdFlags::empty()).map(|pidfd| wait::one_readable(&pidfd, wait::deadline()));
        if ended != Ok(true) {
            let _ = change.kill();
        }
        match (ended, change.wait()) {
            (Ok(true), Ok(status)) => self.tally.changes += u32::from(status.success()),
            other => return Err(Fault::Answer(format!("a change of the graph has no end: {other:?}"))),
        }
        Ok(())
    }

    /// Requests go on for a while, and as long as the keeper needs to forget earlier kills.
    fn traffic(&mut self, strike: Strike) -> Result<(), Fault> {
        let mut rounds = 0;
        while rounds < strike.lead || !self.pace.allows(Instant::now()) {
            self.load.submit();
            self.tally.requests += self.load.wait()? as u64;
            rounds += 1;
        }
        if self.before.is_empty() {
            self.at_rest()?;
            self.before = self.rig.counts();
        }
        Ok(())
    }

    /// Makes it the phase that is wanted. The message that is under way, if one is.
    fn prepare(&mut self, strike: Strike) -> Result<Option<Message>, Fault> {
        match strike.phase {
            Phase::Idle => {
                self.at_rest()?;
                Ok(None)
            }
            Phase::InFlight => {
                self.load.submit();
                Ok(None)
            }
            Phase::InMessage(message) => {
                self.load.submit();
                self.say(message)?;
                Ok(Some(message))
            }
        }
    }

    fn at_rest(&mut self) -> Result<(), Fault> {
        self.load.drain()?;
        self.load.check()
    }

    /// The phase at this moment.
    fn count(&mut self, message: bool) {
        let tally = &mut self.tally;
        if message && !wait::one_readable(&self.rig.frontend, Instant::now()) {
            tally.in_message += 1;
        } else if self.load.outstanding() > 0 {
            tally.in_flight += 1;
        } else {
            tally.idle += 1;
        }
    }

    /// The successor dies as well, whenever that is; the pause counts from the first.
    fn kill_successor(&mut self, killed: Instant) -> Result<Instant, Fault> {
        self.rig.recover(&mut *self.load)?;
        let delay = Duration::from_micros(self.random.below(MAX_DELAY_US));
        let since = Instant::now();
        while since.elapsed() < delay {
            std::hint::spin_loop();
        }
        self.tally.again += 1;
        let again = self.rig.kill(&mut *self.load)?;
        Ok(if self.plan.mode == Mode::Keeper { killed } else { again })
    }

    /// From the kill to the next interrupt that brings something; then everything comes back.
    fn resume(&mut self, killed: Instant) -> Result<(), Fault> {
        if self.load.outstanding() == 0 {
            self.load.submit();
        }
        self.tally.requests += self.load.wait()? as u64;
        self.tally.pauses.push(killed.elapsed());
        self.load.drain()
    }

    fn say(&mut self, message: Message) -> Result<(), Fault> {
        let ram = std::sync::Arc::clone(self.rig.frontend.ram());
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let request = match message {
            Message::Features => Request::GetFeatures,
            Message::Config => Request::GetConfig { offset: 0, size: 8 },
            Message::MemoryTable => {
                fds.extend(ram.regions().iter().map(|region| region.fd()));
                Request::SetMemTable(ram.regions().iter().map(|region| region.table).collect())
            }
            Message::Enable(index) => Request::SetVringEnable { index: index.into(), enable: 1 },
            Message::Stop(index) => Request::GetVringBase { index: index.into() },
        };
        let ack = !request.code().rule().answered;
        Ok(self.rig.frontend.send(&request, &fds, ack)?)
    }

    /// The answer is what it would have been. Where the connection went with the daemon there is none.
    fn answered(&mut self, message: Message) -> Result<(), Fault> {
        if self.plan.mode == Mode::Reconnect {
            return Ok(());
        }
        let code = match message {
            Message::Features => Code::GetFeatures,
            Message::Config => Code::GetConfig,
            Message::MemoryTable => Code::SetMemTable,
            Message::Enable(_) => Code::SetVringEnable,
            Message::Stop(_) => Code::GetVringBase,
        };
        let reply = self.rig.frontend.receive(code)?;
        match (message, reply) {
            (Message::Features, Reply::U64(offered)) if offered & self.rig.frontend.features() != 0 => Ok(()),
            (Message::Config, Reply::Config { data, .. }) if data == self.config => Ok(()),
            (Message::MemoryTable | Message::Enable(_), Reply::U64(0)) => Ok(()),
            (Message::Stop(queue), Reply::VringState { base, .. }) => {
                let rings = self.load.rings();
                Ok(self.rig.frontend.start(queue, rings[usize::from(queue)], base)?)
            }
            (_, reply) => Err(Fault::Answer(format!("{code:?} was answered by {reply:?}"))),
        }
    }

    /// Everything is back, right, and as small as it was.
    fn finish(&mut self) -> Result<(), Fault> {
        if let Some(changes) = &self.changes {
            let back = changes.make(changes.count() - 1);
            back.map_err(|refused| Fault::Answer(format!("the graph does not go back: {refused}")))?;
        }
        self.load.submit();
        self.at_rest()?;
        self.tally.repeated = self.load.repeated();
        let after = self.rig.counts();
        self.plan.device.same_counts(&self.before, &after, self.changes.is_some())
    }
}

/// How often kills may come without a keeper that takes its time.
struct Pace {
    tokens: u32,
    last: Instant,
    unlimited: bool,
}

impl Pace {
    fn new(mode: Mode) -> Pace {
        Pace { tokens: BURST, last: Instant::now(), unlimited: mode == Mode::Reconnect }
    }

    /// Whether a kill and one of the successor may come now; if so they are counted.
    fn allows(&mut self, now: Instant) -> bool {
        while now.duration_since(self.last) >= Duration::from_secs(1) / KILLS_PER_SECOND {
            self.last += Duration::from_secs(1) / KILLS_PER_SECOND;
            self.tokens = BURST.min(self.tokens + 1);
        }
        let allowed = self.unlimited || self.tokens >= 2;
        if allowed && !self.unlimited {
            self.tokens -= 2;
        }
        allowed
    }
}
