//! Each rule of the policies is needed: real daemons are watched by strace(1) through all that happens to one, and make
//! calls that no other rule allows. And nothing is opened any more once a daemon is ready.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Instant;

use backends::control::Method::{self, Get, Post, Put};
use backends::control::client::Client;
use backends::proto;
use backends::sandbox::COMMON;
use backends::sandbox::policy::{Rule, parse};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use serde_json::{Value, json};
use tests::daemon::{Launch, binary};
use tests::frontend::Wants;
use tests::guest::blk::{DISCARD, FLUSH, Framing, Request, WRITEBACK};
use tests::guest::console::Console;
use tests::guest::memory::{Backing, RAM_BASE, Ram};
use tests::machine::{BLK, CONSOLE, Device, Machine, QUEUE_SIZE, RAM_BYTES, RNG};
use tests::manager::Manager;
use tests::wait;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::trace::{Call, calls, traced};

/// Rules that are there for what cannot be had at will: part, rule, and when it is needed.
const RARE: &[(&str, &str, &str)] = &[
    ("data path", "mprotect if arg2 & PROT_EXEC == 0", "whether memory is had so is the allocator's choice"),
    ("data path", "ioctl if arg1 == FIONREAD", "17 clients left, all with input that nobody had read"),
    (
        "data path",
        "ioctl if arg1 == TCSETS2",
        "a thread that panics has the port, and gives the terminal back",
    ),
    ("data path", "fcntl if arg1 == F_GETFL", "the same, with flags"),
    ("data path", "fcntl if arg1 == F_SETFL", "the same"),
    ("data path", "lseek", "a block device has changed by itself"),
    ("worker", "brk", "whether memory is had so is the allocator's choice"),
    ("worker", "mremap", "the same"),
    ("worker", "restart_syscall", "a stop falls into a wait of a kind that the kernel begins again"),
    ("closed", "openat = ENOENT", "only a panic does, for the places where it was"),
    ("keeper", "kill", "a worker begins when the host has no descriptor left for its end"),
    ("keeper", "tgkill", "the keeper's filter is its workers' too, and SELF is the keeper there"),
];

/// Whether it is one of those.
fn is_rare(part: &str, rule: &Rule) -> bool {
    RARE.iter().filter(|(of, ..)| *of == part).any(|(_, line, why)| {
        let text: &'static str = format!("[rare]\n{line} # {why}").leak();
        let rare = parse(&[text], &["rare"]).unwrap();
        rare.iter().any(|rare| (rare.call, &rare.conditions) == (rule.call, &rule.conditions))
    })
}

/// The parts that a process has which is confined to this one, but for its own; each is asked for what those lack.
const PARTS: [(&str, &[&str], &[&str]); 6] = [
    ("data path", &["data path"], &[]),
    ("connect", &["data path"], &["data path"]),
    ("worker", &["worker", "alone"], &["data path"]),
    ("closed", &["worker", "alone", "data path"], &[]),
    ("alone", &["alone"], &["data path", "worker"]),
    ("keeper", &["keeper"], &["data path", "worker", "alone"]),
];

/// Rules of `own` that none of these calls needed: it was made under that part, the rule allows it, and neither a rule
/// of `base` nor one of a narrower part does.
fn unneeded(own: &'static str, base: &[&'static str], seen: &[Call]) -> Vec<String> {
    let mut found = Vec::new();
    for (part, by, narrower) in PARTS {
        let mut other = parse(base, &[&[part], narrower].concat()).unwrap();
        other.extend(parse(&[own], narrower).unwrap());
        let allowed = |call: &Call| other.iter().any(|rule| rule.answer.is_none() && call.matches(rule));
        let made: Vec<&Call> = seen.iter().filter(|call| by.contains(&call.part) && !allowed(call)).collect();
        let needless = |rule: &Rule| !is_rare(part, rule) && !made.iter().any(|call| call.matches(rule));
        let rules = parse(&[own], &[part]).unwrap().into_iter().filter(needless);
        found.extend(rules.map(|rule| format!("[{part}] {} # {}", rule.call.name(), rule.why)));
    }
    found
}

