//! Graphs as operators write them: what the program says of right ones, of wrong ones, and of those in `docs/graph.md`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::machine::BLK;

const MB: u64 = 1 << 20;
/// What no program here takes.
const PATIENCE_S: &str = "60";

/// What `words` say and their exit code, in this directory, with standard error behind standard output.
fn said(dir: &Path, words: &str) -> (String, Option<i32>) {
    let program = tests::daemon::binary("outboard-blk");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let mut command = Command::new("timeout");
    command.args([PATIENCE_S, "sh", "-c", &format!("exec 2>&1; {words}")]).env("PATH", path).current_dir(dir);
    let output = command.output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

/// An image of this many MiB.
fn image(dir: &Path, name: &str, megabytes: u64) {
    File::create(dir.join(name)).unwrap().set_len(megabytes * MB).unwrap();
}

fn volume(name: &str, kind: &str, lines: &str) -> String {
    let lines: String = lines.split_terminator(';').map(|line| format!("    {}\n", line.trim())).collect();
    format!("volume {name}\n    type {kind}\n{lines}end-volume\n")
}

/// Three images, of which two are as large.
fn images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("a.img", 1), ("b.img", 1), ("c.img", 2)] {
        image(dir.path(), name, size);
    }
    dir
}

#[test]
fn bad_graphs_are_told_with_their_line_and_cure() {
    let dir = images();
    let file = |name: &str, path: &str| volume(name, "storage/file", &format!("option path {path}"));
    let a = file("a", "a.img");
    let ro = |name: &str, below: &str| volume(name, "features/read-only", &format!("subvolumes {below}"));
    for (text, line, words) in [
        // A cycle.
        (ro("a", "b") + &ro("b", "a"), ":3: ", "a > b > a; take one of these out"),
        // An unknown type.
        (
            volume("a", "storage/fiel", "option path a.img"),
            ":2: ",
            "there is no type storage/fiel; storage/file is meant",
        ),
        // Wrong options.
        (
            volume("a", "storage/file", "option paht a.img"),
            ":3: ",
            "storage/file has no such option; `path` is meant",
        ),
        (volume("a", "storage/file", ""), ":1: ", "option path: it is missing; add `option path PATH`"),
        (
            volume("a", "storage/file", "option path a.img; option direct maybe"),
            ":4: ",
            "option direct maybe: it is neither on nor off; give on or off",
        ),
        // Files.
        (file("a", "missing.img"), ":3: ", "missing.img: there is no such file"),
        (file("a", "."), ":3: ", "a directory"),
        (file("a", "/dev/null"), ":3: ", "give a raw image file or a block device"),
        // Two users of one image, and of one volume.
        (
            a.clone() + &file("b", "./a.img") + &volume("m", "features/map", "subvolumes a b"),
            ":7: ",
            "volume a (line 1) holds the same file",
        ),
        (
            a.clone() + &ro("b", "a") + &volume("m", "features/map", "subvolumes a b"),
            ":11: ",
            "a stands under b (line 5) already",
        ),
        // A name twice, a volume that nobody uses, one that is not there, one too many.
        (
            a.clone() + &file("a", "b.img"),
            ":5: ",
            "line 1 has one of this name already; give them different names",
        ),
        (a.clone() + &file("b", "b.img"), ":1: ", "nobody uses it"),
        (ro("b", "aa"), ":3: ", "there is no volume aa to stand on"),
        (
            a.clone() + &file("b", "b.img") + &ro("c", "a b"),
            ":11: ",
            "features/read-only stands on one volume, not on 2",
        ),
        // Sizes that do not fit.
        (
            a.clone() + &volume("o", "features/offset", "option offset 512K; option size 1M; subvolumes a"),
            ":5: ",
            "volume o",
        ),
        // No graph at all.
        ("\u{7f}ELF".to_owned(), ":1: ", "cannot be seen"),
        (String::new(), ": ", "the file has no volume; begin one with `volume NAME`"),
        ("# ".repeat(40_000), ": ", "more than 65536 bytes"),
    ] {
        fs::write(dir.path().join("bad.vol"), &text).unwrap();
        let (told, code) = said(dir.path(), "outboard-blk graph check bad.vol");
        assert_eq!(code, Some(2), "{text}{told}");
        assert!(
            told.starts_with(&format!("outboard-blk: bad.vol{line}")) && told.contains(words),
            "{line} {words} in: {told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
        for daemon in ["--check", "--keeper off", ""] {
            let words = format!("outboard-blk --socket-path disk.sock --graph bad.vol {daemon}");
            assert_eq!(said(dir.path(), &words), (told.clone(), code), "{daemon}: a daemon says the same");
        }
    }
}

#[test]
fn what_is_no_file_is_told() {
    let dir = images();
    for (words, code, told) in [
        ("graph check no.vol", 2, "no.vol: No such file"),
        ("graph show .", 2, "directory"),
        ("graph types storage/fil", 2, "storage/file is meant, perhaps"),
        ("graph", 2, "subcommand"),
        ("extents", 2, "--image"),
        ("extents --image a.img --graph b.vol", 2, "cannot be used with"),
        ("extents --image no.img", 2, "no.img"),
    ] {
        let (said, found) = said(dir.path(), &format!("outboard-blk {words}"));
        assert!(found == Some(code) && said.contains(told), "{words}: {found:?} {said}");
    }
}

#[test]
fn a_graph_that_is_served_can_be_looked_at() {
    let machine = BLK.boot();
    let dir = machine.daemon.dir();
    fs::write(dir.join("disk.vol"), volume("disk", "storage/file", "option path disk.img")).unwrap();
    let (told, code) = said(dir, "outboard-blk graph check disk.vol");
    assert_eq!((told.contains("can be served"), code), (true, Some(0)), "{told}");
}

#[test]
fn a_graph_is_shown_to_programs_as_to_people() {
    let dir = images();
    let text = volume("a", "storage/file", "option path a.img")
        + &volume("c", "storage/file", "option path c.img; option read-only on")
        + &volume("m", "features/map", "subvolumes a c");
    fs::write(dir.path().join("m.vol"), text).unwrap();
    let (json, code) = said(dir.path(), "outboard-blk graph show m.vol --json");
    let shown: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, Some(0));
    let top = &shown["volumes"][2];
    assert_eq!(
        (&top["name"], &top["type"], &top["size_bytes"]),
        (&"m".into(), &"features/map".into(), &(3 * MB).into())
    );
    let writes = top["lacks"].as_array().unwrap().iter().find(|lack| lack["what"] == "writes").unwrap();
    assert_eq!(writes["because_of"], serde_json::json!(["c"]));
    assert_eq!(shown["volumes"][1]["options"]["read-only"], "on");

    let (tree, _) = said(dir.path(), "outboard-blk graph show m.vol");
    assert!(tree.lines().all(|line| line.chars().count() <= 80), "{tree}");
    assert!(tree.contains("writes") && tree.contains("(c does not)"), "{tree}");
    let names = ["m ", "├─ a ", "└─ c "];
    let found: Vec<&str> =
        tree.lines().filter_map(|line| names.into_iter().find(|name| line.starts_with(name))).collect();
    assert_eq!(found, names, "{tree}");
}

