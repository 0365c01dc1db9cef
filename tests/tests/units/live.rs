//! The units in a systemd of their own: activation by a socket, keepers that are killed and services that are restarted
//! under a front-end that notices nothing, and what the processes may do.

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
        let system = System::boot(
            &units(),
            &KINDS.map(|kind| format!("outboard-{kind}")).each_ref().map(String::as_str),
        );
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
fn members_of_kvm_may_connect_and_the_daemon_itself_may_not() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
