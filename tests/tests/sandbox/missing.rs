//! A kernel that cannot confine: it is said, and nothing is served.

use tests::daemon::{Launch, binary};

/// The daemon, on a kernel that answers this call with that error.
fn without(call: &str, error: &str) -> tests::daemon::Exit {
    xtask::packages::ensure_strace().unwrap();
    let inject = format!("inject={call}:error={error}");
    let daemon = binary("outboard-rng").display().to_string();
    let strace = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, &daemon, "--socket-path", "s"];
    Launch::of("/usr/bin/strace").args(strace).run()
}

#[test]
fn without_landlock_nothing_starts() {
    for error in ["ENOSYS", "EOPNOTSUPP"] {
        let exit = without("landlock_create_ruleset", error);
        assert_eq!(exit.code, Some(3), "{exit}");
        assert!(
            exit.stderr.contains("this kernel has no Landlock") && exit.stderr.contains("--sandbox off"),
            "{exit}"
        );
    }
}

#[test]
fn without_seccomp_nothing_starts() {
    let exit = without("seccomp", "ENOSYS");
    assert_eq!(exit.code, Some(3), "{exit}");
    assert!(exit.stderr.contains("this kernel has no seccomp filters"), "{exit}");
}
