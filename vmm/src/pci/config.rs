//! Configuration space of one function: 256 bytes, and for each the bits that a guest may change.
//!
//! Reads and writes of any size at any offset are served: a write changes the bits its mask allows and nothing
//! else, which is all that sizing a BAR needs (PCI 3.0 §6.2.5.1). What lies beyond the 256 bytes of conventional
//! space reads as zero, "no extended capability". What a changed register *means* is for the owner to see after
//! the write, by [`ConfigSpace::bar`] and [`ConfigSpace::byte`].

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

/// Bytes of conventional configuration space.
pub const CONFIG_BYTES: usize = 256;
/// First capability; those of a function follow each other from here.
pub const FIRST_CAPABILITY: usize = 0x40;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITY_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a type-0 header says about its function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, programming interface, from the top byte of 24 bits.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// Configuration space of a type-0 function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    last_capability: Option<usize>,
    next_free: usize,
}

impl ConfigSpace {
    /// A header without BARs and capabilities.
    pub fn new(identity: &Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            last_capability: None,
            next_free: FIRST_CAPABILITY,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        let class = identity.class << 8 | u32::from(identity.revision);
        space.set(0x08, &class.to_le_bytes());
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Gives it a 32-bit memory BAR 0 of `size` bytes, a power of two, at `base`, and switches decoding on: this
    /// machine has no firmware that would.
    pub fn with_bar(mut self, size: u32, base: u32) -> ConfigSpace {
        self.set(BAR0, &base.to_le_bytes());
        self.allow(BAR0, &size.wrapping_neg().to_le_bytes());
        self.set(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        self
    }

    /// Appends a capability: `body` is what follows its id and next pointer. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_free;
        self.set(at, &[id, 0]);
        self.set(at.saturating_add(2), body);
        let link = self.last_capability.map_or(CAPABILITY_POINTER, |last| last.saturating_add(1));
        self.set(link, &[u8::try_from(at).unwrap_or(0)]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_capability = Some(at);
        // Capabilities begin at multiples of four (PCI 3.0 §6.7).
        self.next_free = at.saturating_add(2).saturating_add(body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest change the bits of `mask` in the bytes from `at`.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        put(&mut self.writable, at, mask);
    }

    /// Sets bytes whatever the guest may write.
    pub fn set(&mut self, at: usize, value: &[u8]) {
        put(&mut self.bytes, at, value);
    }

    /// Serves a read of the guest.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        data.fill(0);
        let from = self.bytes.get(at..).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Serves a write of the guest.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        let bytes = self.bytes.get_mut(at..).unwrap_or_default();
        let writable = self.writable.get(at..).unwrap_or_default();
        for ((byte, mask), value) in bytes.iter_mut().zip(writable).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// Where BAR 0 is decoded at the moment; `None` while the guest has switched decoding off.
    pub fn bar(&self) -> Option<u64> {
        let enabled = self.byte(COMMAND) & COMMAND_MEMORY.to_le_bytes()[0] != 0;
        enabled.then(|| u64::from(self.u32(BAR0)))
    }

    /// One byte.
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Four bytes, little-endian.
    pub fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

fn put(space: &mut [u8; CONFIG_BYTES], at: usize, value: &[u8]) {
    let to = space.get_mut(at..).unwrap_or_default();
    to.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    };

    fn space() -> ConfigSpace {
        ConfigSpace::new(&IDENTITY).with_bar(0x8000, 0xc000_8000)
    }

    #[test]
    fn the_header_is_where_the_specification_has_it() {
        let space = space();
        assert_eq!(space.u32(0x00), 0x1042_1af4);
        assert_eq!(space.u32(0x08), 0x0180_0001);
        assert_eq!(space.u32(0x2c), 0x1100_1af4);
        assert_eq!(space.byte(0x0e), 0, "header type 0, one function");
    }

    #[test]
    fn sizing_a_bar_shows_its_size_and_restores() {
        let mut space = space();
        space.write(0x10, &u32::MAX.to_le_bytes());
        assert_eq!(space.u32(0x10), 0xffff_8000);
        space.write(0x10, &0xd000_1234u32.to_le_bytes());
        assert_eq!(space.bar(), Some(0xd000_0000));
        for bar in 1..6 {
            space.write(0x10 + bar * 4, &u32::MAX.to_le_bytes());
            assert_eq!(space.u32(0x10 + bar * 4), 0, "BAR {bar} does not exist");
        }
    }

    #[test]
    fn switching_memory_off_hides_the_bar() {
        let mut space = space();
        space.write(0x04, &[0]);
        assert_eq!(space.bar(), None);
        space.write(0x04, &[0xff, 0xff]);
        assert_eq!(space.u32(0x04) & 0xffff, 0x0406, "I/O decoding does not exist");
        assert_eq!(space.bar(), Some(0xc000_8000));
    }

    #[test]
    fn capabilities_are_chained_in_order() {
        let mut space = space();
        assert_eq!(space.u32(0x04) >> 16 & 0x10, 0);
        let first = space.add_capability(0x11, &[0; 10]);
        let second = space.add_capability(0x09, &[1, 2, 3]);
        let third = space.add_capability(0x09, &[]);
        assert_eq!((first, second, third), (0x40, 0x4c, 0x54));
        assert_eq!(space.u32(0x04) >> 16 & 0x10, 0x10);
        assert_eq!(space.byte(0x34), 0x40);
        assert_eq!((space.byte(0x41), space.byte(0x4d), space.byte(0x55)), (0x4c, 0x54, 0));
        assert_eq!(space.u32(0x4c), 0x0201_5409);
    }

    proptest! {
        #[test]
        fn no_write_changes_a_bit_that_is_not_writable(
            writes in prop::collection::vec((0usize..5000, prop::collection::vec(any::<u8>(), 0..16)), 0..64),
        ) {
            let (mut space, fresh) = (space(), space());
            for (at, data) in &writes {
                space.write(*at, data);
                space.read(*at, &mut vec![0; data.len()]);
            }
            for at in 0..CONFIG_BYTES {
                prop_assert_eq!(space.bytes[at] & !space.writable[at], fresh.bytes[at] & !fresh.writable[at]);
            }
        }
    }
}
