//! What a graph of translators costs: one that passes everything on, eight of them, a cipher, and allocations.
//!
//! The first and the third come from the bench of the block device's crate, which drives layers in one thread; the cipher's
//! peer is `openssl speed`, in CPU time as well. Eight translators are measured as shipped: the daemon with a graph less
//! the daemon with an image, under the same client. Allocations are counted by the test that forbids them.

use std::fmt::Write as _;
use std::fs::{self, File};

use serde::Deserialize;

use super::{DEEP_LOAD, Disk};
use crate::bench::backend::pinned;
use crate::bench::load::{self, BACKEND_CPU, CLIENT_CPU};
use crate::bench::row::Round;
use crate::cargo;
use crate::explain::explain;
use crate::process::output;

/// Translators that a read passes, each with something to do for it.
const EIGHT: [&str; 8] = [
    "features/offset",
    "features/map",
    "debug/io-stats",
    "debug/trace",
    "features/throttle",
    "features/offset",
    "features/map",
    "debug/io-stats",
];
/// What does not hold anything back.
const FAST: &str = "    option ops 1000000000\n";

/// One round of the crate's bench.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Figures {
    hop_ns: f64,
    crypt_mbps: f64,
}

/// What a translator adds, and what a cipher carries against openssl.
pub(super) fn layers(disk: &Disk) -> Result<[Round; 2], String> {
    let figures = bench(disk)?;
    let peer = openssl_mbps()?;
    eprintln!(
        "bench: a hop {:.1} ns; features/crypt {:.0} MB/s, openssl {peer:.0}",
        figures.hop_ns, figures.crypt_mbps
    );
    Ok([Round::alone(figures.hop_ns), Round { peer: Some(peer), ..Round::alone(figures.crypt_mbps) }])
}

fn bench(disk: &Disk) -> Result<Figures, String> {
    let said = disk.scratch.join("graph-bench");
    let mut bench = cargo::cargo();
    bench.args(["bench", "--quiet", "--package", "outboard-blk", "--bench", "graph", "--", "1"]);
    bench.stdout(File::create(&said).map_err(|error| error.to_string())?);
    cargo::run("cargo bench", &mut bench).map_err(|error| explain(&error))?;
    let said = fs::read_to_string(&said).map_err(|error| error.to_string())?;
    let figures = said.lines().find_map(|line| serde_json::from_str(line).ok());
    figures.ok_or_else(|| format!("the bench of outboard-blk gave no figures: {said}"))
}

/// Of 4 KiB blocks, in a second of its CPU time.
fn openssl_mbps() -> Result<f64, String> {
    let mut speed = pinned(BACKEND_CPU, "openssl");
    speed.args(["speed", "-mr", "-seconds", "1", "-bytes", "4096", "-evp", "aes-256-xts"]);
    let said = output(&mut speed).map_err(|error| explain(&error))?;
    openssl_figure(&said).ok_or_else(|| format!("openssl speed gave no figure: {said}"))
}

/// `+F:NUMBER:NAME:BYTES A SECOND`
fn openssl_figure(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.starts_with("+F:"))?;
    Some(line.rsplit(':').next()?.parse::<f64>().ok()? / 1e6)
}

/// What eight translators add to the CPU time of a request.
pub(super) fn eight_us(disk: &Disk) -> Result<[Round; 1], String> {
    let alone = disk.ours(DEEP_LOAD, &[])?;
    let file = disk.scratch.join("eight.vol");
    fs::write(&file, eight(disk)).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let mut program = pinned(BACKEND_CPU, disk.programs.join("outboard-blk"));
    let backend = disk.begin(program.arg("--graph").arg(&file))?;
    let deep = load::measure(&disk.programs, &backend, DEEP_LOAD, Some(CLIENT_CPU))?;
    let added = deep.backend_cpu_us - alone.backend_cpu_us;
    Ok([Round { cpu_us_ours: Some(deep.backend_cpu_us), ..Round::alone(added) }])
}

/// The graph as an operator writes it.
fn eight(disk: &Disk) -> String {
    let path = disk.image.display();
    let mut text = format!("volume v0\n    type storage/file\n    option path {path}\nend-volume\n");
    for (below, kind) in EIGHT.iter().enumerate() {
        let option = if *kind == "features/throttle" { FAST } else { "" };
        let _ = write!(
            text,
            "volume v{}\n    type {kind}\n{option}    subvolumes v{below}\nend-volume\n",
            below + 1
        );
    }
    text
}

/// Allocations a request over several layers, once all buffers are there.
pub(super) fn allocations() -> Result<[Round; 1], String> {
    let mut test = cargo::cargo();
    test.args(["test", "--quiet", "--package", "tests", "--test", "allocations", "--", "--nocapture"]);
    let said = output(&mut test).map_err(|error| explain(&error))?;
    let figure = allocations_figure(&said);
    figure
        .map(|figure| [Round::alone(figure)])
        .ok_or_else(|| format!("the test of allocations gave no figure: {said}"))
}

/// `graph: ALLOCATIONS in REQUESTS requests`, the worst of several.
fn allocations_figure(said: &str) -> Option<f64> {
    let words = said.lines().filter_map(|line| line.strip_prefix("graph: ")?.split_once(" in "));
    let figure = |(allocations, rest): (&str, &str)| {
        let requests: f64 = rest.strip_suffix(" requests")?.parse().ok()?;
        Some(allocations.parse::<f64>().ok()? / requests)
    };
    words.filter_map(figure).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_tells_bytes_a_second() {
        let said = "+DT:AES-256-XTS:1:4096\n+R:453250:AES-256-XTS:0.22\n+F:25:AES-256-XTS:8438690909.09\n";
        assert!(openssl_figure(said).is_some_and(|mbps| (mbps - 8438.69).abs() < 0.01));
        assert_eq!(openssl_figure("no such cipher"), None);
    }

    #[test]
    fn the_worst_of_all_counts_is_told() {
        let said = "running 1 test\ngraph: 0 in 4800 requests\ngraph: 48 in 4800 requests\n";
        assert_eq!(allocations_figure(said), Some(0.01));
        assert_eq!(allocations_figure(""), None);
    }
}
