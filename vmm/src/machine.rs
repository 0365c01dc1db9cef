//! The running machine: one thread that waits for everything that is not the data path.
//!
//! It wakes for the vCPUs' last words, for signals and for the keyboard; devices look after their daemons by
//! themselves, and while they merely work it sleeps (`--timings` counts its wake-ups). It ends with `Ok` when the guest switched off
//! or the operator asked, with an error otherwise. The process ends right after it, which stops the other threads.
//!
//! It waits for nothing else, so that a signal is always heard: what vCPU threads have locked it tries and tries
//! again when it is told ([`crate::contended`]), and a reboot, in which daemons may take long to come to rest,
//! has a thread of its own ([`PowerCycle`]). SIGUSR1 pauses the guest and SIGUSR2 lets it go on, as the API does
//! ([`crate::api`]); a guest that was paused
//! during its reboot stands before its first instruction then.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use backends::log::{self, Class};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use tracing::info;

use crate::api::ApiServer;
use crate::api::remote::{Order, Orders, Standing};
use crate::boot::Entry;
use crate::boot::linux::BootFiles;
use crate::bus::Bus;
use crate::error::{Error, system};
use crate::kvm::vcpu::{Outbox, Vcpu, VcpuEvent, VcpuThread};
use crate::kvm::{self, Vm};
use crate::pci::PciRoot;
use crate::power::Request;
use crate::sandbox::Sandbox;
use crate::serial::SerialPort;
use crate::terminal::{Fed, Input};
use crate::timings::{Event, Timings};
use crate::vhost::VhostPciDevice;

/// What wakes the loop.
const TOKEN_VCPU: u64 = 0;
const TOKEN_SIGNAL: u64 = 1;
const TOKEN_STDIN: u64 = 2;
const TOKEN_DRAINED: u64 = 3;
const TOKEN_PAUSE: u64 = 4;
const TOKEN_RESUME: u64 = 5;
const TOKEN_ORDER: u64 = 6;
/// Events taken at one wake-up.
const EVENTS: usize = 16;

/// All of a machine but its vCPUs.
pub struct Parts {
    /// Whether a reset starts the machine again.
    pub reboots: bool,
    /// Kernel and initramfs, for a reboot.
    pub files: BootFiles,
    /// ACPI tables, for a reboot.
    pub acpi: Vec<u8>,
    /// The virtual machine.
    pub vm: Vm,
    /// Where exits go.
    pub bus: Arc<Bus>,
    /// The PCI bus.
    pub pci: Arc<PciRoot>,
    /// Its devices.
    pub devices: Vec<Arc<VhostPciDevice>>,
    /// The serial line.
    pub serial: Option<Arc<SerialPort>>,
    /// Whether standard input is its keyboard.
    pub stdin: bool,
    /// Events and counters.
    pub timings: Arc<Timings>,
    /// What confines vCPU threads.
    pub sandbox: Sandbox,
}

impl Parts {
    /// Stops everything and puts it back as it was at power-on, with the kernel loaded again.
    fn power_cycle(&self, threads: Vec<VcpuThread>) -> Result<PoweredOn, Error> {
        let mut vcpus = self.stop(threads).ok_or(Error::VcpuLost)?;
        // Devices first: after this none of them writes into the RAM that is about to be cleared.
        self.pci.reset();
        self.vm.reset_irqchips()?;
        self.vm.ram().clear().map_err(system("clear guest RAM"))?;
        let entry = self.files.load(self.vm.ram(), &self.acpi)?;
        vcpus.iter_mut().try_for_each(Vcpu::reset)?;
        Ok((vcpus, entry))
    }

    fn stop(&self, threads: Vec<VcpuThread>) -> Option<Vec<Vcpu>> {
        // A vCPU that waits to write where nobody reads would not stop otherwise.
        self.serial.iter().for_each(|serial| serial.hurry(true));
        let vcpus = threads.into_iter().map(VcpuThread::stop).collect();
        self.serial.iter().for_each(|serial| serial.hurry(false));
        vcpus
    }
}

