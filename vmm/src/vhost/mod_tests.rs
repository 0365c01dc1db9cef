#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
use std::os::unix::net::UnixListener;

use backends::proto::wire::F_PROTOCOL_FEATURES;
use backends::proto::{Code, ProtocolFeatures, Reply, Request};

use super::testing::{Daemon, Fake, Twist, start};
use super::*;
use crate::pci::PciDevice;
use crate::pci::testing::test_vm;

/// Connects as `device` (without its socket) to a daemon on a socket of its own.
fn attach_to(
    device: &str,
    fake: Fake,
    script: impl FnMut(&Request) -> Twist + Send + 'static,
) -> Result<Arc<VhostPciDevice>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving =
        std::thread::spawn(move || Daemon::serve(listener.accept().unwrap().0, fake, script).join());
    let (name, more) = device.split_once(',').unwrap_or((device, ""));
    let comma = if more.is_empty() { "" } else { "," };
    let spec: DeviceSpec = format!("{name},socket={}{comma}{more}", path.display()).parse().unwrap();
    let (vm, ram) = (test_vm(), Arc::new(GuestRam::new(2 << 20).unwrap()));
    let irq = Arc::new(IrqRouter::new(Arc::clone(&vm)));
    let device = connect(&spec, &ram, &vm, &irq).and_then(start);
    if device.is_err() {
        serving.join().unwrap();
    }
    let prefix = format!("--device {name},socket={}: ", path.display());
    device.map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.strip_prefix(&prefix).unwrap_or_else(|| panic!("{text}")).to_owned()
    })
}

fn refused(device: &str, fake: Fake) -> String {
    attach_to(device, fake, |_| Twist::Regular).map(|_| ()).unwrap_err()
}

/// Reads the common configuration of a device.
fn read<const N: usize>(device: &VhostPciDevice, at: u64) -> [u8; N] {
    let mut data = [0; N];
    device.bar_read(at, &mut data);
    data
}

fn features(device: &VhostPciDevice) -> u64 {
    let half = |select: u32| {
        device.bar_write(0x00, &select.to_le_bytes());
        u64::from(u32::from_le_bytes(read(device, 0x04)))
    };
    half(0) | half(1) << 32
}

fn queues(device: &VhostPciDevice) -> u16 {
    u16::from_le_bytes(read(device, 0x12))
}

