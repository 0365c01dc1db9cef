#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

const RING_BITS: u64 = 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32;

fn kind(name: &str) -> DeviceKind {
    DeviceKind::parse(name).unwrap()
}

/// What our own daemons offer, or will.
fn offer(name: &str) -> Offer {
    let config = |bytes: usize| Some(vec![1; bytes]);
    let (features, queues, config) = match name {
        "blk" => (1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12, 4, config(60)),
        "rng" => (0, 1, config(0)),
        "console" => (0, 2, config(12)),
        "multiport" => (0b11, 64, config(12)),
        "balloon" => (0b10_0110, 4, config(16)),
        "net" => (1 << 0 | 1 << 1 | 1 << 5 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 22, 5, config(24)),
        other => panic!("{other}"),
    };
    Offer { features: features | RING_BITS, queues: Some(queues), config }
}

/// What a connect to `daemon` as a `kind` would have read of its configuration space.
fn offer_as(daemon: &str, kind: DeviceKind) -> Offer {
    let mut offer = offer(daemon);
    let has = offer.config.as_ref().map_or(0, Vec::len);
    let got = kind.config_sizes().map(usize::from).find(|size| *size <= has).unwrap_or(0);
    // Somebody who wants no space still asks for some bytes, to see that there is none.
    let got = if kind.is_without_config() { has.min(8) } else { got };
    offer.config = Some(vec![1; got]);
    offer
}

#[test]
fn each_daemon_is_taken_for_what_it_is_and_for_nothing_else() {
    let daemons = [
        ("blk", "blk"),
        ("rng", "rng"),
        ("console", "console"),
        ("multiport", "console"),
        ("balloon", "balloon"),
        ("net", "net"),
    ];
    for (daemon, right) in daemons {
        for asked in ["blk", "rng", "console", "balloon", "net"] {
            let kind = kind(asked);
            let outcome = kind.check(&offer_as(daemon, kind));
            assert_eq!(outcome.is_ok(), asked == right, "{daemon} asked as {asked}: {outcome:?}");
        }
    }
}

#[test]
fn the_refusal_says_why() {
    let wrong = Offer { features: 1 << 9 | RING_BITS, ..offer("rng") };
    assert_eq!(
        kind("rng").check(&wrong).unwrap_err(),
        "the daemon there offers no entropy device: its features 0x170000200 are not those of an entropy device"
    );
    let text = kind("blk").check(&offer("rng")).unwrap_err();
    assert!(text.contains("no block device: its configuration space has fewer than the 36 bytes"), "{text}");
    assert!(text.ends_with("it looks like an entropy device"), "{text}");
}

#[test]
fn a_number_is_taken_without_a_look() {
    let any = kind("virtio-4");
    assert_eq!((any.id(), any.to_string()), (4, "virtio-4".to_owned()));
    for daemon in ["blk", "rng", "net"] {
        assert_eq!(any.check(&offer(daemon)), Ok(()));
    }
    assert_eq!(any.check(&Offer::default()), Ok(()));
}

#[test]
fn daemons_that_say_little_are_taken() {
    let quiet = Offer { features: RING_BITS, queues: None, config: None };
    assert_eq!(kind("rng").check(&quiet), Ok(()));
    assert_eq!(kind("console").check(&quiet), Ok(()));
    assert!(kind("blk").check(&quiet).unwrap_err().contains("no configuration space"));
    let padding = Offer { config: Some(vec![0; 8]), ..offer("rng") };
    assert_eq!(kind("rng").check(&padding), Ok(()));
}

#[test]
fn sizes_are_asked_from_the_longest_down() {
    assert_eq!(kind("console").config_sizes().collect::<Vec<_>>(), [12]);
    assert_eq!(kind("net").config_sizes().collect::<Vec<_>>(), (6..=24).rev().collect::<Vec<_>>());
    assert_eq!(kind("rng").config_sizes().count(), 0);
    assert_eq!(kind("virtio-9").config_sizes().count(), 256);
}

#[test]
fn masks_are_inclusive() {
    assert_eq!(bits(0, 2), 0b111);
    assert_eq!(bits(4, 4), 0b1_0000);
    assert_eq!(bits(0, 63), u64::MAX);
    assert_eq!(bits(63, 63), 1 << 63);
}
