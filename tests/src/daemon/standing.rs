//! Where a process stands when nothing goes on, for the words of a test that gives up.
//!
//! In: a process. Out: for it and each process it started, a line of what it is, and one for each of its threads with the
//! state that the scheduler has it in, the system call it is in, and the kernel's stack under it where this user may
//! see that. Nothing here fails: what cannot be read is left out.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Lines of a kernel stack that tell where a thread waits.
const STACK_LINES: usize = 12;

/// Where `pid` and all that it started stand.
pub fn of(pid: u32) -> String {
    let mut said = String::new();
    tell(pid, &mut said);
    said
}

fn tell(pid: u32, said: &mut String) {
    let at = format!("/proc/{pid}");
    let _ = writeln!(said, "process {pid}: {}", text(&Path::new(&at).join("cmdline")).replace('\0', " "));
    let threads = fs::read_dir(format!("{at}/task")).into_iter().flatten().flatten();
    let mut children = Vec::new();
    for thread in threads.map(|thread| thread.path()) {
        let _ = writeln!(said, "  {}", line(&thread));
        let started = text(&thread.join("children"));
        children.extend(started.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    children.into_iter().for_each(|child| tell(child, said));
}

fn line(thread: &Path) -> String {
    let status = text(&thread.join("status"));
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let stack: Vec<_> = text(&thread.join("stack"))
        .lines()
        .take(STACK_LINES)
        .map(|line| line.split_whitespace().last().unwrap_or_default().to_owned())
        .collect();
    let [name, state, call] = [field("Name:"), field("State:"), text(&thread.join("syscall"))];
    format!("{name}: {state}; system call {}; {}", call.trim(), stack.join(" < "))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_and_every_child_is_told() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (began, begin) = std::sync::mpsc::channel();
        let (end, over) = std::sync::mpsc::channel::<()>();
        let other = std::thread::Builder::new().name("other".into()).spawn(move || {
            began.send(()).unwrap();
            let _ = over.recv();
        });
        begin.recv().unwrap();
        let said = of(std::process::id());
        drop(end);
        other.unwrap().join().unwrap();
        child.kill().and_then(|()| child.wait()).unwrap();
        assert!(said.contains("other: ") && said.contains(&format!("process {}: ", child.id())), "{said}");
    }
}
