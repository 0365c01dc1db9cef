//! How a terminal was before it was made raw, in a file that outlives the worker: four words of modes, and the two
//! control characters that raw mode changes. The worker after one that was killed finds the terminal raw.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{pread, write};
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex, Termios};

const BYTES: usize = 18;

/// A file with what making the terminal raw will change.
pub(super) fn save(modes: &Termios) -> io::Result<OwnedFd> {
    let words = [
        modes.input_modes.bits(),
        modes.output_modes.bits(),
        modes.control_modes.bits(),
        modes.local_modes.bits(),
    ];
    let codes = [SpecialCodeIndex::VMIN, SpecialCodeIndex::VTIME].map(|code| modes.special_codes[code]);
    let file = memfd_create("terminal-modes", MemfdFlags::CLOEXEC)?;
    write(&file, &[words.map(u32::to_le_bytes).concat(), codes.to_vec()].concat())?;
    Ok(file)
}

/// Puts back into `modes` what the file says; one that says nothing changes nothing.
pub(super) fn load(file: &OwnedFd, modes: &mut Termios) {
    let mut bytes = [0; BYTES];
    if pread(file, &mut bytes, 0) != Ok(BYTES) {
        return;
    }
    let (words, codes) = bytes.split_at(BYTES - 2);
    let mut words = words.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let mut word = || words.next().unwrap_or_default();
    modes.input_modes = InputModes::from_bits_retain(word());
    modes.output_modes = OutputModes::from_bits_retain(word());
    modes.control_modes = ControlModes::from_bits_retain(word());
    modes.local_modes = LocalModes::from_bits_retain(word());
    for (code, value) in [SpecialCodeIndex::VMIN, SpecialCodeIndex::VTIME].into_iter().zip(codes) {
        modes.special_codes[code] = *value;
    }
}
