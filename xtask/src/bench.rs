//! `cargo xtask bench`: rows of figures, ours against a peer's, measured in turn in one run.
//!
//! In: names of rows, or of suites of them. Out: a table for people, or with `--json` one array of [`Row`]s on standard
//! output. A row that cannot be measured stands there too, with its reason, and counts as missed.

mod backend;
mod blk;
mod engine;
mod load;
mod null;
mod restart;
mod row;

use std::path::Path;

use row::Claim;
pub use row::Row;

use crate::workspace;

/// Rows that are measured together.
trait Suite {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// The rows it has, measured or not.
    fn claims(&self) -> Vec<Claim>;
    /// Measures all of them in `rounds` interleaved rounds; `scratch` takes its files. The error is why none was.
    fn run(&self, rounds: usize, scratch: &Path) -> Result<Vec<Row>, String>;
}

const SUITES: [&dyn Suite; 4] = [&engine::Engine, &null::Null, &restart::Restart, &blk::Blk];

/// Why there are no rows at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such row.
    #[error("There is no row or suite {name:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No place for files.
    #[error("Cannot make a temporary directory")]
    Scratch(#[from] std::io::Error),
}

/// Measures the rows of these names, all rows without any. Whether all of them hold.
pub fn run(names: &[String], rounds: usize, json: bool) -> Result<bool, Error> {
    check(names)?;
    let scratch = workspace::scratch()?;
    let mut rows = Vec::new();
    for suite in SUITES {
        let claims = suite.claims();
        let wanted = |name: &str| {
            names.is_empty() || names.iter().any(|wanted| wanted == suite.name() || wanted == name)
        };
        if claims.iter().any(|claim| wanted(claim.name)) {
            eprintln!("bench: {} ({rounds} rounds)", suite.name());
            let measured = suite.run(rounds, scratch.path());
            let measured = measured
                .unwrap_or_else(|reason| claims.iter().map(|claim| Row::missing(claim, &reason)).collect());
            rows.extend(measured.into_iter().filter(|row| wanted(&row.name)));
        }
    }
    print(&rows, json);
    Ok(rows.iter().all(Row::holds))
}

fn check(names: &[String]) -> Result<(), Error> {
    let known: Vec<&str> = SUITES
        .iter()
        .flat_map(|suite| {
            [suite.name()].into_iter().chain(suite.claims().into_iter().map(|claim| claim.name))
        })
        .collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Error::Unknown { name: name.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

fn print(rows: &[Row], json: bool) {
    if json {
        println!("{}", serde_json::json!(rows));
        return;
    }
    println!("{}", row::HEAD);
    for row in rows {
        println!("{row}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_what_there_is() {
        let error = run(&["engin".to_owned()], 1, true).unwrap_err().to_string();
        assert!(error.contains("\"engin\"") && error.contains("engine, engine.uring"), "{error}");
    }
}
