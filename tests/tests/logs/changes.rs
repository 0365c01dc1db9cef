//! What an operator changes while a daemon runs, by its control socket: the level, the file. And what is counted there.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use backends::control::Method;
use backends::control::client::{Client, Reply};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

/// A daemon with a control socket and a log file in its directory.
struct Watched {
    machine: Machine,
    control: PathBuf,
    log: PathBuf,
}

impl Watched {
    fn boot(options: &[&str]) -> Watched {
        let launch = RNG.launch();
        let (control, log) = (launch.dir().join("c.control"), launch.dir().join("log"));
        let names = [("--control-socket", &control), ("--log-file", &log)];
        let names = names.into_iter().filter(|(name, _)| !options.contains(name));
        let own: Vec<_> =
            names.flat_map(|(name, path)| [name.to_owned(), path.display().to_string()]).collect();
        let launch = launch.args(own).args(options.iter().copied());
        Watched { machine: RNG.boot_with(launch, &Ram::new(RAM_BYTES), RNG.wants()), control, log }
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>, file: Option<&File>) -> Reply {
        let mut client = Client::connect(&self.control, wait::PATIENCE).unwrap();
        client.call(method, path, body, file.map(File::as_fd)).unwrap()
    }

    fn set_level(&self, level: &str) {
        let reply = self.call(Method::Put, "/log", Some(&json!({ "level": level })), None);
        assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    }

    fn reopen(&self, file: Option<&File>) -> (u16, String) {
        self.reopen_as(None, file)
    }

    fn reopen_as(&self, name: Option<&Path>, file: Option<&File>) -> (u16, String) {
        let body = name.map(|name| json!({ "file": name }));
        let reply = self.call(Method::Post, "/log/reopen", body.as_ref(), file);
        (reply.status, String::from_utf8(reply.body).unwrap())
    }

    /// What /state says of the log.
    fn log(&self, what: &str) -> Value {
        let reply = self.call(Method::Get, "/state", None, None);
        let state: Value = serde_json::from_slice(&reply.body).unwrap();
        state["log"][what].clone()
    }

