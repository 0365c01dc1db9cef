//! Daemons that die, lie or are not there, and a VMM that neither dies of it nor stays silent.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use backends::proto::Code;
use tests::daemon::{Daemon, Launch};
use tests::liar::{Liar, Lie};
use tests::machine::BLK;
use tests::vmm::{Ended, Run};

fn metal(cmdline: &str) -> Run {
    Run::metal(env!("CARGO_BIN_EXE_outboard"), cmdline)
}

fn rng() -> Daemon {
    Launch::new("outboard-rng").args(["--keeper", "off"]).serve().unwrap()
}

/// The guest went on to its own end.
fn survived(ended: &Ended) {
    assert!(ended.ok().serial.contains(" answers, "), "{ended:#?}");
}

#[test]
fn a_daemon_that_is_killed_does_not_end_the_machine() {
    let mut daemon = rng();
    let mut vmm = metal("metal=outlive").device("rng", daemon.socket()).start();
    vmm.wait_for("metal: outlive ready\n", 1);
    daemon.kill9();
    vmm.wait_for_stderr("rng");
    vmm.type_in("x");
    let ended = vmm.finish();
    survived(&ended);
    assert!(!ended.serial.contains("DEVICE_NEEDS_RESET"), "it waits for another: {ended:#?}");
}

#[test]
fn one_daemon_that_is_killed_does_not_stop_another() {
    let (mut first, second) = (rng(), rng());
    let run = metal("metal=outlive").device("rng", second.socket());
    let mut vmm =
        run.option("--device", &format!("rng,socket={},id=other", first.socket().display())).start();
    vmm.wait_for("metal: outlive ready\n", 1);
    first.kill9();
    vmm.wait_for_stderr("other");
    vmm.type_in("x");
    let ended = vmm.finish();
    survived(&ended);
    assert!(!ended.serial.contains("DEVICE_NEEDS_RESET"), "{ended:#?}");
}

#[test]
fn a_daemon_that_is_killed_before_the_guest_looks_does_not_end_the_machine() {
    let mut daemon = rng();
    let mut vmm = metal("metal=outlive wait").device("rng", daemon.socket()).start();
    vmm.wait_for("metal: waiting\n", 1);
    daemon.kill9();
    vmm.wait_for_stderr("rng");
    vmm.type_in("xx");
    let ended = vmm.finish();
    assert!(ended.ok().serial.contains("outlive 0 answers"), "{ended:#?}");
}

#[test]
fn lies_at_start_are_named() {
    let spoilt = [
        Lie::OtherRequest,
        Lie::NoReplyFlag,
        Lie::Version,
        Lie::Short,
        Lie::Long,
        Lie::Endless,
        Lie::Silence,
        Lie::Half,
        Lie::HangUp,
        Lie::Twice,
    ];
    for lie in spoilt {
        let ended = run_with(Code::GetFeatures, lie, "metal=hello");
        assert_device_failed(&ended, &format!("{lie:?}"));
    }
}

#[test]
fn lies_about_the_configuration_are_named() {
    for lie in [Lie::OtherRequest, Lie::Short, Lie::Long, Lie::Silence, Lie::HangUp] {
        let (daemon, dir) = (BLK.launch().serve().unwrap(), tempfile::tempdir().unwrap());
        let liar = Liar::new(dir.path(), daemon.socket(), Code::GetConfig, lie);
        let ended = metal("metal=hello").device("blk", liar.socket()).finish();
        assert!(liar.lied(), "{ended:#?}");
        assert_device_failed(&ended, &format!("{lie:?}"));
    }
}

#[test]
fn answers_no_device_can_mean_are_named() {
    // No VIRTIO_F_VERSION_1; no queue; more queues than a vhost-user ring index can name.
    let absurd = [(Code::GetFeatures, 0), (Code::GetQueueNum, 0), (Code::GetQueueNum, u64::MAX)];
    for (code, value) in absurd {
        let ended = run_with(code, Lie::Value(value), "metal=hello");
        assert_device_failed(&ended, &format!("{code:?} {value:#x}"));
    }
}

/// Exit code 4, and one line that names the option and the socket.
fn assert_device_failed(ended: &Ended, case: &str) {
    assert_eq!(ended.code, Some(4), "{case}: {ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{case}: {ended:#?}");
    assert_eq!(ended.timings, [], "{case}");
    assert!(ended.stderr.contains("--device ") && ended.stderr.contains("liar.sock"), "{case}: {ended:#?}");
}

