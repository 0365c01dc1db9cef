//! `outboard ctl metrics`: all counters on a screen.
//!
//! In: two texts of `GET /metrics`, or one. Out: a table of counters and gauges that have something to say, and one of
//! histograms. With an earlier
//! text they tell what came a second since then, and histograms speak of the time in between only.

use std::time::Duration;

use super::exposition::{Exposition, Histogram, Metric, labels_text};
use super::rates::{Sample, per_second};
use super::screen::{Column, NOTHING, Table, units};

/// The whole screen.
pub fn screen(now: &Sample<Exposition>, before: Option<&Sample<Exposition>>, width: Option<usize>) -> String {
    let before = before.map(|before| (&before.value, now.at.saturating_duration_since(before.at)));
    let mut parts =
        vec![samples(&now.value, before).render(width), histograms(&now.value, before).render(width)];
    let silent = now.value.samples.iter().filter(|(metric, is_counter)| !tells(metric, *is_counter)).count();
    if silent > 0 {
        parts.push(format!("{silent} more are 0; --json shows all\n"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

type Before<'a> = Option<(&'a Exposition, Duration)>;

fn samples(now: &Exposition, before: Before<'_>) -> Table {
    let rows: Vec<&(Metric, bool)> =
        now.samples.iter().filter(|(metric, is_counter)| tells(metric, *is_counter)).collect();
    let rate = before.map(|(before, elapsed)| {
        Column::numbers("A SECOND", &rows, |(sample, is_counter)| {
            let earlier = before.samples.iter().find(|(earlier, _)| is_same(earlier, sample));
            let rate = earlier
                .filter(|_| *is_counter)
                .and_then(|(earlier, _)| per_second(sample.value, earlier.value, elapsed));
            rate.map_or(NOTHING.to_owned(), |rate| readable(&sample.name, rate))
        })
    });
    let columns = [
        Some(Column::words("METRIC", &rows, |(sample, _)| {
            called(&sample.name, &labels_text(&sample.labels))
        })),
        Some(Column::numbers("VALUE", &rows, |(sample, _)| readable(&sample.name, sample.value))),
        rate,
    ];
    if rows.is_empty() { Table::default() } else { Table(columns.into_iter().flatten().collect()) }
}

fn histograms(now: &Exposition, before: Before<'_>) -> Table {
    let rows: Vec<(&str, &str, Histogram, Option<f64>)> = now
        .histograms
        .iter()
        .map(|(key, histogram)| {
            let earlier = before.and_then(|(before, elapsed)| Some((before.histograms.get(key)?, elapsed)));
            let between = earlier.map_or_else(|| histogram.clone(), |(earlier, _)| histogram.since(earlier));
            let rate =
                earlier.and_then(|(earlier, elapsed)| per_second(histogram.count, earlier.count, elapsed));
            (key.0.as_str(), key.1.as_str(), between, rate)
        })
        .collect();
    let time = |head, of: fn(&Histogram) -> Option<f64>| {
        Column::numbers(head, &rows, move |(_, _, histogram, _)| {
            of(histogram).map_or(NOTHING.to_owned(), time)
        })
    };
    let columns = [
        Some(Column::words("HISTOGRAM", &rows, |row| called(row.0, row.1))),
        before.is_none().then(|| Column::numbers("COUNT", &rows, |row| units::quantity(row.2.count))),
        before.map(|_| {
            Column::numbers("A SECOND", &rows, |row| row.3.map_or(NOTHING.to_owned(), units::quantity))
        }),
        Some(time("MEAN", Histogram::mean)),
        Some(time("P50", |histogram| histogram.quantile(0.5))),
        Some(time("P99", |histogram| histogram.quantile(0.99))),
    ];
    if rows.is_empty() { Table::default() } else { Table(columns.into_iter().flatten().collect()) }
}

fn is_same(one: &Metric, other: &Metric) -> bool {
    one.name == other.name && one.labels == other.labels
}

/// Whether a metric has something to say: a counter that has counted, a state that it is.
fn tells(metric: &Metric, is_counter: bool) -> bool {
    let is_choice = metric.labels.iter().any(|(label, _)| label == "state");
    metric.value != 0.0 || !(is_counter || is_choice)
}

/// A metric with its labels, in one word.
fn called(name: &str, labels: &str) -> String {
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{labels}}}") }
}

/// Metrics carry their unit in their name.
fn readable(name: &str, value: f64) -> String {
    if name.trim_end_matches("_total").ends_with("_bytes") {
        units::size(value)
    } else {
        units::quantity(value)
    }
}

/// The end of a bucket, in seconds; the last has none.
fn time(seconds: f64) -> String {
    if seconds.is_finite() { units::latency(seconds * 1e6) } else { "longer".to_owned() }
}