    /// A number of /metrics, by its name and labels.
    fn number(&self, name: &str) -> u64 {
        let text = String::from_utf8(self.call(Method::Get, "/metrics", None, None).body).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn another_level_holds_for_keeper_and_workers_and_those_that_follow() {
    let mut daemon = Watched::boot(&[]);
    wait::until(|| text(&daemon.log).contains("Listening"));
    daemon.set_level("error");
    let quiet = text(&daemon.log).len();
    drop(break_ring(&mut daemon.machine));
    for _ in 0..2 {
        daemon.machine.daemon.kill_worker();
        daemon.machine.assert_serves_anew();
        assert_eq!(daemon.log("level"), "error");
    }
    assert_eq!(text(&daemon.log)[quiet..], *"");
    daemon.set_level("info");
    let first = daemon.machine.daemon.kill_worker();
    daemon.machine.assert_serves_anew();
    let log = text(&daemon.log)[quiet..].to_owned();
    assert!(log.contains(&format!("Worker {first} ended")) && log.contains("Front-end connected"), "{log}");
}

#[test]
fn another_file_is_for_keeper_and_workers_and_those_that_follow() {
    let mut daemon = Watched::boot(&[]);
    let old = daemon.log.with_file_name("log.1");
    fs::rename(&daemon.log, &old).unwrap();
    let file = File::options().append(true).create(true).open(&daemon.log).unwrap();
    assert_eq!(daemon.reopen(Some(&file)).0, 200);
    let before = text(&old).len();
    drop(break_ring(&mut daemon.machine));
    let first = daemon.machine.daemon.kill_worker();
    daemon.machine.assert_serves_anew();
    let log = text(&daemon.log);
    for line in ["Ring broken", &format!("Worker {first} ended"), "Front-end connected"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert_eq!(text(&old).len(), before, "nothing more goes to the old file");
    // The end of the daemon, too, while its directory is there.
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.machine.daemon.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    wait::until(|| text(&daemon.log).contains("served"));
}

/// A file that was opened without O_APPEND, as by a program that does not know better.
#[test]
fn lines_go_to_the_end_of_a_file_whoever_else_writes_there() {
    let mut daemon = Watched::boot(&[]);
    let path = daemon.log.with_file_name("other");
    let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
    assert_eq!(daemon.reopen(Some(&file)).0, 200);
    assert_eq!(daemon.log("file"), json!(daemon.log), "it was not told of another name");
    fs::write(&path, "from another program\n").unwrap();
    drop(break_ring(&mut daemon.machine));
    let log = text(&path);
    assert!(log.starts_with("from another program\n") && log.contains("Ring broken"), "{log}");
}

#[test]
fn the_name_of_another_file_is_known_to_the_workers_that_follow() {
    let mut daemon = Watched::boot(&[]);
    assert_eq!(daemon.log("file"), json!(daemon.log));
    let path = daemon.log.with_file_name("other");
    let file = File::options().append(true).create(true).open(&path).unwrap();
    assert_eq!(daemon.reopen_as(Some(&path), Some(&file)).0, 200);
    assert_eq!(daemon.log("file"), json!(path));
    for _ in 0..2 {
        daemon.machine.daemon.kill_worker();
        daemon.machine.assert_serves_anew();
        assert_eq!(daemon.log("file"), json!(path));
    }
    let long = PathBuf::from(format!("/{}", "x".repeat(255)));
    for wrong in [Path::new("relative"), &long] {
        let (status, told) = daemon.reopen_as(Some(wrong), Some(&file));
        assert!(status == 422 && told.contains("not a whole path"), "{status} {told}");
    }
}

/// Longer than what keeper and worker tell each other of it.
#[test]
fn a_file_of_a_long_name_changes_nothing() {
    let dir = tempfile::TempDir::new().unwrap();
    let deep = dir.path().join(["d".repeat(200), "e".repeat(200)].join("/"));
    fs::create_dir_all(&deep).unwrap();
    let path = deep.join("log");
    let mut daemon = Watched::boot(&["--log-file", &path.display().to_string()]);
    daemon.set_level("debug");
    daemon.machine.daemon.kill_worker();
    daemon.machine.assert_serves_anew();
    assert_eq!((daemon.log("level"), daemon.log("file")), (json!("debug"), json!(path)));
    assert!(text(&path).contains("another one goes on"));
}

#[test]
fn what_is_no_log_is_refused_and_the_old_one_stays() {
    let daemon = Watched::boot(&[]);
    let (status, told) = daemon.reopen(None);
    assert!(status == 409 && told.contains("outboard ctl log --reopen"), "{status} {told}");
    let (status, told) = daemon.reopen(Some(&File::open("/dev/null").unwrap()));
    assert!(status == 422 && told.contains("not open for writing; open the file for appending"), "{told}");
    for level in [json!({ "level": "loud" }), json!({ "level": 7 }), json!({}), json!({ "lvl": "info" })] {
        assert_eq!(daemon.call(Method::Put, "/log", Some(&level), None).status, 422, "{level}");
    }
    assert_eq!(daemon.log("level"), "info");
    let log = text(&daemon.log);
    assert!(log.contains("Nothing changed over the control socket"), "{log}");
}

#[test]
fn metrics_count_every_line_written_left_out_and_lost() {
    const REFUSALS: u64 = 50;
    let mut daemon = Watched::boot(&[]);
    for _ in 0..REFUSALS {
        let asked = backends::proto::Request::SetFeatures(1 << 63);
        assert!(daemon.machine.frontend.tell(asked, &[]).is_err());
    }
    let of =
        |name: &str| daemon.number(&format!("outboard_log_lines_{name}_total{{class=\"message-refused\"}}"));
    let (written, left_out) = (of("written"), of("left_out"));
    assert_eq!(written + left_out, REFUSALS);
    assert_eq!(text(&daemon.log).matches("Message refused").count() as u64, written);
    assert_eq!(daemon.number("outboard_log_lines_lost_total"), 0);
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(daemon.reopen(Some(&full)).0, 200);
    drop(break_ring(&mut daemon.machine));
    assert!(daemon.number("outboard_log_lines_lost_total") > 0);
}
