//! `metal=outlive`: keeps the entropy device busy until the host types a byte on the serial port.
//!
//! The host kills the daemon in between. The guest must go on running whatever the device does: it says
//! how many answers it got and powers off.

use super::{Machine, Outcome, rng::Rng};
use crate::{say, serial};
use virtio_drivers::transport::DeviceType;

pub fn run(machine: &Machine) -> Outcome {
    let mut rng = Rng::new(machine.virtio(DeviceType::EntropySource, false)?, 64)?;
    let mut answers = 0u64;
    rng.request()?;
    loop {
        if rng.has_answer() {
            rng.take()?;
            answers += 1;
            if answers == 100 {
                say!("outlive ready");
            }
            rng.request()?;
        } else if answers >= 100 && serial::read().is_some() {
            say!("outlive {answers} answers");
            return Ok(());
        }
    }
}