fn run_with(code: Code, lie: Lie, cmdline: &str) -> Ended {
    let (daemon, dir) = (rng(), tempfile::tempdir().unwrap());
    let liar = Liar::new(dir.path(), daemon.socket(), code, lie);
    let ended = metal(cmdline).device("rng", liar.socket()).finish();
    assert!(liar.lied(), "{code:?} is never answered: {ended:#?}");
    ended
}

#[test]
fn refusals_while_the_guest_starts_the_device_do_not_end_the_machine() {
    for code in
        [Code::SetFeatures, Code::SetVringNum, Code::SetVringAddr, Code::SetVringKick, Code::SetVringEnable]
    {
        lie_to_a_running_guest(code, Lie::Value(1));
    }
}

#[test]
fn lies_while_the_guest_starts_the_device_do_not_end_the_machine() {
    for lie in [
        Lie::OtherRequest,
        Lie::Short,
        Lie::Endless,
        Lie::Silence,
        Lie::Half,
        Lie::HangUp,
        Lie::Descriptor,
        Lie::Twice,
    ] {
        lie_to_a_running_guest(Code::SetVringEnable, lie);
    }
}

#[test]
fn lies_while_the_guest_stops_the_device_do_not_end_the_machine() {
    for lie in [Lie::OtherRequest, Lie::Short, Lie::HangUp, Lie::Value(u64::MAX)] {
        let (daemon, dir) = (rng(), tempfile::tempdir().unwrap());
        let liar = Liar::new(dir.path(), daemon.socket(), Code::GetVringBase, lie);
        let vmm = metal("metal=rng requests=10 then-reset").device("rng", liar.socket()).start();
        vmm.wait_for("metal: rng 640 bytes", 1);
        assert!(liar.wait_lied(), "{lie:?}: the device is never stopped: {}", vmm.stderr());
        vmm.wait_for_stderr("waits for its daemon");
        vmm.terminate().code(0);
    }
}

#[test]
fn a_daemon_that_drains_slowly_serves_again_after_the_guest_resets() {
    let (daemon, dir) = (rng(), tempfile::tempdir().unwrap());
    let liar = Liar::new(dir.path(), daemon.socket(), Code::GetVringBase, Lie::Late(Duration::from_secs(2)));
    let vmm = metal("metal=rng requests=10 then-reset").device("rng", liar.socket()).start();
    vmm.wait_for("metal: rng 640 bytes in 10 requests\n", 3);
    assert_eq!(vmm.stderr(), "");
    assert!(liar.lied());
}

#[test]
fn a_daemon_that_never_drains_does_not_keep_the_machine_from_ending() {
    let (daemon, dir) = (rng(), tempfile::tempdir().unwrap());
    let liar = Liar::new(dir.path(), daemon.socket(), Code::GetVringBase, Lie::Silence);
    // A reset of the machine waits for it; the operator need not.
    let vmm = metal("metal=rng requests=10 then-reset").device("rng", liar.socket()).start();
    assert!(liar.wait_lied(), "the device is never stopped: {}", vmm.stderr());
    vmm.terminate().code(0);
}

/// The guest gets as far as its first request, which nobody may answer, and ends when it is told to.
fn lie_to_a_running_guest(code: Code, lie: Lie) {
    let (daemon, dir) = (rng(), tempfile::tempdir().unwrap());
    let liar = Liar::new(dir.path(), daemon.socket(), code, lie);
    let mut vmm = metal("metal=outlive").device("rng", liar.socket()).start();
    vmm.wait_for("metal: outlive started\n", 1);
    assert!(liar.wait_lied(), "{code:?} is never answered");
    vmm.type_in("x");
    survived(&vmm.finish());
}

#[test]
fn a_socket_that_is_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("deaf")).unwrap());
    for name in ["missing", "file", "deaf"] {
        assert_socket_named(&metal("metal=hello").device("rng", &at(name)).finish(), &at(name));
    }
}

#[test]
fn a_daemon_of_another_type_is_named() {
    let daemon = rng();
    let ended = metal("metal=hello").device("blk", daemon.socket()).finish();
    assert_socket_named(&ended, daemon.socket());
}

fn assert_socket_named(ended: &Ended, socket: &Path) {
    ended.code(4);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
    assert!(ended.stderr.contains(&socket.display().to_string()), "{ended:#?}");
}
