//! Mistakes of the operator, and hosts that cannot: one clear line that names option, value and cure, the right
//! exit code, and nothing left behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;
use tests::metal;

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

/// Runs `command` under a time limit, and sees that it leaves nothing behind where it runs.
fn limited(command: &[&str]) -> Output {
    let dir = TempDir::new().unwrap();
    let mut limited = Command::new("timeout");
    let output =
        limited.args(["--kill-after=1", "20"]).args(command).current_dir(dir.path()).output().unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{command:?} left behind {left:?}");
    output
}

/// `outboard run` with these options, and with output files where they name none.
fn limited_run(options: &[&str]) -> Output {
    let outputs = [["--timings", "timings"], ["--serial", "file=serial"]];
    let missing = outputs.iter().filter(|[name, _]| !options.contains(name)).flatten().copied();
    limited(&[OUTBOARD, "run"].into_iter().chain(options.iter().copied()).chain(missing).collect::<Vec<_>>())
}

/// One line with all these words, this exit code, and no word of a guest.
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let case = format!("{words:?}: {output:?}");
    assert_eq!(output.status.code(), Some(code), "{case}");
    assert_eq!(stderr.lines().count(), 1, "{case}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{case}");
    assert!(output.stdout.is_empty(), "{case}");
}

/// `outboard run` of the test guest with these options besides.
fn refused(options: &[&str], code: i32, words: &[&str]) {
    let kernel = metal::image().unwrap().display().to_string();
    assert_refused(&limited_run(&[&["--kernel", &kernel], options].concat()), code, words);
}

#[test]
fn options_that_are_missing() {
    refused(&[], 2, &["--memory is missing", "--memory 512M"]);
    assert_refused(&limited_run(&["--memory", "64M"]), 2, &["--kernel is missing"]);
}

#[test]
fn options_that_are_unknown() {
    refused(&["--memory", "64M", "--colour", "red"], 2, &["--colour"]);
    refused(&["--memory", "64M", "--on-reset", "explode"], 2, &["--on-reset", "explode", "reboot", "exit"]);
    refused(&["--memory", "64M", "--serial", "telnet"], 2, &["--serial telnet", "stdio"]);
}

#[test]
fn memory_of_a_wrong_size() {
    refused(&["--memory", "12Q"], 2, &["--memory 12Q", "512M"]);
    refused(&["--memory", "0"], 2, &["--memory 0"]);
    refused(&["--memory", "4096"], 2, &["--memory 4096"]);
    refused(&["--memory", "67108865"], 2, &["--memory 67108865", "4096"]);
    refused(&["--memory", "99999999999999999999G"], 2, &["--memory 99999999999999999999G"]);
}

#[test]
fn more_memory_or_cpus_than_there_can_be() {
    refused(&["--memory", "8000000T"], 2, &["--memory", "at most"]);
    refused(&["--memory", "64M", "--cpus", "0"], 2, &["--cpus 0"]);
    refused(&["--memory", "64M", "--cpus", "255"], 2, &["--cpus 255"]);
    refused(&["--memory", "64M", "--cpus", "-1"], 2, &["-1"]);
}

#[test]
fn kernels_that_are_none() {
    let dir = TempDir::new().unwrap();
    let image = fs::read(metal::image().unwrap()).unwrap();
    let cases: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("text", b"not a kernel\n"),
        ("head", &image[..40]),
        ("half", &image[..image.len() / 2]),
    ];
    for (name, bytes) in cases {
        fs::write(dir.path().join(name), bytes).unwrap();
        kernel_refused(&dir.path().join(name));
    }
    kernel_refused(&dir.path().join("missing"));
    kernel_refused(dir.path());
}

fn kernel_refused(path: &Path) {
    let path = path.display().to_string();
    let output = limited_run(&["--memory", "64M", "--kernel", &path]);
    assert_refused(&output, 2, &[&format!("--kernel {path}")]);
}

#[test]
fn an_elf_that_no_vmm_can_enter() {
    let dir = TempDir::new().unwrap();
    let mut image = fs::read(metal::image().unwrap()).unwrap();
    let note = [4u32, 8, 18].map(u32::to_le_bytes).concat();
    let at = image.windows(note.len()).position(|window| window == note).unwrap();
    image[at + 8] = 17;
    let path = dir.path().join("no-pvh");
    fs::write(&path, image).unwrap();
    kernel_refused(&path);
}

