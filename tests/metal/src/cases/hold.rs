//! `metal=hold [inflight=N] [irq]`: N requests (8 at most, usually none) always in flight on the entropy device while
//! the host kills its daemon, starts another, and watches. Each request must come back exactly once, and filled.
//!
//! The host types: `a`, and the guest says `alive`, whatever the device does; `s`, and it says `served` when a
//! request made after that is back (with `irq` it sleeps until the interrupt for it); `d`, and it resets the device
//! and begins anew; `x`, and it ends when all requests are back; `q`, and it ends at once. With `irq` it sleeps
//! otherwise, too, so only `s` is to be typed, once for each `served`, and only N = 0 makes sense.

use super::{Machine, Outcome};
use crate::{
    cpu::sleep_until,
    dma::Identity,
    say, serial,
    virtio::{Feature, VirtioPci},
};
use alloc::{format, string::String};
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceType, Transport},
};

const PLACES: usize = 8;
const BYTES: usize = 64;

pub fn run(machine: &Machine) -> Outcome {
    let busy = usize::try_from(machine.options.number("inflight", 0)).map_err(|error| format!("{error}"))?;
    let sleeps = machine.options.has("irq");
    let mut driver = Driver::new(machine.virtio(DeviceType::EntropySource, sleeps)?)?;
    let (mut back, mut served_at) = (0u64, u64::MAX);
    say!("hold ready");
    loop {
        while driver.in_flight < busy {
            driver.request()?;
        }
        while driver.take()? {
            back += 1;
            if back == served_at {
                served_at = u64::MAX;
                say!("served");
            }
        }
        match serial::read() {
            Some(b'a') => say!("alive"),
            Some(b's') => {
                // All that are in flight, and the one that was made last.
                if busy == 0 {
                    driver.request()?;
                }
                served_at = back + driver.in_flight as u64 + u64::from(busy > 0);
                if sleeps {
                    sleep_until(|| driver.queue.can_pop());
                }
            }
            Some(b'd') => {
                driver = Driver::new(driver.transport)?;
                say!("reset");
            }
            Some(b'x') => break,
            Some(b'q') => return Ok(()),
            _ => {}
        }
    }
    while driver.in_flight > 0 {
        back += u64::from(driver.take()?);
    }
    say!("hold {back} back, {:?}", driver.transport.get_status());
    Ok(())
}

/// A queue, with places for requests.
struct Driver {
    transport: VirtioPci,
    queue: VirtQueue<Identity, PLACES>,
    buffers: [[u8; BYTES]; PLACES],
    /// The request of each place.
    tokens: [Option<u16>; PLACES],
    in_flight: usize,
}

impl Driver {
    fn new(mut transport: VirtioPci) -> Result<Self, String> {
        transport.begin_init(Feature::VERSION_1);
        let queue = VirtQueue::new(&mut transport, 0, false, false).map_err(|error| format!("{error}"))?;
        transport.finish_init();
        let (buffers, tokens) = ([[0; BYTES]; PLACES], [None; PLACES]);
        Ok(Self { transport, queue, buffers, tokens, in_flight: 0 })
    }

    fn request(&mut self) -> Outcome {
        let place = self.tokens.iter().position(Option::is_none).ok_or("no place is free")?;
        let buffer = &mut self.buffers[place];
        buffer.fill(0);
        // SAFETY: the buffer is not touched until `take`, and does not move while the driver runs.
        let token = unsafe { self.queue.add(&[], &mut [buffer]) };
        self.tokens[place] = Some(token.map_err(|error| format!("{error}"))?);
        self.in_flight += 1;
        self.transport.notify(0);
        Ok(())
    }

    /// Takes a request that is back, if one is.
    fn take(&mut self) -> Result<bool, String> {
        let Some(token) = self.queue.peek_used() else { return Ok(false) };
        let place = self.tokens.iter().position(|place| *place == Some(token));
        let place = place.ok_or_else(|| format!("request {token} is back a second time"))?;
        let buffer = &mut self.buffers[place];
        // SAFETY: the buffer that `request` added.
        let length = unsafe { self.queue.pop_used(token, &[], &mut [&mut buffer[..]]) };
        let length = length.map_err(|error| format!("{error}"))?;
        if length as usize != BYTES || *buffer == [0; BYTES] {
            return Err(format!("request {token} is back with {length} bytes: {buffer:?}"));
        }
        self.tokens[place] = None;
        self.in_flight -= 1;
        Ok(true)
    }
}
