//! Guests of a few instructions: an image around code that is entered at 1 MiB in flat 32-bit mode.

/// An ELF of one segment, this code, with a PVH note that enters it at its start.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x100 + code.len()];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(18, &62u16.to_le_bytes());
    put(24, &0x10_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    for (at, kind, offset, address, bytes) in [(64, 1, 0x100, 0x10_0000, code.len()), (120, 4, 0xC0, 0, 20)] {
        for (field, value) in [(0, kind), (8, offset), (24, address), (32, bytes as u64), (40, bytes as u64)]
        {
            put(at + field, &value.to_le_bytes());
        }
    }
    for (field, value) in [(0, 4u32), (4, 4), (8, 18), (16, 0x10_0000)] {
        put(0xC0 + field, &value.to_le_bytes());
    }
    put(0xCC, b"Xen\0");
    put(0x100, code);
    image
}
