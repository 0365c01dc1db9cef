//! What strace(1) saw of a daemon: each call, by whom, and under which part of the policy.
//!
//! Which part confines a thread is read from the trace itself: a process is the `keeper` (or a worker that begins) once
//! Landlock and its filters stand, and confined as a `worker` once they do for the second time; its threads named
//! `worker-N` that took one more filter are the `data path`. A daemon without a keeper is `alone` after the first time.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use backends::sandbox::policy::Rule;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tests::daemon::Launch;

const CLONE_THREAD: u64 = 0x10000;

/// One call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// What confines it; nothing yet: empty.
    pub part: &'static str,
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    pub name: String,
    pub args: Vec<u64>,
    /// Nothing, if it never returned.
    pub result: String,
}

impl Call {
    /// `12<worker-0> read(0x5, 0x7f0000000000, 0x8) = 0x8`, which may be cut after its arguments.
    fn parse(line: &str) -> Option<Call> {
        let (tid, rest) = line.split_once('<')?;
        let (_, rest) = rest.split_once("> ")?;
        let (name, rest) = rest.trim_start().split_once('(')?;
        let (args, result) = rest.split_once([')', '<'])?;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name.chars().all(word).then(|| Call {
            tid: tid.parse().unwrap(),

            name: name.into(),
            args: args.split(", ").map_while(|arg| number(arg.trim())).collect(),
            result: result.split_once("= ").map_or_else(String::new, |(_, result)| result.into()),
            ..Call::default()
        })
    }

    /// Whether this rule is about it. `SELF` is the process that calls, not this one.
    pub fn matches(&self, rule: &Rule) -> bool {
        let mut own = rule.clone();
        for condition in own.conditions.iter_mut().filter(|condition| condition.value == std::process::id()) {
            condition.value = self.pid;
        }
        own.call.name() == self.name && own.conditions.iter().all(|condition| condition.holds(&self.args))
    }

    /// It opened a file.
    pub fn opened(&self) -> bool {
        let opens = ["open", "openat", "openat2", "creat"].contains(&&*self.name);
        opens && number(self.result.trim()).is_some()
    }
}

fn number(text: &str) -> Option<u64> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
}

/// The end of a call that was cut: `12<name> <... read resumed>) = 0x8`; by whom, and the result.
fn resumed(line: &str) -> Option<(u32, &str)> {
    let (tid, rest) = line.split_once('<')?;
    let (_, rest) = rest.split_once("> <... ")?;
    Some((tid.parse().ok()?, rest.split_once(")")?.1.trim_start().strip_prefix("= ")?))
}

/// Parts that a process takes on one after the other, and how many filters each is: one for each answer, and the list.
const WITH_KEEPER: &[(&str, u32)] = &[("keeper", 2), ("worker", 3)];
const ALONE: &[(&str, u32)] = &[("alone", 3)];

/// What is known of a thread while its calls go by.
#[derive(Clone, Copy, Default)]
struct Task {
    pid: u32,
    /// How often Landlock took something away from it, or from who started it.
    restricted: usize,
    /// Filters since then.
    filters: u32,
}

impl Task {
    fn part(self, parts: &[(&'static str, u32)]) -> &'static str {
        let at = |restricted: usize| restricted.checked_sub(1).map_or(("", 0), |at| parts[at]);
        match at(self.restricted) {
            ("", _) => "",
            (_, filters) if self.filters < filters => at(self.restricted - 1).0,
            (name, filters) if self.filters == filters => name,
            _ => "data path",
        }
    }

    fn after(&mut self, call: &Call) {
        match &*call.name {
            "landlock_restrict_self" => (self.restricted, self.filters) = (self.restricted + 1, 0),
            "seccomp" if call.args.first() == Some(&1) => self.filters += 1,
            _ => {}
        }
    }
}

/// The calls of a trace in their order.
pub fn calls(text: &str, alone: bool) -> Vec<Call> {
    let parts = if alone { ALONE } else { WITH_KEEPER };
    let mut calls: Vec<Call> = Vec::new();
    let mut cut = BTreeMap::new();
    for line in text.lines() {
        if let Some((tid, result)) = resumed(line) {
            if let Some(call) = cut.remove(&tid).and_then(|at: usize| calls.get_mut(at)) {
                result.clone_into(&mut call.result);
            }
        } else if let Some(call) = Call::parse(line) {
            cut.insert(call.tid, calls.len());
            calls.push(call);
        }
    }
    let mut tasks: BTreeMap<u32, Task> = BTreeMap::new();
    for call in &mut calls {
        let task = tasks.entry(call.tid).or_insert(Task { pid: call.tid, ..Task::default() });
        (call.part, call.pid) = (task.part(parts), task.pid);
        task.after(call);
        if matches!(&*call.name, "clone" | "clone3" | "fork" | "vfork")
            && let Some(child) = number(call.result.trim()).and_then(|tid| u32::try_from(tid).ok())
        {
            let thread =
                call.name == "clone" && call.args.first().is_some_and(|flags| flags & CLONE_THREAD != 0);
            let pid = if thread { task.pid } else { child };
            let born = Task { pid, ..*task };
            tasks.insert(child, born);
        }
    }
    calls
}

/// The daemon under strace, and its trace once all of it has ended.
pub fn traced(launch: Launch) -> (Launch, JoinHandle<String>) {
    xtask::packages::ensure_strace().unwrap();
    let pipe = launch.dir().join("trace");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let path = pipe.display().to_string();
    // Its end is seen when strace closes it, after the last process that it watches.
    let reader = std::thread::spawn(move || std::fs::read_to_string(pipe).unwrap());
    (launch.by(["strace", "-D", "-q", "-f", "-Y", "-e", "raw=all", "-o", &path]), reader)
}
