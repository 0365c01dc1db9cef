use super::*;

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Way {
    #[arg(long)]
    stdio: bool,
    #[arg(long)]
    listen: Option<PathBuf>,
}

#[derive(clap::Parser)]
struct Options {
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    check: bool,
    #[arg(long, hide = true)]
    worker: Option<i32>,
    #[arg(long, conflicts_with = "fd")]
    socket_path: Option<PathBuf>,
    #[arg(long, value_parser = clap::value_parser!(i32).range(3..))]
    fd: Option<i32>,
    #[arg(long, value_parser = ["on", "off"], default_value = "on")]
    keeper: String,
    #[arg(long)]
    device: Vec<String>,
    #[command(flatten)]
    way: Way,
}

fn command() -> Command {
    <Options as clap::CommandFactory>::command()
}

/// What becomes of this command line with this file.
fn expanded(text: &str, line: &[&str]) -> Result<Vec<String>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let config = file.path().display().to_string();
    let args = ["prog", "--config", &config].into_iter().chain(line.iter().copied());
    let args = expand(&command(), args.map(OsString::from).collect());
    let strip = |error: ConfigError| error.to_string().replace(&format!("--config {config}, "), "");
    let args: Vec<String> = args.map_err(strip)?.into_iter().map(|arg| arg.into_string().unwrap()).collect();
    let end = args.iter().position(|arg| arg == "--config").unwrap();
    assert_eq!(args[0], "prog");
    assert_eq!(args[end + 2..], *line);
    Ok(args[1..end].to_vec())
}

#[test]
fn keys_become_options_in_their_order() {
    let text = "stdio = true\nsocket-path = '/a b'\nkeeper = 'off'\ndevice = ['x', \"y\"]\n";
    let args = ["--stdio", "--socket-path=/a b", "--keeper=off", "--device=x", "--device=y"];
    assert_eq!(expanded(text, &[]).unwrap(), args);
    assert_eq!(expanded("fd = 0x1_0", &[]).unwrap(), ["--fd=16"]);
    for nothing in ["", "# fd = 3\n", "stdio = false", "device = []"] {
        assert!(expanded(nothing, &[]).unwrap().is_empty(), "{nothing}");
    }
}

#[test]
fn without_a_file_the_command_line_stays_as_it_is() {
    for line in [&["prog"][..], &["prog", "--help"], &["prog", "--nonsense"], &[]] {
        let args: Vec<OsString> = line.iter().map(OsString::from).collect();
        assert_eq!(expand(&command(), args.clone()).unwrap(), args);
    }
}

#[test]
fn the_command_line_wins_over_the_key_and_over_what_excludes_it() {
    let text = "listen = '/l'\nsocket-path = '/s'\ndevice = ['x']";
    for (line, kept) in [
        (&["--socket-path", "/t"][..], &["--listen=/l", "--device=x"][..]),
        (&["--fd=3"], &["--listen=/l", "--device=x"]),
        (&["--stdio"], &["--socket-path=/s", "--device=x"]),
        (&["--device", "y"], &["--listen=/l", "--socket-path=/s", "--device=x"]),
    ] {
        assert_eq!(expanded(text, line).unwrap(), kept, "{line:?}");
    }
    assert!(expanded("fd = 7", &["--socket-path", "/t"]).unwrap().is_empty());
}

#[test]
fn every_mistake_has_its_line_and_its_cure() {
    for (text, told) in [
        ("\nsockt-path = '/a'", "line 2: unknown key `sockt-path`; did you mean `socket-path`?"),
        ("socket_path = '/a'", "line 1: unknown key `socket_path`; did you mean `socket-path`?"),
        (
            "[a]\nb = 1",
            "line 1: unknown key `a`; the keys are socket-path, fd, keeper, device, stdio, listen",
        ),
        ("worker = 3", "line 1: unknown key `worker`; the keys are"),
        ("config = 'x'", "line 1: `config` cannot stand in a file; give --config on the command line"),
        ("check = true", "line 1: `check` cannot stand in a file; give --check on the command line"),
        ("fd = 3\n\nfd = 4", "line 3: duplicate key"),
        ("fd = 3\nfd ", "line 2: "),
        ("fd = '3'", "line 1: fd = '3': give a number without quotes"),
        ("fd = 3.5", "line 1: fd = 3.5: give a number without quotes"),
        ("keeper = true", "line 1: keeper = true: give a string in quotes"),
        ("listen = 7", "line 1: listen = 7: give a string in quotes"),
        ("listen = [\n'a',\n]", "line 1: listen = [...: give a string in quotes"),
        ("listen = {a = 1}", "line 1: listen = {a = 1}: give a string in quotes"),
        ("stdio = 'true'", "line 1: stdio = 'true': give true or false"),
        ("device = 'x'", "line 1: device = 'x': give a list in brackets, each a string in quotes"),
        ("device = ['x', 1]", "line 1: device = ['x', 1]: give a list"),
        ("fd = 2", "line 1: fd = 2: 2 is not in 3..=2147483647"),
        ("fd = 0xffff_ffff_ffff", "line 1: fd = 0xffff_ffff_ffff: 281474976710655 is not in"),
        ("keeper = 'perhaps'", "line 1: keeper = 'perhaps': give one of on, off"),
        ("listen = ''", "line 1: listen = '': give a value"),
        ("listen = \"a\\u0000\"", "line 1: listen = \"a\\u0000\": it holds a NUL character"),
        (
            "listen = 'a'\nstdio = true",
            "line 2: stdio cannot stand beside listen of line 1; leave one of them out",
        ),
        ("fd = 3\nsocket-path = 'a'", "line 2: socket-path cannot stand beside fd of line 1"),
    ] {
        let error = expanded(text, &[]).unwrap_err();
        assert!(error.starts_with(told), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_mistake_is_told_though_the_command_line_would_win() {
    assert!(expanded("fd = 2", &["--fd", "4"]).is_err());
}

#[test]
fn files_that_cannot_be_read_and_files_without_end_are_told() {
    let told = |path: &str| {
        let args = ["prog", "--config", path].map(OsString::from).to_vec();
        expand(&command(), args).unwrap_err().to_string()
    };
    for (path, words) in [("/nowhere.toml", "No such file"), ("/", "directory"), ("/dev/zero", "longer than")]
    {
        let error = told(path);
        assert!(error.starts_with(&format!("--config {path}: ")) && error.contains(words), "{error}");
        assert!(error.contains("give a TOML file"), "{error}");
    }
    let binary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(binary.path(), [0xff, 0xfe]).unwrap();
    assert!(told(binary.path().to_str().unwrap()).contains("UTF-8"));
}

proptest::proptest! {
    #[test]
    fn any_string_arrives_as_it_stands_in_the_file(value in "[^\u{0}\u{7f}]{1,40}") {
        // A string of JSON is one of TOML, but for DEL.
        let args = expanded(&format!("stdio = true\nsocket-path = {}", serde_json::json!(value)), &[]).unwrap();
        let parsed = command().try_get_matches_from([vec!["prog".to_owned()], args].concat()).unwrap();
        proptest::prop_assert_eq!(parsed.get_one::<PathBuf>("socket_path").unwrap(), Path::new(&value));
    }
}
