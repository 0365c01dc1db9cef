use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
static SETTINGS: [Setting; 9] = [
    Setting { name: "path", kind: Type::Path, preset: Preset::Required, about: "where it is" },
    Setting { name: "direct", kind: Type::Bool, preset: Preset::Is("off"), about: "" },
    Setting { name: "burst", kind: Type::Size(4096..=1 << 30), preset: Preset::Is("64K"), about: "" },
    Setting { name: "length", kind: Type::Size(512..=u64::MAX), preset: Preset::Absent, about: "" },
    Setting { name: "depth", kind: Type::Number(1..=128), preset: Preset::Absent, about: "" },
    Setting { name: "failure", kind: Type::Percent, preset: Preset::Absent, about: "" },
    Setting {
        name: "delay",
        kind: Type::Duration(MS..=Duration::from_secs(60)),
        preset: Preset::Absent,
        about: "",
    },
    Setting { name: "errno", kind: Type::Enum(&["EIO", "ENOSPC"]), preset: Preset::Is("EIO"), about: "" },
    Setting { name: "note", kind: Type::Text(1..=8), preset: Preset::Absent, about: "" },
];

/// A volume with a path and these options, each in a line of its own from 10 on.
fn volume(options: &[(&str, &str)]) -> VolumeText {
    let all = [("path", "/srv/a.img")].into_iter().chain(options.iter().copied()).zip(10..);
    let options = all.map(|((key, value), line)| (key.to_owned(), value.to_owned(), line)).collect();
    VolumeText { line: 8, options, ..VolumeText::new("disk", "storage/file") }
}

fn values(options: &[(&str, &str)]) -> Values {
    volume(options).values(&SETTINGS).unwrap()
}

#[test]
fn values_are_of_their_types() {
    let all = values(&[
        ("direct", "yes"),
        ("burst", "1M"),
        ("length", "2T"),
        ("depth", "128"),
        ("failure", "0.05%"),
        ("delay", "1s 500ms"),
        ("errno", "ENOSPC"),
        ("note", "a b"),
    ]);
    assert_eq!(all.path("path"), Some(Path::new("/srv/a.img")));
    assert!(all.bool("direct"));
    assert_eq!(
        (all.number("burst"), all.number("length"), all.number("depth")),
        (Some(1 << 20), Some(2 << 40), Some(128))
    );
    assert_eq!(all.millionths("failure"), Some(500));
    assert_eq!(all.duration("delay"), Some(1500 * MS));
    assert_eq!((all.word("errno"), all.text("note")), (Some("ENOSPC"), Some("a b")));
}

#[test]
fn what_is_not_said_is_preset_or_absent() {
    let preset = values(&[]);
    assert_eq!(
        (preset.number("burst"), preset.word("errno"), preset.bool("direct")),
        (Some(64 << 10), Some("EIO"), false)
    );
    assert_eq!((preset.number("depth"), preset.number("path"), preset.text("nothing")), (None, None, None));
    assert!(preset.is_given("path") && !preset.is_given("burst"));
    let written: Vec<_> = preset.written().collect();
    assert_eq!(written, [("burst", "64K"), ("direct", "off"), ("errno", "EIO"), ("path", "/srv/a.img")]);
}

#[test]
fn what_differs_is_found_by_value_and_not_by_its_text() {
    let changed = |one: &[(&str, &str)], other: &[(&str, &str)]| {
        values(one).changed(&values(other)).collect::<Vec<_>>()
    };
    assert!(changed(&[("burst", "65536")], &[]).is_empty());
    assert_eq!(changed(&[("burst", "1M"), ("depth", "1")], &[("note", "x")]), ["burst", "depth", "note"]);
}

#[test]
fn every_way_to_write_a_value() {
    let read = |kind: &Type, text: &str| kind.read(text);
    for (text, expected) in
        [("on", true), ("yes", true), ("true", true), ("off", false), ("no", false), ("false", false)]
    {
        assert_eq!(read(&Type::Bool, text), Some(Value::Bool(expected)), "{text}");
    }
    for (text, expected) in [("0", 0), ("512", 512), ("64K", 64 << 10), ("10G", 10 << 30), ("1T", 1 << 40)] {
        assert_eq!(size(text), Some(expected), "{text}");
    }
    for (text, expected) in
        [("0", 0), ("5", 50_000), ("5%", 50_000), ("0.0001%", 1), ("99.9", 999_000), ("100%", 1_000_000)]
    {
        assert_eq!(percent(text), Some(expected), "{text}");
    }
    for (text, expected) in [("0", 0), ("10ms", 10), ("2s", 2000), ("1m 30s", 90_000), ("1m30s", 90_000)] {
        assert_eq!(duration(text), Some(expected * MS), "{text}");
    }
}