#[test]
fn an_initramfs_that_does_not_fit() {
    let dir = TempDir::new().unwrap();
    let big = dir.path().join("big");
    fs::File::create(&big).unwrap().set_len(80 << 20).unwrap();
    let big = big.display().to_string();
    refused(&["--memory", "64M", "--initrd", &big], 2, &["--initrd", &big, "--memory"]);
    refused(&["--memory", "64M", "--initrd", "/nowhere/initrd"], 2, &["--initrd /nowhere/initrd"]);
}

#[test]
fn devices_that_are_given_wrongly() {
    let device = |text: &str, words: &[&str]| refused(&["--memory", "64M", "--device", text], 2, words);
    device("rng", &["--device rng", "socket="]);
    device("teapot,socket=/tmp/s", &["teapot"]);
    device("rng,socket=/tmp/s,colour=red", &["colour"]);
    device("rng,socket=/tmp/s,queues=none", &["queues=none"]);
    device("rng,socket=/tmp/s,queue-size=100", &["queue-size=100", "power of two"]);
}

#[test]
fn a_name_or_socket_that_is_used_twice() {
    let two = |second: &str, words: &[&str]| {
        refused(&["--memory", "64M", "--device", "rng,socket=/tmp/a,id=x", "--device", second], 2, words);
    };
    two("rng,socket=/tmp/b,id=x", &["--device rng,socket=/tmp/b,id=x", "name x", "already used"]);
    two("rng,socket=/tmp/a,id=y", &["socket /tmp/a", "already used"]);
}

#[test]
fn a_socket_that_is_not_there() {
    let device = ["--memory", "64M", "--device", "rng,socket=/nowhere/rng"];
    refused(&device, 4, &["--device rng,socket=/nowhere/rng"]);
}

#[test]
fn files_that_cannot_be_written() {
    refused(&["--memory", "64M", "--timings", "/nowhere/t"], 2, &["--timings /nowhere/t"]);
    refused(&["--memory", "64M", "--serial", "file=/nowhere/s"], 2, &["--serial", "/nowhere/s"]);
}

#[test]
fn files_that_were_there_before_keep_their_contents() {
    let dir = TempDir::new().unwrap();
    let [timings, serial] = ["timings", "serial"].map(|name| dir.path().join(name).display().to_string());
    for path in [&timings, &serial] {
        fs::write(path, "old").unwrap();
    }
    let outputs = ["--memory", "64M", "--timings", &timings, "--serial", &format!("file={serial}")];
    let mistakes: [(&[&str], i32); 3] = [
        (&["--initrd", "/nowhere/initrd"], 2),
        (&["--device", "rng,socket=/nowhere/rng"], 4),
        (&["--cpus", "0"], 2),
    ];
    for (mistake, code) in mistakes {
        refused(&[&outputs, mistake].concat(), code, &[mistake[0]]);
        assert_eq!([&timings, &serial].map(|path| fs::read(path).unwrap()), [b"old"; 2], "{mistake:?}");
    }
}

#[test]
fn configuration_files_with_mistakes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vm.toml");
    for (text, words) in [
        ("memory = \"64M\"\ncolour = \"red\"\n", ["line 2", "unknown key `colour`"]),
        ("cpus =\n", ["line 1", ""]),
        ("\n\ncmdline = 1\n", ["line 3", "cmdline = 1: give a string in quotes"]),
        ("cpus = 1\ncpus = 2\n", ["line 2", "duplicate key"]),
        ("cpus = 1\n\ndevice = 'rng'", ["line 3", "give a table [[device]] for each, or a list"]),
        (
            "[[device]]\ntype = 'rng'\ncolour = 'red'",
            ["line 3", "unknown key `device.colour`; its keys are type, "],
        ),
        ("[[device]]\ntype = 'rng'\nqueues = '2'", ["line 3", "device.queues = '2': give a number"]),
        ("config = 'x'", ["line 1", "--config"]),
    ] {
        fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        refused(&["--config", &path], 2, &[&[path.as_str()], words.as_slice()].concat());
    }
    refused(&["--config", "/nowhere/vm.toml"], 2, &["--config /nowhere/vm.toml"]);
}

