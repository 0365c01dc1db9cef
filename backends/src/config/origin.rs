//! Which line of the file an option came from, for what is found only when it is used.
//!
//! In: the arguments that the file stands for, and a message that begins with an option, as all of ours do. Out: the
//! same message behind the file's name and the line, if the file said so; otherwise as it was, for then the operator
//! has typed it.
//!
//! ```text
//! --image /nowhere.img: no such file   →   --config disk.toml, line 3: --image /nowhere.img: no such file
//! ```

use std::path::PathBuf;

/// Where the options of a command line stand in its file; nowhere, if there is none.
#[derive(Debug, Default)]
pub struct Origin {
    pub(super) path: PathBuf,
    /// Arguments, each with its line.
    pub(super) lines: Vec<(String, usize)>,
}

impl Origin {
    /// The message with the place of the option that it begins with.
    pub fn located(&self, message: String) -> String {
        match self.lines.iter().find(|(arg, _)| is_about(&message, arg)) {
            Some((_, line)) => format!("--config {}, line {line}: {message}", self.path.display()),
            None => message,
        }
    }
}

/// Whether the message begins with this option, and with its value if it shows one.
fn is_about(message: &str, arg: &str) -> bool {
    let (option, value) = arg.split_once('=').unwrap_or((arg, ""));
    let Some(rest) = message.strip_prefix(option) else { return false };
    let ends = |rest: &str| rest.starts_with([':', ' ', ';']);
    rest.starts_with(':')
        || rest.strip_prefix(' ').and_then(|rest| rest.strip_prefix(value)).is_some_and(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_about_what_the_file_says_gets_its_line() {
        let lines = [("--image=/a b.img", 2), ("--stdio", 3), ("--device=rng", 5), ("--device=rng,id=x", 9)];
        let lines = lines.map(|(arg, line)| (arg.to_owned(), line)).to_vec();
        let origin = Origin { path: "vm.toml".into(), lines };
        let line = |message: &str| {
            let located = origin.located(message.to_owned());
            let place = located.strip_suffix(message).unwrap().strip_prefix("--config vm.toml, line ");
            place.map(|place| place.trim_end_matches(": ").to_owned())
        };
        for (message, expected) in [
            ("--image /a b.img: no such file", Some("2")),
            ("--image /a: typed by the operator", None),
            ("--image: too many", Some("2")),
            ("--stdio: closed", Some("3")),
            ("--device rng: no socket", Some("5")),
            ("--device rng,id=x: no socket", Some("9")),
            ("--device rng,id=xy: no socket", None),
            ("--images /a b.img: another option", None),
            ("Cannot go on: --image", None),
        ] {
            assert_eq!(line(message).as_deref(), expected, "{message}");
        }
        assert_eq!(Origin::default().located("--image x: no".to_owned()), "--image x: no");
    }
}
