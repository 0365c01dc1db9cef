//! A graph in service, and the next one made of it.
//!
//! In: a plan, and what was opened for it. Out: a [`Live`] graph; from that, a changed text and what was opened for what is
//! new, the one that is to follow ([`Live::next`]): volumes of the same name, type and options are the same volumes, with
//! their counters and their open files; all others are new. Descriptors that come live are kept for later workers under
//! names of their own, `blk@CHANGE.VOLUME.WHAT`: those that the daemon was started with stay what they are. Which of them
//! belong to the graph stands in the first line of its text ([`Live::record`]), a comment to everybody else: text and
//! descriptors are replaced by one act of the keeper, whatever happens to a worker in between.
//! Refuses, by its line, what cannot be made; a disk that a driver could not take for the same; more descriptors than a
//! keeper keeps.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use backends::kept::Kept;

use super::Volume;
use super::build::{Graph, Part};
use super::error::GraphError;
use super::plan::{Plan, Planned};
use super::registry;
use super::volfile::VolumeText;
use crate::op::{Bounds, Keeps};

/// Begins the line of a record that names its descriptors.
const GIFTS: &str = "#:";
/// Begins the name of a descriptor that came live.
const LIVE: &str = "blk@";
/// Most descriptors that come live, the graph before included: a keeper keeps little more.
const MAX_GIFTS: usize = 40;

/// A graph that is served, or about to be.
#[derive(Debug)]
pub struct Live {
    plan: Plan,
    graph: Arc<Graph>,
    /// Names under which the keeper has what came live.
    gifts: Vec<String>,
}

impl Live {
    /// A graph of what the daemon was started with, or of what `gifts` name.
    pub fn new(plan: Plan, graph: Graph, gifts: Vec<String>) -> Live {
        Live { plan, graph: Arc::new(graph), gifts }
    }

    /// A graph that nobody has written down.
    pub fn unwritten(graph: Graph) -> Live {
        Live::new(Plan::default(), graph, Vec::new())
    }

    /// What serves.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// What it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Names under which the keeper has what came live.
    pub fn gifts(&self) -> &[String] {
        &self.gifts
    }

    /// Its text.
    pub fn text(&self) -> String {
        text_of(&self.plan)
    }

    /// Its text, with the names of what came live: all that the next worker has to know.
    pub fn record(&self) -> String {
        format!("{GIFTS} {}\n{}", self.gifts.join(" "), self.text())
    }

    /// The volumes that are not in `other`.
    pub fn volumes_without<'a>(
        &'a self,
        other: &'a Live,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<dyn Volume>)> {
        let there = |volume: &Arc<dyn Volume>| {
            other
                .graph
                .volumes()
                .any(|(_, part)| std::ptr::addr_eq(Arc::as_ptr(&part.volume), Arc::as_ptr(volume)))
        };
        let own = self.graph.volumes().map(|(_, part)| (part.name.as_str(), &part.volume));
        own.filter(move |(_, volume)| !there(volume))
    }

    /// The graph of this plan, which follows as change `number`. `given` was opened for it, by the names `VOLUME.WHAT`.
    ///
    /// # Errors
    /// The first volume that cannot be made, or does not fit; the disk would be another.
    pub fn next(
        &self,
        plan: Plan,
        given: BTreeMap<String, OwnedFd>,
        number: u64,
        kept: &Kept,
    ) -> Result<Live, GraphError> {
        let stays = |planned: &Planned| self.same(planned, &given);
        let mut gifts: Vec<String> = self
            .gifts
            .iter()
            .filter(|gift| {
                plan.volumes()
                    .iter()
                    .any(|planned| volume_of(gift) == Some(&planned.text.name) && stays(planned).is_some())
            })
            .cloned()
            .collect();
        if self.gifts.len().saturating_add(given.len()) > MAX_GIFTS {
            let problem = "files replaced live are kept open for whoever serves next, and these are too many at once; replace fewer, or restart the daemon";
            return Err(GraphError::at(0, problem));
        }
        let there: BTreeMap<String, Arc<dyn Volume>> = plan
            .volumes()
            .iter()
            .filter_map(|planned| Some((planned.text.name.clone(), stays(planned)?)))
            .collect();
        let mut opened = BTreeMap::new();
        for (name, fd) in given {
            let gift = format!("{LIVE}{number}.{name}");
            kept.keep(&gift, fd.as_fd());
            gifts.push(gift);
            opened.insert(format!("{}{name}", registry::PREFIX), fd);
        }
        let made = plan.graph_with(&Kept::of(opened), |planned| there.get(&planned.text.name).cloned());
        let fits = made.and_then(|graph| {
            same_disk(&self.graph.disk(), &graph.disk())
                .map(|()| graph)
                .map_err(|problem| GraphError::at(0, problem))
        });
        match fits {
            Ok(graph) => Ok(Live::new(plan, graph, gifts)),
            Err(error) => {
                gifts.iter().filter(|gift| !self.gifts.contains(gift)).for_each(|gift| kept.drop(gift));
                Err(error)
            }
        }
    }

    /// The volume that is this one already, if nothing was opened for another.
    fn same(&self, planned: &Planned, given: &BTreeMap<String, OwnedFd>) -> Option<Arc<dyn Volume>> {
        let name = &planned.text.name;
        let before = self.plan.volumes().iter().find(|before| before.text.name == *name)?;
        let is_same =
            planned.is_same(before) && !given.keys().any(|given| given.split('.').next() == Some(name));
        let part = |(_, part): (u16, &Part)| (part.name == *name).then(|| Arc::clone(&part.volume));
        self.graph.volumes().find_map(part).filter(|_| is_same)
    }
}

