//! Who stands on whom: volumes as they are written become a tree.
//!
//! In: the volumes of a text. Out: the places of each one's subvolumes; the last volume is the top. Promises: children
//! come before their parents, every volume but the top has one parent, and none stands deeper than [`MAX_DEPTH`]: what
//! walks down from the top comes to each volume once. Refuses, with the line and the cure: a name twice, subvolumes that
//! are not there or stand below their parent, cycles, a volume with two parents, and one that nobody uses.

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

use thiserror::Error;

use super::error::{GraphError, nearest};
use super::volfile::VolumeText;

/// Most volumes from the top to a leaf: each takes some stack where trees are walked.
pub const MAX_DEPTH: usize = 32;

/// What is wrong with a volume.
#[derive(Debug, Error)]
enum Problem {
    #[error("volume {name}: line {line} has one of this name already; give them different names")]
    Twice { name: String, line: usize },
    #[error("volume {name}: there is no volume {below} to stand on; {cure}")]
    Missing { name: String, below: String, cure: String },
    #[error(
        "volume {name}: it stands on {below}, which comes later in the file (line {line}); put {below} before {name}"
    )]
    Later { name: String, below: String, line: usize },
    #[error(
        "volume {name}: it stands on itself: {path}; take one of these out of the `subvolumes` of the one before it"
    )]
    Cycle { name: String, path: String },
    #[error(
        "volume {name}: {below} stands under {other} (line {line}) already, and has one parent at most; give {name} a volume of its own"
    )]
    Shared { name: String, below: String, other: String, line: usize },
    #[error(
        "volume {name}: nobody uses it; name it in the `subvolumes` of another, or take it out (the last of the file, {top}, is the top)"
    )]
    Unused { name: String, top: String },
    #[error("volume {name}: more than {MAX_DEPTH} volumes stand on each other; take some out")]
    Deep { name: String },
}

/// The places of each volume's subvolumes, in their order.
///
/// # Errors
/// [`GraphError`] about the first volume that is wrong.
pub fn children(volumes: &[VolumeText]) -> Result<Vec<Vec<usize>>, GraphError> {
    let places = places(volumes)?;
    let mut parents: BTreeMap<usize, &VolumeText> = BTreeMap::new();
    let mut all: Vec<Vec<usize>> = Vec::new();
    let mut depths: Vec<usize> = Vec::new();
    for (at, volume) in volumes.iter().enumerate() {
        let mut below = Vec::new();
        for (name, line) in &volume.subvolumes {
            let child = child(volumes, &places, (at, volume), name)
                .and_then(|child| adopt(&mut parents, child, volume, name))
                .map_err(|problem| GraphError::at(*line, problem))?;
            below.push(child);
        }
        let depth = below
            .iter()
            .filter_map(|child| depths.get(*child))
            .max()
            .map_or(1, |depth| depth.saturating_add(1));
        if depth > MAX_DEPTH {
            return Err(GraphError::at(volume.line, Problem::Deep { name: volume.name.clone() }));
        }
        depths.push(depth);
        all.push(below);
    }
    unused(volumes, &parents).map_or(Ok(all), Err)
}

/// Where each name is.
fn places(volumes: &[VolumeText]) -> Result<BTreeMap<&str, usize>, GraphError> {
    let mut places = BTreeMap::new();
    for (at, volume) in volumes.iter().enumerate() {
        if let Some(before) = places.insert(volume.name.as_str(), at).and_then(|before| volumes.get(before)) {
            let problem = Problem::Twice { name: volume.name.clone(), line: before.line };
            return Err(GraphError::at(volume.line, problem));
        }
    }
    Ok(places)
}

/// Where this volume's subvolume of that name is.
fn child(
    volumes: &[VolumeText],
    places: &BTreeMap<&str, usize>,
    (at, volume): (usize, &VolumeText),
    name: &str,
) -> Result<usize, Problem> {
    match places.get(name).and_then(|child| Some((*child, volumes.get(*child)?))) {
        Some((child, _)) if child < at => Ok(child),
        Some((_, later)) => Err(later_than(volumes, places, volume, later)),
        None => {
            let others = places.keys().copied().filter(|other| *other != volume.name);
            let cure = match nearest(name, others) {
                Some(meant) => format!("{meant} is meant, perhaps"),
                None => "write it before this one, or correct the name".to_owned(),
            };
            Err(Problem::Missing { name: volume.name.clone(), below: name.to_owned(), cure })
        }
    }
}

/// What a subvolume that comes later, or is the volume itself, is: part of a cycle, or only out of place.
fn later_than(
    volumes: &[VolumeText],
    places: &BTreeMap<&str, usize>,
    volume: &VolumeText,
    later: &VolumeText,
) -> Problem {
    let name = volume.name.clone();
    let mut path = vec![name.as_str()];
    let mut seen = vec![false; volumes.len()];
    if leads_back(volumes, places, &later.name, &name, &mut path, &mut seen) {
        return Problem::Cycle { path: path.join(" > "), name };
    }
    Problem::Later { name, below: later.name.clone(), line: later.line }
}