/// Stopped vCPUs, and where the boot CPU is to begin.
type PoweredOn = (Vec<Vcpu>, Entry);

/// A reboot under way: a thread that stops the machine and brings it back to its power-on state.
struct PowerCycle(Receiver<Result<PoweredOn, Error>>);

impl PowerCycle {
    /// Begins; `wake` is raised at the end.
    fn begin(
        parts: Arc<Parts>,
        threads: Vec<VcpuThread>,
        wake: Arc<kvm::event::Event>,
    ) -> io::Result<PowerCycle> {
        let (sender, receiver) = sync_channel(1);
        let work = move || {
            let _raised = RaisedAtEnd(wake);
            // By value, so that it is gone before the event is raised, should the work panic.
            let sender = sender;
            // Nobody listens any more only when the process is about to end.
            let _ = sender.send(parts.power_cycle(threads));
        };
        std::thread::Builder::new().name("reboot".into()).spawn(work)?;
        Ok(PowerCycle(receiver))
    }

    /// What it came to, once it is over.
    fn outcome(&self) -> Option<Result<PoweredOn, Error>> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Error::VcpuLost)),
        }
    }
}

struct RaisedAtEnd(Arc<kvm::event::Event>);

impl Drop for RaisedAtEnd {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// A machine whose vCPUs run, or that reboots.
pub struct Machine {
    parts: Arc<Parts>,
    vcpus: Vec<VcpuThread>,
    reboot: Option<PowerCycle>,
    /// The guest is paused: its vCPUs, unless a reboot has them.
    paused: Option<Vec<Vcpu>>,
    outbox: Arc<Outbox>,
    events: Receiver<VcpuEvent>,
    wake: Arc<kvm::event::Event>,
    signals: UnixStream,
    pause: UnixStream,
    resume: UnixStream,
    orders: Orders,
    api: Option<ApiServer>,
    input: Option<Input>,
    listening: bool,
    epoll: OwnedFd,
}

/// Whether the loop goes on.
enum Next {
    Wait,
    End,
}

impl Machine {
    /// A machine that has all it needs, and no thread yet but the calling one.
    ///
    /// # Errors
    /// The host lacks something.
    pub fn new(parts: Parts, orders: Orders) -> Result<Machine, Error> {
        let (outbox, events, wake) = Outbox::new().map_err(system("make an eventfd"))?;
        let [signals, pause, resume] = [&[SIGTERM, SIGINT, SIGHUP, SIGQUIT][..], &[SIGUSR1], &[SIGUSR2]]
            .map(|signals| signal_stream(signals).map_err(system("install signal handlers")));
        let input =
            if parts.stdin { Some(Input::open().map_err(system("set up the terminal"))?) } else { None };
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system("make an epoll instance"))?;
        let mut machine = Machine {
            parts: Arc::new(parts),
            vcpus: Vec::new(),
            reboot: None,
            paused: None,
            outbox,
            events,
            wake,
            signals: signals?,
            pause: pause?,
            resume: resume?,
            orders,
            api: None,
            input,
            listening: false,
            epoll,
        };
        machine.watch_all().map_err(system("watch events"))?;
        if !machine.listen(true)? {
            machine.on_stdin(Input::read_into)?;
        }
        Ok(machine)
    }

    /// Starts the vCPUs, the boot CPU at `entry`. The API answers as long as the machine lives.
    ///
    /// # Errors
    /// The host lacks something.
    pub fn start(mut self, vcpus: Vec<Vcpu>, entry: Entry, api: Option<ApiServer>) -> Result<Machine, Error> {
        self.api = api;
        self.api.iter_mut().try_for_each(ApiServer::start)?;
        self.run_vcpus(vcpus, entry)?;
        Ok(self)
    }

    /// Waits until the guest or the operator ends the machine.
    pub fn run(mut self) -> Result<(), Error> {
        let result = self.wait();
        self.parts.timings.event(Event::Exit);
        result
    }

