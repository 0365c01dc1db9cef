//! What every daemon does with its options, its sockets and its signals, shown on `outboard-rng`.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use tests::daemon::{Exit, Launch};
use tests::frontend::{Frontend, Wants};
use tests::guest::memory::Ram;
use tests::guest::rng::Rng;
use tests::machine::{BLK, RAM_BYTES, RNG};

fn launch() -> Launch {
    Launch::new("outboard-rng")
}

/// Runs to the end with these options.
fn run(args: &[&str]) -> Exit {
    launch().args(args.iter().copied()).run()
}

/// It ended with this code, and its last line holds all of `words`.
#[track_caller]
fn assert_refused(exit: &Exit, code: i32, words: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit}");
    let line = exit.stderr.lines().last().unwrap_or_default();
    assert!(words.iter().all(|word| line.contains(word)), "{words:?} in: {}", exit.stderr);
}

/// A front-end on this socket gets random bytes.
#[track_caller]
fn assert_gives_bytes(socket: UnixStream) {
    let mut frontend = Frontend::on(socket, &Ram::new(RAM_BYTES)).unwrap();
    frontend.handshake(Wants::default()).unwrap();
    let mut rng = Rng::new(frontend.start_new(0, 16).unwrap());
    assert_eq!(rng.fill(32).unwrap().len(), 32);
}

#[test]
fn capabilities_are_json_whatever_else_is_said() {
    for args in [&["--print-capabilities"][..], &["--print-capabilities", "--fd", "77", "--no-such-thing"]] {
        let exit = run(args);
        assert_eq!(exit.code, Some(0), "{exit}");
        let said: serde_json::Value = serde_json::from_str(&exit.stdout).unwrap();
        assert_eq!(said["type"], "rng");
        assert!(said["features"].is_array());
    }
}

#[test]
fn an_answer_that_nobody_can_take_is_told() {
    for what in ["--print-capabilities", "--check", "--help", "--version"] {
        let rng = tests::daemon::binary("outboard-rng").display().to_string();
        let exit = Launch::of("sh").args(["-c", "exec \"$0\" \"$1\" >/dev/full", &rng, what]).run();
        assert_refused(&exit, 1, &["standard output", "No space left"]);
    }
}

#[test]
fn a_missing_socket_is_told() {
    assert_refused(&run(&[]), 2, &["--socket-path", "--fd"]);
}

#[test]
fn an_unknown_option_is_told() {
    assert_refused(&run(&["--no-such-thing"]), 2, &["--no-such-thing"]);
    let similar = "unexpected argument '--sockt-path' found tip: a similar argument exists: '--socket-path'";
    assert_refused(&run(&["--sockt-path", "/s"]), 2, &[similar]);
    assert_refused(&run(&["--engine", "steam", "--fd", "3"]), 2, &["--engine", "steam", "io-uring"]);
    assert_refused(&run(&["--fd", "x"]), 2, &["--fd", "x"]);
}

#[test]
fn cpus_that_make_no_sense_are_told() {
    for (list, words) in [
        ("1-x", ["`1-x`", "like 0-2,5"]),
        ("2-1", ["`2-1`", "like 0-2,5"]),
        ("0,999", ["no CPU 999", "it has 0"]),
    ] {
        let exit = run(&["--fd", "3", "--cpus", list]);
        assert_refused(&exit, 2, &["--cpus", list, words[0], words[1]]);
    }
}

#[test]
fn a_cpu_that_is_not_allowed_is_told() {
    let confined = |cpu: &str, list: &str| {
        let rng = tests::daemon::binary("outboard-rng").display().to_string();
        Launch::of("taskset").args(["-c", cpu, &rng, "--fd", "99", "--cpus", list].map(str::to_owned)).run()
    };
    let allowed = allowed_cpus();
    let [first, .., last] = allowed.as_slice() else { return };
    let (first, last) = (first.to_string(), last.to_string());
    let cure = format!("use {first},");
    assert_refused(&confined(&first, &last), 2, &["--cpus", &last, "not allowed", &cure]);
    // What is allowed is not what is wrong with this one.
    assert_refused(&confined(&first, &first), 2, &["--fd 99"]);
}

/// CPUs that this process may use.
fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

#[test]
fn workers_run_on_the_cpus_of_the_list() {
    let mut cpus: Vec<String> = allowed_cpus().iter().rev().take(2).map(ToString::to_string).collect();
    let launch = BLK.launch().args(["--cpus".to_owned(), cpus.join(",")]);
    let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
    let _rings = [0, 1].map(|index| machine.frontend.start_new(index, 16).unwrap());
    if cpus.len() == 1 {
        cpus.push(cpus[0].clone());
    }
    let expected = [("worker-0".to_owned(), cpus[0].clone()), ("worker-1".to_owned(), cpus[1].clone())];
    let workers = machine.daemon.worker_cpus();
    assert_eq!(workers, expected[..workers.len()]);
    assert_eq!(workers.len(), allowed_cpus().len().min(2));
}

