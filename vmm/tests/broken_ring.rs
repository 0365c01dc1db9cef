//! A driver that breaks its ring is told so, may start again, and cannot fill the log.
#![allow(clippy::unwrap_used)]

mod raw;

use tests::daemon::Launch;
use tests::vmm::Run;

/// BAR of the device in slot 1, and the registers of virtio 1.3 §4.1.4.3 and the queue notify area in it.
const BAR: u32 = 0xC000_8000;
const DRIVER_FEATURE_SELECT: u32 = BAR + 0x08;
const DRIVER_FEATURE: u32 = BAR + 0x0C;
const STATUS: u32 = BAR + 0x14;
const QUEUE_ENABLE: u32 = BAR + 0x1C;
const QUEUE_ADDRESSES: [u32; 3] = [BAR + 0x20, BAR + 0x28, BAR + 0x30];
const NOTIFY: u32 = BAR + 0x3000;
/// Where the guest has its ring, and a buffer.
const DESCRIPTORS: u32 = 0x18_0000;
const AVAILABLE: u32 = 0x18_1000;
const USED: u32 = 0x18_2000;
const BUFFER: u32 = 0x18_3000;

/// 32-bit code, put together from whole instructions.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn add(mut self, opcode: &[u8], address: u32, operand: &[u8]) -> Code {
        self.0.extend([opcode, &address.to_le_bytes(), operand].concat());
        self
    }

    fn write8(self, address: u32, value: u8) -> Code {
        self.add(&[0xC6, 0x05], address, &[value])
    }

    fn write16(self, address: u32, value: u16) -> Code {
        self.add(&[0x66, 0xC7, 0x05], address, &value.to_le_bytes())
    }

    fn write32(self, address: u32, value: u32) -> Code {
        self.add(&[0xC7, 0x05], address, &value.to_le_bytes())
    }

    /// Waits until one of these bits is set.
    fn wait_for(self, address: u32, bits: u8) -> Code {
        // test byte [address], bits; jz to it
        self.add(&[0xF6, 0x05], address, &[bits, 0x74, 0xF7])
    }

    /// A byte to COM1.
    fn say(mut self, letter: u8) -> Code {
        self.0.extend([0x66, 0xBA, 0xF8, 0x03, 0xB0, letter, 0xEE]);
        self
    }

    /// Starts the device on a ring whose available index is this (virtio 1.3 §2.7.6), and kicks it.
    fn start(self, available: u16) -> Code {
        let code = self.write32(DRIVER_FEATURE_SELECT, 1).write32(DRIVER_FEATURE, 1).write8(STATUS, 0x0B);
        let code = QUEUE_ADDRESSES
            .into_iter()
            .zip([DESCRIPTORS, AVAILABLE, USED])
            .fold(code, |code, (register, address)| code.write32(register, address));
        let code = code.write16(QUEUE_ENABLE, 1).write16(AVAILABLE + 2, available);
        code.write8(STATUS, 0x0F).write16(NOTIFY, 0)
    }

    fn halt(mut self) -> Vec<u8> {
        self.0.extend([0xF4, 0xEB, 0xFD]);
        self.0
    }
}

#[test]
fn a_driver_that_breaks_its_ring_is_told_and_may_start_again() {
    let needs_reset = 0x40;
    // One buffer of 64 bytes for the device to write.
    let code = Code::default().write32(DESCRIPTORS, BUFFER).write32(DESCRIPTORS + 8, 64);
    let code = code.write16(DESCRIPTORS + 12, 2);
    let code = [b'b', b'B'].into_iter().fold(code, |code, letter| {
        // More buffers than the ring has places.
        code.start(0x1000).wait_for(STATUS, needs_reset).say(letter).write8(STATUS, 0)
    });
    let code = code.start(1).wait_for(USED + 2, 1).say(b'!').halt();

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, raw::kernel(&code)).unwrap();
    let daemon = Launch::new("outboard-rng").serve().unwrap();
    let run = Run::new(env!("CARGO_BIN_EXE_outboard")).memory("2M").device("rng", daemon.socket());
    let vmm = run.option("--kernel", path.to_str().unwrap()).start();
    vmm.wait_for("bB!", 1);
    assert_eq!(vmm.stderr().matches("queue broken").count(), 1, "{}", vmm.stderr());
}
