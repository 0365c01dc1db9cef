use proptest::prelude::*;

use super::*;

const DISK: &str = r#"
# The disk of vm1.
volume image
    type storage/file
    option path "/srv/my \"disks\"/a\\b # c.img"   # where it is
    option cache.size 64M
end-volume

volume slow
	type features/throttle
    subvolumes image other-1
end-volume
"#;

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn words_come_with_their_lines() {
    let [image, slow] = parse(DISK).unwrap().try_into().unwrap();
    assert_eq!(
        (image.name.as_str(), image.kind.as_str(), image.line, image.kind_line),
        ("image", "storage/file", 3, 4)
    );
    assert_eq!(image.option("path"), Some((r#"/srv/my "disks"/a\b # c.img"#, 5)));
    assert_eq!(image.option("cache.size"), Some(("64M", 6)));
    assert_eq!(image.option("nothing"), None);
    assert!(image.subvolumes.is_empty());
    assert_eq!(slow.subvolumes, [("image".to_owned(), 11), ("other-1".to_owned(), 11)]);
}

#[test]
fn lines_may_end_as_windows_has_them_and_the_last_one_not_at_all() {
    let volumes = parse("volume a\r\ntype storage/null\r\nend-volume").unwrap();
    assert_eq!((volumes[0].name.as_str(), volumes[0].kind.as_str()), ("a", "storage/null"));
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_cure() {
    for (text, told) in [
        ("", "the file has no volume; begin one with `volume NAME`"),
        ("# nothing\n\n", "the file has no volume; begin one with `volume NAME`"),
        ("volum a", "1: unknown statement volum; write `volume`"),
        (
            "\n\n[graph]",
            "3: unknown statement [graph]; a line begins with one of volume, type, option, subvolumes, end-volume, or #",
        ),
        ("type storage/file", "1: type stands outside of a volume; begin one with `volume NAME`"),
        ("end-volume", "1: end-volume stands outside of a volume; begin one with `volume NAME`"),
        ("volume", "1: volume: words are missing; write `volume NAME`"),
        (
            "volume a b",
            "1: volume: b is one word too many; write `volume NAME`, a value with blanks in \"quotes\"",
        ),
        ("volume a.b", "1: volume a.b is no name; use 1 to 64 letters, digits, - and _"),
        ("volume \"\"", "1: volume \"\" is no name; use 1 to 64 letters, digits, - and _"),
        ("volume a\nvolume b", "2: volume a is not ended; put `end-volume` before this line"),
        ("\nvolume a\ntype x\n", "2: volume a is not ended; put `end-volume` behind its last line"),
        (
            "volume a\nend-volume",
            "2: volume a has no type; add a line `type CATEGORY/KIND`, as `type storage/file`",
        ),
        (
            "volume a\ntype \"\"",
            "2: volume a has no type; add a line `type CATEGORY/KIND`, as `type storage/file`",
        ),
        ("volume a\ntype x\n\ntype y", "4: volume a has its type in line 2 already; leave one of them out"),
        ("volume a\noption", "2: option: words are missing; write `option KEY VALUE`"),
        ("volume a\noption path", "2: option: words are missing; write `option KEY VALUE`"),
        (
            "volume a\noption path /my disk",
            "2: option: disk is one word too many; write `option KEY VALUE`, a value with blanks in \"quotes\"",
        ),
        (
            "volume a\noption pa/th x",
            "2: option pa/th is no name; use 1 to 64 letters, digits, - and _, and dots",
        ),
        (
            "volume a\noption k 1\noption k 2",
            "3: volume a has its option k in line 2 already; leave one of them out",
        ),
        ("volume a\nsubvolumes", "2: subvolumes: words are missing; write `subvolumes NAME...`"),
        (
            "volume a\nsubvolumes a b\nsubvolumes c",
            "3: volume a has its subvolumes in line 2 already; leave one of them out",
        ),
        ("volume a\nsubvolumes a /b", "2: subvolume /b is no name; use 1 to 64 letters, digits, - and _"),
        (
            "volume a\ntype x\nend-volume now",
            "3: end-volume: now is one word too many; write `end-volume`, a value with blanks in \"quotes\"",
        ),
        (
            "volume a\noption k \"v",
            "2: the quote is not ended in its line; put \" at the end of the value, or \\\" for a quote in it",
        ),
        (
            "volume a\noption k \"v\\",
            "2: the quote is not ended in its line; put \" at the end of the value, or \\\" for a quote in it",
        ),
        (
            "volume a\noption k v\"w\"",
            "2: a quote begins or ends within a word; put all of the word in quotes, with \\\" for a quote in it",
        ),
        (
            "volume a\noption k \"v\"w",
            "2: a quote begins or ends within a word; put all of the word in quotes, with \\\" for a quote in it",
        ),
        (
            "volume a\noption k \"\\n\"",
            "2: \\n stands for nothing; in quotes, write \\\\ for \\ and \\\" for \"",
        ),
        ("volume a\u{0}", "1: character \\u{0} cannot be seen; take it out"),
        ("\u{feff}volume a", "1: character \\u{feff} cannot be seen; take it out"),
        ("volume a\noption k \u{202e}", "2: character \\u{202e} cannot be seen; take it out"),
    ] {
        assert_eq!(error(text), told, "{text:?}");
    }
}

#[test]
fn what_has_no_end_is_refused() {
    let volume = |nth: usize| format!("volume v{nth}\ntype storage/null\nend-volume\n");
    let many = |count: usize| (0..count).map(volume).collect::<String>();
    assert_eq!(parse(&many(MAX_VOLUMES)).unwrap().len(), MAX_VOLUMES);
    assert_eq!(error(&many(MAX_VOLUMES + 1)), "193: a graph has at most 64 volumes; leave some out");
    assert_eq!(
        error(&" ".repeat(MAX_BYTES + 1)),
        "the file has more than 65536 bytes; give the text of a graph"
    );
    let words = format!("volume a\nsubvolumes {}", "a ".repeat(MAX_WORDS));
    assert_eq!(error(&words), "2: the line has more than 65 words; a graph has at most 64 volumes");
    let name = format!("volume {}", "n".repeat(MAX_NAME_BYTES + 1));
    assert!(error(&name).contains("is no name; use 1 to 64 letters"), "{}", error(&name));
}

#[test]
fn what_is_no_text_is_told() {
    let told = |bytes: &[u8]| text(bytes).unwrap_err().to_string();
    assert_eq!(told(b"volume a\n\xff\xfe"), "2: the line is no UTF-8 text; give the text of a graph");
    assert_eq!(told(&[b'#'; MAX_BYTES + 1]), "the file has more than 65536 bytes; give the text of a graph");
    assert_eq!(text(DISK.as_bytes()), Ok(DISK));
}

/// A volume as a file would have it, with every value in quotes.
fn written(volume: &VolumeText) -> String {
    let mut text = format!("volume {}\ntype {}\n", volume.name, volume.kind);
    for (key, value, _) in &volume.options {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        text += &format!("option {key} \"{quoted}\"\n");
    }
    let names: Vec<&str> = volume.subvolumes.iter().map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() {
        text += &format!("subvolumes {}\n", names.join(" "));
    }
    text + "end-volume\n"
}

prop_compose! {
    fn volume()(
        name in "[a-zA-Z0-9_-]{1,64}",
        kind in "[a-z]{1,9}/[a-z-]{1,9}",
        options in prop::collection::btree_map("[a-z._-]{1,9}", "[ -~\t\u{e4}\u{1f600}]{0,40}", 0..5),
        subvolumes in prop::collection::vec("[a-z0-9]{1,9}", 0..5),
    ) -> VolumeText {
        let options = options.into_iter().map(|(key, value)| (key, value, 0)).collect();
        let subvolumes = subvolumes.into_iter().map(|name| (name, 0)).collect();
        VolumeText { options, subvolumes, ..VolumeText::new(&name, &kind) }
    }
}

/// Without lines.
fn bare(volume: &VolumeText) -> VolumeText {
    let options = volume.options.iter().map(|(key, value, _)| (key.clone(), value.clone(), 0)).collect();
    let subvolumes = volume.subvolumes.iter().map(|(name, _)| (name.clone(), 0)).collect();
    VolumeText { options, subvolumes, line: 0, kind_line: 0, ..volume.clone() }
}

proptest! {
    #[test]
    fn what_is_written_is_read(volumes in prop::collection::vec(volume(), 1..8)) {
        let text: String = volumes.iter().map(written).collect();
        let read: Vec<VolumeText> = parse(&text).unwrap().iter().map(bare).collect();
        prop_assert_eq!(read, volumes);
    }

    #[test]
    fn any_bytes_are_read_or_refused_in_one_line(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = text(&bytes).and_then(parse) {
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn any_words_are_read_or_refused_in_one_line(
        text in "((volume|type|option|subvolumes|end-volume|a|\"b\"|\"|\\\\|#|\u{1b}|\u{85})[ \n]){0,40}"
    ) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }
}
