//! `metal=evil-pci [seed=N] [writes=N]`: random accesses of every size to the configuration space and the BARs
//! of every virtio device, with rings in memory full of nonsense. Nobody must die of it: afterwards each
//! device must take a reset, and the entropy device must serve again.
//!
//! Left alone is only what would hurt this guest and nobody else: interrupts stay off, the data words of the
//! MSI-X table (an INIT sent to the only CPU ends the test) and the addresses of the rings (which point into
//! an arena, so that a device that believes in them does not overwrite this program).

use super::{Machine, Outcome, rng::Rng};
use crate::{
    apic,
    pci::{Bus, CONFIG_BYTES, Function, Mmio},
    random::Random,
    say,
    virtio::{self, common},
};
use alloc::{string::String, vec, vec::Vec};
use core::ops::Range;
use virtio_drivers::transport::{
    DeviceType,
    pci::{
        VIRTIO_PCI_CAP_COMMON_CFG,
        bus::{Command, DeviceFunction},
    },
};

const ARENA_BYTES: u64 = 1 << 16;
const BAR_REGISTERS: Range<u64> = 0x10..0x28;
const MSIX: u8 = 0x11;

pub fn run(machine: &Machine) -> Outcome {
    let mut storm = Storm {
        random: Random::new(machine.options.number("seed", 1)),
        accesses: machine.options.number("writes", 2000),
        arena: Mmio(vec![0u64; (ARENA_BYTES / 8) as usize].leak().as_ptr().addr() as u64),
    };
    apic::tolerate_nmi();
    let mut bus = machine.bus();
    for function in bus.functions().iter().filter(|function| function.virtio().is_some()) {
        storm.torment(&mut bus, function)?;
    }
    say!("evil-pci survived");
    Rng::new(machine.virtio(DeviceType::EntropySource, true)?, 64)?.fill().map(|_| ())
}

/// Registers to write nonsense to.
struct Target {
    registers: Mmio,
    bytes: u64,
    /// Offsets that are left alone.
    spared: Vec<Range<u64>>,
}

struct Storm {
    random: Random,
    accesses: u64,
    arena: Mmio,
}

impl Storm {
    fn torment(&mut self, bus: &mut Bus, function: &Function) -> Outcome {
        bus.enable(function.at)?;
        let common = virtio::structure(bus, function, VIRTIO_PCI_CAP_COMMON_CFG)?.0;
        for target in targets(bus, function.at, common)? {
            self.rage(&target, common);
        }
        let kept = Kept::of(bus.config(function.at, 0));
        self.rage(
            &Target { registers: bus.config(function.at, 0), bytes: CONFIG_BYTES, spared: vec![] },
            self.arena,
        );
        kept.restore(bus.config(function.at, 0));
        common.write8(common::DEVICE_STATUS, 0);
        while common.read8(common::DEVICE_STATUS) != 0 {}
        say!("evil-pci {} took a reset", function.at);
        Ok(())
    }

    /// All the accesses to one target; the rings are put back into the arena now and then.
    fn rage(&mut self, target: &Target, common: Mmio) {
        for access in 0..self.accesses {
            if access % 64 == 0 {
                self.place_rings(common);
            }
            self.poke(target);
            let nonsense = Target { registers: self.arena, bytes: ARENA_BYTES, spared: vec![] };
            self.poke(&nonsense);
        }
    }

    fn poke(&mut self, target: &Target) {
        let width = 1 << self.random.below(4);
        // Half of the accesses go to the first bytes, where the registers are densest.
        let bytes = if self.random.below(2) == 0 { target.bytes } else { target.bytes.min(64) };
        let offset = self.random.below(bytes - width + 1);
        if target.spared.iter().any(|range| offset < range.end && range.start < offset + width) {
            return;
        }
        let value = self.random.odd_value();
        let (registers, [low, ..]) = (target.registers, value.to_le_bytes());
        match (width, self.random.below(4) == 0) {
            (1, true) => drop(registers.read8(offset)),
            (1, false) => registers.write8(offset, low),
            (2, true) => drop(registers.read16(offset)),
            (2, false) => registers.write16(offset, (value & 0xFFFF) as u16),
            (4, true) => drop(registers.read32(offset)),
            (4, false) => registers.write32(offset, (value & 0xFFFF_FFFF) as u32),
            (_, true) => drop(registers.read64(offset)),
            (_, false) => registers.write64(offset, value),
        }
    }

    /// Points the rings of all queues at random places of the arena.
    fn place_rings(&mut self, common: Mmio) {
        for queue in 0..common.read16(common::NUM_QUEUES).min(64) {
            common.write16(common::QUEUE_SELECT, queue);
            for register in common::QUEUE_ADDRESSES.step_by(8) {
                let place = self.arena.0 + (self.random.below(ARENA_BYTES / 2) & !15);
                common.write64(register, place);
            }
        }
    }
}

/// The BARs of a function, with what must be spared in them.
fn targets(bus: &mut Bus, at: DeviceFunction, common: Mmio) -> Result<Vec<Target>, String> {
    let msix = bus.capabilities(at, MSIX).next().map(|offset| bus.config(at, offset));
    let mut spared = Vec::new();
    spared.push(common.0 + common::QUEUE_ADDRESSES.start..common.0 + common::QUEUE_ADDRESSES.end);
    if let Some(msix) = msix {
        let bar = u8::try_from(msix.read32(4) & 7).unwrap_or(0);
        let table = bus.bar_address(at, bar)? + u64::from(msix.read32(4) & !7);
        let entries = u64::from(msix.read16(2) & 0x7FF) + 1;
        spared.extend((0..entries).map(|entry| table + 16 * entry + 8..table + 16 * entry + 12));
    }
    let bars = bus.bars(at)?;
    let memory = bars.iter().flatten().filter_map(|bar| bar.memory_address_size());
    let target = |(address, bytes): (u64, u64)| Target {
        registers: Mmio(address),
        bytes,
        spared: spared
            .iter()
            .map(|range| range.start.wrapping_sub(address)..range.end.wrapping_sub(address))
            .collect(),
    };
    Ok(memory.map(target).collect())
}

/// The registers of a configuration space that place its BARs.
struct Kept(Vec<u32>);

impl Kept {
    fn of(config: Mmio) -> Self {
        Self(BAR_REGISTERS.step_by(4).map(|offset| config.read32(offset)).collect())
    }

    fn restore(&self, config: Mmio) {
        config.write16(4, 0);
        BAR_REGISTERS.step_by(4).zip(&self.0).for_each(|(offset, value)| config.write32(offset, *value));
        config.write16(4, (Command::MEMORY_SPACE | Command::BUS_MASTER).bits());
    }
}