/// Starts, lengths, and whether there is data.
fn map(json: &str) -> Vec<(u64, u64, bool)> {
    let parts: Vec<Value> = serde_json::from_str(json).unwrap();
    let number = |part: &Value, key: &str| part[key].as_u64().unwrap();
    parts.iter().map(|part| (number(part, "start"), number(part, "length"), part["data"] == true)).collect()
}

#[test]
fn extents_are_those_that_qemu_img_finds() {
    let dir = images();
    let file = File::options().write(true).open(dir.path().join("c.img")).unwrap();
    for offset in [64 << 10, MB, 2 * MB - 4096] {
        file.write_all_at(&[7; 4096], offset).unwrap();
    }
    file.sync_all().unwrap();
    let (ours, code) = said(dir.path(), "outboard-blk extents --image c.img --json");
    assert_eq!(code, Some(0), "{ours}");
    let (theirs, _) = said(dir.path(), "qemu-img map --output=json -f raw c.img");
    assert_eq!(map(&ours), map(&theirs));
    assert_eq!(map(&ours).len(), 6);

    let text = volume("c", "storage/file", "option path c.img")
        + &volume("o", "features/offset", "option offset 1M; subvolumes c");
    fs::write(dir.path().join("o.vol"), text).unwrap();
    let (part, _) = said(dir.path(), "outboard-blk extents --graph o.vol --json");
    let expected = [(0, 4096, true), (4096, MB - 8192, false), (MB - 4096, 4096, true)];
    assert_eq!(map(&part), expected, "behind an offset");
}

