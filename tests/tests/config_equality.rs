//! A file of options means what the same command line means: for every option of every program.
//!
//! Options and values are drawn at random, good ones and bad ones, and said in TOML and on a command line: both are
//! refused, or both are parsed into the same. How a value is written in TOML follows from its option, found out here
//! once more, so that an option that is added to a program needs nothing here.

use std::any::TypeId;
use std::cell::Cell;
use std::ffi::OsString;

use backends::config::{expand, keys};
use backends::daemon::command;
use clap::{Arg, ArgAction, ArgMatches, Command};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

/// Draws for each program, and how many of them at least must be good ones.
const CASES: u32 = 400;
const GOOD: u32 = 20;
/// Most options of a draw, beside those that must be there.
const MOST: usize = 3;
/// Values that mean something to some option.
const WORDS: [&str; 20] = [
    "",
    "-1",
    "0",
    "1",
    "3",
    "64",
    "512",
    "99999999999999999999",
    "1M",
    "0-1",
    "/a b/c",
    "on",
    "off",
    "epoll",
    "WARN",
    "0,1",
    "bytes=1M,ops=7",
    "ops=0",
    "rng,socket=/r",
    "getrandom",
];

fn programs() -> [Command; 4] {
    let run = outboard::cli::command().find_subcommand("run").cloned();
    [
        command::<outboard_rng::config::Options>(),
        command::<outboard_blk::config::Options>(),
        command::<outboard_console::config::Options>(),
        run.unwrap(),
    ]
}

/// What a draw says with one option.
#[derive(Clone, Debug)]
struct Saying {
    /// Line of the file, and the part of it below its own header.
    toml: (String, String),
    args: Vec<String>,
}

/// A value in TOML, and on a command line.
type Value = (Written, String);

/// How a value stands in a file.
#[derive(Clone, Debug)]
enum Written {
    Plain(String),
    /// Keys with their values.
    Table(Vec<String>),
}

impl Written {
    fn inline(&self) -> String {
        match self {
            Written::Plain(text) => text.clone(),
            Written::Table(pairs) => format!("{{{}}}", pairs.join(", ")),
        }
    }

    fn headed(&self, header: &str) -> Option<String> {
        let Written::Table(pairs) = self else { return None };
        Some(format!("{header}\n{}\n", pairs.join("\n")))
    }
}

/// Anything that could be typed for this option.
fn text(arg: &Arg) -> BoxedStrategy<String> {
    let known: Vec<String> =
        arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let words = select(WORDS.map(str::to_owned).to_vec());
    let any = prop_oneof![4 => words, 1 => "[^\u{0}\u{7f}]{0,12}"];
    if known.is_empty() { any.boxed() } else { prop_oneof![4 => select(known), 1 => any].boxed() }
}

/// As TOML has it: a string of JSON is one of TOML, but for DEL.
fn quoted(text: &str) -> String {
    serde_json::json!(text).to_string()
}

fn number(text: &str) -> String {
    let digits = text.trim_start_matches('-');
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.to_owned() } else { quoted(text) }
}

fn is_number(arg: &Arg) -> bool {
    let parsed = arg.get_value_parser().type_id();
    let ids = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<i32>(),
    ];
    ids.iter().any(|id| parsed == *id)
}

fn value(arg: &Arg) -> BoxedStrategy<Value> {
    let name = arg.get_value_names().map_or(String::new(), |names| names[0].to_string());
    let numeric = is_number(arg) || name == "SIZE";
    let write =
        move |text: String| (Written::Plain(if numeric { number(&text) } else { quoted(&text) }), text);
    let plain = text(arg).prop_map(write);
    if name.contains('=') { prop_oneof![1 => plain, 3 => table(&name)].boxed() } else { plain.boxed() }
}

/// Parts as the name of the value shows them, all that stand alone and some of the others.
fn table(name: &str) -> BoxedStrategy<Value> {
    let parts: Vec<String> =
        name.split(['[', ']', ',']).filter(|part| !part.is_empty()).map(Into::into).collect();
    let good = |placeholder: &str| match placeholder {
        "N" => select(vec!["1", "2", "64", "0"]),
        "SIZE" => select(vec!["1M", "4096", "0"]),
        "TYPE" => select(vec!["blk", "rng", "teapot"]),
        _ => select(vec!["/run/x y", "name", ""]),
    };
    let draw = move |part: &String| {
        let (key, placeholder) =
            part.split_once('=').map_or((None, part.as_str()), |(key, name)| (Some(key), name));
        let (placeholder, key) = (placeholder.to_owned(), key.map(str::to_owned));
        let drawn = good(&placeholder);
        let drawn =
            if key.is_some() { prop::option::of(drawn).boxed() } else { drawn.prop_map(Some).boxed() };
        drawn.prop_map(move |value| {
            let value = value?;
            let numeric = matches!(placeholder.as_str(), "N" | "SIZE");
            let toml = if numeric { number(value) } else { quoted(value) };
            let name = key.clone().unwrap_or_else(|| placeholder.to_lowercase());
            let arg = key.as_ref().map_or(value.to_owned(), |key| format!("{key}={value}"));
            Some((format!("{name} = {toml}"), arg))
        })
    };
    let drawn: Vec<_> = parts.iter().map(draw).collect();
    let join = |parts: Vec<Option<(String, String)>>| {
        let (toml, args): (Vec<_>, Vec<_>) = parts.into_iter().flatten().unzip();
        (Written::Table(toml), args.join(","))
    };
    drawn.prop_map(join).boxed()
}

