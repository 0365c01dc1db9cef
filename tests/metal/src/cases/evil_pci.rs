//! `metal=evil-pci [seed=N] [writes=N]`: random accesses of every size to the configuration space and the BARs
//! of every virtio device, which is started again and again on rings full of nonsense. Nobody must die of it:
//! afterwards each device must take a reset, and the entropy device must serve again.
//!
//! Left alone is only what would hurt this guest and nobody else: interrupts stay off, the data words of the
//! MSI-X table are spared (an INIT sent to the only CPU ends the test), and rings and buffers lie in an arena
//! above all that this program uses, or outside RAM.

use super::{Machine, Outcome, rng::Rng};
use crate::{
    apic,
    pci::{Bus, CONFIG_BYTES, Function, Mmio},
    random::Random,
    say,
    virtio::{self, common},
};
use alloc::{format, string::String, vec, vec::Vec};
use core::ops::Range;
use virtio_drivers::transport::{
    DeviceType,
    pci::{
        VIRTIO_PCI_CAP_COMMON_CFG,
        bus::{Command, DeviceFunction},
    },
};

/// RAM that belongs to the devices: rings and buffers, and what lies behind for buffers that are too long.
const ARENA: Range<u64> = 0x200_0000..0x201_0000;
const BEHIND_BYTES: u64 = 16 << 20;
/// Descriptors in use of each ring.
const RING: u64 = 8;
/// Device status before FEATURES_OK, with it, and with DRIVER_OK (virtio 1.3 section 3.1.1).
const START: [u8; 3] = [0x03, 0x0B, 0x0F];
const BAR_REGISTERS: Range<u64> = 0x10..0x28;
const MSIX: u8 = 0x11;

pub fn run(machine: &Machine) -> Outcome {
    let mut storm = Storm {
        random: Random::new(machine.options.number("seed", 1)),
        accesses: machine.options.number("writes", 2000),
    };
    if !machine.start_info.is_ram(ARENA.start, BEHIND_BYTES) {
        return Err(format!("no RAM at {:#x} for the arena", ARENA.start));
    }
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
}

/// The device that the storm goes over.
struct Victim {
    common: Mmio,
    doorbells: Vec<Mmio>,
}

impl Storm {
    fn torment(&mut self, bus: &mut Bus, function: &Function) -> Outcome {
        bus.enable(function.at)?;
        let common = virtio::structure(bus, function, VIRTIO_PCI_CAP_COMMON_CFG)?.0;
        let doorbells = virtio::doorbells(bus, function, common)?;
        let victim = Victim { common, doorbells };
        for target in targets(bus, function.at, common)? {
            self.rage(&target, &victim);
        }
        let config = bus.config(function.at, 0);
        let kept = Kept::of(config);
        self.rage(&Target { registers: config, bytes: CONFIG_BYTES, spared: vec![] }, &victim);
        kept.restore(config);
        common.write8(common::DEVICE_STATUS, 0);
        while common.read8(common::DEVICE_STATUS) != 0 {}
        say!("evil-pci {} took a reset", function.at);
        Ok(())
    }

    /// All the accesses to one target.
    fn rage(&mut self, target: &Target, victim: &Victim) {
        for access in 0..self.accesses {
            if access % 64 == 0 {
                self.start(victim);
            }
            self.scribble();
            self.poke(target);
        }
    }

    /// Starts the device, with all its features, on rings anywhere in the arena.
    fn start(&mut self, victim: &Victim) {
        let common = victim.common;
        common.write8(common::DEVICE_STATUS, 0);
        common.write8(common::DEVICE_STATUS, START[0]);
        for half in [0, 1] {
            common.write32(common::DEVICE_FEATURE_SELECT, half);
            common.write32(common::DRIVER_FEATURE_SELECT, half);
            common.write32(common::DRIVER_FEATURE, common.read32(common::DEVICE_FEATURE));
        }
        common.write8(common::DEVICE_STATUS, START[1]);
        for (queue, _) in (0u16..).zip(&victim.doorbells) {
            common.write16(common::QUEUE_SELECT, queue);
            self.place_ring(common);
            common.write16(common::QUEUE_ENABLE, 1);
        }
        common.write8(common::DEVICE_STATUS, START[2]);
        (0u16..).zip(&victim.doorbells).for_each(|(queue, doorbell)| doorbell.write16(0, queue));
    }

    /// Makes a few descriptors of the selected queue available, such as they are.
    fn place_ring(&mut self, common: Mmio) {
        let areas = [(); 3].map(|()| Mmio(self.arena_address()));
        for (register, area) in common::QUEUE_ADDRESSES.step_by(8).zip(areas) {
            common.write64(register, area.0);
        }
        let [descriptors, available, _] = areas;
        for descriptor in 0..RING {
            self.describe(Mmio(descriptors.0 + 16 * descriptor));
            // One more than there are, now and then.
            available.write16(4 + 2 * descriptor, (self.random.below(RING + 1) & 0xFFFF) as u16);
        }
        available.write16(0, 0);
        available.write16(2, ((1 + self.random.below(RING)) & 0xFFFF) as u16);
    }

    /// Puts a descriptor somewhere in the arena, where a ring or an indirect table may be.
    fn scribble(&mut self) {
        let place = Mmio(self.arena_address());
        self.describe(place);
    }

    /// A descriptor (virtio 1.3 section 2.7.5) whose buffer is in the arena or outside RAM.
    fn describe(&mut self, place: Mmio) {
        let far = self.random.below(8) == 0;
        let address = if far { self.random.next() | 1 << 40 } else { self.arena_address() };
        let likely = self.random.below(4) != 0;
        let bytes = if likely { self.random.below(2048) } else { self.random.odd_value() & 0xFFFF_FFFF };
        let (flags, next) = (self.random.below(8), self.random.below(RING + 1));
        place.write64(0, address);
        place.write64(8, bytes | flags << 32 | next << 48);
    }

    fn arena_address(&mut self) -> u64 {
        ARENA.start + (self.random.below(ARENA.end - ARENA.start) & !15)
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
