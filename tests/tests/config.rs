//! Options from a file (`--config`), and `--check`, on every daemon.

use std::os::unix::net::UnixListener;
use std::path::Path;

use backends::config::keys;
use backends::daemon::command;
use tests::daemon::{Exit, Launch};
use tests::guest::memory::Ram;
use tests::machine::{BLK, RAM_BYTES};

/// A key, and a value of it that can be used; `@` stands for the directory of the test.
type Row = (&'static str, &'static str);

/// Options of every daemon.
const COMMON: &[Row] = &[
    ("socket-path", "'@/vhost.sock'"),
    ("fd", "3"),
    ("control-socket", "'@/own.control'"),
    ("keeper", "'off'"),
    ("engine", "'epoll'"),
    ("cpus", "'0'"),
    ("require-sealed-memory", "true"),
    ("sandbox", "'log'"),
    ("user", "'root'"),
    ("log-format", "'json'"),
    ("log-level", "'WARN'"),
    ("log-file", "'@/log'"),
];

/// A daemon, its clap definitions, its own options, and a line that it cannot do without.
struct Daemon {
    name: &'static str,
    command: fn() -> clap::Command,
    own: &'static [Row],
    needed: &'static str,
}

const DAEMONS: [Daemon; 3] = [
    Daemon {
        name: "outboard-rng",
        command: command::<outboard_rng::config::Options>,
        own: &[("source", "'getrandom'"), ("limit", "'bytes=1M,ops=1000,burst_ms=20'")],
        needed: "",
    },
    Daemon {
        name: "outboard-blk",
        command: command::<outboard_blk::config::Options>,
        own: &[
            ("image", "'@/disk.img'"),
            ("graph", "'@/disk.vol'"),
            ("read-only", "true"),
            ("direct", "true"),
            ("queues", "4"),
            ("serial", "'4711'"),
            ("block-size", "4096"),
        ],
        needed: "image = '@/disk.img'",
    },
    Daemon {
        name: "outboard-console",
        command: command::<outboard_console::config::Options>,
        own: &[("stdio", "true"), ("pty", "'@/tty'"), ("listen", "'@/hvc'"), ("connect", "'@/log'")],
        needed: "stdio = true",
    },
];

impl Daemon {
    fn rows(&self) -> Vec<Row> {
        [self.own, COMMON].concat()
    }

    /// About to be started with this file, in a directory with a disk.
    fn launch(&self, text: &str) -> Launch {
        let launch = Launch::new(self.name);
        let disk = std::fs::File::create(launch.dir().join("disk.img")).unwrap();
        disk.set_len(1 << 20).unwrap();
        let graph = "volume disk\n type storage/mem\n option size 1M\nend-volume\n";
        std::fs::write(launch.dir().join("disk.vol"), graph).unwrap();
        let file = write(launch.dir(), text);
        launch.args(["--config".to_owned(), file])
    }

    /// The needed line unless `key` takes its place, and one on line 2 that says `key = value`.
    fn with(&self, (key, value): Row) -> Launch {
        let is_side = self.name == "outboard-console" && self.own.iter().any(|own| own.0 == key);
        let alone = is_side || key == "graph";
        let needed = if alone || self.needed.starts_with(key) { "" } else { self.needed };
        self.launch(&format!("{needed}\n{key} = {value}\n"))
    }
}

/// Writes `text` to the file of options in `dir`, and returns its path.
fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("options.toml");
    std::fs::write(&path, text.replace('@', &dir.display().to_string())).unwrap();
    path.display().to_string()
}

/// What `--check` says of it.
fn check(launch: Launch) -> Exit {
    launch.args(["--check"]).run()
}

/// It ended with this code and one line that holds all of `words`.
#[track_caller]
fn assert_refused(exit: &Exit, code: i32, words: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit}");
    assert_eq!((exit.stderr.lines().count(), exit.stdout.as_str()), (1, ""), "{exit}");
    assert!(words.iter().all(|word| exit.stderr.contains(word)), "{words:?} in: {}", exit.stderr);
}

#[track_caller]
fn assert_good(exit: &Exit) {
    assert_eq!(exit.code, Some(0), "{exit}");
    assert!(exit.stdout.ends_with(" can be used\n") && exit.stdout.lines().count() == 1, "{}", exit.stdout);
    assert_eq!(exit.stderr, "");
}

