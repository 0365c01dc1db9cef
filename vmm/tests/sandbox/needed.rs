//! Each rule of the policy is needed: real machines are watched by strace(1) through all that happens to one, and make
//! every call that a rule allows. They make none of them before they are confined, and open nothing after it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use backends::control::Method;
use backends::control::client::Client;
use backends::sandbox::policy::{self, Rule};
use outboard::sandbox::POLICY;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use tests::metal;
use tests::vmm::{Run, Vmm};
use tests::wait;

use super::{OUTBOARD, rng};

/// Rules that are there for what cannot be had at will.
const RARE: &[(&str, &str)] = &[
    ("brk", "whether memory is had so is the allocator's choice"),
    ("mremap", "the same"),
    ("restart_syscall", "an order to the API that waits while the process is stopped"),
    ("openat", "only a panic does"),
    ("readlink", "the same"),
    ("getcwd", "the same"),
];
const PATIENCE: Duration = Duration::from_secs(20);

/// One call of a traced thread.
#[derive(Debug)]
struct Call {
    tid: u32,
    thread: String,
    name: String,
    args: Vec<u64>,
    line: String,
}

impl Call {
    /// `12<vcpu0> ioctl(0x5, 0xae80, 0) = 0`
    fn parse(line: &str) -> Option<Call> {
        let (tid, rest) = line.split_once('<')?;
        let (thread, rest) = rest.split_once("> ")?;
        let (name, rest) = rest.trim_start().split_once('(')?;
        let args = rest.split([')', '<']).next()?.split(", ").map_while(|arg| number(arg.trim()));
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(word).then(|| Call {
            tid: tid.parse().unwrap(),
            thread: thread.into(),
            name: name.into(),
            args: args.collect(),
            line: line.into(),
        })
    }

    fn matches(&self, rule: &Rule) -> bool {
        // The number of the process is the one thing that is not the same in this one.
        let holds = || rule.conditions.iter().all(|condition| condition.holds(&self.args));
        rule.call.name() == self.name && (self.name == "tgkill" || holds())
    }

    fn is_filter(&self) -> bool {
        self.name == "seccomp" && self.args.first() == Some(&1)
    }
}

fn number(text: &str) -> Option<u64> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
}

/// The calls that a thread made once it had all its filters, by the part of the policy that it has beside `[all]`.
fn confined(calls: Vec<Call>) -> Vec<(&'static str, Call)> {
    let main = calls[0].tid;
    let last = calls.iter().rposition(|call| call.tid == main && call.is_filter()).expect("main is confined");
    let restricted =
        calls.iter().position(|call| call.name == "landlock_restrict_self").expect("by Landlock too");
    let thread = calls.iter().position(|call| call.name.starts_with("clone")).expect("there are threads");
    assert!(restricted < last && last < thread, "no thread is there before");
    let mut filtered = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for call in calls.into_iter().skip(last + 1) {
        let part = match &*call.thread {
            name if name.starts_with("vcpu") && filtered.contains(&call.tid) => "vcpu",
            name if name.starts_with("vhost") && filtered.contains(&call.tid) => "device",
            _ => "main",
        };
        assert!(part != "main" || !call.args.contains(&0xae80) || call.thread == "reboot", "{}", call.line);
        if call.is_filter() {
            filtered.insert(call.tid);
        }
        found.push((part, call));
    }
    found
}

