//! The graph of a disk is changed while a guest uses it and checks all it reads.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use backends::control::Method;
use backends::control::client::Client;
use serde_json::Value;
use tests::daemon::{Launch, binary};
use tests::guest::blk::{Framing, OK, Request, SECTOR_BYTES};
use tests::machine::{BLK, DISK_SECTORS};
use tests::manager::Manager;
use tests::random::Random;
use tests::restart::soak::Device;
use tests::restart::{Load, Mode, Rig};
use tests::slow::SlowDisk;
use tests::wait;
use xtask::skip::skip;

/// Name of the control socket in the daemon's directory.
const CONTROL: &str = "blk.control";

/// Volumes above the image, those below first.
const LAYERS: [(&str, &str); 4] = [
    ("counted", "type debug/io-stats"),
    ("slow", "type debug/delay-gen\noption delay 1ms"),
    ("measured", "type features/throttle\noption ops 100000"),
    ("slower", "type debug/delay-gen\noption delay 2ms"),
];

fn leaf(image: &Path) -> String {
    format!("volume image\ntype storage/file\noption path {}\nend-volume\n", image.display())
}

/// The text of a graph: an image, and of the layers those whose bit is set.
fn graph(image: &Path, layers: usize) -> String {
    let (mut text, mut below) = (leaf(image), "image");
    for (_, (name, is)) in LAYERS.iter().enumerate().filter(|(bit, _)| layers >> bit & 1 == 1) {
        text.push_str(&format!("volume {name}\n{is}\nsubvolumes {below}\nend-volume\n"));
        below = name;
    }
    text
}

/// `outboard-blk graph` about the daemon in this directory.
fn tool(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "60"]).arg(binary(BLK.binary)).arg("graph").args(words);
    command.arg("--control-socket").arg(dir.join(CONTROL)).current_dir(dir);
    command
}

fn apply(dir: &Path, text: &str) -> Output {
    fs::write(dir.join("next.vol"), text).unwrap();
    tool(dir, &["apply", "next.vol"]).output().unwrap()
}

