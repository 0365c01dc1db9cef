//! Errors in words: what happened, and what caused it.

use std::error::Error;

/// The error and its causes, from the outside in.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache;

    #[test]
    fn causes_follow_what_they_caused() {
        let source = std::io::Error::other("disk full");
        let error = cache::Error::Io { path: "/x".into(), source };
        assert_eq!(explain(&error), "Cannot use the cache entry /x: disk full");
    }
}
