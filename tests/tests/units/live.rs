//! The units in a systemd of their own: activation by a socket, keepers that are killed and services that are restarted
//! under a front-end that notices nothing, and what the processes may do.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use backends::control::Method;
use backends::control::client::Client;
use serde_json::{Value, json};
use tests::frontend::Frontend;
use tests::guest::memory::Ram;
use tests::guest::ring::Ring;
use tests::machine::{BLK, CONSOLE, Device, QUEUE_SIZE, RAM_BYTES, RNG};
use tests::systemd::System;
use xtask::packages;
use xtask::skip::skip;

use super::{KINDS, units};

/// How long an answer may take, with the start of a daemon before it.
const PATIENCE: Duration = Duration::from_secs(20);
/// The instance.
const MACHINE: &str = "vm1";

/// A service in its systemd.
struct Service {
    system: System,
    device: Device,
    kind: &'static str,
}

impl Service {
    /// Its sockets listen; it has not been started. `None`: no systemd can run here.
    fn new(kind: &'static str, device: Device, options: &str) -> Option<Service> {
        packages::ensure().unwrap();
        if let Some(obstacle) = System::obstacle() {
            skip("systemd", &obstacle);
            return None;
        }
        let daemons = KINDS.map(|kind| format!("outboard-{kind}"));
        let programs: Vec<&str> = daemons.iter().map(String::as_str).chain(["outboard"]).collect();
        let system = System::boot(&units(), &programs);
        system.write(&format!("/etc/outboard/{MACHINE}/{kind}.toml"), options);
        let service = Service { system, device, kind };
        service.system.said(&["systemctl", "start", &service.socket(), &service.control()]);
        Some(service)
    }

    fn rng() -> Option<Service> {
        Service::new("rng", RNG, "")
    }

    fn blk() -> Option<Service> {
        let service = Service::new("blk", BLK, "image = '/var/lib/outboard/vm1/disk.img'\nqueues = 2\n")?;
        service.system.said(&["mkdir", "-p", "/var/lib/outboard/vm1"]);
        service.system.said(&["truncate", "--size=1M", "/var/lib/outboard/vm1/disk.img"]);
        Some(service)
    }

    fn console() -> Option<Service> {
        Service::new("console", CONSOLE, "listen = '/run/outboard-console/vm1/hvc0.sock'\n")
    }

    fn name(&self) -> String {
        format!("outboard-{}@{MACHINE}.service", self.kind)
    }

    fn socket(&self) -> String {
        format!("outboard-{}@{MACHINE}.socket", self.kind)
    }

    fn control(&self) -> String {
        format!("outboard-{}-control@{MACHINE}.socket", self.kind)
    }

    fn property(&self, name: &str) -> String {
        self.system.property(&self.name(), name)
    }

    fn keeper(&self) -> String {
        self.property("MainPID")
    }

    /// A front-end that is served.
    fn connect(&self) -> (Frontend, Ring) {
        let path = self.system.path(&format!("/run/outboard/{MACHINE}/{}.sock", self.kind));
        let frontend = Frontend::session(&path, &Ram::new(RAM_BYTES), self.device.wants());
        let mut frontend =
            frontend.unwrap_or_else(|e| panic!("{}: {e}; {}", self.kind, self.system.journal()));
        let mut ring = frontend.start_new(self.device.queue, QUEUE_SIZE).unwrap();
        self.assert_serves(&mut ring);
        (frontend, ring)
    }

    #[track_caller]
    fn assert_serves(&self, ring: &mut Ring) {
        let done = ring.run(&self.device.request());
        let right = done.as_ref().is_ok_and(|done| self.device.accepts(done));
        assert!(right, "{}: {done:?}; {}", self.kind, self.system.journal());
    }
}

/// The story of one service, from its first front-end on.
fn serves_through_crashes_and_restarts(service: Option<Service>) {
    let Some(service) = service else { return };
    assert_eq!(service.property("ActiveState"), "inactive");
    let (mut frontend, mut ring) = service.connect();
    assert_eq!(service.property("ActiveState"), "active");
    assert_confined(&service);

    for nth in 1..=3 {
        let before = service.keeper();
        assert_ne!(service.property("NFileDescriptorStore"), "0");
        service.system.kill(&before);
        service.assert_serves(&mut ring);
        assert_ne!(service.keeper(), before);
        assert_eq!(service.property("NRestarts"), nth.to_string());
        frontend.sync().unwrap();
    }
    let before = service.keeper();
    service.system.said(&["systemctl", "restart", &service.name()]);
    service.assert_serves(&mut ring);
    assert_ne!(service.keeper(), before);
    frontend.sync().unwrap();
    assert_confined(&service);

    // One that goes away makes room for the next one; after a stop, the next one starts the service.
    drop((frontend, ring));
    drop(service.connect());
    service.system.said(&["systemctl", "stop", &service.name()]);
    assert_eq!(service.property("ActiveState"), "inactive");
    assert_eq!(service.property("ExecMainStatus"), "0");
    drop(service.connect());
    service.system.said(&["systemctl", "stop", &service.socket(), &service.control()]);
    assert_eq!(service.property("ActiveState"), "inactive");
    let sockets = std::fs::read_dir(service.system.path(&format!("/run/outboard/{MACHINE}"))).unwrap();
    assert_eq!(sockets.count(), 0);
}

