//! A device's settings: as a list of names and values, and from `KEY=VALUE`.
//!
//! Settings are a JSON object, which may hold others: the setting `{"limit": {"bytes": 1}}` is called `limit.bytes`.
//! [`apply`] keeps what stands beside a setting that is changed, so that `limit.bytes=1M` leaves `limit.ops` as it
//! was, and returns only the outermost settings that were named: the daemon leaves the others alone.

use serde_json::{Map, Value};
use thiserror::Error;

use super::screen::{Fields, units};

/// Powers of 1024 behind a number.
const SHIFTS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Why a `KEY=VALUE` cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingError {
    /// No `=`, or nothing before it.
    #[error("{0}: no setting; give KEY=VALUE, for example limit.bytes=1M")]
    NoSetting(String),
    /// `limit=null limit.bytes=1`.
    #[error("{setting}: {key} is no group of settings here; give each setting once")]
    NoGroup {
        /// As given.
        setting: String,
        /// What was not expected to be one.
        key: String,
    },
}

/// Names and values of all settings, those of a group behind its name and a dot.
pub fn flat(settings: &Value) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    if let Value::Object(group) = settings {
        flatten("", group, &mut flat);
    }
    flat
}

fn flatten(prefix: &str, group: &Map<String, Value>, flat: &mut Vec<(String, Value)>) {
    for (key, value) in group {
        let name = format!("{prefix}{key}");
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(&format!("{name}."), inner, flat),
            value => flat.push((name, value.clone())),
        }
    }
}

/// A value as it would be given, and with a unit behind it where its name has one.
pub fn readable(name: &str, value: &Value) -> String {
    let is_size = name.rsplit(['.', '_']).next() == Some("bytes");
    match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => match number.as_u64().filter(|bytes| is_size && *bytes >= 1024) {
            Some(bytes) => format!("{bytes} ({})", units::bytes(bytes)),
            None => number.to_string(),
        },
        value => value.to_string(),
    }
}

/// All settings, one on a line.
pub fn screen(settings: &Value, width: Option<usize>) -> String {
    let mut fields = Fields::default();
    for (name, value) in flat(settings) {
        fields.add(name.clone(), readable(&name, &value));
    }
    let text = fields.render(width);
    if text.is_empty() { "there is nothing to set in this device\n".to_owned() } else { text }
}

/// What to ask a daemon for that has these settings: the outermost ones that `changes` name, changed.
///
/// # Errors
/// [`SettingError`]
pub fn apply(settings: &Value, changes: &[String]) -> Result<Value, SettingError> {
    let mut asked = Map::new();
    for change in changes {
        let no_setting = || SettingError::NoSetting(change.clone());
        let (key, value) = change.split_once('=').ok_or_else(no_setting)?;
        let mut path: Vec<&str> = key.split('.').collect();
        let last = path.pop().filter(|last| !last.is_empty()).ok_or_else(no_setting)?;
        let group = path.first().map(|outermost| (*outermost, settings.get(*outermost).cloned()));
        if let Some((outermost, present)) = group {
            asked.entry(outermost).or_insert(present.unwrap_or_default());
        }
        let mut place = &mut asked;
        for group in path {
            place = enter(place, group)
                .ok_or_else(|| SettingError::NoGroup { setting: change.clone(), key: group.to_owned() })?;
        }
        place.insert(last.to_owned(), parse(value));
    }
    Ok(Value::Object(asked))
}

/// The group of that name; what is not there, or is nothing, becomes one.
fn enter<'a>(place: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let value = place.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

/// JSON as it stands; a number with K, M, G or T behind it; a word otherwise.
fn parse(text: &str) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    let size = SHIFTS.iter().find_map(|(unit, shift)| {
        let digits = text.strip_suffix([*unit, unit.to_ascii_lowercase()])?;
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    });
    size.map_or_else(|| Value::from(text), Value::from)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn settings_are_called_by_their_path() {
        let settings = json!({"limit": {"bytes": 1_048_576, "ops": null}, "name": "x", "empty": {}});
        let shown: Vec<_> = flat(&settings)
            .into_iter()
            .map(|(name, value)| format!("{name}={}", readable(&name, &value)))
            .collect();
        assert_eq!(shown, ["empty={}", "limit.bytes=1048576 (1 MiB)", "limit.ops=null", "name=x"]);
        assert!(flat(&Value::Null).is_empty());
    }

    #[test]
    fn a_change_keeps_what_stands_beside_it_and_names_nothing_else() {
        let settings = json!({"limit": {"bytes": 1, "ops": 2}, "other": 3});
        let asked = apply(&settings, &changes(&["limit.bytes=1M"])).unwrap();
        assert_eq!(asked, json!({"limit": {"bytes": 1_048_576, "ops": 2}}));
        let asked = apply(&settings, &changes(&["limit=null"])).unwrap();
        assert_eq!(asked, json!({"limit": null}));
        let asked =
            apply(&json!({"limit": null}), &changes(&["limit.ops=5", "limit.burst_ms=10", "a.b.c=x y"]))
                .unwrap();
        assert_eq!(asked, json!({"limit": {"ops": 5, "burst_ms": 10}, "a": {"b": {"c": "x y"}}}));
    }

    #[test]
    fn values_are_json_or_sizes_or_words() {
        let values = [
            ("true", json!(true)),
            ("12", json!(12)),
            ("3k", json!(3072)),
            ("2G", json!(2u64 << 30)),
            ("99999999999T", json!("99999999999T")),
            ("MK", json!("MK")),
            ("\"12\"", json!("12")),
            ("", json!("")),
        ];
        for (text, value) in values {
            assert_eq!(parse(text), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_setting_is_told() {
        for text in ["limit", "=1", "limit.=1"] {
            let error = apply(&json!({}), &changes(&[text])).unwrap_err();
            assert_eq!(error, SettingError::NoSetting(text.to_owned()));
        }
        let error = apply(&json!({"limit": 1}), &changes(&["limit.bytes=1"])).unwrap_err().to_string();
        assert_eq!(error, "limit.bytes=1: limit is no group of settings here; give each setting once");
    }
}
