//! A disk that is full under a daemon that serves: what needs room fails, as an answer to whoever asked for it, and
//! nothing else does.

use std::fs;
use std::path::PathBuf;

use tests::daemon::{Daemon, Launch};
use tests::guest::blk::{Answer, Blk, IOERR, OK};
use tests::guest::memory::Ram;
use tests::machine::{BLK, Device, Machine, RAM_BYTES};

/// The disk, a file that fills half of it, and the program's words after that.
const PREPARE: &str = r#"
mkdir disk && mount -t tmpfs -o size=64k none disk && head -c 32k /dev/zero >disk/filler && cd disk &&
truncate -s 1M disk.img && touch log && exec "$@""#;
const BLOCK_BYTES: u32 = 4096;
const BLOCK_SECTORS: u64 = 8;

/// The daemon with a small disk of its own, on which these words name files.
fn boot(device: Device, words: &[&str]) -> Machine {
    let program = tests::daemon::binary(device.binary).display().to_string();
    let launch = Launch::of("unshare").args(["--mount", "sh", "-c", PREPARE, "sh", &program]);
    device.boot_with(launch.args(words.iter().copied()), &Ram::new(RAM_BYTES), device.wants())
}

/// A file on the disk, which only the daemon sees.
fn on_disk(daemon: &Daemon, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", daemon.pid(), daemon.dir().join("disk").join(name).display()))
}

#[test]
fn k16_a_guest_whose_disk_is_full_gets_errors_until_there_is_room() {
    for engine in ["io-uring", "epoll"] {
        let mut machine = boot(BLK, &["--image", "disk.img", "--engine", engine]);
        let mut blk = Blk::new(machine.start_queue().unwrap());
        let write =
            |blk: &mut Blk, nth: u64| blk.write(nth * BLOCK_SECTORS, &[7; BLOCK_BYTES as usize]).unwrap();
        let fits = (0..16).take_while(|nth| write(&mut blk, *nth).status == Some(OK)).count();
        assert_eq!(fits, 8, "{engine}");
        assert_eq!(write(&mut blk, 100), Answer { status: Some(IOERR), data: Vec::new() }, "{engine}");
        assert_eq!(blk.flush().unwrap().status, Some(OK), "{engine}");
        assert_eq!(blk.read(0, BLOCK_BYTES).unwrap().data, [7; BLOCK_BYTES as usize], "{engine}");
        fs::remove_file(on_disk(&machine.daemon, "filler")).unwrap();
        assert_eq!(write(&mut blk, 100).status, Some(OK), "{engine}");
        assert_eq!(machine.daemon.terminate().code, Some(0), "{engine}");
    }
}

/// The log's disk has no room left for a line.
fn a_log_without_room_stops_nothing(device: Device, words: &[&str]) {
    let mut machine = boot(device, &[words, &["--log-file", "log", "--log-level", "trace"]].concat());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let log = on_disk(&machine.daemon, "log");
    assert!(fs::metadata(&log).unwrap().len() > 0);
    let filled = fs::OpenOptions::new().append(true).open(on_disk(&machine.daemon, "filler"));
    let _ = std::io::copy(&mut std::io::repeat(0), &mut filled.unwrap());
    let length = fs::metadata(&log).unwrap().len();
    for _ in 0..3 {
        machine.assert_serves(&mut ring);
        machine.daemon.kill_worker();
        machine.assert_serves(&mut ring);
    }
    machine.assert_serves_anew();
    // What is left of its last block of the disk takes some lines.
    assert!(fs::metadata(&log).unwrap().len() <= length.next_multiple_of(BLOCK_BYTES.into()));
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

#[test]
fn a_log_without_room_stops_no_rng() {
    a_log_without_room_stops_nothing(tests::machine::RNG, &[]);
}

#[test]
fn k16_a_log_without_room_stops_no_blk() {
    a_log_without_room_stops_nothing(BLK, &["--image", "disk.img"]);
}

#[test]
fn k16_a_log_without_room_stops_no_console() {
    a_log_without_room_stops_nothing(tests::machine::CONSOLE, &["--listen", "../port.sock"]);
}
