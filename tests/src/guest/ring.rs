//! The driver's side of a virtqueue, in small verbs.
//!
//! `add` puts a chain into the ring, `publish` shows it to the device, `kick` tells it, `used` takes back what
//! it has finished, `wait_used` waits for that: on the call eventfd as an interrupt-driven driver, or on the
//! ring itself as a polling one ([`Interrupts::Never`]). The ring format is behind the verbs.
//! A device that answers what was not asked, says it wrote more than there was room for, or wrote beside its
//! buffer, is an error at the very completion.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::chain::{Chain, Placed};
use super::format::{Format, Layout, RingKind, Shape, Slots};
use super::memory::Ram;
use super::packed::Packed;
use super::raw::{DESC_BYTES, Desc, Raw};
use super::raw_packed::RawPacked;
use super::split::Split;
use crate::event::Event;
use crate::wait;

/// What a device did wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// A request did not come back in time.
    #[error("No completion within the deadline, {0} requests in flight")]
    Deadline(usize),
    /// The device signalled the error eventfd.
    #[error("The device has signalled that the ring is broken")]
    Broken,
    /// A used entry names a chain that is not in flight.
    #[error("Used entry names chain {0}, which is not in flight")]
    Unknown(u32),
    /// A used entry says more bytes than the chain has room for.
    #[error("Used entry says {said} bytes written where {room} fit")]
    TooLong {
        /// Length in the used entry.
        said: u32,
        /// Bytes that were writable.
        room: u64,
    },
    /// Bytes beside a writable buffer changed.
    #[error("The device wrote beside the buffer at {0:#x}")]
    Overrun(u64),
    /// IN_ORDER was negotiated, and the chain is not the oldest in flight.
    #[error("Used entry names chain {0} before older ones")]
    OutOfOrder(u32),
}

/// When the driver wants an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// For everything that is finished while the driver waits.
    Always,
    /// When this many more are finished, in order (with EVENT_IDX; as `Always` without).
    After(u16),
    /// Not at all; the driver looks itself.
    Never,
}

/// A chain that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Head of the chain; in a packed ring its buffer id.
    pub head: u16,
    /// Length in the used entry.
    pub len: u32,
    /// The first `len` bytes of the writable part.
    pub data: Vec<u8>,
}

#[derive(Debug)]
struct Flying {
    slots: Slots,
    placed: Placed,
}

/// One virtqueue with its eventfds, seen by the driver.
#[derive(Debug)]
pub struct Ring {
    /// Driver to device: something is available.
    pub kick: Event,
    /// Device to driver: something is used.
    pub call: Event,
    /// Device to driver: the ring is broken.
    pub err: Event,
    ram: Arc<Ram>,
    shape: Shape,
    format: Box<dyn Format>,
    /// Oldest first.
    flying: VecDeque<Flying>,
    interrupts: Interrupts,
    calls: u64,
}

impl Ring {
    /// A ring in which nothing was made available yet.
    pub fn new(ram: &Arc<Ram>, shape: Shape) -> Ring {
        Ring::starting_at(ram, shape, shape.first_base())
    }

    /// The same after `base` (as SET_VRING_BASE has it), to be near a wrap.
    pub fn starting_at(ram: &Arc<Ram>, shape: Shape, base: u32) -> Ring {
        let format: Box<dyn Format> = match shape.kind {
            RingKind::Split => Box::new(Split::new(ram, shape, base)),
            RingKind::Packed => Box::new(Packed::new(ram, shape, base)),
        };
        Ring {
            kick: Event::new(),
            call: Event::new(),
            err: Event::new(),
            ram: Arc::clone(ram),
            shape,
            format,
            flying: VecDeque::new(),
            interrupts: Interrupts::Always,
            calls: 0,
        }
    }

    /// The fields of a split ring, for lies and for a look.
    ///
    /// # Panics
    /// It is packed.
    pub fn raw(&self) -> &Raw {
        self.format.raw().unwrap_or_else(|| panic!("a packed ring has no fields of a split one"))
    }

    /// The fields of a packed ring, for lies and for a look.
    ///
    /// # Panics
    /// It is split.
    pub fn raw_packed(&self) -> &RawPacked {
        self.format.raw_packed().unwrap_or_else(|| panic!("a split ring has no fields of a packed one"))
    }

    /// What it was made as.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The addresses.
    pub fn layout(&self) -> Layout {
        self.format.layout()
    }

    /// Where the device stands when it has finished all that was published.
    pub fn base(&self) -> u32 {
        self.format.base()
    }

