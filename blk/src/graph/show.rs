//! A graph for people and for programs.
//!
//! In: a plan and the graph made of it. Out: a [`Picture`]: of each volume what it is, how it is set, how large it is, what
//! it keeps, and of what it does not keep, who is to blame. As JSON it is what `graph show --json` prints and what a daemon
//! answers for `graph show --control-socket`; [`Picture`] draws itself as a tree of 80 columns:
//!
//! ```text
//! slow        features/throttle, 10G in blocks of 512 (best 4K)
//! │  options  ops 1000
//! │  keeps    writes, flush, fua
//! │  lacks    extents (image does not)
//! └─ image    storage/file, ...
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::build::{Graph, Part};
use super::options::{Values, in_units};
use super::plan::Plan;
use super::structure;
use super::volfile::VolumeText;
use crate::op::Keeps;

/// Columns of a terminal.
const COLUMNS: usize = 80;
/// Columns that a volume stands further to the right than the one above it.
const STEP: usize = 3;
/// Longest of what is said below a name (`options`), and its margin.
const LABEL: usize = 7 + STEP;
/// Furthest to the right that words begin: long names and deep volumes push their own words on.
const MAX_INDENT: usize = 40;

/// Why something is no picture of a graph.
#[derive(Debug, Error)]
pub enum PictureError {
    /// It has another shape.
    #[error("not the picture of a graph: {0}")]
    Json(#[from] serde_json::Error),
    /// Its volumes are no tree.
    #[error("not the picture of a graph: {0}")]
    Tree(String),
    /// Somebody plays with the terminal.
    #[error("not the picture of a graph: {0} cannot be seen")]
    Word(String),
}

/// A graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Subvolumes first; the last is the top.
    pub volumes: Vec<Shape>,
}

/// One of its volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// `CATEGORY/KIND`
    #[serde(rename = "type")]
    pub kind: String,
    /// Names of those below it.
    pub subvolumes: Vec<String>,
    /// All options, presets too, as they are written.
    pub options: Map<String, Value>,
    /// Names of those that are presets.
    pub presets: Vec<String>,
    /// Bytes.
    pub size_bytes: u64,
    /// What offsets and lengths are multiples of.
    pub block_bytes: u32,
    /// What writes are best multiples of.
    pub physical_bytes: u32,
    /// The best size of an operation; 0: any.
    pub optimal_bytes: u32,
    /// What it promises.
    pub keeps: Vec<String>,
    /// What it does not.
    pub lacks: Vec<Lack>,
    /// What it counts, of a graph that is served.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub state: Map<String, Value>,
}

/// Something that a volume does not keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// What.
    pub what: String,
    /// The leaves or translators that would have to; the volume itself if it is its own choice.
    pub because_of: Vec<String>,
}

