//! Once, or again and again: asks, shows, waits.
//!
//! On a terminal each screen takes the place of the one before it, cut to the lines that the terminal has; elsewhere
//! they follow each other, an empty line between them. A program that is away for a while is told of in place of its
//! screen, and asked again. Ctrl-C ends it.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::termios::tcgetwinsize;

use super::error::CtlError;
use super::rates::Sample;
use super::screen::{clean, paragraph};

/// To the upper left corner; clear what follows on the line; clear what follows on the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\n";
const CLEAR_REST: &str = "\x1b[K\x1b[J";

/// Where screens go.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// Columns, if it is one.
    pub width: Option<usize>,
    height: Option<usize>,
}

impl Terminal {
    /// Standard output, as large as it is now.
    pub fn now() -> Terminal {
        let size = io::stdout().is_terminal().then(|| tcgetwinsize(io::stdout()).ok()).flatten();
        let some = |lines: u16| Some(usize::from(lines)).filter(|lines| *lines > 0);
        Terminal {
            width: size.and_then(|size| some(size.ws_col)),
            height: size.and_then(|size| some(size.ws_row)),
        }
    }
}

/// Prints a text as it is, but for what would play with the terminal.
///
/// # Errors
/// [`CtlError::Output`]; a reader that has gone has seen enough, and is none.
pub fn print(text: &str) -> Result<(), CtlError> {
    write(&clean(text)).map(drop)
}

/// Asks and shows, once or with this pause in between; then `show` gets the answer before, too, and the first answer
/// twice.
///
/// # Errors
/// The first time there is no answer, or nobody to show it to.
pub fn show<T>(
    pause: Option<Duration>,
    mut ask: impl FnMut() -> Result<T, CtlError>,
    show: impl Fn(&Sample<T>, Option<&Sample<T>>, Option<usize>) -> String,
) -> Result<(), CtlError> {
    let mut last = Sample::now(ask()?);
    let mut text = show(&last, pause.map(|_| &last), Terminal::now().width);
    let Some(pause) = pause else { return print(&text) };
    while draw(&text, Terminal::now())? {
        std::thread::sleep(pause);
        text = match ask().map(Sample::now) {
            Ok(now) => {
                let text = show(&now, Some(&last), Terminal::now().width);
                last = now;
                text
            }
            Err(error) => paragraph(&error.to_string(), Terminal::now().width),
        };
    }
    Ok(())
}

/// One screen; false when nobody looks any more.
fn draw(text: &str, terminal: Terminal) -> Result<bool, CtlError> {
    let text = clean(text);
    match terminal.height {
        Some(height) => write(&painted(&text, height)),
        None => write(&format!("{text}\n")),
    }
}

/// The text over what was there.
fn painted(text: &str, height: usize) -> String {
    let lines: Vec<&str> = text.lines().take(height).collect();
    format!("{HOME}{}{CLEAR_REST}", lines.join(CLEAR_LINE))
}

fn write(text: &str) -> Result<bool, CtlError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_covers_the_one_before_and_is_not_higher_than_the_terminal() {
        assert_eq!(painted("a\nb\nc\n", 2), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
        assert_eq!(painted("a\n", 24), "\x1b[Ha\x1b[K\x1b[J");
    }
}
