//! What a console's host side notices of a worker that dies: nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::process::Signal;
use tests::daemon::process::wait_gone;
use tests::guest::console::Console;
use tests::guest::memory::Ram;
use tests::machine::{CONSOLE, Machine, QUEUE_SIZE, RAM_BYTES};
use tests::wait;

use super::processes::signal;

/// Ways in which a worker makes room for the next.
const ENDS: [fn(&Machine); 2] = [
    |machine| wait_gone(machine.daemon.kill_worker()),
    |machine| {
        let worker = machine.daemon.worker_pid();
        signal(machine.daemon.pid(), Signal::HUP);
        wait_gone(worker);
    },
];

fn guest(machine: &mut Machine) -> Console {
    let rx = machine.frontend.start_new(0, QUEUE_SIZE).unwrap();
    Console::new(rx, machine.frontend.start_new(1, QUEUE_SIZE).unwrap())
}

#[test]
fn a_client_stays_connected_and_the_next_one_finds_the_socket() {
    let mut machine = CONSOLE.boot();
    let path = machine.daemon.dir().join("port.sock");
    let mut console = guest(&mut machine);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    for end in ENDS.iter().cycle().take(6) {
        end(&machine);
        client.write_all(b"from the host").unwrap();
        assert_eq!(console.receive(13, 64).unwrap(), b"from the host");
        console.send(b"from the guest").unwrap();
        let mut got = [0; 14];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"from the guest");
    }
    drop(client);
    let mut next = UnixStream::connect(&path).unwrap();
    next.write_all(b"next").unwrap();
    assert_eq!(console.receive(4, 64).unwrap(), b"next");
    assert_eq!(machine.daemon.terminate().code, Some(0));
    assert!(!path.exists());
}

#[test]
fn a_connection_to_a_listener_stays() {
    let launch = tests::daemon::Launch::new("outboard-console");
    let path = launch.dir().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let launch = launch.args(["--connect".to_owned(), path.display().to_string()]);
    let mut machine = CONSOLE.boot_with(launch, &Ram::new(RAM_BYTES), CONSOLE.wants());
    let mut console = guest(&mut machine);
    assert!(wait::one_readable(&listener, wait::deadline()), "it does not connect");
    let (mut peer, _) = listener.accept().unwrap();
    // One who listens no more is connected still.
    fs::remove_file(&path).unwrap();
    peer.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    for end in ENDS.iter().cycle().take(6) {
        end(&machine);
        peer.write_all(b"from the host").unwrap();
        assert_eq!(console.receive(13, 64).unwrap(), b"from the host");
        console.send(b"from the guest").unwrap();
        let mut got = [0; 14];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"from the guest");
    }
    drop(peer);
    let listener = UnixListener::bind(&path).unwrap();
    assert!(wait::one_readable(&listener, wait::deadline()), "it does not connect again");
    assert_eq!(machine.daemon.terminate().code, Some(0));
}

#[test]
fn a_pty_stays_open() {
    let launch = tests::daemon::Launch::new("outboard-console");
    let link = launch.dir().join("pty");
    let launch = launch.args(["--pty".to_owned(), link.display().to_string()]);
    let mut machine = CONSOLE.boot_with(launch, &Ram::new(RAM_BYTES), CONSOLE.wants());
    let mut console = guest(&mut machine);
    let slave = fs::read_link(&link).unwrap();
    let mut reader = fs::File::options().read(true).write(true).open(&link).unwrap();
    for end in ENDS.iter().cycle().take(6) {
        end(&machine);
        reader.write_all(b"typed").unwrap();
        assert_eq!(console.receive(5, 64).unwrap(), b"typed");
        console.send(b"shown").unwrap();
        let mut got = [0; 5];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"shown");
        assert_eq!(fs::read_link(&link).unwrap(), slave);
    }
    assert_eq!(machine.daemon.terminate().code, Some(0));
    assert!(!link.is_symlink());
}
