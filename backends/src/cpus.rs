//! Which CPUs workers run on: `--cpus LIST`.
//!
//! In: numbers and ranges, like `0-2,5`. Out: for each worker its CPU, the first for the first and so on, in turn.
//! Refuses, when the option is read: what is no list, and CPUs that the host does not have or that this process may
//! not use. A CPU that goes away later fails the start of a worker.

use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;

/// CPUs that the host has, as a list.
const PRESENT: &str = "/sys/devices/system/cpu/present";

/// CPUs for workers; none means that they run anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// Why a list is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CpuError {
    /// It is no list.
    #[error("`{0}` is neither a CPU nor a range of them; give numbers and ranges, like 0-2,5")]
    Syntax(String),
    /// The host has no such CPU.
    #[error("this host has no CPU {cpu}; it has {present}")]
    Missing {
        /// Its number.
        cpu: usize,
        /// What there is, as a list.
        present: String,
    },
    /// The process is confined to others.
    #[error(
        "CPU {cpu} is not allowed for this process; use {allowed}, or allow it (taskset, cpuset, AllowedCPUs=)"
    )]
    NotAllowed {
        /// Its number.
        cpu: usize,
        /// What is allowed, as a list.
        allowed: String,
    },
}

impl FromStr for CpuList {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<CpuList, CpuError> {
        let allowed = allowed();
        let present = std::fs::read_to_string(PRESENT).ok().and_then(|text| parse(text.trim()).ok());
        check(parse(text)?, present.as_ref().unwrap_or(&allowed), &allowed)
    }
}

/// CPUs that this process may use.
fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

fn check(list: Vec<usize>, present: &[usize], allowed: &[usize]) -> Result<CpuList, CpuError> {
    for cpu in list.iter().copied() {
        if !present.contains(&cpu) {
            return Err(CpuError::Missing { cpu, present: to_list(present) });
        }
        if !allowed.contains(&cpu) {
            return Err(CpuError::NotAllowed { cpu, allowed: to_list(allowed) });
        }
    }
    Ok(CpuList(list))
}

fn parse(text: &str) -> Result<Vec<usize>, CpuError> {
    let syntax = |part: &str| CpuError::Syntax(part.to_owned());
    let mut cpus = Vec::new();
    for part in text.split(',') {
        cpus.extend(range(part).ok_or_else(|| syntax(part))?);
    }
    Ok(cpus)
}

/// `5` or `0-2`, within what a set of CPUs can hold.
fn range(part: &str) -> Option<RangeInclusive<usize>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|cpu: &usize| digits && *cpu < CpuSet::MAX_CPU)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

/// The usual notation of sorted numbers.
fn to_list(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|one, next| one + 1 == *next);
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

impl CpuList {
    /// Binds the calling thread, which is worker `number`, to its CPU.
    ///
    /// # Errors
    /// The kernel refuses: the CPU went away, or is not allowed any more.
    pub(crate) fn pin(&self, number: usize) -> io::Result<()> {
        let Some(cpu) = number.checked_rem(self.0.len()).and_then(|at| self.0.get(at)) else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(*cpu);
        let refused = |cause| io::Error::other(format!("--cpus: cannot run on CPU {cpu} any more: {cause}"));
        sched_setaffinity(None, &set).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_read_in_their_order() {
        assert_eq!(parse("5,0-2,7"), Ok(vec![5, 0, 1, 2, 7]));
        assert_eq!(parse("3"), Ok(vec![3]));
        for (text, part) in
            [("", ""), ("0,", ""), ("0-", "0-"), ("2-1", "2-1"), ("1,x", "x"), ("+1", "+1"), ("1024", "1024")]
        {
            assert_eq!(parse(text), Err(CpuError::Syntax(part.into())), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_and_what_is_not_allowed_are_told_apart() {
        let check = |list: &str| check(parse(list).unwrap(), &[0, 1, 2, 3, 6], &[1, 2, 6]);
        assert_eq!(check("6,1"), Ok(CpuList(vec![6, 1])));
        assert_eq!(check("4"), Err(CpuError::Missing { cpu: 4, present: "0-3,6".into() }));
        assert_eq!(check("1,3"), Err(CpuError::NotAllowed { cpu: 3, allowed: "1-2,6".into() }));
    }

    #[test]
    fn workers_take_cpus_in_turn_and_without_a_list_none() {
        let own = allowed();
        let list = CpuList(own.clone());
        let on = |list: &CpuList, worker| {
            std::thread::scope(|scope| {
                scope.spawn(|| list.pin(worker).map(|()| allowed()).unwrap()).join().unwrap()
            })
        };
        for worker in 0..own.len() * 2 {
            assert_eq!(on(&list, worker), [own[worker % own.len()]]);
        }
        assert_eq!(on(&CpuList::default(), 3), own);
    }
}
