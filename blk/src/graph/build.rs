//! From volumes to a graph: who is above whom, and what each keeps.
//!
//! In: [`Part`]s, subvolumes before those who use them, the last one the top. Out: a [`Graph`], in which what each volume keeps
//! was worked out from the leaves upward, and the ways of operations past those who do not see them can be asked for.
//! Promises: it is a tree: each volume but the top has exactly one above it. Refuses, by the volume's name: what uses
//! itself or what comes later, is used twice or not at all, or does not fit on what is below.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;

use super::{Outcome, Volume};
use crate::op::{Keeps, OpKind};

/// A volume with its place.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// `CATEGORY/KIND`
    pub kind: &'static str,
    /// The volume itself.
    pub volume: Arc<dyn Volume>,
    /// Those below it, by their number among the parts.
    pub subvolumes: Vec<u16>,
}

/// Why parts make no graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("volume {volume}: {problem}")]
pub struct Misfit {
    /// Which one does not fit.
    pub volume: String,
    /// Why, and the cure.
    pub problem: String,
}

/// A disk, as all workers share it.
#[derive(Debug)]
pub struct Graph {
    parts: Vec<Part>,
    above: Vec<Option<u16>>,
    /// What each keeps.
    keeps: RwLock<Vec<Keeps>>,
    /// The top's, for the data path.
    size_bytes: AtomicU64,
}

impl Graph {
    /// Puts parts together.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn new(parts: Vec<Part>) -> Result<Graph, Misfit> {
        let above = above(&parts)?;
        let keeps = keeps(&parts)?;
        let size_bytes = keeps.last().map_or(0, |top| top.size_bytes).into();
        Ok(Graph { parts, above, keeps: RwLock::new(keeps), size_bytes })
    }

    /// A disk that is one leaf.
    ///
    /// # Errors
    /// It does not like its options.
    pub fn of_leaf(name: &str, kind: &'static str, leaf: Arc<dyn Volume>) -> Result<Graph, Misfit> {
        Graph::new(vec![Part { name: name.into(), kind, volume: leaf, subvolumes: Vec::new() }])
    }

    /// The volumes and their numbers, subvolumes first.
    pub fn volumes(&self) -> impl Iterator<Item = (u16, &Part)> {
        (0..).zip(&self.parts)
    }

    /// The volume with this number.
    pub fn part(&self, volume: u16) -> Option<&Part> {
        self.parts.get(usize::from(volume))
    }

    /// The number of the top volume.
    pub fn top(&self) -> u16 {
        u16::try_from(self.parts.len().saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// What a volume keeps.
    pub fn keeps(&self, volume: u16) -> Option<Keeps> {
        self.keeps.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(volume)).copied()
    }

    /// What the disk keeps.
    pub fn disk(&self) -> Keeps {
        self.keeps(self.top()).unwrap_or_else(|| Keeps::plain(0, 512))
    }

    /// Bytes of the disk: one load.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Looks again at how large everything is. The disk's size as it was and is.
    ///
    /// # Errors
    /// Volumes that do not fit any more; all stays as it was.
    pub fn look_again(&self) -> Result<(u64, u64), Misfit> {
        self.parts.iter().for_each(|part| part.volume.look_again());
        let now = keeps(&self.parts)?;
        let size_bytes = now.last().map_or(0, |top| top.size_bytes);
        self.parts.iter().for_each(|part| part.volume.took());
        *self.keeps.write().unwrap_or_else(PoisonError::into_inner) = now;
        Ok((self.size_bytes.swap(size_bytes, Ordering::Relaxed), size_bytes))
    }

    /// Makes all completed writes durable; waits for the host.
    ///
    /// # Errors
    /// The host has lost some.
    pub fn make_durable(&self) -> Outcome {
        self.parts.iter().try_for_each(|part| part.volume.make_durable())
    }

    /// The first volume that sees an operation which is sent to this one.
    pub fn enter(&self, volume: u16, kind: OpKind) -> Option<u16> {
        let part = self.part(volume)?;
        match part.subvolumes.as_slice() {
            [only] if !part.volume.sees().down.has(kind) => self.enter(*only, kind),
            _ => Some(volume),
        }
    }

    /// The first volume above this one that sees an operation come up; `None`: it leaves the graph.
    pub fn leave(&self, volume: u16, kind: OpKind) -> Option<u16> {
        let above = self.above.get(usize::from(volume)).copied().flatten()?;
        match self.part(above) {
            Some(part) if part.volume.sees().up.has(kind) => Some(above),
            _ => self.leave(above, kind),
        }
    }
}

/// Who is above each.
fn above(parts: &[Part]) -> Result<Vec<Option<u16>>, Misfit> {
    let mut above = vec![None; parts.len()];
    for (number, part) in (0..).zip(parts) {
        for below in &part.subvolumes {
            let name = |volume: u16| parts.get(usize::from(volume)).map_or("?", |part| part.name.as_str());
            if *below >= number {
                return Err(misfit(
                    part,
                    format!("its subvolume {} comes after it; write subvolumes first", name(*below)),
                ));
            }
            let place = above.get_mut(usize::from(*below));
            if let Some(other) = place.and_then(|place| place.replace(number)) {
                let problem = format!(
                    "its subvolume {} is used by {} already; give each volume one above it",
                    name(*below),
                    name(other)
                );
                return Err(misfit(part, problem));
            }
        }
    }
    let top = parts.len().saturating_sub(1);
    match parts.iter().zip(&above).take(top).find(|(_, above)| above.is_none()) {
        Some((part, _)) => Err(misfit(
            part,
            "nothing uses it, and it is not the last; leave it out or name it as a subvolume".into(),
        )),
        None if parts.is_empty() => {
            Err(Misfit { volume: String::new(), problem: "there is no volume at all".into() })
        }
        None => Ok(above),
    }
}

/// What each keeps.
fn keeps(parts: &[Part]) -> Result<Vec<Keeps>, Misfit> {
    let mut all: Vec<Keeps> = Vec::new();
    for part in parts {
        let below: Vec<Keeps> =
            part.subvolumes.iter().filter_map(|number| all.get(usize::from(*number)).copied()).collect();
        all.push(part.volume.keeps(&below).map_err(|problem| misfit(part, problem))?);
    }
    Ok(all)
}

fn misfit(part: &Part, problem: String) -> Misfit {
    Misfit { volume: part.name.clone(), problem }
}
