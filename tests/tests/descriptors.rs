//! The descriptors by which management software finds the daemons (QEMU, docs/interop/vhost-user.json), as libvirt
//! reads them: a file that it does not understand makes it refuse all of them.

use std::path::{Path, PathBuf};

use clap::Command;
use serde_json::{Value, json};
use tests::daemon::Launch;

/// Types of the schema (VHostUserBackendType).
const TYPES: [&str; 15] = [
    "9p",
    "balloon",
    "block",
    "caif",
    "console",
    "crypto",
    "gpu",
    "input",
    "net",
    "rng",
    "rpmsg",
    "rproc-serial",
    "scsi",
    "vsock",
    "fs",
];
/// Keys of the schema (VhostUserBackend); the last one is optional.
const KEYS: [&str; 4] = ["description", "type", "binary", "tags"];
/// Largest file that libvirt reads.
const MAX_BYTES: u64 = 1 << 20;

/// Features that the schema knows for a type, each an option of that name.
fn known_features(kind: &str) -> &'static [&'static str] {
    match kind {
        "block" => &["read-only", "blk-file"],
        _ => &[],
    }
}

/// The daemons, by the names of their programs.
fn daemons() -> [(&'static str, Command); 3] {
    use backends::daemon::command;
    [
        ("outboard-blk", command::<outboard_blk::config::Options>()),
        ("outboard-console", command::<outboard_console::config::Options>()),
        ("outboard-rng", command::<outboard_rng::config::Options>()),
    ]
}

/// The files, sorted.
fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/vhost-user");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn read(file: &Path) -> Value {
    assert!(std::fs::metadata(file).unwrap().len() < MAX_BYTES);
    let text = std::fs::read_to_string(file).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// What is wrong with a descriptor.
fn lint(descriptor: &Value) -> Option<String> {
    let Some(object) = descriptor.as_object() else { return Some("it is no object".to_owned()) };
    let string = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Some(format!("{key} is not in the schema"));
    }
    if let Some(key) = KEYS[..3].iter().find(|key| string(key).is_empty()) {
        return Some(format!("{key} is missing, or no string"));
    }
    if !TYPES.contains(&string("type")) {
        return Some(format!("type {} is unknown", string("type")));
    }
    if !Path::new(string("binary")).is_absolute() {
        return Some("binary is no absolute path".to_owned());
    }
    let tags =
        object.get("tags").map(|tags| tags.as_array().is_some_and(|tags| tags.iter().all(Value::is_string)));
    (tags == Some(false)).then(|| "tags are no list of strings".to_owned())
}

#[test]
fn every_descriptor_is_as_the_schema_wants_it() {
    for file in files() {
        let name = file.file_name().unwrap().to_str().unwrap();
        // Two digits first: management software sorts by name, and an operator may put one before ours.
        let (digits, rest) = name.split_at(3);
        assert!(digits.as_bytes()[..2].iter().all(u8::is_ascii_digit) && digits.ends_with('-'), "{name}");
        assert!(rest.ends_with(".json"), "{name}");
        assert_eq!(lint(&read(&file)), None, "{name}");
    }
}

#[test]
fn every_daemon_has_one_that_says_what_it_says_itself() {
    let named: Vec<_> =
        files().iter().map(|file| read(file)["binary"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, daemons().each_ref().map(|(name, _)| format!("/usr/bin/{name}")));
    for (file, (name, _)) in files().iter().zip(daemons()) {
        let said = Launch::new(name).args(["--print-capabilities"]).run();
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(said["type"], read(file)["type"], "{name}");
    }
}

#[test]
fn features_are_known_and_each_is_an_option() {
    for (name, command) in daemons() {
        let said = Launch::new(name).args(["--print-capabilities"]).run();
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        let known = known_features(said["type"].as_str().unwrap());
        for feature in said["features"].as_array().unwrap() {
            let feature = feature.as_str().unwrap();
            assert!(known.contains(&feature), "{name}: {feature} is not in the schema");
            let takes = |arg: &clap::Arg| {
                arg.get_long() == Some(feature)
                    || arg.get_all_aliases().is_some_and(|all| all.contains(&feature))
            };
            assert!(command.get_arguments().any(takes), "{name} has no --{feature}");
        }
    }
}

#[test]
fn the_lint_finds_what_is_wrong() {
    let good = json!({ "description": "d", "type": "rng", "binary": "/b", "tags": ["t"] });
    assert_eq!(lint(&good), None);
    for (key, value, words) in [
        ("type", json!("entropy"), "type entropy is unknown"),
        ("type", json!(4), "type is missing"),
        ("binary", json!("outboard-rng"), "absolute"),
        ("description", json!(""), "description is missing"),
        ("tags", json!("t"), "tags"),
        ("features", json!([]), "not in the schema"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let found = lint(&bad).unwrap();
        assert!(found.contains(words), "{key}: {found}");
    }
    assert!(lint(&json!([])).is_some());
}
