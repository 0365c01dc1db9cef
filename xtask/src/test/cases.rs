//! `cargo xtask test --cases`: the cases of the threat model, and the tests that show what comes of them.
//!
//! In: `tests/cases.toml`, the daemons that there are, and the tests whose names begin with a case's id, run.
//! Out: rows case x daemon x ring x result, one for each combination that applies and for each that is tested.
//! A case that applies and has no test is `missing`, which is a failure; one that does not apply yet is `later`,
//! with its reason. The daemon and the kind of ring are read from a test's path (`rng::packed::g03_...`), the
//! daemon else from the name of its binary. The VMM counts as one, for the cases that name it.

mod list;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::case::{Case, Verdict};
use list::{CaseList, Listed, RINGS};

/// Folders of daemons, and how tests call them.
const DAEMONS: [(&str, &str); 6] = [
    ("balloon", "balloon"),
    ("blk", "blk"),
    ("console", "console"),
    ("net-overlay", "net"),
    ("rng", "rng"),
    ("vmm", VMM),
];
/// The VMM, and its binary.
const VMM: &str = "vmm";
const VMM_BINARY: &str = "outboard";
/// Who is tested where no daemon is named.
const LIBRARY: &str = "backends";
/// Which tests nextest is to run: those whose own name begins with an id.
pub const FILTER: &str = r"test(/(^|::)(gp[0-9]|[a-z][0-9]{2})_/)";

/// What came of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every test of it passed.
    Ok,
    /// One of them failed.
    Failed,
    /// It applies, and there is none.
    Missing,
    /// It does not apply yet.
    Later,
}

/// A case on one kind of ring of one daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    case: String,
    daemon: String,
    /// `split`, `packed`, or `-` where the kind does not matter.
    ring: String,
    result: Outcome,
    tests: usize,
    /// What is done and expected; of a case that does not apply yet, why.
    note: String,
}

/// Case, daemon, ring.
type Key = (String, String, String);

/// All rows.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
    /// Tests whose id no case has.
    unknown: Vec<String>,
}

impl Table {
    /// From `tests/cases.toml` under `root`, and what the tests came to.
    ///
    /// # Errors
    /// The list cannot be read or makes no sense.
    pub fn new(root: &Path, tests: &[Case]) -> Result<Self, String> {
        let file = root.join("tests/cases.toml");
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let list = CaseList::parse(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self::join(&list, &daemons(root), tests))
    }

    fn join(list: &CaseList, daemons: &[&str], tests: &[Case]) -> Self {
        let (mut results, mut unknown) = (BTreeMap::<Key, (usize, bool)>::new(), Vec::new());
        for test in tests {
            for key in keys(&test.id) {
                if !list.has(&key.0) {
                    unknown.push(test.id.clone());
                    continue;
                }
                let (count, good) = results.entry(key).or_insert((0, true));
                *count += 1;
                *good &= test.verdict == Verdict::Passed;
            }
        }
        let mut rows = Vec::new();
        for case in list.iter() {
            rows.extend(rows_of(case, daemons, &mut results));
        }
        Self { rows, unknown }
    }

    /// Whether no test failed and none is missing.
    pub fn ok(&self) -> bool {
        self.unknown.is_empty() && self.count(Outcome::Failed) + self.count(Outcome::Missing) == 0
    }

