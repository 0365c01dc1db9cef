//! Bulk traffic in chains of random shapes, both ways at once.

use tests::guest::chain::Chain;
use tests::guest::console::Console;
use tests::guest::ring::Ring;
use tests::random::Random;

use crate::assert_same;
use crate::end::End;

/// Bytes each way.
const BYTES: usize = 16 << 20;
/// Most buffers of a chain.
const PARTS: u64 = 6;

/// 16 MiB each way at the same time: nothing lost, nothing doubled, nothing reordered.
pub fn both_ways(console: &mut Console, reader: &End, writer: &End) {
    let mut random = Random::from_env();
    let (up, down) = (random.bytes(BYTES), random.bytes(BYTES));
    let Console { rx, tx } = console;
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(tx, &up, &mut Random::new(1)));
        scope.spawn(|| writer.write(&down));
        let heard = scope.spawn(|| receive_all(rx, down.len(), &mut Random::new(2)));
        assert_same(&reader.read(up.len()), &up);
        assert_same(&heard.join().unwrap(), &down);
    });
}

/// Sends all bytes and waits until every chain has come back.
pub fn send_all(tx: &mut Ring, mut bytes: &[u8], random: &mut Random) {
    while !bytes.is_empty() {
        let chain = readable(&mut bytes, random);
        while tx.free() < chain.slots() {
            tx.notify();
            assert_eq!(tx.wait_used().unwrap().len, 0, "nothing is written to a transmit chain");
        }
        tx.add(&chain);
        if random.below(4) == 0 {
            tx.notify();
        }
    }
    tx.notify();
    assert!(tx.wait_all().unwrap().iter().all(|done| done.len == 0));
}

/// Takes the front off `bytes` and makes a chain of it.
fn readable(bytes: &mut &[u8], random: &mut Random) -> Chain {
    let mut chain = Chain::new();
    for _ in 0..=random.below(PARTS) {
        let (part, rest) = bytes.split_at(size(random).min(bytes.len()));
        (chain, *bytes) = (chain.readable(part), rest);
        if bytes.is_empty() {
            break;
        }
    }
    framed(chain, random)
}

/// Receives until there are `want` bytes.
pub fn receive_all(rx: &mut Ring, want: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(want);
    while bytes.len() < want {
        loop {
            let chain = writable(random);
            if rx.free() < chain.slots() {
                break;
            }
            rx.add(&chain);
        }
        rx.notify();
        let done = rx.wait_used().unwrap();
        assert!(done.len > 0, "a buffer came back with nothing in it");
        bytes.extend(done.data);
    }
    bytes
}

fn writable(random: &mut Random) -> Chain {
    let mut chain = Chain::new();
    for _ in 0..=random.below(PARTS) {
        chain = chain.writable(u32::try_from(size(random)).unwrap());
    }
    framed(chain, random)
}

/// Small and large alike.
fn size(random: &mut Random) -> usize {
    let most = 1 << random.below(14);
    usize::try_from(1 + random.below(most)).unwrap()
}

fn framed(chain: Chain, random: &mut Random) -> Chain {
    match random.below(3) {
        0 => chain.indirect(),
        _ => chain,
    }
}