#[test]
fn a_device_is_what_its_daemon_offers() {
    let device = attach_to("blk,id=disk", Fake::blk(), |_| Twist::Regular).unwrap();
    assert_eq!(features(&device), F_VERSION_1 | 1 << 9, "the rest is not for guests");
    assert_eq!(queues(&device), 2);
    assert_eq!(u16::from_le_bytes(read(&device, 0x18)), DEFAULT_QUEUE_SIZE);
    assert_eq!(read(&device, 0x2000 + 56), [56, 57, 58, 59, 0, 0]);
    let mut ids = [0; 4];
    device.config_read(0, &mut ids);
    assert_eq!(ids, [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(device.id(), "disk");
}

#[test]
fn a_type_that_nobody_has_heard_of_works() {
    let fake = Fake {
        features: 0x123 | 1 << 61 | F_VERSION_1 | F_PROTOCOL_FEATURES,
        config: vec![7; 5],
        ..Fake::blk()
    };
    let device = attach_to("virtio-55,id=odd", fake, |_| Twist::Regular).unwrap();
    assert_eq!(features(&device), 0x123 | 1 << 61 | F_VERSION_1);
    assert_eq!(read(&device, 0x2000), [7, 7, 7, 7, 7, 0]);
}

#[test]
fn queues_and_their_size_can_be_lowered() {
    let device = attach_to("blk,queues=1,queue-size=64", Fake::blk(), |_| Twist::Regular).unwrap();
    assert_eq!((queues(&device), u16::from_le_bytes(read(&device, 0x18))), (1, 64));
    assert_eq!(u16::from_le_bytes(read(&device, 0x2000 + 34)), 1, "the driver must not look for the other");
}

#[test]
fn queues_and_sizes_that_the_daemon_has_not_are_refused() {
    assert_eq!(
        refused("blk,queues=3", Fake::blk()),
        "queues=3: the daemon there has 2; leave queues out, or ask for at most 2"
    );
    let net =
        Fake { features: Fake::rng().features | 1 << 17, queues: 5, config: vec![0; 24], ..Fake::blk() };
    assert!(refused("net,queues=3", net).starts_with("queues=3: a network device has 2 for each pair"));
    let script = |request: &Request| match request {
        Request::SetVringNum { num: 4096, .. } => Twist::Reply(Code::SetVringNum, Reply::U64(1)),
        _ => Twist::Regular,
    };
    let text = attach_to("blk,queue-size=4096", Fake::blk(), script).map(|_| ()).unwrap_err();
    assert!(text.starts_with("queue-size=4096: the daemon there does not take"), "{text}");
}

#[test]
fn a_daemon_of_another_type_is_refused() {
    let text = refused("blk", Fake::rng());
    assert!(text.starts_with("the daemon there offers no block device: "), "{text}");
    assert!(text.contains("start outboard-blk --socket-path"), "{text}");
    assert!(text.ends_with("and name its socket, or name the right TYPE"), "{text}");
    assert!(refused("rng", Fake::blk()).contains("no entropy device: its features 0x"));
}

#[test]
fn a_daemon_that_pads_its_configuration_space_is_seen_through() {
    let console = Fake { queues: 2, config: vec![1; 12], pads: true, ..Fake::rng() };
    for fake in [Fake { pads: true, ..Fake::rng() }, console.clone()] {
        let text = refused("blk", fake);
        assert!(text.contains("its configuration space has fewer than the 36 bytes"), "{text}");
    }
    assert!(refused("balloon", console).contains("fewer than the 16 bytes of a memory balloon"));
    attach_to("rng", Fake { pads: true, ..Fake::rng() }, |_| Twist::Regular).unwrap();
    let device = attach_to("blk", Fake { pads: true, ..Fake::blk() }, |_| Twist::Regular).unwrap();
    assert_eq!(read(&device, 0x2000 + 58), [58, 59, 0, 0]);
}

#[test]
fn a_daemon_without_virtio_1_is_refused() {
    let text = refused("rng", Fake { features: F_PROTOCOL_FEATURES, ..Fake::rng() });
    assert!(text.contains("does not offer VIRTIO_F_VERSION_1 (features 0x40000000)"), "{text}");
}

#[test]
fn daemons_that_lack_protocol_features_are_taken() {
    let plain = Fake { features: F_VERSION_1, ..Fake::rng() };
    assert_eq!(queues(&attach_to("rng", plain, |_| Twist::Regular).unwrap()), 1);
    let quiet =
        Fake { features: Fake::rng().features | 0b11, protocol: ProtocolFeatures::empty(), ..Fake::rng() };
    let console = attach_to("console", quiet, |_| Twist::Regular).unwrap();
    assert_eq!((queues(&console), features(&console)), (2, F_VERSION_1), "SIZE, MULTIPORT need a space");
}

#[test]
fn what_does_not_answer_like_a_daemon_is_refused_in_time() {
    let start = Instant::now();
    let text = attach_to("rng", Fake::rng(), |_| Twist::Mute).map(|_| ()).unwrap_err();
    assert!(text.starts_with("the daemon there did not answer within 2 s (GET_FEATURES failed"), "{text}");
    assert!(start.elapsed() < CONNECT_DEADLINE * 3);
    let http = |_: &Request| Twist::Bytes("HTTP/1.1 400 Bad Request\r\n\r\n".into());
    let text = attach_to("rng", Fake::rng(), http).map(|_| ()).unwrap_err();
    assert!(text.starts_with("what listens there does not speak vhost-user"), "{text}");
    assert!(text.contains("start outboard-rng --socket-path"), "{text}");
    let text = attach_to("rng", Fake::rng(), |_| Twist::HangUp).map(|_| ()).unwrap_err();
    assert!(text.starts_with("the daemon there hung up (GET_FEATURES failed"), "{text}");
    let text = refused("blk", Fake { queues: 0, ..Fake::blk() });
    assert!(text.contains("0 queues") || text.contains("no virtqueues"), "{text}");
}
