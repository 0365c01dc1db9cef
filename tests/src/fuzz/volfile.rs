//! Any bytes as the text of a graph.
//!
//! Compared with: what is read, written and read again; and whether volumes are a tree, asked of each pair of them.

use outboard_blk::graph::error::GraphError;
use outboard_blk::graph::kinds::KINDS;
use outboard_blk::graph::plan::Plan;
use outboard_blk::graph::structure::{self, MAX_DEPTH};
use outboard_blk::graph::volfile::{self, VolumeText};

/// # Panics
/// A promise is broken.
pub fn volfile(data: &[u8]) {
    match volfile::text(data).and_then(volfile::parse) {
        Err(error) => assert_is_told(&error, data),
        Ok(volumes) => {
            assert_reads_again(&volumes);
            let children = structure::children(&volumes);
            assert_eq!(children.is_ok(), is_tree(&volumes), "{children:?}");
            children.err().iter().for_each(|error| assert_is_told(error, data));
            let plan = Plan::of(volumes, KINDS);
            plan.err().iter().for_each(|error| assert_is_told(error, data));
        }
    }
}

/// One line that a terminal shows, about one that is there.
fn assert_is_told(error: &GraphError, data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n').count();
    assert!(error.line <= lines, "line {} of {lines}", error.line);
    assert!(error.problem.contains("; "), "no cure: {error}");
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
}

fn assert_reads_again(volumes: &[VolumeText]) {
    let text: String = volumes.iter().map(written).collect();
    let again = volfile::parse(&text).map(|again| again.iter().map(bare).collect());
    assert_eq!(again, Ok(volumes.iter().map(bare).collect::<Vec<_>>()));
}

fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

fn written(volume: &VolumeText) -> String {
    let VolumeText { name, kind, options, subvolumes, .. } = volume;
    let option = |(key, value, _): &(String, String, usize)| format!("option {key} {}\n", quoted(value));
    let below: String = subvolumes.iter().map(|(name, _)| format!(" {name}")).collect();
    let below = if below.is_empty() { below } else { format!("subvolumes{below}\n") };
    let options: String = options.iter().map(option).collect();
    format!("volume {name}\ntype {}\n{options}{below}end-volume\n", quoted(kind))
}

/// Without lines.
fn bare(volume: &VolumeText) -> VolumeText {
    let mut bare = VolumeText { line: 0, kind_line: 0, ..volume.clone() };
    bare.options.iter_mut().for_each(|(_, _, line)| *line = 0);
    bare.subvolumes.iter_mut().for_each(|(_, line)| *line = 0);
    bare
}

/// Each name is one volume's; each but the last is named once, by one that comes later; and none stands too deep.
fn is_tree(volumes: &[VolumeText]) -> bool {
    let users = |name: &str| {
        let users = volumes.iter().enumerate().flat_map(|(at, volume)| {
            volume.subvolumes.iter().filter(|(below, _)| below == name).map(move |_| at)
        });
        users.collect::<Vec<_>>()
    };
    let is_one = |name: &str| volumes.iter().filter(|volume| volume.name == name).count() == 1;
    let has_its_place = |(at, volume): (usize, &VolumeText)| match users(&volume.name)[..] {
        [] => at + 1 == volumes.len(),
        [user] => user > at,
        _ => false,
    };
    let names = volumes.iter().flat_map(|volume| &volume.subvolumes).map(|(name, _)| name.as_str());
    let names = names.chain(volumes.iter().map(|volume| volume.name.as_str()));
    names.into_iter().all(is_one)
        && volumes.iter().enumerate().all(has_its_place)
        && volumes.iter().all(|volume| above(volumes, &volume.name) < MAX_DEPTH)
}

/// How many volumes stand on this one.
fn above(volumes: &[VolumeText], name: &str) -> usize {
    let user = volumes.iter().find(|volume| volume.subvolumes.iter().any(|(below, _)| below == name));
    user.map_or(0, |user| 1 + above(volumes, &user.name))
}

/// Texts to begin from: one of each statement, and what is refused of each part.
pub(super) const SEEDS: [(&str, &str); 11] = [
    (
        "one",
        "# The disk.\nvolume image\n    type storage/file\n    option path \"/srv/my \\\"disk\\\".img\"\nend-volume\n",
    ),
    (
        "five",
        "volume a\ntype storage/file\noption path /a\nend-volume\nvolume b\ntype storage/mem\noption size 1M\nend-volume\n\
         volume c\ntype features/map\nsubvolumes a b\nend-volume\nvolume d\ntype features/offset\noption offset 4K\n\
         subvolumes c\nend-volume\nvolume e\ntype features/read-only\nsubvolumes d\nend-volume\n",
    ),
    (
        "cycle",
        "volume a\ntype features/map\nsubvolumes b\nend-volume\nvolume b\ntype features/map\nsubvolumes a\nend-volume\n",
    ),
    ("twice", "volume a\ntype storage/null\nend-volume\nvolume a\ntype storage/null\nend-volume\n"),
    (
        "shared",
        "volume a\ntype storage/null\nend-volume\nvolume b\ntype features/map\nsubvolumes a a\nend-volume\n",
    ),
    ("unused", "volume a\ntype storage/null\nend-volume\nvolume b\ntype storage/null\nend-volume\n"),
    ("open", "volume a\ntype storage/null\n"),
    ("quote", "volume a\ntype storage/file\noption path \"/a\\\nend-volume\n"),
    ("tab", "volume a\ntype storage/file\noption path \"/a\\\tb\"\nend-volume\n"),
    ("unseen", "volume a\ntype storage/file\noption path /a\u{202e}gmi\nend-volume\n"),
    ("windows", "volume a\r\n\ttype\tstorage/null\r\nend-volume\r\n"),
];
