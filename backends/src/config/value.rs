//! A value of the file as what the command line would say.
//!
//! In: an option and a TOML value. Out: the arguments that mean the same, or nothing where the type is another one:
//! `queues = "4"` is refused like `serial = 4`, so that a file reads the same to everybody.

use std::any::TypeId;
use std::ops::Range;

use clap::{Arg, ArgAction};
use toml::de::DeValue;

/// Most characters of a value that an error shows.
const SHOWN: usize = 60;

/// The arguments that mean `value`: none where a flag is false.
pub(super) fn to_args(arg: &Arg, value: &DeValue<'_>) -> Option<Vec<String>> {
    let name = arg.get_long()?;
    let one = |value: &DeValue<'_>| scalar(arg, value).map(|text| format!("--{name}={text}"));
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(on)) => {
            Some(on.then(|| format!("--{name}")).into_iter().collect())
        }
        (ArgAction::Append, DeValue::Array(values)) => {
            values.iter().map(|value| one(value.get_ref())).collect()
        }
        (ArgAction::Set, value) => one(value).map(|arg| vec![arg]),
        _ => None,
    }
}

fn scalar(arg: &Arg, value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Integer(number) if is_number(arg) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::String(text) if !is_number(arg) => Some(text.to_string()),
        _ => None,
    }
}

/// Whether the option is parsed into a number.
fn is_number(arg: &Arg) -> bool {
    let parsed = arg.get_value_parser().type_id();
    let signed = [TypeId::of::<i8>(), TypeId::of::<i16>(), TypeId::of::<i32>(), TypeId::of::<i64>()];
    let unsigned = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    let sized = [TypeId::of::<usize>(), TypeId::of::<isize>()];
    [&signed[..], &unsigned, &sized].concat().iter().any(|id| parsed == *id)
}

/// What the option takes, in words.
pub(super) fn wanted(arg: &Arg) -> String {
    let one = if is_number(arg) { "a number without quotes" } else { "a string in quotes" };
    match arg.get_action() {
        ArgAction::SetTrue => "true or false".to_owned(),
        ArgAction::Append => format!("a list in brackets, each {one}"),
        _ => one.to_owned(),
    }
}

/// The value as it stands in the file, of one line.
pub(super) fn shown(text: &str, span: Range<usize>) -> String {
    let written = text.get(span).unwrap_or_default();
    let start: String = written.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    if start.len() < written.len() { format!("{start}...") } else { start }
}
