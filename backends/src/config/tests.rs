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
    #[arg(long, value_name = "TYPE,socket=PATH[,queues=N]")]
    device: Vec<String>,
    #[arg(long, value_name = "bytes=SIZE,ops=N")]
    limit: Option<crate::limit::Limit>,
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    way: Way,
}

fn command() -> Command {
    negatable(<Options as clap::CommandFactory>::command())
}

/// What becomes of this command line with this file.
fn expanded(text: &str, line: &[&str]) -> Result<Vec<String>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let config = file.path().display().to_string();
    let args = ["prog", "--config", &config].into_iter().chain(line.iter().copied());
    let args = expand(&command(), args.map(OsString::from).collect());
    let strip = |error: ConfigError| error.to_string().replace(&format!("--config {config}, "), "");
    let args: Vec<String> =
        args.map_err(strip)?.0.into_iter().map(|arg| arg.into_string().unwrap()).collect();
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
    assert_eq!(expanded("stdio = false\nlisten = 'a'", &[]).unwrap(), ["--listen=a"]);
    for nothing in ["", "# fd = 3\n", "stdio = false", "device = []"] {
        assert!(expanded(nothing, &[]).unwrap().is_empty(), "{nothing}");
    }
}

#[test]
fn without_a_file_the_command_line_stays_as_it_is() {
    for line in [&["prog"][..], &["prog", "--help"], &["prog", "--nonsense"], &[]] {
        let args: Vec<OsString> = line.iter().map(OsString::from).collect();
        assert_eq!(expand(&command(), args.clone()).unwrap().0, args);
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
            "[xyzzy]\nb = 1",
            "line 1: unknown key `xyzzy`; the keys are socket-path, fd, keeper, device, limit, memory, read-only, stdio, listen",
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
        (
            "device = 'x'",
            "line 1: device = 'x': give a table [[device]] for each, or a list in brackets, each a string",
        ),
        ("device = ['x', 1]", "line 1: device = ['x', 1]: give a table"),
        ("memory = true", "line 1: memory = true: give a number, or a string like \"64M\""),
        ("limit = 7", "line 1: limit = 7: give a string in quotes or a table [limit]"),
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
fn tables_become_the_one_string_of_a_command_line() {
    for (text, args) in [
        ("[limit]\nops = 7\nbytes = '1M'", &["--limit=bytes=1M,ops=7"][..]),
        ("limit = {bytes = 4096}\nmemory = 1", &["--limit=bytes=4096", "--memory=1"]),
        ("limit.ops = 3", &["--limit=ops=3"]),
        (
            "[[device]]\nsocket = '/a'\ntype = 'blk'\nqueues = 0x10\n[[device]]\ntype = 'rng'",
            &["--device=blk,socket=/a,queues=16", "--device=rng"],
        ),
        ("device = ['rng,socket=/b', {type = 'blk'}]", &["--device=rng,socket=/b", "--device=blk"]),
    ] {
        assert_eq!(expanded(text, &[]).unwrap(), args, "{text}");
    }
}

#[test]
fn a_mistake_in_a_table_is_told_with_its_own_line() {
    for (text, told) in [
        ("[limit]\n\nbyte = 1", "line 3: unknown key `limit.byte`; its keys are bytes, ops;"),
        (
            "[limit]\nops = 1\nfd = 3",
            "line 3: unknown key `limit.fd`; its keys are bytes, ops; other options stand above",
        ),
        ("[limit]\nops = 1\nbytes = 0", "line 3: limit.bytes = 0: give bytes a second, 1 or more"),
        ("[limit]\nops = 'x'", "line 2: limit.ops = 'x': give a number without quotes"),
        ("[limit]\nbytes = true", "line 2: limit.bytes = true: give a number, or a string like \"64M\""),
        ("fd = 3\n[limit]", "line 2: limit = [limit]: `` is none of bytes=N, ops=N"),
        (
            "[[device]]\ntype = 'a'\n[[device]]\nsocket = 's'",
            "line 3: device: type is missing; give a string",
        ),
        (
            "[[device]]\ntype = 'a'\nsocket = 'b,queues=4'",
            "line 3: device.socket = 'b,queues=4': it holds a comma",
        ),
        ("[[device]]\ntype = 'a'\n[device.type]", "line 3: "),
        ("[memory]\na = 1", "line 1: memory = [memory]: give a number"),
    ] {
        let error = expanded(text, &[]).unwrap_err();
        assert!(error.starts_with(told), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_flag_of_the_file_can_be_taken_back() {
    let read_only = |text: &str, line: &[&str]| {
        let args = [&["prog".to_owned()][..], &expanded(text, line).unwrap()].concat();
        let args = args.into_iter().chain(line.iter().map(|arg| (*arg).to_owned()));
        command().try_get_matches_from(args).unwrap().get_flag("read_only")
    };
    let text = "stdio = true\nread-only = true";
    assert!(read_only(text, &[]));
    assert!(!read_only(text, &["--no-read-only"]));
    assert!(read_only(text, &["--no-read-only", "--read-only"]));
    assert!(!read_only("stdio = true", &["--read-only", "--no-read-only"]));
    assert!(!read_only("stdio = true\nread-only = false", &[]));
    assert!(expanded("no-read-only = true", &[]).unwrap_err().contains("give read-only = false"));
    assert!(command().try_get_matches_from(["prog", "--no-check"]).is_err());
}

#[test]
fn what_the_file_said_is_found_again() {
    let text = "stdio = true\n\ndevice = ['a',\n'b']\n[limit]\nops = 1";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let args = ["prog", "--config", file.path().to_str().unwrap(), "--fd", "3"].map(OsString::from);
    let (_, origin) = expand(&command(), args.to_vec()).unwrap();
    let line = |message: &str| origin.located(message.to_owned()).split_once(": ").unwrap().0.to_owned();
    for (message, nth) in [("--stdio: x", 1), ("--device a: x", 3), ("--device b: x", 4), ("--limit: x", 5)] {
        assert!(line(message).ends_with(&format!(", line {nth}")), "{message}");
    }
    assert_eq!(line("--fd 3: x"), "--fd 3");
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
