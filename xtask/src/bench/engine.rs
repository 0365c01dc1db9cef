//! What the engine of `backends` costs, against a bare io_uring loop: its own bench, whose rounds are interleaved.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::Suite;
use super::row::{Better, Claim, Round, Row};
use crate::cargo;
use crate::explain::explain;

/// The bare loop that all variants are compared with.
const PEER: &str = "raw";

/// The variant of each row in the bench's output, and the row. A library in the engine's place costs 10 to 12 %
/// (docs/decisions/0001): that is the floor.
const ROWS: [(&str, Claim); 3] = [
    (
        "uring",
        claim("engine.uring", 0.97, 0.88, "our engine / bare io_uring loop; 4 KiB cached reads, depth 128"),
    ),
    (
        "async",
        claim("engine.async", 0.97, 0.88, "its tasks / bare io_uring loop; 4 KiB cached reads, depth 128"),
    ),
    (
        "epoll",
        claim("engine.epoll", 0.90, 0.70, "the fallback / bare io_uring loop; 4 KiB cached reads, depth 128"),
    ),
];

const fn claim(name: &'static str, target: f64, floor: f64, note: &'static str) -> Claim {
    Claim { name, unit: "kIOPS", better: Better::Higher, target, floor, note }
}

/// The suite.
#[derive(Debug)]
pub struct Engine;

impl Suite for Engine {
    fn name(&self) -> &'static str {
        "engine"
    }

    fn claims(&self) -> Vec<Claim> {
        ROWS.iter().map(|(_, claim)| *claim).collect()
    }

    fn run(&self, rounds: usize, scratch: &Path) -> Result<Vec<Row>, String> {
        let output = measure(rounds, &scratch.join("engine")).map_err(|error| explain(&error))?;
        let figures: Vec<Figure> =
            output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(ROWS.iter().map(|(variant, claim)| row(variant, claim, &figures)).collect())
    }
}

/// One line of the bench's output.
#[derive(Debug, Deserialize)]
struct Figure {
    variant: String,
    round: usize,
    kiops: f64,
    cpu_us: f64,
}

fn measure(rounds: usize, output: &Path) -> Result<String, cargo::Error> {
    let mut bench = cargo::cargo();
    bench.args(["bench", "--quiet", "--package", "backends", "--bench", "engine", "--", &rounds.to_string()]);
    bench.stdout(File::create(output)?);
    cargo::run("cargo bench", &mut bench)?;
    fs::read_to_string(output).map_err(|error: io::Error| error.into())
}

fn row(variant: &str, claim: &Claim, figures: &[Figure]) -> Row {
    let of = |variant: &str, round: usize| {
        figures.iter().find(|figure| figure.variant == variant && figure.round == round)
    };
    let pair = |round: usize| {
        let (ours, peer) = (of(variant, round)?, of(PEER, round)?);
        Some(Round {
            ours: ours.kiops,
            peer: Some(peer.kiops),
            cpu_us_ours: Some(ours.cpu_us),
            cpu_us_peer: Some(peer.cpu_us),
        })
    };
    let rounds: Vec<Round> = (0..).map_while(pair).collect();
    if rounds.is_empty() {
        return Row::missing(claim, "the bench gave no figures of it");
    }
    Row::measured(claim, &rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_paired_with_the_bare_loop_of_the_same_round() {
        let figure =
            |variant: &str, round, kiops| Figure { variant: variant.to_owned(), round, kiops, cpu_us: 1.0 };
        let figures = [
            figure("raw", 0, 100.0),
            figure("uring", 0, 90.0),
            figure("uring", 1, 95.0),
            figure("raw", 1, 100.0),
        ];
        let row_of = |(variant, claim): &(&str, Claim)| row(variant, claim, &figures);
        assert_eq!(row_of(&ROWS[0]).rounds, 2);
        assert!(row_of(&ROWS[0]).holds());
        assert!(ROWS.iter().skip(1).all(|other| row_of(other).ratio.is_none()));
    }
}