#[test]
fn what_is_found_when_it_is_used_has_its_line_too() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("vm.toml");
    let vm = path.display().to_string();
    for (text, code, words) in [
        ("memory = 4096", 2, ["line 1: --memory 4096", "at least"]),
        ("memory = '64M'\ncpus = 0", 2, ["line 2: --cpus 0", "from 1 to"]),
        ("memory = '64M'\n\ninitrd = '/nowhere/i'", 2, ["line 3: --initrd /nowhere/i", ""]),
        (
            "memory = '64M'\n[[device]]\ntype = 'rng'\nsocket = '/a'\n[[device]]\ntype = 'teapot'\nsocket = '/b'",
            2,
            ["line 5: --device teapot,socket=/b: ", "blk, console, rng"],
        ),
        (
            "memory = '64M'\n[[device]]\ntype = 'rng'\nsocket = '/nowhere/rng'",
            4,
            ["line 2: --device rng,socket=/nowhere/rng", "start outboard-rng"],
        ),
    ] {
        fs::write(&path, text).unwrap();
        refused(
            &["--config", &vm],
            code,
            &[&[format!("--config {vm}, ").as_str()], words.as_slice()].concat(),
        );
    }
    fs::write(&path, "memory = '64M'").unwrap();
    refused(&["--config", &vm, "--cpus", "0"], 2, &["outboard: --cpus 0"]);
}

#[test]
fn a_check_starts_nothing_and_tells_what_a_start_would_tell() {
    let kernel = metal::image().unwrap().display().to_string();
    let device = "rng,socket=/nowhere/rng";
    let good = limited_run(&["--check", "--kernel", &kernel, "--memory", "64M", "--device", device]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert_eq!(String::from_utf8_lossy(&good.stdout), "outboard: the command line can be used\n");
    refused(&["--check", "--memory", "64M", "--cpus", "0"], 2, &["--cpus 0"]);
    refused(&["--check", "--memory", "64M", "--initrd", "/nowhere/i"], 2, &["--initrd /nowhere/i"]);
    assert_refused(
        &limited_run(&["--check", "--kernel", "/nowhere/k", "--memory", "64M"]),
        2,
        &["/nowhere/k"],
    );
}

/// `outboard run` in a mount namespace of its own, where `prepare` has been run as (its) root.
fn in_namespace(prepare: &str) -> Output {
    let kernel = metal::image().unwrap().display().to_string();
    let script = format!("{prepare} && exec \"$@\"");
    let run = ["sh", "-c", &script, "sh", OUTBOARD, "run", "--memory", "64M", "--kernel", &kernel];
    let run = [&run[..], &["--timings", "timings", "--serial", "file=serial"]].concat();
    limited(&[&["unshare", "--user", "--map-root-user", "--mount"], run.as_slice()].concat())
}

#[test]
fn a_host_without_kvm() {
    assert_refused(&in_namespace("mount -t tmpfs none /dev"), 3, &["/dev/kvm"]);
}

/// The directory for its files becomes a disk without room for another one.
#[test]
fn a_full_disk() {
    let output = in_namespace("mount -t tmpfs -o nr_inodes=1 none . && cd \"$PWD\"");
    assert_refused(&output, 2, &["--timings timings: ", "No space left on device"]);
}

#[test]
fn a_file_that_is_not_kvm() {
    assert_refused(&in_namespace("mount --bind /dev/null /dev/kvm"), 3, &["/dev/kvm"]);
}

#[test]
fn no_permission_on_kvm() {
    let dir = TempDir::new().unwrap();
    let node = dir.path().join("kvm");
    fs::write(&node, "").unwrap();
    let lock_out = format!("mount --bind {} /dev/kvm && chmod 0 /dev/kvm", node.display());
    // Without its capabilities root has no more rights than the mode grants.
    let output = in_namespace(&format!("{lock_out} && set -- setpriv --bounding-set=-all \"$@\""));
    assert_refused(&output, 3, &["/dev/kvm", "permission"]);
}
