//! A graph that makes sense, before anything of it is there.
//!
//! In: a text, or volumes in its form, and the kinds there are. Out: a [`Plan`]: each volume with its kind, its values and
//! its subvolumes; then what it opens, and from that the [`Graph`]. Every step refuses by the line that is to blame.
//! Refuses: kinds that there are not, subvolumes too many or too few, and a file that two volumes would hold at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use backends::kept::Kept;
use backends::opened::Opened;
use thiserror::Error;

use super::build::Part;
use super::error::{GraphError, Shown, nearest};
use super::kinds::KINDS;
use super::options::Values;
use super::registry::{Kind, Made, Openings, Purpose};
use super::structure;
use super::volfile::{self, VolumeText};
use super::{Graph, Volume};

/// What is wrong with a volume.
#[derive(Debug, Error)]
enum Problem {
    #[error("volume {name}: there is no type {kind}; {cure}")]
    Kind { name: String, kind: String, cure: String },
    #[error("volume {name}: {kind} stands on {}, not on {given}; {}", wanted(.takes), arity_cure(.takes, *.given))]
    Arity { name: String, kind: &'static str, takes: RangeInclusive<usize>, given: usize },
    #[error(
        "volume {name}: option {option} {path}: volume {other} (line {line}) holds the same file; give each a file of its own"
    )]
    Shared { name: String, option: &'static str, path: String, other: String, line: usize },
}

/// Volumes that can be opened and made.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    volumes: Vec<Planned>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Planned {
    /// As it is written.
    pub text: VolumeText,
    /// What it is.
    pub kind: &'static Kind,
    /// Its options.
    pub values: Values,
    /// Those below it, by their number in the plan.
    pub subvolumes: Vec<usize>,
}

impl Plan {
    /// The plan of a text.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Plan, GraphError> {
        Plan::of(volfile::parse(text)?, KINDS)
    }

    /// The plan of a file's bytes.
    ///
    /// # Errors
    /// As from [`Plan::parse`].
    pub fn read(bytes: &[u8]) -> Result<Plan, GraphError> {
        Plan::parse(volfile::text(bytes)?)
    }

    /// The plan of these volumes, of these kinds.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn of(texts: Vec<VolumeText>, kinds: &[&'static Kind]) -> Result<Plan, GraphError> {
        let children = structure::children(&texts)?;
        let planned = texts.into_iter().zip(children).map(|(text, below)| planned(text, below, kinds));
        Ok(Plan { volumes: planned.collect::<Result<_, _>>()? })
    }

    /// The volumes, subvolumes first; the last is the top.
    pub fn volumes(&self) -> &[Planned] {
        &self.volumes
    }

    /// Opens all that it needs.
    ///
    /// # Errors
    /// The first option that cannot be what it is.
    pub fn prepare(&self, purpose: Purpose, opened: &mut Opened) -> Result<(), GraphError> {
        self.refuse_shared()?;
        self.volumes.iter().try_for_each(|planned| planned.prepare(purpose, opened))
    }

    /// Opens what it needs beside a plan that is served: what both have is open already.
    ///
    /// # Errors
    /// As from [`Plan::prepare`].
    pub fn prepare_beside(&self, served: &Plan, opened: &mut Opened) -> Result<(), GraphError> {
        self.prepare_some(|planned| !served.volumes.iter().any(|other| planned.is_same(other)), opened)
    }

    /// Opens what some of its volumes need.
    ///
    /// # Errors
    /// As from [`Plan::prepare`].
    pub fn prepare_some(
        &self,
        which: impl Fn(&Planned) -> bool,
        opened: &mut Opened,
    ) -> Result<(), GraphError> {
        self.refuse_shared()?;
        let mut some = self.volumes.iter().filter(|planned| which(planned));
        some.try_for_each(|planned| planned.prepare(Purpose::Serve, opened))
    }

    /// Makes it of what was opened.
    ///
    /// # Errors
    /// The first volume that cannot be made, or does not fit on those below it.
    pub fn graph(&self, kept: &Kept) -> Result<Graph, GraphError> {
        self.graph_with(kept, |_| None)
    }

    /// The same, with volumes that `there` are already.
    ///
    /// # Errors
    /// As from [`Plan::graph`].
    pub fn graph_with(
        &self,
        kept: &Kept,
        there: impl Fn(&Planned) -> Option<Arc<dyn Volume>>,
    ) -> Result<Graph, GraphError> {
        let parts: Result<Vec<Part>, GraphError> =
            self.volumes.iter().map(|planned| planned.part(kept, there(planned))).collect();
        Graph::new(parts?).map_err(|misfit| {
            let volume = self.volumes.iter().find(|planned| planned.text.name == misfit.volume);
            GraphError::at(volume.map_or(0, |planned| planned.text.line), misfit)
        })
    }

    /// Two leaves cannot hold the same file: each would write what the other does not know of.
    fn refuse_shared(&self) -> Result<(), GraphError> {
        let mut held: BTreeMap<Identity, &VolumeText> = BTreeMap::new();
        for Planned { text, kind, values, .. } in self.volumes.iter().filter(|planned| planned.is_leaf()) {
            for setting in kind.options {
                let Some(path) = values.path(setting.name) else { continue };
                let before = identity(path).and_then(|file| held.insert(file, text));
                if let Some(other) = before {
                    let problem = Problem::Shared {
                        name: text.name.clone(),
                        option: setting.name,
                        path: Shown(&path.to_string_lossy()).to_string(),
                        other: other.name.clone(),
                        line: other.line,
                    };
                    let line = text.option(setting.name).map_or(text.line, |(_, line)| line);
                    return Err(GraphError::at(line, problem));
                }
            }
        }
        Ok(())
    }
}

