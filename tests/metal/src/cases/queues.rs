//! `metal=queues [step=N]`: a request on every Nth virtqueue of an entropy device that has as many as it likes, all in
//! flight at once. The device fills each with the number of the queue (its lower byte) that it came by.

use super::{Machine, Outcome};
use crate::{
    dma::Identity,
    say,
    virtio::{Feature, VirtioPci},
};
use alloc::{format, string::String, vec::Vec};
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceType, Transport},
};

const BYTES: usize = 16;

pub fn run(machine: &Machine) -> Outcome {
    let mut transport = machine.virtio(DeviceType::EntropySource, false)?;
    let step = usize::try_from(machine.options.number("step", 1)).map_err(|error| format!("{error}"))?;
    let offered = transport.queues();
    transport.begin_init(Feature::VERSION_1);
    let started: Result<Vec<_>, _> =
        (0..offered).step_by(step).map(|number| Requester::new(&mut transport, number)).collect();
    let mut started = started?;
    transport.finish_init();
    for requester in &mut started {
        requester.request(&mut transport)?;
    }
    for requester in started.iter_mut().rev() {
        requester.take()?;
    }
    say!("queues {} of {offered} answered", started.len());
    Ok(())
}

/// A queue with a request.
struct Requester {
    number: u16,
    queue: VirtQueue<Identity, 4>,
    buffer: [u8; BYTES],
    token: u16,
}

impl Requester {
    fn new(transport: &mut VirtioPci, number: u16) -> Result<Self, String> {
        let queue = VirtQueue::new(transport, number, false, false);
        let queue = queue.map_err(|error| format!("queue {number}: {error}"))?;
        Ok(Self { number, queue, buffer: [!number.to_le_bytes()[0]; BYTES], token: 0 })
    }

    fn request(&mut self, transport: &mut VirtioPci) -> Outcome {
        // SAFETY: the buffer is not touched until `take`, and neither it nor the queue moves until then.
        let token = unsafe { self.queue.add(&[], &mut [&mut self.buffer]) };
        self.token = token.map_err(|error| format!("queue {}: {error}", self.number))?;
        transport.notify(self.number);
        Ok(())
    }

    fn take(&mut self) -> Outcome {
        while !self.queue.can_pop() {
            core::hint::spin_loop();
        }
        // SAFETY: the buffer that `request` added.
        let length = unsafe { self.queue.pop_used(self.token, &[], &mut [&mut self.buffer]) };
        let length = length.map_err(|error| format!("queue {}: {error}", self.number))?;
        if length as usize == BYTES && self.buffer == [self.number.to_le_bytes()[0]; BYTES] {
            Ok(())
        } else {
            Err(format!("queue {} brought {:?} ({length} bytes)", self.number, self.buffer))
        }
    }
}