    /// The rows as one JSON array.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.rows).unwrap_or_default()
    }

    /// The line that ends every test run.
    pub fn summary(&self) -> String {
        let failed = self.count(Outcome::Failed) + self.count(Outcome::Missing) + self.unknown.len();
        let (passed, later) = (self.count(Outcome::Ok), self.count(Outcome::Later));
        format!("{passed} passed, {failed} failed, {later} skipped")
    }

    /// What is wrong, one line each.
    pub fn complaints(&self) -> Vec<String> {
        let wrong = |row: &&Row| matches!(row.result, Outcome::Failed | Outcome::Missing);
        let missing = self.rows.iter().filter(wrong).map(|row| {
            let what = if row.result == Outcome::Failed { "a test failed" } else { "no test" };
            format!("{} {} {}: {what}: {}", row.case, row.daemon, row.ring, row.note)
        });
        let unknown = self.unknown.iter().map(|id| format!("{id}: tests/cases.toml has no case of that id"));
        missing.chain(unknown).collect()
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.result == outcome).count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<5} {:<9} {:<7} {:<8} {:>5}  case", "id", "daemon", "ring", "result", "tests")?;
        for Row { case, daemon, ring, result, tests, note } in &self.rows {
            let result = format!("{result:?}").to_lowercase();
            writeln!(f, "{case:<5} {daemon:<9} {ring:<7} {result:<8} {tests:>5}  {note}")?;
        }
        Ok(())
    }
}

/// The daemons that there are.
fn daemons(root: &Path) -> Vec<&'static str> {
    let built = |(folder, _): &(&str, &str)| root.join(folder).join("src/main.rs").exists();
    DAEMONS.into_iter().filter(built).map(|(_, name)| name).collect()
}

/// What must be there, then what is there besides.
fn rows_of(case: &Listed, daemons: &[&str], results: &mut BTreeMap<Key, (usize, bool)>) -> Vec<Row> {
    let row = |daemon: &str, ring: &str, result, tests| Row {
        case: case.id.clone(),
        daemon: daemon.to_owned(),
        ring: ring.to_owned(),
        result,
        tests,
        note: case.later.as_ref().map_or_else(|| case.what.clone(), |why| format!("later: {why}")),
    };
    let mut rows = Vec::new();
    for daemon in daemons.iter().filter(|daemon| case.applies_to(daemon)) {
        let tested = RINGS.iter().any(|ring| results.contains_key(&case.key(daemon, ring)));
        for ring in case.rings() {
            match results.contains_key(&case.key(daemon, ring)) || (ring == "-" && tested) {
                true => {}
                false if case.later.is_some() => rows.push(row(daemon, ring, Outcome::Later, 0)),
                false => rows.push(row(daemon, ring, Outcome::Missing, 0)),
            }
        }
    }
    let mine: Vec<Key> = results.keys().filter(|key| key.0 == case.id).cloned().collect();
    for key in mine {
        if let Some((tests, good)) = results.remove(&key) {
            rows.push(row(&key.1, &key.2, if good { Outcome::Ok } else { Outcome::Failed }, tests));
        }
    }
    rows.sort_by(|a, b| (&a.daemon, &a.ring).cmp(&(&b.daemon, &b.ring)));
    rows
}

/// The cases that a test shows: its name begins with their ids (`f07_f14_a_running_ring_...`).
fn keys(test: &str) -> Vec<Key> {
    let (binary, path) = test.split_once('$').or_else(|| test.split_once("::")).unwrap_or(("", test));
    let segments: Vec<&str> = path.split("::").collect();
    let names = DAEMONS.map(|(_, name)| name);
    let of_binary = binary.split(|c: char| !c.is_ascii_alphanumeric());
    let of_binary = of_binary.map(|word| if word == VMM_BINARY { VMM } else { word });
    let daemon = segments.iter().copied().chain(of_binary).find(|word| names.contains(word));
    let ring = segments.iter().find(|segment| RINGS.contains(segment)).copied();
    let ids = segments.last().into_iter().flat_map(|name| name.split('_')).map_while(id);
    let key = |id| (id, daemon.unwrap_or(LIBRARY).to_owned(), ring.unwrap_or("-").to_owned());
    ids.map(key).collect()
}

