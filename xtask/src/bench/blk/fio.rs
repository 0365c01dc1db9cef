//! fio as a peer: the same reads of the same image, by a program that has nobody to serve.
//!
//! It submits and reaps in batches, as a back-end does that finds a batch in its ring: one by one it is slower.

use std::path::Path;

use serde::Deserialize;

use crate::bench::backend::pinned;
use crate::bench::load::{BACKEND_CPU, Figures};
use crate::bench::row::Round;
use crate::explain::explain;
use crate::process::output;

/// What it is to do.
pub(super) struct Job {
    /// Of the whole run, which may go over the image several times.
    bytes: u64,
    options: &'static [&'static str],
}

impl Job {
    pub(super) fn direct(requests: u32) -> Job {
        Job {
            bytes: u64::from(requests) * 4096,
            options: &["--rw=randread", "--norandommap", "--bs=4k", "--direct=1"],
        }
    }

    pub(super) fn sequential(requests: u32) -> Job {
        Job { bytes: u64::from(requests) * 65_536, options: &["--rw=read", "--bs=64k"] }
    }
}

/// Its buffers are shared memory, as guest memory is.
const COMMON: [&str; 10] = [
    "--name=bench",
    "--ioengine=io_uring",
    "--iodepth=32",
    "--iodepth_batch_submit=16",
    "--iodepth_batch_complete_min=1",
    "--iodepth_batch_complete_max=32",
    "--invalidate=0",
    "--mem=mmapshared",
    "--thread",
    "--output-format=json",
];

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Read {
    pub iops: f64,
    cpu_us: f64,
}

impl Read {
    /// A round of ours against this.
    pub(super) fn against(&self, figures: Figures, ours: f64, peer: f64) -> Round {
        Round {
            ours,
            peer: Some(peer),
            cpu_us_ours: Some(figures.backend_cpu_us),
            cpu_us_peer: Some(self.cpu_us),
        }
    }
}

/// Reads `image`, on the CPU of back-ends.
pub(super) fn run(image: &Path, job: &Job) -> Result<Read, String> {
    let mut fio = pinned(BACKEND_CPU, "fio");
    fio.args(COMMON).args(job.options).arg(format!("--io_size={}", job.bytes));
    let said = output(fio.arg(format!("--filename={}", image.display()))).map_err(|error| explain(&error))?;
    let read = parse(&said)?;
    eprintln!(
        "bench: fio {}: {:.0} kIOPS; CPU {:.3} us",
        job.options.join(" "),
        read.iops / 1e3,
        read.cpu_us
    );
    Ok(read)
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Figure>,
}

/// Percentages are of `job_runtime`, in milliseconds.
#[derive(Deserialize)]
struct Figure {
    usr_cpu: f64,
    sys_cpu: f64,
    job_runtime: f64,
    read: Reads,
}

#[derive(Deserialize)]
struct Reads {
    iops: f64,
    total_ios: f64,
}

fn parse(said: &str) -> Result<Read, String> {
    let output: Output = serde_json::from_str(said).map_err(|error| format!("fio said {said:?}: {error}"))?;
    let figure = output.jobs.first().ok_or("fio ran no job")?;
    let cpu_ms = (figure.usr_cpu + figure.sys_cpu) / 100.0 * figure.job_runtime;
    Ok(Read { iops: figure.read.iops, cpu_us: cpu_ms * 1e3 / figure.read.total_ios })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_a_part_of_the_run() {
        let said = r#"{"jobs":[{"usr_cpu":25.0,"sys_cpu":50.0,"job_runtime":200,
            "read":{"iops":1000.0,"total_ios":300,"runtime":190}}]}"#;
        assert_eq!(parse(said).unwrap(), Read { iops: 1000.0, cpu_us: 500.0 });
        assert!(parse("fio: no such file").unwrap_err().contains("no such file"));
    }
}
