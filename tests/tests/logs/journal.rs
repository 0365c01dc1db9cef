//! The journal: what a journald of its own, in a mount namespace, has of a daemon's lines.

use std::fs;
use std::process::Command;

use serde_json::json;
use tests::daemon::process::kill_and_wait;
use tests::daemon::{Launch, binary};
use tests::guest::memory::Ram;
use tests::machine::RAM_BYTES;

use super::*;

/// Starts journald with `run` as its /run, then the daemon; both end together.
const WITH_JOURNALD: &str = r#"mkdir -p run/systemd run/log/journal && mount --bind run /run || exit 9
setpriv --pdeathsig KILL /lib/systemd/systemd-journald &
until test -S /run/systemd/journal/stdout && test -S /run/systemd/journal/socket; do sleep 0.02; done
exec "$@""#;

/// A daemon beside a journald, started by the words of `by`.
fn boot(by: &[&str], options: &[&str]) -> Machine {
    let daemon = binary(RNG.binary).display().to_string();
    let alone = ["--mount", "bash", "-c", WITH_JOURNALD, "bash"];
    let words = [&alone[..], by, &[&daemon], options].concat();
    RNG.boot_with(Launch::of("unshare").args(words), &Ram::new(RAM_BYTES), RNG.wants())
}

/// What the journal has of the daemon now.
fn entries(machine: &Machine) -> Vec<Value> {
    let files = machine.daemon.dir().join("run/log/journal");
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "-o", "json", "SYSLOG_IDENTIFIER=outboard-rng", "-D"]).arg(files);
    let output = command.output().unwrap();
    objects(&String::from_utf8_lossy(&output.stdout))
}

fn entry(machine: &Machine, message: &str) -> Option<Value> {
    let is = |entry: &Value| entry["MESSAGE"].as_str().is_some_and(|said| said.starts_with(message));
    entries(machine).into_iter().find(is)
}

#[test]
fn journald_has_every_field_of_a_line() {
    let mut machine = boot(&[], &["--log-format", "journal"]);
    drop(break_ring(&mut machine));
    wait::until(|| entry(&machine, "Ring broken").is_some());
    let broken = entry(&machine, "Ring broken").unwrap();
    for (field, value) in [
        ("PRIORITY", json!("4")),
        ("SYSLOG_IDENTIFIER", json!("outboard-rng")),
        ("CLASS", json!("ring-broken")),
        ("QUEUE", json!("0")),
        ("_TRANSPORT", json!("journal")),
        ("_COMM", json!("outboard-rng")),
    ] {
        assert_eq!(broken[field], value, "{field} in {broken}");
    }
    let error = broken["ERROR"].as_str().unwrap();
    let message = format!(
        "Ring broken by its driver; it stays stopped until it is set up again queue=0 error=\"{error}\""
    );
    assert_eq!(broken["MESSAGE"], message.as_str());
    // The keeper's line, with its own process.
    let listening = entry(&machine, "Listening").unwrap();
    assert_eq!((&listening["PRIORITY"], &listening["_TRANSPORT"]), (&json!("6"), &json!("journal")));
    assert_ne!(listening["_PID"], broken["_PID"]);
    assert_eq!(machine.daemon.stderr(), "", "nothing is told twice");
}

/// What a service manager says of standard error that it connected to the journal (systemd.exec(5)).
const AS_SERVICE: &str = r#"export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2); exec "$@""#;

#[test]
fn a_service_logs_fields_without_being_asked_to() {
    let mut machine = boot(&["systemd-cat", "--identifier=as-text", "bash", "-c", AS_SERVICE, "bash"], &[]);
    drop(break_ring(&mut machine));
    wait::until(|| entry(&machine, "Ring broken").is_some());
    assert_eq!(entry(&machine, "Ring broken").unwrap()["CLASS"], "ring-broken");
}

#[test]
fn a_journald_that_goes_ends_nothing_and_lines_are_text_again() {
    let mut machine = boot(&[], &["--log-format", "journal"]);
    let keeper = machine.daemon.pid();
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let named = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("systemd-journal"))
    };
    let journald = children.split_whitespace().find(named).unwrap();
    kill_and_wait(journald.parse().unwrap());
    drop(break_ring(&mut machine));
    machine.assert_serves_anew();
    assert!(machine.daemon.stderr().contains("WARN outboard-rng["), "{}", machine.daemon.stderr());
    // A worker that begins without it serves, too.
    machine.daemon.kill_worker();
    machine.assert_serves_anew();
}

#[test]
fn a_journald_that_is_not_there_is_what_this_host_cannot() {
    for check in [&[][..], &["--check"]] {
        let words = ["--socket-path", "s", "--log-format", "journal", "--journal-socket", "/no/socket"];
        let exit = RNG.launch().args(words).args(check.to_vec()).run();
        assert_eq!(exit.code, Some(3), "{exit}");
        let told = "outboard-rng: --log-format journal: /no/socket: No such file or directory (os error 2); start systemd-journald, or use text or json\n";
        assert_eq!(exit.stderr, told);
    }
}