fn saying(arg: &Arg) -> BoxedStrategy<Saying> {
    let name = arg.get_long().unwrap().to_owned();
    let flag = |name: &str| format!("--{name}");
    let header = move |inline: String, headed: String, as_header: bool| {
        if as_header && !headed.is_empty() { (String::new(), headed) } else { (inline, String::new()) }
    };
    match arg.get_action() {
        ArgAction::SetTrue => any::<bool>()
            .prop_map(move |on| Saying {
                toml: (format!("{name} = {on}\n"), String::new()),
                args: vec![if on { flag(&name) } else { format!("--no-{name}") }],
            })
            .boxed(),
        ArgAction::Append => (prop::collection::vec(value(arg), 0..3), any::<bool>())
            .prop_map(move |(values, as_header)| {
                let inline: Vec<String> = values.iter().map(|(toml, _)| toml.inline()).collect();
                let headed: Option<String> =
                    values.iter().map(|(toml, _)| toml.headed(&format!("[[{name}]]"))).collect();
                let inline = format!("{name} = [{}]\n", inline.join(", "));
                let args = values.iter().map(|(_, text)| format!("{}={text}", flag(&name)));
                Saying { toml: header(inline, headed.unwrap_or_default(), as_header), args: args.collect() }
            })
            .boxed(),
        _ => (value(arg), any::<bool>())
            .prop_map(move |((toml, text), as_header)| {
                let inline = format!("{name} = {}\n", toml.inline());
                let headed = toml.headed(&format!("[{name}]")).unwrap_or_default();
                let args = vec![format!("{}={text}", flag(&name))];
                Saying { toml: header(inline, headed, as_header), args }
            })
            .boxed(),
    }
}

/// Some options of this program, and those that it cannot do without.
fn sayings(program: &Command) -> BoxedStrategy<Vec<Saying>> {
    let keys: Vec<&str> = keys(program).collect();
    let args = program.get_arguments().filter(|arg| arg.get_long().is_some_and(|name| keys.contains(&name)));
    // A disk is an image or a graph: without one of them nothing can be used.
    let is_needed = |arg: &&Arg| arg.is_required_set() || arg.get_id() == "image";
    let (needed, others): (Vec<&Arg>, Vec<&Arg>) = args.partition(is_needed);
    let needed: Vec<_> = needed.into_iter().map(saying).collect();
    let others: Vec<_> = others.into_iter().map(saying).collect();
    let some = subsequence(others, 0..=MOST).prop_flat_map(|some| some);
    (needed, some).prop_map(|(needed, some)| [needed, some].concat()).boxed()
}

fn parse(program: &Command, args: Vec<OsString>) -> Option<ArgMatches> {
    program.clone().try_get_matches_from(args).ok()
}

/// What the program is told with each option that a file may have.
fn told(program: &Command, matches: &ArgMatches) -> Vec<(String, Vec<OsString>)> {
    let keys: Vec<&str> = keys(program).collect();
    let args = program.get_arguments().filter(|arg| arg.get_long().is_some_and(|name| keys.contains(&name)));
    args.map(|arg| {
        let id = arg.get_id().as_str();
        let values = match arg.get_action() {
            ArgAction::SetTrue => vec![matches.get_flag(id).to_string().into()],
            _ => matches.get_raw(id).into_iter().flatten().map(Into::into).collect(),
        };
        (id.to_owned(), values)
    })
    .collect()
}

#[test]
fn a_file_means_what_the_same_command_line_means() {
    let dir = tempfile::tempdir().unwrap();
    for program in programs() {
        let (good, path) = (Cell::new(0), dir.path().join(program.get_name()));
        let mut runner =
            TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
        let ran = runner.run(&sayings(&program), |sayings| {
            let of = |part: fn(&Saying) -> &str| sayings.iter().map(part).collect::<String>();
            std::fs::write(&path, of(|saying| &saying.toml.0) + &of(|saying| &saying.toml.1)).unwrap();
            let name = || OsString::from("program");
            let line = sayings.iter().flat_map(|saying| saying.args.iter().map(OsString::from));
            let line = parse(&program, [name()].into_iter().chain(line).collect());
            let file = expand(&program, vec![name(), "--config".into(), path.clone().into()]);
            let file = file.ok().and_then(|(args, _)| parse(&program, args));
            good.set(good.get() + u32::from(line.is_some()));
            let told = |matches: &ArgMatches| told(&program, matches);
            prop_assert_eq!(file.as_ref().map(told), line.as_ref().map(told));
            Ok(())
        });
        ran.unwrap_or_else(|error| panic!("{}: {error}", program.get_name()));
        let good = good.get();
        assert!(good >= GOOD, "{}: only {good} of {CASES} draws can be used", program.get_name());
    }
}
