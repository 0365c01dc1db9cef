#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::os::unix::net::{UnixDatagram, UnixListener};

use super::*;
use crate::vhost::frontend::within;

fn reach(path: &Path) -> Result<UnixStream, String> {
    let spec = format!("blk,socket={}", path.display()).parse().unwrap();
    connect(&spec, within(Duration::from_millis(100)))
}

fn refusal(path: &Path) -> String {
    let text = reach(path).unwrap_err();
    assert!(!text.contains('\n'));
    text
}

#[test]
fn what_is_there_instead_of_a_daemon_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let start = format!("start outboard-blk --socket-path {}", dir.path().display());

    let text = refusal(&at("missing"));
    assert!(text.starts_with("there is no such socket; ") && text.contains(&start), "{text}");

    std::fs::write(at("file"), "x").unwrap();
    let text = refusal(&at("file"));
    assert!(text.starts_with("that is no socket but a regular file; ") && text.contains(&start), "{text}");
    assert!(refusal(dir.path()).starts_with("that is no socket but a directory; "));
    assert!(refusal(&at("file").join("x")).starts_with("a part of the path is no directory"));

    drop(UnixListener::bind(at("stale")).unwrap());
    assert!(
        refusal(&at("stale")).starts_with("nobody listens on this socket (any more); start outboard-blk")
    );

    let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
    assert!(refusal(&at("datagrams")).starts_with("that is no stream socket"));

    let text = refusal(&at(&"x".repeat(200)));
    assert!(text.contains("a socket's path has at most 107; use a shorter one"), "{text}");
}

#[test]
fn no_permission_names_the_user() {
    let spec = "rng,socket=/run/x".parse().unwrap();
    let text = explain(Errno::ACCESS, &spec);
    assert!(text.starts_with("no permission to connect to it; let this user (uid "), "{text}");
}

#[test]
fn a_full_backlog_is_waited_for_until_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("full");
    let listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut held = Vec::new();
    let text = loop {
        match reach(&path) {
            Ok(stream) if held.len() < 8 => held.push(stream),
            Ok(_) => unreachable!("a backlog of 0 took eight"),
            Err(text) => break text,
        }
    };
    assert!(text.starts_with("the daemon there accepts nobody"), "{text}");
}

#[test]
fn a_listener_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon");
    let _listener = UnixListener::bind(&path).unwrap();
    reach(&path).unwrap();
}