/// An id as cases have it, from a word of a test's name.
fn id(word: &str) -> Option<String> {
    let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let letters = word.len() - digits.len();
    let number = digits.chars().all(|c| c.is_ascii_digit());
    // `g03`, and `gp1`, whose numbers are short.
    ((1..=2).contains(&letters) && number && word.len() == 3).then(|| word.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"
        [[case]]
        id = "G03"
        what = "loops"
        rings = ["split", "packed"]
        [[case]]
        id = "B01"
        what = "short"
        daemons = ["blk"]
        [[case]]
        id = "F17"
        what = "inflight"
        later = "not yet"
    "#;

    fn table(tests: &[Case]) -> Table {
        Table::join(&CaseList::parse(LIST).unwrap(), &["blk", "rng"], tests)
    }

    fn row<'a>(table: &'a Table, case: &str, daemon: &str, ring: &str) -> &'a Row {
        let found =
            table.rows.iter().find(|row| (&*row.case, &*row.daemon, &*row.ring) == (case, daemon, ring));
        found.unwrap_or_else(|| panic!("no row {case} {daemon} {ring} in\n{table}"))
    }

    #[test]
    fn what_applies_and_is_not_tested_is_missing() {
        let table = table(&[
            Case::passed("tests::hostile_guest$chains::rng::split::g03_loops"),
            Case::passed("tests::hostile_guest$chains::rng::split::g03_wild_next"),
            Case::failed("tests::hostile_guest$chains::blk::packed::g03_loops", ""),
            Case::passed("tests::blk$b01_short"),
            Case::passed("backends$chain::tests::g03_loops"),
        ]);
        assert_eq!(
            (row(&table, "G03", "rng", "split").result, row(&table, "G03", "rng", "split").tests),
            (Outcome::Ok, 2)
        );
        assert_eq!(row(&table, "G03", "rng", "packed").result, Outcome::Missing);
        assert_eq!(row(&table, "G03", "blk", "packed").result, Outcome::Failed);
        assert_eq!(row(&table, "G03", "backends", "-").result, Outcome::Ok);
        assert_eq!(row(&table, "B01", "blk", "-").result, Outcome::Ok);
        assert_eq!(row(&table, "F17", "rng", "-").note, "later: not yet");
        assert!(!table.ok());
        assert_eq!(table.summary(), "3 passed, 3 failed, 2 skipped");
        assert!(table.complaints().contains(&"G03 rng packed: no test: loops".to_owned()));
    }

    #[test]
    fn a_table_without_gaps_is_ok() {
        let everywhere = ["rng::split", "rng::packed", "blk::split", "blk::packed"];
        let tests: Vec<_> =
            everywhere.iter().map(|place| Case::passed(&format!("hostile::{place}::g03_x"))).collect();
        let all = [&tests[..], &[Case::passed("blk::b01_x")]].concat();
        let table = table(&all);
        assert!(table.ok(), "{table}");
        assert_eq!(table.complaints(), Vec::<String>::new());
    }

    #[test]
    fn ids_are_read_from_names() {
        let ids = |test: &str| keys(test).into_iter().map(|key| key.0).collect::<Vec<_>>();
        assert_eq!(ids("a::b$c::f07_f14_a_running_ring"), ["F07", "F14"]);
        assert_eq!(ids("b::gp1_a_buffer"), ["GP1"]);
        assert_eq!(ids("b::virtio_2_8_10_event"), Vec::<String>::new());
        assert_eq!(ids("b::a_64_bit_name"), Vec::<String>::new());
        assert_eq!(keys("tests::blk_faults$k17_x")[0].1, "blk");
        assert_eq!(keys("tests::own_device$f16_x")[0].1, LIBRARY);
        assert_eq!(keys("outboard::reconnect$m02_x")[0].1, VMM);
        assert_eq!(keys("outboard$vhost::device::tests::m01_x")[0].1, VMM);
    }

    #[test]
    fn a_test_of_no_case_is_told() {
        let table = table(&[Case::passed("tests::blk$b01_x"), Case::passed("tests::blk$b77_typing_error")]);
        assert!(table.complaints().iter().any(|line| line.contains("b77_typing_error")));
    }

    #[test]
    fn the_list_of_the_workspace_makes_sense() {
        let table = Table::new(crate::workspace::root(), &[]).unwrap();
        assert!(table.rows.len() > 200 && !table.ok());
    }
}
