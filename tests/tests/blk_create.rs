//! `outboard-blk create`: what an image is like that it made, and that nothing is left of one that it did not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::daemon::{Exit, Launch};
use tests::guest::blk::{Blk, OK};
use tests::guest::memory::Ram;
use tests::machine::{BLK, RAM_BYTES};
use tests::wait;

const MB: u64 = 1 << 20;
/// A small file system of the program's own, in its directory, and what is run there.
const ON_ITS_OWN: &str =
    r#"mkdir disk && mount -t "$0" -o size=1m none disk && cd disk && "$@"; code=$?; ls -A; exit $code"#;

fn create(dir: &Path, words: &str) -> Exit {
    let words = words.split_whitespace().map(|word| word.replace("DIR", &dir.display().to_string()));
    Launch::new("outboard-blk").args(["create".to_owned()]).args(words).run()
}

/// The same on a file system of this type with 1 MiB of room; what is left there is on standard output.
fn create_on(kind: &str, words: &str) -> Exit {
    let program = tests::daemon::binary("outboard-blk").display().to_string();
    let launch = Launch::of("unshare").args(["--mount", "sh", "-c", ON_ITS_OWN, kind, &program, "create"]);
    launch.args(words.split_whitespace()).run()
}

#[track_caller]
fn assert_refused(exit: &Exit, code: i32, words: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit}");
    let line = exit.stderr.lines().last().unwrap_or_default();
    assert!(words.iter().all(|word| line.contains(word)), "{words:?} in: {}", exit.stderr);
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn each_way_makes_an_image_of_zeros_that_a_guest_can_use() {
    for (way, room) in [("off", 0), ("falloc", 16 * MB), ("full", 16 * MB)] {
        let dir = tempfile::tempdir().unwrap();
        let exit = create(dir.path(), &format!("DIR/vm.img --size 16M --preallocation {way} --json"));
        assert_eq!(exit.code, Some(0), "{exit}");
        let said: Value = serde_json::from_str(&exit.stdout).unwrap();
        assert_eq!((&said["size_bytes"], &said["preallocation"]), (&(16 * MB).into(), &way.into()));
        let image = dir.path().join("vm.img");
        let found = fs::metadata(&image).unwrap();
        assert_eq!((found.len(), found.mode() & 0o7777), (16 * MB, 0o600), "{way}");
        assert!(found.blocks() * 512 >= room, "{way}: {} bytes of room", found.blocks() * 512);
        assert!(way != "off" || found.blocks() * 512 < MB, "{way}");
        assert_eq!(said["allocated_bytes"], found.blocks() * 512, "{way}");
        assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0), "{way}");

        let launch = Launch::new("outboard-blk").args(["--image".to_owned(), image.display().to_string()]);
        let mut machine = BLK.boot_with(launch, &Ram::new(RAM_BYTES), BLK.wants());
        let mut blk = Blk::new(machine.start_queue().unwrap());
        assert_eq!(blk.write(0, &[7; 4096]).unwrap().status, Some(OK), "{way}");
        assert_eq!(blk.read(0, 4096).unwrap().data, [7; 4096], "{way}");
    }
}

#[test]
fn fragments_are_counted_as_filefrag_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let exit = create(dir.path(), "DIR/vm.img --size 200M --preallocation falloc --json");
    let said: Value = serde_json::from_str(&exit.stdout).unwrap();
    let filefrag = Command::new("filefrag").arg(dir.path().join("vm.img")).output().unwrap();
    let counted = String::from_utf8(filefrag.stdout).unwrap();
    let count = counted.rsplit(": ").next().and_then(|told| told.split(' ').next()).map(str::to_owned);
    assert_eq!(count, said["fragments"].as_u64().map(|count| count.to_string()), "{counted}{exit}");
}

#[test]
fn people_are_told_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.img").display().to_string();
    let exit = create(dir.path(), "DIR/vm.img --size 10G");
    assert_eq!((exit.stdout, exit.stderr), (format!("{path}: 10G, preallocation off\n"), String::new()));
    let exit = create(dir.path(), "DIR/full.img --size 4M --preallocation full");
    assert!(exit.stdout.contains("4M, preallocation full, in "), "{exit}");
    assert_eq!(exit.stderr, "", "no bar where there is no terminal");
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    let program = tests::daemon::binary("outboard-blk").display().to_string();
    let command = format!("{program} create vm.img --size 64M --preallocation full");
    let exit = Launch::of("script").args(["-qec", &command, "/dev/null"]).run();
    assert_eq!(exit.code, Some(0), "{exit}");
    for word in [" of 64.00 MiB, ", "/s, ", " left", "vm.img: 64M, preallocation full"] {
        assert!(exit.stdout.contains(word), "{word:?} in {exit}");
    }
}

