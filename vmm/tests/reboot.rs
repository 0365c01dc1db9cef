//! What a reset leaves behind: nothing.
#![allow(clippy::unwrap_used)]

use tests::vmm::Run;

/// Loads at 1 MiB: tells the byte at 1.5 MiB plus '0', makes it a 1, and resets.
#[rustfmt::skip]
const CODE: [u8; 30] = [
    0xA0, 0x00, 0x00, 0x18, 0x00,             // mov al, [0x180000]
    0x04, b'0',                               // add al, '0'
    0x66, 0xBA, 0xF8, 0x03,                   // mov dx, COM1
    0xEE,                                     // out dx, al
    0xC6, 0x05, 0x00, 0x00, 0x18, 0x00, 0x01, // mov byte [0x180000], 1
    0x66, 0xBA, 0x02, 0x06,                   // mov dx, RESET
    0xB0, 0x01,                               // mov al, 1
    0xEE,                                     // out dx, al
    0xF4,                                     // hlt
    0xEB, 0xFD,                               // jmp to the hlt
    0x90,
];

/// An ELF of one segment, with a PVH note that enters it at its start.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62u16.to_le_bytes());
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    for (at, kind, offset, address, bytes) in [(64, 1, 0x100, 0x10_0000, CODE.len()), (120, 4, 0xC0, 0, 20)] {
        for (field, value) in [(0, kind), (8, offset), (24, address), (32, bytes as u64), (40, bytes as u64)]
        {
            put(at + field, &value.to_le_bytes());
        }
    }
    for (field, value) in [(0, 4u32), (4, 4), (8, 18), (16, 0x10_0000)] {
        put(0xC0 + field, &value.to_le_bytes());
    }
    put(0xCC, b"Xen\0");
    put(0x100, &CODE);
    image
}

#[test]
fn ram_is_zero_again_after_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, kernel()).unwrap();
    let run = Run::new(env!("CARGO_BIN_EXE_outboard")).memory("2M");
    run.option("--kernel", path.to_str().unwrap()).start().wait_for("000", 1);
}
