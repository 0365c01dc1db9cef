//! Calls that no code of the VMM makes, made in each of its threads: they end it, or are not done.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use backends::sandbox::Mode;
use libc::*;
use outboard::sandbox::Sandbox;
use tests::metal;

use super::inject::{self, Arg, Outcome};
use super::{Idle, OUTBOARD};

const N: fn(i32) -> Arg<'static> = |number| Arg::Number(number as i64);
const SH: Arg<'static> = Arg::Text("/bin/sh");
const KVM_CREATE_VM: Arg<'static> = Arg::Number(0xae01);
const KVM_SET_USER_MEMORY_REGION: Arg<'static> = Arg::Number(0x4020_ae46);
const KVM_SET_REGS: Arg<'static> = Arg::Number(0x4090_ae82);
const KVM_RUN: Arg<'static> = Arg::Number(0xae80);

/// What is ended by each of these calls.
fn ends(thread: &str, calls: &[(i64, &[Arg<'_>])]) {
    for (number, args) in calls {
        let idle = Idle::start(&[]);
        let outcome = inject::call(idle.vmm.pid(), idle.thread(thread), *number, args);
        assert_eq!(outcome, Outcome::Ended(SIGSYS), "{thread}: call {number} {args:?}");
        assert_eq!(idle.vmm.finish().signal, Some(SIGSYS), "{thread}: all of it ends");
    }
}

/// In none of the threads.
fn in_none() -> Vec<(i64, Vec<Arg<'static>>)> {
    let executable =
        vec![N(0), N(4096), N(PROT_READ | PROT_EXEC), N(MAP_PRIVATE | MAP_ANONYMOUS), N(-1), N(0)];
    vec![
        (SYS_execve, vec![SH, N(0), N(0)]),
        (SYS_mmap, executable),
        (SYS_socket, vec![N(AF_INET), N(SOCK_STREAM), N(0)]),
        (SYS_ioctl, vec![N(3), KVM_CREATE_VM, N(0)]),
        (SYS_ioctl, vec![N(3), KVM_SET_USER_MEMORY_REGION, N(0)]),
        (SYS_ptrace, vec![N(0), N(0), N(0), N(0)]),
        (SYS_open, vec![SH, N(0), N(0)]),
        (SYS_io_uring_setup, vec![N(1), N(0)]),
        (SYS_clone, vec![N(SIGCHLD), N(0), N(0), N(0), N(0)]),
        (SYS_kill, vec![N(1), N(0)]),
    ]
}

fn borrowed<'a>(calls: &'a [(i64, Vec<Arg<'static>>)]) -> Vec<(i64, &'a [Arg<'a>])> {
    calls.iter().map(|(number, args)| (*number, &**args)).collect()
}

#[test]
fn the_guest_s_cpu_can_do_nothing_but_run_the_guest() {
    ends("vcpu0", &borrowed(&in_none()));
    ends(
        "vcpu0",
        &[
            (SYS_socket, &[N(AF_UNIX), N(SOCK_STREAM), N(0)]),
            (SYS_connect, &[N(3), N(0), N(0)]),
            (SYS_sendmsg, &[N(3), N(0), N(0)]),
            (SYS_unlink, &[SH]),
            (SYS_ioctl, &[N(3), KVM_SET_REGS, N(0)]),
            (SYS_accept4, &[N(3), N(0), N(0), N(0)]),
        ],
    );
}

#[test]
fn the_thread_of_a_device_can_do_nothing_but_speak_to_daemons() {
    ends("vhost rng", &borrowed(&in_none()));
    ends(
        "vhost rng",
        &[(SYS_ioctl, &[N(3), KVM_RUN, N(0)]), (SYS_unlink, &[SH]), (SYS_bind, &[N(3), N(0), N(0)])],
    );
}

#[test]
fn the_other_threads_cannot_do_much_more() {
    ends("control", &borrowed(&in_none()));
    ends(
        "control",
        &[
            (SYS_execve, &[SH, N(0), N(0)]),
            (SYS_tgkill, &[N(1), N(1), N(0)]),
            (SYS_bind, &[N(3), N(0), N(0)]),
        ],
    );
}

#[test]
fn nothing_can_be_opened_and_nothing_removed_outside() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("file");
    fs::write(&file, "").unwrap();
    let path = Arg::Text(file.to_str().unwrap());
    for thread in ["vcpu0", "vhost rng", "control", "outboard"] {
        let idle = Idle::start(&[]);
        let open =
            inject::call(idle.vmm.pid(), idle.thread(thread), SYS_openat, &[N(AT_FDCWD), path, N(0), N(0)]);
        assert_eq!(open, Outcome::Answered(i64::from(-ENOENT)), "{thread}");
    }
    // Landlock: the file belongs to root, as the process does.
    let idle = Idle::start(&[]);
    let removed = inject::call(idle.vmm.pid(), idle.thread("outboard"), SYS_unlink, &[path]);
    assert_eq!(removed, Outcome::Answered(i64::from(-EACCES)));
    assert!(file.exists());
}

/// The filters are those of the policy: with a rule less, what needed it ends the machine.
#[test]
fn a_machine_ends_where_a_rule_is_missing() {
    let image = metal::image().unwrap();
    for rule in [
        "vcpu:ioctl if arg1 == KVM_RUN",
        "all:write ",
        "main:clone if",
        "main:epoll_pwait2",
        "main:exit_group",
    ] {
        let ended = Command::new("timeout")
            .args([
                "--kill-after=1",
                "20",
                OUTBOARD,
                "run",
                "--memory",
                "64M",
                "--cmdline",
                "metal=hello",
                "--kernel",
            ])
            .arg(&image)
            .env("OUTBOARD_POLICY_WITHOUT", rule)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        // `timeout` ends as the program did.
        let signal = ended.status.signal().or(ended.status.code().map(|code| code - 128));
        assert_eq!(signal, Some(SIGSYS), "without `{rule}`: {ended:?}");
    }
}

/// A panic in a confined thread says all it has to say, with the places where it was.
#[test]
fn a_panic_is_heard_as_before() {
    const HERE: &str = "refused::a_panic_is_heard_as_before";
    if std::env::var_os("PANIC_HERE").is_some() {
        let filter = Sandbox::new(Mode::On).unwrap().vcpu();
        let thread = std::thread::spawn(move || {
            filter.apply().unwrap();
            panic!("as a vCPU would");
        });
        assert!(thread.join().is_err());
        return;
    }
    let test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", HERE, "--nocapture"])
        .env("PANIC_HERE", "1")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&test.stderr);
    assert!(test.status.success() && said.contains("as a vCPU would"), "{test:?}");
    assert!(said.contains("stack backtrace:"), "{said}");
}