/// Whether one stands on the other, whatever lies between; then that is the path.
fn leads_back<'a>(
    volumes: &'a [VolumeText],
    places: &BTreeMap<&str, usize>,
    from: &'a str,
    to: &'a str,
    path: &mut Vec<&'a str>,
    seen: &mut [bool],
) -> bool {
    let Some((volume, seen_here)) =
        places.get(from).and_then(|at| Some((volumes.get(*at)?, seen.get_mut(*at)?)))
    else {
        return false;
    };
    if std::mem::replace(seen_here, true) {
        return false;
    }
    path.push(from);
    if from == to
        || volume.subvolumes.iter().any(|(below, _)| leads_back(volumes, places, below, to, path, seen))
    {
        return true;
    }
    path.pop();
    false
}

/// Makes a volume the parent of its child.
fn adopt<'a>(
    parents: &mut BTreeMap<usize, &'a VolumeText>,
    child: usize,
    parent: &'a VolumeText,
    below: &str,
) -> Result<usize, Problem> {
    match parents.insert(child, parent) {
        None => Ok(child),
        Some(other) => Err(Problem::Shared {
            name: parent.name.clone(),
            below: below.to_owned(),
            other: other.name.clone(),
            line: other.line,
        }),
    }
}

/// A volume that is neither the top nor below it.
fn unused(volumes: &[VolumeText], parents: &BTreeMap<usize, &VolumeText>) -> Option<GraphError> {
    let (top, below) = volumes.split_last()?;
    let unused = below.iter().enumerate().find(|(at, _)| !parents.contains_key(at));
    unused.map(|(_, volume)| {
        GraphError::at(volume.line, Problem::Unused { name: volume.name.clone(), top: top.name.clone() })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Volumes of `NAME<SUBVOLUME SUBVOLUME`, each in a line of its own.
    fn volumes(text: &str) -> Vec<VolumeText> {
        let volume = |(line, text): (usize, &str)| {
            let (name, below) = text.split_once('<').unwrap_or((text, ""));
            let subvolumes = below.split_whitespace().map(|name| (name.to_owned(), line)).collect();
            VolumeText { line, subvolumes, ..VolumeText::new(name, "debug/trace") }
        };
        (1..).zip(text.split_terminator(',')).map(volume).collect()
    }

    fn error(text: &str) -> String {
        children(&volumes(text)).unwrap_err().to_string()
    }

    #[test]
    fn children_are_found_by_name_in_their_order() {
        assert_eq!(children(&volumes("a,b,c<b a")).unwrap(), [vec![], vec![], vec![1, 0]]);
        assert_eq!(children(&volumes("a,b<a,c<b")).unwrap(), [vec![], vec![0], vec![1]]);
        assert_eq!(children(&volumes("a")).unwrap(), [Vec::<usize>::new()]);
    }

    #[test]
    fn what_is_no_tree_is_told_with_its_line_and_cure() {
        for (text, told) in [
            ("a,b<a,a<b", "3: volume a: line 1 has one of this name already; give them different names"),
            ("image,b<imgae", "2: volume b: there is no volume imgae to stand on; image is meant, perhaps"),
            (
                "a,b<xyz",
                "2: volume b: there is no volume xyz to stand on; write it before this one, or correct the name",
            ),
            ("a<b,b", "1: volume a: it stands on b, which comes later in the file (line 2); put b before a"),
            (
                "a<a",
                "1: volume a: it stands on itself: a > a; take one of these out of the `subvolumes` of the one before it",
            ),
            (
                "a<c,b<a,c<b",
                "1: volume a: it stands on itself: a > c > b > a; take one of these out of the `subvolumes` of the one before it",
            ),
            (
                "x,a<c,b<x,c<b a",
                "2: volume a: it stands on itself: a > c > a; take one of these out of the `subvolumes` of the one before it",
            ),
            (
                "a,b<a,c<b a",
                "3: volume c: a stands under b (line 2) already, and has one parent at most; give c a volume of its own",
            ),
            (
                "a,b<a a",
                "2: volume b: a stands under b (line 2) already, and has one parent at most; give b a volume of its own",
            ),
            (
                "a,b,c<b",
                "1: volume a: nobody uses it; name it in the `subvolumes` of another, or take it out (the last of the file, c, is the top)",
            ),
        ] {
            assert_eq!(error(text), told, "{text}");
        }
    }

    #[test]
    fn a_graph_is_so_deep_and_no_deeper() {
        let chain =
            |count: usize| (1..count).fold("v0".to_owned(), |text, at| format!("{text},v{at}<v{}", at - 1));
        assert!(children(&volumes(&chain(MAX_DEPTH))).is_ok());
        assert_eq!(
            error(&chain(33)),
            "33: volume v32: more than 32 volumes stand on each other; take some out"
        );
    }

    proptest! {
        #[test]
        fn any_volumes_are_a_tree_or_refused(text in "(([a-e](<[a-e]( [a-e]){0,2})?),){1,8}") {
            let volumes = volumes(&text);
            if let Ok(all) = children(&volumes) {
                let mut below: Vec<usize> = all.iter().flatten().copied().collect();
                below.sort_unstable();
                prop_assert_eq!(below, (0..volumes.len() - 1).collect::<Vec<_>>());
                prop_assert!(all.iter().enumerate().all(|(at, children)| children.iter().all(|child| *child < at)));
            }
        }
    }
}
