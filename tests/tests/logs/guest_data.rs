//! What a guest wrote is in no log, at any level, whatever becomes of it.

use std::io::Write;

use backends::proto::wire::Header;
use backends::proto::{Code, Request};
use backends::session::Direction;
use tests::guest::chain::Chain;
use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

/// Bytes that nothing else has.
const SECRET: [u8; 16] = *b"qZ7#vKpX!w9Lr@Tm";

/// The secret as any of our formats could print a part of it: as it is, in hexadecimal, as a list of numbers.
fn prints() -> Vec<String> {
    let part = &SECRET[4..9];
    let text = String::from_utf8(part.to_vec()).unwrap();
    let joined =
        |separator: &str, of: &dyn Fn(&u8) -> String| part.iter().map(of).collect::<Vec<_>>().join(separator);
    vec![
        text,
        joined("", &|byte| format!("{byte:02x}")),
        joined("", &|byte| format!("{byte:02X}")),
        joined(", ", &u8::to_string),
        joined(", ", &|byte| format!("{byte:x}")),
        joined(" ", &|byte| format!("{byte:02x}")),
        u32::from_le_bytes(part[..4].try_into().unwrap()).to_string(),
        format!("{:x}", u32::from_le_bytes(part[..4].try_into().unwrap())),
    ]
}

fn secret(bytes: usize) -> Vec<u8> {
    SECRET.into_iter().cycle().take(bytes).collect()
}

/// Buffers of all shapes with the secret in them: good requests and broken ones.
fn chains() -> Vec<Chain> {
    let write = tests::guest::blk::Request::write(1, &secret(512));
    let read_past = tests::guest::blk::Request::read(1 << 40, 512);
    let of = |request: &tests::guest::blk::Request| request.chain(&tests::guest::blk::Framing::usual(0));
    vec![
        Chain::new().readable(&secret(64)),
        Chain::new().readable(&secret(4096)).writable(512),
        Chain::new().readable(&secret(15)).writable(1),
        Chain::new().readable(&secret(16)).readable(&secret(512)).writable(1),
        Chain::new().readable(&secret(200_000)),
        Chain::new().readable(&secret(64)).indirect(),
        of(&write),
        of(&read_past),
    ]
}

/// Messages that carry what the guest wrote, good ones and others. Each may be refused, or be the end of a connection.
fn say_all(machine: &mut Machine) {
    let data = secret(64);
    let config = |offset| Request::SetConfig { offset, data: data.clone().into() };
    for request in [config(0), config(8), config(u32::MAX)] {
        let _ = machine.frontend.tell(request, &[]);
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&data).unwrap();
    drop(writer);
    let _ = machine.frontend.carry_state(Direction::Load, std::os::fd::AsFd::as_fd(&reader));
    let _ = machine.frontend.state_is_good();
    for code in [Code::SetConfig as u32, Code::SetMemTable as u32, 77] {
        let header = Header { request: code, flags: 1, size: u32::try_from(data.len()).unwrap() };
        let _ = machine.frontend.raw_message(header, &data, &[]);
        let _ = machine.reconnect();
    }
}

#[test]
fn no_byte_of_a_guest_is_in_any_log() {
    for device in DAEMONS {
        for format in ["text", "json"] {
            let options = ["--log-level", "trace", "--log-format", format];
            let mut machine =
                device.boot_with(device.launch().args(options), &Ram::new(RAM_BYTES), device.wants());
            for chain in chains() {
                let mut ring = machine.start_queue().unwrap();
                let _ = ring.run(&chain);
                machine.reconnect().unwrap();
            }
            say_all(&mut machine);
            machine.reconnect().unwrap();
            // A worker that dies with it in flight, and what is told of that.
            let mut ring = machine.start_queue().unwrap();
            ring.add(&Chain::new().readable(&secret(64)).writable(64));
            machine.daemon.kill_worker();
            ring.notify();
            machine.reconnect().unwrap();
            drop(break_ring(&mut machine));
            let log = machine.daemon.terminate().stderr;
            assert!(log.contains("Message refused") && log.contains("Ring broken"), "{log}");
            for print in prints() {
                assert!(!log.contains(&print), "{device:?}: {print:?} in {log}");
            }
        }
    }
}
