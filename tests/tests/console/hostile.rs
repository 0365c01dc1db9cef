//! C01, C02, C03 and C05: chains that are long, huge or the wrong way round, and bytes of any value.

use tests::guest::chain::Chain;
use tests::guest::memory::RAM_BASE;

use crate::{Guest, QUEUE_SIZE, WAYS, account, assert_same, client, dropped_for, listening};

#[test]
fn c01_a_chain_of_all_descriptors_arrives_byte_by_byte_once() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        for round in 0..20_u8 {
            let count = u8::try_from(QUEUE_SIZE).unwrap();
            let bytes: Vec<u8> = (0..count).map(|nth| nth.wrapping_add(round)).collect();
            let chain = bytes.iter().fold(Chain::new(), |chain, byte| chain.readable(&[*byte]));
            guest.console.tx.run(&chain).unwrap();
            assert_eq!(client.read(bytes.len()), bytes);
        }
    }
}

#[test]
fn c01_a_receive_chain_of_all_descriptors_is_filled_in_order() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let count = u8::try_from(QUEUE_SIZE).unwrap();
        let bytes: Vec<u8> = (0..count * 3).collect();
        client(&daemon).write(&bytes);
        let chain = (0..QUEUE_SIZE).fold(Chain::new(), |chain, _| chain.writable(3));
        let done = guest.console.rx.run(&chain).unwrap();
        assert_eq!(done.data, bytes[..done.data.len()]);
        guest.hears_rest(&bytes[done.data.len()..]);
    }
}

#[test]
fn c02_a_descriptor_of_megabytes_is_written_in_pieces() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        guest.hears_and_answers(&client);
        let bytes = guest.frontend.ram().read(RAM_BASE, 16 << 20);
        let chain = Chain::new().at(RAM_BASE, 16 << 20, false);
        guest.console.tx.add(&chain);
        guest.console.tx.notify();
        assert_same(&client.read(bytes.len())[1 << 20..], &bytes[1 << 20..]);
        guest.console.tx.wait_used().unwrap();
    }
}

#[test]
fn c02_a_gigabyte_for_nobody_costs_neither_memory_nor_time() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let huge = || (0..60).fold(Chain::new(), |chain, _| chain.at(RAM_BASE, 16 << 20, false));
        guest.console.tx.run(&huge()).unwrap();
        let before = daemon.counts().rss_kib;
        for _ in 0..20 {
            guest.console.tx.run(&huge()).unwrap();
        }
        let after = daemon.counts().rss_kib;
        assert!(after < before + 512, "{before} KiB grew to {after} KiB");
        let lost = 21 * (60 << 24) - crate::KEEP_BYTES as u64;
        assert_eq!(["nobody_reads", "client_left"].map(|cause| dropped_for(&daemon, cause)), [lost, 0]);
        assert_eq!(account(&daemon.terminate().stderr, "dropped"), lost);
    }
}

#[test]
fn c02_a_huge_receive_buffer_gets_what_there_is() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        let at = RAM_BASE + (16 << 20);
        guest.console.rx.add(&Chain::new().at(at, 15 << 20, true));
        guest.console.rx.notify();
        client.write(b"a little");
        let done = guest.console.rx.wait_used().unwrap();
        assert_eq!(done.data, &b"a little"[..done.data.len()]);
        assert!(!done.data.is_empty());
    }
}

#[test]
fn c03_bytes_of_every_value_pass_as_they_are() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        let all: Vec<u8> = (0..=255).chain([0xc3, 0x28, 0xf0, 0x9f, 0x00, 0x0d, 0x0a]).collect();
        guest.say(&all, 7);
        assert_eq!(client.read(all.len()), all);
        client.write(&all);
        assert_eq!(guest.console.receive(all.len(), 7).unwrap(), all);
    }
}

#[test]
fn c05_a_readable_receive_buffer_goes_back_and_the_host_byte_waits() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        client.write(b"x");
        let wrong = [Chain::new().readable(b"no room"), Chain::new().readable(b"no").writable(10)];
        for chain in wrong {
            assert_eq!(guest.console.rx.run(&chain).unwrap().len, 0);
        }
        guest.hears(b"x");
    }
}

#[test]
fn a_transmit_chain_with_nothing_to_read_goes_back_and_the_next_is_sent() {
    for way in WAYS {
        let daemon = listening(way.engine);
        let mut guest = way.boot(daemon.socket());
        let client = client(&daemon);
        assert_eq!(guest.console.tx.run(&Chain::new().writable(10)).unwrap().len, 0);
        assert_eq!(guest.console.tx.run(&Chain::new().readable(b"ab").writable(10)).unwrap().len, 0);
        assert_eq!(client.read(2), b"ab");
        assert!(daemon.terminate().stderr.contains("malformed=1"));
    }
}

impl Guest {
    /// As [`Guest::hears`], if there is anything left to hear.
    #[track_caller]
    fn hears_rest(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.hears(bytes);
        }
    }
}
