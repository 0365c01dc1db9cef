//! `docs/syscalls.md` says what the policies say.
//!
//! `OUTBOARD_BLESS=1 cargo test -p tests --test sandbox document` writes it anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use backends::daemon::Program;
use backends::sandbox::COMMON;
use backends::sandbox::policy::{Rule, parse};

/// Most system calls that threads which serve queues may make.
const MOST: usize = 25;

const HEAD: &str = "\
# System calls of Outboard's daemons

Made from the policies (`backends/policy/`, `*/policy/`) by a test, which fails when this page is stale. A call that is
not here ends the process. `docs/sandbox.md` says how the parts fit together.
";

/// The daemons, and their own policies.
pub fn daemons() -> [(&'static str, &'static str); 3] {
    fn of<P: Program>() -> (&'static str, &'static str) {
        (P::NAME, P::POLICY)
    }
    [
        of::<outboard_blk::config::Options>(),
        of::<outboard_rng::config::Options>(),
        of::<outboard_console::config::Options>(),
    ]
}

fn names(rules: &[Rule]) -> BTreeSet<&'static str> {
    rules.iter().map(|rule| rule.call.name()).collect()
}

fn data_path(own: &'static str) -> Vec<Rule> {
    let [common, keeper] = COMMON;
    parse(&[common, keeper, own], &["data path", "connect"]).unwrap()
}

/// The lines of a part, as a table.
fn table(page: &mut String, text: &'static str, part: &str) {
    writeln!(page, "| call | why |\n|---|---|").unwrap();
    let mut wanted = false;
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[') {
            wanted = head.split(']').next() == Some(part);
        } else if wanted && let Some((rule, why)) = line.split_once(" # ") {
            writeln!(page, "| `{}` | {} |", rule.trim(), why.trim()).unwrap();
        }
    }
}

fn page() -> String {
    let [common, keeper] = COMMON;
    let mut page = HEAD.to_owned();
    page.push_str("\n## Threads that serve queues, by daemon\n\n");
    for (name, own) in daemons() {
        let calls = names(&data_path(own));
        let list = calls.iter().map(|call| format!("`{call}`")).collect::<Vec<_>>().join(" ");
        writeln!(page, "- **{name}**, {} calls: {list}", calls.len()).unwrap();
    }
    for (head, text, part) in [
        ("Every daemon: threads that serve queues", common, "data path"),
        ("Every daemon: besides, all threads of a worker", common, "worker"),
        ("Every daemon: answered with an error from READY on", common, "closed"),
        ("Besides, a daemon without a keeper", keeper, "alone"),
        ("Besides, the keeper, and workers before READY", keeper, "keeper"),
    ] {
        writeln!(page, "\n## {head}\n").unwrap();
        table(&mut page, text, part);
    }
    for (name, own) in daemons() {
        for part in
            ["data path", "worker", "connect"].into_iter().filter(|part| own.contains(&format!("[{part}]")))
        {
            writeln!(page, "\n## {name}, {part}\n").unwrap();
            table(&mut page, own, part);
        }
    }
    for (head, part) in [
        ("Every thread of a running machine", "all"),
        ("vCPUs, besides", "vcpu"),
        ("Threads of devices, besides", "device"),
        ("The other threads, besides", "main"),
    ] {
        writeln!(page, "\n## outboard run: {head}\n").unwrap();
        table(&mut page, outboard::sandbox::POLICY, part);
    }
    page
}

#[test]
fn the_page_is_what_the_policies_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/syscalls.md");
    if std::env::var_os("OUTBOARD_BLESS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stands == page(), "stale: OUTBOARD_BLESS=1 cargo test -p tests --test sandbox document");
}

#[test]
fn who_serves_queues_may_call_little() {
    for (name, own) in daemons() {
        let calls = names(&data_path(own));
        assert!(calls.len() <= MOST, "{name}: {} {calls:?}", calls.len());
    }
}
