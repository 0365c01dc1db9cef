//! Numbers as people read them: three digits or so, and a unit behind a blank.

/// Powers of 1024.
const BYTES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
/// Powers of 1000, after those that need no unit.
const COUNTS: [&str; 5] = ["", "k", "M", "G", "T"];
/// Powers of 1000 of a microsecond.
const LATENCIES: [&str; 3] = ["µs", "ms", "s"];
/// A count up to this is shown to the last digit.
const EXACT: u64 = 9_999;
/// Names of what a duration is split into, each with its seconds.
const PARTS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];

/// A size: `1.2 GiB`, and `256 MiB` where that is all of it.
pub fn bytes(bytes: u64) -> String {
    size(float(bytes))
}

/// A size that need not be whole, as what came a second.
pub fn size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &BYTES)
}

/// A number of things: `9999`, `12.3 k`.
pub fn count(count: u64) -> String {
    if count <= EXACT { count.to_string() } else { quantity(float(count)) }
}

/// A number that need not be whole, as what came a second: `0.2`, `12.3 k`.
pub fn quantity(number: f64) -> String {
    scaled(number, 1000.0, &COUNTS)
}

/// How long a request took: `12.3 µs`.
pub fn latency(us: f64) -> String {
    scaled(us, 1000.0, &LATENCIES)
}

/// How long something has lasted, in its two largest units: `3 h 2 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{:.0} ms", (seconds.max(0.0) * 1e3).floor());
    }
    let seconds = whole(seconds);
    let at = PARTS.iter().position(|(_, length)| seconds >= *length).unwrap_or(PARTS.len() - 1);
    let (unit, length) = PARTS[at];
    let rest = PARTS.get(at + 1).map(|(unit, part)| (unit, seconds % length / part));
    match rest {
        Some((lower, rest @ 1..)) => format!("{} {unit} {rest} {lower}", seconds / length),
        _ => format!("{} {unit}", seconds / length),
    }
}

/// In the largest unit of which there is at least one, with a digit behind the point if that says something.
fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value.max(0.0), 0);
    // 999.7 would be shown as 1000.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let has_tenths = value < 99.95 && (value * 10.0).round() % 10.0 != 0.0;
    let is_rounded = unit > 0 && value < 99.95 && value.fract() != 0.0;
    let number = if has_tenths || is_rounded { format!("{value:.1}") } else { format!("{value:.0}") };
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

/// Exact below 2^53, which is more than is shown.
pub fn float(value: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let float = value as f64;
    float
}

fn whole(value: f64) -> u64 {
    // A float that does not fit becomes the next number that does.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = value as u64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let texts = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1500, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            ((10 << 20) + 1, "10.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1_300_000_000, "1.2 GiB"),
            (768 << 20, "768 MiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (value, text) in texts {
            assert_eq!(bytes(value), text, "{value}");
        }
    }

    #[test]
    fn counts_and_quantities() {
        let counts = [(0, "0"), (9_999, "9999"), (12_345, "12.3 k"), (999_960, "1.0 M"), (250_000, "250 k")];
        for (value, text) in counts {
            assert_eq!(count(value), text);
        }
        let quantities = [(0.0, "0"), (0.25, "0.2"), (7.0, "7"), (12_345.6, "12.3 k"), (-1.0, "0")];
        for (value, text) in quantities {
            assert_eq!(quantity(value), text);
        }
        assert_eq!(size(1.3e9), "1.2 GiB");
    }

    #[test]
    fn times() {
        let latencies =
            [(0.8, "0.8 µs"), (12.0, "12 µs"), (1_234.0, "1.2 ms"), (2.5e6, "2.5 s"), (9e9, "9000 s")];
        for (value, text) in latencies {
            assert_eq!(latency(value), text);
        }
        let durations = [
            (-3.0, "0 ms"),
            (0.85, "850 ms"),
            (12.9, "12 s"),
            (60.0, "1 min"),
            (185.0, "3 min 5 s"),
            (7_325.0, "2 h 2 min"),
            (7_205.0, "2 h"),
            (500_000.0, "5 d 18 h"),
        ];
        for (value, text) in durations {
            assert_eq!(duration(value), text);
        }
    }
}