/// What keeper and worker may do.
fn assert_confined(service: &Service) {
    let keeper = service.keeper();
    let workers = service.system.children(&keeper);
    assert_eq!(workers.len(), 1, "{}", service.system.journal());
    for pid in [&keeper, &workers[0]] {
        let line = |name: &str| service.system.status(pid, name);
        assert_eq!((line("NoNewPrivs").as_str(), line("Seccomp").as_str()), ("1", "2"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(line(set), "0000000000000000", "{set}");
        }
        let uid: u32 = line("Uid").split(' ').next().unwrap().parse().unwrap();
        assert!((61184..=65519).contains(&uid), "{uid} is no dynamic user's");
    }
}

#[test]
fn rng_serves_through_crashes_and_restarts() {
    serves_through_crashes_and_restarts(Service::rng());
}

#[test]
fn blk_serves_through_crashes_and_restarts() {
    serves_through_crashes_and_restarts(Service::blk());
}

#[test]
fn console_serves_through_crashes_and_restarts() {
    serves_through_crashes_and_restarts(Service::console());
}

impl Service {
    /// Adds these lines to its [Service].
    fn amend(&self, lines: &str) {
        let path = format!("/run/systemd/system/{}.d/50-test.conf", self.name());
        self.system.write(&path, &format!("[Service]\n{lines}\n"));
        self.system.said(&["systemctl", "daemon-reload"]);
    }

    /// User of its keeper, by number.
    fn uid(&self) -> String {
        self.system.status(&self.keeper(), "Uid").split(' ').next().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_user_that_exists_is_taken_with_an_image_that_is_elsewhere() {
    let Some(service) = Service::new("blk", BLK, "image = '/srv/vm1.img'\nqueues = 2\n") else { return };
    let run = |words: &[&str]| service.system.said(words);
    run(&["mount", "-t", "tmpfs", "none", "/srv"]);
    run(&["truncate", "--size=1M", "/srv/vm1.img"]);
    run(&["useradd", "--system", "outboard-vm1"]);
    run(&["chown", "outboard-vm1", "/srv/vm1.img"]);
    service.amend("ReadWritePaths=/srv");
    let _serving = service.connect();
    assert_eq!(service.uid(), run(&["id", "--user", "outboard-vm1"]));
}

/// A block device with a file behind it; detached when dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Loop> {
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(attached.stdout).ok()?.trim().to_owned();
        attached.status.success().then_some(Loop(path))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_served_when_the_unit_allows_it() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let Some(device) = Loop::new(image.path()) else {
        return skip("loop-device", "the host attaches no file to a block device");
    };
    let options = format!("image = '{}'\nqueues = 2\n", device.0);
    let Some(service) = Service::new("blk", BLK, &options) else { return };
    let run = |words: &[&str]| service.system.said(words);
    let number = device.0.trim_start_matches("/dev/loop");
    run(&["mknod", &device.0, "b", "7", number]);
    run(&["useradd", "--system", "outboard-vm1"]);
    run(&["chown", "outboard-vm1", &device.0]);
    let refused = service.system.run(&["systemctl", "start", &service.name()]);
    assert!(!refused.status.success(), "it is served without having been allowed");
    service.amend(&format!("PrivateDevices=no\nDeviceAllow={} rw", device.0));
    let _serving = service.connect();
}

#[test]
fn a_control_client_starts_the_daemon_and_is_answered_by_each_worker() {
    let Some(service) = Service::rng() else { return };
    let path = service.system.path(&format!("/run/outboard/{MACHINE}/rng.control"));
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    let mut ask = |method, path, body: Option<Value>| {
        let reply = client.call(method, path, body.as_ref(), None).unwrap();
        let answer: Value = serde_json::from_slice(&reply.body).unwrap();
        (reply.status, answer)
    };
    let (status, state) = ask(Method::Get, "/state", None);
    assert_eq!((status, service.property("ActiveState").as_str()), (200, "active"), "{state}");
    // It is the host's root who asks, though the daemon has users of its own.
    let (status, answer) = ask(Method::Put, "/log", Some(json!({"level": "debug"})));
    assert_eq!(status, 200, "{answer}");
    let before = service.keeper();
    service.system.kill(&before);
    let (status, state) = ask(Method::Get, "/state", None);
    assert_eq!(
        (status, &state["daemon"]["keeper_pid"]),
        (200, &json!(service.keeper().parse::<u32>().unwrap()))
    );
    assert_ne!(service.keeper(), before);
}

#[test]
fn outboard_ctl_finds_it_and_upgrades_it_by_its_name() {
    let Some(service) = Service::rng() else { return };
    let (_frontend, mut ring) = service.connect();
    let list = service.system.said(&["outboard", "ctl", "list"]);
    assert!(list.contains("vm1/rng"), "{list}");
    let before = service.system.children(&service.keeper());
    service.system.said(&["outboard", "ctl", "--socket", "vm1/rng", "upgrade"]);
    assert_ne!(service.system.children(&service.keeper()), before);
    service.assert_serves(&mut ring);
}

#[test]
fn an_upgrade_takes_the_executable_that_is_there_now() {
    let Some(service) = Service::rng() else { return };
    let (mut frontend, mut ring) = service.connect();
    let executable =
        |pid: &str| std::fs::metadata(service.system.path(&format!("/proc/{pid}/exe"))).unwrap().ino();
    let before = service.system.children(&service.keeper());
    // As dpkg does it.
    service.system.said(&["cp", "/usr/bin/outboard-rng", "/usr/bin/outboard-rng.dpkg-new"]);
    service.system.said(&["mv", "/usr/bin/outboard-rng.dpkg-new", "/usr/bin/outboard-rng"]);
    let new = std::fs::metadata(service.system.path("/usr/bin/outboard-rng")).unwrap().ino();
    assert_ne!(executable(&before[0]), new);

    let path = service.system.path(&format!("/run/outboard/{MACHINE}/rng.control"));
    let mut client = Client::connect(&path, PATIENCE).unwrap();
    assert_eq!(client.call(Method::Post, "/upgrade", None, None).unwrap().status, 202);
    client.wait_closed().unwrap();
    service.assert_serves(&mut ring);
    frontend.sync().unwrap();
    let after = service.system.children(&service.keeper());
    assert_ne!(before, after);
    assert_eq!(executable(&after[0]), new);
}

#[test]
fn a_wrong_option_is_told_once_and_not_tried_again() {
    let Some(service) = Service::new("blk", BLK, "image = '/nowhere.img'") else { return };
    let started = service.system.run(&["systemctl", "start", &service.name()]);
    assert!(!started.status.success(), "{started:?}");
    assert_eq!(service.property("Result"), "exit-code");
    assert_eq!(
        (service.property("ExecMainStatus").as_str(), service.property("NRestarts").as_str()),
        ("2", "0")
    );
    let journal = service.system.journal();
    assert!(journal.contains("--image /nowhere.img: "), "{journal}");
}

#[test]
fn lines_reach_the_journal_with_their_fields() {
    let Some(service) = Service::rng() else { return };
    let (_frontend, mut ring) = service.connect();
    service.system.kill(&service.system.children(&service.keeper())[0]);
    service.assert_serves(&mut ring);
    let told = service.system.said(&["journalctl", "--no-pager", "--output=json", "--unit", &service.name()]);
    let entries: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours = entries.iter().filter(|entry| entry["SYSLOG_IDENTIFIER"] == "outboard-rng");
    let warned = ours.clone().find(|entry| entry["PRIORITY"] == "4");
    let warned = warned.unwrap_or_else(|| panic!("nobody tells that a worker was killed: {told}"));
    assert!(warned["MESSAGE"].as_str().unwrap().contains("orker"), "{warned}");
    assert!(ours.clone().all(|entry| entry["_TRANSPORT"] == "journal"), "{told}");
}

#[test]
fn members_of_kvm_may_connect_and_the_daemon_itself_may_not() {
    let Some(service) = Service::rng() else { return };
    let _serving = service.connect();
    for name in ["rng.sock", "rng.control"] {
        let file =
            std::fs::metadata(service.system.path(&format!("/run/outboard/{MACHINE}/{name}"))).unwrap();
        let kvm = service.system.said(&["getent", "group", "kvm"]);
        assert_eq!((file.permissions().mode() & 0o777, file.uid()), (0o660, 0), "{name}");
        assert_eq!(kvm.split(':').nth(2), Some(file.gid().to_string().as_str()), "{name}");
    }
    let groups = service.system.status(&service.keeper(), "Groups");
    assert!(
        !groups
            .split(' ')
            .any(|gid| Some(gid) == service.system.said(&["getent", "group", "kvm"]).split(':').nth(2))
    );
}