    fn wait(&mut self) -> Result<(), Error> {
        loop {
            let mut events = Vec::with_capacity(EVENTS);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => self.parts.timings.epoll_return(),
                Err(cause) => return Err(system("wait for events")(cause)),
            }
            for event in events {
                if let Next::End = self.handle(event.data.u64())? {
                    return Ok(());
                }
            }
        }
    }

    fn handle(&mut self, token: u64) -> Result<Next, Error> {
        match token {
            TOKEN_VCPU => return self.on_vcpu(),
            TOKEN_SIGNAL => {
                info!("asked to end by a signal");
                return Ok(Next::End);
            }
            TOKEN_PAUSE => {
                drain(&self.pause);
                self.pause()?;
            }
            TOKEN_RESUME => {
                drain(&self.resume);
                self.resume()?;
            }
            TOKEN_ORDER => self.on_order()?,
            TOKEN_STDIN => return self.on_stdin(Input::read_into),
            TOKEN_DRAINED => return self.on_drained(),
            _ => {}
        }
        Ok(Next::Wait)
    }

    /// Takes what a vCPU said. The first word counts: after it the machine ends, or starts again.
    fn on_vcpu(&mut self) -> Result<Next, Error> {
        self.wake.take();
        if let Some(reboot) = &self.reboot {
            return match reboot.outcome() {
                Some(outcome) => self.power_on(outcome?).map(|()| Next::Wait),
                None => Ok(Next::Wait),
            };
        }
        let Ok(event) = self.events.try_recv() else { return Ok(Next::Wait) };
        match event {
            VcpuEvent::Request(Request::PowerOff) => {
                self.parts.timings.event(Event::PowerOff);
                Ok(Next::End)
            }
            VcpuEvent::Request(Request::Reset) if self.parts.reboots => {
                self.begin_reboot().map(|()| Next::Wait)
            }
            VcpuEvent::Request(Request::Reset) => Ok(Next::End),
            VcpuEvent::Request(Request::Panic) => Err(Error::GuestPanic),
            VcpuEvent::Crash(crash) => Err(crash.into()),
            VcpuEvent::Lost => Err(Error::VcpuLost),
        }
    }

    fn begin_reboot(&mut self) -> Result<(), Error> {
        log::line!(debug, Class::GuestReset, "the guest resets");
        // It asked before it was paused: the reboot stops its vCPUs itself, and it is paused after that.
        let was_paused = self.paused.take().map(|vcpus| self.spawn(vcpus)).transpose()?;
        self.paused = was_paused.map(|()| Vec::new());
        let threads = std::mem::take(&mut self.vcpus);
        let reboot = PowerCycle::begin(Arc::clone(&self.parts), threads, Arc::clone(&self.wake));
        self.reboot = Some(reboot.map_err(system("start a thread"))?);
        self.tell_standing();
        Ok(())
    }

    fn power_on(&mut self, (vcpus, entry): PoweredOn) -> Result<(), Error> {
        self.reboot = None;
        self.tell_standing();
        // What the others said while they were being stopped belongs to the machine that is gone.
        while self.events.try_recv().is_ok() {}
        self.run_vcpus(vcpus, entry)
    }

    /// Does what the API was asked for.
    fn on_order(&mut self) -> Result<(), Error> {
        self.orders.wake().take();
        while let Some((order, done)) = self.orders.next() {
            match order {
                Order::Pause => self.pause()?,
                Order::Resume => self.resume()?,
            }
            done.tell();
        }
        Ok(())
    }

    /// Tells the API how the machine stands now.
    fn tell_standing(&self) {
        self.orders.stand(match (&self.reboot, &self.paused) {
            (Some(_), _) => Standing::Rebooting,
            (None, Some(_)) => Standing::Paused,
            (None, None) => Standing::Running,
        });
    }

    /// Stops the vCPUs where they are. Devices, their daemons and this loop go on.
    fn pause(&mut self) -> Result<(), Error> {
        if self.paused.is_none() {
            let threads = std::mem::take(&mut self.vcpus);
            self.paused = Some(self.parts.stop(threads).ok_or(Error::VcpuLost)?);
            self.tell_standing();
            info!("the guest is paused; SIGUSR2 lets it go on");
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        let Some(vcpus) = self.paused.take() else { return Ok(()) };
        self.tell_standing();
        info!("the guest goes on");
        self.spawn(vcpus)
    }

    fn run_vcpus(&mut self, vcpus: Vec<Vcpu>, entry: Entry) -> Result<(), Error> {
        if let Some(boot) = vcpus.first() {
            boot.enter(entry)?;
        }
        self.parts.timings.event(Event::FirstEntry);
        match &mut self.paused {
            Some(paused) => *paused = vcpus,
            None => self.spawn(vcpus)?,
        }
        Ok(())
    }

    fn spawn(&mut self, vcpus: Vec<Vcpu>) -> Result<(), Error> {
        for vcpu in vcpus {
            let thread =
                vcpu.spawn(Arc::clone(&self.parts.bus), Arc::clone(&self.outbox), self.parts.sandbox.vcpu());
            self.vcpus.push(thread.map_err(system("start a vCPU thread"))?);
        }
        Ok(())
    }

    /// There is room in the FIFO again: hand over what waited, and listen to standard input again.
    fn on_drained(&mut self) -> Result<Next, Error> {
        if let Some(serial) = &self.parts.serial {
            serial.drained().take();
        }
        self.on_stdin(Input::flush_into)
    }

    /// Feeds the guest until its FIFO is full or standard input has nothing more to say for now.
    fn on_stdin(&mut self, mut feed: fn(&mut Input, &SerialPort) -> Fed) -> Result<Next, Error> {
        while let (Some(input), Some(serial)) = (&mut self.input, &self.parts.serial) {
            match feed(input, serial) {
                Fed::Quit => return Ok(Next::End),
                Fed::Waiting | Fed::Closed => {
                    self.listen(false)?;
                    break;
                }
                Fed::All if self.listen(true)? => break,
                // A regular file is always readable and cannot be waited for.
                Fed::All => feed = Input::read_into,
            }
        }
        Ok(Next::Wait)
    }

    /// Adds standard input to what wakes the loop, or takes it away: a closed pipe would wake it for ever.
    /// Returns false when this input cannot be waited for.
    fn listen(&mut self, on: bool) -> Result<bool, Error> {
        let Some(input) = &self.input else { return Ok(true) };
        if on != self.listening {
            let changed = match on {
                true => watch(&self.epoll, input.fd(), TOKEN_STDIN, EventFlags::IN),
                false => epoll::delete(&self.epoll, input.fd()),
            };
            match changed {
                Ok(()) => self.listening = on,
                Err(rustix::io::Errno::PERM) => return Ok(false),
                Err(cause) => return Err(system("watch standard input")(cause)),
            }
        }
        Ok(true)
    }

    fn watch_all(&self) -> rustix::io::Result<()> {
        watch(&self.epoll, self.wake.as_fd(), TOKEN_VCPU, EventFlags::IN)?;
        watch(&self.epoll, self.signals.as_fd(), TOKEN_SIGNAL, EventFlags::IN)?;
        watch(&self.epoll, self.pause.as_fd(), TOKEN_PAUSE, EventFlags::IN)?;
        watch(&self.epoll, self.resume.as_fd(), TOKEN_RESUME, EventFlags::IN)?;
        watch(&self.epoll, self.orders.wake().as_fd(), TOKEN_ORDER, EventFlags::IN)?;
        if let Some(serial) = &self.parts.serial {
            watch(&self.epoll, serial.drained().as_fd(), TOKEN_DRAINED, EventFlags::IN)?;
        }
        Ok(())
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd, token: u64, flags: EventFlags) -> rustix::io::Result<()> {
    epoll::add(epoll, fd, EventData::new_u64(token), flags)
}

/// A socket that becomes readable with each of these signals.
fn signal_stream(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Many signals are as one.
fn drain(mut signals: &UnixStream) {
    while signals.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
}