#[test]
fn a_directory_that_is_not_there_is_told() {
    let exit = run(&["--socket-path", "/nowhere/at/all/vhost.sock"]);
    assert_refused(&exit, 1, &["--socket-path", "/nowhere/at/all/vhost.sock", "directory"]);
}

#[test]
fn a_path_that_is_too_long_is_told_and_the_longest_is_taken() {
    let launch = launch();
    let longest = padded(launch.dir(), 107);
    let too_long = padded(launch.dir(), 108);
    let daemon = launch.args(["--socket-path", &longest]).start();
    let daemon = daemon.wait_listening(Path::new(&longest)).unwrap();
    assert_gives_bytes(UnixStream::connect(&longest).unwrap());
    drop(daemon);
    assert_refused(&run(&["--socket-path", &too_long]), 2, &["--socket-path", &too_long, "107"]);
}

/// A path in `dir` of exactly this many bytes.
fn padded(dir: &Path, bytes: usize) -> String {
    let dir = dir.display().to_string();
    let name = "s".repeat(bytes - dir.len() - 1);
    format!("{dir}/{name}")
}

#[test]
fn something_that_is_no_socket_is_left_alone() {
    let launch = launch();
    let socket = launch.socket();
    std::fs::write(&socket, "precious").unwrap();
    let path = socket.display().to_string();
    let exit = run(&["--socket-path", &path]);
    assert_refused(&exit, 2, &["--socket-path", &path, "no socket"]);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_socket_in_use_is_left_to_its_owner() {
    let first = launch().serve().unwrap();
    let path = first.socket().display().to_string();
    assert_refused(&run(&["--socket-path", &path]), 4, &["--socket-path", &path]);
    assert_gives_bytes(UnixStream::connect(first.socket()).unwrap());
}

#[test]
fn the_socket_of_a_killed_daemon_is_taken_over() {
    let mut first = launch().serve().unwrap();
    first.kill9();
    assert!(first.socket().exists());
    let path = first.socket().display().to_string();
    let second = launch().args(["--socket-path", &path]).start().wait_listening(first.socket()).unwrap();
    assert_gives_bytes(UnixStream::connect(first.socket()).unwrap());
    drop(second);
}

#[test]
fn a_descriptor_that_listens_is_served_again_and_again() {
    let launch = launch();
    let path = launch.socket();
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon = launch.pass(listener).args(["--fd", "3"]).start();
    for _ in 0..3 {
        assert_gives_bytes(UnixStream::connect(&path).unwrap());
    }
    assert!(daemon.is_running());
    assert_eq!(daemon.terminate().code, Some(0));
}

#[test]
fn a_connected_descriptor_is_served_until_it_is_closed() {
    let (here, there) = UnixStream::pair().unwrap();
    let daemon = launch().pass(there).args(["--fd", "3"]).start();
    assert_gives_bytes(here);
    let exit = daemon.wait_exit();
    assert_eq!(exit.code, Some(0), "{exit}");
}

#[test]
fn a_descriptor_that_is_no_socket_is_told() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_refused(&launch().pass(file).args(["--fd", "3"]).run(), 2, &["--fd 3", "socket"]);
    assert_refused(&run(&["--fd", "77"]), 2, &["--fd 77", "socket"]);
}

#[test]
fn socket_activation_by_name_and_without() {
    for name in ["vhost-user", "unknown"] {
        let launch = launch();
        let path = launch.socket();
        let daemon = launch.activate(UnixListener::bind(&path).unwrap(), name).start();
        assert_gives_bytes(UnixStream::connect(&path).unwrap());
        assert_eq!(daemon.terminate().code, Some(0));
    }
}

#[test]
fn sockets_passed_to_another_process_are_not_ours() {
    let exit = launch().env("LISTEN_FDS", "1").env("LISTEN_PID", "1").run();
    assert_refused(&exit, 2, &["No socket"]);
}

#[test]
fn asked_to_end_it_ends_with_zero_and_takes_its_socket_along() {
    let daemon = launch().serve().unwrap();
    let path = daemon.socket().to_owned();
    let exit = daemon.terminate();
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit}");
    assert!(!path.exists());
}

#[test]
fn asked_to_end_while_it_serves_it_ends_too() {
    let mut machine = RNG.boot();
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    let (daemon, mut frontend) = (machine.daemon, machine.frontend);
    assert_eq!(daemon.terminate().code, Some(0));
    assert!(frontend.hung_up());
}
