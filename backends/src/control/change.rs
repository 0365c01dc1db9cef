//! Typed changes: what an operator sends to be set, read member by member.
//!
//! In: a JSON object. Out: numbers within their range, objects within it, or a [`ChangeError`] that names the member by
//! its path, its value and the cure. Promises: what is read has been asked for by name, so that a member which nobody
//! reads is an error and not a typo that does nothing; what is not there stays as it is; what is `null` is taken away.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use thiserror::Error;

/// Longest value that is repeated in an error.
const MAX_SHOWN_BYTES: usize = 40;

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// There is no such member.
    #[error("{path}: there is no such setting; set {known}")]
    Unknown {
        /// The member.
        path: String,
        /// Those that there are.
        known: String,
    },
    /// A value of another type, or out of range.
    #[error("{path}: {value} is refused; give {wanted}")]
    Value {
        /// The member.
        path: String,
        /// What it was to become.
        value: String,
        /// What it may become.
        wanted: String,
    },
}

/// Members of an object.
#[derive(Clone, Debug)]
pub struct Change<'a> {
    /// What stands before the name of a member.
    prefix: String,
    members: &'a Map<String, Value>,
}

impl<'a> Change<'a> {
    /// What a request's body says.
    pub fn new(members: &'a Map<String, Value>) -> Change<'a> {
        Change { prefix: String::new(), members }
    }

    /// Refuses members of other names than these.
    ///
    /// # Errors
    /// [`ChangeError::Unknown`]
    pub fn only(&self, known: &[&str]) -> Result<(), ChangeError> {
        match self.members.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let known = known.iter().map(|name| self.path(name)).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "nothing, this device has none".into() } else { known };
                Err(ChangeError::Unknown { path: shortened(self.path(name)), known })
            }
        }
    }

    /// A number; none: it is not there, or null.
    ///
    /// # Errors
    /// [`ChangeError::Value`]
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ChangeError> {
        let value = self.members.get(name).unwrap_or(&Value::Null);
        match value.as_u64().filter(|number| range.contains(number)) {
            None if value.is_null() => Ok(None),
            None => Err(self.refused(name, &number_in(&range))),
            number => Ok(number),
        }
    }

    /// Some text; none: it is not there, or null.
    ///
    /// # Errors
    /// [`ChangeError::Value`]
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ChangeError> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.refused(name, "a text")),
        }
    }

    /// Some text of a few.
    ///
    /// # Errors
    /// [`ChangeError::Value`]
    pub fn one_of<'b>(&self, name: &str, known: &[&'b str]) -> Result<Option<&'b str>, ChangeError> {
        let Some(value) = self.members.get(name) else { return Ok(None) };
        let found = known.iter().find(|known| value.as_str() == Some(known));
        found
            .map(|found| Some(*found))
            .ok_or_else(|| self.refused(name, &format!("one of {}", known.join(", "))))
    }

    /// An object in the object, or null: `Some(None)`.
    ///
    /// # Errors
    /// [`ChangeError::Value`]
    pub fn object(&self, name: &str) -> Result<Option<Option<Change<'a>>>, ChangeError> {
        match self.members.get(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::Object(members)) => {
                Ok(Some(Some(Change { prefix: format!("{}.", self.path(name)), members })))
            }
            Some(_) => Err(self.refused(name, "an object, or null")),
        }
    }

    /// The member's value is not what is wanted.
    pub fn refused(&self, name: &str, wanted: &str) -> ChangeError {
        let value = self.members.get(name).unwrap_or(&Value::Null).to_string();
        ChangeError::Value { path: self.path(name), value: shortened(value), wanted: wanted.into() }
    }

    /// The object itself is not what is wanted.
    pub fn refused_whole(&self, wanted: &str) -> ChangeError {
        let value = shortened(Value::Object(self.members.clone()).to_string());
        ChangeError::Value { path: self.prefix.trim_end_matches('.').into(), value, wanted: wanted.into() }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

fn number_in(range: &RangeInclusive<u64>) -> String {
    match (range.start(), range.end()) {
        (first, &u64::MAX) => format!("a number, {first} or more"),
        (first, last) => format!("a number from {first} to {last}"),
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(MAX_SHOWN_BYTES) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: &Value) -> &Map<String, Value> {
        value.as_object().unwrap()
    }

    #[test]
    fn members_are_read_by_type_and_range() {
        let body = json!({ "limit": { "bytes": 5, "ops": null }, "mode": "fast", "none": null });
        let change = Change::new(object(&body));
        change.only(&["limit", "mode", "none", "other"]).unwrap();
        let limit = change.object("limit").unwrap().unwrap().unwrap();
        assert_eq!(limit.number("bytes", 1..=5), Ok(Some(5)));
        assert_eq!([limit.number("ops", 1..=5), limit.number("burst_ms", 1..=5)], [Ok(None), Ok(None)]);
        assert_eq!(change.one_of("mode", &["slow", "fast"]), Ok(Some("fast")));
        assert_eq!(change.one_of("gone", &["slow", "fast"]), Ok(None));
        assert!(
            change.object("none").unwrap().unwrap().is_none() && change.object("gone").unwrap().is_none()
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_path_its_value_and_the_cure() {
        let body = json!({ "limit": { "bytes": 0, "byte": "x".repeat(999) }, "mode": 7 });
        let change = Change::new(object(&body));
        let limit = change.object("limit").unwrap().unwrap().unwrap();
        let told = |error: ChangeError| error.to_string();
        assert_eq!(
            told(limit.number("bytes", 1..=u64::MAX).unwrap_err()),
            "limit.bytes: 0 is refused; give a number, 1 or more"
        );
        assert_eq!(
            told(limit.only(&["bytes", "ops"]).unwrap_err()),
            "limit.byte: there is no such setting; set limit.bytes, limit.ops"
        );
        assert_eq!(
            told(change.one_of("mode", &["slow", "fast"]).unwrap_err()),
            "mode: 7 is refused; give one of slow, fast"
        );
        assert_eq!(told(change.object("mode").unwrap_err()), "mode: 7 is refused; give an object, or null");
        assert!(told(limit.refused("byte", "less")).len() < 100);
        for value in [json!(-1), json!(1.5), json!("1"), json!(true), json!(u64::MAX)] {
            let body = json!({ "n": value });
            let told = told(Change::new(object(&body)).number("n", 1..=9).unwrap_err());
            assert_eq!(told, format!("n: {value} is refused; give a number from 1 to 9"));
        }
    }
}