/// A daemon with a guest, under strace.
struct Watched {
    machine: Machine,
    trace: JoinHandle<String>,
    alone: bool,
    /// The service manager that it tells of its state.
    manager: Manager,
}

impl Watched {
    fn boot(device: Device, options: &[&str]) -> Watched {
        Watched::boot_by(device, device.launch(), options)
    }

    fn boot_by(device: Device, launch: Launch, options: &[&str]) -> Watched {
        let manager = Manager::new(64);
        let dir = launch.dir().display().to_string();
        let own = ["--control-socket", "own.control", "--cpus", "0"];
        let (launch, trace) = traced(manager.of(launch));
        let launch = launch.args(own.iter().chain(options).map(|word| match *word {
            "own.control" | "tty" | "peer.sock" => format!("{dir}/{word}"),
            _ => (*word).to_owned(),
        }));
        let ram = Ram::with(&[(RAM_BASE, RAM_BYTES)], Backing::Unsealed);
        let machine = device.boot_with(launch, &ram, device.wants());
        let alone = options.contains(&"off");
        Watched { machine, trace, alone, manager }
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>, file: Option<&File>) {
        let socket = self.machine.daemon.dir().join("own.control");
        let mut client = Client::connect(&socket, wait::PATIENCE).unwrap();
        let reply = client.call(method, path, body, file.map(File::as_fd)).unwrap();
        assert!(reply.status < 300, "{path}: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
    }

    /// Everything that an operator may ask for.
    fn operate(&self) {
        self.ask(Get, "/state", None, None);
        self.ask(Get, "/metrics", None, None);
        self.ask(Get, "/device", None, None);
        if self.machine.device.binary == BLK.binary {
            self.ask(Put, "/device", Some(&json!({ "size_bytes": 512 })), None);
            self.replace_image();
        }
        self.ask(Put, "/log", Some(&json!({ "level": "debug" })), None);
        let path = self.machine.daemon.dir().join("other-log");
        let file = File::options().append(true).create(true).open(path).unwrap();
        self.ask(Post, "/log/reopen", None, Some(&file));
    }

    /// By another one of the same content.
    fn replace_image(&self) {
        let dir = self.machine.daemon.dir();
        let [other, file] = ["other.img", "other.vol"].map(|name| dir.join(name));
        fs::copy(dir.join("disk.img"), &other).unwrap();
        let text = format!("volume other\ntype storage/file\noption path {}\nend-volume\n", other.display());
        fs::write(&file, text).unwrap();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "30"]).arg(binary(BLK.binary)).args(["graph", "apply"]).arg(&file);
        let applied = command.arg("--control-socket").arg(dir.join("own.control")).output().unwrap();
        assert!(applied.status.success(), "{applied:?}");
    }

    fn serve(&mut self) {
        let mut ring = self.machine.start_queue().unwrap();
        self.machine.assert_serves(&mut ring);
        if self.machine.device.binary == BLK.binary {
            let frontend = &mut self.machine.frontend;
            for (write_back, request) in [
                (1, Request::write(1, &[7; 512])),
                (1, Request::bare(FLUSH)),
                (1, Request::ranges(DISCARD, &[(8, 8, 0)])),
                (0, Request::write(1, &[8; 512])),
            ] {
                frontend.set_config(WRITEBACK, &[write_back]).unwrap();
                ring.run(&request.chain(&Framing::usual(0))).unwrap();
            }
        }
        self.machine.frontend.stop(self.machine.device.queue).unwrap();
    }

    /// A driver whose every write is durable when it completes.
    fn serve_one_who_does_not_flush(&mut self) {
        let ram = Ram::with(&[(RAM_BASE, RAM_BYTES)], Backing::Unsealed);
        let wants = Wants { features: !(1 << VIRTIO_BLK_F_FLUSH), ..self.machine.device.wants() };
        self.machine.connect(&ram, wants).unwrap();
        self.serve();
        self.machine.hang_up();
    }

    /// Stopped and continued while it waits, for a client that is not done among others.
    fn pause(&self) {
        let path = self.machine.daemon.dir().join("own.control");
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"GET /state HTTP/1.1\r\n").unwrap();
        self.ask(Get, "/state", None, None);
        let pid = self.machine.daemon.worker_pid();
        let worker = Pid::from_raw(pid.cast_signed()).unwrap();
        kill_process(worker, Signal::STOP).unwrap();
        let until = wait::deadline();
        while !stopped(pid) {
            assert!(Instant::now() < until, "{pid} does not stop");
            std::thread::yield_now();
        }
        kill_process(worker, Signal::CONT).unwrap();
    }

    /// Its front-end cuts its memory off.
    fn cut(&mut self) {
        let mut ring = self.machine.start_queue().unwrap();
        self.machine.assert_serves(&mut ring);
        rustix::fs::ftruncate(self.machine.ram().regions()[0].fd(), 0).unwrap();
        ring.kick();
        assert!(self.machine.frontend.hung_up());
        let ram = Ram::with(&[(RAM_BASE, RAM_BYTES)], Backing::Unsealed);
        self.machine.hang_up();
        self.machine.connect(&ram, self.machine.device.wants()).unwrap();
    }

    fn end(self) -> Vec<Call> {
        let exit = self.machine.daemon.terminate();
        assert_eq!(exit.code, Some(0), "{exit}");
        drop(self.manager);
        calls(&self.trace.join().unwrap(), self.alone)
    }
}