#[test]
fn every_type_is_told_of() {
    let dir = images();
    let (list, _) = said(dir.path(), "outboard-blk graph types");
    let (json, _) = said(dir.path(), "outboard-blk graph types --json");
    let kinds: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(kinds.len() > 5 && kinds.len() == list.lines().count(), "{list}");
    for kind in &kinds {
        let name = kind["type"].as_str().unwrap();
        let (told, code) = said(dir.path(), &format!("outboard-blk graph types {name}"));
        assert_eq!(code, Some(0));
        for option in kind["options"].as_array().unwrap() {
            assert!(told.contains(&format!("option {}\n", option["name"].as_str().unwrap())), "{told}");
        }
    }
}

/// `docs/graph.md`.
fn manual() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/graph.md")
}

const TYPES: (&str, &str) = ("<!-- types -->\n", "<!-- end of types -->");

/// The manual with what the programs say today: files of its blocks are written, its commands are run.
fn as_it_is_today(text: &str, dir: &Path) -> String {
    let mut today = String::new();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut block: Option<String> = None;
    for line in text.lines() {
        let fence = line.strip_prefix("```");
        match (&block, fence) {
            (None, Some(info)) => block = Some(info.to_owned()),
            (Some(info), Some(_)) => {
                files.get(info).iter().for_each(|text| fs::write(dir.join(info), text).unwrap());
                block = None;
            }
            // What was said when it was written.
            (Some(info), None) if info == "console" && !line.starts_with("$ ") => continue,
            (Some(info), None) if info.ends_with(".vol") => {
                *files.entry(info.clone()).or_default() += &format!("{line}\n")
            }
            _ => {}
        }
        today += &format!("{line}\n");
        if let (Some("console"), Some(command)) = (block.as_deref(), line.strip_prefix("$ ")) {
            today += &said(dir, command).0;
        }
    }
    let (head, rest) = today.split_once(TYPES.0).unwrap();
    let (_, tail) = rest.split_once(TYPES.1).unwrap();
    format!("{head}{}{}{}{tail}", TYPES.0, types(dir), TYPES.1)
}

/// What is said of every type.
fn types(dir: &Path) -> String {
    let kinds: Vec<Value> = serde_json::from_str(&said(dir, "outboard-blk graph types --json").0).unwrap();
    let names = kinds.iter().map(|kind| kind["type"].as_str().unwrap());
    names
        .map(|name| format!("```text\n{}```\n", said(dir, &format!("outboard-blk graph types {name}")).0))
        .collect()
}

/// `OUTBOARD_WRITE_DOCS=1` writes it as it is today.
#[test]
fn the_manual_shows_what_the_programs_say() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(manual()).unwrap();
    let today = as_it_is_today(&text, dir.path());
    if std::env::var_os("OUTBOARD_WRITE_DOCS").is_some() {
        fs::write(manual(), &today).unwrap();
        return;
    }
    let differs = text.lines().zip(today.lines()).find(|(is, would_be)| is != would_be);
    assert_eq!(
        text.lines().count(),
        today.lines().count(),
        "{differs:?}; write it with OUTBOARD_WRITE_DOCS=1"
    );
    assert_eq!(differs, None, "write it with OUTBOARD_WRITE_DOCS=1");
}
