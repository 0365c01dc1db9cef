//! `tests/cases.toml`.

use serde::Deserialize;

/// Kinds of ring, as tests call them.
pub const RINGS: [&str; 3] = ["split", "packed", "-"];

/// All cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseList {
    case: Vec<Listed>,
}

/// One case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// Its id, as in `G03`.
    pub id: String,
    /// What is done, and what must come of it.
    pub what: String,
    daemons: Option<Vec<String>>,
    #[serde(default)]
    rings: Vec<String>,
    /// Why it does not apply yet.
    pub later: Option<String>,
}

impl CaseList {
    /// From the text of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let list: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (nth, case) in list.case.iter().enumerate() {
            if list.case[..nth].iter().any(|other| other.id == case.id) {
                return Err(format!("case {:?} stands there twice", case.id));
            }
            if let Some(ring) = case.rings.iter().find(|ring| !["split", "packed"].contains(&ring.as_str())) {
                return Err(format!("case {:?}: {ring:?} is no kind of ring: split or packed", case.id));
            }
        }
        Ok(list)
    }

    /// Whether there is such a case.
    pub fn has(&self, id: &str) -> bool {
        self.case.iter().any(|case| case.id == id)
    }

    /// The cases, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Listed> {
        self.case.iter()
    }
}

impl Listed {
    /// Whether this daemon needs a test of it. The VMM is named where it does.
    pub fn applies_to(&self, daemon: &str) -> bool {
        match &self.daemons {
            Some(daemons) => daemons.iter().any(|other| other == daemon),
            None => daemon != super::VMM,
        }
    }

    /// Kinds of ring that need a test; `-` where any will do.
    pub fn rings(&self) -> Vec<&str> {
        if self.rings.is_empty() { vec!["-"] } else { self.rings.iter().map(String::as_str).collect() }
    }

    /// How results are looked up.
    pub fn key(&self, daemon: &str, ring: &str) -> (String, String, String) {
        (self.id.clone(), daemon.to_owned(), ring.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_with_its_id() {
        let twice = "[[case]]\nid = \"G01\"\nwhat = \"a\"\n[[case]]\nid = \"G01\"\nwhat = \"b\"\n";
        assert!(CaseList::parse(twice).unwrap_err().contains("\"G01\" stands there twice"));
        let ring = "[[case]]\nid = \"G01\"\nwhat = \"a\"\nrings = [\"round\"]\n";
        assert!(CaseList::parse(ring).unwrap_err().contains("\"round\" is no kind of ring"));
        assert!(CaseList::parse("[[case]]\nid = \"G01\"\n").is_err());
    }
}
