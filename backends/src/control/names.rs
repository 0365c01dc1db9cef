//! Names of negotiated features, as the specifications have them.

use virtio_bindings::{virtio_config, virtio_ring};

use crate::proto::ProtocolFeatures;

/// Features that are not a device's (virtio 1.3 §6), and those between front-end and back-end.
const COMMON: [(u32, &str); 14] = [
    (26, "VHOST_F_LOG_ALL"),
    (virtio_config::VIRTIO_F_ANY_LAYOUT, "VIRTIO_F_ANY_LAYOUT"),
    (virtio_ring::VIRTIO_RING_F_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC"),
    (virtio_ring::VIRTIO_RING_F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
    (30, "VHOST_USER_F_PROTOCOL_FEATURES"),
    (virtio_config::VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
    (virtio_config::VIRTIO_F_ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM"),
    (virtio_config::VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"),
    (virtio_config::VIRTIO_F_IN_ORDER, "VIRTIO_F_IN_ORDER"),
    (virtio_config::VIRTIO_F_ORDER_PLATFORM, "VIRTIO_F_ORDER_PLATFORM"),
    (virtio_config::VIRTIO_F_SR_IOV, "VIRTIO_F_SR_IOV"),
    (virtio_config::VIRTIO_F_NOTIFICATION_DATA, "VIRTIO_F_NOTIFICATION_DATA"),
    (virtio_config::VIRTIO_F_NOTIF_CONFIG_DATA, "VIRTIO_F_NOTIF_CONFIG_DATA"),
    (virtio_config::VIRTIO_F_RING_RESET, "VIRTIO_F_RING_RESET"),
];

/// The bits that are set, each by its name; `own`: names of the device's bits.
pub(super) fn features(bits: u64, own: impl Fn(u32) -> Option<&'static str>) -> Vec<String> {
    let name = |bit: u32| {
        let common = COMMON.iter().find(|(common, _)| *common == bit).map(|(_, name)| *name);
        common.or_else(|| own(bit)).map_or_else(|| format!("bit {bit}"), str::to_owned)
    };
    (0..u64::BITS).filter(|bit| bits & 1 << bit != 0).map(name).collect()
}

/// The same of protocol features.
pub(super) fn protocol(features: ProtocolFeatures) -> Vec<String> {
    features.iter_names().map(|(name, _)| format!("VHOST_USER_PROTOCOL_F_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_names() {
        let own = |bit| (bit == 9).then_some("VIRTIO_BLK_F_FLUSH");
        let names = features(1 << 9 | 1 << 10 | 1 << 32 | 1 << 63, own);
        assert_eq!(names, ["VIRTIO_BLK_F_FLUSH", "bit 10", "VIRTIO_F_VERSION_1", "bit 63"]);
        let names = protocol(ProtocolFeatures::MQ | ProtocolFeatures::CONFIG);
        assert_eq!(names, ["VHOST_USER_PROTOCOL_F_MQ", "VHOST_USER_PROTOCOL_F_CONFIG"]);
    }
}
