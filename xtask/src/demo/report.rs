//! What a boot of the demo showed: written by the boot, wherever it ran, and read by the command that ordered it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One process of the demo.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    /// The program's name.
    pub name: String,
    /// Its process id, on the host it ran on.
    pub pid: u32,
    /// What it served, if it is a daemon.
    pub served: Option<Served>,
}

/// What a daemon says it did, in its last log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Requests completed.
    pub requests: u64,
    /// Bytes moved, both ways.
    pub bytes: u64,
}

impl Served {
    /// From a daemon's log, which has a line with `served requests=N bytes=N`.
    pub fn from_log(log: &str) -> Option<Self> {
        let (_, numbers) = log.rsplit_once("served requests=")?;
        let (requests, rest) = numbers.split_once(" bytes=")?;
        let bytes: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { requests: requests.parse().ok()?, bytes: bytes.parse().ok()? })
    }
}

/// A boot that went well.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// From the start of the VMM to the first line of the guest's init.
    pub init_ms: u64,
    /// From the start of the first daemon to the end of the last.
    pub total_ms: u64,
    /// The VMM, then the daemons.
    pub processes: Vec<Process>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| format!("{}.{:02} s", ms / 1000, ms % 1000 / 10);
        writeln!(f, "{:<18} {:>8} {:>10} {:>12}", "process", "pid", "requests", "bytes")?;
        for process in &self.processes {
            let served = |number: fn(&Served) -> u64| {
                process.served.as_ref().map_or("-".to_owned(), |served| number(served).to_string())
            };
            let (requests, bytes) = (served(|served| served.requests), served(|served| served.bytes));
            writeln!(f, "{:<18} {:>8} {requests:>10} {bytes:>12}", process.name, process.pid)?;
        }
        writeln!(f, "{:<18} {:>8}", "time to init", seconds(self.init_ms))?;
        write!(f, "{:<18} {:>8}", "start to power-off", seconds(self.total_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_count_of_a_log_counts() {
        let log = "served requests=1 bytes=2\n2026-11-20T12:00:00Z  INFO backends: served requests=34 bytes=567 queues=1\nbye\n";
        assert_eq!(Served::from_log(log), Some(Served { requests: 34, bytes: 567 }));
        assert_eq!(Served::from_log("listening\n"), None);
    }
}
