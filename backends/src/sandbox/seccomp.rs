//! Rules as the kernel takes them: BPF programs, for the calling thread and all that it starts.
//!
//! In: [`policy`] texts. Out: a [`Filter`]. What no rule allows ends the process (`KILL_PROCESS`), since nothing but code
//! that somebody smuggled in calls it; with [`Mode::Log`] it is done, and the kernel writes it down. What a rule answers
//! with an error number is not done. Filters add up: a later one takes away more, and none gives anything back.
//!
//! The strictest program wins, and the end of the process is stricter than an error number: so calls that are answered
//! with one are allowed by the program of all others, and each number has a program of its own.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use syscalls::Sysno;

use super::policy::{self, Condition, Rule};
use super::{Mode, SandboxError, host};

/// The architecture that this program was built for: calls of any other end the process.
const ARCH: TargetArch = if cfg!(target_arch = "x86_64") {
    TargetArch::x86_64
} else if cfg!(target_arch = "aarch64") {
    TargetArch::aarch64
} else {
    TargetArch::riscv64
};

/// A filter that is ready to be taken on.
#[derive(Clone, Debug, Default)]
pub struct Filter(Vec<BpfProgram>);

impl Filter {
    /// Allows what these parts of these policies allow together.
    ///
    /// # Errors
    /// [`SandboxError::Policy`], [`SandboxError::Compile`]: the policies are wrong, and so is this program.
    pub fn new(policies: &[&'static str], parts: &[&str], mode: Mode) -> Result<Filter, SandboxError> {
        let rules = policy::parse(policies, parts)?;
        let refusal = match mode {
            Mode::On => SeccompAction::KillProcess,
            Mode::Log => SeccompAction::Log,
            Mode::Off => return Ok(Filter(Vec::new())),
        };
        let mut answered: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
        for (rule, errno) in rules.iter().filter_map(|rule| Some((rule, rule.answer?))) {
            answered.entry(errno).or_default().push(rule);
        }
        let mut programs = Vec::new();
        for (errno, rules) in answered {
            // Whoever is told that there is no such call makes another one, which is then looked at.
            let answer = match mode {
                Mode::Log if errno != libc::ENOSYS.cast_unsigned() => SeccompAction::Log,
                _ => SeccompAction::Errno(errno),
            };
            programs.push(program(&rules, SeccompAction::Allow, answer)?);
        }
        programs.push(program(&rules.iter().collect::<Vec<_>>(), refusal, SeccompAction::Allow)?);
        Ok(Filter(programs))
    }

    /// The calling thread takes it on, and with it all threads and programs that it will start. No new privileges can
    /// be had from then on.
    ///
    /// # Errors
    /// [`SandboxError::Missing`]: this kernel has no seccomp; [`SandboxError::Host`].
    pub fn apply(&self) -> Result<(), SandboxError> {
        self.0.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(refused))
    }

    /// Instructions of all its programs.
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Whether it forbids nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `otherwise` for calls that none of the rules speaks of.
fn program(
    rules: &[&Rule],
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let mut by_call: BTreeMap<Sysno, Vec<&Rule>> = BTreeMap::new();
    rules.iter().for_each(|rule| by_call.entry(rule.call).or_default().push(rule));
    let by_call: Result<_, SandboxError> =
        by_call.into_iter().map(|(call, rules)| Ok((i64::from(call.id()), alternatives(&rules)?))).collect();
    Ok(BpfProgram::try_from(SeccompFilter::new(by_call?, otherwise, action, ARCH)?)?)
}

/// Of one call; none: whatever its arguments are.
fn alternatives(rules: &[&Rule]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    if rules.iter().any(|rule| rule.conditions.is_empty()) {
        return Ok(Vec::new());
    }
    let conditions = |rule: &&Rule| rule.conditions.iter().map(compare).collect::<Result<Vec<_>, _>>();
    rules.iter().map(|rule| SeccompRule::new(conditions(rule)?)).collect()
}

fn compare(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let Condition { arg, mask, value } = *condition;
    let how = SeccompCmpOp::MaskedEq(mask.into());
    SeccompCondition::new(arg, SeccompCmpArgLen::Dword, how, value.into())
}

/// A kernel without it knows neither the call nor its mode.
fn refused(error: seccompiler::Error) -> SandboxError {
    match error {
        seccompiler::Error::Seccomp(cause) if is_missing(&cause) => host::no_seccomp(cause),
        seccompiler::Error::Seccomp(cause) | seccompiler::Error::Prctl(cause) => {
            SandboxError::Host { what: "take on a seccomp filter", cause }
        }
        other => SandboxError::Host { what: "take on a seccomp filter", cause: io::Error::other(other) },
    }
}

fn is_missing(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP))
}