    /// All that the device writes of the ring itself, as it is now.
    pub fn written_by_device(&self) -> Vec<u8> {
        let parts = self.layout().written_by_device();
        parts.into_iter().flat_map(|(addr, bytes)| self.ram.read(addr, to_usize(bytes))).collect()
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Requests that have not come back.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Requests that the device has finished and [`Ring::used`] has not taken.
    pub fn waiting(&self) -> usize {
        self.format.waiting()
    }

    /// Entries that are free.
    pub fn free(&self) -> usize {
        self.format.free()
    }

    /// Entries of the ring that hold a chain in flight, in the chain's order.
    ///
    /// # Panics
    /// `head` is not in flight.
    pub fn entries(&self, head: u16) -> &[u16] {
        let flying = self.flying.iter().find(|flying| flying.slots.id == head);
        &flying.unwrap_or_else(|| panic!("chain {head} is not in flight")).slots.at
    }

    /// The descriptor in an entry.
    pub fn desc(&self, entry: u16) -> Desc {
        self.format.desc(entry)
    }

    /// Writes a descriptor into an entry; whose it is stays as it is.
    pub fn set_desc(&self, entry: u16, desc: Desc) {
        self.format.set_desc(entry, desc);
    }

    /// Writes an indirect table for this kind of ring into RAM, exactly as given, and returns its address.
    pub fn table(&self, descs: &[Desc]) -> u64 {
        let addr = self.ram.take(DESC_BYTES * descs.len() as u64, 16);
        self.set_table(addr, descs);
        addr
    }

    /// Writes descriptors of an indirect table at any address.
    pub fn set_table(&self, addr: u64, descs: &[Desc]) {
        let bytes = |desc: &Desc| match self.shape.kind {
            RingKind::Split => desc.to_bytes(),
            RingKind::Packed => desc.to_packed_bytes(),
        };
        self.ram.write(addr, &descs.iter().flat_map(bytes).collect::<Vec<_>>());
    }

    /// Puts a chain into the ring; its head says which it is when it comes back.
    ///
    /// # Panics
    /// The ring has fewer free descriptors than the chain needs.
    pub fn add(&mut self, chain: &Chain) -> u16 {
        assert!(chain.slots() <= self.free(), "ring is full: {} of {} free", self.free(), chain.slots());
        let (descs, placed) = chain.place(&self.ram, self.shape.kind);
        let slots = self.format.add(&descs);
        let id = slots.id;
        self.flying.push_back(Flying { slots, placed });
        id
    }

    /// A chain of one buffer with these bytes.
    ///
    /// # Panics
    /// As [`Ring::add`].
    pub fn add_readable(&mut self, bytes: &[u8]) -> u16 {
        self.add(&Chain::new().readable(bytes))
    }

    /// A chain of one buffer of `len` bytes to be written.
    ///
    /// # Panics
    /// As [`Ring::add`].
    pub fn add_writable(&mut self, len: u32) -> u16 {
        self.add(&Chain::new().writable(len))
    }

    /// Shows the device what was added; `true` when it wants a kick for that.
    pub fn publish(&mut self) -> bool {
        self.format.publish()
    }

    /// Tells the device, whether it wants it or not.
    pub fn kick(&self) {
        self.kick.signal();
    }

    /// Publishes and kicks if the device wants it, as a real driver does.
    pub fn notify(&mut self) {
        if self.publish() {
            self.kick();
        }
    }

    /// Says when to interrupt from now on.
    pub fn set_interrupts(&mut self, when: Interrupts) {
        self.interrupts = when;
        self.format.set_interrupts(when);
    }

    /// Interrupts that came so far.
    pub fn interrupts(&mut self) -> u64 {
        self.calls += self.call.take();
        self.calls
    }

    /// Takes one finished request, if there is one.
    ///
    /// # Errors
    /// The device broke a rule; see [`RingError`].
    pub fn used(&mut self) -> Result<Option<Completion>, RingError> {
        let Some((id, len)) = self.format.take_used() else { return Ok(None) };
        let at = self.flying.iter().position(|flying| u32::from(flying.slots.id) == id);
        let older = at.is_some_and(|at| at > 0);
        let Flying { slots, placed } =
            at.and_then(|at| self.flying.remove(at)).ok_or(RingError::Unknown(id))?;
        let head = slots.id;
        self.format.release(slots);
        placed.give_back(&self.ram);
        if older && self.shape.in_order {
            return Err(RingError::OutOfOrder(id));
        }
        if u64::from(len) > placed.room() {
            return Err(RingError::TooLong { said: len, room: placed.room() });
        }
        match placed.overrun(&self.ram) {
            Some(addr) => Err(RingError::Overrun(addr)),
            None => Ok(Some(Completion { head, len, data: placed.written(&self.ram, len) })),
        }
    }

    /// Waits for a finished request.
    ///
    /// # Errors
    /// As [`Ring::used`]; [`RingError::Deadline`] and [`RingError::Broken`] when it will not come.
    pub fn wait_used(&mut self) -> Result<Completion, RingError> {
        self.wait_used_until(wait::deadline())
    }

    /// As [`Ring::wait_used`] with a deadline of the caller's.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn wait_used_until(&mut self, until: Instant) -> Result<Completion, RingError> {
        loop {
            if let Some(completion) = self.used()? {
                return Ok(completion);
            }
            self.sleep(until)?;
        }
    }

    /// Waits until everything in flight is back, in the order of the used ring.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn wait_all(&mut self) -> Result<Vec<Completion>, RingError> {
        (0..self.in_flight()).map(|_| self.wait_used()).collect()
    }

    /// Adds, publishes, kicks as wanted and waits.
    ///
    /// # Errors
    /// As [`Ring::wait_used`].
    pub fn run(&mut self, chain: &Chain) -> Result<Completion, RingError> {
        self.add(chain);
        self.notify();
        self.wait_used()
    }

    /// Waits until the device says that the ring is broken; `false` when it does not.
    pub fn wait_broken(&self) -> bool {
        self.err.wait(wait::deadline()).is_some()
    }

    /// One wait of a driver: arm, look again, then block until an interrupt.
    fn sleep(&mut self, until: Instant) -> Result<(), RingError> {
        if self.interrupts == Interrupts::Never {
            std::thread::yield_now();
            return if Instant::now() < until { self.check_broken() } else { self.late() };
        }
        if self.interrupts == Interrupts::Always {
            self.format.set_interrupts(Interrupts::Always);
            if self.format.has_used() {
                return Ok(());
            }
        }
        if !wait::readable(&[self.call.as_fd(), self.err.as_fd()], until) {
            return self.late();
        }
        self.calls += self.call.take();
        if self.format.has_used() { Ok(()) } else { self.check_broken() }
    }

    fn check_broken(&self) -> Result<(), RingError> {
        if self.err.take() > 0 { Err(RingError::Broken) } else { Ok(()) }
    }

    fn late(&self) -> Result<(), RingError> {
        Err(RingError::Deadline(self.in_flight()))
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