/// A driver that knows the one can go on with the other.
fn same_disk(before: &Keeps, now: &Keeps) -> Result<(), String> {
    let has =
        |range: Option<Bounds>| range.map_or((0, 0), |range| (range.max_bytes, u64::from(range.align_bytes)));
    let narrower = |before, now| {
        let ((most, align), (now_most, now_align)) = (has(before), has(now));
        now_most < most || (most > 0 && now_align > align)
    };
    let differs = [
        ("size", before.size_bytes != now.size_bytes),
        ("block size", before.block_bytes != now.block_bytes),
        ("read-only", before.read_only != now.read_only),
        ("flush", before.flush && !now.flush),
        ("discard", narrower(before.discard, now.discard)),
        ("zeroes", narrower(before.zeroes, now.zeroes)),
        ("secure-erase", narrower(before.secure_erase, now.secure_erase)),
        ("unmap", before.unmap && !now.unmap),
    ];
    match differs.into_iter().find(|(_, differs)| *differs) {
        None => Ok(()),
        Some((what, _)) => Err(format!(
            "the guest was promised another {what}: the disk has {} bytes in blocks of {} now and would have {} in blocks of {}; give a graph of the same disk (graph show tells what keeps what), or stop the guest first",
            before.size_bytes, before.block_bytes, now.size_bytes, now.block_bytes
        )),
    }
}

/// What a worker before this one left: the descriptors of this text are put where volumes look for them, those of no text
/// are let go of. The names of the former.
pub fn claim(text: &str, kept: &Kept) -> Vec<String> {
    let gifts: Vec<String> = recorded(text).map(str::to_owned).collect();
    for name in kept.names().into_iter().filter(|name| name.starts_with(LIVE)) {
        match gifts.contains(&name).then(|| name.split_once('.')).flatten() {
            Some((_, what)) => kept.rename(&name, &format!("{}{what}", registry::PREFIX)),
            None => {
                drop(kept.take(&name));
                kept.drop(&name);
            }
        }
    }
    gifts
}

/// The names of descriptors in a record.
pub fn recorded(text: &str) -> impl Iterator<Item = &str> {
    let first = text.lines().next().and_then(|line| line.strip_prefix(GIFTS));
    first.unwrap_or_default().split_whitespace()
}

/// The last change of which something is left in these names.
pub fn last_number(gifts: &[String]) -> u64 {
    let number = |gift: &String| gift.strip_prefix(LIVE)?.split('.').next()?.parse().ok();
    gifts.iter().filter_map(number).max().unwrap_or(0)
}

/// Whether a text is a record: that of a graph that was changed live.
pub fn is_record(text: &str) -> bool {
    text.starts_with(GIFTS)
}

/// The volume that a descriptor of this name came for.
pub fn volume_of(gift: &str) -> Option<&str> {
    gift.split('.').nth(1)
}

/// A plan as it is written in a file.
pub fn text_of(plan: &Plan) -> String {
    plan.volumes().iter().map(|planned| written(&planned.text)).collect()
}

/// A volume as it is written in a file.
fn written(text: &VolumeText) -> String {
    let mut lines = format!("volume {}\n    type {}\n", text.name, text.kind);
    for (key, value, _) in &text.options {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        let _ = writeln!(lines, "    option {key} \"{value}\"");
    }
    if !text.subvolumes.is_empty() {
        let names: Vec<&str> = text.subvolumes.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(lines, "    subvolumes {}", names.join(" "));
    }
    lines.push_str("end-volume\n");
    lines
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
