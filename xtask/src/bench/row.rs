//! One row of a bench: its form is a contract (`cargo xtask bench --json`).

use std::fmt;

use serde::Serialize;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// One round: ours and the peer's, measured one right after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Round {
    /// Our figure, in the row's unit.
    pub ours: f64,
    /// The peer's, if there is a peer.
    pub peer: Option<f64>,
    /// CPU time of an operation of ours, in microseconds, where operations are measured.
    pub cpu_us_ours: Option<f64>,
    /// CPU time of an operation of the peer, in microseconds.
    pub cpu_us_peer: Option<f64>,
}

impl Round {
    /// A figure that is compared with a fixed one.
    pub fn alone(ours: f64) -> Self {
        Self { ours, peer: None, cpu_us_ours: None, cpu_us_peer: None }
    }

    /// Ours over the peer's, or ours itself where there is no peer.
    fn ratio(&self) -> f64 {
        self.peer.map_or(self.ours, |peer| self.ours / peer)
    }
}

/// What a row claims, before it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Its fixed name.
    pub name: &'static str,
    /// Of `ours` and `peer`.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The ratio aimed at.
    pub target: f64,
    /// The ratio below (above, where lower is better) which the row is missed.
    pub floor: f64,
    /// What is compared with what, and under which conditions.
    pub note: &'static str,
}

impl Claim {
    /// What a row of this name claims; of the two ratios the first is aimed at, the second the least.
    pub const fn new(
        name: &'static str,
        unit: &'static str,
        better: Better,
        (target, floor): (f64, f64),
        note: &'static str,
    ) -> Claim {
        Claim { name, unit, better, target, floor, note }
    }
}

/// A measured row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its fixed name.
    pub name: String,
    /// The median of ours; none when it could not be measured.
    pub ours: Option<f64>,
    /// The median of the peer's; none when there is no peer, or nothing was measured.
    pub peer: Option<f64>,
    /// Of `ours` and `peer`.
    pub unit: String,
    /// The median of the rounds' ratios, ours over the peer's, or of ours without a peer; none when it could not be
    /// measured.
    pub ratio: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// The ratio aimed at.
    pub target: f64,
    /// The ratio that must hold.
    pub floor: f64,
    /// CPU time of an operation of ours, median.
    pub cpu_us_ours: Option<f64>,
    /// CPU time of an operation of the peer, median.
    pub cpu_us_peer: Option<f64>,
    /// How many rounds were measured.
    pub rounds: usize,
    /// What is compared, or why nothing was measured.
    pub note: String,
}

impl Row {
    /// The row of `claim` from its interleaved rounds.
    pub fn measured(claim: &Claim, rounds: &[Round]) -> Self {
        let median_of = |value: fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(value).collect());
        Self {
            ours: median_of(|round| Some(round.ours)),
            peer: median_of(|round| round.peer),
            ratio: median_of(|round| Some(round.ratio())),
            cpu_us_ours: median_of(|round| round.cpu_us_ours),
            cpu_us_peer: median_of(|round| round.cpu_us_peer),
            rounds: rounds.len(),
            ..Self::missing(claim, claim.note)
        }
    }

    /// The row of `claim` when it could not be measured, for `reason`.
    pub fn missing(claim: &Claim, reason: &str) -> Self {
        Self {
            name: claim.name.to_owned(),
            ours: None,
            peer: None,
            unit: claim.unit.to_owned(),
            ratio: None,
            better: claim.better,
            target: claim.target,
            floor: claim.floor,
            cpu_us_ours: None,
            cpu_us_peer: None,
            rounds: 0,
            note: reason.to_owned(),
        }
    }

    /// Whether the floor holds; a row that was not measured is missed.
    pub fn holds(&self) -> bool {
        self.ratio.is_some_and(|ratio| match self.better {
            Better::Higher => ratio >= self.floor,
            Better::Lower => ratio <= self.floor,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let verdict = if self.holds() { "ok" } else { "MISSED" };
        let (ours, peer) = (number(self.ours, 2), number(self.peer, 2));
        write!(f, "{:<30} {ours:>10} {peer:>10} {:<6} {:>8}", self.name, self.unit, number(self.ratio, 3))?;
        write!(f, " {:>8.3} {:>8.3}", self.target, self.floor)?;
        let (cpu_ours, cpu_peer) = (number(self.cpu_us_ours, 2), number(self.cpu_us_peer, 2));
        write!(f, " {cpu_ours:>7} {cpu_peer:>7} {:>3} {verdict:<6} {}", self.rounds, self.note)
    }
}

/// The head of the table that [`Row`]'s lines make.
pub const HEAD: &str = "row                                  ours       peer unit      ratio   target    floor us-ours us-peer rnd";

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(*upper);
    }
    values.get(middle.checked_sub(1)?).map(|lower| f64::midpoint(*lower, *upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: Claim = Claim {
        name: "x",
        unit: "k/s",
        better: Better::Higher,
        target: 1.2,
        floor: 1.0,
        note: "x against y",
    };

    fn round(ours: f64, peer: f64) -> Round {
        Round { ours, peer: Some(peer), cpu_us_ours: Some(1.0), cpu_us_peer: Some(2.0) }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() {
        let row = Row::measured(&CLAIM, &[round(10.0, 10.0), round(30.0, 20.0), round(20.0, 5.0)]);
        assert_eq!((row.ours, row.peer, row.ratio), (Some(20.0), Some(10.0), Some(1.5)));
        assert!(row.holds());
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let row = Row::missing(&CLAIM, "no peer here");
        assert!(!row.holds());
        assert_eq!(serde_json::to_value(&row).unwrap()["ratio"], serde_json::Value::Null);
        assert!(!Row::measured(&CLAIM, &[]).holds());
    }

    #[test]
    fn without_a_peer_the_figure_is_the_ratio() {
        let claim = Claim { better: Better::Lower, target: 0.0, floor: 5.0, ..CLAIM };
        let row = Row::measured(&claim, &[Round::alone(4.0), Round::alone(6.0), Round::alone(1.0)]);
        assert_eq!((row.ours, row.peer, row.ratio, row.cpu_us_ours), (Some(4.0), None, Some(4.0), None));
        assert!(row.holds());
    }

    #[test]
    fn lower_is_better_where_the_row_says_so() {
        let claim = Claim { better: Better::Lower, ..CLAIM };
        assert!(Row::measured(&claim, &[round(9.0, 10.0)]).holds());
        assert!(!Row::measured(&claim, &[round(11.0, 10.0)]).holds());
    }

    #[test]
    fn an_even_number_of_rounds_has_a_median_too() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
