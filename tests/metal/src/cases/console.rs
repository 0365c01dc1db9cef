//! `metal=console`: says `ready` on the virtio console and echoes every byte, until a line `quit`.

use super::{Machine, Outcome};
use crate::{dma::Identity, say};
use alloc::{format, vec::Vec};
use virtio_drivers::{device::console::VirtIOConsole, transport::DeviceType};

pub fn run(machine: &Machine) -> Outcome {
    let transport = machine.virtio(DeviceType::Console, false)?;
    let mut console = VirtIOConsole::<Identity, _>::new(transport).map_err(|error| format!("{error}"))?;
    console.send_bytes(b"ready\n").map_err(|error| format!("{error}"))?;
    let mut echoed = 0u64;
    let mut line = Vec::new();
    while line != b"quit" {
        line.clear();
        loop {
            let Some(byte) = console.recv(true).map_err(|error| format!("{error}"))? else { continue };
            if byte == b'\n' {
                break;
            }
            line.push(byte);
        }
        echoed += line.len() as u64 + 1;
        line.push(b'\n');
        console.send_bytes(&line).map_err(|error| format!("{error}"))?;
        line.pop();
    }
    say!("console echoed {echoed} bytes");
    Ok(())
}