/// What a file says that cannot be, and what is told of it.
#[test]
fn wrong_values_are_told_with_their_line_what_is_right_and_the_cure() {
    const SIZE: &str = "give a size from 4K to 1G, as in 512, 64K, 1M or 10G";
    const TIME: &str = "give a duration from 1ms to 1m, as in 10ms or 2s";
    const SHARE: &str = "it is no percentage; give a percentage from 0 to 100, as in 5 or 0.01%";
    let size = |fault: &str| format!("it is {fault}; {SIZE}");
    let time = |fault: &str| format!("it is {fault}; {TIME}");
    let number = |fault: &str| format!("it is {fault}; give a number from 1 to 128");
    let bool = || "it is neither on nor off; give on or off".to_owned();
    for (key, value, told) in [
        ("direct", "maybe", bool()),
        ("direct", "1", bool()),
        ("direct", "ON", bool()),
        ("direct", "\"\"", bool()),
        ("burst", "4095", size("out of range")),
        ("burst", "2G", size("out of range")),
        ("burst", "99999999T", size("no size")),
        ("burst", "64k", size("no size")),
        ("burst", "64KB", size("no size")),
        ("burst", "64KiB", size("no size")),
        ("burst", "1.5M", size("no size")),
        ("burst", "-1", size("no size")),
        ("burst", "+4096", size("no size")),
        ("burst", "K", size("no size")),
        ("burst", "0x1000", size("no size")),
        ("burst", "18446744073709551616", size("no size")),
        (
            "length",
            "511",
            "it is out of range; give a size of at least 512, as in 512, 64K, 1M or 10G".to_owned(),
        ),
        ("depth", "0", number("out of range")),
        ("depth", "129", number("out of range")),
        ("depth", "1K", number("no number")),
        ("depth", "ten", number("no number")),
        ("depth", "1e2", number("no number")),
        ("depth", "\u{664}", number("no number")),
        ("failure", "101", SHARE.to_owned()),
        ("failure", "100.0001", SHARE.to_owned()),
        ("failure", "5 %", SHARE.to_owned()),
        ("failure", "0.00001%", SHARE.to_owned()),
        ("failure", ".5", SHARE.to_owned()),
        ("failure", "5.", SHARE.to_owned()),
        ("failure", "-1", SHARE.to_owned()),
        ("failure", "%", SHARE.to_owned()),
        ("failure", "4294967295", SHARE.to_owned()),
        ("delay", "10", time("no duration")),
        ("delay", "ms", time("no duration")),
        ("delay", "-1s", time("no duration")),
        ("delay", "1s 1", time("no duration")),
        ("delay", "99999999999999999999s", time("no duration")),
        ("delay", "0", time("out of range")),
        ("delay", "999us", time("out of range")),
        ("delay", "61s", time("out of range")),
        ("errno", "eio", "it is none of the words there are; give one of EIO, ENOSPC".to_owned()),
        ("errno", "5", "it is none of the words there are; give one of EIO, ENOSPC".to_owned()),
        ("note", "", "it is empty; give a text of 1 to 8 bytes".to_owned()),
        ("note", "123456789", "it is too long; give a text of 1 to 8 bytes".to_owned()),
    ] {
        let error = volume(&[(key, value)]).values(&SETTINGS).unwrap_err();
        let expected = format!("11: volume disk: option {key} {}: {told}", Shown(value));
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn paths_have_an_end() {
    let told = |path: &str| {
        let options = vec![("path".to_owned(), path.to_owned(), 3)];
        let volume = VolumeText { options, ..VolumeText::new("disk", "storage/file") };
        volume.values(&SETTINGS).unwrap_err().to_string()
    };
    assert_eq!(told(""), "3: volume disk: option path \"\": it is empty; give a path of at most 4095 bytes");
    assert!(told(&"/a".repeat(2048)).ends_with("...: it is too long; give a path of at most 4095 bytes"));
}

#[test]
fn options_that_are_not_there_or_missing_are_told() {
    let error = |options: &[(&str, &str)]| volume(options).values(&SETTINGS).unwrap_err().to_string();
    let all = "it takes path, direct, burst, length, depth, failure, delay, errno, note";
    assert_eq!(
        error(&[("derect", "on")]),
        format!(
            "11: volume disk: option derect on: storage/file has no such option; `direct` is meant, perhaps; {all}"
        )
    );
    assert_eq!(
        error(&[("xyz", "on")]),
        format!("11: volume disk: option xyz on: storage/file has no such option; {all}")
    );
    assert_eq!(
        volume(&[]).values(&[]).unwrap_err().to_string(),
        "10: volume disk: option path /srv/a.img: storage/file has no such option; it takes none, leave this out"
    );
    let bare = VolumeText { line: 3, ..VolumeText::new("disk", "storage/file") };
    assert_eq!(
        bare.values(&SETTINGS).unwrap_err().to_string(),
        "3: volume disk: option path: it is missing; add `option path PATH`"
    );
    assert_eq!(
        bare.refuse(&Bad::volume("it stands on nothing; add `subvolumes NAME`")).to_string(),
        "3: volume disk: it stands on nothing; add `subvolumes NAME`"
    );
}

#[test]
fn sizes_are_shown_as_they_are_written() {
    for (bytes, text) in
        [(0, "0"), (512, "512"), (4096, "4K"), (3 << 19, "1536K"), (10 << 30, "10G"), (1 << 40, "1T")]
    {
        assert_eq!(in_units(&bytes), text);
        assert_eq!(size(text), Some(bytes));
    }
}

#[test]
fn presets_are_values_themselves() {
    assert!(SETTINGS.iter().all(Setting::preset_is_valid));
    let wrong = Setting { preset: Preset::Is("maybe"), kind: Type::Bool, name: "wrong", about: "" };
    assert!(!wrong.preset_is_valid());
    assert_eq!(SETTINGS[2].to_json()["default"], "64K");
    assert_eq!(SETTINGS[0].to_json()["required"], true);
}

proptest! {
    #[test]
    fn any_text_is_a_value_or_refused_in_one_line(text in any::<String>(), nth in 0..9usize) {
        if let Err(bad) = SETTINGS[nth].read(&text) {
            let told = volume(&[]).refuse(&bad).to_string();
            prop_assert!(!told.contains(char::is_control));
        }
    }

    #[test]
    fn every_size_is_read_as_it_is_shown(bytes in any::<u64>()) {
        prop_assert_eq!(size(&in_units(&bytes)), Some(bytes));
    }
}
