//! What the driver sees of a console besides its queues (virtio 1.3 §5.3.2 to §5.3.4).

/// Queues of port 0: host to guest.
pub const RECEIVEQ: u16 = 0;
/// Guest to host.
pub const TRANSMITQ: u16 = 1;
/// Queues of a device without F_MULTIPORT (§5.3.2).
pub const QUEUES: u16 = 2;

/// VIRTIO_CONSOLE_F_SIZE, bit 0: `cols` and `rows` in the configuration space are valid (§5.3.3).
pub const F_SIZE: u64 = 1;

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// `struct virtio_console_config` (§5.3.4), little-endian: cols, rows, max_nr_ports, emerg_wr. A field whose
/// feature is not offered is 0.
pub fn config(size: Option<Size>) -> Vec<u8> {
    let (cols, rows) = size.map_or((0, 0), |size| (size.cols, size.rows));
    let mut bytes = Vec::from(cols.to_le_bytes());
    bytes.extend(rows.to_le_bytes());
    bytes.extend([0; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_space_is_laid_out_as_5_3_4_says() {
        let bytes = config(Some(Size { cols: 0x1234, rows: 24 }));
        assert_eq!(bytes, [0x34, 0x12, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(config(None), [0; 12]);
    }
}
