use std::fs::File;
use std::io;
use std::sync::Arc;

use super::*;
use crate::graph::options::{Bad, Preset, Setting, Type};
use crate::graph::{Layer, Volume};
use crate::op::Keeps;

/// A disk of `size`, and what has the size of all below it.
#[derive(Debug)]
struct Sized(u64);

impl Volume for Sized {
    fn keeps(&self, below: &[Keeps]) -> Result<Keeps, String> {
        let first = below.first().map_or(self.0, |keeps| keeps.size_bytes);
        if below.iter().any(|keeps| keeps.size_bytes != first) {
            return Err("its subvolumes differ in size; give both the same".to_owned());
        }
        Ok(Keeps::plain(first, 512))
    }
    fn layer(&self) -> io::Result<Box<dyn Layer>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn open(values: &Values, openings: &mut Openings<'_>) -> Result<(), Bad> {
    let path = values.path("path").unwrap();
    let file = File::open(path).map_err(|error| Bad::option("path", format_args!("{error}; make it")))?;
    openings.insert("image", file);
    Ok(())
}

fn disk(made: &Made<'_>) -> Result<Arc<dyn Volume>, Bad> {
    let file = made.take("image").ok_or_else(|| Bad::volume("it is not open").with_code(1))?;
    Ok(Arc::new(Sized(File::from(file).metadata().unwrap().len())))
}

fn plain(_: &Made<'_>) -> Result<Arc<dyn Volume>, Bad> {
    Ok(Arc::new(Sized(0)))
}

static PATH: [Setting; 1] =
    [Setting { name: "path", kind: Type::Path, preset: Preset::Required, about: "the image" }];
static FILE: Kind = Kind {
    name: "storage/file",
    about: "an image",
    subvolumes: 0..=0,
    options: &PATH,
    prepare: Some(open),
    make: disk,
};
static OFFSET: Kind = Kind {
    name: "features/offset",
    about: "a part of a volume",
    subvolumes: 1..=1,
    options: &[],
    prepare: None,
    make: plain,
};
static MAP: Kind = Kind { name: "features/map", subvolumes: 1..=usize::MAX, ..OFFSET };
static KINDS: [&Kind; 3] = [&FILE, &OFFSET, &MAP];

/// `NAME TYPE PATH` or `NAME TYPE < SUBVOLUME SUBVOLUME`, separated by commas, as a text.
fn text(volumes: &str) -> String {
    let volume = |words: &str| {
        let (what, below) = words.split_once('<').unwrap_or((words, ""));
        let mut words = what.split_whitespace();
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let path = words.next().map(|path| format!("option path {path}\n")).unwrap_or_default();
        let below = if below.is_empty() { String::new() } else { format!("subvolumes {below}\n") };
        format!("volume {name}\ntype {kind}\n{path}{below}end-volume\n")
    };
    volumes.split(',').map(volume).collect()
}

fn plan(volumes: &str) -> Result<Plan, GraphError> {
    Plan::of(volfile::parse(&text(volumes))?, &KINDS)
}

fn made(volumes: &str) -> Result<Graph, GraphError> {
    let plan = plan(volumes)?;
    let mut opened = Opened::default();
    plan.prepare(Purpose::Look, &mut opened)?;
    plan.graph(&opened.into_kept().0)
}

#[test]
fn a_text_becomes_the_graph_it_describes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let graph = made(&format!("a storage/file {},b features/offset < a", image.display())).unwrap();
    assert_eq!(graph.disk(), Keeps::plain(1 << 20, 512));
    let names: Vec<_> = graph.volumes().map(|(_, part)| (part.name.as_str(), part.kind)).collect();
    assert_eq!(names, [("a", "storage/file"), ("b", "features/offset")]);
    assert_eq!(graph.part(1).unwrap().subvolumes, [0]);
}

#[test]
fn what_makes_no_sense_is_told_with_its_line_and_cure() {
    for (volumes, told) in [
        (
            "a storage/fil /x",
            "2: volume a: there is no type storage/fil; storage/file is meant, perhaps; `outboard-blk graph types` lists all",
        ),
        (
            "a file /x",
            "2: volume a: there is no type file; storage/file is meant, perhaps; `outboard-blk graph types` lists all",
        ),
        ("a cluster/xyz", "2: volume a: there is no type cluster/xyz; `outboard-blk graph types` lists all"),
        ("a storage/file", "1: volume a: option path: it is missing; add `option path PATH`"),
        (
            "a features/offset",
            "1: volume a: features/offset stands on one volume, not on 0; add a line `subvolumes NAME...`",
        ),
        (
            "a storage/file /x,b storage/file /y < a",
            "8: volume b: storage/file stands on no other volume, not on 1; take its `subvolumes` line out",
        ),
        (
            "a storage/file /x,b storage/file /y,c features/offset < a b",
            "11: volume c: features/offset stands on one volume, not on 2; correct its `subvolumes` line",
        ),
        (
            "a features/map",
            "1: volume a: features/map stands on one volume or more, not on 0; add a line `subvolumes NAME...`",
        ),
        (
            "a storage/file /x,a storage/file /y",
            "5: volume a: line 1 has one of this name already; give them different names",
        ),
    ] {
        assert_eq!(plan(volumes).unwrap_err().to_string(), told, "{volumes}");
    }
}

#[test]
fn what_cannot_be_opened_or_does_not_fit_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = [("a.img", 1 << 20), ("b.img", 1 << 21)].map(|(name, bytes)| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path.display().to_string()
    });
    let link = dir.path().join("link").display().to_string();
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let told = |volumes: &str| made(volumes).unwrap_err().to_string();
    assert_eq!(
        told("a storage/file /nowhere"),
        "3: volume a: option path /nowhere: No such file or directory (os error 2); make it"
    );
    for same in [&one, &link] {
        let error = told(&format!("a storage/file {one},b storage/file {same},c features/map < a b"));
        let told = "volume a (line 1) holds the same file; give each a file of its own";
        assert_eq!(error, format!("7: volume b: option path {}: {told}", Shown(same)));
    }
    assert_eq!(
        told(&format!("a storage/file {one},b storage/file {other},c features/map < a b")),
        "9: volume c: its subvolumes differ in size; give both the same"
    );
}

#[test]
fn a_failure_has_the_code_of_its_cause() {
    let plan = plan("a storage/file /x").unwrap();
    let error = plan.graph(&Kept::default()).unwrap_err();
    let failure = error.failure(Path::new("vm.vol"));
    assert_eq!((failure.code, failure.message.as_str()), (1, "vm.vol:1: volume a: it is not open"));
    assert_eq!(Plan::parse("volume").unwrap_err().failure(Path::new("vm.vol")).code, 2);
}

#[test]
fn each_kind_there_is_can_be_told_of() {
    for (at, kind) in super::KINDS.iter().enumerate() {
        assert!(super::KINDS.iter().take(at).all(|other| other.name != kind.name), "{} twice", kind.name);
        for setting in kind.options {
            assert!(!setting.about.is_empty(), "{} {}", kind.name, setting.name);
            assert!(setting.preset_is_valid(), "{} {}", kind.name, setting.name);
        }
    }
    assert_eq!(MAP.to_json()["subvolumes"]["min"], 1);
}
