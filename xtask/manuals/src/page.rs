//! One man page: what `clap_mangen` makes of the options, and sections of what `--help` says after them.
//!
//! That text has headings (a line at the left edge that ends in a colon), lines that belong to one (set in from the left
//! edge, and kept as they are: commands and tables), and paragraphs before the first heading, which
//! get one here.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

/// The pages of the programs.
const SEE_ALSO: &str = "outboard(1), outboard\\-run(1), outboard\\-ctl(1), outboard\\-rng(1), outboard\\-blk(1), outboard\\-console(1)";

/// Writes the page of `program` and those of its subcommands, and of theirs.
pub fn write_all(program: Command, dir: &Path) -> io::Result<()> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    write_tree(program, dir)
}

fn write_tree(command: Command, dir: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_tree(subcommand.clone(), dir)?;
    }
    write(command, dir)
}

fn write(command: Command, dir: &Path) -> io::Result<()> {
    let extra = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let described = command.get_long_about().is_some();
    let subcommands = command.get_subcommands().any(|command| !command.is_hide_set());
    let usage = command.clone().render_usage().to_string();
    let man = Man::new(command).manual("Outboard");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // Options with long values would tear a line that is adjusted on both sides apart; a hyphen would be typed along.
    writeln!(page, ".ad l\n.nh")?;
    man.render_name_section(&mut page)?;
    let synopsis = escaped(usage.trim_start_matches("Usage:").trim_start());
    writeln!(page, ".SH \"SYNOPSIS\"\n{synopsis}")?;
    // Without more words it would say the name's over again.
    if described {
        man.render_description_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    if subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    page.write_all(sections(&extra).as_bytes())?;
    writeln!(page, ".SH \"SEE ALSO\"\n{SEE_ALSO}")?;
    std::fs::write(dir.join(man.get_filename()), page)
}

/// The text after the options as sections.
fn sections(text: &str) -> String {
    let headed = text.lines().next().is_none_or(|line| line.ends_with(':'));
    let mut page = if headed { "" } else { ".SH \"NOTES\"\n" }.to_owned();
    let mut as_it_is = false;
    for line in text.lines() {
        let set_in = line.starts_with(' ');
        if set_in != as_it_is && !line.is_empty() {
            page.push_str(if set_in { ".nf\n" } else { ".fi\n" });
            as_it_is = set_in;
        }
        match line.strip_suffix(':').filter(|_| !set_in) {
            Some(heading) => page.push_str(&format!(".SH \"{}\"\n", heading.to_uppercase())),
            None if line.is_empty() && !as_it_is => page.push_str(".PP\n"),
            None => page.push_str(&format!("{}\n", escaped(line))),
        }
    }
    page.push_str(if as_it_is { ".fi\n" } else { "" });
    page
}

/// Text that roff shows as it stands.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_and_what_belongs_to_them() {
        let text = "Some words.\n\nExamples:\n  a --b \\\n    c\n\n  d\n\nExit codes:\n  0  fine";
        let page = ".PP\n.SH \"EXAMPLES\"\n.nf\n  a \\-\\-b \\e\n    c\n\n  d\n\n.fi\n.SH \"EXIT CODES\"\n.nf\n  0  fine\n.fi\n";
        assert_eq!(sections(text), format!(".SH \"NOTES\"\nSome words.\n{page}"));
        assert_eq!(escaped(".TH"), "\\&.TH");
        assert_eq!(sections(""), "");
    }
}