#[test]
fn the_table_has_every_option_of_every_daemon() {
    for daemon in DAEMONS {
        let rows = daemon.rows().into_iter().map(|row| row.0);
        assert_eq!(
            rows.collect::<Vec<_>>(),
            keys(&(daemon.command)()).collect::<Vec<_>>(),
            "{}",
            daemon.name
        );
    }
}

#[test]
fn every_option_of_every_daemon_can_stand_in_the_file() {
    for daemon in DAEMONS {
        for row in daemon.rows() {
            let launch = daemon.with(row);
            let listener = UnixListener::bind(launch.dir().join("passed.sock")).unwrap();
            assert_good(&check(launch.pass(listener)));
        }
    }
}

#[test]
fn every_option_of_every_daemon_refuses_a_value_of_another_type() {
    for daemon in DAEMONS {
        for (key, _) in daemon.rows() {
            let exit = check(daemon.with((key, "1979-05-27")));
            assert_refused(&exit, 2, &["options.toml, line 2: ", key, " = 1979-05-27: give "]);
        }
    }
}

#[test]
fn mistakes_are_told_with_file_line_and_cure() {
    for daemon in DAEMONS {
        for (text, words) in [
            ("\n\nsockt-path = 'x'", ["line 3: unknown key `sockt-path`", "did you mean `socket-path`?"]),
            ("colour = 'red'", ["line 1: unknown key `colour`", ", socket-path, fd, "]),
            ("engine = 'steam'", ["line 1: engine = 'steam'", "io-uring"]),
            ("fd = 3\nsocket-path = 'x'", ["line 2: socket-path", "leave one of them out"]),
            ("fd = 3\nfd = 4", ["line 2: ", "duplicate key"]),
            ("config = 'x'", ["line 1: ", "on the command line"]),
            ("print-capabilities = true", ["line 1: ", "on the command line"]),
            ("log-level = ", ["line 1: ", ""]),
        ] {
            assert_refused(&daemon.launch(text).run(), 2, &[&["options.toml"][..], &words].concat());
        }
        let exit = Launch::new(daemon.name).args(["--config", "/nowhere/at.toml"]).run();
        assert_refused(&exit, 2, &["--config /nowhere/at.toml", "No such file", "give a TOML file"]);
    }
}

#[test]
fn values_out_of_range_are_told() {
    let [rng, blk, _] = DAEMONS;
    for (row, words) in [
        (("queues", "0"), ["queues = 0: ", "1..=256"]),
        (("block-size", "1000"), ["block-size = 1000: ", "512, 4096"]),
        (("serial", "'a b'"), ["serial = 'a b': ", "blanks"]),
        (("cpus", "'7-6'"), ["cpus = '7-6': ", "like 0-2,5"]),
        (("fd", "0"), ["fd = 0: ", "3.."]),
    ] {
        assert_refused(&check(blk.with(row)), 2, &[&["line 2: "][..], &words].concat());
    }
    let exit = check(rng.with(("limit", "'bytes=0'")));
    assert_refused(&exit, 2, &["line 2: limit = 'bytes=0': ", "bytes=0: give"]);
}

#[test]
fn a_structured_option_may_be_a_table() {
    let [rng, ..] = DAEMONS;
    assert_good(&check(rng.launch("engine = 'epoll'\n[limit]\nbytes = '1M'\nops = 1000\nburst_ms = 20")));
    for (text, words) in [
        ("[limit]\n\nbytes = 0", ["line 3: limit.bytes = 0: ", "1 or more"]),
        (
            "[limit]\nops = 1\nengine = 'epoll'",
            ["line 3: unknown key `limit.engine`", "above the first [table]"],
        ),
        ("[limit]\nburst_ms = 5", ["line 1: limit: ", "it limits nothing; give bytes=N"]),
    ] {
        assert_refused(&check(rng.launch(text)), 2, &words);
    }
}