/// The same until it is done: a flush on a busy disk may take longer than a change waits.
fn apply_in_time(dir: &Path, text: &str) {
    wait::until(|| {
        let applied = apply(dir, text);
        let late = said(&applied).contains("still under way");
        assert!(applied.status.success() || late, "{}", said(&applied));
        applied.status.success()
    });
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// What `GET /graph` answers.
fn live(dir: &Path) -> Value {
    let mut client = Client::connect(&dir.join(CONTROL), wait::PATIENCE).unwrap();
    let reply = client.call(Method::Get, "/graph", None, None).unwrap();
    serde_json::from_slice(&reply.body).unwrap()
}

/// Names of the volumes that are served, from the image up.
fn volumes(dir: &Path) -> Vec<String> {
    let shown = live(dir);
    let volumes = shown["volumes"].as_array().unwrap().iter();
    volumes.map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
}

fn names(layers: usize) -> Vec<String> {
    let there = LAYERS.iter().enumerate().filter(|(bit, _)| layers >> bit & 1 == 1);
    ["image"].into_iter().chain(there.map(|(_, (name, _))| *name)).map(str::to_owned).collect()
}

/// A guest that works on an image with two queues, and checks what it reads.
fn rig() -> (Rig, Box<dyn Load>, PathBuf) {
    let launch = Device::Blk.launch();
    let dir = launch.dir().to_owned();
    let launch = launch.args(["--control-socket".to_owned(), dir.join(CONTROL).display().to_string()]);
    let mut rig = Rig::start(launch, Mode::Keeper, BLK.wants(), Device::Blk.queues());
    let load = Device::Blk.load(&mut rig, Random::from_env());
    (rig, load, dir)
}

/// Works until `done`.
fn work(load: &mut dyn Load, mut done: impl FnMut() -> bool) {
    while !done() {
        load.submit();
        load.reap().unwrap();
    }
}

#[test]
fn volumes_come_and_go_under_load_and_every_read_is_right() {
    let (rig, mut load, dir) = rig();
    let image = dir.join("disk.img");
    let changer = thread::spawn({
        let dir = dir.clone();
        move || {
            let mut pauses = Vec::new();
            for layers in (0..16).chain([5, 10, 15, 0]) {
                apply_in_time(&dir, &graph(&image, layers));
                assert_eq!(volumes(&dir), names(layers));
                pauses.push(live(&dir)["change"]["pause_us"].as_u64().unwrap());
            }
            pauses
        }
    });
    work(&mut *load, || changer.is_finished());
    let mut pauses = changer.join().unwrap();
    load.drain().unwrap();
    load.check().unwrap();
    pauses.sort_unstable();
    println!("pauses in us: {pauses:?}");
    drop(rig);
}

#[test]
fn another_image_takes_the_place_of_one_whose_writes_are_on_the_disk() {
    let (rig, mut load, dir) = rig();
    let mut before = dir.join("disk.img");
    for nth in 0..6 {
        for _ in 0..30 {
            load.submit();
            load.reap().unwrap();
        }
        load.drain().unwrap();
        let image = dir.join(format!("{nth}.img"));
        fs::copy(&before, &image).unwrap();
        apply_in_time(&dir, &graph(&image, nth % 4));
        // The one before is anybody's.
        let other = Launch::new(BLK.binary).args(["--image".to_owned(), before.display().to_string()]);
        drop(other.serve().unwrap());
        load.submit();
        load.drain().unwrap();
        rig.daemon.kill_worker();
        before = image;
    }
    load.submit();
    load.drain().unwrap();
    assert_eq!(volumes(&dir), names(1));
    fs::copy(&before, dir.join("disk.img")).unwrap();
    load.check().unwrap();
}

/// Before, during and after the change: never a mixture.
#[test]
fn a_worker_that_is_killed_leaves_the_old_graph_or_the_new_one() {
    let (mut rig, mut load, dir) = rig();
    let (image, mut random) = (dir.join("disk.img"), Random::from_env());
    let (mut before, mut new) = (0, 0);
    for round in 0..24 {
        let next = (before + 1 + round % 7) % 16;
        fs::write(dir.join("next.vol"), graph(&image, next)).unwrap();
        let mut child =
            tool(&dir, &["apply", "next.vol"]).stderr(std::process::Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_micros(random.below(40_000));
        work(&mut *load, || Instant::now() > until);
        rig.kill(&mut *load).unwrap();
        rig.recover(&mut *load).unwrap();
        work(&mut *load, || child.try_wait().unwrap().is_some());
        let succeeded = child.wait().unwrap().success();
        let now = volumes(&dir);
        assert!(now == names(next) || (!succeeded && now == names(before)), "{succeeded} {now:?}");
        if now == names(next) {
            (before, new) = (next, new + 1);
        }
    }
    load.drain().unwrap();
    load.check().unwrap();
    println!("{new} of 24 changes were made");
}

#[test]
fn a_change_that_makes_no_sense_changes_nothing_and_names_the_line() {
    let (_rig, mut load, dir) = rig();
    let image = dir.join("disk.img");
    let small = dir.join("small.img");
    fs::File::create(&small).unwrap().set_len(4096).unwrap();
    let cases = [
        (
            format!("{}volume x\ntype debug/nothing\nsubvolumes image\nend-volume\n", leaf(&image)),
            "next.vol:6: ",
        ),
        (graph(&image, 2).replace("1ms", "1x"), "next.vol:7: "),
        (leaf(&dir.join("missing.img")), "next.vol:3: "),
        (leaf(&small), "another size"),
        (leaf(&image).replace("type storage/file", "type storage/file\noption read-only on"), "uses it"),
    ];
    for (text, told) in cases {
        let applied = apply(&dir, &text);
        assert!(!applied.status.success() && said(&applied).contains(told), "{told}: {}", said(&applied));
        load.submit();
        load.drain().unwrap();
        assert_eq!(volumes(&dir), names(0));
    }
    assert!(apply(&dir, &graph(&image, 15)).status.success());
    load.submit();
    load.drain().unwrap();
    load.check().unwrap();
}

/// The host does not answer: after a second the old graph goes on, and the operator knows what was waited for.
#[test]
fn a_change_that_waits_in_vain_is_given_up() {
    let launch = BLK.launch();
    let dir = launch.dir().to_owned();
    let bytes = usize::try_from(DISK_SECTORS * u64::from(SECTOR_BYTES)).unwrap();
    let Ok(disk) = SlowDisk::over(&dir.join("disk.img"), bytes) else {
        return skip("slow-disk", "no FUSE here");
    };
    let launch = launch.args(["--control-socket".to_owned(), dir.join(CONTROL).display().to_string()]);
    let mut machine =
        BLK.boot_with(launch, &tests::guest::memory::Ram::new(tests::machine::RAM_BYTES), BLK.wants());
    let mut ring = machine.start_queue().unwrap();
    disk.hold();
    ring.add(&Request::write(8, &[7; 512]).chain(&Framing::usual(0)));
    ring.notify();
    disk.await_held(1);
    let applied = apply(&dir, &graph(&dir.join("disk.img"), 1));
    assert!(said(&applied).contains("1 requests were still under way after"), "{}", said(&applied));
    assert_eq!(volumes(&dir), names(0));
    disk.release();
    let done = ring.wait_used().unwrap();
    assert_eq!(tests::guest::blk::Answer::new(&done, 0).status, Some(OK));
    machine.assert_serves(&mut ring);
    assert!(apply(&dir, &graph(&dir.join("disk.img"), 1)).status.success());
    machine.assert_serves(&mut ring);
    let shown = tool(&dir, &["show"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("counted"), "{shown:?}");
}

/// A service manager stores the graph as it was changed: the next keeper goes on with it, though its options name another.
#[test]
fn a_keeper_that_is_killed_does_not_take_the_change_back() {
    let manager = Manager::new(64);
    let launch = manager.of(Device::Blk.launch());
    let dir = launch.dir().to_owned();
    let launch = launch.args(["--control-socket".to_owned(), dir.join(CONTROL).display().to_string()]);
    let mut rig = Rig::start(launch, Mode::Keeper, BLK.wants(), Device::Blk.queues());
    let mut load = Device::Blk.load(&mut rig, Random::from_env());
    load.submit();
    load.drain().unwrap();
    let (before, image) = (dir.join("disk.img"), dir.join("other.img"));
    fs::copy(&before, &image).unwrap();
    apply_in_time(&dir, &graph(&image, 3));
    let name = b"blk@1.image.image";
    wait::until(|| manager.packets().iter().any(|(bytes, _)| bytes.windows(name.len()).any(|at| at == name)));
    load.submit();
    load.drain().unwrap();
    rig.frontend.sync().and_then(|()| rig.frontend.sync()).unwrap();
    manager.settle();
    rig.daemon.kill9();
    rig.gone(&mut *load).unwrap();
    rig.daemon.start_again(manager.stored());
    rig.recover(&mut *load).unwrap();
    load.submit();
    load.drain().unwrap();
    assert_eq!(volumes(&dir), names(3));
    fs::copy(&image, &before).unwrap();
    load.check().unwrap();
}

#[test]
fn a_disk_holds_still_for_a_snapshot_and_goes_on() {
    let (rig, mut load, dir) = rig();
    let image = dir.join("disk.img");
    let still = |timeout| {
        let below = leaf(&image);
        format!(
            "{below}volume still\ntype features/quiesce\noption timeout {timeout}\nsubvolumes image\nend-volume\n"
        )
    };
    apply_in_time(&dir, &still("60s"));
    // A guest that uses it, while somebody makes it hold still, copies it and lets it go.
    let holder = thread::spawn({
        let (dir, image) = (dir.clone(), image.clone());
        move || {
            let held = tool(&dir, &["hold", "still"]).output().unwrap();
            assert!(held.status.success(), "{}", said(&held));
            let state = live(&dir)["volumes"].as_array().unwrap().last().unwrap()["state"].clone();
            let before = fs::read(&image).unwrap();
            thread::sleep(Duration::from_millis(100));
            let same = fs::read(&image).unwrap() == before;
            let released = tool(&dir, &["release", "still"]).output().unwrap();
            assert!(released.status.success(), "{}", said(&released));
            (same, state)
        }
    });
    work(&mut *load, || holder.is_finished());
    let (same, state) = holder.join().unwrap();
    assert!(same, "somebody wrote to a disk that holds still");
    assert_eq!((&state["closed"], &state["quiet"]), (&Value::Bool(true), &Value::Bool(true)), "{state}");
    let refused = tool(&dir, &["hold", "image"]).output().unwrap();
    assert!(
        said(&refused).contains("Volume image is a storage/file, which holds nothing back"),
        "{}",
        said(&refused)
    );
    // It opens by itself, if nobody lets it go.
    apply_in_time(&dir, &still("1s"));
    assert!(tool(&dir, &["hold", "still"]).output().unwrap().status.success());
    let until = Instant::now() + wait::PATIENCE;
    work(&mut *load, || live(&dir)["volumes"][1]["state"]["closed"] == false || Instant::now() > until);
    assert_eq!(live(&dir)["volumes"][1]["state"]["closed"], false);
    load.drain().unwrap();
    load.check().unwrap();
    drop(rig);
}
