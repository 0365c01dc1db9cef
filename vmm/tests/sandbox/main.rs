//! The confinement of a running machine, looked at from outside: it is there before the guest is, holds in every thread,
//! and takes away nothing that is needed.
#![allow(clippy::unwrap_used)]

mod inject;
mod needed;
mod refused;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tests::daemon::{Daemon, Launch};
use tests::vmm::{Run, Vmm};
use tests::{metal, wait};

const OUTBOARD: &str = env!("CARGO_BIN_EXE_outboard");

fn rng() -> Daemon {
    Launch::new("outboard-rng").args(["--keeper", "off"]).serve().unwrap()
}

/// A machine with one thread of each kind, whose guest does nothing.
struct Idle {
    vmm: Vmm,
    _daemon: Daemon,
}

impl Idle {
    /// Starts it, and waits until all threads have their names.
    fn start(options: &[&str]) -> Idle {
        let daemon = rng();
        let run = Run::metal(OUTBOARD, "metal=idle").device("rng", daemon.socket());
        let api = run.dir().join("vm.control").display().to_string();
        let run = options.chunks(2).fold(run, |run, option| run.option(option[0], option[1]));
        let vmm = run.option("--api-socket", &api).start();
        vmm.wait_for("metal: idle\n", 1);
        let idle = Idle { vmm, _daemon: daemon };
        let (until, named) = (wait::deadline(), ["control", "outboard", "vcpu0", "vhost rng"]);
        while !idle.threads().keys().eq(named) {
            assert!(Instant::now() < until, "{:?}", idle.threads());
            std::thread::yield_now();
        }
        idle
    }

    /// Threads by their names.
    fn threads(&self) -> BTreeMap<String, i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.vmm.pid())).unwrap();
        let name = |task: &Path| fs::read_to_string(task.join("comm")).unwrap().trim().to_owned();
        let number = |task: &Path| task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let all = tasks.map(|task| task.unwrap().path()).map(|task| (name(&task), number(&task)));
        // The kernel adds one of its own to a process that uses KVM.
        all.filter(|(name, _)| !name.starts_with("kvm-")).collect()
    }

    fn thread(&self, name: &str) -> i32 {
        self.threads()[name]
    }

    /// What /proc says of a thread.
    fn status(&self, tid: i32) -> BTreeMap<String, String> {
        let text = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.vmm.pid())).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }
}

#[test]
fn every_thread_is_confined_and_those_of_guests_and_daemons_more_than_others() {
    let idle = Idle::start(&[]);
    let mut filters = BTreeMap::new();
    for (name, tid) in idle.threads() {
        let status = idle.status(tid);
        for (what, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            assert_eq!(status[what], value, "{name}: {what}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{name}: {set}");
        }
        filters.insert(name, status["Seccomp_filters"].parse::<u32>().unwrap());
    }
    assert!(
        filters["vcpu0"] > filters["outboard"] && filters["vhost rng"] > filters["outboard"],
        "{filters:?}"
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", idle.vmm.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn without_it_nothing_is_taken_away_and_the_operator_is_told() {
    let idle = Idle::start(&["--sandbox", "off"]);
    for (name, tid) in idle.threads() {
        let status = idle.status(tid);
        assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("0", "0"), "{name}");
    }
    assert!(idle.vmm.stderr().contains("No sandbox (--sandbox off)"), "{}", idle.vmm.stderr());
}

#[test]
fn what_would_be_refused_is_done_and_logged_when_asked_for() {
    let idle = Idle::start(&["--sandbox", "log"]);
    assert!(idle.vmm.stderr().contains("type=1326"), "{}", idle.vmm.stderr());
    let getppid = inject::call(idle.vmm.pid(), idle.thread("vcpu0"), libc::SYS_getppid, &[]);
    assert!(matches!(getppid, inject::Outcome::Answered(1..)), "{getppid:?}");
}

/// Starts `outboard` on a kernel that does not have this system call.
fn on_a_kernel_without(call: i64, args: &[&str]) -> Output {
    let nosys = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let rules = BTreeMap::from([(call, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, nosys, TargetArch::x86_64).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "20", OUTBOARD]).args(args);
    let old_kernel = move || seccompiler::apply_filter(&program).map_err(std::io::Error::other);
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing unless they fail.
    unsafe { command.pre_exec(old_kernel) };
    command.output().unwrap()
}

#[test]
fn a_kernel_that_cannot_is_told_in_one_line_before_any_file_is_touched() {
    let (dir, image) = (tempfile::tempdir().unwrap(), metal::image().unwrap());
    let timings = dir.path().join("timings");
    let run = ["run", "--memory", "64M", "--cmdline", "metal=hello", "--kernel", image.to_str().unwrap()];
    let run = [&run[..], &["--timings", timings.to_str().unwrap()]].concat();
    for (call, what) in [(libc::SYS_landlock_create_ruleset, "Landlock"), (libc::SYS_seccomp, "seccomp")] {
        let ended = on_a_kernel_without(call, &run);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), said.lines().count()), (Some(3), 1), "{said}");
        assert!(said.contains(what) && said.contains("use --sandbox off"), "{said}");
        assert!(!timings.exists());
        let off = on_a_kernel_without(call, &[&run[..], &["--sandbox", "off"]].concat());
        assert_eq!(off.status.code(), Some(0), "{off:?}");
        fs::remove_file(&timings).unwrap();
    }
}

#[test]
fn check_says_what_this_host_can_confine_with() {
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let here = Command::new(OUTBOARD).arg("check").output().unwrap();
    assert!(said(&here).contains("Sandbox: seccomp, Landlock ABI "), "{here:?}");
    let old = on_a_kernel_without(libc::SYS_landlock_create_ruleset, &["check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&old.stdout).unwrap();
    assert_eq!(json["sandbox"], serde_json::json!({"seccomp": true, "landlock_abi": null}));
    assert_eq!(old.status.code(), Some(3));
}

/// What root may only by a capability would work at the start, and no more when the daemon comes back.
#[test]
fn a_socket_is_reached_at_the_start_as_it_will_be_later() {
    let daemon = rng();
    chown(daemon.socket(), Some(65_534), Some(65_534)).unwrap();
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    let run = || Run::metal(OUTBOARD, "metal=hello").device("rng", daemon.socket());
    let ended = run().finish();
    assert!(ended.code(4).stderr.contains("no permission to connect"), "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1);
    run().option("--sandbox", "off").finish().ok();
}