impl Planned {
    /// One of the same name is this one: what it is made of and how it is set differ in nothing.
    pub fn is_same(&self, other: &Planned) -> bool {
        self.text.name == other.text.name
            && self.kind.name == other.kind.name
            && self.values.changed(&other.values).next().is_none()
            && stand_alike(&self.text, &other.text)
    }

    fn is_leaf(&self) -> bool {
        self.subvolumes.is_empty()
    }

    fn prepare(&self, purpose: Purpose, opened: &mut Opened) -> Result<(), GraphError> {
        let Some(prepare) = self.kind.prepare else { return Ok(()) };
        let mut openings = Openings { volume: &self.text.name, purpose, opened };
        prepare(&self.values, &mut openings).map_err(|bad| self.text.refuse(&bad))
    }

    /// Its part of a graph; `there` is the volume, if there is one already.
    fn part(&self, kept: &Kept, there: Option<Arc<dyn Volume>>) -> Result<Part, GraphError> {
        let name = self.text.name.as_str();
        let subvolumes: Vec<&str> = self.text.subvolumes.iter().map(|(name, _)| name.as_str()).collect();
        let made = Made { volume: name, values: &self.values, subvolumes: &subvolumes, kept };
        let made = there.map_or_else(|| (self.kind.make)(&made), Ok);
        let numbers = self.subvolumes.iter().map(|number| u16::try_from(*number).unwrap_or(u16::MAX));
        Ok(Part {
            name: name.to_owned(),
            kind: self.kind.name,
            volume: made.map_err(|bad| self.text.refuse(&bad))?,
            subvolumes: numbers.collect(),
        })
    }
}

fn planned(text: VolumeText, subvolumes: Vec<usize>, kinds: &[&'static Kind]) -> Result<Planned, GraphError> {
    let Some(kind) = kinds.iter().copied().find(|kind| kind.name == text.kind) else {
        let cure = kind_cure(&text.kind, kinds);
        let (name, kind) = (text.name.clone(), Shown(&text.kind).to_string());
        return Err(GraphError::at(text.kind_line, Problem::Kind { name, kind, cure }));
    };
    if !kind.subvolumes.contains(&subvolumes.len()) {
        let line = text.subvolumes.first().map_or(text.line, |(_, line)| *line);
        let (name, takes, given) = (text.name.clone(), kind.subvolumes.clone(), subvolumes.len());
        return Err(GraphError::at(line, Problem::Arity { name, kind: kind.name, takes, given }));
    }
    let values = text.values(kind.options)?;
    Ok(Planned { text, kind, values, subvolumes })
}

/// The type that was meant, by its whole name or by what is behind the slash.
fn kind_cure(given: &str, kinds: &[&'static Kind]) -> String {
    let names = || kinds.iter().map(|kind| kind.name);
    let last = names().find(|name| name.rsplit('/').next() == Some(given));
    match last.or_else(|| nearest(given, names())) {
        Some(meant) => format!("{meant} is meant, perhaps; `outboard-blk graph types` lists all"),
        None => "`outboard-blk graph types` lists all".to_owned(),
    }
}

/// What stands on one volume may find another one there; what stands on several may call them by their names.
fn stand_alike(before: &VolumeText, now: &VolumeText) -> bool {
    let names = |text: &VolumeText| text.subvolumes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    before.subvolumes.len() == now.subvolumes.len()
        && (now.subvolumes.len() == 1 || names(before) == names(now))
}

/// How many volumes one stands on, in words.
pub fn wanted(takes: &RangeInclusive<usize>) -> String {
    match (*takes.start(), *takes.end()) {
        (0, 0) => "no other volume".to_owned(),
        (1, 1) => "one volume".to_owned(),
        (least, most) if least == most => format!("{least} volumes"),
        (1, usize::MAX) => "one volume or more".to_owned(),
        (least, usize::MAX) => format!("{least} volumes or more"),
        (least, most) => format!("{least} to {most} volumes"),
    }
}

fn arity_cure(takes: &RangeInclusive<usize>, given: usize) -> &'static str {
    match (takes.end(), given) {
        (0, _) => "take its `subvolumes` line out",
        (_, 0) => "add a line `subvolumes NAME...`",
        _ => "correct its `subvolumes` line",
    }
}

/// Which file or device it is.
type Identity = (bool, u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::metadata(path).ok()?;
    let device = file.file_type().is_block_device();
    Some(if device { (true, file.rdev(), 0) } else { (false, file.dev(), file.ino()) })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