/// What people call it, and whether it is kept.
type Promise = (&'static str, fn(&Keeps) -> bool);

/// All that a volume may promise, by the names that people are told.
const PROMISES: [Promise; 8] = [
    ("writes", |keeps| !keeps.read_only),
    ("flush", |keeps| keeps.flush),
    ("fua", |keeps| keeps.fua),
    ("discard", |keeps| keeps.discard.is_some()),
    ("zeroes", |keeps| keeps.zeroes.is_some()),
    ("unmap", |keeps| keeps.unmap),
    ("secure-erase", |keeps| keeps.secure_erase.is_some()),
    ("extents", |keeps| keeps.extents),
];
impl Picture {
    /// A graph and how it was asked for. Of a graph in service each volume's state is there too.
    pub fn of(plan: &Plan, graph: &Graph, with_state: bool) -> Picture {
        let values = |name: &str| plan.volumes().iter().find(|planned| planned.text.name == name);
        let shapes = graph.volumes().map(|(number, part)| {
            let state = if with_state { part.volume.state() } else { Map::new() };
            let values = values(&part.name).map(|planned| planned.values.clone()).unwrap_or_default();
            shape(graph, (number, part), &values, state)
        });
        Picture { volumes: shapes.collect() }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The volume for whose sake the disk does not keep a promise; `None`: it does.
    pub fn to_blame(&self, what: &str) -> Option<&Shape> {
        let cause =
            |shape: &Shape| shape.lacks.iter().find(|lack| lack.what == what)?.because_of.first().cloned();
        let mut blamed = self.volumes.last()?;
        let mut name = cause(blamed)?;
        while name != blamed.name {
            blamed = self.named(&name)?;
            name = cause(blamed)?;
        }
        Some(blamed)
    }

    /// Where words begin that stand behind all names and labels of a volume and of those below it.
    fn indent(&self, shape: &Shape, depth: usize) -> usize {
        let own = depth * STEP + shape.name.chars().count().max(LABEL) + 2;
        let below = shape.subvolumes.iter().filter_map(|name| self.named(name));
        below.map(|sub| self.indent(sub, depth + 1)).max().unwrap_or(0).max(own)
    }

    /// What somebody else says, who may say anything: a tree, of words that a terminal does not obey.
    ///
    /// # Errors
    /// It is none.
    pub fn from_json(value: Value) -> Result<Picture, PictureError> {
        let picture: Picture = serde_json::from_value(value)?;
        let texts: Vec<VolumeText> = picture.volumes.iter().map(Shape::as_text).collect();
        structure::children(&texts)
            .map_err(|error| PictureError::Tree(error.problem.escape_debug().to_string()))?;
        let unseen =
            picture.volumes.iter().flat_map(Shape::words).find(|word| word.contains(char::is_control));
        let unseen = unseen.map(|word| PictureError::Word(word.escape_debug().to_string()));
        unseen.map_or(Ok(picture), Err)
    }

    fn named(&self, name: &str) -> Option<&Shape> {
        self.volumes.iter().find(|shape| shape.name == name)
    }
}

fn shape(graph: &Graph, (number, part): (u16, &Part), values: &Values, state: Map<String, Value>) -> Shape {
    let keeps = graph.keeps(number).unwrap_or_else(|| Keeps::plain(0, 512));
    let below =
        || part.subvolumes.iter().filter_map(|below| Some((graph.part(*below)?, graph.keeps(*below)?)));
    let kept = PROMISES.iter().filter(|(_, has)| has(&keeps)).map(|(what, _)| (*what).to_owned());
    let lacking = PROMISES.iter().filter(|(_, has)| !has(&keeps)).map(|(what, has)| {
        let others: Vec<String> =
            below().filter(|(_, keeps)| !has(keeps)).map(|(part, _)| part.name.clone()).collect();
        let because_of = if others.is_empty() { vec![part.name.clone()] } else { others };
        Lack { what: (*what).to_owned(), because_of }
    });
    Shape {
        name: part.name.clone(),
        kind: part.kind.to_owned(),
        subvolumes: below().map(|(part, _)| part.name.clone()).collect(),
        options: values.written().map(|(name, text)| (name.to_owned(), text.into())).collect(),
        presets: values
            .written()
            .map(|(name, _)| name.to_owned())
            .filter(|name| !values.is_given(name))
            .collect(),
        size_bytes: keeps.size_bytes,
        block_bytes: keeps.block_bytes,
        physical_bytes: keeps.physical_bytes,
        optimal_bytes: keeps.optimal_bytes,
        keeps: kept.collect(),
        lacks: lacking.collect(),
        state,
    }
}

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.volumes.last() {
            Some(top) => {
                Drawn { picture: self, indent: self.indent(top, 0).min(MAX_INDENT), f }.volume(top, "", "")
            }
            None => Ok(()),
        }
    }
}

/// A picture on its way to a terminal.
struct Drawn<'a, 'f, 'g> {
    picture: &'a Picture,
    /// Where words begin.
    indent: usize,
    f: &'f mut fmt::Formatter<'g>,
}

impl Drawn<'_, '_, '_> {
    /// A volume and all below it; `first` stands before its first line, `margin` before the others.
    fn volume(&mut self, shape: &Shape, first: &str, margin: &str) -> fmt::Result {
        let below: Vec<&Shape> =
            shape.subvolumes.iter().filter_map(|name| self.picture.named(name)).collect();
        let own = format!("{margin}{}", if below.is_empty() { "   " } else { "│  " });
        self.words(&format!("{first}{}", shape.name), &own, &[shape.kind.clone(), shape.measure()])?;
        for (what, words) in shape.lines() {
            self.words(&format!("{own}{what}"), &own, &words)?;
        }
        let last = below.len().saturating_sub(1);
        for (at, sub) in below.into_iter().enumerate() {
            let (branch, onward) = if at < last { ("├─ ", "│  ") } else { ("└─ ", "   ") };
            self.volume(sub, &format!("{margin}{branch}"), &format!("{margin}{onward}"))?;
        }
        Ok(())
    }

    /// `what` and words behind it, in as many lines as they need.
    fn words(&mut self, what: &str, margin: &str, words: &[String]) -> fmt::Result {
        let mut line = self.padded(what);
        let mut empty = true;
        for (at, word) in words.iter().enumerate() {
            let word = if at + 1 < words.len() { format!("{word},") } else { word.clone() };
            if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
                self.line(&line)?;
                (line, empty) = (self.padded(margin), true);
            }
            line.push_str(if empty { "" } else { " " });
            line.push_str(&word);
            empty = false;
        }
        self.line(&line)
    }

    /// Up to where words begin, two blanks behind it at least.
    fn padded(&self, what: &str) -> String {
        let missing = self.indent.saturating_sub(what.chars().count()).max(2);
        format!("{what}{}", " ".repeat(missing))
    }

    fn line(&mut self, line: &str) -> fmt::Result {
        writeln!(self.f, "{}", line.trim_end())
    }
}

impl Shape {
    /// As far as it has a place.
    fn as_text(&self) -> VolumeText {
        let subvolumes = self.subvolumes.iter().map(|name| (name.clone(), 0)).collect();
        VolumeText { subvolumes, ..VolumeText::new(&self.name, &self.kind) }
    }

    /// All that is drawn as it is.
    fn words(&self) -> impl Iterator<Item = &String> {
        let lacks = self.lacks.iter().flat_map(|lack| lack.because_of.iter().chain([&lack.what]));
        let names = [&self.name, &self.kind].into_iter().chain(self.options.keys()).chain(self.state.keys());
        names.chain(&self.keeps).chain(lacks)
    }