/// A descriptor that is good for nothing but to execute it (open(2)): the program of the next worker.
fn is_for_execution(call: &Call) -> bool {
    call.name == "open" && call.args.get(1).is_some_and(|flags| flags & u64::from(OFlags::PATH.bits()) != 0)
}

/// What was opened after a worker was confined, but by workers that begin.
fn opened_when_ready(calls: &[Call]) -> Vec<&Call> {
    let ready =
        calls.iter().position(|call| ["worker", "alone"].contains(&call.part)).expect("a worker is ready");
    let keeper = calls.first().unwrap().pid;
    let later = calls.iter().skip(ready).filter(|call| call.opened());
    later.filter(|call| call.part != "keeper" || call.pid == keeper && !is_for_execution(call)).collect()
}

/// All threads of a process stand still (t: as strace sees it).
fn stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut states = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    states.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't'])))
}

/// All that happens to any daemon.
fn life(device: Device, options: &[&str]) -> Vec<Call> {
    let mut daemon = Watched::boot(device, options);
    daemon.serve();
    daemon.operate();
    daemon.pause();
    daemon.serve();
    daemon.cut();
    daemon.serve();
    if !daemon.alone {
        daemon.machine.daemon.kill_worker();
        daemon.serve();
        let before = daemon.machine.daemon.worker_pid();
        daemon.ask(Post, "/upgrade", None, None);
        let until = wait::deadline();
        while daemon.machine.daemon.worker_pid() == before {
            assert!(Instant::now() < until, "worker {before} goes on");
            std::thread::yield_now();
        }
        daemon.serve();
    }
    daemon.machine.hang_up();
    if daemon.machine.device.binary == BLK.binary {
        daemon.serve_one_who_does_not_flush();
    }
    daemon.end()
}

/// What a limit was changed to is known to the next worker. Its log is a file, from the start.
fn limited() -> Vec<Call> {
    let mut daemon = Watched::boot(RNG, &["--log-file", "log", "--engine", "epoll", "--limit", "ops=1000"]);
    daemon.ask(Put, "/device", Some(&json!({ "limit": { "ops": 500 } })), None);
    daemon.machine.daemon.kill_worker();
    daemon.serve();
    daemon.end()
}

/// A client that talks nonsense, and a front-end whose eventfd keeps the thread that rings it.
fn molested() -> Vec<Call> {
    let mut daemon = Watched::boot(RNG, &["--engine", "epoll"]);
    let mut told = String::new();
    let mut wrong = UnixStream::connect(daemon.machine.daemon.dir().join("own.control")).unwrap();
    wrong.write_all(b"nonsense\r\n\r\n").unwrap();
    wrong.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    for _ in 0..2 {
        drop(daemon.machine.frontend.inflight(1, QUEUE_SIZE).unwrap());
    }
    let mut ring = daemon.machine.start_queue().unwrap();
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let call = proto::Request::SetVringCall(proto::VringFd { index: 0, has_fd: true });
    daemon.machine.frontend.tell(call, &[full.as_fd()]).unwrap();
    // It rings once, so that nothing is missed.
    while rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).is_err() {
        let _ = rustix::io::read(&full, &mut [0; 8]);
    }
    fcntl_setfl(&full, fcntl_getfl(&full).unwrap().difference(OFlags::NONBLOCK)).unwrap();
    ring.add(&RNG.request());
    ring.notify();
    // Not by its own eventfd, which is not the one that is rung.
    let until = wait::deadline();
    while ring.used().unwrap().is_none() {
        assert!(Instant::now() < until, "{}", daemon.machine.daemon.stderr());
        std::thread::yield_now();
    }
    daemon.machine.frontend.stop(0).unwrap();
    daemon.end()
}