#[test]
fn what_is_found_when_it_is_used_has_its_line_too() {
    let [rng, blk, console] = DAEMONS;
    for (launch, code, words) in [
        (blk.launch("\nimage = '/nowhere.img'"), 2, ["line 2: --image /nowhere.img", "no such file"]),
        (rng.launch("\n\nsocket-path = '/dev/null'"), 2, ["line 3: --socket-path /dev/null", "no socket"]),
        (rng.launch("fd = 77"), 2, ["line 1: --fd 77", "unix stream socket"]),
        (console.launch("pty = '/nowhere/tty'"), 1, ["line 1: --pty /nowhere/tty", "directory"]),
    ] {
        assert_refused(&check(launch), code, &[&["--config ", "options.toml, "][..], &words].concat());
    }
    let exit = check(rng.launch("socket-path = '/dev/null'").args(["--socket-path", "/nowhere/s"]));
    assert_refused(&exit, 1, &["outboard-rng: --socket-path /nowhere/s"]);
}

#[test]
fn a_flag_of_the_file_is_taken_back_on_the_command_line() {
    let image = |line: &[&str]| {
        let launch = DAEMONS[1].launch("image = '@/disk.img'\nread-only = true");
        let launch = launch.args(line.iter().copied());
        let machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
        machine.frontend.features() & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO != 0
    };
    assert!(image(&[]));
    assert!(!image(&["--no-read-only"]));
}

#[test]
fn the_file_is_read_once_and_the_command_line_wins() {
    let launch = DAEMONS[1].launch("image = '@/disk.img'\nqueues = 2\nsocket-path = '/nowhere/vhost.sock'");
    let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
    let mut ring = machine.start_queue().unwrap();
    machine.assert_serves(&mut ring);
    write(machine.daemon.dir(), "image = '/nowhere/disk.img'\ncolour = 'red'");
    machine.daemon.kill_worker();
    machine.assert_serves(&mut ring);
}

#[test]
fn a_check_binds_nothing_and_makes_nothing() {
    let places = tempfile::tempdir().unwrap();
    let place = |name: &str| places.path().join(name).display().to_string();
    for option in ["--listen", "--pty", "--connect"] {
        let options = ["--socket-path", &place("vhost.sock"), option, &place("host")].map(str::to_owned);
        assert_good(&check(Launch::new("outboard-console").args(options)));
        assert_eq!(std::fs::read_dir(places.path()).unwrap().count(), 0, "{option}");
    }
}

#[test]
fn a_check_of_what_a_daemon_serves_is_good() {
    let serving = BLK.boot();
    let dir = serving.daemon.dir();
    let before = std::fs::read_dir(dir).unwrap().count();
    let [image, socket] = ["disk.img", "vhost.sock"].map(|name| dir.join(name).display().to_string());
    assert_good(&check(Launch::new(BLK.binary).args(["--image", &image, "--socket-path", &socket])));
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), before);
    assert!(tests::daemon::listening(Path::new(&socket)));
}

#[test]
fn a_check_tells_what_a_start_would_tell() {
    let rng = |socket: &str| check(Launch::new("outboard-rng").args(["--socket-path", socket]));
    assert_refused(&rng("/nowhere/vhost.sock"), 1, &["--socket-path /nowhere/vhost.sock", "directory"]);
    assert_refused(&rng("/dev/null"), 2, &["--socket-path /dev/null", "no socket"]);
    assert_refused(&rng(&format!("/{}", "s".repeat(107))), 2, &["--socket-path", "107"]);
    assert_refused(&check(Launch::new("outboard-rng").args(["--fd", "77"])), 2, &["--fd 77"]);
    let blk = |image: &str| check(Launch::new("outboard-blk").args(["--image", image]));
    assert_refused(&blk("/nowhere.img"), 2, &["--image /nowhere.img", "no such file"]);
    assert_refused(&blk("/"), 2, &["--image /", "directory"]);
    let console = |option: &str, path: &str| check(Launch::new("outboard-console").args([option, path]));
    assert_refused(&console("--pty", "/dev/null"), 2, &["--pty /dev/null", "no symbolic link"]);
    assert_refused(&console("--pty", "/nowhere/tty"), 1, &["--pty /nowhere/tty", "directory"]);
    assert_refused(&console("--listen", "/nowhere/hvc"), 1, &["--listen /nowhere/hvc", "directory"]);
    assert_refused(&console("--connect", "/dev/null"), 2, &["--connect /dev/null", "no socket"]);
}
