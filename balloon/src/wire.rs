//! The configuration space (virtio 1.3 §5.5.4).
//!
//! In: bytes of a guest. Out: fields. Promises: a driver's write changes `actual_pages` and `poison_value`
//! and nothing else. Some front-ends send the whole space back on each write of `actual`, so that a stale
//! target would otherwise overwrite a new one.

/// `struct virtio_balloon_config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Pages of 4 KiB that the host wants, whatever page size either side has.
    pub target_pages: u32,
    /// Pages that the driver says it gave.
    pub actual_pages: u32,
    /// Free page hinting: command of the device.
    pub free_page_hint_cmd_id: u32,
    /// What the guest fills free pages with.
    pub poison_value: u32,
}

impl BalloonConfig {
    /// Bytes of the space.
    pub const BYTES: usize = 16;

    /// The space as the driver reads it.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut space = [0; Self::BYTES];
        let fields = [self.target_pages, self.actual_pages, self.free_page_hint_cmd_id, self.poison_value];
        for (to, field) in space.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        space
    }

    fn from_bytes(space: [u8; Self::BYTES]) -> BalloonConfig {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = space;
        BalloonConfig {
            target_pages: u32::from_le_bytes([a, b, c, d]),
            actual_pages: u32::from_le_bytes([e, f, g, h]),
            free_page_hint_cmd_id: u32::from_le_bytes([i, j, k, l]),
            poison_value: u32::from_le_bytes([m, n, o, p]),
        }
    }

    /// Takes a driver's write at `offset`. `None` when it is not within the space.
    #[must_use]
    pub fn written(self, offset: usize, data: &[u8]) -> Option<BalloonConfig> {
        let mut space = self.to_bytes();
        space.get_mut(offset..)?.get_mut(..data.len())?.copy_from_slice(data);
        let new = BalloonConfig::from_bytes(space);
        Some(BalloonConfig { actual_pages: new.actual_pages, poison_value: new.poison_value, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BalloonConfig =
        BalloonConfig { target_pages: 100, actual_pages: 50, free_page_hint_cmd_id: 7, poison_value: 0xaa };

    #[test]
    fn virtio_5_5_4_fields_stand_where_the_specification_has_them() {
        let space = CONFIG.to_bytes();
        let fields: Vec<u8> = space.iter().step_by(4).copied().collect();
        assert_eq!(fields, [100, 50, 7, 0xaa]);
        assert_eq!(BalloonConfig::from_bytes(space), CONFIG);
    }

    #[test]
    fn a_driver_changes_actual_and_poison_and_nothing_else() {
        let stale =
            BalloonConfig { target_pages: 1, actual_pages: 60, free_page_hint_cmd_id: 1, poison_value: 2 };
        let new = CONFIG.written(0, &stale.to_bytes()).unwrap();
        assert_eq!(new, BalloonConfig { actual_pages: 60, poison_value: 2, ..CONFIG });
        assert_eq!(CONFIG.written(4, &61u32.to_le_bytes()).unwrap().actual_pages, 61);
    }

    #[test]
    fn writes_past_the_space_are_refused() {
        assert_eq!(CONFIG.written(16, &[0]), None);
        assert_eq!(CONFIG.written(13, &[0; 4]), None);
        assert_eq!(CONFIG.written(usize::MAX, &[0; 4]), None);
    }
}