#[test]
fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.img");
    fs::write(&path, "precious").unwrap();
    assert_refused(&create(dir.path(), "DIR/vm.img --size 1M"), 2, &["vm.img", "--force"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(create(dir.path(), "DIR/vm.img --size 1M --force").code, Some(0));
    assert_eq!(fs::metadata(&path).unwrap().len(), MB);
    for (words, code, told) in [
        ("DIR --size 1M --force", 2, "a directory"),
        ("/dev/null --size 1M --force", 2, "neither a file"),
        ("DIR/no/vm.img --size 1M", 2, "no such directory"),
        ("DIR/vm.img/x --size 1M", 2, "no such directory"),
        ("DIR/x --size 1000", 2, "multiple of 512"),
        ("DIR/x --size 0", 2, "from 512"),
        ("DIR/x --size 10GB", 2, "10G"),
        ("DIR/x --size 9000000T", 2, "multiple of 512"),
        ("DIR/x --size 1M --preallocation some", 2, "falloc"),
        ("DIR/x", 2, "--size"),
    ] {
        assert_refused(&create(dir.path(), words), code, &[told]);
    }
    assert_eq!(names(dir.path()), ["vm.img"]);
}

#[test]
fn an_image_in_use_is_not_replaced() {
    let machine = BLK.boot();
    let image = machine.daemon.dir().join("disk.img");
    let before = fs::metadata(&image).unwrap().ino();
    let words = format!("{} --size 1M --force", image.display());
    assert_refused(&create(Path::new("/"), &words), 4, &["disk.img", "outboard-blk", "uses"]);
    assert_eq!(fs::metadata(&image).unwrap().ino(), before);
}

#[test]
fn a_disk_that_is_full_has_nothing_left_of_it() {
    for way in ["falloc", "full"] {
        let exit = create_on("tmpfs", &format!("vm.img --size 2M --preallocation {way}"));
        assert_refused(&exit, 1, &["vm.img", "--size 2M", "no room", "smaller size"]);
        assert_eq!(exit.stdout, "", "{way}: what is left");
    }
}

#[test]
fn a_file_system_that_cannot_keep_room_is_told_and_written_to() {
    let exit = create_on("ramfs", "vm.img --size 2M --preallocation falloc");
    assert_refused(&exit, 3, &["--preallocation falloc", "give --preallocation full or off"]);
    assert_eq!(exit.stdout, "", "what is left");
    let exit = create_on("ramfs", "vm.img --size 2M --preallocation full");
    let told = "vm.img: 2M, preallocation full, in an unknown number of fragments\nvm.img\n";
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(0), told), "{}", exit.stderr);
}

#[test]
fn a_size_over_the_limit_of_files_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let program = tests::daemon::binary("outboard-blk").display().to_string();
    let path = dir.path().join("vm.img").display().to_string();
    for way in ["off", "falloc", "full"] {
        let script = "ulimit -f 1024; exec \"$@\"";
        let words = ["-c", script, "sh", &program, "create", &path, "--size", "8M", "--preallocation", way];
        assert_refused(&Launch::of("bash").args(words).run(), 1, &["--size 8M", "ulimit -f"]);
        assert!(names(dir.path()).is_empty(), "{way}");
    }
}

/// Signals come while zeros are written.
#[test]
fn signals_leave_nothing_behind() {
    for (signal, code) in [(Signal::TERM, Some(1)), (Signal::INT, Some(1)), (Signal::KILL, None)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.img").display().to_string();
        let words = ["create", &path, "--size", "2G", "--preallocation", "full"];
        let daemon = Launch::new("outboard-blk").args(words).start();
        let pid = daemon.pid();
        wait::until(|| written(pid).is_none_or(|bytes| bytes > 8 * MB));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
        let exit = daemon.wait_exit();
        assert_eq!(exit.code, code, "{exit}");
        assert!(names(dir.path()).is_empty(), "{signal:?}: {:?}", names(dir.path()));
        if code.is_some() {
            assert_refused(&exit, 1, &["vm.img", "a signal asked to end; nothing is left behind"]);
        }
    }
}

/// Bytes that a process has written; `None`: it has ended.
fn written(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
}
