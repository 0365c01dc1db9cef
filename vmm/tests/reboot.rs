//! What a reset leaves behind: nothing.
#![allow(clippy::unwrap_used)]

mod raw;

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

#[test]
fn ram_is_zero_again_after_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, raw::kernel(&CODE)).unwrap();
    let run = Run::new(env!("CARGO_BIN_EXE_outboard")).memory("2M");
    run.option("--kernel", path.to_str().unwrap()).start().wait_for("000", 1);
}