    fn measure(&self) -> String {
        let mut measure =
            format!("{} in blocks of {}", in_units(&self.size_bytes), in_units(&self.block_bytes.into()));
        if self.physical_bytes > self.block_bytes {
            measure.push_str(&format!(" (best {})", in_units(&self.physical_bytes.into())));
        }
        measure
    }

    /// What is said of it below its name: a word each, and what belongs to it.
    fn lines(&self) -> Vec<(&'static str, Vec<String>)> {
        let pair = |(name, value): (&String, &Value)| format!("{name} {}", plain(value));
        let given = self.options.iter().filter(|(name, _)| !self.presets.contains(name));
        let mut lines = vec![("options", given.map(pair).collect()), ("keeps", self.keeps.clone())];
        lines.extend(self.blamed().into_iter().map(|words| ("lacks", words)));
        lines.push(("state", self.state.iter().map(pair).collect()));
        lines.into_iter().filter(|(_, words)| !words.is_empty()).collect()
    }

    /// What it does not keep, by those who are to blame: itself first.
    fn blamed(&self) -> Vec<Vec<String>> {
        let mut blamed: Vec<(&[String], Vec<String>)> = vec![(std::slice::from_ref(&self.name), Vec::new())];
        for Lack { what, because_of } in &self.lacks {
            match blamed.iter_mut().find(|(who, _)| who == because_of) {
                Some((_, words)) => words.push(what.clone()),
                None => blamed.push((because_of, vec![what.clone()])),
            }
        }
        for (who, words) in blamed.iter_mut().skip(1) {
            let verb = if who.len() == 1 { "does" } else { "do" };
            words
                .iter_mut()
                .rev()
                .take(1)
                .for_each(|last| last.push_str(&format!(" ({} {verb} not)", who.join(", "))));
        }
        blamed.into_iter().map(|(_, words)| words).collect()
    }
}

/// A value without quotes, in one line of visible characters.
fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str, kind: &str, below: &[&str]) -> Shape {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lack = |what: &str, who: &[&str]| Lack { what: what.to_owned(), because_of: names(who) };
        let who: &[&str] = if below.is_empty() { &[name] } else { below };
        Shape {
            name: name.to_owned(),
            kind: kind.to_owned(),
            subvolumes: names(below),
            options: Map::new(),
            presets: Vec::new(),
            size_bytes: 10 << 30,
            block_bytes: 512,
            physical_bytes: 4096,
            optimal_bytes: 0,
            keeps: names(&["writes", "flush", "fua", "discard", "unmap"]),
            lacks: vec![lack("zeroes", &[name]), lack("secure-erase", who), lack("extents", who)],
            state: Map::new(),
        }
    }

    #[test]
    fn a_graph_is_drawn_from_its_top_within_a_terminal() {
        let mut image = shape("image", "storage/file", &[]);
        image.options =
            Map::from_iter([("path".into(), "/srv/vm1.img".into()), ("direct".into(), "off".into())]);
        image.presets = vec!["direct".into()];
        let other = Shape { physical_bytes: 512, ..shape("other", "storage/mem", &[]) };
        let mut both = shape("both", "features/map", &["image", "other"]);
        both.keeps = (0..12).map(|at| format!("promise{at}")).collect();
        let mut top = shape("top", "features/throttle", &["both"]);
        top.state = Map::from_iter([("requests".to_owned(), 7.into())]);
        let picture = Picture { volumes: vec![image, other, both, top] };
        let drawn = picture.to_string();
        assert_eq!(drawn, include_str!("show_tests.txt"));
        assert!(drawn.lines().all(|line| line.chars().count() <= COLUMNS));
        assert_eq!(picture.to_blame("extents").unwrap().name, "image");
        assert_eq!(picture.to_blame("zeroes").unwrap().name, "top");
        assert!(picture.to_blame("fua").is_none());
        assert_eq!(Picture::from_json(picture.to_json()).unwrap(), picture);
    }

    #[test]
    fn a_picture_that_would_have_no_end_or_plays_with_the_terminal_is_refused() {
        let told =
            |volumes: Vec<Shape>| Picture::from_json(Picture { volumes }.to_json()).unwrap_err().to_string();
        let cycle = vec![shape("a", "x", &["b"]), shape("b", "x", &["a"])];
        assert!(told(cycle).contains("a > b > a"));
        let doubled = vec![shape("a", "x", &[]), shape("b", "x", &["a", "a"])];
        assert!(told(doubled).contains("stands under b"));
        assert!(told(vec![shape("a\u{1b}[2J", "x", &[])]).contains("\\u{1b}[2J cannot be seen"));
        assert!(Picture::from_json(Value::Null).is_err());
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_drawn() {
        let mut image = shape("image", "storage/file", &[]);
        image.options = Map::from_iter([("path".into(), "/a\u{1b}[2J".into())]);
        assert!(!Picture { volumes: vec![image] }.to_string().contains('\u{1b}'));
    }
}
