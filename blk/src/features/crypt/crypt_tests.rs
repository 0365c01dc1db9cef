use backends::memory::own::Buffer;

use super::*;
use crate::graph::Graph;
use crate::testing::{Disk, Ram, pieces, random, stack, try_stack};

fn key(first: u8) -> Key {
    let bytes: Vec<u8> = (first..).take(64).collect();
    Key::parse(&bytes).unwrap()
}

/// With memory for so many buffers.
fn graph(ram: &Ram, sector: u32, buffers: u64) -> Graph {
    stack(vec![ram.volume(), Box::new(Crypt::new(key(1), sector, buffers * PIECE_BYTES as u64))])
}

/// Bytes that repeat nowhere near.
fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed = random(seed);
        seed.to_le_bytes()[7]
    })
    .take(bytes)
    .collect()
}

#[test]
fn below_is_what_the_cipher_makes_of_it() {
    for sector in [512_u32, 4096] {
        let ram = Ram::new(1 << 20, 512);
        let graph = graph(&ram, sector, 4);
        let mut disk = Disk::new(&graph);
        let data = noise(16384, 7);
        disk.write(8192, &data).unwrap();
        let mut expected = data.clone();
        Xts::new(&key(1), sector).unwrap().encipher(8192 / u64::from(sector), &mut expected).unwrap();
        assert!(ram.bytes(8192, 16384) == expected);
        assert!(disk.read(8192, 16384).unwrap() == data);
        assert!(disk.read(12288, 4096).unwrap() == data[4096..8192]);
        let state = graph.part(1).unwrap().volume.state();
        assert_eq!((&state["enciphered_bytes"], &state["deciphered_bytes"]), (&16384.into(), &20480.into()));
    }
}

#[test]
fn who_has_another_key_or_changes_a_byte_below_gets_noise() {
    let ram = Ram::new(1 << 20, 512);
    let (graph, data) = (graph(&ram, 512, 4), noise(1024, 3));
    let mut disk = Disk::new(&graph);
    disk.write(0, &data).unwrap();
    let other = stack(vec![ram.volume(), Box::new(Crypt::new(key(2), 512, 1 << 20))]);
    assert!(Disk::new(&other).read(0, 1024).unwrap()[..512] != data[..512]);
    let byte = ram.bytes(600, 1)[0];
    ram.tamper(600, &[byte ^ 1]);
    let read = disk.read(0, 1024).unwrap();
    assert!(read[..512] == data[..512]);
    assert!(read[512..] != data[512..]);
}

#[test]
fn many_and_long_calls_share_few_buffers() {
    let ram = Ram::new(4 << 20, 512).late(11);
    let graph = graph(&ram, 512, 2);
    let mut disk = Disk::new(&graph);
    let (long, short) = (noise((1 << 20) + 1536, 5), noise(512 * 40, 6));
    let buffers: Vec<_> = [&long, &short]
        .map(|data| {
            let buffer = Buffer::new(data.len()).unwrap();
            buffer.segment(data.len()).copy_from(data);
            buffer
        })
        .into();
    let write = |offset, bytes: usize| Op::Write { offset, bytes: bytes as u64, fua: false };
    let mut calls = vec![disk.begin(write(512, long.len()), &pieces(&buffers[0], long.len(), 9))];
    for at in 0..40_u64 {
        let mut data = buffers[1].segment(short.len());
        data.take_front(usize::try_from(at).unwrap() * 512);
        calls.push(disk.begin(write((2 << 20) + at * 512, 512), &[data.take_front(512)]));
    }
    assert!(calls.into_iter().all(|call| disk.wait(call).outcome.is_ok()));
    let read = disk.read(512, long.len()).unwrap();
    assert!(read == long);
    assert!(disk.read(2 << 20, short.len()).unwrap() == short);
    assert_ne!(graph.part(1).unwrap().volume.state()["waited_for_memory"], 0);
}

#[test]
fn what_the_guest_changes_meanwhile_does_not_matter() {
    let ram = Ram::new(1 << 20, 512).late(1);
    let graph = graph(&ram, 512, 4);
    let mut disk = Disk::new(&graph);
    let buffer = Buffer::new(4096).unwrap();
    buffer.segment(4096).copy_from(&[7; 4096]);
    let call = disk.begin(Op::Write { offset: 0, bytes: 4096, fua: true }, &[buffer.segment(4096)]);
    buffer.segment(4096).copy_from(&[8; 4096]);
    assert_eq!(disk.wait(call).outcome, Ok(()));
    // And what is below never stands in its memory.
    assert_eq!(buffer.segment(4096).read(0), Some([8; 4096]));
    assert!(disk.read(0, 4096).unwrap() == [7; 4096]);
}

#[test]
fn an_error_below_comes_up_and_no_buffer_is_lost() {
    let ram = Ram::new(4 << 20, 512);
    let graph = graph(&ram, 512, 1);
    let mut disk = Disk::new(&graph);
    for (kind, errno) in [(OpKind::Write, Errno::NOSPC), (OpKind::Read, Errno::IO)] {
        ram.fail(kind, Some(errno));
        for bytes in [512, 1 << 20] {
            let outcome = match kind {
                OpKind::Write => disk.write(0, &noise(bytes, 1)),
                _ => disk.read(0, bytes).map(drop),
            };
            assert_eq!(outcome, Err(errno));
        }
        ram.fail(kind, None);
    }
    disk.write(0, &noise(1 << 20, 2)).unwrap();
    assert!(disk.read(0, 1 << 20).unwrap() == noise(1 << 20, 2));
}

#[test]
fn a_queue_that_is_given_up_gets_its_calls_back() {
    let ram = Ram::new(4 << 20, 512).late(3);
    let graph = graph(&ram, 512, 1);
    let mut disk = Disk::new(&graph);
    let buffer = Buffer::new(1 << 20).unwrap();
    let write = |offset, bytes| Op::Write { offset, bytes, fua: false };
    let calls = [(0, 512), (4096, 1 << 20), (2 << 20, 512)].map(|(offset, bytes)| {
        disk.begin(write(offset, bytes), &[buffer.segment(usize::try_from(bytes).unwrap())])
    });
    disk.stop(Release::Cancel);
    for call in calls {
        assert_eq!(disk.wait(call).outcome, Err(Errno::CANCELED));
    }
    disk.start();
    disk.write(0, &noise(4096, 4)).unwrap();
    assert!(disk.read(0, 4096).unwrap() == noise(4096, 4));
}

#[test]
fn no_more_is_promised_than_a_cipher_can_keep() {
    let below = Ram::new(1 << 20, 512).volume().keeps(&[]).unwrap();
    let keeps = |sector, below| Crypt::new(key(1), sector, 1 << 20).keeps(&[below]);
    let expected = Keeps { zeroes: None, unmap: false, extents: false, ..below };
    assert_eq!(keeps(512, below), Ok(expected));
    let large = keeps(4096, below).unwrap();
    assert_eq!(
        (large.block_bytes, large.physical_bytes, large.discard.unwrap().align_bytes),
        (4096, 4096, 4096)
    );
    assert_eq!(keeps(512, Keeps::plain(1 << 20, 4096)).unwrap().block_bytes, 4096);
    let odd = try_stack(vec![Ram::new(4608, 512).volume(), Box::new(Crypt::new(key(1), 4096, 1 << 20))]);
    assert_eq!(
        odd.unwrap_err().problem,
        "the 4608 bytes below are no whole sectors of 4096; enlarge it, or add option sector 512"
    );
}
