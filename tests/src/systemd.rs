//! A real systemd: process 1 in namespaces of its own, with the units that it is given and nothing else of this host's.
//!
//! In: unit files and programs. Out: `systemctl`, the journal, and the paths and processes as this host sees them. It
//! needs root, control groups of version 2 and overlay file systems; [`System::obstacle`] says what is missing. It sees
//! this host's files but not its devices, network or other processes, and changes nothing of it; with the [`System`] all
//! of its processes end.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::daemon::{binary, process};
use crate::wait;

/// Where it lies on Debian.
const SYSTEMD: &str = "/lib/systemd/systemd";
/// What the namespaces are made of.
const SCRIPTS: [(&str, &str); 2] =
    [("boot.sh", include_str!("systemd/boot.sh")), ("init.sh", include_str!("systemd/init.sh"))];

/// It, from its start to its end.
#[derive(Debug)]
pub struct System {
    dir: TempDir,
    child: Child,
    /// Process 1, as this host numbers it.
    init: u32,
    /// Its branch of the control groups.
    cgroup: String,
}

impl System {
    /// Why none can run here, if so.
    pub fn obstacle() -> Option<String> {
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let missing = |name: &&str| !filesystems.lines().any(|line| line.ends_with(*name));
        if !rustix::process::geteuid().is_root() {
            return Some("namespaces for systemd need root".to_owned());
        }
        let mut unshare = Command::new("unshare");
        let unshare =
            unshare.args(["--mount", "--cgroup", "--pid", "--net", "--fork", "true"]).stderr(Stdio::null());
        if !unshare.status().is_ok_and(|status| status.success()) {
            return Some("namespaces are refused here".to_owned());
        }
        if !Path::new(SYSTEMD).exists() {
            return Some(format!("there is no {SYSTEMD}"));
        }
        ["cgroup2", "overlay"].into_iter().find(missing).map(|name| format!("the kernel has no {name}"))
    }

    /// Starts it with all units of this directory, and with these programs of ours in /usr/bin.
    ///
    /// # Panics
    /// It is not up within the deadline.
    pub fn boot(units: &Path, programs: &[&str]) -> System {
        let dir = tempfile::Builder::new().prefix("outboard-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("temporary directory: {e}"));
        fill(dir.path(), units, programs).unwrap_or_else(|e| panic!("{}: {e}", dir.path().display()));
        let ready = UnixDatagram::bind(dir.path().join("ready")).unwrap_or_else(|e| panic!("ready: {e}"));
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let said = fs::File::create(dir.path().join("said")).unwrap_or_else(|e| panic!("said: {e}"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "sh"]);
        command.arg(dir.path().join("boot.sh")).arg(dir.path()).arg(&name);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let child = command.spawn().unwrap_or_else(|e| panic!("start setpriv: {e}"));
        let mut system = System { dir, child, init: 0, cgroup: name };
        system.await_ready(&ready);
        system
    }

    /// It says when all of its first units are up.
    fn await_ready(&mut self, ready: &UnixDatagram) {
        let until = wait::deadline();
        let mut text = [0; 4096];
        loop {
            let said = || fs::read_to_string(self.dir.path().join("said")).unwrap_or_default();
            assert!(wait::one_readable(ready, until), "systemd is not up; said on the way: {}", said());
            let length = ready.recv(&mut text).unwrap_or_else(|e| panic!("ready: {e}"));
            let message = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
            if message.lines().any(|line| line == "READY=1") {
                break;
            }
        }
        let parent = self.child.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        self.init = children.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
        assert_ne!(self.init, 0, "systemd is gone");
    }

    /// Where this host finds its file at `path`.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Writes a file of its, and the directories above.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let at = self.path(path);
        let made = at.parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| fs::write(&at, text)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Runs a command in it, to its end.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "30", "nsenter", "--all", "--target"]);
        command.arg(self.init.to_string()).args(words).stdin(Stdio::null());
        command.output().unwrap_or_else(|e| panic!("start timeout: {e}"))
    }

    /// What a command in it prints.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}; {}", self.journal());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A property of a unit.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.said(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// What its units said.
    pub fn journal(&self) -> String {
        let journal = self.run(&["journalctl", "--no-pager", "--quiet", "--output=cat"]);
        String::from_utf8_lossy(&journal.stdout).into_owned()
    }

    /// A line of /proc/PID/status of its process, less the name.
    pub fn status(&self, pid: &str, name: &str) -> String {
        let status = fs::read_to_string(self.path(&format!("/proc/{pid}/status"))).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Processes whose parent this one is.
    pub fn children(&self, pid: &str) -> Vec<String> {
        let path = self.path(&format!("/proc/{pid}/task/{pid}/children"));
        fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    }

    /// Kills this process (SIGKILL), and returns when it and its children, which end with it, are gone.
    ///
    /// # Panics
    /// They are not within the deadline.
    pub fn kill(&self, pid: &str) {
        let family = [self.children(pid), vec![pid.to_owned()]].concat();
        self.said(&["kill", "-9", pid]);
        let until = wait::deadline();
        while family.iter().any(|pid| self.path(&format!("/proc/{pid}/status")).exists()) {
            assert!(Instant::now() < until, "{family:?} do not end");
            std::thread::yield_now();
        }
    }

    /// Removes the branch of the control groups, as soon as the last process in it is gone.
    fn remove_cgroup(&self) {
        const REMOVE: &str =
            r#"mount -t cgroup2 cgroup2 "$1" && cd "$1" && find "$2" -depth -type d -exec rmdir {} +"#;
        let until = wait::deadline();
        loop {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", REMOVE, "sh"])
                .arg(self.dir.path().join("bin"))
                .arg(&self.cgroup);
            let removed = command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
            if removed || Instant::now() > until {
                return;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        process::kill(self.init);
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.remove_cgroup();
    }
}

/// Scripts, units and programs, where the scripts expect them.
fn fill(dir: &Path, units: &Path, programs: &[&str]) -> std::io::Result<()> {
    for (name, text) in SCRIPTS {
        fs::write(dir.join(name), text)?;
    }
    let [bin, own_units] = ["bin", "units"].map(|name| dir.join(name));
    fs::create_dir(&bin)?;
    fs::create_dir(&own_units)?;
    for unit in fs::read_dir(units)? {
        let unit = unit?;
        fs::copy(unit.path(), own_units.join(unit.file_name()))?;
    }
    for program in programs {
        fs::copy(binary(program), bin.join(program))?;
    }
    Ok(())
}
