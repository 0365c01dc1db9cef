//! How soon a daemon rests after a load.
//!
//! In: the image. Out: milliseconds from the moment the client had its last answer to the last sign of life of any
//! thread of the daemon. CPU time that the kernel has counted lags by a tick; a thread that runs, or that has gone to
//! sleep once more than when it was last looked at, shows at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{DEEP_LOAD, Disk};
use crate::bench::backend::{Backend, pinned, proc};
use crate::bench::load::{self, BACKEND_CPU, CLIENT_CPU, Load};
use crate::explain::explain;
use crate::process::Running;

/// Between two looks: the figure is as exact as this.
const LOOK: Duration = Duration::from_micros(100);
/// A daemon that did nothing for so long rests.
const QUIET: Duration = Duration::from_millis(50);
/// All of it ends within this.
const LIMIT: Duration = Duration::from_secs(30);

const LOAD: Load = Load { requests: 300_000, ..DEEP_LOAD };

/// Loads the daemon and watches it come to rest.
pub(super) fn again_ms(disk: &Disk) -> Result<f64, String> {
    let backend = disk.start(&mut pinned(BACKEND_CPU, disk.programs.join("outboard-blk")))?;
    let mut client = load::client(&disk.programs, &backend, LOAD, Some(CLIENT_CPU));
    client.arg("--stay").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut client = Running::start("blk-client", &mut client).map_err(|error| explain(&error))?;
    let stdout = client.stdout().ok_or("blk-client has no standard output")?;
    let (say, said) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = say.send(line);
    });
    let (ended_us, last_us) = watch(&backend, &said)?;
    Ok(((last_us - ended_us) / 1e3).max(0.0))
}

/// When the load ended and when the daemon last did something, both on the monotonic clock.
fn watch(backend: &Backend, said: &Receiver<String>) -> Result<(f64, f64), String> {
    let (began, mut ended_us) = (Instant::now(), None);
    let (mut signs, mut alive) = (BTreeMap::new(), (Instant::now(), now_us()));
    while ended_us.is_none() || alive.0.elapsed() < QUIET {
        if began.elapsed() > LIMIT {
            return Err(format!("outboard-blk does not rest within {} s", LIMIT.as_secs()));
        }
        let seen = look(backend);
        if seen != signs || seen.values().any(|sign| sign.starts_with('R')) {
            (signs, alive) = (seen, (Instant::now(), now_us()));
        }
        match said.try_recv() {
            Ok(line) => ended_us = Some(load::parse(&line)?.ended_us),
            Err(TryRecvError::Disconnected) if ended_us.is_none() => {
                return Err("blk-client ended".to_owned());
            }
            Err(_) => {}
        }
        thread::sleep(LOOK);
    }
    Ok((ended_us.unwrap_or_default(), alive.1))
}

/// State and context switches of each thread.
fn look(backend: &Backend) -> BTreeMap<String, String> {
    let tasks = |pid| fs::read_dir(proc(pid, "task")).into_iter().flatten().flatten();
    let threads = backend.processes().into_iter().flat_map(tasks);
    let sign = |status: &str| -> String {
        let words = ["State:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        let lines = status.lines().filter_map(|line| line.split_once('\t'));
        lines.filter(|(name, _)| words.contains(name)).map(|(_, value)| value).collect()
    };
    let of = |path: std::path::PathBuf| sign(&fs::read_to_string(path.join("status")).unwrap_or_default());
    threads.map(|thread| (thread.path().display().to_string(), of(thread.path()))).collect()
}

fn now_us() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default()).as_secs_f64()
        * 1e6
}