/// The far end of a console's port.
#[derive(Clone, Copy)]
enum Port {
    Listen,
    Pty,
    Stdio,
    Connect,
}

fn port(engine: &str, port: Port) -> Vec<Call> {
    let launch = Launch::new("outboard-console");
    let dir = launch.dir().to_owned();
    let path = dir.join("peer.sock");
    let (launch, options, keyboard) = match port {
        Port::Listen => (launch, vec!["--listen", "peer.sock"], None),
        Port::Pty => (launch, vec!["--pty", "tty"], None),
        Port::Connect => (launch, vec!["--connect", "peer.sock"], None),
        Port::Stdio => {
            let (keyboard, terminal) = terminal();
            (launch.stdin(terminal), vec!["--stdio"], Some(keyboard))
        }
    };
    let mut daemon = Watched::boot_by(CONSOLE, launch, &[&["--engine", engine], &options[..]].concat());
    for last in [false, true] {
        let frontend = &mut daemon.machine.frontend;
        let rx = frontend.start_new(0, QUEUE_SIZE).unwrap();
        let tx = frontend.start_new(1, QUEUE_SIZE).unwrap();
        let mut console = Console::new(rx, tx);
        let mut far = match port {
            Port::Listen => File::from(OwnedFd::from(UnixStream::connect(&path).unwrap())),
            Port::Pty => open_terminal(&dir.join("tty")),
            Port::Stdio => keyboard.as_ref().unwrap().try_clone().unwrap(),
            Port::Connect => {
                let listener = UnixListener::bind(&path).unwrap();
                assert!(wait::one_readable(&listener, wait::deadline()), "nobody connects");
                fs::remove_file(&path).unwrap();
                File::from(OwnedFd::from(listener.accept().unwrap().0))
            }
        };
        far.write_all(b"hello").unwrap();
        assert_eq!(console.receive(5, 64).unwrap(), b"hello");
        console.send(b"world").unwrap();
        if !matches!(port, Port::Stdio) {
            let mut heard = [0; 5];
            far.read_exact(&mut heard).unwrap();
        }
        frontend.config(0, 4).unwrap();
        if last {
            // Nobody takes it, and it is counted at the end.
            far.write_all(&[7; 3000]).unwrap();
            return daemon.end();
        }
        frontend.stop(0).unwrap();
        frontend.stop(1).unwrap();
        daemon.machine.daemon.kill_worker();
    }
    unreachable!("the last one returns")
}

/// A keyboard, and the terminal that it is of.
fn terminal() -> (File, File) {
    let keyboard =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::grantpt(&keyboard).unwrap();
    rustix::pty::unlockpt(&keyboard).unwrap();
    let name = rustix::pty::ptsname(&keyboard, Vec::new()).unwrap();
    (keyboard.into(), open_terminal(Path::new(name.to_str().unwrap())))
}

fn open_terminal(path: &Path) -> File {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap().into()
}

type Story = (Device, Box<dyn FnOnce() -> Vec<Call> + Send>);

