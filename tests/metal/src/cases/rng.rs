//! `metal=rng [requests=N] [bytes=N] [mark] [irq]`: entropy through the crate's driver, by polling, or with
//! `irq` through a queue of our own that sleeps until the interrupt.
//!
//! With `mark`, mark 1 is left before the first request and mark 2 after the last, so that a VMM can tell
//! how often it was bothered in between.

use super::{Machine, Outcome};
use crate::{
    apic,
    cpu::sleep_until,
    dma::Identity,
    say, serial,
    virtio::{FIRST_INTERRUPT, Feature, VirtioPci},
};
use alloc::{format, string::String, vec, vec::Vec};
use virtio_drivers::{
    device::rng::VirtIORng,
    queue::VirtQueue,
    transport::{DeviceType, Transport},
};

pub fn run(machine: &Machine) -> Outcome {
    let bytes = usize::try_from(machine.options.number("bytes", 64)).map_err(|error| format!("{error}"))?;
    let irq = machine.options.has("irq");
    let transport = machine.virtio(DeviceType::EntropySource, irq)?;
    if irq {
        let mut rng = Rng::new(transport, bytes)?;
        collect(machine, |sample| rng.fill().map(|bytes| sample.add(bytes)))
    } else {
        let mut rng = VirtIORng::<Identity, _>::new(transport).map_err(|error| format!("{error}"))?;
        let mut buffer = vec![0; bytes];
        collect(machine, |sample| poll(&mut rng, &mut buffer).map(|bytes| sample.add(bytes)))
    }
}

fn poll<'a>(rng: &mut VirtIORng<Identity, VirtioPci>, buffer: &'a mut [u8]) -> Result<&'a [u8], String> {
    let length = rng.request_entropy(buffer).map_err(|error| format!("{error}"))?;
    buffer.get(..length).ok_or_else(|| format!("the device claims to have written {length} bytes"))
}

/// Makes the requests that the command line asks for, and judges what came.
fn collect(machine: &Machine, mut request: impl FnMut(&mut Sample) -> Outcome) -> Outcome {
    let requests = machine.options.number("requests", 1000);
    let marks = machine.options.has("mark");
    let mut sample = Sample::default();
    if marks {
        serial::mark(1);
    }
    for _ in 0..requests {
        request(&mut sample)?;
    }
    if marks {
        serial::mark(2);
    }
    say!("rng {} bytes in {requests} requests", sample.bytes);
    sample.judge()
}

/// How often each byte value came.
struct Sample {
    bytes: u64,
    counts: [u64; 256],
}

impl Default for Sample {
    fn default() -> Self {
        Self { bytes: 0, counts: [0; 256] }
    }
}

impl Sample {
    /// At most 16 bytes of each request are looked at, since this CPU may be an interpreter.
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        bytes.iter().take(16).for_each(|byte| self.counts[usize::from(*byte)] += 1);
    }

    /// Every value must come, none twice as often as its share. With 40 expected of each, honest entropy
    /// fails this about once in 10^7 runs; less than that proves nothing and is let pass.
    fn judge(&self) -> Outcome {
        let expected = self.counts.iter().sum::<u64>() / 256;
        if expected < 40 {
            return Ok(());
        }
        let odd = (0u8..=255).zip(self.counts).find(|(_, count)| *count == 0 || *count > 2 * expected + 10);
        odd.map_or(Ok(()), |(value, count)| {
            Err(format!("byte {value:#x} came {count} times, not about {expected}"))
        })
    }
}

/// An entropy queue with one request at a time, for tests that look between request and answer.
pub struct Rng {
    transport: VirtioPci,
    queue: VirtQueue<Identity, 8>,
    buffer: Vec<u8>,
    token: u16,
}

impl Rng {
    /// Starts the device without optional features: it interrupts for each buffer of `bytes` bytes.
    pub fn new(mut transport: VirtioPci, bytes: usize) -> Result<Self, String> {
        transport.begin_init(Feature::VERSION_1);
        let queue = VirtQueue::new(&mut transport, 0, false, false).map_err(|error| format!("{error}"))?;
        transport.finish_init();
        Ok(Self { transport, queue, buffer: vec![0; bytes], token: 0 })
    }

    /// The transport below.
    pub fn transport(&self) -> &VirtioPci {
        &self.transport
    }

    /// Makes a request.
    pub fn request(&mut self) -> Result<(), String> {
        // SAFETY: the buffer is not touched until `take`, and lives as long as the queue.
        let token = unsafe { self.queue.add(&[], &mut [&mut self.buffer]) };
        self.token = token.map_err(|error| format!("{error}"))?;
        self.transport.notify(0);
        Ok(())
    }

    /// Whether the device has given the buffer back.
    pub fn has_answer(&self) -> bool {
        self.queue.can_pop()
    }

    /// The bytes that the device wrote.
    pub fn take(&mut self) -> Result<&[u8], String> {
        // SAFETY: the buffer that `request` added.
        let length = unsafe { self.queue.pop_used(self.token, &[], &mut [&mut self.buffer]) };
        let length = length.map_err(|error| format!("{error}"))? as usize;
        self.buffer.get(..length).ok_or_else(|| format!("the device claims to have written {length} bytes"))
    }

    /// Makes a request and sleeps until its interrupt has come. One that a device raises without an answer says
    /// nothing: a start may raise one, for whoever served the queue before.
    pub fn fill(&mut self) -> Result<&[u8], String> {
        let before = apic::interrupts(FIRST_INTERRUPT);
        self.request()?;
        sleep_until(|| apic::interrupts(FIRST_INTERRUPT) != before && self.has_answer());
        self.take()
    }
}
