//! Mistakes of the operator, against every daemon: one line that names the option, the value and the cure, and where a
//! file said it the line; the exit code that `--help` documents; nothing left behind, and nobody else disturbed.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tests::daemon::{Exit, Launch, binary};
use tests::machine::{BLK, CONSOLE, Device, Machine, RNG};

/// Longest path of a socket.
const MOST_BYTES: usize = 107;

/// Where a daemon is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    /// As this user.
    Firm,
    /// As a user who may write in @ but not in @/locked.
    Nobody,
    /// With a disk at @/full that has no room for another file.
    FullDisk,
}
use Ground::{Firm, FullDisk, Nobody};

/// One mistake. `@/` stands for a directory, `%` for a path in it that is one byte too long for a socket.
struct Mistake {
    ground: Ground,
    /// The file of options; none if empty.
    file: &'static str,
    line: &'static [&'static str],
    code: i32,
    words: &'static [&'static str],
}

const fn typed(
    ground: Ground,
    line: &'static [&'static str],
    code: i32,
    words: &'static [&'static str],
) -> Mistake {
    Mistake { ground, file: "", line, code, words }
}

const fn written(ground: Ground, file: &'static str, code: i32, words: &'static [&'static str]) -> Mistake {
    Mistake { ground, file, line: &[], code, words }
}

/// What can be done wrong with any daemon.
const COMMON: &[Mistake] = &[
    typed(Firm, &[], 2, &["No socket", "give --socket-path PATH or --fd N"]),
    // A typo.
    typed(Firm, &["--sockt-path=@/s"], 2, &["--sockt-path", "similar", "--socket-path"]),
    written(
        Firm,
        "\nsockt-path = '@/s'",
        2,
        &["line 2: unknown key `sockt-path`", "did you mean `socket-path`?"],
    ),
    written(Firm, "socket-path = @/s", 2, &["--config @/options.toml, line 1: "]),
    typed(Firm, &["--engine=steam"], 2, &["--engine", "steam", "io-uring"]),
    written(Firm, "engine = 'steam'", 2, &["line 1: engine = 'steam'", "give one of", "io-uring"]),
    // A value out of range.
    typed(Firm, &["--fd=2"], 2, &["--fd", "2 is not in 3.."]),
    written(Firm, "\n\nfd = 2", 2, &["line 3: fd = 2", "2 is not in 3.."]),
    written(Firm, "cpus = '0-99999'", 2, &["line 1: cpus = '0-99999'", "99999"]),
    typed(Firm, &["--fd=77"], 2, &["--fd 77", "unix stream socket"]),
    // A path too long for a socket.
    typed(Firm, &["--socket-path=%"], 2, &["--socket-path %: 108 bytes are too long", "at most 107"]),
    written(Firm, "socket-path = '%'", 2, &["line 1: --socket-path %: 108 bytes", "at most 107"]),
    typed(
        Firm,
        &["--socket-path=@/s", "--control-socket=%"],
        2,
        &["--control-socket %: 108 bytes", "at most 107"],
    ),
    // A directory that is not there, one that nobody may write, and a disk that is full.
    typed(
        Firm,
        &["--socket-path=@/no/s"],
        1,
        &["--socket-path @/no/s: ", "No such file", "directory must exist"],
    ),
    typed(
        Nobody,
        &["--socket-path=@/locked/s"],
        1,
        &["--socket-path @/locked/s: ", "Permission denied", "writable"],
    ),
    written(
        Nobody,
        "\nsocket-path = '@/locked/s'",
        1,
        &["line 2: --socket-path @/locked/s: ", "Permission denied"],
    ),
    typed(FullDisk, &["--socket-path=@/full/s"], 1, &["--socket-path @/full/s: ", "No space left on device"]),
    typed(
        Nobody,
        &["--socket-path=@/s", "--control-socket=@/locked/c"],
        1,
        &["--control-socket @/locked/c: ", "Permission denied", "writable"],
    ),
    written(
        FullDisk,
        "socket-path = '@/s'\ncontrol-socket = '@/full/c'",
        1,
        &["line 2: --control-socket @/full/c: ", "No space left on device"],
    ),
    typed(
        Nobody,
        &["--socket-path=@/s", "--log-file=@/locked/l"],
        1,
        &["--log-file @/locked/l: ", "Permission denied", "writable"],
    ),
    written(
        FullDisk,
        "socket-path = '@/s'\nlog-file = '@/full/l'",
        1,
        &["line 2: --log-file @/full/l: ", "No space left on device"],
    ),
    typed(
        Nobody,
        &["--config=@/secret"],
        2,
        &["--config @/secret: ", "Permission denied", "this user may read"],
    ),
    // What somebody else has.
    typed(
        Firm,
        &["--socket-path=@/somebody"],
        4,
        &["--socket-path @/somebody: ", "listens there", "another path"],
    ),
    written(Firm, "socket-path = '@/somebody'", 4, &["line 1: --socket-path @/somebody: ", "listens there"]),
    typed(
        Firm,
        &["--socket-path=@/secret"],
        2,
        &["--socket-path @/secret: ", "no socket is there", "another path"],
    ),
];

/// With a disk, besides.
const OF_BLK: &[Mistake] = &[
    typed(Firm, &["--queues=0"], 2, &["--queues", "0 is not in 1..=256"]),
    written(Firm, "queues = 257", 2, &["line 1: queues = 257", "257 is not in 1..=256"]),
    written(
        Firm,
        "serial = '123456789012345678901'",
        2,
        &["line 1: serial", "21 bytes are too long", "at most 20"],
    ),
];

/// With a source of entropy, besides.
const OF_RNG: &[Mistake] = &[
    typed(Firm, &["--limit=bytes=0"], 2, &["--limit", "bytes=0: give bytes a second"]),
    written(Firm, "limit = 'ops=1,burst_ms=99999'", 2, &["line 1: limit = ", "from 1 to 60000"]),
    written(
        Firm,
        "[limit]\nops = 1\nburst_ms = 99999",
        2,
        &["line 3: limit.burst_ms = 99999", "from 1 to 60000"],
    ),
];

/// Where mistakes are made, beside a daemon that is to notice nothing of them.
struct Site {
    dir: TempDir,
    device: Device,
    somebody: Machine,
}

impl Site {
    fn new(device: Device) -> Site {
        let dir = tempfile::Builder::new().prefix("outboard-").tempdir().unwrap();
        let site = Site { dir, device, somebody: device.boot() };
        for name in ["locked", "full"] {
            fs::create_dir(site.at(name)).unwrap();
        }
        // The disk, or where the console's host listens, is no part of the mistake.
        fs::copy(binary(device.binary), site.at("program")).unwrap();
        fs::write(site.at("disk.img"), [0; 4096]).unwrap();
        fs::write(site.at("secret"), "").unwrap();
        fs::hard_link(site.somebody.daemon.socket(), site.at("somebody")).unwrap();
        for (name, mode) in [("", 0o777), ("disk.img", 0o666), ("secret", 0o600), ("locked", 0o755)] {
            fs::set_permissions(site.at(name), Permissions::from_mode(mode)).unwrap();
        }
        site
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn filled_in(&self, text: &str) -> String {
        let dir = self.dir.path().display().to_string();
        let too_long = format!("{dir}/{}", "s".repeat(MOST_BYTES - dir.len()));
        text.replace("@/", &format!("{dir}/")).replace('%', &too_long)
    }

    /// What the device cannot do without.
    fn needed(&self) -> Vec<String> {
        match self.device.binary {
            "outboard-blk" => vec!["--image=@/disk.img".to_owned()],
            "outboard-console" => vec!["--listen=@/port.sock".to_owned()],
            _ => Vec::new(),
        }
    }

    /// The program's words, from the ground up.
    fn words(&self, ground: Ground) -> Vec<String> {
        let before: &[&str] = match ground {
            Firm => &[],
            Nobody => &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"],
            FullDisk => &[
                "unshare",
                "--mount",
                "sh",
                "-c",
                r#"mount -t tmpfs -o size=4k,nr_inodes=1 tmpfs "$0" && exec "$@""#,
                "@/full",
            ],
        };
        before.iter().copied().chain(["@/program"]).map(str::to_owned).collect()
    }

    /// Makes the mistake.
    fn make(&self, mistake: &Mistake, more: &[&str]) -> Exit {
        let mut words = self.words(mistake.ground);
        let program = words.remove(0);
        if !mistake.file.is_empty() {
            fs::write(self.at("options.toml"), self.filled_in(mistake.file)).unwrap();
            words.push("--config=@/options.toml".to_owned());
        }
        let line = mistake.line.iter().chain(more).map(|word| (*word).to_owned());
        let words = words.into_iter().chain(self.needed()).chain(line).map(|word| self.filled_in(&word));
        Launch::of(self.filled_in(&program)).args(words).run()
    }

    /// It ends as the table says, and as if it had not been.
    fn assert_answered(&self, mistake: &Mistake, more: &[&str]) {
        let before = names(self.dir.path());
        let exit = self.make(mistake, more);
        let case =
            || format!("{} {:?} {:?} {:?}: {exit}", self.device.binary, mistake.file, mistake.line, more);
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(mistake.code), ""), "{}", case());
        assert_eq!(exit.stderr.lines().count(), 1, "{}", case());
        assert!(exit.stderr.starts_with(&format!("{}: ", self.device.binary)), "{}", case());
        for word in mistake.words {
            assert!(exit.stderr.contains(&self.filled_in(word)), "{word}: {}", case());
        }
        let _ = fs::remove_file(self.at("options.toml"));
        assert_eq!(names(self.dir.path()), before, "{}", case());
    }
}

fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// `--check` finds what a start finds, but for what only trying shows: a disk without room, a socket that is in use, and
/// that there will be no systemd.
fn is_seen_by_check(mistake: &Mistake) -> bool {
    mistake.ground != FullDisk && mistake.code != 4 && !mistake.words.contains(&"No socket")
}

fn every_mistake_is_answered(device: Device, own: &[Mistake]) {
    let mut site = Site::new(device);
    let mut ring = site.somebody.start_queue().unwrap();
    for mistake in COMMON.iter().chain(own) {
        for way in [&[][..], &["--keeper=off"]] {
            site.assert_answered(mistake, way);
            site.somebody.assert_serves(&mut ring);
        }
        if is_seen_by_check(mistake) {
            site.assert_answered(mistake, &["--check"]);
        }
    }
    site.somebody.frontend.sync().unwrap();
}

#[test]
fn mistakes_with_rng() {
    every_mistake_is_answered(RNG, OF_RNG);
}

#[test]
fn mistakes_with_blk() {
    every_mistake_is_answered(BLK, OF_BLK);
}

#[test]
fn mistakes_with_console() {
    every_mistake_is_answered(CONSOLE, &[]);
}

#[test]
fn what_a_program_can_do_is_told_whatever_else_is_said() {
    let nonsense: [&[&str]; 4] = [
        &[],
        &["--fd", "77", "--no-such-thing", "--socket-path", "/nowhere/s"],
        &["--config", "/nowhere.toml", "--engine=steam", "--queues", "none"],
        &["--help", "--version", "--", "-x"],
    ];
    for device in [RNG, BLK, CONSOLE] {
        for words in nonsense {
            let exit =
                Launch::new(device.binary).args(words.iter().copied()).args(["--print-capabilities"]).run();
            assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{words:?}");
            let said: serde_json::Value = serde_json::from_str(&exit.stdout).unwrap();
            assert!(said["type"].is_string() && said["features"].is_array(), "{said}");
        }
    }
}

#[test]
fn every_exit_code_is_documented() {
    for device in [RNG, BLK, CONSOLE] {
        let help = Launch::new(device.binary).args(["--help"]).run().stdout;
        let codes = help.split("Exit codes:\n").nth(1).unwrap_or_default();
        let documented: Vec<i32> =
            codes.lines().filter_map(|line| line.trim().split(' ').next()?.parse().ok()).collect();
        assert_eq!(documented, [0, 1, 2, 3, 4], "{help}");
        let given = COMMON.iter().chain(OF_BLK).chain(OF_RNG).map(|mistake| mistake.code);
        assert!(given.into_iter().all(|code| documented.contains(&code)));
    }
}
