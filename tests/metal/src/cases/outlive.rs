//! `metal=outlive`: keeps the entropy device busy until the host types a byte on the serial port.
//!
//! In between the host kills the daemon, or has it lie. The guest must go on running whatever the device
//! does: it says how many answers it got and what the device status is, and powers off.

use super::{Machine, Outcome, rng::Rng};
use crate::{say, serial};
use virtio_drivers::transport::{DeviceType, Transport};

/// Answers after which the device counts as working.
const READY: u64 = 100;

pub fn run(machine: &Machine) -> Outcome {
    let mut rng = Rng::new(machine.virtio(DeviceType::EntropySource, false)?, 64)?;
    rng.request()?;
    say!("outlive started");
    let mut answers = 0;
    while rng.has_answer() || serial::read().is_none() {
        if rng.has_answer() {
            rng.take()?;
            rng.request()?;
            answers += 1;
            if answers == READY {
                say!("outlive ready");
            }
        }
    }
    say!("outlive {answers} answers, {:?}", rng.transport().get_status());
    Ok(())
}
