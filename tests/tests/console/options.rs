//! Wrong options: one line that names the option, the value and the cure, the exit code, and nothing left behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
use tests::daemon::{Exit, Launch};

use crate::{Guest, client, listening};

/// Runs the daemon with these words; `{}` stands for its directory.
fn run(words: &[&str], prepare: impl FnOnce(&Path)) -> Exit {
    let launch = Launch::new("outboard-console");
    prepare(launch.dir());
    let dir = launch.dir().display().to_string();
    let socket = launch.socket().display().to_string();
    let words = words.iter().map(|word| word.replace("{}", &dir));
    launch.args(words).args(["--socket-path".to_owned(), socket]).run()
}

/// A socket that nobody listens on.
fn leave_socket(path: &Path) {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
}

#[track_caller]
fn assert_refused(exit: &Exit, code: i32, needles: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit}");
    assert!(needles.iter().all(|needle| exit.stderr.contains(needle)), "{needles:?} not in: {exit}");
}

#[test]
fn no_host_side_or_two_of_them() {
    assert_refused(&run(&[], |_| {}), 2, &["--stdio", "--pty <LINK>", "--listen <PATH>"]);
    assert_refused(&run(&["--stdio", "--listen", "{}/port"], |_| {}), 2, &["--stdio", "--listen"]);
    assert_refused(&run(&["--pty", "{}/tty", "--listen", "{}/port"], |_| {}), 2, &["--pty", "--listen"]);
}

#[test]
fn a_link_that_would_replace_a_file() {
    let exit = run(&["--pty", "{}/tty"], |dir| fs::write(dir.join("tty"), "mine").unwrap());
    assert_refused(&exit, 2, &["--pty", "/tty: something that is no symbolic link", "remove it"]);
}

#[test]
fn a_directory_that_is_not_there() {
    assert_refused(&run(&["--pty", "{}/no/tty"], |_| {}), 1, &["--pty", "/no/tty", "directory must exist"]);
    assert_refused(&run(&["--listen", "{}/no/port"], |_| {}), 1, &["--listen", "/no/port", "must exist"]);
}

#[test]
fn a_path_that_is_no_socket_or_too_long() {
    let exit = run(&["--listen", "{}/port"], |dir| fs::write(dir.join("port"), "mine").unwrap());
    assert_refused(&exit, 2, &["--listen", "something that is no socket", "remove it"]);
    let exit = run(&["--connect", "{}/peer"], |dir| fs::write(dir.join("peer"), "mine").unwrap());
    assert_refused(&exit, 2, &["--connect", "something that is no socket", "another path"]);
    let long = format!("{{}}/{}", "x".repeat(100));
    for option in ["--listen", "--connect"] {
        assert_refused(&run(&[option, &long], |_| {}), 2, &[option, "too long", "at most 107"]);
    }
}

#[test]
fn a_socket_that_another_process_listens_on() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    let exit = run(&["--listen", &path.display().to_string()], |_| {});
    assert_refused(&exit, 4, &["--listen", "another process listens there", "stop it"]);
    drop(listener);
    assert!(path.exists(), "the other one's socket was removed");
}

#[test]
fn what_a_killed_daemon_left_is_replaced() {
    let launch = Launch::new("outboard-console");
    let path = launch.dir().join("port.sock");
    leave_socket(&path);
    let daemon = launch.args(["--listen".to_owned(), path.display().to_string()]).serve().unwrap();
    let mut guest = Guest::boot(daemon.socket());
    guest.hears_and_answers(&client(&daemon));

    let launch = Launch::new("outboard-console");
    let link = launch.dir().join("tty");
    std::os::unix::fs::symlink("/dev/pts/no-such", &link).unwrap();
    let _daemon = launch.args(["--pty".to_owned(), link.display().to_string()]).serve().unwrap();
    assert!(link.exists(), "the link leads nowhere");
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let dir = tempfile::TempDir::new().unwrap();
    let (port, tty) = (dir.path().join("port"), dir.path().join("tty"));
    for (option, path) in [("--listen", &port), ("--pty", &tty)] {
        let taken = |dir: &Path| fs::write(dir.join("vhost.sock"), "mine").unwrap();
        let exit = run(&[option, &path.display().to_string()], taken);
        assert_refused(&exit, 2, &["--socket-path", "no socket is there"]);
        assert!(fs::symlink_metadata(path).is_err(), "{option} left {path:?}");
    }
}

#[test]
fn the_socket_goes_with_the_daemon() {
    let daemon = listening("auto");
    let path = daemon.dir().join("port.sock");
    let copy = tempfile::TempDir::new().unwrap();
    let kept = copy.path().join("link");
    fs::hard_link(&path, &kept).unwrap();
    assert_eq!(daemon.terminate().code, Some(0));
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::symlink_metadata(kept).unwrap()), 1);
}

#[test]
fn capabilities_are_printed_whatever_else_is_said() {
    let exit = run(&["--print-capabilities"], |_| {});
    assert_eq!((exit.code, exit.stdout.contains("\"console\"")), (Some(0), true), "{exit}");
}