/// A program that is `outboard` under strace, which writes to `trace` in the same directory.
fn traced(dir: &Path) -> PathBuf {
    let (script, trace) = (dir.join("outboard"), dir.join("trace"));
    let line =
        format!("#!/bin/sh\nexec strace -D -q -f -Y -e raw=all -o {} {OUTBOARD} \"$@\"\n", trace.display());
    fs::write(&script, line).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

fn calls(dir: &Path) -> Vec<(&'static str, Call)> {
    let text = fs::read_to_string(dir.join("trace")).unwrap();
    let calls: Vec<Call> = text.lines().filter_map(Call::parse).collect();
    // strace begins as the thread that becomes the program.
    confined(calls.into_iter().skip_while(|call| call.thread != "outboard").collect())
}

fn signal(vmm: &Vmm, signal: Signal) {
    kill_process(Pid::from_raw(vmm.pid().cast_signed()).unwrap(), signal).unwrap();
}

/// A guest that is asked for requests; its daemon goes, something that is busy is in its place, and it comes back.
fn held(dir: &Path) {
    let mut daemon = rng();
    let api = dir.join("vm.control");
    let run = Run::metal(traced(dir), "metal=hold").option("--cpus", "2").device("rng", daemon.socket());
    let mut vmm = run.option("--api-socket", api.to_str().unwrap()).start();
    vmm.wait_for("metal: hold ready\n", 1);
    vmm.type_in("s");
    vmm.wait_for("metal: served\n", 1);
    let mut client = Client::connect(&api, PATIENCE).unwrap();
    let mut told = String::new();
    let mut wrong = UnixStream::connect(&api).unwrap();
    wrong.write_all(b"nonsense\r\n\r\n").unwrap();
    wrong.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    let mut ask = |method, path| assert!(client.call(method, path, None, None).unwrap().status < 300);
    ask(Method::Get, "/state");
    ask(Method::Post, "/pause");
    // More than the serial line takes: standard input is not waited for until the guest goes on.
    vmm.type_in(&"a".repeat(200));
    ask(Method::Post, "/resume");
    vmm.wait_for("metal: alive\n", 200);
    signal(&vmm, Signal::USR1);
    vmm.wait_for_stderr("the guest is paused");
    signal(&vmm, Signal::USR2);
    vmm.wait_for_stderr("the guest goes on");
    drop(client);

    daemon.kill9();
    vmm.wait_for_stderr("waits for its daemon");
    // Its place is taken by a socket that is full from the first moment on.
    let full = dir.join("full.sock");
    let busy = UnixListener::bind(&full).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _waiting = UnixStream::connect(&full).unwrap();
    fs::rename(&full, daemon.socket()).unwrap();
    wait::until(|| fs::read_to_string(dir.join("trace")).unwrap().contains("> clock_nanosleep("));
    vmm.type_in("a");
    vmm.wait_for("metal: alive\n", 201);
    drop(busy);
    fs::remove_file(daemon.socket()).unwrap();
    daemon.restart().unwrap();
    vmm.wait_for_stderr("its daemon is back");
    vmm.type_in("s");
    vmm.wait_for("metal: served\n", 2);
    let log = dir.join("log");
    let ctl = ["--kill-after=1", "20", OUTBOARD, "ctl", "--socket", api.to_str().unwrap()];
    let reopen = ["log", "--level", "debug", "--reopen", log.to_str().unwrap()];
    let reopened = Command::new("timeout").args(ctl).args(reopen).output().unwrap();
    assert!(reopened.status.success() && log.exists(), "{reopened:?}");
    vmm.type_in("x");
    vmm.finish().ok();
    assert!(!api.exists());
}

fn rebooted(dir: &Path) {
    let daemon = rng();
    let run = Run::metal(traced(dir), "metal=rng requests=10 irq then-reset").device("rng", daemon.socket());
    let vmm = run.start();
    vmm.wait_for("metal: rng 640 bytes", 2);
    vmm.terminate().code(0);
}

/// Masks interrupts and takes the mask away.
fn interrupted(dir: &Path) {
    let daemon = rng();
    Run::metal(traced(dir), "metal=irq").device("rng", daemon.socket()).finish().ok();
}

fn crashed(dir: &Path) {
    Run::metal(traced(dir), "metal=badop").finish().code(5);
}

fn on_a_terminal(dir: &Path) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let mut keyboard = fs::File::from(rustix::pty::openpt(flags).unwrap());
    rustix::pty::grantpt(&keyboard).unwrap();
    rustix::pty::unlockpt(&keyboard).unwrap();
    let name = rustix::pty::ptsname(&keyboard, Vec::new()).unwrap();
    let terminal = fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut child = Command::new("timeout")
        .args(["--foreground", "--kill-after=1", "20"])
        .arg(traced(dir))
        .args(["run", "--memory", "64M", "--cmdline", "metal=idle", "--kernel"])
        .arg(metal::image().unwrap())
        .stdin(terminal)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 12];
    child.stdout.take().unwrap().read_exact(&mut said).unwrap();
    keyboard.write_all(b"\x01x").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn every_rule_is_needed_and_nothing_is_opened_any_more() {
    let scenarios: [fn(&Path); 5] = [held, rebooted, interrupted, crashed, on_a_terminal];
    let mut seen = Vec::new();
    for scenario in scenarios {
        let dir = tempfile::tempdir().unwrap();
        scenario(dir.path());
        seen.extend(calls(dir.path()));
    }
    let opened: Vec<_> = seen.iter().filter(|(_, call)| call.name.starts_with("open")).collect();
    assert!(opened.is_empty(), "{opened:?}");
    let mut unneeded = Vec::new();
    for part in ["all", "main", "device", "vcpu"] {
        for rule in policy::parse(&[POLICY], &[part]).unwrap() {
            let rare = RARE.iter().any(|(call, _)| *call == rule.call.name());
            let by = |of: &str| part == "all" || of == part;
            if !rare && !seen.iter().any(|(of, call)| by(of) && call.matches(&rule)) {
                unneeded.push(format!("[{part}] {} {:?}: {}", rule.call.name(), rule.conditions, rule.why));
            }
        }
    }
    assert!(unneeded.is_empty(), "no code needs these:\n{}", unneeded.join("\n"));
}