#[test]
fn a_rule_that_no_code_needs_fails_and_nothing_is_opened_after_ready() {
    let mut stories: Vec<Story> = vec![
        (BLK, Box::new(|| life(BLK, &["--engine", "io-uring"]))),
        (BLK, Box::new(|| life(BLK, &["--engine", "epoll"]))),
        (RNG, Box::new(|| life(RNG, &["--keeper", "off"]))),
        (CONSOLE, Box::new(|| life(CONSOLE, &["--keeper", "off", "--engine", "epoll"]))),
        (RNG, Box::new(limited)),
        (RNG, Box::new(molested)),
    ];
    for far in [Port::Listen, Port::Pty, Port::Stdio, Port::Connect] {
        for engine in ["io-uring", "epoll"] {
            stories.push((CONSOLE, Box::new(move || port(engine, far))));
        }
    }
    let all: Vec<(&str, Vec<Call>)> = std::thread::scope(|scope| {
        let told: Vec<_> =
            stories.into_iter().map(|(device, story)| (device.binary, scope.spawn(story))).collect();
        told.into_iter().map(|(binary, story)| (binary, story.join().unwrap())).collect()
    });
    let seen: Vec<Call> = all.iter().flat_map(|(_, calls)| calls.iter().cloned()).collect();
    for (name, calls) in &all {
        assert!(calls.iter().any(Call::opened), "{name}: it begins by opening files");
        let opened = opened_when_ready(calls);
        assert!(opened.is_empty(), "{name}: {opened:?}");
    }
    let [common, keeper] = COMMON;
    let mut found = unneeded(common, &[], &seen);
    found.extend(unneeded(keeper, &[common], &seen));
    for (name, own) in super::document::daemons() {
        let of = |binary: &str| binary.strip_prefix("outboard-") == name.strip_prefix("outboard-");
        let seen: Vec<Call> = all
            .iter()
            .filter(|(binary, _)| of(binary))
            .flat_map(|(_, calls)| calls.iter().cloned())
            .collect();
        found.extend(unneeded(own, &COMMON, &seen));
    }
    assert!(found.is_empty(), "no code needs these:\n{}", found.join("\n"));
}

#[test]
fn a_rule_too_many_is_found() {
    let call = |part, name: &str, args: &[u64]| Call {
        part,
        name: name.into(),
        args: args.into(),
        ..Call::default()
    };
    let seen = [
        call("data path", "read", &[3]),
        call("worker", "fcntl", &[3, 4, 0]),
        call("worker", "read", &[3]),
        call("keeper", "openat", &[0]),
    ];
    let needed = "[data path]\nread # a\n[worker]\nfcntl if arg1 == F_SETFL # b\n[keeper]\nopenat # c\n";
    assert_eq!(unneeded(needed, &[], &seen), [""; 0]);
    for (line, of) in [
        ("[data path]\nopenat # made up", "by another part only"),
        ("[worker]\nread # made up", "what another part allows already"),
        ("[worker]\nfcntl if arg1 == F_GETFL # made up", "on another condition"),
        ("[keeper]\nmount # made up", "never"),
    ] {
        let policy: &'static str = format!("{needed}{line}\n").leak();
        let found = unneeded(policy, &[], &seen);
        assert_eq!(found.iter().filter(|rule| rule.ends_with("made up")).count(), 1, "{of}: {found:?}");
    }
}

#[test]
fn files_opened_when_ready_are_found() {
    let begin = "1<d> openat(0, 0, 0) = 0x3\n1<d> landlock_restrict_self(0x3, 0) = 0\n1<d> seccomp(0x1, 0) = 0\n\
                 1<d> seccomp(0x1, 0) = 0\n1<d> clone(0x11 <unfinished ...>\n2<d> openat(0, 0, 0) = 0x3\n\
                 1<d> <... clone resumed>) = 0x2\n2<d> landlock_restrict_self(0x3, 0) = 0\n\
                 2<d> seccomp(0x1, 0) = 0\n2<d> seccomp(0x1, 0) = 0\n2<d> seccomp(0x1, 0) = 0\n2<d> sendmsg(0x5) = 0x1\n";
    let opened = |more: &str| opened_when_ready(&calls(&format!("{begin}{more}"), false)).len();
    assert_eq!(opened("2<d> openat(0, 0, 0) = -1 ENOENT (No such file or directory)\n"), 0);
    assert_eq!(opened("1<d> clone(0x11) = 0x3\n3<d> openat(0, 0, 0) = 0x3\n"), 0, "a worker that begins");
    assert_eq!(opened("2<d> openat(0, 0, 0) = 0x3\n"), 1);
    assert_eq!(opened("1<d> open(0, 0, 0 <unfinished ...>\n1<d> <... open resumed>) = 0x7\n"), 1);
}
