//! The text of `GET /metrics` (Prometheus' exposition format 0.0.4), read.
//!
//! In: the text. Out: samples in its order, and histograms put together from theirs. What cannot be understood is left
//! out: a daemon of another version may have more to say.

use std::collections::BTreeMap;

/// One line: a name, labels, a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Of the metric.
    pub name: String,
    /// In their order.
    pub labels: Vec<(String, String)>,
    /// Now.
    pub value: f64,
}

/// A histogram for one set of labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Upper ends of buckets and how many values lie below each.
    pub buckets: Vec<(f64, f64)>,
    /// Of all values.
    pub sum: f64,
    /// How many values there were.
    pub count: f64,
}

/// All metrics of a program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    /// Counters and gauges; the former are marked.
    pub samples: Vec<(Metric, bool)>,
    /// Histograms by name and labels.
    pub histograms: BTreeMap<(String, String), Histogram>,
}

/// Reads the text.
pub fn parse(text: &str) -> Exposition {
    let mut kinds = BTreeMap::new();
    let mut exposition = Exposition::default();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind.trim());
        } else if let Some(sample) = sample(line) {
            exposition.add(sample, &kinds);
        }
    }
    exposition
}

impl Exposition {
    fn add(&mut self, mut sample: Metric, kinds: &BTreeMap<&str, &str>) {
        let part = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| {
            let name = sample.name.strip_suffix(part)?;
            (kinds.get(name) == Some(&"histogram")).then(|| (name.to_owned(), part))
        });
        let Some((name, part)) = part else {
            let is_counter = kinds.get(sample.name.as_str()) == Some(&"counter");
            return self.samples.push((sample, is_counter));
        };
        let end =
            sample.labels.iter().position(|(label, _)| label == "le").map(|at| sample.labels.remove(at).1);
        let histogram = self.histograms.entry((name, labels_text(&sample.labels))).or_default();
        match (part, end.and_then(|end| end.replace("+Inf", "inf").parse().ok())) {
            ("_bucket", Some(end)) => histogram.buckets.push((end, sample.value)),
            ("_sum", _) => histogram.sum = sample.value,
            ("_count", _) => histogram.count = sample.value,
            _ => {}
        }
    }
}

impl Histogram {
    /// What came since an earlier look at the same histogram; all of it if that one had more.
    pub fn since(&self, before: &Histogram) -> Histogram {
        if before.count > self.count || before.buckets.len() != self.buckets.len() {
            return self.clone();
        }
        let buckets = self.buckets.iter().zip(&before.buckets);
        Histogram {
            buckets: buckets.map(|((end, now), (_, before))| (*end, now - before)).collect(),
            sum: self.sum - before.sum,
            count: self.count - before.count,
        }
    }

    /// The mean, if there are values.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// The end of the bucket below which that part of the values lies.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let below = self.count * part;
        let bucket = self.buckets.iter().find(|(_, below_end)| *below_end >= below);
        bucket.filter(|_| self.count > 0.0).map(|(end, _)| *end)
    }
}

/// Labels as a screen shows them: `queue=0,state=running`.
pub fn labels_text(labels: &[(String, String)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.join(",")
}

fn sample(line: &str) -> Option<Metric> {
    let end = line.find(['{', ' '])?;
    let (name, rest) =
        line.split_at_checked(end).filter(|(name, _)| !name.is_empty() && !name.starts_with('#'))?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = value.split_whitespace().next()?.replace("Inf", "inf").parse().ok()?;
    Some(Metric { name: name.to_owned(), labels, value })
}

/// The pairs up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.push((name.trim().to_owned(), value));
        rest = after;
    }
}

/// A value up to its closing quote, its escapes undone, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("recorded/metrics.txt");

    #[test]
    fn samples_have_names_labels_and_values() {
        let odd = r#"a{x="1",y="two \"w\" \\ \n}",} 3.5 1700000000"#;
        let labels = vec![("x".to_owned(), "1".to_owned()), ("y".to_owned(), "two \"w\" \\ \n}".to_owned())];
        assert_eq!(sample(odd), Some(Metric { name: "a".to_owned(), labels, value: 3.5 }));
        assert_eq!(sample("b +Inf").unwrap().value, f64::INFINITY);
        for bad in ["", "# HELP a b", "a", "a x", "a{x=1} 2", "a{x=\"1\" 2", " 1"] {
            assert_eq!(sample(bad), None, "{bad}");
        }
    }

    #[test]
    fn counters_are_marked_and_histograms_put_together() {
        let all = parse(TEXT);
        let of = |name: &str| all.samples.iter().find(|(sample, _)| sample.name == name).unwrap();
        assert_eq!(
            (of("outboard_queue_requests_total").0.value, of("outboard_queue_requests_total").1),
            (21_000.0, true)
        );
        assert!(!of("outboard_queue_in_flight").1);
        let histogram =
            &all.histograms[&("outboard_request_duration_seconds".to_owned(), "queue=0".to_owned())];
        assert_eq!((histogram.buckets.len(), histogram.count), (4, 21_000.0));
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99)), (Some(0.000_016), Some(0.000_064)));
        assert_eq!(histogram.mean(), Some(0.25 / 21_000.0));
    }

    #[test]
    fn a_histogram_tells_of_the_time_between_two_looks() {
        let before = Histogram { buckets: vec![(1.0, 10.0), (2.0, 10.0)], sum: 5.0, count: 10.0 };
        let now = Histogram { buckets: vec![(1.0, 10.0), (2.0, 14.0)], sum: 11.0, count: 14.0 };
        let between = now.since(&before);
        assert_eq!((between.mean(), between.quantile(0.5)), (Some(1.5), Some(2.0)));
        assert_eq!(before.since(&now), before, "it began anew");
        assert_eq!(now.since(&now).mean(), None);
        assert_eq!(now.since(&now).quantile(0.5), None);
    }
}
